"""From a request to an update: the site's privacy budget, training, the update's steps.

The order is the guarantee: client.admission has let the request pass, then the round's cost is
reserved in the ledger, then contracts are trained on, then the cost is confirmed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from client.personal import PersonalFactors
from client.policy.time_limit import TimeLimit
from client.privacy.accounting import Cost, noise_multiplier
from client.privacy.ledger import RoundCost
from client.privacy.units import data_units
from client.site import Site
from client.training.loop import TrainingResult, train
from client.training.private import train_private
from client.update import plain_update_steps, run_steps
from models.adapted import AdaptedModel
from protocol.adapter import AdapterState, FloatArray, factor_of, l2_norm
from protocol.files import write_atomically
from protocol.initial import derive_seed
from protocol.messages import Request
from protocol.methods import personal_factors, trained_factors, uploaded_factors
from protocol.settings import RunSettings

log = logging.getLogger("foedus.client")


@dataclass(frozen=True)
class TrainedUpdate:
    """What may leave after training: clipped deltas and the agreed numbers."""

    update: Mapping[str, FloatArray]
    metrics: Mapping[str, float]


def trained_update(
    site: Site, adapted: AdaptedModel, request: Request, state: AdapterState
) -> TrainedUpdate:
    """Train on the site's contracts from `state`, in the way the run says and the site allows.

    Errors: Refusal where budget, ledger, data or the site's time limit decline, or training
    diverges.
    """
    run, round_ = request.settings, request.round
    method = run.federation.method
    limit = TimeLimit(site.settings.policy.maximum_wall_seconds)
    adapted.load(state.tensors)
    if run.privacy.enabled:
        result = _train_privately(site, adapted, request, limit)
    else:
        result = _train_plainly(site, adapted, request, limit)
    kept = personal_factors(method)
    if kept:
        PersonalFactors(site.state_folder, request.run_id).save(round_, adapted.tensors(kept))
    update = clipped_update(adapted, run, state, round_)
    log.info(
        "Round %d: trained %d steps on %d examples, loss %.3f; update norm %.3f",
        round_,
        result.num_steps,
        result.num_examples,
        result.train_loss,
        l2_norm(update),
    )
    return TrainedUpdate(update, training_metrics(run, result))


def training_metrics(run: RunSettings, result: TrainingResult) -> dict[str, float]:
    """The numbers that may be told of a training: of a private one none that the data moves."""
    if run.privacy.enabled:
        return {"num_steps": float(result.num_steps)}
    return {
        "num_examples": float(result.num_examples),
        "num_steps": float(result.num_steps),
        "train_loss": result.train_loss,
        "train_seconds": result.train_seconds,
    }


def clipped_update(
    adapted: AdaptedModel, run: RunSettings, state: AdapterState, round_: int
) -> Mapping[str, FloatArray]:
    """What a round's training from `state` adds to the uploaded factors, clipped to the bound.

    Errors: Refusal(TRAINING_DIVERGED) where it is not finite.
    """
    uploaded = uploaded_factors(run.federation.method, round_)
    received = {n: t for n, t in state.tensors.items() if factor_of(n) in uploaded}
    steps = plain_update_steps(received, run.federation.update_norm_bound)
    return run_steps(steps, adapted.tensors(uploaded))


def round_sigma(run: RunSettings) -> float:
    """The noise multiplier of every step of a private run: its target over all planned steps."""
    privacy = run.privacy
    steps = run.federation.rounds * privacy.steps_per_round
    return noise_multiplier(privacy.target_epsilon, privacy.delta, privacy.sampling_rate, steps)


def _train_plainly(
    site: Site, adapted: AdaptedModel, request: Request, limit: TimeLimit
) -> TrainingResult:
    run, round_ = request.settings, request.round
    units = data_units(site.examples(run.task.kind).train, "none")
    cost = RoundCost(request.run_id, round_, "none", Cost(1.0, 0.0, 1), run.privacy.delta)
    limit.check()
    reservation = site.ledger.reserve(cost, units, site.settings.policy.budget)
    result = train(
        adapted,
        run,
        site.tokenised(run, "train"),
        trained_factors(run.federation.method, round_),
        round_,
        derive_seed(run.federation.seed, "train", site.settings.name, round_),
        on_step=_between_steps(site.settings.name, limit),
        before_batch=limit.check,
    )
    site.ledger.confirm(reservation)
    return result


def _train_privately(
    site: Site, adapted: AdaptedModel, request: Request, limit: TimeLimit
) -> TrainingResult:
    run, round_, privacy = request.settings, request.round, request.settings.privacy
    examples = site.tokenised(run, "train")
    units = data_units(site.examples(run.task.kind).train, privacy.unit)
    if units.num_left_out:
        log.warning("%d examples have no matter and are left out.", units.num_left_out)
    sigma = round_sigma(run)
    cost = Cost(privacy.sampling_rate, sigma, privacy.steps_per_round)
    limit.check()
    reservation = site.ledger.reserve(
        RoundCost(
            request.run_id, round_, privacy.unit, cost, privacy.delta, privacy.target_epsilon
        ),
        units,
        site.settings.policy.budget,
    )
    clip = _ClipNorm(site, request.run_id) if privacy.adaptive_clipping else None
    result = train_private(
        adapted,
        run,
        examples,
        trained_factors(run.federation.method, round_),
        round_,
        sigma,
        clip_norm=clip.before(round_) if clip else None,
        on_step=_between_steps(site.settings.name, limit),
        before_batch=limit.check,
    )
    site.ledger.confirm(reservation)
    if clip:
        clip.save(round_, result.clip_norm)
    return result.training


class _ClipNorm:
    """Where a run's adaptive clip norm stands after each round; every value is already private."""

    def __init__(self, site: Site, run_id: str) -> None:
        self._path = site.state_folder / "clip_norm" / f"{run_id}.json"

    def before(self, round_: int) -> float | None:
        """The value after the newest round before this one."""
        known = {int(key): value for key, value in self._read().items() if int(key) < round_}
        return known[max(known)] if known else None

    def save(self, round_: int, clip_norm: float) -> None:
        """Keep the value after round_."""
        values = {**self._read(), str(round_): clip_norm}
        write_atomically(self._path, json.dumps(values).encode(), mode=0o600)

    def _read(self) -> dict[str, float]:
        if not self._path.exists():
            return {}
        values: dict[str, float] = json.loads(self._path.read_text(encoding="utf-8"))
        return values


def _between_steps(site_name: str, limit: TimeLimit) -> Callable[[int, int], None]:
    def on_step(done: int, planned: int) -> None:
        if done < planned:
            limit.check()
        if done == planned or done % 50 == 0:
            log.debug("%s: step %d of %d", site_name, done, planned)

    return on_step
