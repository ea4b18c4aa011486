"""What a site would learn from, as counts; no text of a contract is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.contracts import ReadResult, Unreadable, read_contracts
from client.examples.build import build_examples
from client.site import Site
from models.examples import Example


@dataclass(frozen=True, slots=True)
class Count:
    """Examples with one label, or of one matter; name: None where none is known."""

    name: str | None
    train: int
    held_out: int


@dataclass(frozen=True)
class TaskInventory:
    """Examples for one task. `unused`: contracts that gave none, by reason."""

    train: int
    held_out: int
    labels: tuple[Count, ...]
    matters: tuple[Count, ...]
    unused: dict[str, int]


@dataclass(frozen=True)
class Inventory:
    """What a site's folders hold. `excluded`: contracts left out on purpose, by reason."""

    site: str
    tasks: dict[str, TaskInventory]
    excluded: dict[str, int]
    unreadable: tuple[Unreadable, ...]


def take_inventory(site: Site, on_file: Callable[[Path], None] | None = None) -> Inventory:
    """Count what `site.examples` gives for each task, reading the folders once."""
    folders = [site.contracts_folder, *filter(None, [site.held_out_folder])]
    excluded_matters = site.settings.excluded_matters
    reads = [
        read_contracts(folder, excluded_matters=excluded_matters, on_file=on_file)
        for folder in folders
    ]
    excluded: Counter[str] = Counter()
    for read in reads:
        excluded.update(read.excluded)
    fraction = 0.0 if site.held_out_folder else site.settings.held_out_fraction
    return Inventory(
        site=site.settings.name,
        tasks={kind: _task(reads, kind, fraction) for kind in ("classify", "instruct")},
        excluded=dict(excluded),
        unreadable=tuple(broken for read in reads for broken in read.unreadable),
    )


def _task(reads: Sequence[ReadResult], kind: str, held_out_fraction: float) -> TaskInventory:
    """reads: the folder to learn from, then the one to evaluate on where there is one."""
    built = [build_examples(read.contracts, kind, held_out_fraction) for read in reads]
    train, held_out = built[0].train, built[0].held_out
    if len(built) > 1:
        held_out = built[1].train
    unused: Counter[str] = Counter()
    for part in built:
        unused.update(part.unused)
    return TaskInventory(
        train=len(train),
        held_out=len(held_out),
        labels=_counts(train, held_out, "label") if kind == "classify" else (),
        matters=_counts(train, held_out, "matter"),
        unused=dict(unused),
    )


def _counts(train: Sequence[Example], held_out: Sequence[Example], field: str) -> tuple[Count, ...]:
    """How often each value of a field occurs, the most frequent first."""
    first, second = (
        Counter[str | None](getattr(example, field) for example in part)
        for part in (train, held_out)
    )
    names = sorted(first | second, key=lambda name: (-first[name] - second[name], str(name)))
    return tuple(Count(name, first[name], second[name]) for name in names)
