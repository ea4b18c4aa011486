"""`foedus server`: what the coordinator's operator asks outside a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from protocol.errors import FoedusError
from server.consortium import commands as consortium_commands
from server.consortium.options import AsJson
from server.gateway import command as gateway_command
from server.receipts import commands as receipt_commands
from server.records import scores
from server.runs import commands as run_commands

app = typer.Typer(no_args_is_help=True, help="The coordinator's side of a federation.")

T = TypeVar("T")
ItsConsortium = Annotated[
    Path | None,
    typer.Option("--consortium", help="A consortium's folder: then give the name of its run."),
]

consortium_commands.register(app)
run_commands.register(app)
gateway_command.register(app)
receipt_commands.register(app)


@app.command()
def check(
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides")] = None,
    as_json: AsJson = False,
) -> None:
    """Compose conf/coordinate.yaml, check every setting and combination, show the result."""
    from protocol.codec import encode, flatten
    from protocol.compatibility import check_compatibility
    from server.app import compose_settings

    settings = _or_exit(lambda: compose_settings(overrides or []))
    _or_exit(lambda: check_compatibility(settings, "the run's settings"))
    flat = flatten(encode(settings))
    if as_json:
        print(json.dumps(flat, indent=2))
        return
    table = Table("setting", "value", title="Settings every site must agree to")
    for key, value in flat.items():
        table.add_row(key, str(value))
    Console().print(table)


@app.command()
def history(
    output_dir: Annotated[Path, typer.Argument(help="The run's output folder")],
    consortium: ItsConsortium = None,
    as_json: AsJson = False,
) -> None:
    """Show the rounds of a finished run: who took part, who was set aside and why."""
    if consortium:
        output_dir = run_commands.run_named(consortium, str(output_dir)).path
    path = output_dir / "history.json"
    if not path.is_file():
        _fail(f"Expected {path}, got no file. Give the output folder of a finished run.")
    record = json.loads(path.read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(record, indent=2))
        return
    table = Table("round", "sites", "set aside", "silent", "seconds", "scores")
    for entry in record["rounds"]:
        aside = ", ".join(f"{r['site']}: {r['reason']}" for r in entry["rejected"]) or "-"
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores(entry["metrics"]).items())
        sites = f"{len(entry['admitted'])} of {len(entry['cohort'])}"
        silent = ", ".join(entry["silent"]) or "-"
        seconds = f"{entry['seconds']:.1f}"
        table.add_row(str(entry["round"]), sites, aside, silent, seconds, told)
    Console().print(table)


@app.command()
def release(
    output_dir: Annotated[Path, typer.Argument(help="The output folder of a finished run")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="The Hydra overrides the run was started with")
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="Leakage audit of the run: `foedus client audit --json`."),
    ] = None,
    consortium: ItsConsortium = None,
    as_json: AsJson = False,
) -> None:
    """Release the last checkpoint of a run whose release was refused, once its audit passes."""
    from server.app import ADAPTER, release_finished

    report = str(audit) if audit else ""
    if consortium:
        if overrides:
            _fail("Expected no overrides with --consortium, which knows those of its runs.")
        with run_commands.released_by_hand(consortium, str(output_dir)) as run:
            output_dir, overrides = run.path, list(run.read().overrides)
            manifest = _or_exit(lambda: release_finished(run.path, overrides or [], report))
    else:
        manifest = _or_exit(lambda: release_finished(output_dir, overrides or [], report))
    if as_json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
        return
    Console().print(f"Released {output_dir / ADAPTER}, adapter {manifest['adapter_digest']}.")


@app.command()
def verify(
    adapter: Annotated[Path, typer.Argument(help="A released adapter folder")],
    as_json: AsJson = False,
) -> None:
    """Check a released folder against its manifest, file by file."""
    from server.release import verify_release

    manifest = _or_exit(lambda: verify_release(adapter))
    if as_json:
        print(json.dumps(manifest, indent=2, sort_keys=True))
        return
    Console().print(
        f"{adapter} is what run {manifest['run_id']} released: {len(manifest['files'])} files, "
        f"{manifest['rounds']} rounds of {manifest['method']}."
    )


def _or_exit(work: Callable[[], T]) -> T:
    """Run `work`; a FoedusError becomes its message and exit status 2."""
    try:
        return work()
    except FoedusError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"foedus server: {message}", file=sys.stderr)
    raise typer.Exit(2)
