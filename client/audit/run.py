"""An audit from canaries to findings: plant, train a site alone, attack; then without privacy.

Nothing here knows of site files or commands, so a simulation can audit on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.audit.attack import OnProgress, alignment_scores, loss_scores
from client.audit.bounds import DEFAULT_CONFIDENCE, Scores
from client.audit.canaries import TOKENS_PER_CANARY, Canary, as_examples, planted_of
from client.audit.report import (
    AuditResult,
    MembershipFindings,
    RunFindings,
    membership_findings,
    run_findings,
)
from client.audit.training import (
    BetweenRounds,
    Trainer,
    Trajectory,
    claimed_epsilon,
    train_alone,
    train_as_set,
    without_privacy,
)
from models.adapted import initial_state
from models.evaluation import tokenise
from models.examples import Example
from models.tokens import Tokenised
from protocol.adapter import AdapterState
from protocol.audit_policy import audited_settings_digest
from protocol.errors import FoedusError
from protocol.settings import RunSettings


def default_repeats(run: RunSettings) -> int:
    """Examples of one canary: a whole matter's worth, or the one example that is a unit."""
    return run.privacy.examples_per_matter if run.privacy.unit == "matter" else 1


def canary_tokens(run: RunSettings) -> int:
    """Words of a canary, so that it fits into the run's max_tokens with what surrounds it."""
    surrounding = 4 if run.task.kind == "classify" else 16
    return min(TOKENS_PER_CANARY, run.model.max_tokens - surrounding)


def audit_site(
    examples: Sequence[Example],
    run: RunSettings,
    canaries: Sequence[Canary],
    *,
    repeats: int | None = None,
    control: bool = True,
    start: AdapterState | None = None,
    accountant_epsilon: float | None = None,
    trainer: Trainer | None = None,
    between_rounds: BetweenRounds | None = None,
    confidence: float = DEFAULT_CONFIDENCE,
    on_progress: OnProgress | None = None,
) -> AuditResult:
    """Train on the site's examples and the planted canaries for all rounds, and attack.

    repeats: of each canary, by default what the unit of privacy calls for. control: a private run
    is repeated without privacy. start: the adapter of round 1; by default the run's initial one.
    accountant_epsilon: what the run claims; by default what all its steps cost. trainer,
    between_rounds: other training, and what a coordinator does to the adapter between rounds
    (nothing by default).
    The trained adapters are thrown away: they hold canaries, and the control no privacy.
    Errors: FoedusError where canaries do not fit the run.
    """
    repeats = default_repeats(run) if repeats is None else repeats
    _expect_one_unit_a_canary(run, repeats)
    claimed = claimed_epsilon(run) if accountant_epsilon is None else accountant_epsilon
    site = _SiteAudit(
        tuple(examples), tuple(canaries), repeats, start, between_rounds, confidence, claimed
    )
    with_control = control and run.privacy.enabled
    progress = _Progress(on_progress, num_runs=2 if with_control else 1)
    audited = site.findings(run, trainer or train_as_set(run), progress)
    controlled = None
    if with_control:
        plain = without_privacy(run)
        controlled = site.findings(plain, train_as_set(plain), progress)
    planted = planted_of(canaries)
    return AuditResult(
        unit=run.privacy.unit,
        repeats=repeats,
        canaries_planted=int(planted.sum()),
        canaries_left_out=int((~planted).sum()),
        delta=run.privacy.delta,
        confidence=confidence,
        settings_digest=audited_settings_digest(run),
        audited=audited,
        control=controlled,
    )


def _expect_one_unit_a_canary(run: RunSettings, repeats: int) -> None:
    if run.privacy.enabled and run.privacy.unit == "example" and repeats != 1:
        raise FoedusError(
            f"Expected repeats=1 where privacy.unit=example, got {repeats}: a canary of several "
            "examples is several units, and no epsilon is promised for them together."
        )


@dataclass(frozen=True)
class _SiteAudit:
    """What all runs of one audit share."""

    examples: tuple[Example, ...]
    canaries: tuple[Canary, ...]
    repeats: int
    start: AdapterState | None
    between_rounds: BetweenRounds | None
    confidence: float
    accountant_epsilon: float

    def findings(self, run: RunSettings, trainer: Trainer, progress: _Progress) -> RunFindings:
        """Plant, train and attack once."""
        planted = [canary for canary in self.canaries if canary.planted]
        canary_examples = tokenised_canaries(run, self.canaries)
        mixed = tokenise(run, [*self.examples, *as_examples(planted, self.repeats)])
        start = initial_state(run) if self.start is None else self.start
        trained = train_alone(run, mixed, start, trainer, self.between_rounds, progress.training)
        scores = attack_scores(run, start, trained, canary_examples, progress.attacking)
        progress.finish_run()
        return run_findings(
            scores,
            planted_of(self.canaries),
            private=run.privacy.enabled,
            accountant_epsilon=self.accountant_epsilon,
            delta=run.privacy.delta,
            confidence=self.confidence,
        )


def tokenised_canaries(run: RunSettings, canaries: Sequence[Canary]) -> list[Tokenised]:
    """One tokenised example per canary, in their order.

    Errors: FoedusError where max_tokens cuts canaries, which then would not differ as they should.
    """
    found = tokenise(run, as_examples(canaries))
    whole = [example for example in found if example.num_tokens < run.model.max_tokens]
    if len(whole) != len(canaries):
        raise FoedusError(
            f"Expected all {len(canaries)} canaries to fit into model.max_tokens="
            f"{run.model.max_tokens}, got {len(whole)} that do. Use fewer tokens per canary."
        )
    return found


def attack_scores(
    run: RunSettings,
    start: AdapterState,
    trained: Trajectory,
    examples: Sequence[Tokenised],
    on_progress: OnProgress | None = None,
) -> list[tuple[str, Scores]]:
    """(name, scores) of the attack on the end adapter and of the one on the site's updates."""
    by_loss = loss_scores(run, start.tensors, trained.end, examples)
    on_the_wire = alignment_scores(run, trained.rounds, examples, on_progress)
    return [("loss", by_loss), ("wire_site", on_the_wire)]


def membership(
    run: RunSettings,
    state: AdapterState,
    members: Sequence[Tokenised],
    nonmembers: Sequence[Tokenised],
) -> MembershipFindings:
    """The loss attack on an adapter: examples trained on against examples held out.

    Errors: FoedusError where one side is empty.
    """
    if not members or not nonmembers:
        raise FoedusError(
            f"Expected examples trained on and held out, got {len(members)} and "
            f"{len(nonmembers)}. Set held_out or held_out_fraction in the site's configuration."
        )
    start = initial_state(run)
    return membership_findings(
        loss_scores(run, start.tensors, state.tensors, members),
        loss_scores(run, start.tensors, state.tensors, nonmembers),
    )


class _Progress:
    """One count over training and attacking of every run, in thousandths of each half."""

    def __init__(self, on_progress: OnProgress | None, num_runs: int) -> None:
        self._on_progress = on_progress
        self._total = 2000 * num_runs
        self._before = 0

    def training(self, done: int, total: int) -> None:
        self._tell(1000 * done // max(1, total))

    def attacking(self, done: int, total: int) -> None:
        self._tell(1000 + 1000 * done // max(1, total))

    def finish_run(self) -> None:
        self._before += 2000
        self._tell(0)

    def _tell(self, part: int) -> None:
        if self._on_progress:
            self._on_progress(min(self._total, self._before + part), self._total)
