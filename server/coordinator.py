"""The round loop: ask a cohort, fold replies as they arrive, close the round, keep a checkpoint."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from protocol.adapter import AdapterState, Layout, layout_size, subset_layout
from protocol.consortium.roster import Roster
from protocol.errors import FoedusError
from protocol.messages import ExpectedReply, Reply, Request, evaluate_request, train_request
from protocol.methods import downloaded_factors, uploaded_factors
from protocol.settings import FederationSettings, RunSettings
from server.admission import SetAside
from server.checkpoint import Checkpoint, CheckpointStore
from server.collected import Collected
from server.observer import Observer
from server.open_round import OpenRound
from server.receipts.received import Received, Unrecorded
from server.records import RoundRecord
from server.secure_aggregation.attempts import AttemptCounter
from server.secure_aggregation.round import SecureRound
from strategies.base import LoraStrategy
from strategies.flower_messages import sample_cohort
from strategies.weighting import update_weight

log = logging.getLogger("foedus.server")

_BYTES_PER_COORDINATE = 4
_ATTEMPTS_FILE = "secure_attempts.json"

CentralEvaluation = Callable[[AdapterState], Mapping[str, float]]


@dataclass(frozen=True)
class RunResult:
    """The final adapter and the history of how it came about."""

    run_id: str
    state: AdapterState
    records: tuple[RoundRecord, ...]


class Coordinator:
    """Runs one federation over a Flower Grid.

    site_names: node id -> a name for records; other nodes are shown by their id. roster: the
    members, needed for secure aggregation. received: hears of every reply.
    """

    def __init__(
        self,
        grid: Grid,
        settings: RunSettings,
        strategy: LoraStrategy,
        checkpoints: CheckpointStore,
        observer: Observer,
        central_evaluation: CentralEvaluation | None = None,
        site_names: Mapping[int, str] | None = None,
        roster: Roster | None = None,
        received: Received | None = None,
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._strategy = strategy
        self._checkpoints = checkpoints
        self._observer = observer
        self._central_evaluation = central_evaluation
        self._site_names = site_names or {}
        self._roster = roster
        self._received = received or Unrecorded()

    def run(self, initial: AdapterState, *, resume: bool) -> RunResult:
        """All rounds, from the newest checkpoint if `resume`, else from `initial`.

        Errors: FoedusError where a new run would overwrite another run's checkpoints. A round
        without enough good replies is recorded and leaves the adapter as it was.
        """
        progress = self._start(initial, resume)
        for round_ in range(progress.round + 1, self._settings.federation.rounds + 1):
            state, record = self._round(progress.run_id, round_, progress.state)
            progress = replace(
                progress,
                round=round_,
                state=state,
                optimizer=self._strategy.optimizer_state(),
                records=(*progress.records, record),
            )
            self._observer.checkpoint_started(round_)
            self._checkpoints.save(progress)
            self._observer.round_finished(record)
        return RunResult(progress.run_id, progress.state, progress.records)

    def _start(self, initial: AdapterState, resume: bool) -> Checkpoint:
        if not resume:
            self._checkpoints.refuse_to_overwrite()
        newest = self._checkpoints.load_newest()
        if newest is None:
            state = self._strategy.initial_state(initial)
            started = Checkpoint(secrets.token_hex(16), 0, state, {}, ())
            # Kept before anybody is asked: a run that dies in its first round goes on under the
            # same id, so that no site trains, or spends its budget, for that round twice.
            self._checkpoints.save(started)
            return started
        log.info("Resuming run %s after round %d.", newest.run_id, newest.round)
        self._strategy.load_optimizer_state(newest.optimizer)
        return newest

    def _round(
        self, run_id: str, round_: int, state: AdapterState
    ) -> tuple[AdapterState, RoundRecord]:
        federation = self._settings.federation
        started = time.monotonic()
        cohort = sample_cohort(self._grid, federation, round_)
        self._observer.round_started(round_, federation.rounds, len(cohort))
        self._strategy.begin_round(round_, state)
        request = train_request(run_id, round_, self._settings, self._download(state))
        secure = self._settings.secure_aggregation.enabled
        collect = self._collect_securely if secure else self._collect
        collected = collect(request, cohort, state)
        began = time.monotonic()
        enough = len(collected.admitted) >= federation.quorum
        if enough:
            state = self._strategy.finish_round()
        else:
            log.warning(
                "Round %d: %d good replies of %d needed; the adapter stays as it was.",
                round_, len(collected.admitted), federation.quorum,
            )  # fmt: skip
        aggregate_seconds = collected.fold_seconds + time.monotonic() - began
        means, per_site, num_evaluating = self._evaluate(run_id, round_, state, collected.silent)
        bytes_per_download = _BYTES_PER_COORDINATE * layout_size(request.state.layout)
        record = RoundRecord(
            round=round_,
            seconds=time.monotonic() - started,
            cohort=self._names(collected.asked),
            admitted=self._names(collected.admitted),
            silent=self._names(collected.silent),
            rejected=self._rejected(collected.set_aside),
            aggregated=enough,
            bytes_up=collected.bytes_up,
            bytes_down=collected.bytes_down,
            bytes_evaluation=bytes_per_download * num_evaluating,
            train_seconds=sum(m.get("train_seconds", 0.0) for m in collected.metrics.values()),
            aggregate_seconds=aggregate_seconds,
            metrics={**_means(collected.metrics, federation), **means},
            site_metrics=per_site,
            secure_attempts=collected.secure_attempts,
        )
        return state, record

    def _collect(self, request: Request, cohort: list[int], state: AdapterState) -> Collected:
        """Fold each site's update as it arrives."""
        uploaded = self._uploaded(request, state)
        private = self._settings.privacy.enabled
        expected = ExpectedReply("train", request.run_id, request.round, uploaded, private)
        bytes_per_upload = _BYTES_PER_COORDINATE * layout_size(uploaded)

        def fold(node_id: int, reply: Reply) -> None:
            self._strategy.fold(state.replace_tensors(reply.update), reply.num_examples)

        outcome = self._open_round(request, expected, bytes_per_upload).run(cohort, fold)
        bytes_per_download = _BYTES_PER_COORDINATE * layout_size(request.state.layout)
        return Collected(
            asked=outcome.asked,
            admitted=outcome.admitted,
            silent=outcome.silent,
            set_aside=outcome.set_aside,
            metrics=outcome.metrics,
            bytes_up=bytes_per_upload * len(outcome.admitted),
            bytes_down=bytes_per_download * len(cohort),
            fold_seconds=outcome.handling_seconds,
        )

    def _collect_securely(
        self, request: Request, cohort: list[int], state: AdapterState
    ) -> Collected:
        """Fold the mean of the updates, which alone becomes known here."""
        outcome = SecureRound(
            self._grid,
            request,
            self._uploaded(request, state),
            self._expect_roster(),
            AttemptCounter(self._checkpoints.folder / _ATTEMPTS_FILE),
            self._observer,
            self._received,
        ).run(cohort)
        began = time.monotonic()
        if outcome.mean is not None:
            # Weighting has happened in the sum: what is folded here is the one mean of them all.
            self._strategy.fold(state.replace_tensors(outcome.mean), 1.0)
        seconds = outcome.train_seconds
        return Collected(
            asked=outcome.asked,
            admitted=outcome.survivors,
            silent=tuple(sorted(outcome.silent)),
            set_aside=tuple(outcome.set_aside),
            metrics={node: {"train_seconds": seconds[node]} for node in outcome.survivors},
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
            fold_seconds=outcome.server_seconds + time.monotonic() - began,
            secure_attempts=outcome.attempts,
        )

    def _uploaded(self, request: Request, state: AdapterState) -> Layout:
        """The layout of the update that a site sends in this round."""
        method = self._settings.federation.method
        return subset_layout(state.layout, uploaded_factors(method, request.round))

    def _expect_roster(self) -> Roster:
        if self._roster is None:
            raise FoedusError(
                "Expected a roster of members with secure_aggregation.enabled=true, got none. "
                "Set coordinator.roster to the file that every site holds too."
            )
        return self._roster

    def _evaluate(
        self, run_id: str, round_: int, state: AdapterState, silent: tuple[int, ...]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]], int]:
        """(means, per site, sites asked): at the sites on their held-out data, and on the public
        test set."""
        federation = self._settings.federation
        every = federation.evaluate_every
        if round_ != federation.rounds and (every == 0 or round_ % every != 0):
            return {}, {}, 0
        # A site that let the training deadline pass would make this one pass too. Scores on a
        # site's own contracts carry no noise: in a private run they are not asked for.
        nodes = sorted(set(self._grid.get_node_ids()) - set(silent))
        if self._settings.privacy.enabled:
            nodes = []
        expected = ExpectedReply("evaluate", run_id, round_, {})
        request = evaluate_request(run_id, round_, self._settings, self._download(state))
        # A reply is its scores: beyond them there is nothing to use.
        outcome = self._open_round(request, expected).run(nodes, lambda node_id, reply: None)
        replies = outcome.metrics
        means = {f"sites_{n}": value for n, value in _means(replies, federation).items()}
        if self._central_evaluation is not None:
            central = self._central_evaluation(state)
            means |= {f"central_{name}": float(value) for name, value in central.items()}
        named = {self._name(node): dict(metrics) for node, metrics in sorted(replies.items())}
        return means, named, len(nodes)

    def _open_round(
        self, request: Request, expected: ExpectedReply, reply_bytes: int = 0
    ) -> OpenRound:
        return OpenRound(
            self._grid,
            request,
            expected,
            self._settings.federation,
            self._observer,
            self._received,
            reply_bytes,
        )

    def _download(self, state: AdapterState) -> AdapterState:
        return state.subset(downloaded_factors(self._settings.federation.method))

    def _rejected(self, set_aside: Sequence[SetAside]) -> tuple[dict[str, str], ...]:
        return tuple(
            {"site": self._name(s.node_id), "reason": s.reason.value, "detail": s.detail}
            for s in set_aside
        )

    def _names(self, nodes: tuple[int, ...] | list[int]) -> tuple[str, ...]:
        return tuple(self._name(node) for node in nodes)

    def _name(self, node_id: int) -> str:
        return self._site_names.get(node_id, str(node_id))


def _means(
    metrics: Mapping[int, Mapping[str, float]], federation: FederationSettings
) -> dict[str, float]:
    """Means in which a site counts as its update does, at most federation.weight_cap, because
    num_examples is its own word; num_examples itself is summed."""
    told = {node: m.get("num_examples", 1.0) for node, m in metrics.items()}
    weights = {
        node: update_weight(count, federation.weighting, federation.weight_cap)
        for node, count in told.items()
    }
    names = {name for m in metrics.values() for name in m} - {"num_examples", "train_seconds"}
    means: dict[str, float] = {}
    if any("num_examples" in m for m in metrics.values()):
        means["num_examples"] = sum(told.values())
    for name in sorted(names):
        having = {node: m[name] for node, m in metrics.items() if name in m}
        total = sum(weights[node] for node in having)
        means[name] = sum(value * weights[node] for node, value in having.items()) / total
    return means
