"""The policy at work: on both ways of sending an update, before anything is read, and wordlessly
to the coordinator."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.policy import PolicySettings
from client.policy.hours import DAYS
from client.policy.time_limit import TimeLimit
from client.privacy.composition import Budget
from client.rounds import answer
from client.site import Site
from models.adapted import adapted_model
from protocol.errors import Refusal
from protocol.messages import CONFIG, METRICS, Kind, Request
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.wire import SECURE, Phase
from protocol.settings import PrivacySettings, RunSettings
from tests.secure_conversations import Conversation, refusal, status_of
from tests.small_runs import (
    RUN_ID,
    downloaded,
    small_run,
    start_state,
    with_training,
    write_site,
)

KINDS: tuple[Kind, ...] = ("train", "evaluate")


def site_with(folder: Path, policy: str) -> Site:
    path = write_site(folder, 1)
    path.write_text(f"{path.read_text()}policy: {{{policy}}}\n")
    return Site.from_file(path)


def request(run: RunSettings, kind: Kind = "train") -> RecordDict:
    return Request(kind, RUN_ID, 1, run, downloaded(run, start_state(run))).to_content()


def code_of(reply: RecordDict) -> str:
    """The refusal's code, which must be all that leaves."""
    assert set(reply) == {CONFIG, METRICS} and dict(reply[METRICS]) == {}
    config = reply.config_records[CONFIG]
    assert set(config) == {"version", "run_id", "round", "status", "layout_digest"}
    return str(config["status"])


