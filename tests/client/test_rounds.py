"""A site's answer to any request: guarded, complete, and never more than was agreed."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import NoReply, make_app, site_from_node_config
from client.personal import PersonalFactors
from client.rounds import answer, assemble
from client.secure_aggregation.trainer import ModelTrainer
from client.site import Site
from models.adapted import adapted_model
from protocol.adapter import AdapterState, factor_of, l2_norm, subset_layout
from protocol.errors import Refusal
from protocol.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    ExpectedReply,
    Kind,
    Reply,
    evaluate_request,
    train_request,
)
from protocol.methods import METHODS, uploaded_factors
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings
from tests.small_runs import (
    RUN_ID,
    clause_records,
    downloaded,
    open_site,
    small_run,
    start_state,
    with_federation,
    with_training,
    write_records,
)

OTHER_RUN = "f" * 32


def ask(
    site: Site,
    run: RunSettings,
    kind: Kind = "train",
    round_: int = 1,
    state: AdapterState | None = None,
    run_id: str = RUN_ID,
) -> RecordDict:
    """The site's answer to a well-formed request."""
    make = train_request if kind == "train" else evaluate_request
    sent = downloaded(run, start_state(run) if state is None else state)
    return answer(site, make(run_id, round_, run, sent).to_content(), kind)


def parsed(run: RunSettings, content: RecordDict, kind: Kind = "train", round_: int = 1) -> Reply:
    """What admission would read; raises where it would set the reply aside."""
    uploaded = uploaded_factors(run.federation.method, round_)
    layout = subset_layout(adapted_model(run).layout, uploaded) if kind == "train" else {}
    return ExpectedReply(kind, RUN_ID, round_, layout).parse(content)


