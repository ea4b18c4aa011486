"""`foedus client`: what a firm does at its own desk. No contract leaves by any command, and updates
leave by `up` alone.

torch and transformers are imported inside the commands: help has to come at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from client.approve_command import approve
from client.audit_command import audit
from client.check_command import check
from client.enrolment import commands as enrolment_commands
from client.ledger_command import show_ledger
from client.log_command import show_log
from client.runner.up_command import up
from protocol.errors import FoedusError

if TYPE_CHECKING:
    from client.answers import Answer
    from client.contracts import Unreadable
    from client.inventory import Inventory
    from client.predict import Document, LabelledClause, ReleasedAdapter
    from client.site import Site


class _Commands(TyperGroup):
    """Prints what foedus refuses as one message, exit status 2, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        # A run's settings and a released folder name a base model. What is not here is not fetched
        # at their word; read when huggingface_hub is imported, so set before any command is.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            return super().invoke(ctx)
        except FoedusError as error:
            typer.echo(f"{ctx.command_path}: {error}", err=True)
            raise typer.Exit(2) from None


# A traceback that shows local variables would show contracts.
app = typer.Typer(
    cls=_Commands,
    help="What a firm does at its own desk: use an adapter, see what left, see what is learned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Json = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]
_Config = Annotated[Path, typer.Option("--config", help="The site's configuration file.")]


@app.command("predict")
def _predict(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Contracts, any format.")],
    adapter: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder that a run released.")
    ],
    ask: Annotated[str, typer.Option(help="Causal adapter: a question about each file.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Labels to show for each clause.")] = 2,
    min_probability: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out clauses labelled with less.")
    ] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    base: Annotated[str, typer.Option(help="Where the base model lies on this machine.")] = "",
    as_json: _Json = False,
) -> None:
    """Label the clauses of contracts; with a causal adapter, answer or continue them.

    Exit status 1 where a file, or a part of it, was not read; it is named on stderr.
    """
    from client.predict import load_adapter, read_documents
    from client.terminal import printable_line, progress_bar

    with progress_bar("Checking the base model"):
        loaded = load_adapter(adapter, base)
    causal = loaded.run.task.kind == "instruct"
    if ask and not causal:
        raise FoedusError(
            f"--ask expects an adapter that writes text, got one that labels clauses in {adapter}. "
            "Leave --ask out, or name another adapter."
        )
    _warn_of_personal_factors(loaded)
    with progress_bar("Reading") as progress:
        documents, unread = read_documents(files, progress)
    if causal:
        unread += _answer(loaded, documents, unread, ask, max_new_tokens, as_json)
    else:
        _label(loaded, documents, unread, top, min_probability, as_json)
    for broken in unread:
        typer.echo(printable_line(f"not read: {broken.source}: {broken.reason}"), err=True)
    if unread:
        raise typer.Exit(1)


def _warn_of_personal_factors(loaded: ReleasedAdapter) -> None:
    from protocol.methods import personal_factors

    method = loaded.run.federation.method
    if kept := personal_factors(method):
        typer.echo(
            f"Factor {', '.join(sorted(kept))} of a {method} adapter stays at the sites, so this "
            "folder holds only what they share: expect less of it than the sites measured.",
            err=True,
        )


def _label(
    loaded: ReleasedAdapter,
    documents: Sequence[Document],
    unread: Sequence[Unreadable],
    top: int,
    min_probability: float,
    as_json: bool,
) -> None:
    from client.predict import label_clauses
    from client.terminal import print_json, print_table, progress_bar

    with progress_bar("Labelling clauses") as progress:
        clauses = label_clauses(loaded, documents, progress)
    shown = [clause for clause in clauses if clause.probability >= min_probability]
    hidden = len(clauses) - len(shown)
    if as_json:
        rows = [_clause_row(clause, top) for clause in shown]
        print_json({"clauses": rows, "hidden": hidden, "not_read": [asdict(u) for u in unread]})
        return
    for file, of_file in itertools.groupby(shown, lambda clause: clause.file):
        lines = [_clause_cells(clause, top) for clause in of_file]
        headings = ["label", "second label", *(f"label {n}" for n in range(3, top + 1))]
        print_table(["at", "clause", *headings][: len(lines[0])], lines, title=file)
    if hidden:
        noun = "clause" if hidden == 1 else "clauses"
        typer.echo(
            f"{hidden} {noun} labelled with less than {min_probability:g} left out", err=True
        )


