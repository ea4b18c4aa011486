"""A member that has altered its own software: its keys are real, its replies are not honest.

`python -m tests.faults.hostile_site --config site.yaml --tricks '{"1": "nan"}'`: in each of these
rounds it answers with a trick, else honestly. The SuperNode beside it is that of honest sites,
where `--supernode` does not name the module of another.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client.app import make_app
from client.runner import supernode_process
from client.runner.launch import LOOPBACK, Launch
from client.runner.parent import end_with_parent
from client.runner.supernode_tasks import SuperNodeSilent, SuperNodeTasks, Task, TaskLost
from client.site import Site
from protocol.consortium.identity import load_identity
from protocol.flat_array import FLAT
from protocol.messages import ARRAYS, CONFIG, METRICS
from protocol.secure_aggregation.wire import (
    MASKED,
    SECURE,
    Phase,
    read_header,
    signed_statement,
    with_signature,
)

Trick = Callable[[RecordDict], RecordDict]

HONEST_SUPERNODE = supernode_process.__name__
_PAUSE_SECONDS = 0.1


# --- Replies that carry an update ---


def _with_update(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Trick:
    def trick(content: RecordDict) -> RecordDict:
        flat = content.array_records[ARRAYS][FLAT].numpy()
        return _with(content, ARRAYS, ArrayRecord({FLAT: Array(change(flat))}))

    return trick


def _first_as(value: float) -> Trick:
    def changed(flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        flat = flat.copy()
        flat[0] = value
        return flat

    return _with_update(changed)


def _many_examples(content: RecordDict) -> RecordDict:
    metrics = {**dict(content.metric_records[METRICS]), "num_examples": 1e12}
    # Nothing of the others' updates would be left by such a weight.
    flat = np.zeros_like(content.array_records[ARRAYS][FLAT].numpy())
    changed = _with(content, ARRAYS, ArrayRecord({FLAT: Array(flat)}))
    return _with(changed, METRICS, MetricRecord(metrics))


def _next_round(content: RecordDict) -> RecordDict:
    config = dict(content.config_records[CONFIG])
    return _with(content, CONFIG, ConfigRecord({**config, "round": int(config["round"]) + 1}))  # type: ignore[arg-type]


def _garbage(content: RecordDict) -> RecordDict:
    honest = content.array_records[ARRAYS][FLAT]
    noise = secrets.token_bytes(len(honest.data))
    array = Array(dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=noise)
    return _with(content, ARRAYS, ArrayRecord({FLAT: array}))


def _gigabyte(content: RecordDict) -> RecordDict:
    zeros = Array(np.zeros(2**28, dtype=np.float32))
    return _with(content, ARRAYS, ArrayRecord({FLAT: zeros}))


def _nonsense(content: RecordDict) -> RecordDict:
    return RecordDict({"nonsense": ConfigRecord({"bytes": secrets.token_bytes(1000)})})


PLAIN_TRICKS: Mapping[str, Trick] = {
    "nan": _first_as(float("nan")),
    "huge-norm": _first_as(1e30),
    "wrong-shape": _with_update(lambda flat: flat[:-1]),
    "many-examples": _many_examples,
    "wrong-round": _next_round,
    "garbage": _garbage,
    "nonsense": _nonsense,
    "gigabyte": _gigabyte,
}

# --- Replies of a session of secure aggregation, by the phase that they alter ---


def _noise_in(name: str) -> Trick:
    """Random bytes of the right length in the place of one value."""

    def trick(content: RecordDict) -> RecordDict:
        header = dict(content.config_records[SECURE])
        value = header[name]
        assert isinstance(value, bytes)
        header[name] = secrets.token_bytes(len(value))
        return _with(content, SECURE, ConfigRecord(header))

    return trick


def _masked_noise(content: RecordDict) -> RecordDict:
    honest = content.array_records[MASKED][MASKED]
    noise = secrets.token_bytes(len(honest.data))
    array = Array(dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=noise)
    return _with(content, MASKED, ArrayRecord({MASKED: array}))


MASKED_TRICKS: Mapping[str, tuple[Phase, Trick]] = {
    "false-keys": (Phase.ADVERTISE, _noise_in("advertisement")),
    "false-boxes": (Phase.SHARE, _noise_in("boxes")),
    "masked-noise": (Phase.MASKED_INPUT, _masked_noise),
    "false-confirmation": (Phase.CONFIRM, _noise_in("confirmation")),
    "false-shares": (Phase.UNMASK, _noise_in("self_mask_shares")),
}


class HostileSite:
    """tricks: round -> name of a trick."""

    def __init__(self, site: Site, tricks: Mapping[int, str]) -> None:
        self._tricks = tricks
        self._honest = make_app(lambda _: site)
        assert site.identity_file
        self._identity = load_identity(site.identity_file, None)

    def answer(self, task: Task) -> Message:
        """Honest, but for the round's trick."""
        honest = self._honest(task.message, task.context)
        trick = self._tricks.get(int(task.message.metadata.group_id))
        if trick is None or honest.has_error():
            return honest
        content = self._altered(trick, task.message.content, honest.content)
        return Message(content, reply_to=task.message)

    def _altered(self, trick: str, request: RecordDict, honest: RecordDict) -> RecordDict:
        if SECURE not in honest:
            return PLAIN_TRICKS[trick](honest) if ARRAYS in honest else honest
        phase, change = MASKED_TRICKS[trick]
        if read_header(honest)[0] is not phase or honest.config_records[SECURE]["status"] != "ok":
            return honest
        # It signs its lies as it would the truth.
        altered = change(honest)
        return with_signature(altered, self._identity.sign(signed_statement(request, altered)))


def _with(content: RecordDict, key: str, record: Any) -> RecordDict:
    return RecordDict({**dict(content), key: record})


def _serve(tasks: SuperNodeTasks, hostile: HostileSite) -> None:
    while True:
        try:
            token = tasks.acquire()
        except SuperNodeSilent:
            token = None
        if token is None:
            time.sleep(_PAUSE_SECONDS)
            continue
        try:
            with tasks.open(token) as task:
                task.finish(hostile.answer(task))
        except TaskLost as lost:
            print(lost, flush=True)


def main() -> None:
    """Until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tricks", type=json.loads, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--supernode", default=HONEST_SUPERNODE)
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    site = Site.from_file(arguments.config)
    launch = Launch(arguments.config, site)
    command = launch.supernode()
    words = [arguments.supernode if word == HONEST_SUPERNODE else word for word in command.words]
    subprocess.Popen(words, env=command.environment, pass_fds=command.descriptors)
    secret = Path(words[words.index("--superexec-auth-secret-file") + 1])
    tasks = SuperNodeTasks(f"{LOOPBACK}:{launch.port}", secret.read_bytes())
    tricks = {int(round_): str(name) for round_, name in arguments.tricks.items()}
    _serve(tasks, HostileSite(site, tricks))


if __name__ == "__main__":
    main()