def refusal(content: RecordDict) -> str:
    """The code of a refusal, which must hold nothing else."""
    assert set(content) == {CONFIG, METRICS} and dict(content[METRICS]) == {}
    return str(content.config_records[CONFIG]["status"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("round_", [1, 2])
def test_a_site_sends_the_method_s_factors_and_numbers_only(
    tmp_path: Path, method: str, round_: int
) -> None:
    run = small_run(method)
    site = open_site(tmp_path)
    reply = parsed(run, ask(site, run, round_=round_), round_=round_)
    assert {factor_of(name) for name in reply.update} == uploaded_factors(method, round_)
    assert l2_norm(reply.update) > 0
    assert (reply.metrics["num_examples"], reply.metrics["num_steps"]) == (12, 3)
    assert [receipt.status for receipt in site.receipts.verify()] == ["reserved", "ok"]


@pytest.mark.parametrize("method", METHODS)
def test_a_site_evaluates_what_it_is_sent(tmp_path: Path, method: str) -> None:
    run = small_run(method)
    reply = parsed(run, ask(open_site(tmp_path), run, "evaluate"), "evaluate")
    assert not reply.update
    assert reply.metrics["num_examples"] == 6
    assert reply.metrics["loss"] == pytest.approx(np.log(3), rel=1e-5)


def test_the_same_request_gives_the_same_bits(tmp_path: Path) -> None:
    run = small_run()
    first = parsed(run, ask(open_site(tmp_path / "a"), run))
    ask(open_site(tmp_path / "b", site=2), run)  # What the process did in between is no matter.
    again = parsed(run, ask(open_site(tmp_path / "a"), run))
    for name, tensor in first.update.items():
        np.testing.assert_array_equal(again.update[name], tensor)


def test_the_update_is_clipped_to_the_agreed_norm(tmp_path: Path) -> None:
    run = small_run()
    site = open_site(tmp_path)
    free = parsed(run, ask(site, run)).update
    tight = with_federation(run, update_norm_bound=0.01)
    clipped = parsed(tight, ask(site, tight)).update
    assert l2_norm(free) > 0.02
    assert l2_norm(clipped) == pytest.approx(0.01, rel=1e-4) and l2_norm(clipped) <= 0.01
    scale = 0.01 / l2_norm(free)
    for name, tensor in free.items():
        np.testing.assert_allclose(clipped[name], tensor * scale, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_site_assembles_is_what_the_coordinator_holds(tmp_path: Path, method: str) -> None:
    """FFA's A travels in neither direction and yet is the same bits at both."""
    run = small_run(method)
    state = start_state(run)
    sent = downloaded(run, state)
    request = train_request(RUN_ID, 1, run, sent)
    assembled = assemble(open_site(tmp_path), adapted_model(run), request)
    assert ({factor_of(name) for name in sent.tensors} == {"A", "B", "head"}) == (
        method not in {"ffa", "fedsa"}
    )
    assert assembled.digest() == state.digest()


def test_another_seed_is_another_ffa_adapter(tmp_path: Path) -> None:
    run = small_run("ffa")
    sent = downloaded(run, start_state(run))
    other = train_request(RUN_ID, 1, with_federation(run, seed=4), sent)
    assembled = assemble(open_site(tmp_path), adapted_model(run), other)
    assert assembled.digest() != start_state(run).digest()


# --- FedSA: B stays ---


def test_a_personal_factor_never_leaves_and_is_kept_by_run_and_round(tmp_path: Path) -> None:
    run = small_run("fedsa")
    site = open_site(tmp_path)
    reply = parsed(run, ask(site, run))
    assert not any(factor_of(name) == "B" for name in reply.update)
    kept = PersonalFactors(site.state_folder, RUN_ID).after(1)
    assert {factor_of(name) for name in kept} == {"B"} and l2_norm(kept) > 0
    (file,) = (site.state_folder / "personal" / RUN_ID).iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PersonalFactors(site.state_folder, RUN_ID).after(0) == {}
    assert PersonalFactors(site.state_folder, OTHER_RUN).after(1) == {}


def test_the_clip_norm_of_a_private_run_is_kept_for_the_owner_alone(tmp_path: Path) -> None:
    privacy = PrivacySettings(
        mode="dp", unit="example", steps_per_round=1, adaptive_clipping=True, target_epsilon=50.0
    )
    run, site = replace(small_run(), privacy=privacy), open_site(tmp_path)
    assert ask(site, run).config_records[CONFIG]["status"] == "ok"
    file = site.state_folder / "clip_norm" / f"{RUN_ID}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_personal_factor_goes_on_from_the_round_before_also_in_a_new_process(
    tmp_path: Path,
) -> None:
    run = small_run("fedsa", rounds=3)
    site = open_site(tmp_path)
    ask(site, run, round_=1)
    first = PersonalFactors(site.state_folder, RUN_ID).after(1)
    request = train_request(RUN_ID, 2, run, downloaded(run, start_state(run)))
    reopened = Site.from_file(tmp_path / "site.yaml")
    assembled = assemble(reopened, adapted_model(run), request)
    for name, tensor in first.items():
        np.testing.assert_array_equal(assembled.tensors[name], tensor)


def test_a_site_without_the_factors_it_should_have_kept_says_so_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run("fedsa", rounds=3)
    site = open_site(tmp_path)
    for round_ in (1, 2):
        ask(site, run, round_=round_)
    assert "restore its state folder" not in caplog.text
    shutil.rmtree(PersonalFactors(site.state_folder, RUN_ID).folder)
    assert parsed(run, ask(site, run, round_=3), round_=3).status == "ok"
    assert "up to round 2" in caplog.text and "restore its state folder" in caplog.text


def test_a_repeated_round_starts_from_what_the_site_held_then(tmp_path: Path) -> None:
    """A coordinator that was killed asks for round 2 again; the site has done it already."""
    run = small_run("fedsa", rounds=3)
    site = open_site(tmp_path)
    ask(site, run, round_=1)
    second = parsed(run, ask(site, run, round_=2), round_=2)
    ask(site, run, round_=3)
    again = parsed(run, ask(site, run, round_=2), round_=2)
    for name, tensor in second.update.items():
        np.testing.assert_array_equal(again.update[name], tensor)


def test_an_evaluation_reads_the_personal_factor_of_its_own_round(tmp_path: Path) -> None:
    run = small_run("fedsa", training={"learning_rate": 0.05})
    site = open_site(tmp_path)
    rng = np.random.default_rng(0)
    head = {
        n: rng.normal(size=t.shape).astype(np.float32)
        for n, t in start_state(run).tensors.items()
        if factor_of(n) == "head"
    }
    state = start_state(run)
    state = state.replace_tensors({**state.tensors, **head})
    before = parsed(run, ask(site, run, "evaluate", 1, state), "evaluate").metrics["loss"]
    ask(site, run, "train", 1, state)
    after = parsed(run, ask(site, run, "evaluate", 1, state), "evaluate").metrics["loss"]
    assert after != before


# --- Refusals ---


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    run = small_run()
    state = replace(start_state(run), base_digest="0" * 64)
    assert refusal(ask(open_site(tmp_path), run, state=state)) == RefusalReason.BASE_MODEL_DIFFERS


def foreign_folder(folder: Path, config: str) -> str:
    """A model's folder with other weights and a config that raises where anything loads it."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"other weights")
    (folder / "config.json").write_text(config)
    return str(folder)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("name", ["folder", "org/of-another", "../folder\nINFO: forged"])
def test_a_model_that_is_not_the_agreed_one_is_declined_before_any_of_it_is_loaded(
    tmp_path: Path, name: str, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """The digest is the agreed one; what it is said to be the digest of is the coordinator's."""
    agreed = small_run()
    model_id = foreign_folder(tmp_path / name, "{") if name == "folder" else name
    asked = replace(agreed, model=replace(agreed.model, id=model_id))
    sent = downloaded(agreed, start_state(agreed))
    make = train_request if kind == "train" else evaluate_request
    before = adapted_model(agreed)
    reply = answer(open_site(tmp_path), make(RUN_ID, 1, asked, sent).to_content(), kind)
    assert refusal(reply) == RefusalReason.BASE_MODEL_DIFFERS
    assert adapted_model(agreed) is before  # One model is kept: none came in its place.
    assert "Expected base model" in caplog.text or "is no embedded name" in caplog.text
    assert "\nINFO: forged" not in caplog.text


def test_a_masked_run_too_loads_no_other_model(tmp_path: Path) -> None:
    agreed = small_run()
    folder = foreign_folder(tmp_path / "folder", "{")
    asked = replace(agreed, model=replace(agreed.model, id=folder))
    request = train_request(RUN_ID, 1, asked, downloaded(agreed, start_state(agreed)))
    trainer = ModelTrainer(open_site(tmp_path))
    for step in (trainer.uploaded, trainer.train):
        with pytest.raises(Refusal) as refused:
            step(request)
        assert refused.value.code == RefusalReason.BASE_MODEL_DIFFERS


def test_a_layout_that_is_not_the_site_s_own_is_refused(tmp_path: Path) -> None:
    run = small_run()
    state = start_state(run)
    site = open_site(tmp_path)
    without_a = state.subset({"B", "head"})
    assert refusal(ask(site, run, state=without_a)) == RefusalReason.WRONG_LAYOUT
    extra = state.replace_tensors({**state.tensors, "more": np.ones(3, np.float32)})
    assert refusal(ask(site, run, state=extra)) == RefusalReason.WRONG_LAYOUT


def test_labels_nobody_agreed_on_are_refused_without_being_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [*clause_records(1), {"text": "Force majeure.", "label": "acme-only"}]
    content = ask(open_site(tmp_path, 1, records), small_run())
    assert refusal(content) == RefusalReason.UNKNOWN_LABELS
    assert "acme-only" not in repr(content)
    assert "acme-only" in caplog.text  # The site's own people can act on it.


def test_a_site_without_examples_says_so(tmp_path: Path) -> None:
    site = open_site(tmp_path, 1, [{"text": "A clause without a label."}])
    assert refusal(ask(site, small_run())) == RefusalReason.NO_DATA
    write_records(tmp_path / "held_out", [])
    again = Site.from_file(tmp_path / "site.yaml")
    assert refusal(ask(again, small_run(), "evaluate")) == RefusalReason.NO_DATA


def test_a_training_that_diverges_is_refused_by_its_code(tmp_path: Path) -> None:
    run = with_training(
        small_run(), learning_rate=1e25, head_learning_rate=1e25, local_epochs=3, max_grad_norm=0.0
    )
    assert refusal(ask(open_site(tmp_path), run)) == RefusalReason.TRAINING_DIVERGED


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"anything": ConfigRecord({"a": 1})}),
        RecordDict({ARRAYS: ArrayRecord({}), CONFIG: ConfigRecord({"version": 1})}),
    ],
)
def test_a_request_that_is_none_is_refused(tmp_path: Path, content: RecordDict) -> None:
    site = open_site(tmp_path)
    reply = answer(site, content, "train")
    assert refusal(reply) in {RefusalReason.MALFORMED_REQUEST, RefusalReason.WRONG_VERSION}
    assert reply.config_records[CONFIG]["run_id"] == "0" * 32
    assert len(list(site.receipts.verify())) == 1


