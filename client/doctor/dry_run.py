"""One step of training on the site's own contracts, and exactly what would leave by it.

Nothing is sent and nothing written: no ledger, no receipt, no factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from flwr.app import RecordDict

from client.egress import EgressGuard
from client.policy.run_checks import check_run_policy, demanded_unit
from client.rounds import assemble
from client.site import Site
from client.trained_update import clipped_update, round_sigma, training_metrics
from client.training.loop import TrainingResult, train
from client.training.private import train_private
from conf.composed import composed
from models.adapted import AdaptedModel, adapted_model, initial_state
from protocol.adapter import FloatArray, l2_norm
from protocol.codec import decode
from protocol.errors import FoedusError, Refusal
from protocol.flat_array import flat_array
from protocol.messages import ARRAYS, CONFIG, METRICS, UNKNOWN_RUN, ExpectedReply, Reply, Request
from protocol.methods import downloaded_factors, trained_factors
from protocol.records import arrays_of, config_of
from protocol.settings import RunSettings

_SEED = 0


@dataclass(frozen=True)
class LeavingTensor:
    """One tensor of the update. norm: L2; num_bytes: as float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float
    num_bytes: int


@dataclass(frozen=True)
class DryRun:
    """What one reply would hold. words and numbers: in the clear; declined: what this site's policy
    says to such a run, empty where it would take part."""

    run: RunSettings
    base_digest: str
    tensors: tuple[LeavingTensor, ...]
    numbers: Mapping[str, float]
    words: Mapping[str, str]
    num_bytes: int
    declined: str

    @property
    def norm(self) -> float:
        """L2 of the whole update."""
        return math.hypot(*(tensor.norm for tensor in self.tensors))


def dry_run(site: Site, run: RunSettings | None = None) -> DryRun:
    """Train one step. run: the settings, foedus' defaults for what data there is where None.

    What the policy says, and the noise, are those of the whole run; only the training is cut short.

    Errors: FoedusError where the data, the model or the guard refuse.
    """
    run = run or default_run(site)
    adapted = adapted_model(run)
    state = initial_state(run)
    sent = state.subset(downloaded_factors(run.federation.method))
    request = Request("train", UNKNOWN_RUN, 1, run, sent)
    state = assemble(site, adapted, request)
    adapted.load(state.tensors)
    result = _train_one_step(site, adapted, run)
    update = clipped_update(adapted, run, state, 1)
    layout = {name: tuple(tensor.shape) for name, tensor in update.items()}
    reply = Reply(UNKNOWN_RUN, 1, "ok", training_metrics(run, result), update)
    expected = ExpectedReply("train", UNKNOWN_RUN, 1, layout, run.privacy.enabled)
    guard = EgressGuard(expected, run.federation.update_norm_bound, site.settings.policy)
    return _described(guard.checked(reply), request, update, _declined(site, request))


def default_run(site: Site) -> RunSettings:
    """Settings of conf/coordinate.yaml for the site's data: its labelled clauses, else its text;
    private, where the site's policy demands it. Errors: FoedusError where there is no data."""
    labels = sorted({e.label for e in site.examples("classify").train if hasattr(e, "label")})
    words = [] if labels else ["task=instruct", "model=novels"]
    unit = demanded_unit(site.settings.policy)
    if unit != "none":
        words += ["privacy=dp", f"privacy.unit={unit}"]
    values = composed("coordinate", words)
    if labels:
        values["task"]["labels"] = labels
    elif not site.examples("instruct").train:
        raise FoedusError("Expected contracts to train on, got no example for any task.")
    parts = {field.name: values[field.name] for field in fields(RunSettings)}
    return decode(RunSettings, parts, "foedus' default settings")


def _one_step(run: RunSettings) -> RunSettings:
    training = replace(run.training, max_steps=1, local_epochs=1)
    return replace(run, training=training, privacy=replace(run.privacy, steps_per_round=1))


def _train_one_step(site: Site, adapted: AdaptedModel, run: RunSettings) -> TrainingResult:
    """With the noise of a step among all those that the run plans."""
    examples, factors = site.tokenised(run, "train"), trained_factors(run.federation.method, 1)
    short = _one_step(run)
    if run.privacy.enabled:
        return train_private(adapted, short, examples, factors, 1, round_sigma(run)).training
    return train(adapted, short, examples, factors, 1, _SEED)


def _declined(site: Site, request: Request) -> str:
    try:
        check_run_policy(site.settings.policy, request)
    except Refusal as refusal:
        return str(refusal)
    return ""


def _described(
    content: RecordDict, request: Request, update: Mapping[str, FloatArray], declined: str
) -> DryRun:
    """What is in the finished reply, as the coordinator would read it."""
    tensors = tuple(
        LeavingTensor(name, tuple(t.shape), str(t.dtype), l2_norm({name: t}), t.nbytes)
        for name, t in sorted(update.items())
    )
    size = flat_array(arrays_of(content, ARRAYS)).nbytes
    if size != sum(tensor.num_bytes for tensor in tensors):
        raise FoedusError("Expected the reply to hold these tensors and no more, got another size.")
    numbers = {name: float(str(value)) for name, value in dict(content[METRICS]).items()}
    words = {name: str(value) for name, value in config_of(content, CONFIG).items()}
    base = request.state.base_digest
    return DryRun(request.settings, base, tensors, numbers, words, size, declined)
