"""Combinations of settings that must not run together, refused before the first round.

Each would run and quietly give other numbers than its name promises. The table is the only place
that knows them; `docs/compatibility.md` is printed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import SettingsError
from protocol.methods import METHODS, Factors
from protocol.settings import RunSettings


@dataclass(frozen=True)
class Rule:
    """One forbidden combination: the two settings it names, why, and what to choose instead."""

    first: str
    second: str
    why: str
    instead: str
    broken_by: Callable[[RunSettings], bool]

    @property
    def sentence(self) -> str:
        """The rule as it is shown to the person who has to change a setting."""
        return f"{self.first} with {self.second}: {self.why} Instead: {self.instead}"


RULES: tuple[Rule, ...] = (
    Rule(
        "federation.aggregator",
        "federation.method=fedsvd or fedsa",
        "a stock Flower strategy averages tensors and knows neither the SVD refactoring nor "
        "factors that stay at a site.",
        "federation.method=ffa, rolora or fedit, or no aggregator.",
        lambda run: (
            bool(run.federation.aggregator) and run.federation.method in {"fedsvd", "fedsa"}
        ),
    ),
    Rule(
        "federation.aggregator",
        "federation.server_optimizer",
        "both would step on the same mean update.",
        "server_optimizer=none, or one of Flower's own optimising strategies as the aggregator.",
        lambda run: bool(run.federation.aggregator) and run.federation.server_optimizer != "none",
    ),
    Rule(
        "federation.method=rolora",
        "federation.rounds=1",
        "A is trained in even rounds only, so it would never be trained.",
        "at least 2 rounds, or federation.method=ffa.",
        lambda run: run.federation.method == "rolora" and run.federation.rounds < 2,
    ),
    Rule(
        "federation.quorum",
        "federation.min_cohort",
        "a quorum above the smallest cohort may never be met, and every round would be abandoned.",
        "quorum <= min_cohort.",
        lambda run: run.federation.quorum > run.federation.min_cohort,
    ),
    Rule(
        "federation.method=fedit or fedsa",
        "privacy.mode=dp",
        "with A and B trained in one round the noise on one is multiplied by the other, so it "
        "grows much faster than on a single factor.",
        "federation.method=fedsvd, ffa or rolora, or privacy.acknowledge_both_factors=true.",
        lambda run: (
            run.privacy.enabled
            and METHODS[run.federation.method].trains_both_factors
            and not run.privacy.acknowledge_both_factors
        ),
    ),
    Rule(
        "privacy.mode=dp",
        "task.packing=true",
        "packed conversations share one sequence, so no gradient belongs to one example alone.",
        "task.packing=false.",
        lambda run: run.privacy.enabled and run.task.packing,
    ),
    Rule(
        "privacy.mode=dp",
        "federation.weighting=examples",
        "a site's number of examples would leave it without noise.",
        "federation.weighting=uniform.",
        lambda run: run.privacy.enabled and run.federation.weighting == "examples",
    ),
    Rule(
        "secure_aggregation",
        "federation.aggregator",
        "Krum, medians, trimmed means and every other stock strategy look at single updates, and "
        "the coordinator has only their sum.",
        "secure_aggregation=off, or no aggregator: the methods of strategies/ need the sum alone.",
        lambda run: run.secure_aggregation.enabled and bool(run.federation.aggregator),
    ),
    Rule(
        "secure_aggregation",
        "federation.min_cohort or quorum below 2",
        "a sum of one update is that update.",
        "federation.min_cohort=3 and federation.quorum=3 or more.",
        lambda run: (
            run.secure_aggregation.enabled
            and min(run.federation.min_cohort, run.federation.quorum) < 2
        ),
    ),
    Rule(
        "model.head_start=labels",
        "model.pooling=native or task.kind=instruct",
        "the head made from label names reads the mean of the last hidden states.",
        "model.pooling=mean with task.kind=classify, or model.head_start=zero.",
        lambda run: (
            run.model.head_start == "labels"
            and (run.model.pooling != "mean" or run.task.kind != "classify")
        ),
    ),
    Rule(
        "task.kind=instruct",
        "model.pooling=mean",
        "pooling is how a classification head reads the base model; a causal model has none.",
        "model.pooling=native.",
        lambda run: run.task.kind == "instruct" and run.model.pooling == "mean",
    ),
    Rule(
        "task.kind=classify",
        "task.packing=true",
        "packed clauses would attend to each other and share one label.",
        "task.packing=false; examples are grouped by length anyway.",
        lambda run: run.task.kind == "classify" and run.task.packing,
    ),
    Rule(
        "task.kind=classify",
        "fewer than two task.labels",
        "sites would build heads of different shapes, or of one class.",
        "the agreed label list, the same at every site.",
        lambda run: run.task.kind == "classify" and len(set(run.task.labels)) < 2,
    ),
    Rule(
        "task.kind=instruct",
        "task.labels",
        "labels belong to classification and would be ignored.",
        "no labels, or task.kind=classify.",
        lambda run: run.task.kind == "instruct" and bool(run.task.labels),
    ),
)


def check_compatibility(run: RunSettings, where: str) -> None:
    """Errors: SettingsError with one sentence for every broken rule."""
    broken = [rule.sentence for rule in RULES if rule.broken_by(run)]
    if broken:
        raise SettingsError(where, broken)


def compatibility_markdown() -> str:
    """The methods and the rules as two Markdown tables, for the documentation."""
    lines = ["| method | trains in odd / even rounds | uploads | stays at the site | exact |"]
    lines.append("|---|---|---|---|---|")
    for name, traits in METHODS.items():
        trained = _by_parity(traits.odd, traits.even)
        sent = _by_parity(traits.odd - traits.personal, traits.even - traits.personal)
        kept = ", ".join(sorted(traits.personal)) or "nothing"
        lines.append(
            f"| `{name}` ({traits.title}, {traits.source}) | {trained} | {sent} | {kept} | "
            f"{'yes' if traits.exact else 'no'} |"
        )
    lines += ["", "| refused together | | why | instead |", "|---|---|---|---|"]
    lines += [f"| `{r.first}` | `{r.second}` | {r.why} | {r.instead} |" for r in RULES]
    return "\n".join(lines) + "\n"


def _by_parity(odd: Factors, even: Factors) -> str:
    """The factors of odd rounds, and those of even rounds where they are others."""
    names = [", ".join(sorted(factors)) for factors in (odd, even)]
    return " / ".join(dict.fromkeys(names))
