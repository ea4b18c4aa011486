"""The base model that a request is about, proved to be the agreed one before any of it is loaded.

A request names a model by a name of the coordinator's choice. What lies here under that name is
hashed and compared first, so that no weights but the agreed ones take memory or meet a parser. It
is hashed once in a process: files changed under a running site are found out at its next start.
"""

from __future__ import annotations

import functools

from models.adapted import AdaptedModel, adapted_model
from models.base import find_model_folder
from models.digest import model_digest
from protocol.errors import FoedusError, Refusal
from protocol.messages import Request
from protocol.reasons import RefusalReason
from protocol.settings import ModelSettings


def agreed_model(request: Request) -> AdaptedModel:
    """The adapted model for a request's settings.

    Errors: Refusal(BASE_MODEL_DIFFERS) where the base model is not here or not the agreed one.
    """
    try:
        found = _digest_of(request.settings.model)
    except FoedusError as error:
        # One code for both: which files a site has is not the coordinator's to find out.
        raise Refusal(RefusalReason.BASE_MODEL_DIFFERS, str(error)) from error
    expect_digest(request, found)
    return adapted_model(request.settings)


def expect_digest(request: Request, found: str) -> None:
    """found: digest of the base model here. Errors: Refusal(BASE_MODEL_DIFFERS)."""
    if request.state.base_digest != found:
        raise Refusal(
            RefusalReason.BASE_MODEL_DIFFERS,
            f"Expected base model {found[:12]}…, the request names "
            f"{request.state.base_digest[:12]}…. Install the model the consortium agreed on.",
        )


# Kept, as to look a model of the Hub up may take a question to the network.
@functools.lru_cache(maxsize=8)
def _digest_of(model: ModelSettings) -> str:
    return model_digest(find_model_folder(model))
