"""docs/consortium.md, run as it stands there: from nothing to a released adapter."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.release import verify_release

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "consortium.md").read_text(encoding="utf-8")
PATIENCE_SECONDS = 1500


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def blocks() -> list[str]:
    found = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(found) == PAGE.count("```") // 2 > 10
    return [str(block) for block in found]


def processes_of(folder: Path) -> list[str]:
    """The command lines of every process that still works with that folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if entry.name != str(os.getpid()) and str(folder) in line + environment:
            found.append(f"{entry.name} {line}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_SECONDS + 120)
def test_the_page_leads_from_nothing_to_a_released_adapter(tmp_path: Path) -> None:
    home = tmp_path / "with space"
    public, control, metrics = free_ports(3)
    environment = {
        **os.environ,
        "FOEDUS_HOME": str(home),
        "PUBLIC_PORT": str(public),
        "CONTROL_PORT": str(control),
        "METRICS_PORT": str(metrics),
        # As in `make setup`, wherever the environment of this test lies.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    script = "set -euo pipefail\n" + "\n".join(blocks())
    with (tmp_path / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            status = shell.wait(timeout=PATIENCE_SECONDS)
        finally:
            left = processes_of(tmp_path)
            for line in left:
                os.kill(int(line.split()[0]), signal.SIGKILL)
    told = (tmp_path / "log").read_text(errors="replace")
    assert status == 0, told[-8000:]
    assert not left, f"still running at the end of the page: {left}\n{told[-3000:]}"
    manifest = verify_release(home / "oak" / "runs" / "first" / "adapter")
    assert manifest["aggregated_rounds"] == 2 and manifest["cohort_sizes"] == [3, 3]
    assert manifest["secure_aggregation"]["enabled"]
    for word in ("Ash", "Birch", "Cedar", "finished", "confidentiality"):
        assert word in told
    assert "Traceback" not in told, told[-8000:]
