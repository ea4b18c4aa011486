"""`foedus client ledger`: what private training cost each data set and matter, what is left.

The ledger is imported inside the command: help has to come at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import FoedusError

if TYPE_CHECKING:
    from client.privacy.composition import Budget, DataSetAccount
    from client.privacy.ledger import Ledger
    from client.site import Site

_HEADINGS = ["data set", "unit", "examples", "rounds", "sigma", "epsilon spent", "left"]
_NUMBERS = ("examples", "rounds", "epsilon spent", "left")


def show_ledger(
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check chain, data sets and receipts.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout instead of a table.")
    ] = False,
) -> None:
    """Show the privacy spent and left, for each data set and the matters in it.

    Epsilon is that of the worst unit, over all rounds of all runs that touched its data. Rounds
    that were reserved and never confirmed count in full. With --verify, exit status 1 where the
    ledger was altered, cut, put back or deleted. In JSON, null is an epsilon without bound.
    """
    from client.privacy.composition import Budget
    from client.site import Site
    from client.terminal import print_json

    site = Site.from_file(config)
    policy = site.settings.policy
    budget = policy.budget or Budget(policy.budget_unit, math.inf, policy.budget_delta)
    if verify:
        _verify(site.ledger)
    data_sets = site.ledger.account(budget)
    if as_json:
        figures = {"budget": asdict(budget), "head": site.ledger.head()}
        print_json(_finite({**figures, "data_sets": [asdict(d) for d in data_sets]}))
    elif data_sets:
        _print(data_sets, budget, _matter_names(site))
    if not data_sets:
        typer.echo(f"Nothing was trained: no rounds in {site.ledger.path}.", err=True)


def _verify(ledger: Ledger) -> None:
    try:
        rows = ledger.verify()
    except FoedusError as error:
        typer.echo(f"foedus client ledger: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"The ledger of {rows} rounds is whole, and the receipts vouch for it.", err=True)


def _matter_names(site: Site) -> dict[str, str]:
    """Names by digest, from the contracts as they lie there now; the ledger itself holds none."""
    from client.privacy.units import matter_digest

    names = {contract.matter for contract in site.contracts() if contract.matter is not None}
    return {matter_digest(name).hex(): name for name in names}


def _print(data_sets: tuple[DataSetAccount, ...], budget: Budget, names: Mapping[str, str]) -> None:
    from client.terminal import print_table

    print_table(_HEADINGS, [_data_set_cells(d) for d in data_sets], numbers=_NUMBERS)
    for data_set in data_sets:
        lines = [
            [
                names.get(m.digest, m.digest[:12]) or "(none)",
                str(m.num_examples),
                str(m.rounds),
                _epsilon(m.epsilon_spent),
                _left(m.epsilon_left),
            ]
            for m in sorted(data_set.matters, key=lambda m: (-m.epsilon_spent, m.digest))
        ]
        if lines:
            headings = ["matter", "examples", "rounds", "epsilon spent", "left"]
            print_table(headings, lines, numbers=_NUMBERS, title=f"In {data_set.digest[:12]}")
    unconfirmed = sum(data_set.unconfirmed for data_set in data_sets)
    limit = "no budget is set" if math.isinf(budget.epsilon) else f"budget {budget.epsilon:g}"
    typer.echo(
        f"Epsilon of each {budget.unit} at delta {budget.delta:g}, over all rounds and runs that "
        f"touched its data; {limit}. Reserved rounds count whether or not they were confirmed: "
        f"{unconfirmed} never were."
    )


def _data_set_cells(data_set: DataSetAccount) -> list[str]:
    low, high = f"{data_set.sigma_min:.4g}", f"{data_set.sigma_max:.4g}"
    return [
        data_set.digest[:12],
        ", ".join(data_set.units),
        str(data_set.num_examples),
        str(data_set.rounds),
        low if low == high else f"{low} to {high}",
        _epsilon(data_set.epsilon_spent),
        _left(data_set.epsilon_left),
    ]


def _epsilon(value: float) -> str:
    return "no bound" if math.isinf(value) else f"{value:.3f}"


def _left(value: float) -> str:
    return "no limit" if math.isinf(value) else f"{value:.3f}"


def _finite(value: Any) -> Any:
    """The same with null for infinity, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value
