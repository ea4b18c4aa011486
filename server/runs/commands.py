"""`foedus server run`, `status`, `stop` and `resume`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.consortium.options import AsJson, Consortium

if TYPE_CHECKING:
    from server.runs.folder import RunFolder
    from server.runs.follow import Display
    from server.runs.lifecycle import Runs
    from server.runs.report import Report, RunReport

# As a shell gives for a command that Ctrl-C ended.
_DETACHED = 130

Name = Annotated[str, typer.Argument(help="The run's name, as `foedus server status` lists it.")]
JsonLinesToo = Annotated[bool, typer.Option("--json", help="One JSON object a line and event.")]
Detach = Annotated[bool, typer.Option("--detach", help="Start it and do not wait for its end.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `foedus server`."""
    for command in (run, status, stop, resume):
        app.command()(command)


def run_named(consortium: Path, name: str) -> RunFolder:
    """The run of that name. Errors: FoedusError where there is none."""
    from server.runs.lifecycle import runs_of

    found = runs_of(consortium).run(name)
    found.read()
    return found


@contextmanager
def released_by_hand(consortium: Path, name: str) -> Iterator[RunFolder]:
    """A run whose adapter is released within: it has finished then, whatever it was before.

    Errors: FoedusError where there is no such run, Occupied while it is at work.
    """
    from server.runs.folder import RunStatus, occupy

    found = run_named(consortium, name)
    with occupy(found.path):
        yield found
        found.note(RunStatus.FINISHED)


def run(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides of conf/coordinate.yaml")
    ] = None,
    consortium: Consortium = Path("."),
    name: Annotated[str, typer.Option(help="Name of the run; empty = the next free one.")] = "",
    detach: Detach = False,
    as_json: JsonLinesToo = False,
) -> None:
    """Check the settings, start a run at the coordinator that is up, and show how it goes.

    Ctrl-C leaves the run alone and ends the watching. Exit status: 0 finished, 1 failed or
    stopped, 2 not started, 130 left alone.
    """
    from server.runs.lifecycle import runs_of

    runs = runs_of(consortium)
    started = runs.start(name, overrides or [])
    _tell_launched(started, as_json)
    if not detach:
        _watch(runs, started, as_json)


def resume(
    name: Name,
    consortium: Consortium = Path("."),
    detach: Detach = False,
    as_json: JsonLinesToo = False,
) -> None:
    """Go on with a run that was stopped or has failed, from its newest checkpoint."""
    from server.runs.lifecycle import runs_of

    runs = runs_of(consortium)
    resumed = runs.resume(name)
    _tell_launched(resumed, as_json)
    if not detach:
        _watch(runs, resumed, as_json)


def stop(name: Name, consortium: Consortium = Path("."), as_json: AsJson = False) -> None:
    """Stop a run and keep it stopped; `resume` goes on with it."""
    from server.runs.lifecycle import runs_of

    runs_of(consortium).stop(name)
    if as_json:
        print(json.dumps({"name": name, "status": "stopped"}))
        return
    Console().print(f"Run {name} is stopped. foedus server resume {name} goes on with it.")


def status(
    name: Annotated[str, typer.Argument(help="One run; empty = all.")] = "",
    consortium: Consortium = Path("."),
    follow: Annotated[bool, typer.Option("--follow", help="Watch NAME until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Where the runs stand, which sites answer, and what went wrong, in words."""
    from server.runs.lifecycle import runs_of
    from server.runs.report import report

    runs = runs_of(consortium)
    if follow:
        if not name:
            raise typer.BadParameter("--follow expects the name of one run.")
        _watch(runs, run_named(consortium, name), as_json)
        return
    told = report(runs, name)
    if as_json:
        print(json.dumps(told.to_json(), indent=2))
        return
    _show(Console(), told)


def _tell_launched(run: RunFolder, as_json: bool) -> None:
    if as_json:
        launched = {"event": "launched", "name": run.name, "folder": str(run.path)}
        print(json.dumps(launched), flush=True)
    else:
        Console().print(Text(f"Run {run.name} is started; its folder is {run.path}."))


def _watch(runs: Runs, run: RunFolder, as_json: bool) -> None:
    """Show the run until it ends and leave with its status."""
    from server.runs.folder import RunStatus
    from server.runs.follow import Bars, JsonLines, PlainLines, follow

    console = Console()
    display: Display = JsonLines()
    if not as_json:
        display = Bars(console) if console.is_terminal else PlainLines(console)
    try:
        ended = follow(runs, run, display)
    except KeyboardInterrupt:
        text = f"Left alone; the run goes on. foedus server status {run.name} --follow"
        Console(stderr=True).print(Text(text), soft_wrap=True)
        raise typer.Exit(_DETACHED) from None
    if ended.status is not RunStatus.FINISHED:
        raise typer.Exit(1)
    if not as_json:
        console.print(Text(f"Released {run.adapter}."), soft_wrap=True)


def _show(console: Console, told: Report) -> None:
    if not told.coordinator_answers:
        console.print(
            "The coordinator does not answer: this is what its files say. Start it by "
            "foedus server up."
        )
    runs = _table("run", "status", "round", "sites", "scores", "Flower", "what happened")
    for run in told.runs:
        # Text, because messages and names may hold what rich takes for its own markup.
        runs.add_row(*(Text(cell) for cell in _cells(run)))
    console.print(runs if told.runs else "No run yet: foedus server run starts one.")
    sites = _table("site", "node", "answers")
    for site in told.sites:
        sites.add_row(Text(site.name), site.node_id or "-", site.status)
    console.print(sites)


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for heading in headings:
        # Folded, not cut: half a message is none.
        table.add_column(heading, overflow="fold")
    return table


def _cells(run: RunReport) -> tuple[str, ...]:
    sites = f"{len(run.admitted)} of {len(run.asked)}" if run.asked else "-"
    aside = [*run.set_aside, *(f"{name}: silent" for name in run.silent)]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in (run.scores or {}).items())
    return (
        run.name,
        run.status,
        f"{run.rounds_done} of {run.rounds}" if run.rounds else "-",
        "\n".join([sites, *aside]),
        scores or "-",
        run.flower or "-",
        run.message or "-",
    )
