"""Secure aggregation: time and bytes of a round, against the building blocks of Flower's SecAgg+.

A round's work is the sum over all sites' and the coordinator's work, in processor time: in a real
round the sites work at the same time, and what else this machine does is nobody's work. Work that
repeats is timed once and multiplied by how often it occurs: one site's for all sites, one mask for
all masks. Both sides use the same graph, threshold and weights, and 32-bit rings; Flower verifies
no signatures and has no confirm phase, foedus's are counted (every relayed key at every site, and
as many survivors' signatures as it asks for). Sites that drop out do so after they shared their
secrets and before their input arrives. Training, transport and files count for nobody.

Of every step the median over the repetitions counts, the sides taking turns after a warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np

from benchmarks.command import Say, benchmark_command
from benchmarks.interleave import interleave
from benchmarks.result import BenchmarkResult, Row
from benchmarks.secure_aggregation_steps import (
    Flower,
    Foedus,
    SecretSeconds,
    Side,
    VectorSeconds,
)
from protocol.secure_aggregation.graph import resolve_degree, threshold
from protocol.secure_aggregation.ring import RING_BITS, packed_size

NAME = "secure_aggregation"
GOAL = 5.0
UPLOAD_GOAL = 1.1
FOEDUS, FLOWER = "foedus", "flower"
SIDES: Mapping[str, Side] = {FOEDUS: Foedus(), FLOWER: Flower()}

T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    """How many sites, coordinates and lost sites (a share of all)."""

    sites: tuple[int, ...] = (5, 20, 50)
    coordinates: tuple[int, ...] = (1_000_000, 10_000_000)
    dropped_shares: tuple[float, ...] = (0.0, 0.2)
    repetitions: int = 7


QUICK = Workload((5,), (100_000,), (0.0, 0.2), repetitions=1)


@dataclass(frozen=True)
class RoundShape:
    """How often a round's steps occur. degree: neighbours of each site."""

    num_sites: int
    num_dropped: int
    degree: int

    @property
    def num_survivors(self) -> int:
        """Sites whose input arrives."""
        return self.num_sites - self.num_dropped


@dataclass(frozen=True)
class RoundSeconds:
    """All sites' and the coordinator's work in the phases, in seconds.

    share: keys, signatures, shares and boxes; mask: rounding, masks, packing, at the survivors;
    unmask: sums, the confirm phase, secrets opened, masks removed, the mean.
    """

    share: float
    mask: float
    unmask: float

    @property
    def total(self) -> float:
        """Seconds of work in all."""
        return self.share + self.mask + self.unmask


def run(quick: bool, say: Say) -> BenchmarkResult:
    """Time the steps of both sides in turns, put them together for every shape of a round."""
    workload = QUICK if quick else Workload()
    secrets: dict[int, dict[str, SecretSeconds]] = {}
    vectors: dict[int, dict[str, VectorSeconds]] = {}
    for side in SIDES.values():
        # What a process loads and prepares once is nobody's work in a round.
        side.secrets(2, 2)
        side.vector(np.zeros(1000, dtype=np.float32))
    for num_holders in sorted({resolve_degree(n, 0) + 1 for n in workload.sites}):
        say(f"  keys and shares, {num_holders} holders")
        secrets[num_holders] = time_secrets(num_holders, workload.repetitions)
    for size in workload.coordinates:
        say(f"  updates of {size:,} coordinates")
        vectors[size] = time_vectors(size, workload.repetitions)
    return result_of(workload, secrets, vectors)


def time_secrets(num_holders: int, repetitions: int) -> dict[str, SecretSeconds]:
    """Medians by side."""
    t = threshold(num_holders)
    runs = interleave(
        {name: partial(side.secrets, num_holders, t) for name, side in SIDES.items()}, repetitions
    )
    return {name: medians(timings) for name, timings in runs.items()}


def time_vectors(size: int, repetitions: int) -> dict[str, VectorSeconds]:
    """Medians by side, for one update of normal numbers, float32."""
    update = np.random.default_rng(0).normal(0, 0.5, size).astype(np.float32)
    runs = interleave(
        {name: partial(side.vector, update) for name, side in SIDES.items()}, repetitions
    )
    return {name: medians(timings) for name, timings in runs.items()}


def medians(runs: Sequence[T]) -> T:
    """A record of the middle of each number."""
    first = runs[0]
    middle = {f.name: median(getattr(r, f.name) for r in runs) for f in fields(first)}  # type: ignore[arg-type]
    return type(first)(**middle)