def _clause_row(clause: LabelledClause, top: int) -> dict[str, Any]:
    ranked = [{"label": label, "probability": p} for label, p in clause.ranked[:top]]
    row = {name: getattr(clause, name) for name in ("file", "source", "start", "end")}
    named = {"label": clause.label, "probability": clause.probability}
    second = {"second_label": clause.second_label}
    return {**row, **named, **second, "labels": ranked, "text": clause.text}


def _clause_cells(clause: LabelledClause, top: int) -> list[str]:
    """Where the clause is within its file, how it begins, and its labels."""
    from client.predict import RECORD_SUFFIXES
    from client.terminal import opening

    place = f"{clause.start}-{clause.end}"
    if clause.file.lower().endswith(RECORD_SUFFIXES):
        place = clause.source.removeprefix(f"{clause.file}:")
    ranked = [f"{probability:.2f} {label}" for label, probability in clause.ranked[:top]]
    return [place, opening(clause.text), *ranked]


def _answer(
    loaded: ReleasedAdapter,
    documents: Sequence[Document],
    unread: Sequence[Unreadable],
    ask: str,
    max_new_tokens: int,
    as_json: bool,
) -> list[Unreadable]:
    """Print the answers; returns the documents that none could be given on."""
    from client.answers import write_answers
    from client.terminal import print_json, progress_bar

    with progress_bar("Writing") as progress:
        answers, refused = write_answers(loaded, documents, ask, max_new_tokens, progress)
    if as_json:
        not_read = [asdict(u) for u in (*unread, *refused)]
        print_json({"answers": [asdict(a) for a in answers], "not_read": not_read})
    else:
        _print_answers(answers)
    for answer in answers:
        if answer.end - answer.start < answer.num_characters:
            typer.echo(
                f"{answer.source}: the model's context holds characters {answer.start} to "
                f"{answer.end} of {answer.num_characters}; it saw nothing of the rest",
                err=True,
            )
    return refused


def _print_answers(answers: Sequence[Answer]) -> None:
    from client.terminal import printable_line

    for answer in answers:
        lines = [f"{answer.source}:", *answer.text.split("\n"), ""]
        typer.echo("\n".join(printable_line(line) for line in lines))


@app.command("data")
def _data(config: _Config = Path("site.yaml"), as_json: _Json = False) -> None:
    """Show what this site would learn from, as counts; the text of no contract is printed."""
    from client.inventory import take_inventory
    from client.terminal import print_json, progress_bar

    site = _site(config)
    with progress_bar("Reading"):
        inventory = take_inventory(site)
    if as_json:
        print_json(asdict(inventory))
    else:
        _print_inventory(inventory)


def _print_inventory(inventory: Inventory) -> None:
    from client.terminal import print_table, printable_line

    for kind, task in inventory.tasks.items():
        typer.echo(f"{kind}: {task.train} examples to train on, {task.held_out} held out")
        for what, counts in (("label", task.labels), ("matter", task.matters)):
            if counts:
                lines = [[c.name or "(none)", str(c.train), str(c.held_out)] for c in counts]
                print_table([what, "train", "held out"], lines, numbers=("train", "held out"))
        for reason, number in task.unused.items():
            typer.echo(f"gave no example for {kind}, {reason}: {number}")
    for reason, number in inventory.excluded.items():
        typer.echo(f"left out, {reason}: {number}")
    for broken in inventory.unreadable:
        typer.echo(printable_line(f"not read: {broken.source}: {broken.reason}"))


app.command("approve")(approve)
app.command("check")(check)
app.command("log")(show_log)
app.command("ledger")(show_ledger)
app.command("audit")(audit)
app.command("up")(up)
enrolment_commands.register(app)


def _site(config: Path) -> Site:
    from client.site import Site

    return Site.from_file(config)
