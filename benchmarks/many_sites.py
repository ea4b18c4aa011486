"""A hundred sites against one coordinator on this machine: do they complete rounds, and how fast.

`foedus server up` and `foedus server run` are what a consortium runs; the sites are simulated
SuperNodes (benchmarks.many_sites_nodes) that answer at once, so that all load falls on the
coordinator, which shares this machine's cores with them. Loopback only.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.command import Say, benchmark_command
from benchmarks.consortium import LocalConsortium
from benchmarks.processes import Processes, cpu_seconds
from benchmarks.result import BenchmarkResult, Cell, Row
from protocol.errors import FoedusError

NAME = "many_sites"
GOAL = 1.0
_OVERRIDES = ("strategy=fedsvd", "federation.evaluate_every=0", "federation.deadline_seconds=600")
_PATIENCE_SECONDS = 3600.0
_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Workload:
    """processes: that the sites are spread over."""

    sites: int = 100
    rounds: int = 5
    processes: int = 4


QUICK = Workload(10, 3, 2)


@dataclass(frozen=True)
class Load:
    """What a run came to. round_seconds: of each round; request_seconds: of the sites' requests
    but for those held for a message; cpu_seconds: by process of the coordinator."""

    sites: int
    admitted: tuple[int, ...]
    round_seconds: tuple[float, ...]
    upload_bytes: int
    request_seconds: tuple[float, ...]
    errors: tuple[str, ...]
    cpu_seconds: dict[str, float]
    wall_seconds: float


def run(quick: bool, say: Say) -> BenchmarkResult:
    """Rounds of many simulated sites against one coordinator."""
    workload = QUICK if quick else Workload()
    with tempfile.TemporaryDirectory() as scratch:
        return result_of(loaded(Path(scratch), workload, say))


def loaded(folder: Path, workload: Workload, say: Say = lambda line: None) -> Load:
    """Found, admit, start, run. Errors: FoedusError where something does not come up or end."""
    # Imported here: `python -m benchmarks` must not load all of this for its other parts.
    from benchmarks.many_sites_nodes import NodesJob, job_words

    settings = {"max_connections": 2048, "max_connections_per_address": 2048}
    stop_file = folder / "stop"
    with Processes(folder) as processes:
        consortium = LocalConsortium(folder, processes, settings)
        consortium.found()
        say(f"  {workload.sites} members join")
        keys = [str(key) for key in join_members(consortium, folder, workload.sites)]
        state = consortium.start()
        results: list[Path] = []
        for number in range(workload.processes):
            results.append(folder / f"nodes-{number}.result")
            job = NodesJob(
                state.public_address, str(consortium.folder.ca), keys[number :: workload.processes],
                str(stop_file), str(results[-1]), _PATIENCE_SECONDS,
            )  # fmt: skip
            processes.start(f"nodes-{number}", *job_words(job, folder, f"nodes-{number}"))
        say("  they come online")
        consortium.wait_for_nodes(workload.sites)
        say(f"  {workload.rounds} rounds")
        began, meter = time.monotonic(), _CpuMeter(state.pid, consortium.folder.runs / "load")
        words = (
            f"federation.rounds={workload.rounds}", f"federation.min_cohort={workload.sites}",
            "task.labels=[a,b,c,d]",
        )  # fmt: skip
        run_folder = consortium.run("load", [*_OVERRIDES, *words])
        cpu, wall = meter.stop(), time.monotonic() - began
        stop_file.touch()
        processes.wait_for("the sites' times", lambda: all(r.exists() for r in results), 60.0)
        return _load(workload.sites, run_folder, results, cpu, wall)


def join_members(consortium: LocalConsortium, folder: Path, count: int) -> list[Path]:
    """Members with keys of their own, admitted all at once; returns their SuperNodes' keys."""
    from client.enrolment.joining import join
    from client.enrolment.site_files import SUPERNODE_KEY
    from protocol.consortium.invitation import Invitation

    invitation, now = Invitation.read(consortium.folder.invitation), int(time.time())
    folders = [folder / "members" / f"firm-{number:03d}" for number in range(1, count + 1)]
    for member in folders:
        join(member, invitation, member.name, None, now)
    consortium.admit(folders)
    return [member / SUPERNODE_KEY for member in folders]


