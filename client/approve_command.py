"""`foedus client approve`: let a run use this site's contracts, or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import FoedusError

if TYPE_CHECKING:
    from client.consent import Asked, ConsentBook


def approve(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="The run's id or its beginning; none = list.")
    ] = "",
    deny: Annotated[bool, typer.Option("--deny", help="Say no instead.")] = False,
    digest: Annotated[
        str, typer.Option(help="Decide only if the settings' digest begins so; asks no question.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Ask no question.")] = False,
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout instead of a table.")
    ] = False,
) -> None:
    """Decide on a run that waits for this site's consent; without RUN, list all of them.

    A decision holds for the run's settings as they are shown. If the coordinator changes them
    under the same id, it is asked for again. It can be taken back: the next request goes by it.
    """
    from client.consent import ConsentBook
    from client.site import Site

    site = Site.from_file(config)
    book = ConsentBook(site.state_folder)
    runs = book.all()
    if run:
        run_id = _found(run, list(runs))
        asked = runs[run_id]
        if not asked.digest.startswith(digest):
            raise FoedusError(
                f"Expected settings of digest {digest}…, run {run_id[:8]} now has "
                f"{asked.digest[:12]}…. Look at it again before you decide."
            )
        if not (digest or yes):
            _show(run_id, asked)
            typer.confirm("Deny it?" if deny else "May it use this site's contracts?", abort=True)
        runs = {run_id: _decide(book, run_id, asked, deny)}
    if as_json:
        from client.terminal import print_json

        print_json({"runs": [_values(run_id, asked) for run_id, asked in runs.items()]})
    elif run:
        typer.echo(f"Run {run_id}: {runs[run_id].decision}.")
    elif runs:
        _list(runs)
    else:
        typer.echo(_nothing(site.settings.policy.consent), err=True)


def _found(beginning: str, run_ids: list[str]) -> str:
    fitting = [run_id for run_id in run_ids if run_id.startswith(beginning)]
    if len(fitting) != 1:
        known = ", ".join(run_id[:8] for run_id in run_ids) or "none"
        raise FoedusError(
            f"Expected the id of one run that has asked for consent, got {beginning!r}, which "
            f"{len(fitting)} have. Known: {known}."
        )
    return fitting[0]


def _decide(book: ConsentBook, run_id: str, asked: Asked, deny: bool) -> Asked:
    from client.consent import Decision

    return book.decide(run_id, asked.digest, Decision.DENIED if deny else Decision.APPROVED)


def _values(run_id: str, asked: Asked) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "decision": asked.decision.value,
        "asked": asked.asked,
        "decided": asked.decided,
        "settings_digest": asked.digest,
        "summary": asked.summary,
    }


def _show(run_id: str, asked: Asked) -> None:
    from client.terminal import print_table

    lines = [[name, _words(value)] for name, value in asked.summary.items()]
    print_table(["what it does", ""], lines, title=f"{asked.decision.value}: run {run_id}")


def _list(runs: dict[str, Asked]) -> None:
    from client.terminal import print_table

    lines = [
        [run_id[:8], asked.decision.value, asked.asked[:16], asked.digest[:12], _shortly(asked)]
        for run_id, asked in runs.items()
    ]
    print_table(["run", "decision", "asked (UTC)", "settings", "what it does"], lines)


def _shortly(asked: Asked) -> str:
    told = asked.summary
    return f"{told['task']} by {told['method']}, {told['rounds']} rounds, privacy {told['privacy']}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _nothing(consent: str) -> str:
    if consent == "auto":
        return "No run has asked: policy.consent is auto in site.yaml, so none needs to."
    return "No run has asked for this site's consent yet."
