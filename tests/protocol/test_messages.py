"""What crosses the wire arrives whole, and is refused with a reason where it was not agreed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from protocol.adapter import AdapterState, FloatArray, layout_digest, pack
from protocol.errors import WireError
from protocol.flat_array import FLAT
from protocol.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    ExpectedReply,
    Kind,
    Reply,
    Request,
    evaluate_request,
    train_request,
)
from protocol.reasons import RefusalReason, RejectionReason
from tests.small_runs import RUN_ID, small_run

RUN = small_run(method="rolora", aggregator="", weighting="examples", deadline_seconds=7)
LAYOUT = {"m.x.lora_A.weight": (2, 5), "m.x.lora_B.weight": (7, 2), "m.head.weight": (3, 6)}
OTHER_RUN = "f" * 32
NUMBERS = {"num_examples": 12.0, "train_loss": 0.5}


def tensors(seed: int = 0) -> dict[str, FloatArray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in LAYOUT.items()}


def request() -> Request:
    state = AdapterState(tensors(), RUN.adapter.rank, RUN.adapter.alpha, "d" * 64, "rolora")
    return train_request(RUN_ID, 2, RUN, state)


def changed_config(content: RecordDict, **changes: Any) -> RecordDict:
    """The records with other configuration entries; None drops one, dots are written as __."""
    config = dict(content.config_records[CONFIG])
    for key, value in changes.items():
        if value is None:
            del config[key.replace("__", ".")]
        else:
            config[key.replace("__", ".")] = value
    return RecordDict({**dict(content), CONFIG: ConfigRecord(config)})


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def with_bytes(content: RecordDict, data: bytes, **declared: Any) -> RecordDict:
    """The records with other bytes behind the same, or another, declared form."""
    form: dict[str, Any] = {"dtype": "float32", "shape": (42,), "stype": "numpy.ndarray"}
    array = Array(**{**form, **declared, "data": data})
    return RecordDict({**dict(content), ARRAYS: ArrayRecord({FLAT: array})})


def huge_header() -> bytes:
    """A header that announces 4 TB in front of no data."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def nested_header() -> bytes:
    """A header that no parser should be asked to follow down."""
    text = ("-" * 9000 + "1\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


FLAT_VALUES = pack(tensors())
BAD_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "no array": b"contracts of a client, in clear",
    "cut off": npy(FLAT_VALUES)[:-1],
    "cut in the header": npy(FLAT_VALUES)[:40],
    "more at the end": npy(FLAT_VALUES) + b"\0\0\0\0",
    "pickled objects": npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "a zip of arrays": npz(FLAT_VALUES),
    "other float": npy(FLAT_VALUES.astype(np.float64)),
    "other byte order": npy(FLAT_VALUES.astype(">f4")),
    "two dimensions": npy(FLAT_VALUES.reshape(2, -1)),
    "no dimension": npy(np.array(1, dtype=np.float32)),
    "4 TB announced": huge_header(),
    "nested header": nested_header(),
}


# --- Requests ---


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_request_arrives_as_it_was_sent(kind: Kind) -> None:
    sent: Request = request()
    if kind == "evaluate":
        sent = evaluate_request(RUN_ID, 2, RUN, sent.state)
    got = Request.from_content(sent.to_content(), kind)
    assert (got.kind, got.run_id, got.round, got.settings) == (kind, RUN_ID, 2, RUN)
    assert got.state.digest() == sent.state.digest()
    assert (got.state.rank, got.state.alpha) == (sent.state.rank, sent.state.alpha)
    assert (got.state.base_digest, got.state.method) == ("d" * 64, "rolora")


