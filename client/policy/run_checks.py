"""Whether a run may use this site's contracts. All of it is known before one of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from client.policy.hours import within_hours
from client.policy.settings import PolicySettings
from protocol.errors import Refusal
from protocol.messages import Request
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings

_STRENGTH = ("none", "example", "matter")


def check_run_policy(policy: PolicySettings, request: Request) -> None:
    """Errors: Refusal(POLICY) listing everything that the run offers less of than is demanded."""
    run = request.settings
    problems = [
        *_shape_problems(policy, request),
        *_effort_problems(policy, run),
        *_privacy_problems(policy, run.privacy),
        *_aggregation_problems(policy, run),
    ]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise Refusal(
            RefusalReason.POLICY,
            f"This site's policy declines run {request.run_id[:8]}:\n{lines}\n"
            "Ask for other settings, or change `policy` in site.yaml.",
        )


def check_hours(policy: PolicySettings, at: datetime | None = None) -> None:
    """at: by the site's wall clock, now where None. Errors: Refusal(OUTSIDE_HOURS)."""
    at = at or datetime.now()
    if not within_hours(policy.hours, at):
        raise Refusal(
            RefusalReason.OUTSIDE_HOURS,
            f"This site works in {', '.join(policy.hours)}; it is {at:%a %H:%M} here.",
        )


def demanded_unit(policy: PolicySettings) -> str:
    """Whom a run's noise must hide at least: "none", "example" or "matter"."""
    bounded = policy.maximum_epsilon > 0 or policy.maximum_delta > 0
    units = (
        policy.minimum_privacy,
        policy.budget_unit if policy.budget else "none",
        "example" if bounded else "none",
    )
    return max(units, key=_STRENGTH.index)


def _shape_problems(policy: PolicySettings, request: Request) -> Iterator[str]:
    run = request.settings
    if policy.allowed_tasks and run.task.kind not in policy.allowed_tasks:
        yield f"allowed_tasks: {_one_of(policy.allowed_tasks)}, got task.kind={run.task.kind}."
    method = run.federation.method
    if policy.allowed_methods and method not in policy.allowed_methods:
        yield f"allowed_methods: {_one_of(policy.allowed_methods)}, got federation.method={method}."
    if policy.maximum_rank and run.adapter.rank > policy.maximum_rank:
        yield f"maximum_rank: {policy.maximum_rank} at most, got adapter.rank={run.adapter.rank}."
    strange = sorted(set(run.adapter.targets) - set(policy.allowed_targets))
    if policy.allowed_targets and (strange or not run.adapter.targets):
        yield f"allowed_targets: {_one_of(policy.allowed_targets)}, got adapter.targets={strange}."
    base = request.state.base_digest
    if policy.base_digests and base not in policy.base_digests:
        yield f"base_digests: one of {len(policy.base_digests)} agreed ones, got {base[:12]}…."


def _effort_problems(policy: PolicySettings, run: RunSettings) -> Iterator[str]:
    """What a run may ask for in one round. Private runs count steps, others epochs and steps."""
    training, private = run.training, run.privacy.enabled
    epochs, most = training.local_epochs, policy.maximum_local_epochs
    if most and not private and epochs > most:
        yield f"maximum_local_epochs: {most} at most, got training.local_epochs={epochs}."
    most, batch, tokens = policy.maximum_batch_tokens, training.batch_size, run.model.max_tokens
    if most and batch * tokens > most:
        yield (
            f"maximum_batch_tokens: {most} at most, got training.batch_size={batch} of "
            f"model.max_tokens={tokens}."
        )
    most = policy.maximum_steps_per_round
    if not most:
        return
    if private and run.privacy.steps_per_round > most:
        asked = run.privacy.steps_per_round
        yield f"maximum_steps_per_round: {most} at most, got privacy.steps_per_round={asked}."
    asked, batches = training.max_steps, training.gradient_accumulation
    if not private and not 0 < asked * batches <= most:
        yield (
            f"maximum_steps_per_round: {most} batches at most, got training.max_steps={asked} "
            f"(0 = any) of training.gradient_accumulation={batches}."
        )


def _privacy_problems(policy: PolicySettings, privacy: PrivacySettings) -> Iterator[str]:
    offered = privacy.unit if privacy.enabled else "none"
    demanded = demanded_unit(policy)
    if _STRENGTH.index(offered) < _STRENGTH.index(demanded):
        got = f"privacy.unit={offered}" if privacy.enabled else "privacy.mode=none"
        yield (
            f"minimum_privacy={policy.minimum_privacy}, budget_epsilon={policy.budget_epsilon:g} "
            f"by {policy.budget_unit}, maximum_epsilon={policy.maximum_epsilon:g}, "
            f"maximum_delta={policy.maximum_delta:g}: noise that hides a whole {demanded}, got "
            f"{got}. Run with privacy.mode=dp privacy.unit={demanded}."
        )
    if not privacy.enabled:
        return
    epsilon, delta = privacy.target_epsilon, privacy.delta
    if policy.maximum_epsilon and epsilon > policy.maximum_epsilon:
        yield (
            f"maximum_epsilon: {policy.maximum_epsilon:g} at most, got "
            f"privacy.target_epsilon={epsilon:g}."
        )
    if policy.maximum_delta and delta > policy.maximum_delta:
        yield f"maximum_delta: {policy.maximum_delta:g} at most, got privacy.delta={delta:g}."
    if policy.budget and delta > policy.budget_delta:
        yield f"budget_delta: {policy.budget_delta:g} at most, got privacy.delta={delta:g}."


def _aggregation_problems(policy: PolicySettings, run: RunSettings) -> Iterator[str]:
    """A session counts its sites itself, see client.secure_aggregation.session."""
    demanded = policy.require_secure_aggregation or policy.minimum_cohort > 1
    if demanded and not run.secure_aggregation.enabled:
        yield (
            "require_secure_aggregation, minimum_cohort: no single update may be read, got "
            "secure_aggregation.enabled=false. Run with secure_aggregation=on."
        )


def _one_of(names: tuple[str, ...]) -> str:
    return f"one of {', '.join(names)}"
