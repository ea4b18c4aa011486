"""`foedus client audit`: what training on this site's matters would give away.

Imported with the command line, so torch and the audit itself wait until the command runs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import FoedusError

if TYPE_CHECKING:
    from client.audit.report import AuditResult
    from client.predict import ReleasedAdapter
    from client.site import Site
    from protocol.settings import RunSettings


def audit(
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    adapter: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Audit the run that released this folder, and it."
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Run settings as YAML or JSON, instead."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=20, help="Canaries to make; half are planted.")
    ] = 200,
    repeats: Annotated[
        int,
        typer.Option(min=0, help="Examples of one canary; 0 = what the privacy unit calls for."),
    ] = 0,
    control: Annotated[
        bool, typer.Option(help="Train once more without privacy, which must be caught.")
    ] = True,
    base: Annotated[str, typer.Option(help="Where the base model lies on this machine.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="The report for a release gate, on stdout.")
    ] = False,
) -> None:
    """Plant random canaries among this site's matters, train, and try to tell which were planted.

    Nothing is sent, and what was trained is thrown away. With --adapter also a membership attack on
    that adapter: what it was trained on against what was held out. The figures come from real
    matters and are not covered by the privacy budget: decide who reads them.
    Exit status 1 where a private run leaks more than it promises, or the control is not caught.
    """
    from client.site import Site
    from client.terminal import print_json

    released, run = _subject(adapter, settings, base)
    result = _audit(Site.from_file(config), run, released, canaries, repeats or None, control)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)
    failures = _broken_promises(result, control)
    for failure in failures:
        typer.echo(f"foedus client audit: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


def _subject(
    adapter: Path | None, settings: Path | None, base: str
) -> tuple[ReleasedAdapter | None, RunSettings]:
    """The adapter under attack, where there is one, and the settings of the run to audit."""
    if (adapter is None) == (settings is None):
        raise FoedusError("Expected --adapter or --settings, got none or both. Name one of them.")
    if adapter is not None:
        from client.predict import load_adapter

        released = load_adapter(adapter, base)
        return released, released.run
    assert settings is not None
    from client.run_settings import read_run_settings

    run = read_run_settings(settings)
    return None, replace(run, model=replace(run.model, id=base, revision="")) if base else run


def _audit(
    site: Site,
    run: RunSettings,
    released: ReleasedAdapter | None,
    count: int,
    repeats: int | None,
    control: bool,
) -> AuditResult:
    from client.audit.canaries import make_canaries, vocabulary_words
    from client.audit.run import audit_site, canary_tokens, membership
    from client.terminal import progress_bar
    from models.adapted import adapted_model

    examples = site.examples(run.task.kind).train
    if not examples:
        raise FoedusError("Expected examples to train on beside the canaries, got none.")
    words = vocabulary_words(adapted_model(run).base.tokenizer)
    canaries = make_canaries(count, run.task.kind, run.task.labels, words, canary_tokens(run))
    with progress_bar("Training and attacking") as progress:
        result = audit_site(
            examples, run, canaries, repeats=repeats, control=control, on_progress=progress
        )
    if released is None:
        return result
    with progress_bar("Attacking the released adapter"):
        members, nonmembers = site.tokenised(run, "train"), site.tokenised(run, "held_out")
        found = membership(run, released.state, members, nonmembers)
    return replace(result, membership=found, adapter_digest=released.state.digest())


def _print(result: AuditResult) -> None:
    from rich.console import Console

    Console().print(result.table())
    if not result.audited.private:
        typer.echo("Without privacy no epsilon is promised; this run is its own control.", err=True)


def _broken_promises(result: AuditResult, control: bool) -> list[str]:
    """What stands against a private run, by the policy a release is held to by default."""
    from protocol.audit_policy import AuditPolicy

    if not result.audited.private:
        return []
    return result.passes(AuditPolicy(min_canaries=20, require_control_caught=control))
