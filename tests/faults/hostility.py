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
from typing import Any

import httpx
import numpy as np
import safetensors.numpy
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.utils import uint64_to_int64

from client.enrolment.keys import load_supernode_key
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.wire import Phase
from server.app import checkpoint_folder
from server.runs.folder import RunStatus
from tests.faults import doubling_supernode
from tests.faults.checks import expect_used_once
from tests.faults.deployment import NUM_SITES, SiteAtWork, environment
from tests.faults.hostile_site import HONEST_SUPERNODE
from tests.faults.processes import Started, freeze, thaw, wait_for
from tests.faults.scene import PLAIN_RUN, Said, Scenario, Scene

_ROOT = Path(__file__).parents[2]
_R = RejectionReason
_TIMES = 20
_BEFORE_MASKS = (Phase.ADVERTISE, Phase.SHARE)
_HEARTBEAT = "/v1/fleet/send-node-heartbeat"
_CHECKSUM_BYTES = 32

# Masked inputs alone are asked for by messages of this kind.
_HANDED_OUT = """
SELECT message_id FROM message_ins
WHERE dst_node_id = :node_id AND message_type = 'train' AND delivered_at != ''
"""

# By round: the trick, and why its reply is set aside; None where it may be taken.
_PLAIN: Mapping[int, tuple[str, RejectionReason | None]] = {
    1: ("nan", _R.NOT_FINITE),
    2: ("huge-norm", _R.NORM_OVER_BOUND),
    3: ("wrong-shape", _R.WRONG_SHAPE),
    4: ("wrong-round", _R.WRONG_ROUND),
    5: ("garbage", _R.MALFORMED),
    6: ("nonsense", _R.MALFORMED),
    # Near the end, as only the newest three checkpoints are kept.
    7: ("many-examples", None),
}
_MASKED: Mapping[int, tuple[str, RejectionReason | None]] = {
    1: ("false-keys", _R.UNKNOWN_MEMBER),
    2: ("false-boxes", _R.REFUSED_BY_SITE),
    3: ("masked-noise", None),
    4: ("false-confirmation", _R.BAD_SIGNATURE),
    5: ("false-shares", None),
}
_LARGE: Mapping[int, tuple[str, RejectionReason | None]] = {1: ("gigabyte", _R.WRONG_SHAPE)}


@contextmanager
def _turned_hostile(
    scene: Scene, tricks: Mapping[int, str], supernode: str = HONEST_SUPERNODE
) -> Iterator[None]:
    """The site's own software is away meanwhile, and its keys are used by other software."""
    victim = scene.victim
    victim.end()
    words = ["-m", "tests.faults.hostile_site", "--config", str(victim.config)]
    words += ["--tricks", json.dumps(tricks), "--parent", str(os.getpid())]
    words += ["--supernode", supernode]
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


def _plainly_misbehaving(scene: Scene) -> None:
    _misbehaving(_PLAIN)(scene)
    (boastful,) = (round_ for round_, (name, _) in _PLAIN.items() if name == "many-examples")
    # It sent zeros. By its own word the others' updates would be a hundred-billionth of the sum, by
    # the cap two thirds; in the next round they are all of it.
    moved, moved_after = (_moved_in(scene, round_) for round_ in (boastful, boastful + 1))
    assert moved > moved_after / 10, f"{moved} in round {boastful}, {moved_after} in the next"


def _moved_in(scene: Scene, round_: int) -> float:
    """The L2 norm of a round's change to the adapter."""
    after, before = _adapter_after(scene, round_), _adapter_after(scene, round_ - 1)
    return float(np.sqrt(sum(np.square(after[name] - before[name]).sum() for name in after)))


def _adapter_after(scene: Scene, round_: int) -> dict[str, np.ndarray[Any, Any]]:
    path = checkpoint_folder(scene.run.path) / f"round-{round_:05d}.checkpoint"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = safetensors.numpy.load(data[start:-_CHECKSUM_BYTES])
    return {name: array for name, array in arrays.items() if name.startswith("adapter/")}


def _doubled(scene: Scene) -> None:
    with _turned_hostile(scene, {}, doubling_supernode.__name__):
        scene.begin()
        assert scene.wait_for_end() is RunStatus.FINISHED
    expect_used_once(scene)