def test_flowers_own_round_key_is_tolerated_as_its_loop_adds_it() -> None:
    content = changed_config(request().to_content(), **{"server-round": 2})
    assert Request.from_content(content, "train").round == 2


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "an unknown key": {"comment": "hello"},
    "an unknown setting": {"settings__federation__speed": 3},
    "an unknown adapter key": {"adapter__note": "x"},
    "a missing key": {"run_id": None},
    "a missing setting": {"settings__model__id": None},
    "a setting out of bounds": {"settings__federation__rounds": 0},
    "another kind": {"kind": "evaluate"},
    "a run id that is none": {"run_id": "../../etc"},
    "a run id of another type": {"run_id": 7},
    "a round past the end": {"round": 3},
    "a round before the start": {"round": -1},
    "round 0 of training": {"round": 0},
    "a round that is a truth value": {"round": True},
    "a digest that is none": {"adapter__base_digest": "abc"},
    "a digest of another type": {"adapter__base_digest": 5},
    "fewer shapes than names": {"adapter__shapes": ["3x6", "2x5"]},
    "a name twice": {"adapter__names": ["a", "a", "b"]},
    "names that are no list": {"adapter__names": 3},
    "a negative side": {"adapter__shapes": ["3x6", "8x-3", "7x2"]},
    "an empty side": {"adapter__shapes": ["3x6", "2x0", "7x2"]},
    "no number at all": {"adapter__shapes": ["3x6", "2x5", ""]},
    "huge sides": {"adapter__shapes": ["3x6", "2x5", "999999999x999999999"]},
    "sides whose product wraps to zero": {
        "adapter__shapes": ["3x6", "2x5", "65536x65536x65536x65536"]
    },
    "more digits than a shape has": {"adapter__shapes": ["3x6", "2x5", "7x" + "9" * 5000]},
    "a value where a group is": {"settings__federation": 3},
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_request_with_something_unagreed_is_refused(what: str) -> None:
    content = changed_config(request().to_content(), **BAD_CONFIGS[what])
    with pytest.raises(WireError) as caught:
        Request.from_content(content, "train")
    assert caught.value.code == RefusalReason.MALFORMED_REQUEST


FORGED = "x\n2026-01-01T00:00:00.000Z runner INFO: forged\r\x1b[2K"
FORGERIES: dict[str, dict[str, Any]] = {
    "a key": {FORGED: 1},
    "an unknown setting": {f"settings__federation__{FORGED}": 1},
    "a group of that name": {f"settings__{FORGED}__a": 1},
    "a key of the adapter": {f"adapter__{FORGED}": 1},
    "a value and a group": {"a": 1, f"a__{FORGED}": 1},
    "both under that name": {f"a__{FORGED}": 1, f"a__{FORGED}__b": 2},
    "a value": {"settings__federation__method": FORGED},
    "a kind": {"kind": FORGED},
    "a version": {"version": FORGED},
    "a run id": {"run_id": FORGED},
    "a round": {"round": FORGED},
    "a digest": {"adapter__base_digest": FORGED},
    "a shape": {"adapter__shapes": [FORGED, "2x5", "7x2"]},
}


@pytest.mark.parametrize("what", FORGERIES)
def test_no_text_of_a_request_makes_lines_of_its_own_in_an_error(what: str) -> None:
    """Errors go to the site's log, a line an event."""
    content = changed_config(request().to_content(), **FORGERIES[what])
    with pytest.raises(WireError) as caught:
        Request.from_content(content, "train")
    text = str(caught.value)
    assert not {"\r", "\x1b"} & set(text)
    assert not any(line.startswith("2026-01-01") for line in text.splitlines())


@pytest.mark.parametrize("field", ["dtype", "stype"])
def test_nor_does_that_of_an_array(field: str) -> None:
    content = request().to_content()
    setattr(content.array_records[ARRAYS][FLAT], field, FORGED)
    with pytest.raises(WireError) as caught:
        Request.from_content(content, "train")
    assert "\n" not in str(caught.value) and "forged" in str(caught.value)


@pytest.mark.parametrize("version", [0, 2, "1", True, 1.0])
def test_another_protocol_version_is_refused_as_such(version: object) -> None:
    with pytest.raises(WireError) as caught:
        Request.from_content(changed_config(request().to_content(), version=version), "train")
    assert caught.value.code == RefusalReason.WRONG_VERSION


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_refused(value: float) -> None:
    sent = request()
    bad = dict(sent.state.tensors)
    bad["m.head.weight"] = np.full((3, 6), value, np.float32)
    content = train_request(RUN_ID, 2, RUN, sent.state.replace_tensors(bad)).to_content()
    with pytest.raises(WireError) as caught:
        Request.from_content(content, "train")
    assert caught.value.code == RefusalReason.MALFORMED_REQUEST


@pytest.mark.parametrize("what", BAD_BYTES)
def test_a_request_whose_array_cannot_be_one_is_refused_with_a_refusal_reason(what: str) -> None:
    content = with_bytes(request().to_content(), BAD_BYTES[what])
    with pytest.raises(WireError) as caught:
        Request.from_content(content, "train")
    assert caught.value.code in set(RefusalReason)


