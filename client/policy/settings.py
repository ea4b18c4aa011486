"""The part of a site.yaml that says no. It can only make a run stricter, never laxer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from client.policy.hours import parse_hours
from client.privacy.composition import Budget
from protocol.codec import setting
from protocol.messages import EVALUATE_METRICS, REQUIRED_METRICS, TRAIN_METRICS
from protocol.methods import METHODS

METRICS = tuple(sorted(TRAIN_METRICS | EVALUATE_METRICS))
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PolicySettings:
    """Empty lists and zeros demand nothing. What each key stops and what not: docs/policy.md."""

    allowed_tasks: tuple[str, ...] = setting(
        (), choices=("classify", "instruct"), doc="kinds of task that may run"
    )
    allowed_methods: tuple[str, ...] = setting(
        (), choices=tuple(METHODS), doc="methods that may run"
    )
    maximum_rank: int = setting(0, minimum=0, doc="largest rank of an adapter")
    allowed_targets: tuple[str, ...] = setting((), doc="modules that may carry an adapter")
    base_digests: tuple[str, ...] = setting((), doc="base models that may be trained on, by digest")
    maximum_local_epochs: int = setting(0, minimum=0, doc="passes over the data in a round")
    maximum_steps_per_round: int = setting(
        0, minimum=0, doc="batches trained on in a round; steps, in a private run"
    )
    maximum_batch_tokens: int = setting(0, minimum=0, doc="tokens of a batch, padding included")
    maximum_wall_seconds: float = setting(
        0.0, minimum=0.0, doc="work for one request; training stops and declines after it"
    )
    minimum_cohort: int = setting(
        0, minimum=0, doc="sites whose updates are summed at least; 0 = no demand of its own"
    )
    require_secure_aggregation: bool = setting(
        False, doc="refuse to send an update that the coordinator could read"
    )
    minimum_privacy: str = setting(
        "none", choices=("none", "example", "matter"), doc="unit that a run's noise hides at least"
    )
    maximum_epsilon: float = setting(0.0, minimum=0.0, doc="epsilon that one run may plan to spend")
    maximum_delta: float = setting(
        0.0, minimum=0.0, maximum=1e-2, doc="delta at which a run may count its epsilon"
    )
    budget_epsilon: float = setting(
        0.0, minimum=0.0, doc="what each unit may spend over all runs; 0 = no budget"
    )
    budget_unit: str = setting(
        "matter", choices=("matter", "example"), doc="whom the budget speaks of"
    )
    budget_delta: float = setting(
        1e-5, minimum=1e-12, maximum=1e-2, doc="delta at which the budget's epsilon is counted"
    )
    allowed_metrics: tuple[str, ...] = setting(
        (), choices=METRICS, doc="numbers that may leave beside an update; empty = all agreed ones"
    )
    hours: tuple[str, ...] = setting(
        (), doc="when this site works, local time, such as Mon-Fri 19:00-07:00; empty = always"
    )
    consent: str = setting(
        "auto", choices=("auto", "ask"), doc="ask: each run waits for foedus client approve"
    )
    consent_wait_seconds: float = setting(
        300.0, minimum=0.0, doc="how long a request waits for an answer before it is declined"
    )

    @property
    def budget(self) -> Budget | None:
        """The budget of each unit, where the firm has set one."""
        if self.budget_epsilon == 0:
            return None
        return Budget(self.budget_unit, self.budget_epsilon, self.budget_delta)

    def lets_out(self, metric: str) -> bool:
        """True where a number of this name may leave."""
        return not self.allowed_metrics or metric in self.allowed_metrics

    def problems(self) -> Iterator[str]:
        """What is wrong beyond the bounds of single keys; see protocol.codec."""
        for index, text in enumerate(self.hours):
            problem = parse_hours(text)
            if isinstance(problem, str):
                yield f"hours[{index}]: {problem}"
        for index, digest in enumerate(self.base_digests):
            if not _DIGEST.fullmatch(digest):
                yield (
                    f"base_digests[{index}]: expected 64 hex digits, as `foedus client check` "
                    f"shows them, got {digest!r}."
                )
        missing = sorted(name for name in REQUIRED_METRICS if not self.lets_out(name))
        if missing and self.minimum_privacy == "none":
            yield (
                f"allowed_metrics: without {', '.join(missing)} no reply is taken in runs without "
                "privacy. Allow it too, or set minimum_privacy."
            )
