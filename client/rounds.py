"""What a site does with one request: check it, train or evaluate, hand over a guarded reply."""

from __future__ import annotations

import logging

from flwr.app import RecordDict

from client.admission import admit_request
from client.base_model import agreed_model, expect_digest
from client.egress import EgressGuard
from client.personal import PersonalFactors
from client.policy.time_limit import TimeLimit
from client.secure_aggregation.plain_update import refuse_readable_update
from client.site import Site
from client.trained_update import trained_update
from models.adapted import AdaptedModel
from models.batches import MAX_EVALUATION_TOKENS
from models.evaluation import evaluate
from protocol.adapter import AdapterState, FloatArray, subset_layout
from protocol.errors import FoedusError, Refusal, WireError, place_of, text_of
from protocol.initial import initial_tensors
from protocol.messages import UNKNOWN_RUN, ExpectedReply, Kind, Reply, Request, named_run
from protocol.methods import (
    METHODS,
    downloaded_factors,
    personal_factors,
    uploaded_factors,
)
from protocol.reasons import RefusalReason

log = logging.getLogger("foedus.client")


def answer(site: Site, content: RecordDict, kind: Kind) -> RecordDict:
    """The reply to any request, however broken; never raises on what came in.

    A failure travels as a reason code. The text of our own errors stays in the site's log; of an
    unforeseen exception only type and place are logged: its message might quote a contract.
    """
    request: Request | None = None
    layout: dict[str, tuple[int, ...]] = {}
    try:
        request = Request.from_content(content, kind)
        admit_request(site, request)
        adapted = agreed_model(request)
        if kind == "train":
            uploaded = uploaded_factors(request.settings.federation.method, request.round)
            layout = subset_layout(adapted.layout, uploaded)
        reply = _work(site, adapted, request)
    except (Refusal, WireError) as error:
        log.warning("Refused a %s request (%s): %s", kind, error.code, text_of(error))
        reply = _refusal(request, error.code)
    except FoedusError as error:
        log.error("Failed on a %s request: %s", kind, text_of(error))
        reply = _refusal(request, RefusalReason.INTERNAL)
    except Exception as error:
        log.error("Failed on a %s request: %s", kind, place_of(error))
        reply = _refusal(request, RefusalReason.INTERNAL)
    bound = request.settings.federation.update_norm_bound if request else 0.0
    private = bool(request and request.settings.privacy.enabled)
    expected = ExpectedReply(kind, reply.run_id, reply.round, layout, private)
    guard = EgressGuard(expected, bound, site.settings.policy)
    return guard.release(reply, site.receipts, site.ledger.head)


def decline(site: Site, content: RecordDict, kind: Kind, refusal: Refusal) -> RecordDict:
    """The reply to a request that is not to be followed, whatever it asks; read for its run only.

    Errors: as `answer`'s, where no receipt can be written.
    """
    log.warning("Refused a %s request (%s): %s", kind, refusal.code, refusal)
    run_id, round_ = named_run(content)
    reply = Reply(run_id, round_, refusal.code)
    guard = EgressGuard(ExpectedReply(kind, run_id, round_, {}), 0.0, site.settings.policy)
    return guard.release(reply, site.receipts, site.ledger.head)


def _work(site: Site, adapted: AdaptedModel, request: Request) -> Reply:
    state = assemble(site, adapted, request)
    if request.kind == "evaluate":
        return _evaluate(site, request, state)
    return _train(site, adapted, request, state)


def assemble(site: Site, adapted: AdaptedModel, request: Request) -> AdapterState:
    """The full adapter a request speaks of: what came, what is seeded, what this site keeps.

    Errors: Refusal where base model or layout differ from what this site holds.
    """
    run, method = request.settings, request.settings.federation.method
    # What was loaded, after what was found: a name on the Hub can come to mean other weights.
    expect_digest(request, adapted.base.digest)
    expected = subset_layout(adapted.layout, downloaded_factors(method))
    if request.state.layout != expected:
        raise Refusal(
            RefusalReason.WRONG_LAYOUT,
            f"Expected {len(expected)} tensors as this site's adapter has them, "
            f"got {len(request.state.layout)} of another layout.",
        )
    tensors: dict[str, FloatArray] = {}
    if METHODS[method].seeded or personal_factors(method):
        tensors.update(initial_tensors(adapted.layout, run.federation.seed))
    if personal_factors(method):
        last_round = request.round - 1 if request.kind == "train" else request.round
        kept = PersonalFactors(site.state_folder, request.run_id).after(last_round)
        if last_round and not kept:
            # As a site that comes late does, which this one may be: its state alone could tell.
            log.warning(
                "No factors of run %s are kept here up to round %d: this site goes on from the "
                "initial ones. Where it took part before, restore its state folder.",
                request.run_id[:8],
                last_round,
            )
        tensors.update(kept)
    tensors.update(request.state.tensors)
    return request.state.replace_tensors(tensors)


def _train(site: Site, adapted: AdaptedModel, request: Request, state: AdapterState) -> Reply:
    refuse_readable_update(site, request)
    trained = trained_update(site, adapted, request, state)
    return Reply(request.run_id, request.round, "ok", trained.metrics, trained.update)


def _evaluate(site: Site, request: Request, state: AdapterState) -> Reply:
    limit = TimeLimit(site.settings.policy.maximum_wall_seconds)
    if request.settings.privacy.enabled:
        raise Refusal(
            RefusalReason.PRIVATE_TRAINING,
            "Expected no request to evaluate in a private run: scores on contracts carry no noise.",
        )
    examples = site.tokenised(request.settings, "held_out")
    if not examples:
        raise Refusal(RefusalReason.NO_DATA, "Expected held-out examples, got none.")
    most = site.settings.policy.maximum_batch_tokens or MAX_EVALUATION_TOKENS
    scores = evaluate(
        request.settings,
        state,
        examples,
        lambda _: limit.check(),
        min(most, MAX_EVALUATION_TOKENS),
    )
    return Reply(request.run_id, request.round, "ok", scores.as_metrics())


def _refusal(request: Request | None, code: str) -> Reply:
    if request is None:
        return Reply(UNKNOWN_RUN, 0, code)
    return Reply(request.run_id, request.round, code)