def _handed_out_twice(scene: Scene) -> None:
    """Another site is stopped for a moment, so that nothing is asked of the victim before its way
    back is cut."""
    victim, other = scene.victim, scene.sites[0].family()
    node_id = scene.deployment.node_id(victim)
    scene.begin()
    scene.at_phase(Phase.SHARE, 1)
    freeze(other)
    try:
        sent = Said("site", "Sent successfully")
        wait_for("its keys and its shares", lambda: scene.times_said(sent) == len(_BEFORE_MASKS))
        victim.route.cut_answers()
    finally:
        thaw(other)
    key = {"node_id": uint64_to_int64(node_id)}
    database = scene.coordinator.database
    wait_for("the instruction", lambda: bool(database.query(_HANDED_OUT, key)))
    victim.route.break_off()
    victim.route.heal()
    scene.mark()
    assert scene.wait_for_end() is RunStatus.FINISHED
    expect_used_once(scene)


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


def _reasons(tricks: Mapping[int, tuple[str, RejectionReason | None]]) -> tuple[Said, ...]:
    """Each stands in a line of the run's log."""
    reasons = {reason for _, reason in tricks.values() if reason}
    return tuple(Said("coordinator", f"({reason.value})") for reason in sorted(reasons))


HOSTILITY = (
    Scenario(
        "replayed-requests",
        f"a signed request of a site's is sent {_TIMES} times",
        "while the sites share their secrets",
        "it is answered once and refused from then on; every round with all three sites",
        _replayed,
        rounds=2,
        said=(Said("coordinator", "came again"),),
    ),
    Scenario(
        "duplicated-replies",
        "a site sends every announcement of a reply three times and every object twice, each time "
        "under a new signature",
        "in every phase of every round",
        "each reply is used once; every round with all three sites",
        _doubled,
        rounds=2,
        said=(
            Said("site", "An announcement, sent again, was"),
            Said("site", "An old announcement, sent again, was"),
            Said("site", "An object, sent again, was"),
        ),
    ),
    Scenario(
        "instruction-handed-out-twice",
        "the answer that brings a site its instruction is lost; every connection of it is reset",
        "as the masked inputs are asked for",
        "it is handed out again; the site trains and pays once; every round with all three sites",
        _handed_out_twice,
        rounds=2,
        deadline_seconds=180,
        said=(Said("coordinator", "did not receive a message and gets it again"),),
    ),
    Scenario(
        "hostile-site",
        f"a member sends, round after round: {_listed(_PLAIN)}",
        f"all rounds but the last; {PLAIN_RUN}",
        "each reply is set aside for its reason, and the round goes on with the two others; the "
        "count of examples gives no more weight than the cap",
        _plainly_misbehaving,
        rounds=8,
        settings=(
            "federation.evaluate_every=0",
            "federation.weighting=examples",
            "federation.weight_cap=10",
        ),
        cohorts={round_: {2} for round_, (_, reason) in _PLAIN.items() if reason},
        said=_reasons(_PLAIN),
        honest=False,
    ),
    Scenario(
        "hostile-site-masked",
        f"a member sends, round after round: {_listed(_MASKED)}",
        "all rounds but the last",
        "what shows is set aside, and the round goes on with the two others; noise in a masked "
        "input, or in a share that three sites cannot do without, costs the round and no more",
        _misbehaving(_MASKED),
        rounds=6,
        cohorts={1: {2}, 2: {2}, 3: {0}, 4: {2}, 5: {0}},
        lost_rounds=frozenset({3, 5}),
        said=_reasons(_MASKED),
        honest=False,
    ),
    Scenario(
        "hostile-site-gigabyte",
        "a member sends a reply of 1 GB",
        f"round 1; {PLAIN_RUN}",
        "the reply is set aside for its reason, and the round goes on with the two others",
        _misbehaving(_LARGE),
        rounds=2,
        deadline_seconds=180,
        settings=("federation.evaluate_every=0",),
        cohorts={1: {2}},
        said=_reasons(_LARGE),
        honest=False,
    ),
)