def test_a_request_of_any_size_leaves_a_short_trace_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = train_request(
        RUN_ID, 1, small_run(), downloaded(small_run(), start_state(small_run()))
    )
    content = request.to_content()
    content.config_records[CONFIG]["settings.task.kind"] = "x" * 10**6
    for number in range(10_000):
        content.config_records[CONFIG][f"settings.{number}" + "y" * 60] = 1
    with caplog.at_level(logging.INFO, "foedus.client"):
        reply = answer(open_site(tmp_path), content, "train")
    assert refusal(reply) == RefusalReason.MALFORMED_REQUEST
    assert 0 < len(caplog.text) < 20_000


def test_a_model_the_site_does_not_have_is_a_code_to_the_server_and_advice_to_the_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run()
    content = train_request(RUN_ID, 1, run, downloaded(run, start_state(run))).to_content()
    content.config_records[CONFIG]["settings.model.id"] = "nobody/no-such-model"
    reply = answer(open_site(tmp_path), content, "train")
    assert refusal(reply) == RefusalReason.BASE_MODEL_DIFFERS
    assert "Name a folder, or fetch it" in caplog.text


def test_an_internal_error_travels_as_a_code_and_its_message_is_not_even_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "Globex acquires Initech for EUR 12,345,678"
    site = open_site(tmp_path, 1, [*clause_records(1), {"text": secret, "label": "payment"}])

    def fail(*_: Any) -> Any:
        raise ValueError(f"cannot tokenise {site.examples('classify').train[-1]!r}")

    monkeypatch.setattr(site, "tokenised", fail)
    with caplog.at_level(logging.DEBUG):
        content = ask(site, small_run())
    assert refusal(content) == RefusalReason.INTERNAL
    assert "Globex" not in repr(content)
    assert "Globex" not in caplog.text and "ValueError at test_rounds.py" in caplog.text
    assert "Globex" not in site.receipts.path.read_text()


