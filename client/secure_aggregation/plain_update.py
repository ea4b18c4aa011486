"""When a site may send an update that the coordinator can read."""

from __future__ import annotations

from client.secure_aggregation.memory import MemoryStore
from client.site import Site
from protocol.errors import Refusal
from protocol.messages import Request
from protocol.reasons import RefusalReason


def refuse_readable_update(site: Site, request: Request) -> None:
    """Errors: Refusal(POLICY) where the run's own settings or an earlier secure round of the run
    say that nobody but the site reads its update. What the site's policy says: client.policy."""
    masked_before = MemoryStore(site.state_folder, request.run_id).exists()
    if request.settings.secure_aggregation.enabled or masked_before:
        raise Refusal(
            RefusalReason.POLICY,
            "This run aggregates securely, and the coordinator asked for an update without masks. "
            "Ask whoever runs it why.",
        )
