"""Where a secure session gets its update from: the site's training, once a round."""

from __future__ import annotations

from typing import Protocol

from client.base_model import agreed_model
from client.rounds import assemble
from client.secure_aggregation.kept_update import KeptUpdate
from client.site import Site
from client.trained_update import trained_update
from protocol.adapter import Layout, l2_norm, pack, subset_layout
from protocol.errors import Refusal
from protocol.messages import Request
from protocol.methods import uploaded_factors
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.task import weight_cap


class Trainer(Protocol):
    """Trains for a request."""

    def uploaded(self, request: Request) -> Layout:
        """The layout of the update, by what the site itself holds."""

    def train(self, request: Request) -> KeptUpdate:
        """A clipped update of that layout. Errors: Refusal where the site declines."""


class ModelTrainer:
    """Trains the site's model on the site's contracts."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def uploaded(self, request: Request) -> Layout:
        """See Trainer."""
        factors = uploaded_factors(request.settings.federation.method, request.round)
        return subset_layout(agreed_model(request).layout, factors)

    def train(self, request: Request) -> KeptUpdate:
        """See Trainer."""
        run = request.settings
        adapted = agreed_model(request)
        state = assemble(self._site, adapted, request)
        trained = trained_update(self._site, adapted, request, state)
        norm, bound = l2_norm(trained.update), run.federation.update_norm_bound
        # The guard cannot look into a masked update, so its norm is checked here.
        if not norm <= bound:
            raise Refusal(
                RefusalReason.EGRESS, f"Expected an update of norm at most {bound}, got {norm}."
            )
        weight = min(int(trained.metrics.get("num_examples", 1)), weight_cap(run))
        seconds = float(trained.metrics.get("train_seconds", 0.0))
        return KeptUpdate(pack(trained.update), weight, seconds)