@pytest.mark.parametrize(
    "break_",
    [
        lambda c: RecordDict({}),
        lambda c: RecordDict({ARRAYS: c[ARRAYS]}),
        lambda c: RecordDict({CONFIG: c[CONFIG]}),
        lambda c: RecordDict({**dict(c), "more": ConfigRecord({})}),
        lambda c: RecordDict({**dict(c), ARRAYS: ArrayRecord({})}),
        lambda c: RecordDict({**dict(c), ARRAYS: MetricRecord({})}),
        lambda c: RecordDict(
            {**dict(c), ARRAYS: ArrayRecord({FLAT: Array(FLAT_VALUES), "b": Array(FLAT_VALUES)})}
        ),
    ],
)
def test_a_request_with_other_records_is_refused(
    break_: Callable[[RecordDict], RecordDict],
) -> None:
    with pytest.raises(WireError) as caught:
        Request.from_content(break_(request().to_content()), "train")
    assert caught.value.code == RefusalReason.MALFORMED_REQUEST


# --- Replies ---

EXPECTED = ExpectedReply("train", RUN_ID, 2, LAYOUT)


def reply(**changes: Any) -> Reply:
    facts: dict[str, Any] = {"metrics": NUMBERS, "update": tensors(1)}
    return Reply(**{"run_id": RUN_ID, "round": 2, **facts, **changes})


def test_a_reply_arrives_as_it_was_sent() -> None:
    got = EXPECTED.parse(reply().to_content())
    assert (got.run_id, got.round, got.status, got.metrics) == (RUN_ID, 2, "ok", NUMBERS)
    assert got.update.keys() == LAYOUT.keys()
    for name, tensor in tensors(1).items():
        np.testing.assert_array_equal(got.update[name], tensor)


def test_an_evaluation_is_numbers_alone() -> None:
    expected = ExpectedReply("evaluate", RUN_ID, 2, {})
    numbers = {"num_examples": 4.0, "accuracy": 0.5}
    got = expected.parse(Reply(RUN_ID, 2, metrics=numbers).to_content())
    assert got.metrics == numbers and not got.update
    with pytest.raises(WireError) as caught:
        expected.parse(reply(metrics=numbers).to_content())
    assert caught.value.code == RejectionReason.MALFORMED


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_a_share_is_taken_from_0_to_1_and_refused_beyond(name: str) -> None:
    expected = ExpectedReply("evaluate", RUN_ID, 2, {})

    def parsed(value: float) -> float:
        numbers = {"num_examples": 4.0, name: value}
        return expected.parse(Reply(RUN_ID, 2, metrics=numbers).to_content()).metrics[name]

    assert (parsed(0.0), parsed(1.0)) == (0.0, 1.0)
    for value in (1.001, 1e300, -0.001):
        with pytest.raises(WireError) as caught:
            parsed(value)
        assert caught.value.code == RejectionReason.MALFORMED


def with_metrics(**values: Any) -> RecordDict:
    return RecordDict({**dict(reply().to_content()), METRICS: MetricRecord(values)})


