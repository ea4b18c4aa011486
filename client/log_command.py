"""`foedus client log`: what left this site, and what the coordinator says of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import FoedusError

if TYPE_CHECKING:
    from client.countersigned import Standing
    from client.receipts import Receipt
    from client.site import Site

_SHOWN = 10


def show_log(
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the hash chain and all signatures.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Ask the coordinator for its signatures first.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout instead of a table.")
    ] = False,
) -> None:
    """Show the receipts of everything that left this site.

    With --verify, exit status 1 where a receipt was altered, removed or inserted, where a signature
    does not hold, or where the coordinator has signed a receipt that this log lacks. With --fetch
    the coordinator is asked anew, which also finds lines that were cut off the end.
    """
    from client.receipts import as_they_stand
    from client.site import Site

    site = Site.from_file(config)
    if fetch:
        _fetch(site)
    receipts, problems = as_they_stand(site.receipts.path)
    standing = None
    if verify or fetch:
        receipts, problems = _verified(site)
        standing = None if problems else _standing(site)
        problems += standing.problems if standing else ()
    _show(receipts, problems, standing, as_json)
    for problem in problems:
        typer.echo(f"foedus client log: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    if not receipts:
        typer.echo(f"Nothing has left this site: no receipts in {site.receipts.path}.", err=True)
    elif verify:
        typer.echo(f"The chain of {len(receipts)} receipts is whole.", err=True)


def _show(
    receipts: list[Receipt], problems: list[str], standing: Standing | None, as_json: bool
) -> None:
    from client.terminal import print_json

    if as_json:
        signed = _standing_values(standing) if standing else None
        rows = [asdict(receipt) for receipt in receipts]
        print_json({"receipts": rows, "problems": problems, "countersigned": signed})
    elif receipts:
        _print_receipts(receipts)
    if standing:
        _tell(standing)


def _fetch(site: Site) -> None:
    from client.countersigned import ReceiptExchange
    from client.terminal import progress_bar

    with progress_bar("Asking the coordinator"):
        exchange = ReceiptExchange(site)
        exchange.submit(everything=True)
        exchange.fetch()


def _verified(site: Site) -> tuple[list[Receipt], list[str]]:
    """The receipts up to the first wrong one, and what is wrong with that."""
    receipts: list[Receipt] = []
    try:
        for receipt in site.receipts.verify():
            receipts.append(receipt)
    except FoedusError as error:
        return receipts, [str(error)]
    return receipts, []


def _standing(site: Site) -> Standing | None:
    """None where the site has no consortium whose coordinator would countersign."""
    from client.countersigned import KeptCountersignatures

    return KeptCountersignatures(site).standing() if site.invitation_file else None


def _standing_values(standing: Standing) -> dict[str, object]:
    missing = [receipt.sequence for receipt in standing.not_countersigned]
    return {"left": standing.left, "not_countersigned": missing}


def _print_receipts(receipts: list[Receipt]) -> None:
    from client.terminal import print_table

    names = ("sequence", "time", "kind", "round", "status", "num_bytes")
    # JSON has the whole digest and the run; here the beginning tells lines apart.
    lines = [[*(str(getattr(r, n))[:19] for n in names), r.digest[:12]] for r in receipts]
    headings = ["", "time (UTC)", "kind", "round", "status", "bytes", "digest"]
    print_table(headings, lines, numbers=("", "round", "bytes"))


def _tell(standing: Standing) -> None:
    missing = [str(receipt.sequence) for receipt in standing.not_countersigned]
    signed = standing.left - len(missing)
    text = f"Countersigned by the coordinator: {signed} of {standing.left} replies that left."
    if missing:
        more = ", …" if len(missing) > _SHOWN else ""
        text += (
            f" Not received, or not asked yet (--fetch): {', '.join(missing[:_SHOWN])}{more}. A "
            "reply that was cut off or came after the deadline is never countersigned."
        )
    typer.echo(text, err=True)