# --- The ClientApp around it ---


def message(kind: str, run: RunSettings) -> Message:
    request = train_request(RUN_ID, 1, run, downloaded(run, start_state(run)))
    return Message(request.to_content(), 7, kind)


def context(**node_config: Any) -> Context:
    return Context(1, 7, node_config, RecordDict({}), {})


def test_the_client_app_answers_for_the_site_of_its_node(tmp_path: Path) -> None:
    run = small_run()
    open_site(tmp_path)
    app = make_app(site_from_node_config)
    node = context(**{"site-config": str(tmp_path / "site.yaml")})
    reply = app(message("train", run), node)
    assert reply.has_content() and parsed(run, reply.content).update


@pytest.mark.parametrize("node_config", [{}, {"site-config": "/no/such/site.yaml"}])
def test_a_node_without_a_site_refuses_and_keeps_its_paths(node_config: dict[str, str]) -> None:
    reply = make_app(site_from_node_config)(message("train", small_run()), context(**node_config))
    assert refusal(reply.content) == RefusalReason.INTERNAL
    assert "/no/such" not in repr(reply.content)


def test_where_no_receipt_can_be_written_flower_hears_nothing_of_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = open_site(tmp_path)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(NoReply) as caught:
        make_app(lambda _: site)(message("train", small_run()), context())
    assert str(caught.value) == ""
    assert "OSError at" in caplog.text and "(No space left on device)" in caplog.text
