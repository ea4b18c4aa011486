"""`foedus client check`: the doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.doctor.dry_run import DryRun
    from client.doctor.findings import Check, Finding
    from client.site import Site


def check(
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run/--no-dry-run", help="Train one step, show what would leave."),
    ] = True,
    settings: Annotated[
        Path | None,
        typer.Option(help="A run's settings for the dry run: `foedus server check --json`."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout instead of a table.")
    ] = False,
) -> None:
    """Look at everything this site needs to take part, and say what to do where it lacks.

    Sends nothing but a question for the coordinator's health, and writes nothing; the dry run
    trains on this site's own contracts and throws the result away. Works without a network too.
    Exit status 1 where anything failed.
    """
    from client.doctor.findings import Check, State
    from client.site import Site
    from client.terminal import print_json, progress_bar

    site = Site.from_file(config)
    found: list[Finding] = []
    checks = _checks(site)
    with progress_bar("Looking") as progress:
        for done, one in enumerate(checks):
            progress(done, len(checks))
            found += one.findings()
    leaving: list[DryRun] = []
    if dry_run:
        with progress_bar("Training one step"):
            found += Check("dry run", lambda: _tried(site, settings, leaving)).findings()
    if as_json:
        print_json({"findings": [asdict(f) for f in found], "dry_run": _values(leaving)})
    else:
        _show(found)
        for one_run in leaving:
            _show_leaving(one_run)
    if any(finding.state is State.FAIL for finding in found):
        raise typer.Exit(1)


def _checks(site: Site) -> list[Check]:
    from client.doctor.holdings import holdings_checks
    from client.doctor.machine import machine_checks
    from client.doctor.membership import membership_checks
    from client.doctor.network import network_checks

    groups = (membership_checks, network_checks, machine_checks, holdings_checks)
    return [one for group in groups for one in group(site)]


def _tried(site: Site, settings: Path | None, leaving: list[DryRun]) -> list[Finding]:
    from client.doctor.dry_run import dry_run
    from client.doctor.findings import ok, warn
    from client.run_settings import read_run_settings

    result = dry_run(site, read_run_settings(settings) if settings else None)
    leaving.append(result)
    text = f"one step trained; {len(result.tensors)} tensors, {result.num_bytes} bytes would leave"
    if result.declined:
        advice = f"This site's policy declines such a run: {result.declined}"
        return [warn("dry run", text, advice)]
    return [ok("dry run", text)]


def _values(leaving: list[DryRun]) -> dict[str, Any] | None:
    from protocol.codec import encode, flatten

    for one in leaving:
        return {
            "settings": flatten(encode(one.run)),
            "base_digest": one.base_digest,
            "tensors": [asdict(tensor) for tensor in one.tensors],
            "numbers": dict(one.numbers),
            "words": dict(one.words),
            "norm": one.norm,
            "num_bytes": one.num_bytes,
            "declined": one.declined,
        }
    return None


def _show(found: list[Finding]) -> None:
    from client.terminal import print_table

    lines = [[f.state.value, f.what, f.text, f.advice] for f in found]
    print_table(["", "what", "how it is", "what to do"], lines)


def _show_leaving(result: DryRun) -> None:
    from client.terminal import print_table

    lines = [
        [t.name, " x ".join(map(str, t.shape)), t.dtype, f"{t.norm:.6g}", str(t.num_bytes)]
        for t in result.tensors
    ]
    headings = ["tensor", "shape", "dtype", "norm", "bytes"]
    title = f"What would leave after one step of {result.run.federation.method}"
    print_table(headings, lines, numbers=("norm", "bytes"), title=title)
    told = {**result.words, **{name: f"{value:g}" for name, value in result.numbers.items()}}
    print_table(["in the clear", ""], [[name, value] for name, value in told.items()])
    typer.echo(f"Base model {result.run.model.id}, digest {result.base_digest}.")
    typer.echo(
        f"Update of norm {result.norm:.6g} in {result.num_bytes} bytes. Under secure aggregation "
        "the tensors leave masked, and beside them only the training time and signatures. Nothing "
        "was sent, and nothing was written."
    )
