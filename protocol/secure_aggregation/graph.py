"""Who masks with whom, and how many of them it takes to open a mask.

Complete among few sites; among many, each site masks with `degree` random others, as in SecAgg+
(Bell et al. 2020, https://eprint.iacr.org/2020/704): the sites stand in a circle in an order drawn
from public randomness that exists only once all keys are advertised, and each masks with the
degree / 2 next ones on either side.

What may go wrong in a sparse graph, and how often. Let m = degree / 2; a site's shares lie with
degree + 1 holders (its neighbours and itself), of whom t = threshold(degree + 1) open one secret.
The coordinator cheats, together with up to a tenth of the sites (at least 2), chosen before the
order is drawn; it also says which sites drop out, after having seen the graph.

- Exposure by shares: t of a site's neighbours collude. Their number is hypergeometric.
- Exposure by isolation: the honest survivors fall into parts whose sums become known. On the
  circle that takes two separate runs of m sites, each dropped or colluding. A survivor beside a run
  is opened only by t holders, so at most degree + 1 - t of the run dropped, and at least
  m - (degree + 1 - t) of these m sites collude. For two runs the chances multiply at most: counts
  in separate windows are negatively associated.
- Loss: a fifth of the sites, unlucky ones, drop out, and some site has fewer than t holders left.
  Then nothing is revealed and the round is tried anew.

`choose_degree` takes the smallest degree with exposure under 2^-40 and loss under 2^-20. Whoever
tries k orders (by withholding advertisements) gets k chances. That a site's two secrets are not
opened on two different survivor lists is what the signed `confirm` phase over all sites is for.
The complete graph withstands more: colluding sites up to a third, with no chance left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from math import comb

from protocol.errors import FoedusError
from protocol.secure_aggregation.encoding import encode_fields

COMPLETE_UP_TO = 32
EXPOSURE_BOUND = 2.0**-40
LOSS_BOUND = 2.0**-20

Graph = Mapping[str, tuple[str, ...]]


def threshold(num_holders: int) -> int:
    """floor(2n/3) + 1 of n holders of shares (or signers of a survivor list); n for n <= 2.

    Two sets of that many have more than n/3 members in common; so while fewer than n/3 are
    dishonest, two different lists can never both find enough honest supporters.
    """
    if num_holders < 1:
        raise FoedusError(f"Expected at least one holder of shares, got {num_holders}.")
    return min(num_holders, 2 * num_holders // 3 + 1)


def exposure_bound(num_sites: int, degree: int) -> float:
    """Upper bound of the chance that a cheating coordinator learns more than the sum. See above."""
    colluding = max(2, -(-num_sites // 10))
    half, opened_by = degree // 2, threshold(degree + 1)
    by_shares = num_sites * _tail(num_sites - 1, colluding, degree, opened_by)
    least = half - (degree + 1 - opened_by)
    in_one_run = _tail(num_sites, colluding, half, least)
    return by_shares + comb(num_sites, 2) * in_one_run**2


def loss_bound(num_sites: int, degree: int) -> float:
    """Upper bound of the chance that a fifth of the sites dropping out costs the round."""
    spare = degree + 1 - threshold(degree + 1)
    return num_sites * _tail(num_sites - 1, num_sites // 5, degree, spare + 1)


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """P[X >= least], X marked ones among `drawn` of `population` without replacement."""
    ways = sum(
        comb(marked, hits) * comb(population - marked, drawn - hits)
        for hits in range(max(0, least), min(marked, drawn) + 1)
    )
    return ways / comb(population, drawn)


@cache
def choose_degree(num_sites: int) -> int:
    """The smallest even degree whose failure bounds hold; n - 1 (complete) where none does."""
    for degree in range(2, num_sites - 1, 2):
        exposed = exposure_bound(num_sites, degree) > EXPOSURE_BOUND
        if not exposed and loss_bound(num_sites, degree) <= LOSS_BOUND:
            return degree
    return num_sites - 1


def resolve_degree(num_sites: int, degree: int) -> int:
    """The degree really used: even, or n - 1 for the complete graph.

    degree: as set; 0 means complete up to COMPLETE_UP_TO sites and choose_degree above, one over
    n - 1 means complete. Errors: FoedusError on fewer than 2 sites, and where a degree was set that
    is below choose_degree: it comes from the coordinator, and each site checks it for itself.
    """
    if num_sites < 2:
        raise FoedusError(f"Expected at least 2 sites to mask with each other, got {num_sites}.")
    complete = num_sites - 1
    if degree == 0:
        return complete if num_sites <= COMPLETE_UP_TO else choose_degree(num_sites)
    even = degree + degree % 2
    if even >= complete:
        return complete
    least = choose_degree(num_sites)
    if even < least:
        raise FoedusError(
            f"Expected at least {least} neighbours for each of {num_sites} sites, got "
            f"secure_aggregation.degree={degree}: a cheating coordinator could single sites out. "
            "Leave it at 0."
        )
    return even


def neighbours(member_ids: Sequence[str], degree: int, public_seed: bytes) -> Graph:
    """Each site's neighbours, sorted, without itself. Symmetric; the order of ids is irrelevant.

    degree: as in the settings (see resolve_degree); public_seed: transcript.graph_seed.
    Errors: FoedusError on ids that stand twice, and as resolve_degree.
    """
    ids = sorted(member_ids)
    if len(set(ids)) != len(ids):
        raise FoedusError(f"Expected each site once, got {len(ids) - len(set(ids))} again.")
    return circle(ids, resolve_degree(len(ids), degree), public_seed)


def circle(member_ids: Sequence[str], degree: int, public_seed: bytes) -> Graph:
    """The graph itself: even degree, or n - 1. Whether the degree is safe is not asked here."""
    num_sites = len(member_ids)
    if degree >= num_sites - 1:
        ordered = sorted(member_ids)
        return {one: tuple(other for other in ordered if other != one) for one in ordered}
    if degree < 2 or degree % 2:
        raise FoedusError(f"Expected an even degree of at least 2, got {degree}.")
    order = sorted(member_ids, key=lambda member_id: _place(public_seed, member_id))
    steps = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
    return {
        member_id: tuple(sorted(order[(place + step) % num_sites] for step in steps))
        for place, member_id in enumerate(order)
    }


def _place(public_seed: bytes, member_id: str) -> bytes:
    return hashlib.sha256(encode_fields("place on the circle", public_seed, member_id)).digest()


def holders(member_id: str, graph: Graph) -> tuple[str, ...]:
    """Who holds shares of this site's secrets: itself and its neighbours, sorted.

    The holder at position i has the share of index i + 1; threshold(len(holders)) open a secret.
    """
    return tuple(sorted((member_id, *graph[member_id])))
