"""What the sites of a session work on: its task as one digest that all sign, and its ring.

Were a coordinator to send one site another adapter than the rest, the sum could show that site's
update alone (Pasquini et al. 2022, https://arxiv.org/abs/2111.07380). So settings, adapter and the
form of the update are part of every session's context, and a site that is then asked to train on
anything else refuses.
"""

from __future__ import annotations

import hashlib
import json

from protocol.adapter import Layout, layout_digest
from protocol.codec import encode
from protocol.messages import Request
from protocol.secure_aggregation.encoding import encode_fields
from protocol.secure_aggregation.ring import RingParameters
from protocol.settings import RunSettings


def task_digest(request: Request, uploaded: Layout) -> str:
    """SHA-256 (hex) of a train request and of the layout of the update it asks for.

    uploaded: computed by each side from what it holds, never taken from the other.
    """
    settings = json.dumps(encode(request.settings), sort_keys=True, separators=(",", ":"))
    state = request.state
    content = encode_fields(
        "task",
        request.run_id,
        request.round,
        settings,
        state.digest(),
        state.base_digest,
        state.method,
        layout_digest(uploaded),
    )
    return hashlib.sha256(content).hexdigest()


def weight_cap(run: RunSettings) -> int:
    """What one site can weigh in the sum at most: 1 where all weigh the same."""
    return run.federation.weight_cap if run.federation.weighting == "examples" else 1


def ring_of(run: RunSettings, num_sites: int) -> RingParameters:
    """The ring of a cohort. An L2 bound of an update bounds each of its coordinates too.

    Errors: FoedusError where secure_aggregation.bits are too few.
    """
    bits, bound = run.secure_aggregation.bits, run.federation.update_norm_bound
    return RingParameters.choose(bits, num_sites, bound, weight_cap(run))
