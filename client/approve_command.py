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
        str, typer.Option(help="The form whose settings' digest begins so; asks no question.")
    ] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask no question; of several forms --digest says which.")
    ] = False,
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout instead of a table.")
    ] = False,
) -> None:
    """Decide on a run that waits for this site's consent; without RUN, list all of them.

    An approval holds for the run's settings as they are shown and for 2 x rounds + 10 requests of
    each kind. If the coordinator changes the settings under the same id, or asks more often, you
    are asked again. --deny is for every form of the run. Both can be taken back: the next request
    goes by it.
    """
    from client.consent import ConsentBook
    from client.site import Site

    site = Site.from_file(config)
    book = ConsentBook(site.state_folder)
    runs = book.all()
    if run:
        run_id = _found(run, list(runs))
        forms = book.forms(run_id)
        asked = _form(run_id, forms, digest)
        if yes and not (deny or digest) and len(forms) > 1:
            raise FoedusError(
                f"Expected --digest beside --yes: run {run_id[:8]} has asked in {len(forms)} "
                f"forms, {_beginnings([form.digest for form in forms])}. --yes alone might approve "
                "one that you have not seen."
            )
        if not (digest or yes):
            _show(run_id, asked, _elsewhere(book, run_id, asked))
            typer.confirm("Deny it?" if deny else "May it use this site's contracts?", abort=True)
        runs = {run_id: _decide(book, run_id, asked, deny)}
    elsewhere = {run_id: _elsewhere(book, run_id, asked) for run_id, asked in runs.items()}
    if as_json:
        from client.terminal import print_json

        print_json({"runs": [_values(id_, asked, elsewhere[id_]) for id_, asked in runs.items()]})
    elif run:
        typer.echo(f"Run {run_id}: {runs[run_id].decision}.")
    elif runs:
        _list(runs, elsewhere)
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


def _form(run_id: str, forms: list[Asked], beginning: str) -> Asked:
    """The newest form, or the one whose digest begins as said."""
    fitting = [form for form in forms if form.digest.startswith(beginning)]
    if not fitting or (beginning and len(fitting) > 1):
        known = _beginnings([form.digest for form in forms])
        raise FoedusError(
            f"Expected the beginning of the digest of one form of run {run_id[:8]}, got "
            f"{beginning}, which {len(fitting)} have. Known: {known}. Look at it again before you "
            "decide."
        )
    return fitting[-1]


def _elsewhere(book: ConsentBook, run_id: str, asked: Asked) -> list[str]:
    """Digests of the run's other forms that are approved."""
    from client.consent import Decision

    others = (form for form in book.forms(run_id) if form.digest != asked.digest)
    return [form.digest for form in others if form.decision is Decision.APPROVED]


def _decide(book: ConsentBook, run_id: str, asked: Asked, deny: bool) -> Asked:
    from client.consent import Decision

    return book.decide(run_id, asked.digest, Decision.DENIED if deny else Decision.APPROVED)


def _values(run_id: str, asked: Asked, elsewhere: list[str]) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "decision": asked.decision.value,
        "asked": asked.asked,
        "decided": asked.decided,
        "settings_digest": asked.digest,
        "approved_elsewhere": elsewhere,
        "summary": asked.told(),
    }


def _show(run_id: str, asked: Asked, elsewhere: list[str]) -> None:
    from client.terminal import print_table

    lines = [[name, _words(value)] for name, value in asked.told().items()]
    if elsewhere:
        lines.append(["approved in another form", _beginnings(elsewhere)])
    print_table(["what it does", ""], lines, title=f"{asked.decision.value}: run {run_id}")


def _list(runs: dict[str, Asked], elsewhere: dict[str, list[str]]) -> None:
    from client.terminal import print_table

    lines = [
        [
            run_id[:8],
            _decision(asked, elsewhere[run_id]),
            asked.asked[:16],
            asked.digest[:12],
            _shortly(asked),
        ]
        for run_id, asked in runs.items()
    ]
    print_table(["run", "decision", "asked (UTC)", "settings", "what it does"], lines)


def _decision(asked: Asked, elsewhere: list[str]) -> str:
    also = f"; other form approved: {_beginnings(elsewhere)}" if elsewhere else ""
    return f"{asked.decision.value}{also}"


def _beginnings(digests: list[str]) -> str:
    return ", ".join(digest[:12] for digest in digests)


def _shortly(asked: Asked) -> str:
    told = asked.told()
    what = f"{told['task']} by {told['method']}, {told['rounds']} rounds, privacy {told['privacy']}"
    return f"{what}; answered: {told['answered so far']}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _nothing(consent: str) -> str:
    if consent == "auto":
        return "No run has asked: policy.consent is auto in site.yaml, so none needs to."
    return "No run has asked for this site's consent yet."
