"""A member that does not follow the protocol, and messages that come twice."""

from __future__ import annotations

import datetime
import json
import os
import ssl
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from client.enrolment.keys import load_supernode_key
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.wire import Phase
from server.runs.folder import RunStatus
from tests.faults.deployment import NUM_SITES, SiteAtWork, environment
from tests.faults.processes import Started, wait_for
from tests.faults.scene import Scenario, Scene

_ROOT = Path(__file__).parents[2]
_R = RejectionReason
_TIMES = 20
_HEARTBEAT = "/v1/fleet/send-node-heartbeat"

# By round: the trick, and why its reply is set aside; None where it may be taken.
_PLAIN: Mapping[int, tuple[str, RejectionReason | None]] = {
    1: ("nan", _R.NOT_FINITE),
    2: ("huge-norm", _R.NORM_OVER_BOUND),
    3: ("wrong-shape", _R.WRONG_SHAPE),
    4: ("many-examples", None),
    5: ("wrong-round", _R.WRONG_ROUND),
    6: ("garbage", _R.MALFORMED),
    7: ("nonsense", _R.MALFORMED),
}
_MASKED: Mapping[int, tuple[str, RejectionReason | None]] = {
    1: ("false-keys", _R.UNKNOWN_MEMBER),
    2: ("false-boxes", _R.REFUSED_BY_SITE),
    3: ("masked-noise", None),
    4: ("false-confirmation", _R.BAD_SIGNATURE),
    5: ("false-shares", None),
}


@contextmanager
def _turned_hostile(scene: Scene, tricks: Mapping[int, str]) -> Iterator[None]:
    """The site's own software is away meanwhile, and its keys are used by other software."""
    victim = scene.victim
    victim.end()
    words = ["-m", "tests.faults.hostile_site", "--config", str(victim.config)]
    words += ["--tricks", json.dumps(tricks), "--parent", str(os.getpid())]
    paths = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    hostile = Started(
        [sys.executable, *words], environment() | {"PYTHONPATH": paths}, _ROOT, victim.log
    )
    try:
        online = scene.coordinator.nodes_online
        wait_for("the hostile site", lambda: online() == NUM_SITES)
        yield
    finally:
        hostile.end()


def _misbehaving(
    tricks: Mapping[int, tuple[str, RejectionReason | None]],
) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        with _turned_hostile(scene, {round_: name for round_, (name, _) in tricks.items()}):
            scene.begin()
            assert scene.wait_for_end() is RunStatus.FINISHED
        for record in scene.records():
            _, reason = tricks.get(record.round, ("", None))
            reasons = {entry["reason"] for entry in record.rejected}
            assert reason is None or reason in reasons, f"round {record.round}: {record}"

    return act


def _replayed(scene: Scene) -> None:
    """A request of the site's that somebody has recorded is sent again and again."""
    scene.begin()
    scene.at_phase(Phase.SHARE, 1)
    body = SendNodeHeartbeatRequest(
        node=Node(node_id=scene.deployment.node_id(scene.victim)), heartbeat_interval=30
    ).SerializeToString()
    address = scene.coordinator.folder.settings().advertised_address
    context = ssl.create_default_context(cafile=str(scene.coordinator.folder.ca))
    headers = _signed_by_supernode(scene.victim)
    with httpx.Client(verify=context, base_url=f"https://{address}") as client:
        answers = [
            client.post(_HEARTBEAT, content=body, headers=headers).status_code
            for _ in range(_TIMES)
        ]
    first, *others = answers
    assert first == httpx.codes.OK and set(others) == {httpx.codes.UNAUTHORIZED}, answers


def _signed_by_supernode(site: SiteAtWork) -> dict[str, str]:
    """The headers of one request of its SuperNode's."""
    path = site.open().supernode_key_file
    assert path
    key = load_supernode_key(path, None)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "content-type": PROTOBUF_MEDIA_TYPE,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: now,
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, now.encode())).decode(),
    }


def _listed(tricks: Mapping[int, tuple[str, RejectionReason | None]]) -> str:
    return ", ".join(name.replace("-", " ") for name, _ in tricks.values())


HOSTILITY = (
    Scenario(
        "replayed-requests",
        f"a signed request of a site's is sent {_TIMES} times",
        "while the sites share their secrets",
        "it is answered once and refused from then on; every round with all three sites",
        _replayed,
        rounds=2,
    ),
    Scenario(
        "hostile-site",
        f"a member sends, round after round: {_listed(_PLAIN)}",
        "all rounds but the last; without secure aggregation",
        "each reply is set aside for its reason, and the round goes on with the two others; the "
        "count of examples gives no more weight than the cap",
        _misbehaving(_PLAIN),
        rounds=8,
        settings=("federation.evaluate_every=0", "federation.weighting=examples"),
        cohorts={round_: {2} for round_ in _PLAIN if round_ != 4},
        honest=False,
    ),
    Scenario(
        "hostile-site-masked",
        f"a member sends, round after round: {_listed(_MASKED)}",
        "all rounds but the last; with secure aggregation",
        "what shows is set aside, and the round goes on with the two others; noise in a masked "
        "input, or in a share that three sites cannot do without, costs the round and no more",
        _misbehaving(_MASKED),
        rounds=6,
        cohorts={1: {2}, 2: {2}, 3: {0}, 4: {2}, 5: {0}},
        lost_rounds=frozenset({3, 5}),
        honest=False,
    ),
    Scenario(
        "hostile-site-gigabyte",
        "a member sends a reply of 1 GB",
        "round 1; without secure aggregation",
        "the round goes on with the two others",
        _misbehaving({1: ("gigabyte", None)}),
        rounds=2,
        settings=("federation.evaluate_every=0",),
        cohorts={1: {2}},
        honest=False,
    ),
)
