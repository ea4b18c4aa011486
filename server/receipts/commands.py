"""`foedus server received`: what came from the sites in a run, and who has vouched for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.consortium.options import AsJson, Consortium

if TYPE_CHECKING:
    from server.receipts.review import Review, ReviewedReply


def register(app: typer.Typer) -> None:
    """Add the command to `foedus server`."""
    app.command()(received)


def received(
    name: Annotated[
        str, typer.Argument(help="The run's name, as `foedus server status` lists it.")
    ],
    consortium: Consortium = Path("."),
    verify: Annotated[
        bool, typer.Option("--verify", help="Exit status 1 where chain or signatures are wrong.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Every reply of a run's sites, admitted or not, and whether its site has signed for it.

    A reply without the site's signature was never handed in as a receipt: its site has sent
    nothing since, or does not know of it.
    """
    reviewed = _reviewed(consortium, name)
    if as_json:
        rows = [_values(row) for row in reviewed.replies]
        print(json.dumps({"replies": rows, "problems": reviewed.problems}, indent=2))
    else:
        _show(reviewed)
    for problem in reviewed.problems:
        typer.echo(f"foedus server received: {problem}", err=True)
    if verify and reviewed.problems:
        raise typer.Exit(1)
    signed = sum(row.signed for row in reviewed.replies)
    typer.echo(f"{len(reviewed.replies)} replies, {signed} of them signed by both sides.", err=True)


def _reviewed(consortium: Path, name: str) -> Review:
    from protocol.consortium.parties import Parties
    from server.consortium.folder import ConsortiumFolder
    from server.receipts.received import FILE
    from server.receipts.review import Reviewer
    from server.runs.commands import run_named
    from server.runs.node_names import read_node_ids

    folder = ConsortiumFolder(consortium)
    versions = folder.chain()
    names = {entry.member_id: entry.name for one in versions for entry in one.members}
    member_of = {node: member for member, node in read_node_ids(folder.nodes).items()}
    reviewer = Reviewer(Parties.of(versions), member_of, names, folder.receipts)
    return reviewer.review(run_named(consortium, name).path / FILE)


def _values(row: ReviewedReply) -> dict[str, Any]:
    """Node numbers as text: they have 64 bits, which not every reader of JSON keeps."""
    values = {**asdict(row.reply), "node_id": str(row.reply.node_id)}
    return {**values, "site": row.site, "signed": row.signed}


def _show(reviewed: Review) -> None:
    """Without digests and sizes, which JSON has."""
    table = Table("", "time (UTC)", "site", "kind", "round", "verdict", "signed")
    for row in reviewed.replies:
        reply = row.reply
        verdict = reply.reason or "admitted"
        if reply.reason and reply.status not in ("", "ok"):
            verdict = f"declined: {reply.status}"
        cells = (
            str(reply.sequence),
            reply.time[5:19].replace("T", " "),
            row.site,
            reply.kind,
            str(reply.round),
            verdict,
            "yes" if row.signed else "no",
        )
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    Console().print(table)