def round_seconds(
    shape: RoundShape, secret: SecretSeconds, vector: VectorSeconds, removed_per_dropped: int
) -> RoundSeconds:
    """The steps, each times its count. removed_per_dropped: pairwise masks the coordinator removes
    for one site that dropped out."""
    n, survivors, dropped, k = (
        shape.num_sites,
        shape.num_survivors,
        shape.num_dropped,
        shape.degree,
    )
    share = n * (secret.advertise + (n - 1) * secret.verify + secret.split + k * secret.box)
    mask = survivors * (vector.encode + k * secret.agree + (k + 1) * vector.mask + vector.pack)
    removed = dropped * removed_per_dropped
    unmask = (
        survivors * (secret.sign + threshold(n) * secret.verify)
        + survivors * (vector.accept + secret.open_self + vector.mask)
        + dropped * secret.open_key
        + removed * (secret.agree + vector.mask)
        + vector.decode
    )
    return RoundSeconds(share, mask, unmask)


def result_of(
    workload: Workload,
    secrets: Mapping[int, Mapping[str, SecretSeconds]],
    vectors: Mapping[int, Mapping[str, VectorSeconds]],
) -> BenchmarkResult:
    """The figure is the least ratio over all shapes of a round."""
    rows: list[Row] = []
    for num_sites in workload.sites:
        for size in workload.coordinates:
            for share in workload.dropped_shares:
                degree = resolve_degree(num_sites, 0)
                shape = RoundShape(num_sites, int(num_sites * share), degree)
                rows.append(compared(shape, size, secrets[degree + 1], vectors[size]))
    ratios = [float(row["times_less"] or 0) for row in rows]
    uploads = upload_rows(workload, secrets)
    worst = max(float(row["upload_over_plain"] or 0) for row in uploads)
    what = (
        f"work of a round, Flower's SecAgg+ blocks over foedus, least of {len(rows)} shapes "
        f"(most: {max(ratios):.0f}); upload at most {worst:.3f} of bits/32 of plain float32 "
        f"(goal {UPLOAD_GOAL}: {'held' if worst <= UPLOAD_GOAL else 'missed'})"
    )
    return BenchmarkResult.measured(NAME, what, min(ratios), "times", GOAL, (*rows, *uploads))


def compared(
    shape: RoundShape,
    size: int,
    secret: Mapping[str, SecretSeconds],
    vector: Mapping[str, VectorSeconds],
) -> Row:
    """One row: both sides' phases, and how many times less work ours is."""
    # Flower's workflow removes a lost site's masks with all its neighbours, also lost ones.
    surviving = round(shape.degree * shape.num_survivors / max(1, shape.num_sites - 1))
    removed = {FOEDUS: min(surviving, shape.degree), FLOWER: shape.degree}
    ours, theirs = (
        round_seconds(shape, secret[side], vector[side], removed[side]) for side in (FOEDUS, FLOWER)
    )
    row: dict[str, str | int | float | bool | None] = {
        "sites": shape.num_sites,
        "neighbours": shape.degree,
        "coordinates": size,
        "dropped": shape.num_dropped,
        "times_less": theirs.total / ours.total,
    }
    for name, seconds in ((FOEDUS, ours), (FLOWER, theirs)):
        row |= {
            f"{name}_share_s": seconds.share,
            f"{name}_mask_s": seconds.mask,
            f"{name}_unmask_s": seconds.unmask,
            f"{name}_upload_mb": upload_bytes(shape, secret[name], vector[name].bytes_up) / 1e6,
        }
    return row


def upload_bytes(shape: RoundShape, secret: SecretSeconds, vector_bytes: int) -> int:
    """What one site sends in all phases together, without the messages' envelopes."""
    return vector_bytes + secret.bytes_once + shape.degree * secret.bytes_per_neighbour


def upload_rows(
    workload: Workload, secrets: Mapping[int, Mapping[str, SecretSeconds]]
) -> list[Row]:
    """A site's upload in the largest cohort, against bits/32 of its update in plain float32."""
    num_sites = max(workload.sites)
    degree = resolve_degree(num_sites, 0)
    shape = RoundShape(num_sites, 0, degree)
    rows: list[Row] = []
    for size in workload.coordinates:
        for bits in RING_BITS:
            # The weight is one more coordinate.
            sent = upload_bytes(shape, secrets[degree + 1][FOEDUS], packed_size(size + 1, bits))
            rows.append(
                {
                    "sites": num_sites,
                    "neighbours": degree,
                    "coordinates": size,
                    "bits": bits,
                    "foedus_upload_mb": sent / 1e6,
                    "upload_over_plain": sent / (4 * size * bits / 32),
                }
            )
    return rows


if __name__ == "__main__":
    benchmark_command(run)