def closed_now() -> str:
    """A window that is shut for the next two days."""
    day = DAYS[(datetime.now() + timedelta(days=3)).weekday()]
    return f"{day} 12:00-13:00"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("maximum_rank: 1", "policy"),
        ("allowed_methods: [ffa]", "policy"),
        ("minimum_privacy: matter", "policy"),
        ("maximum_epsilon: 8", "policy"),
        ("require_secure_aggregation: true", "policy"),
        (f"hours: ['{closed_now()}']", "outside_hours"),
        ("consent: ask, consent_wait_seconds: 0", "consent_pending"),
    ],
)
def test_what_is_declined_is_declined_before_anything_is_read(
    tmp_path: Path, kind: Kind, policy: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run()
    asked = request(run, kind)
    # A base model that is not there cannot have been looked for either.
    config = {**dict(asked.config_records[CONFIG]), "settings.model.id": str(tmp_path / "none")}
    asked[CONFIG] = ConfigRecord(config)
    site = site_with(tmp_path, policy)
    (tmp_path / "contracts" / "clauses.jsonl").unlink()
    (tmp_path / "contracts").rmdir()
    with caplog.at_level(logging.WARNING, "foedus.client"):
        assert code_of(answer(site, asked, kind)) == code
    assert policy.partition(":")[0].split("_")[0] in caplog.text  # The site itself is told why.
    assert not site.ledger.path.exists()
    assert [receipt.status for receipt in site.receipts.verify()] == [code]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_within_the_policy_is_worked_on(tmp_path: Path, kind: Kind) -> None:
    policy = (
        "allowed_tasks: [classify], allowed_methods: [fedsvd], maximum_rank: 2, "
        "allowed_targets: [query, value], maximum_local_epochs: 1, maximum_wall_seconds: 3600, "
        "allowed_metrics: [num_examples, loss, train_loss], hours: ['Mon-Sun 00:00-24:00']"
    )
    reply = answer(site_with(tmp_path, policy), request(small_run(), kind), kind)
    assert reply.config_records[CONFIG]["status"] == "ok"
    loss = "train_loss" if kind == "train" else "loss"
    assert set(reply.metric_records[METRICS]) == {"num_examples", loss}


def test_evaluation_batches_are_no_larger_than_the_policy_lets_a_batch_be(tmp_path: Path) -> None:
    """training.batch_size, which is bounded too, says nothing of them."""
    run = small_run()
    most = run.training.batch_size * run.model.max_tokens
    sizes: list[int] = []
    embeddings = adapted_model(run).network.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
    try:
        for folder, policy in (("any", ""), ("bounded", f"maximum_batch_tokens: {most}")):
            sizes.clear()
            reply = answer(
                site_with(tmp_path / folder, policy), request(run, "evaluate"), "evaluate"
            )
            assert reply.config_records[CONFIG]["status"] == "ok"
            assert (max(sizes) <= most) == bool(policy)
    finally:
        hook.remove()


@pytest.mark.parametrize("key", ["policy.maximum_rank", "settings.policy.maximum_rank"])
def test_no_message_can_bring_a_policy_of_its_own(tmp_path: Path, key: str) -> None:
    asked = request(small_run())
    asked[CONFIG] = ConfigRecord({**dict(asked.config_records[CONFIG]), key: 99})
    reply = answer(site_with(tmp_path, "maximum_rank: 1"), asked, "train")
    assert code_of(reply) == RefusalReason.MALFORMED_REQUEST


@pytest.mark.parametrize("kind", KINDS)
def test_time_that_is_up_at_once_costs_no_budget(tmp_path: Path, kind: Kind) -> None:
    site = site_with(tmp_path, "maximum_wall_seconds: 1.0e-9")
    assert code_of(answer(site, request(small_run(), kind), kind)) == "time_limit"
    assert not site.ledger.path.exists()


@pytest.mark.parametrize("privacy", ["none", "dp"])
def test_training_stops_between_steps_when_time_is_up_and_what_was_reserved_counts(
    tmp_path: Path, privacy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on a second each time it is looked at: the limit falls after one step."""
    seconds = count()
    monkeypatch.setattr(
        "client.trained_update.TimeLimit", lambda limit: TimeLimit(limit, lambda: next(seconds))
    )
    run = small_run("ffa")
    if privacy == "dp":
        dp = PrivacySettings(mode="dp", unit="example", steps_per_round=4)
        run = replace(run, privacy=dp)
    site = site_with(tmp_path, "maximum_wall_seconds: 2.5")
    assert code_of(answer(site, request(run), "train")) == RefusalReason.TIME_LIMIT
    assert next(seconds) == 4
    (account,) = site.ledger.account(Budget("example", 9.0, 1e-5))
    assert (account.rounds, account.unconfirmed) == (1, 1)


@pytest.mark.parametrize("privacy", ["none", "dp"])
def test_training_stops_between_the_batches_of_one_step_when_time_is_up(
    tmp_path: Path, privacy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole round is a single step of three batches; the limit falls before the second."""
    seconds = count()
    monkeypatch.setattr(
        "client.trained_update.TimeLimit", lambda limit: TimeLimit(limit, lambda: next(seconds))
    )
    run = with_training(small_run("ffa"), gradient_accumulation=3)
    if privacy == "dp":
        run = replace(
            run,
            privacy=PrivacySettings(
                mode="dp", unit="example", steps_per_round=1, sampling_rate=1.0
            ),
        )
    site = site_with(tmp_path, "maximum_wall_seconds: 2.5")
    assert code_of(answer(site, request(run), "train")) == RefusalReason.TIME_LIMIT
    assert next(seconds) == 4


def test_a_limit_of_zero_never_ends() -> None:
    seconds = count(step=10**6)
    limit = TimeLimit(0.0, lambda: next(seconds))
    for _ in range(9):
        limit.check()
    limit = TimeLimit(1.0, lambda: next(seconds))
    with pytest.raises(Refusal) as refused:
        limit.check()
    assert refused.value.code == RefusalReason.TIME_LIMIT


def talk_with(folder: Path, **policy: Any) -> Conversation:
    """A session in which the first site has a policy and the others have none."""
    talk = Conversation(folder)
    set_policy(talk.sites.site(1), **policy)
    return talk


def set_policy(site: Site, **policy: Any) -> None:
    site.settings = replace(site.settings, policy=PolicySettings(**policy))


def test_a_site_outside_its_hours_makes_no_keys_for_a_session(tmp_path: Path) -> None:
    talk = talk_with(tmp_path, hours=(closed_now(),))
    assert refusal(talk.ask(Phase.ADVERTISE, 1)) == "outside_hours"
    assert status_of(talk.ask(Phase.ADVERTISE, 2)) == "ok"


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"maximum_rank": 1}, "policy"),
        ({"minimum_privacy": "example"}, "policy"),
        ({"consent": "ask", "consent_wait_seconds": 0.0}, "consent_pending"),
    ],
)
def test_a_masked_update_is_declined_before_it_is_trained(
    tmp_path: Path, policy: dict[str, Any], code: str
) -> None:
    talk = talk_with(tmp_path, **policy).until(Phase.MASKED_INPUT)
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1)) == code
    assert talk.sites.trainers[1].trained == 0
    assert status_of(talk.ask(Phase.MASKED_INPUT, 2)) == "ok"


def test_a_site_whose_hours_end_before_its_masked_input_trains_nothing_more(
    tmp_path: Path,
) -> None:
    talk = Conversation(tmp_path).until(Phase.MASKED_INPUT)
    set_policy(talk.sites.site(1), hours=(closed_now(),))
    assert refusal(talk.ask(Phase.MASKED_INPUT, 1)) == "outside_hours"
    assert talk.sites.trainers[1].trained == 0


def test_a_site_whose_hours_end_in_a_session_still_helps_to_open_it(tmp_path: Path) -> None:
    talk = Conversation(tmp_path).until(Phase.CONFIRM)
    set_policy(talk.sites.site(1), hours=(closed_now(),))
    for phase in (Phase.CONFIRM, Phase.UNMASK):
        talk.phase(phase)
    assert talk.session.open_sum()[1] == 3


@pytest.mark.parametrize(("metrics", "told"), [((), 0.5), (("num_examples",), 0.0)])
def test_training_time_leaves_a_session_only_where_it_may(
    tmp_path: Path, metrics: tuple[str, ...], told: float
) -> None:
    talk = talk_with(tmp_path, allowed_metrics=metrics).until(Phase.MASKED_INPUT)
    reply = talk.ask(Phase.MASKED_INPUT, 1)
    assert reply.config_records[SECURE]["train_seconds"] == told
