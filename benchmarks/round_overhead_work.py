"""What both sides of `round_overhead` do: the run, the sites' contracts, and a round's times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.settings import RunSettings

NUM_SITES = 2
_CLAUSES = 48


@dataclass(frozen=True)
class Round:
    """seconds: from the end of the round before to its own; training_seconds: inside the ClientApp,
    the mean of its sites, which train at the same time."""

    number: int
    seconds: float
    training_seconds: float

    @property
    def overhead_seconds(self) -> float:
        """Seconds beyond the training itself."""
        return self.seconds - self.training_seconds


def rounds_between(ends: Sequence[float], training: Sequence[float]) -> list[Round]:
    """ends: when the run began and when each round ended; training: seconds in each round.

    Errors: ValueError where they do not belong together.
    """
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    pairs = zip(seconds, training, strict=True)
    return [Round(number, *pair) for number, pair in enumerate(pairs, start=1)]


def run_overrides(rounds: int, labels: Sequence[str]) -> list[str]:
    """Of conf/coordinate.yaml: FedIT, whose sites download and upload all tensors as FedAvg's do,
    and no evaluation at sites but after the last round, which is not counted."""
    return [
        "strategy=fedit",
        f"task.labels=[{','.join(labels)}]",
        "training.max_steps=2",
        f"federation.rounds={rounds}",
        f"federation.min_cohort={NUM_SITES}",
        f"federation.quorum={NUM_SITES}",
        "federation.evaluate_every=0",
    ]


def run_settings(overrides: Sequence[str]) -> RunSettings:
    """The settings that the overrides stand for."""
    from server.app import compose_settings

    return compose_settings(list(overrides))


def lay_out_contracts(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """(site.yaml of each site, labels): invented firms' clauses, the same every time."""
    # Imported here, so that what only reads times need not load models.
    from simulations.data.settings import DataSettings
    from simulations.data.synthetic import synthetic_corpus
    from simulations.partition import SitesSettings, partition
    from simulations.workspace import lay_out_sites

    corpus = synthetic_corpus(
        DataSettings("synthetic", firms=NUM_SITES, train_per_firm=_CLAUSES, test_per_firm=_CLAUSES)
    )
    sites = partition(corpus.train, (), SitesSettings(num_sites=NUM_SITES))
    return lay_out_sites(folder, sites), corpus.labels