R = RejectionReason
BAD_REPLIES: dict[str, tuple[Callable[[], RecordDict], RejectionReason]] = {
    "another version": (lambda: changed_config(reply().to_content(), version=2), R.WRONG_VERSION),
    "another run": (lambda: reply(run_id=OTHER_RUN).to_content(), R.WRONG_RUN),
    "an earlier round": (lambda: reply(round=1).to_content(), R.WRONG_ROUND),
    "a refusal": (
        lambda: Reply(RUN_ID, 2, RefusalReason.NO_DATA).to_content(),
        R.REFUSED_BY_SITE,
    ),
    "an invented status": (lambda: reply(status="our client ACME").to_content(), R.MALFORMED),
    "a status of another type": (
        lambda: changed_config(reply().to_content(), status=1),
        R.MALFORMED,
    ),
    "an unknown key": (lambda: changed_config(reply().to_content(), note="x"), R.MALFORMED),
    "a missing key": (lambda: changed_config(reply().to_content(), round=None), R.MALFORMED),
    "other tensor names": (
        lambda: reply(update={"m.other": np.zeros((3, 6), np.float32)}).to_content(),
        R.WRONG_LAYOUT,
    ),
    "another shape": (
        lambda: reply(update=tensors() | {"m.head.weight": np.zeros((6, 3), "f4")}).to_content(),
        R.WRONG_LAYOUT,
    ),
    "too few coordinates under the right digest": (
        lambda: with_bytes(reply().to_content(), npy(FLAT_VALUES[:-1])),
        R.WRONG_SHAPE,
    ),
    "another declared dtype": (
        lambda: with_bytes(reply().to_content(), npy(FLAT_VALUES), dtype="float64"),
        R.WRONG_DTYPE,
    ),
    "another declared container": (
        lambda: with_bytes(reply().to_content(), npy(FLAT_VALUES), stype="torch"),
        R.WRONG_DTYPE,
    ),
    "float64 under a float32 label": (
        lambda: with_bytes(reply().to_content(), npy(FLAT_VALUES.astype(np.float64))),
        R.WRONG_DTYPE,
    ),
    "no update": (lambda: reply(update={}).to_content(), R.MALFORMED),
    "an unknown record": (
        lambda: RecordDict({**dict(reply().to_content()), "text": ConfigRecord({"t": "x"})}),
        R.MALFORMED,
    ),
    "no metrics": (lambda: with_metrics(), R.MALFORMED),
    "an unknown metric": (lambda: with_metrics(num_examples=1.0, clients=3.0), R.MALFORMED),
    "a list of numbers": (lambda: with_metrics(num_examples=[1.0, 2.0]), R.MALFORMED),
    "no example": (lambda: with_metrics(num_examples=0.0), R.BAD_WEIGHT),
    "negative examples": (lambda: with_metrics(num_examples=-5.0), R.BAD_WEIGHT),
    "NaN examples": (lambda: with_metrics(num_examples=float("nan")), R.BAD_WEIGHT),
    "infinite examples": (lambda: with_metrics(num_examples=float("inf")), R.BAD_WEIGHT),
    "more examples than can be counted": (
        lambda: with_metrics(num_examples=1e300),
        R.BAD_WEIGHT,
    ),
    "a negative loss": (lambda: with_metrics(num_examples=1.0, train_loss=-1e-3), R.MALFORMED),
    "a loss that no mean survives": (
        lambda: with_metrics(num_examples=1.0, train_loss=1e300),
        R.MALFORMED,
    ),
    "negative seconds": (lambda: with_metrics(num_examples=1.0, train_seconds=-1.0), R.MALFORMED),
    "a NaN loss": (
        lambda: with_metrics(num_examples=1.0, train_loss=float("nan")),
        R.NOT_FINITE,
    ),
}


@pytest.mark.parametrize("what", BAD_REPLIES)
def test_a_bad_reply_is_refused_with_its_reason(what: str) -> None:
    build, reason = BAD_REPLIES[what]
    with pytest.raises(WireError) as caught:
        EXPECTED.parse(build())
    assert caught.value.code == reason


@pytest.mark.parametrize("what", BAD_BYTES)
def test_bytes_that_are_no_flat_float32_array_are_refused_without_being_unpickled(
    what: str,
) -> None:
    with pytest.raises(WireError) as caught:
        EXPECTED.parse(with_bytes(reply().to_content(), BAD_BYTES[what]))
    assert caught.value.code in {R.MALFORMED, R.WRONG_DTYPE, R.WRONG_SHAPE}


def test_the_text_of_a_refusal_is_its_code_and_nothing_else() -> None:
    with pytest.raises(WireError) as caught:
        EXPECTED.parse(Reply(RUN_ID, 2, RefusalReason.EGRESS).to_content())
    assert str(caught.value) == "egress"


def test_no_word_of_an_invented_status_is_repeated() -> None:
    with pytest.raises(WireError) as caught:
        EXPECTED.parse(reply(status="our client ACME").to_content())
    assert "ACME" not in str(caught.value)


def test_a_reply_names_its_layout_so_that_equal_sizes_cannot_be_mistaken() -> None:
    swapped = {"m.x.lora_A.weight": (5, 2), **{n: s for n, s in LAYOUT.items() if "A" not in n}}
    assert layout_digest(swapped) != layout_digest(LAYOUT)
    with pytest.raises(WireError) as caught:
        ExpectedReply("train", RUN_ID, 2, swapped).parse(reply().to_content())
    assert caught.value.code == RejectionReason.WRONG_LAYOUT
