"""docs/deploy.md: its commands make keys that the units and containers can open, and change nothing
that these count on. What would change this machine is left out, folders are the test's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from client.site import Site
from protocol.consortium.identity import load_identity
from protocol.consortium.passphrase import FILE_VARIABLE, read_passphrase
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
# Users, services and terminals are not this test's to make or ask.
_BEFORE = """
set -eu
useradd() { :; }
systemctl() { :; }
systemd-ask-password() { echo "correct horse"; }
runuser() { shift 3; "$@"; }
install() {
    local words=()
    while [ $# -gt 0 ]; do
        case "$1" in -o|-g) shift 2;; *) words+=("$1"); shift;; esac
    done
    command install "${words[@]}"
}
"""


def section(heading: str) -> str:
    level = heading.partition(" ")[0]
    text = PAGE.partition(f"\n{heading}\n")[2]
    assert text, heading
    return re.split(rf"\n{level} |\n## ", text)[0]


def commands(text: str) -> str:
    """The indented blocks of a part of the page."""
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))


def follow(text: str, folder: Path) -> None:
    """Run a part's commands below `folder`."""
    here = {
        "/opt/foedus/.venv/bin/": f"{Path(sys.executable).parent}/",
        "/var/lib/foedus": f"{folder}/var/lib/foedus",
        "/etc/": f"{folder}/etc/",
        "/run/": f"{folder}/run/",
        "/srv/": f"{folder}/srv/",
        "deploy/systemd": f"{ROOT}/deploy/systemd",
    }
    script = commands(text)
    for written, placed in here.items():
        script = script.replace(written, placed)
    for made in ("var/lib", "etc/systemd/system", "run", "srv"):
        (folder / made).mkdir(parents=True, exist_ok=True)
    hidden = ("FOEDUS_PASSPHRASE", FILE_VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        ["bash", "-c", _BEFORE + script],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_the_page_makes_for_systemd_opens_with_the_credential_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(section("## systemd").partition("### ")[0], tmp_path)
    follow(section("### The coordinator"), tmp_path)
    consortium = ConsortiumFolder(tmp_path / "var/lib/foedus/consortium")
    (tmp_path / "invitation.json").write_bytes(consortium.invitation.read_bytes())
    follow(section("### A site"), tmp_path)
    site = Site.from_file(tmp_path / "var/lib/foedus/site/site.yaml")

    assert list((tmp_path / "run").iterdir()) == []
    units = {unit.name for unit in (tmp_path / "etc/systemd/system").iterdir()}
    assert units == {"foedus-client.service", "foedus-server.service"}
    assert site.settings.contracts == f"{tmp_path}/srv/contracts"
    assert site.contracts_folder.is_dir()
    assert not (tmp_path / "var/lib/foedus/site/contracts").exists()

    assert site.identity_file is not None
    assert read_passphrase(site.passphrase_file) is None
    with pytest.raises(FoedusError):
        load_identity(site.identity_file, None)
    # As the units do; the copy lies somewhere else than the one that the keys were made with.
    credential = tmp_path / "credential"
    credential.write_bytes((tmp_path / "etc/foedus/passphrase").read_bytes())
    monkeypatch.setenv(FILE_VARIABLE, str(credential))
    load_identity(site.identity_file, read_passphrase(site.passphrase_file))
    consortium.coordinator(consortium.passphrase())


def test_no_command_of_the_page_writes_a_passphrase_file_into_the_settings() -> None:
    assert "--passphrase-file" not in commands(PAGE)
    for side in ("client", "server"):
        compose = (ROOT / "deploy" / "docker" / f"{side}.compose.yaml").read_text(encoding="utf-8")
        assert "--passphrase-file" not in compose


def test_root_s_passphrase_is_never_named_to_a_user_who_cannot_read_it() -> None:
    given = re.findall(rf"{FILE_VARIABLE}=(\S+)", commands(PAGE))
    assert set(given) == {"/run/foedus-passphrase", "/etc/foedus/container-passphrase"}
    for part in (section("### A site"), section("### The coordinator")):
        assert "install -o foedus -m 600 /etc/foedus/passphrase /run/foedus-passphrase" in part
        assert "rm /run/foedus-passphrase" in part
    secret = "-o 10001 -g 10001 -m 400 /dev/stdin /etc/foedus/container-passphrase"
    assert secret in section("## Containers")


def test_both_ways_of_a_site_name_the_contracts_that_are_mounted_read_only() -> None:
    unit = (ROOT / "deploy/systemd/foedus-client.service").read_text(encoding="utf-8")
    (read_only,) = re.findall(r"^ReadOnlyPaths=(.*)$", unit, re.MULTILINE)
    path = ROOT / "deploy" / "docker" / "client.compose.yaml"
    volumes = yaml.safe_load(path.read_text(encoding="utf-8"))["services"]["site"]["volumes"]
    assert read_only in [volume["target"] for volume in volumes]
    for heading in ("### A site", "## Containers"):
        assert f"|contracts: {read_only}|" in commands(section(heading))
