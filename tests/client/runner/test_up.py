"""`foedus client up` between real processes: rounds run, secrets stay in memory, and code that is
not installed here is refused by name and not run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.reasons import RefusalReason
from server.release import verify_release
from tests.client.runner.federations import PASSPHRASE, Federation, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with Federation(tmp_path_factory.mktemp("up"), num_sites=2, encrypted=True) as federation:
        federation.start_superlink()
        for site in federation.sites:
            federation.up(site)
        for site in federation.sites:
            site.wait_for("Runner ready")
            site.wait_for("Connected to the coordinator")
        yield federation


def test_a_round_runs_with_the_code_that_is_installed(federation: Federation) -> None:
    output = federation.run()
    wait_until(
        lambda: (output / "adapter" / "manifest.json").exists(), "a release", federation.logs
    )
    verify_release(output / "adapter")
    for site in federation.sites:
        left = [(r["kind"], r["status"]) for r in site.receipts() if r["kind"] != "ledger"]
        assert left == [("train", "ok"), ("evaluate", "ok")]
        assert site.log().count("is the installed release.") == 1
        assert site.state()["runner_starts"] == site.state()["supernode_starts"] == 1


def test_no_secret_is_in_a_command_line_an_environment_or_a_file(federation: Federation) -> None:
    for site in federation.sites:
        state = site.state()
        for pid in (state["pid"], state["supernode_pid"], state["runner_pid"]):
            process = Path(f"/proc/{pid}")
            shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            assert PASSPHRASE.encode() not in shown and b"PRIVATE KEY" not in shown
        for path in (site.folder / "state").rglob("*"):
            assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes()


def test_the_runtime_api_listens_on_loopback_and_wants_the_secret(federation: Federation) -> None:
    from client.runner.supernode_tasks import SuperNodeSilent, SuperNodeTasks

    for site in federation.sites:
        pid = site.state()["supernode_pid"]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        assert words[words.index("--host") + 1] == "127.0.0.1"
        address = f"127.0.0.1:{words[words.index('--port') + 1]}"
        with pytest.raises(SuperNodeSilent):
            SuperNodeTasks(address, b"a guess").acquire()


def test_a_bundle_of_other_code_is_refused_by_name_and_never_run(
    federation: Federation, tmp_path: Path
) -> None:
    code = tmp_path / "hostile"
    shutil.copytree(federation.code, code)
    canaries = tmp_path / "it-ran-in"
    canaries.mkdir()
    hostile = f"import os\nopen(f'{canaries}/{{os.getpid()}}', 'w')\n"
    (code / "client" / "__init__.py").write_text(hostile, encoding="utf-8")
    (code / "client" / "zz_added.py").write_text(hostile, encoding="utf-8")
    (code / "strategies" / "typing.py").write_text(hostile, encoding="utf-8")
    before = [len(site.receipts()) for site in federation.sites]
    federation.run(code=code, name="hostile")
    for site, number in zip(federation.sites, before, strict=True):
        site.wait_for("Refused a train request (code_differs)")
        site.wait_for_receipts(number + 1)
        receipt = site.receipts()[number]
        assert receipt["status"] == RefusalReason.CODE_DIFFERS and receipt["round"] == 1
        assert receipt["run_id"] != "0" * 32
        refusal = next(line for line in site.log().splitlines() if "(code_differs)" in line)
        assert "only in the bundle: client/zz_added.py, strategies/typing.py" in refusal
        assert "not as installed: client/__init__.py" in refusal
    # At the coordinator `flwr run` imports the package `client`; no process of a site does.
    ran = {int(path.name) for path in canaries.iterdir()}
    for site in federation.sites:
        state = site.state()
        assert not ran & {state["pid"], state["supernode_pid"], state["runner_pid"]}
        assert state["runner_starts"] == state["supernode_starts"] == 1
