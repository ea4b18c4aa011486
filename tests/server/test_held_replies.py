"""What the coordinator holds in memory: one reply, or a few small ones, however many are ready."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from protocol.messages import train_request
from protocol.settings import RunSettings
from server.checkpoint import CheckpointStore
from server.coordinator import Coordinator
from server.exchange import exchange
from server.observer import LogObserver
from simulations.engines.in_process import InProcessGrid
from strategies.registry import build_strategy
from tests.little_secure_sites import SecureSites, little_secure_run
from tests.little_sites import good_reply, little_app, little_run, little_state
from tests.small_runs import RUN_ID

MIB = 2**20


class WatchedGrid(InProcessGrid):
    """Gives all replies that are asked for at once. held: how many were alive when each pull ended,
    those of earlier pulls included."""

    def __init__(self, client_app: ClientApp, num_sites: int) -> None:
        super().__init__(client_app, num_sites)
        self._given: list[weakref.ref[RecordDict]] = []
        self.pulls: list[int] = []
        self.held: list[int] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = [r for i in message_ids for r in super(WatchedGrid, self).pull_messages([i])]
        self._given += [weakref.ref(reply.content) for reply in replies]
        self.pulls.append(len(replies))
        self.held.append(self.alive())
        return replies

    def alive(self) -> int:
        return sum(content() is not None for content in self._given)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """What only the garbage collector would free counts as held: it may not run for long."""
    gc.disable()
    # pytest keeps what is logged, and so the error of a reply that was set aside, and so the reply.
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def pulled(reply_bytes: int, sites: int = 6) -> WatchedGrid:
    run = little_run()
    content = train_request(RUN_ID, 1, run, little_state(run)).to_content()
    grid = WatchedGrid(little_app(), sites)
    messages = [Message(content, node, "train") for node in range(1, sites + 1)]
    heard: list[int] = []
    exchange(grid, messages, 60.0, lambda node, _: heard.append(node), reply_bytes)
    assert heard == list(range(1, sites + 1))
    return grid


def test_large_replies_that_are_all_ready_are_in_memory_one_by_one() -> None:
    grid = pulled(reply_bytes=100 * MIB)
    assert grid.pulls == [1] * 6
    assert max(grid.held) == 1


def test_replies_of_middle_size_come_as_many_at_once_as_fit_the_room() -> None:
    grid = pulled(reply_bytes=5 * MIB)
    assert grid.pulls == [3, 3]
    assert max(grid.held) == 3


def test_small_replies_come_in_one_pull() -> None:
    assert pulled(reply_bytes=100_000).pulls == [6]
    assert pulled(reply_bytes=0).pulls == [6]


def test_every_reply_of_a_round_is_let_go_of_without_the_garbage_collector(tmp_path: Path) -> None:
    run = little_run(rounds=2)
    app = little_app(lambda node, request: good_reply(node, request) if node != 2 else RecordDict())
    grid = WatchedGrid(app, 4)
    coordinate(grid, run, tmp_path)
    assert sum(grid.pulls) == 2 * 2 * 4
    assert grid.alive() == 0


def test_so_is_every_reply_of_a_masked_round(tmp_path: Path) -> None:
    sites = SecureSites(tmp_path, 4)
    grid = WatchedGrid(sites.app(), 4)
    coordinate(grid, little_secure_run(rounds=1), tmp_path, sites)
    assert sum(grid.pulls) == (5 + 1) * 4
    assert grid.alive() == 0


def coordinate(
    grid: WatchedGrid, run: RunSettings, folder: Path, sites: SecureSites | None = None
) -> None:
    coordinator = Coordinator(
        grid,
        run,
        build_strategy(run.federation),
        CheckpointStore(folder / "checkpoints", run),
        LogObserver(),
        roster=sites.roster if sites else None,
    )
    records = coordinator.run(little_state(run), resume=False).records
    assert all(record.aggregated for record in records)
