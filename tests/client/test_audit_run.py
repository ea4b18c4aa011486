"""Whole audits of small runs: what is trained on is found, and noise hides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from client.audit.canaries import Canary, as_examples, make_canaries, vocabulary_words
from client.audit.report import AuditResult
from client.audit.run import (
    audit_site,
    canary_tokens,
    default_repeats,
    membership,
    tokenised_canaries,
)
from client.audit.training import claimed_epsilon, train_alone, train_as_set, without_privacy
from client.training.loop import TrainingResult, train
from client.training.private import train_private
from models.adapted import AdaptedModel, adapted_model, initial_state
from models.evaluation import tokenise
from models.examples import ClauseExample
from models.tokens import Tokenised
from protocol.adapter import AdapterState, factor_of
from protocol.errors import FoedusError
from protocol.methods import Factors
from protocol.settings import (
    AdapterSettings,
    ModelSettings,
    PrivacySettings,
    RunSettings,
    TaskSettings,
)
from tests.small_runs import LABELS, clause_records, small_run

RUN = small_run(
    training={"learning_rate": 0.01, "head_learning_rate": 0.05, "local_epochs": 4, "batch_size": 8}
)
CAUSAL = replace(
    RUN,
    training=replace(RUN.training, learning_rate=0.03),
    task=TaskSettings(kind="instruct"),
    model=ModelSettings(id="novels", precision="float32", max_tokens=48),
    adapter=AdapterSettings(rank=4, alpha=8.0, targets=("q_proj", "v_proj"), last_layers=1),
)
# Set, not "auto", so that the process keeps one model for private and plain runs.
ZERO_HEAD = replace(RUN, model=replace(RUN.model, head_start="zero"))
EXAMPLES = [ClauseExample(r["text"], r["label"], r["matter"]) for r in clause_records(1)]


def canaries_for(run: RunSettings, count: int, seed: int = 0) -> tuple[Canary, ...]:
    words = vocabulary_words(adapted_model(run).base.tokenizer)
    rng = np.random.default_rng(seed)
    return make_canaries(count, run.task.kind, run.task.labels, words, canary_tokens(run), rng)


def private(run: RunSettings, **privacy: object) -> RunSettings:
    settings = {"mode": "dp", "sampling_rate": 0.5, "steps_per_round": 6, **privacy}
    return replace(run, privacy=PrivacySettings(**settings))  # type: ignore[arg-type]


class Listening:
    """A trainer that remembers what it was given and trains with the real one."""

    def __init__(self) -> None:
        self.seen: list[list[Tokenised]] = []
        self.rounds: list[int] = []

    def __call__(
        self,
        adapted: AdaptedModel,
        run: RunSettings,
        examples: Sequence[Tokenised],
        factors: Factors,
        round_: int,
        seed: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> TrainingResult:
        self.seen.append(list(examples))
        self.rounds.append(round_)
        return train(adapted, run, examples, factors, round_, seed, on_step)


def test_exactly_the_planted_canaries_are_trained_on_beside_the_site_s_examples() -> None:
    canaries, heard = canaries_for(RUN, 20), Listening()
    run = replace(RUN, training=replace(RUN.training, local_epochs=1))
    progress: list[tuple[int, int]] = []
    result = audit_site(
        EXAMPLES, run, canaries, repeats=2, trainer=heard,
        on_progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    planted = [canary for canary in canaries if canary.planted]
    expected = tokenise(run, [*EXAMPLES, *as_examples(planted, 2)])
    assert heard.rounds == [1, 2]
    assert heard.seen == [expected, expected]
    assert (result.canaries_planted, result.canaries_left_out) == (len(planted), 20 - len(planted))
    assert (result.repeats, result.control, result.audited.private) == (2, None, False)
    assert progress == sorted(progress) and progress[-1] == (2000, 2000)


def test_every_round_is_observed_from_its_start_to_its_update() -> None:
    def halved(state: AdapterState) -> AdapterState:
        return state.replace_tensors({n: t / np.float32(2) for n, t in state.tensors.items()})

    start, tokenised = initial_state(RUN), tokenise(RUN, EXAMPLES)
    trained = train_alone(RUN, tokenised, start, train, halved)
    first, second = trained.rounds
    assert first.start == start.tensors
    assert {factor_of(name) for name in first.update} == {"B", "head"}
    for name, update in first.update.items():
        np.testing.assert_allclose(
            second.start[name], (first.start[name] + update) / 2, rtol=1e-6, atol=1e-7
        )
        np.testing.assert_allclose(
            trained.end[name], second.start[name] + second.update[name], rtol=1e-5, atol=1e-7
        )
        assert update.any()


def test_a_control_starts_where_the_private_run_starts() -> None:
    run = private(RUN, target_epsilon=4.0)
    plain = without_privacy(run)
    assert not plain.privacy.enabled and train_as_set(plain) is train
    assert plain.head_from_labels == run.head_from_labels is True
    assert without_privacy(private(ZERO_HEAD)).model == ZERO_HEAD.model
    assert initial_state(plain).digest() == initial_state(run).digest()


@pytest.mark.slow
def test_a_run_claims_what_the_accountant_says_of_all_its_steps() -> None:
    assert 3.9 < claimed_epsilon(private(RUN, target_epsilon=4.0)) <= 4.0
    assert claimed_epsilon(RUN) == float("inf")


def test_a_canary_is_as_many_examples_as_its_unit_holds() -> None:
    assert default_repeats(private(RUN, unit="matter", examples_per_matter=5)) == 5
    assert default_repeats(private(RUN, unit="example")) == 1
    with pytest.raises(FoedusError, match="repeats=1"):
        audit_site(EXAMPLES, private(RUN, unit="example"), canaries_for(RUN, 20), repeats=2)


def test_canaries_that_would_be_cut_are_refused() -> None:
    words = vocabulary_words(adapted_model(RUN).base.tokenizer)
    long = make_canaries(20, "classify", LABELS, words, 15, np.random.default_rng(0))
    with pytest.raises(FoedusError, match="max_tokens=16"):
        tokenised_canaries(RUN, long)


def test_membership_needs_both_sides() -> None:
    with pytest.raises(FoedusError, match="held out"):
        membership(RUN, initial_state(RUN), tokenise(RUN, EXAMPLES), [])


def test_membership_is_found_in_an_adapter_that_learned_by_heart() -> None:
    random = tokenise(RUN, as_examples(canaries_for(RUN, 80, seed=3)))
    members, nonmembers = random[:40], random[40:]
    start = initial_state(RUN)
    trained = train_alone(RUN, members, start, train)
    found = membership(RUN, start.replace_tensors(trained.end), members, nonmembers)
    assert found.auc > 0.9 and found.tpr_at_1_fpr > 0.25
    assert (found.members, found.nonmembers, found.fpr) == (40, 40, 0.0)
    untouched = membership(RUN, start, members, nonmembers)
    assert (untouched.auc, untouched.tpr_at_1_fpr) == (0.5, 0.0)


def by_attack(result: AuditResult) -> dict[str, bool]:
    return {found.attack: found.caught for found in result.audited.attacks}


@pytest.mark.slow
def test_a_run_without_privacy_is_caught_by_either_attack() -> None:
    result = audit_site(EXAMPLES, ZERO_HEAD, canaries_for(ZERO_HEAD, 60), repeats=4)
    assert by_attack(result) == {"loss": True, "wire_site": True}
    assert result.audited.accountant_epsilon is None
    for found in result.audited.attacks:
        assert found.auc > 0.9 and found.epsilon_lower_bound > 0.5


@pytest.mark.slow
def test_a_causal_run_without_privacy_is_caught_by_its_secrets() -> None:
    result = audit_site([], CAUSAL, canaries_for(CAUSAL, 60), repeats=4)
    assert by_attack(result) == {"loss": True, "wire_site": True}


def drowned(
    adapted: AdaptedModel,
    run: RunSettings,
    examples: Sequence[Tokenised],
    factors: Factors,
    round_: int,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
) -> TrainingResult:
    """Private training with a hundred times the noise; sigma is given, as finding it is slow."""
    return train_private(adapted, run, examples, factors, round_, 100.0, on_step=on_step).training


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["matter", "example"])
def test_absurd_noise_hides_every_canary_that_the_control_shows(unit: str) -> None:
    run = private(ZERO_HEAD, unit=unit)
    result = audit_site(
        EXAMPLES, run, canaries_for(run, 60), repeats=3 if unit == "matter" else 1,
        trainer=drowned, accountant_epsilon=0.1,
    )  # fmt: skip
    assert by_attack(result) == {"loss": False, "wire_site": False}
    assert result.control is not None and result.control.caught
    assert result.audited.accountant_epsilon == 0.1
    assert all(f.epsilon_lower_bound < 0.5 for f in result.audited.attacks)


@pytest.mark.slow
def test_a_private_run_stays_below_its_accountant() -> None:
    run = private(ZERO_HEAD, target_epsilon=4.0)
    result = audit_site(EXAMPLES, run, canaries_for(run, 60), repeats=3, control=False)
    assert result.control is None
    claimed = result.audited.accountant_epsilon
    assert claimed is not None and 3.9 < claimed <= 4.0
    assert all(found.epsilon_lower_bound < claimed for found in result.audited.attacks)
