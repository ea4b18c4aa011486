"""Secure aggregation and privacy between real processes: Flower's SuperLink, two SuperNodes, and a
process of its own for every message, so that a site's session lives on disk alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from client.site import Site
from protocol.consortium.identity import Identity, save_identity
from protocol.consortium.roster import Member, Roster
from protocol.files import write_atomically
from server.records import RoundRecord
from server.release import verify_release
from tests.small_runs import LABELS, write_site

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NUM_SITES = 2
_PATIENCE_SECONDS = 1200


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(folder: Path, name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Flower process with its own home; ended with everything it started."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"{name}.log").open("wb") as log:
        running = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield running
        finally:
            # Its children share its session; SIGTERM alone leaves executors behind.
            subprocess.run(["pkill", "-KILL", "-s", str(running.pid)], check=False)
            running.wait()


def with_identity(folder: Path, number: int) -> tuple[Path, Member]:
    path = write_site(folder / f"firm-{number}", number)
    identity = Identity.generate()
    save_identity(path.parent / "identity.pem", identity)
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}identity: identity.pem\nroster: ../roster.json\n", encoding="utf-8")
    return path, Member(f"firm-{number}", identity.public_key)


def logs(folder: Path) -> str:
    return "\n".join(
        f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
        for path in sorted(folder.glob("*.log"))
    )


def wait_for(path: Path, folder: Path) -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < give_up, f"no {path.name} came:\n{logs(folder)}"
        time.sleep(1.0)


@pytest.mark.slow
@pytest.mark.timeout(_PATIENCE_SECONDS + 120)
def test_a_private_and_masked_round_runs_between_processes(tmp_path: Path) -> None:
    sites = [with_identity(tmp_path, number) for number in range(1, NUM_SITES + 1)]
    roster = Roster("processes", 1, tuple(member for _, member in sites))
    write_atomically(tmp_path / "roster.json", roster.to_json().encode())
    port = free_port()
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n",
        encoding="utf-8",
    )
    output = tmp_path / "output"
    overrides = " ".join(
        [
            f"task.labels=[{','.join(LABELS)}]",
            "privacy=dp privacy.unit=example privacy.steps_per_round=1",
            f"secure_aggregation=on coordinator.roster={tmp_path / 'roster.json'}",
            f"federation.rounds=1 federation.min_cohort={NUM_SITES} federation.quorum={NUM_SITES}",
            "adapter.last_layers=1 adapter.rank=2 model.max_tokens=16",
            f"coordinator.output_dir={output}",
        ]
    )
    with ExitStack() as running:
        running.enter_context(
            process(
                tmp_path, "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1",
                "--port", str(port), "--disable-runtime-dependency-installation",
            )
        )  # fmt: skip
        time.sleep(5.0)
        for number, (path, _) in enumerate(sites, start=1):
            running.enter_context(
                process(
                    tmp_path, f"supernode-{number}", "flower-supernode", "--insecure",
                    "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()),
                    "--node-config", f'site-config="{path}"',
                )
            )  # fmt: skip
        running.enter_context(
            process(
                tmp_path, "run", "flwr", "run", ".", "here", "--run-config",
                f"overrides='{overrides}'",
            )
        )  # fmt: skip
        wait_for(output / "adapter" / "manifest.json", tmp_path)
    verify_release(output / "adapter")
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    (record,) = [RoundRecord.from_json(entry) for entry in history["rounds"]]
    assert record.aggregated and len(record.admitted) == NUM_SITES, logs(tmp_path)
    assert record.secure_attempts == 1
    for path, _ in sites:
        receipts = list(Site.from_file(path).receipts.verify())
        kinds = [receipt.kind for receipt in receipts]
        assert kinds.count("ledger") == 1
        phases = [kind for kind in kinds if kind.startswith("secure.")]
        assert len(phases) == 5 and all(r.status in ("ok", "reserved") for r in receipts)
        assert Site.from_file(path).ledger.verify() == 1
