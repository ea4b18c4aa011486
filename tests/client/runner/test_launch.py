"""What a site's processes are started with."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from client.enrolment.keys import make_supernode_key, save_supernode_key
from client.runner.launch import LOOPBACK, Launch
from client.site import Site, SiteSettings
from protocol.codec import decode
from protocol.consortium.identity import Identity, load_identity, save_identity
from protocol.consortium.invitation import Invitation
from protocol.errors import FoedusError
from tests.client.runner.test_outage import coordinator
from tests.small_runs import write_site

ADDRESS = "127.0.0.1:8000"


def site_with(folder: Path, *lines: str) -> tuple[Path, Site]:
    config = write_site(folder, 1)
    text = config.read_text(encoding="utf-8")
    config.write_text(text + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return config, Site.from_file(config)


def with_keys(folder: Path, passphrase: bytes | None) -> tuple[Path, Site]:
    folder.mkdir()
    save_identity(folder / "identity.pem", Identity.generate(), passphrase)
    save_supernode_key(folder / "supernode.pem", make_supernode_key(), passphrase)
    with coordinator(folder, 0.0) as (address, ca):
        boss = Identity.generate()
        pem = ca.read_text(encoding="ascii")
        Invitation("trial", address, boss.public_key, pem).signed(boss).save(folder / "to.json")
    return site_with(
        folder, "identity: identity.pem", "supernode_key: supernode.pem", "consortium: to.json"
    )


@pytest.mark.parametrize("passphrase", [b"open sesame", None])
def test_keys_are_opened_once_and_handed_over_in_memory(
    tmp_path: Path, passphrase: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passphrase:
        monkeypatch.setenv("FOEDUS_PASSPHRASE", "another")
        (tmp_path / "credential").write_bytes(passphrase + b"\n")
        monkeypatch.setenv("FOEDUS_PASSPHRASE_FILE", str(tmp_path / "credential"))
    config, site = with_keys(tmp_path / "site", passphrase)
    launch = Launch(config, site)
    runner, supernode = launch.runner(), launch.supernode()
    for command in (runner, supernode):
        assert not any("PASSPHRASE" in name for name in command.environment)
        assert not any("PRIVATE KEY" in word for word in command.words)
    words = list(runner.words)
    handed = Path(words[words.index("--identity-file") + 1])
    assert site.identity_file
    assert (
        load_identity(handed).member_id == load_identity(site.identity_file, passphrase).member_id
    )
    words = list(supernode.words)
    key = Path(words[words.index("--auth-supernode-private-key") + 1])
    assert key.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert handed.stat().st_mode & 0o077 == 0 and key.stat().st_mode & 0o077 == 0
    assert {int(key.name), int(handed.name)} <= {*runner.descriptors, *supernode.descriptors}
    assert int(key.name) not in runner.descriptors


def test_a_wrong_passphrase_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, site = with_keys(tmp_path / "site", b"open sesame")
    monkeypatch.setenv("FOEDUS_PASSPHRASE", "guess")
    with pytest.raises(FoedusError, match="does not open"):
        Launch(config, site)


def test_without_an_invitation_or_a_key_it_says_what_to_do(tmp_path: Path) -> None:
    config, site = site_with(tmp_path / "a")
    with pytest.raises(FoedusError, match="foedus client join"):
        Launch(config, site)
    with_keys(tmp_path / "b", None)
    config, site = site_with(tmp_path / "b", "consortium: to.json")
    with pytest.raises(FoedusError, match="supernode_key"):
        Launch(config, site)


def test_both_processes_stay_on_loopback_and_a_proxy_is_not_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.firm:3128")
    monkeypatch.setenv("NO_PROXY", "firm")
    config, site = site_with(tmp_path, "threads: 3")
    launch = Launch(config, site, ADDRESS)
    supernode, runner = launch.supernode(), launch.runner()
    assert supernode.words[supernode.words.index("--host") + 1] == LOOPBACK
    assert f"{LOOPBACK}:{launch.port}" in runner.words
    assert runner.environment["NO_PROXY"] == "firm,127.0.0.1"
    assert runner.environment["OMP_NUM_THREADS"] == "3"
    assert supernode.environment["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.slow
def test_a_runner_goes_by_the_settings_that_were_read_when_the_site_went_up(tmp_path: Path) -> None:
    config, site = site_with(tmp_path, "policy: {maximum_rank: 4}", "excluded_matters: [m1]")
    launch = Launch(config, site, ADDRESS)
    config.write_text("no: settings\n", encoding="utf-8")
    command = launch.runner()
    words = list(command.words)
    handed = Path(words[words.index("--settings-file") + 1]).read_bytes()
    assert decode(SiteSettings, json.loads(handed), "x") == site.settings
    assert words[words.index("--folder") + 1] == str(tmp_path.resolve())
    with subprocess.Popen(
        command.words,
        env=dict(command.environment),
        pass_fds=command.descriptors,
        stderr=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stderr
        try:
            first = next(line for line in runner.stderr if "foedus" in line or "ERROR" in line)
        finally:
            runner.kill()
    assert "Runner ready" in first


def test_no_run_makes_a_site_fetch_a_model_unless_its_operator_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    config, site = site_with(tmp_path)
    assert Launch(config, site, ADDRESS).runner().environment["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert Launch(config, site, ADDRESS).runner().environment["HF_HUB_OFFLINE"] == "0"


def test_a_port_that_was_taken_meanwhile_is_given_up_unless_the_site_names_it(
    tmp_path: Path,
) -> None:
    config, site = site_with(tmp_path / "a")
    launch = Launch(config, site, ADDRESS)
    assert not launch.move_from_taken_port()
    with socket.socket() as other:
        other.bind((LOOPBACK, launch.port))
        other.listen()
        taken = launch.port
        assert launch.move_from_taken_port() and launch.port != taken
        config, site = site_with(tmp_path / "b", f"superlink_port: {taken}")
        fixed = Launch(config, site, ADDRESS)
        with pytest.raises(FoedusError, match=f"port {taken} of 127.0.0.1"):
            fixed.move_from_taken_port()


def test_the_supervisor_does_without_the_libraries_that_train() -> None:
    code = (
        "import sys, client.runner.supervisor; print(*{'torch', 'transformers'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
