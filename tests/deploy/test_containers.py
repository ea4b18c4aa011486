"""Images and compose files: what gets in, who runs it, what it may write, what it opens."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.cli.build import build_fab_from_disk

from server.consortium.settings import ConsortiumSettings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
SIDES = ("server", "client")


def instructions(side: str) -> list[tuple[str, str]]:
    """(instruction, rest) of each line of a Dockerfile, continued lines joined."""
    text = (DOCKER / f"{side}.Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return [(word, rest) for word, rest in pairs]


def compose(side: str) -> dict[str, Any]:
    path = DOCKER / f"{side}.compose.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def service(side: str) -> dict[str, Any]:
    (found,) = compose(side)["services"].values()
    return dict(found)


@pytest.mark.parametrize("side", SIDES)
def test_an_image_runs_foedus_as_nobody_in_particular(side: str) -> None:
    found = instructions(side)
    known = {
        "FROM", "COPY", "RUN", "USER", "WORKDIR", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL",
        "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert {word for word, _ in found} <= known and found[0][0] == "FROM"
    given = dict(found)
    assert given["USER"] == "10001" and given["ENTRYPOINT"] == '["foedus"]'
    assert given["STOPSIGNAL"] == "SIGTERM"
    # Nothing is run as root after the user was changed.
    user = [word for word, _ in found].index("USER")
    assert "RUN" not in [word for word, _ in found[user:]]
    assert "torch==2.13.0" in next(rest for word, rest in found if word == "RUN")
    assert "index-url" not in str(found)


def test_only_the_coordinator_opens_a_port_and_only_the_firms_one() -> None:
    assert [rest for word, rest in instructions("server") if word == "EXPOSE"] == ["9443"]
    assert [rest for word, rest in instructions("client") if word == "EXPOSE"] == []
    assert service("server")["ports"] == ["9443:9443"] and "ports" not in service("client")
    usual = ConsortiumSettings("x", "x:1")
    assert usual.public_port == 9443 and usual.control_port not in (9443,)


@pytest.mark.parametrize("side", SIDES)
def test_a_container_has_no_rights_beyond_its_volumes(side: str) -> None:
    found = service(side)
    assert found["read_only"] is True and found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["user"] == "10001:10001" and "privileged" not in found
    assert found["build"] == {
        "context": "../..",
        "dockerfile": f"deploy/docker/{side}.Dockerfile",
    }
    assert found["secrets"] == ["passphrase"]
    assert found["environment"]["FOEDUS_PASSPHRASE_FILE"] == "/run/secrets/passphrase"
    assert set(compose(side)["secrets"]["passphrase"]) == {"file"}


def test_the_contracts_of_a_site_are_mounted_read_only() -> None:
    mounts = {mount["target"]: mount for mount in service("client")["volumes"]}
    assert mounts["/srv/contracts"]["read_only"] is True
    assert set(mounts) == {"/srv/contracts", "/var/lib/foedus"}
    assert "FOEDUS_CONTRACTS" in mounts["/srv/contracts"]["source"]


def let_in(side: str) -> tuple[list[str], list[str]]:
    """(names that the ignore file lets in, patterns that it keeps out all the same)."""
    text = (DOCKER / f"{side}.Dockerfile.dockerignore").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return [n[1:] for n in lines if n[0] == "!"], [n for n in lines[1:] if n[0] != "!"]


@pytest.mark.parametrize("side", SIDES)
def test_an_image_holds_the_release_and_nothing_else_of_the_checkout(
    side: str, tmp_path: Path
) -> None:
    names, out = let_in(side)
    image = tmp_path / "foedus"
    image.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            kept_out = [pattern.removeprefix("**/") for pattern in out]
            shutil.copytree(source, image / name, ignore=shutil.ignore_patterns(*kept_out))
        else:
            shutil.copy(source, image / name)
    # The bundle that is made there is the one that is made here.
    assert build_fab_from_disk(image) == build_fab_from_disk(ROOT)
    for secret in ("data", "outputs", "oak", ".git", "site.yaml"):
        assert not any(fnmatch.fnmatch(secret, name) for name in names)
    assert "**/*.pem" in out and "**/*.key" in out
