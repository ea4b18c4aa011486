"""Checkpoints: what is read is what was written, to the bit, or the one before it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import FoedusError
from protocol.settings import RunSettings
from server.checkpoint import Checkpoint, CheckpointStore, settings_digest
from server.records import RoundRecord
from tests.little_sites import little_run, little_state
from tests.small_runs import RUN_ID, with_federation, with_training
from tests.strategies.adapters import SMALL, adapter

RUN = little_run(rounds=9, server_optimizer="adam")


def record(round_: int) -> RoundRecord:
    return RoundRecord(
        round=round_,
        seconds=1.25,
        cohort=("a", "b", "c"),
        admitted=("a",),
        silent=("c",),
        rejected=({"site": "b", "reason": "not_finite", "detail": ""},),
        aggregated=True,
        bytes_up=10,
        bytes_down=20,
        bytes_evaluation=5,
        train_seconds=0.1,
        aggregate_seconds=0.2,
        metrics={"train_loss": 1 / 3},
        site_metrics={"a": {"accuracy": 0.1}},
    )


def checkpoint(round_: int) -> Checkpoint:
    rng = np.random.default_rng(round_)
    optimizer = {
        "first/m.x": rng.normal(size=(3, 5)),
        "second/m.x": rng.normal(size=(3, 5)),
        "step": np.array(round_, dtype=np.int64),
    }
    state = adapter("fedsvd", SMALL, round_)
    records = tuple(record(r) for r in range(1, round_ + 1))
    return Checkpoint(RUN_ID, round_, state, optimizer, records)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Three checkpoints of a run."""
    made = CheckpointStore(tmp_path, RUN)
    for round_ in (1, 2, 3):
        made.save(checkpoint(round_))
    return made


def newest(store: CheckpointStore) -> Checkpoint:
    loaded = store.load_newest()
    assert loaded is not None
    return loaded


def path(store: CheckpointStore, round_: int) -> Path:
    return store.folder / f"round-{round_:05d}.checkpoint"


def test_what_is_read_is_what_was_written_to_the_bit(store: CheckpointStore) -> None:
    got, expected = newest(store), checkpoint(3)
    assert (got.run_id, got.round, got.records) == (RUN_ID, 3, expected.records)
    assert got.state.digest() == expected.state.digest()
    for fact in ("rank", "alpha", "base_digest", "method"):
        assert getattr(got.state, fact) == getattr(expected.state, fact)
    assert got.optimizer.keys() == expected.optimizer.keys()
    for name, array in expected.optimizer.items():
        assert got.optimizer[name].dtype == array.dtype
        np.testing.assert_array_equal(got.optimizer[name], array)


def test_no_folder_and_no_file_is_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", RUN).load_newest() is None


def test_only_the_newest_three_are_kept(store: CheckpointStore) -> None:
    for round_ in (4, 5):
        store.save(checkpoint(round_))
    assert sorted(p.name for p in store.folder.iterdir()) == [
        f"round-{round_:05d}.checkpoint" for round_ in (3, 4, 5)
    ]


@pytest.mark.parametrize("where", [0, 5, 200, -40, -1])
def test_a_flipped_bit_anywhere_falls_back_to_the_round_before(
    store: CheckpointStore, where: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(path(store, 3).read_bytes())
    data[where] ^= 1
    path(store, 3).write_bytes(data)
    assert newest(store).round == 2
    assert "round-00003.checkpoint is damaged" in caplog.text


@pytest.mark.parametrize("kept", [0, 10, 31, 32, 500])
def test_a_file_cut_short_falls_back_to_the_round_before(store: CheckpointStore, kept: int) -> None:
    path(store, 3).write_bytes(path(store, 3).read_bytes()[:kept])
    assert newest(store).round == 2


def test_where_all_are_damaged_the_run_does_not_start_anew_in_silence(
    store: CheckpointStore,
) -> None:
    for round_ in (1, 2, 3):
        path(store, round_).write_bytes(b"damaged")
    with pytest.raises(FoedusError, match=r"got 3 damaged ones.*without resume"):
        store.load_newest()


@pytest.mark.parametrize(
    "other",
    [
        with_federation(RUN, seed=99),
        with_federation(RUN, rounds=10),
        with_training(RUN, learning_rate=1e-4),
        little_run("ffa", rounds=9, server_optimizer="adam"),
    ],
    ids=["seed", "rounds", "training", "method"],
)
def test_a_checkpoint_of_other_settings_is_refused_and_not_skipped(
    store: CheckpointStore, other: RunSettings
) -> None:
    with pytest.raises(FoedusError, match="belongs to a run with other settings"):
        CheckpointStore(store.folder, other).load_newest()


def test_equal_settings_have_equal_digests() -> None:
    again = little_run(rounds=9, server_optimizer="adam")
    assert settings_digest(again) == settings_digest(RUN)
    assert settings_digest(with_federation(RUN, seed=99)) != settings_digest(RUN)


def test_a_write_that_fails_leaves_the_older_checkpoints(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space"):
            store.save(checkpoint(4))
    assert newest(store).round == 3
    assert len(list(store.folder.iterdir())) == 3


def test_a_file_that_a_killed_write_left_behind_is_not_read(store: CheckpointStore) -> None:
    (store.folder / ".round-00004.checkpoint.x1y2").write_bytes(b"half")
    assert newest(store).round == 3


def test_an_adapter_of_round_0_can_be_kept_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, RUN)
    start = Checkpoint(RUN_ID, 0, little_state(RUN), {}, ())
    store.save(start)
    assert newest(store).state.digest() == start.state.digest()