class _CpuMeter:
    """Processor time of the gateway and of the run's ServerApp, which ends before the run's end is
    known here and is therefore sampled."""

    def __init__(self, gateway_pid: int, run_folder: Path) -> None:
        self._gateway_pid = gateway_pid
        self._progress = run_folder / "progress.jsonl"
        self._before = cpu_seconds(gateway_pid)
        self._server_app = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Seconds by process since this began."""
        self._stopped.set()
        self._thread.join()
        gateway = cpu_seconds(self._gateway_pid) - self._before
        return {"gateway": gateway, "server_app": self._server_app}

    def _watch(self) -> None:
        from server.runs.progress import read_events

        pid: int | None = None
        while not self._stopped.wait(_SAMPLE_SECONDS):
            if pid is None:
                started = [e for e in read_events(self._progress) if e.kind == "started"]
                pid = int(started[0].values["pid"]) if started else None
                continue
            try:
                self._server_app = cpu_seconds(pid)
            except FoedusError:
                return


def _load(
    sites: int, run_folder: Path, results: Sequence[Path], cpu: dict[str, float], wall: float
) -> Load:
    from server.runs.progress import read_events

    finished = [
        event.values
        for event in read_events(run_folder / "progress.jsonl")
        if event.kind == "round_finished"
    ]
    told = [json.loads(path.read_text(encoding="utf-8")) for path in results]
    return Load(
        sites,
        tuple(len(values["admitted"]) for values in finished),
        tuple(values["seconds"] for values in finished),
        finished[0]["bytes_up"] // max(1, len(finished[0]["admitted"])),
        tuple(second for each in told for second in each["seconds"]),
        tuple(error for each in told for error in each["errors"]),
        cpu,
        wall,
    )


def result_of(load: Load) -> BenchmarkResult:
    """The figure: admitted replies over those asked for, in all rounds."""
    asked = load.sites * len(load.admitted)
    figure = sum(load.admitted) / asked
    cuts = quantiles(load.request_seconds, n=20)
    what = (
        f"share of {load.sites} simulated sites' replies that are admitted over "
        f"{len(load.admitted)} rounds of an upload of {load.upload_bytes / 1e3:.0f} kB; a round "
        f"takes {median(load.round_seconds[1:-1]):.1f} s, a request {1e3 * cuts[9]:.0f} ms (95%: "
        f"{1e3 * cuts[18]:.0f} ms)"
    )
    rows = tuple(
        _round_row(number, seconds, admitted)
        for number, (seconds, admitted) in enumerate(
            zip(load.round_seconds, load.admitted, strict=True), start=1
        )
    )
    return BenchmarkResult.measured(NAME, what, figure, "share", GOAL, (*rows, _total_row(load)))


def _round_row(number: int, seconds: float, admitted: int) -> Row:
    return {"round": number, "seconds": seconds, "admitted": admitted}


def _total_row(load: Load) -> Row:
    """Of the whole run: requests_ms as median and 95%; cpu of the coordinator's processes."""
    cuts = quantiles(load.request_seconds, n=20)
    row: dict[str, Cell] = {
        "round": "all",
        "seconds": load.wall_seconds,
        "admitted": sum(load.admitted),
        "requests": len(load.request_seconds),
        "request_ms": 1e3 * cuts[9],
        "request_ms_95": 1e3 * cuts[18],
        "errors": "; ".join(f"{n} x {what}" for what, n in Counter(load.errors).items()) or "none",
    }
    row |= {f"{name}_cpu_seconds": value for name, value in load.cpu_seconds.items()}
    return row


if __name__ == "__main__":
    benchmark_command(run)
