"""Nothing but agreed tensors and numbers leaves a site.

A sentence that occurs nowhere else is planted in contracts of every kind, a whole federation runs,
and every byte that left a site, was logged, or was written outside the contract folders is searched
for it, for its words, in several encodings, and for its token ids.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto

import client.trained_update
from client.app import load_site, make_app
from client.training.loop import train
from models.adapted import adapted_model
from protocol.errors import FoedusError
from protocol.settings import AdapterSettings, ModelSettings, RunSettings, TaskSettings
from server.app import CoordinatorSettings, Plan, run_plan
from server.coordinator import RunResult
from server.observer import LogObserver
from simulations.engines.in_process import InProcessGrid
from tests.small_runs import clause_records, small_run, write_site

SECRET = (
    "Zephyrine Quillfeather guarantees Oblomovka Shipyards against the Ktesibios shortfall "
    "of 48,151,623 thaler"
)
WORDS = ("zephyrine", "quillfeather", "oblomovka", "ktesibios", "48,151,623")


class RecordingGrid(InProcessGrid):
    """Keeps the bytes of every message in both directions, as they would be on the wire."""

    def __init__(self, client_app: ClientApp, num_sites: int) -> None:
        super().__init__(client_app, num_sites)
        self.wire: dict[str, bytes] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        message_ids = list(super().push_messages(batch))
        for message in batch:
            self._record("down", message)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            self._record("up", reply)
        return replies

    def _record(self, direction: str, message: Message) -> None:
        kind = message.metadata.message_type
        name = f"{direction} {len(self.wire)} {kind}"
        # The wire form, and what Python shows, as a log on either side might hold it.
        shown = repr(message.error) if message.has_error() else repr(message.content)
        self.wire[name] = message_to_proto(message).SerializeToString() + shown.encode()


def base64_forms(data: bytes) -> Iterator[bytes]:
    """What base64 of any text that holds `data` must contain, for each of its three alignments."""
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + data)
        first = -(-shift * 8 // 6)
        last = (shift + len(data)) * 8 // 6
        yield encoded[first:last]


def needles(run: RunSettings) -> dict[str, bytes]:
    """Everything to look for; texts in lower case."""
    found: dict[str, bytes] = {}
    for text in (SECRET, *WORDS):
        low = text.lower()
        found[f"text {text}"] = low.encode()
        found[f"utf-16 {text}"] = low.encode("utf-16-le")
        found[f"hex {text}"] = low.encode().hex().encode()
        for number, form in enumerate(base64_forms(text.encode())):
            found[f"base64 {number} {text}"] = form.lower()
    tokenizer = adapted_model(run).base.tokenizer
    ids = tokenizer(SECRET, add_special_tokens=False)["input_ids"][2:8]
    assert len(ids) == 6
    found["token ids in words"] = str(ids)[1:-1].encode()
    found["token ids as int32"] = np.array(ids, np.int32).tobytes().lower()
    found["token ids as int64"] = np.array(ids, np.int64).tobytes().lower()
    pieces = {str(tokenizer.decode([token])).strip(" #").lower() for token in ids}
    # One ordinary word of the sentence may be in a log for other reasons.
    return found | {f"piece {p}": p.encode() for p in pieces - {"guarantees"} if len(p) >= 8}


def hits(run: RunSettings, places: dict[str, bytes]) -> list[tuple[str, str]]:
    """(place, needle) for each find."""
    wanted = needles(run)
    lowered = {place: data.lower() for place, data in places.items()}
    return [
        (place, name)
        for place, data in lowered.items()
        for name, needle in wanted.items()
        if needle in data
    ]


def classify_run() -> RunSettings:
    return small_run()


def instruct_run() -> RunSettings:
    return replace(
        small_run(),
        task=TaskSettings(kind="instruct"),
        model=ModelSettings(id="novels", precision="float32", max_tokens=48),
        adapter=AdapterSettings(rank=2, alpha=4.0, targets=("q_proj",), last_layers=1),
    )


def plant(folder: Path, site: int) -> Path:
    """A site whose contracts hold the sentence in good, broken and unusable places."""
    clause = {"text": f"{site}. {SECRET}.", "label": "payment", "matter": f"{SECRET} {site}"}
    records = [*clause_records(site), clause | {"source": SECRET, "company": SECRET}]
    path = write_site(folder, site, records)
    contracts = folder / "contracts"
    for part in (contracts, folder / "held_out"):
        with (part / "clauses.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(clause) + "\n")
            stream.write(json.dumps({"text": SECRET}) + "\n")
            stream.write(f'{{"text": "{SECRET}", "label": \n')
            stream.write(json.dumps({"messages": [{"role": SECRET}]}) + "\n")
    (contracts / "broken.docx").write_bytes(b"PK\x03\x04" + SECRET.encode())
    (contracts / "broken.pdf").write_bytes(b"%PDF-1.7\n" + SECRET.encode())
    (contracts / "broken.jsonl.gz").write_bytes(b"\x1f\x8b" + SECRET.encode())
    (contracts / "old.txt").write_bytes(b"\xff\xfe" + SECRET.encode("utf-16-le"))
    (contracts / "half.txt").write_bytes(b"\xff\xfe" + SECRET.encode("utf-16-le")[:-1])
    (contracts / "lease.txt").write_text(f"1. Lease\n\n{SECRET}. " * 9, encoding="utf-8")
    (contracts / "memo.txt.json").write_text(f'{{"matter": "{SECRET}"', encoding="utf-8")
    return path


def federate(folder: Path, run: RunSettings) -> tuple[RunResult, RecordingGrid]:
    """Two firms, the deployed apps, every message recorded."""
    paths = [plant(folder / f"firm-{site}", site) for site in (1, 2)]
    app = make_app(lambda context: load_site(paths[context.node_id - 1]))
    grid = RecordingGrid(app, 2)
    plan = Plan(run, CoordinatorSettings(str(folder / "output")), LogObserver())
    return run_plan(grid, plan), grid


def left_behind(
    folder: Path, grid: RecordingGrid, caplog: pytest.LogCaptureFixture
) -> dict[str, bytes]:
    """All that anyone but the site's own contract folders may hold."""
    places = dict(grid.wire)
    for path in sorted(folder.rglob("*")):
        own = {"contracts", "held_out"} & set(path.relative_to(folder).parts)
        if path.is_file() and not own and path.name != "site.yaml":
            places[path.relative_to(folder).as_posix()] = path.read_bytes()
    formatter = logging.Formatter()
    for number, entry in enumerate(caplog.records):
        text = f"{formatter.format(entry)} {entry.args!r} {entry.exc_text}"
        places[f"log {number} {entry.name}"] = text.encode()
    return places


@pytest.mark.parametrize("make_run", [classify_run, instruct_run])
def test_a_planted_sentence_is_in_no_byte_that_leaves_or_stays_outside_the_contracts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_run: Any
) -> None:
    run = make_run()
    with caplog.at_level(logging.DEBUG):
        result, grid = federate(tmp_path, run)
    # The sentence was learned from: this run would not be evidence otherwise.
    assert all(record.aggregated for record in result.records)
    site = load_site(tmp_path / "firm-1" / "site.yaml")
    assert SECRET in repr(site.examples(run.task.kind).train)
    places = left_behind(tmp_path, grid, caplog)
    kinds = {place.rsplit(".", 1)[-1] for place in places}
    assert {"checkpoint", "jsonl", "json", "safetensors", "md"} <= kinds
    assert sum(place.startswith("up") for place in places) == 8
    for name in ("broken.docx", "broken.pdf", "broken.jsonl.gz", "half.txt"):
        assert f"Skipped {name}" in caplog.text
    assert hits(run, places) == []


def test_not_even_an_internal_error_that_quotes_a_contract_lets_it_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(small_run(), federation=replace(small_run().federation, rounds=3))

    def fails_in_round_2(adapted: Any, run: Any, examples: Any, *rest: Any, **more: Any) -> Any:
        if rest[1] == 2:
            raise ValueError(f"cannot digest {SECRET!r}") from KeyError(SECRET)
        return train(adapted, run, examples, *rest, **more)

    monkeypatch.setattr(client.trained_update, "train", fails_in_round_2)
    with caplog.at_level(logging.DEBUG):
        result, grid = federate(tmp_path, run)
    assert [record.aggregated for record in result.records] == [True, False, True]
    assert {entry["detail"] for entry in result.records[1].rejected} == {"internal"}
    assert "ValueError at test_nothing_leaks.py" in caplog.text
    assert hits(run, left_behind(tmp_path, grid, caplog)) == []


def test_an_error_before_any_reply_lets_nothing_out_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A site configuration that cannot be read is itself full of the firm's words."""
    path = tmp_path / "site.yaml"
    path.write_text(f"name: [{SECRET}\n", encoding="utf-8")
    grid = RecordingGrid(make_app(lambda _: load_site(path)), 1)
    plan = Plan(small_run(rounds=1), CoordinatorSettings(str(tmp_path / "output")), LogObserver())
    with pytest.raises(FoedusError, match="none of 1 rounds"):
        run_plan(grid, plan)
    history = json.loads((tmp_path / "output" / "history.json").read_text(encoding="utf-8"))
    # An answer without a request's run id is of no run.
    assert [entry["reason"] for entry in history["rounds"][0]["rejected"]] == ["wrong_run"]
    sent = {name: data for name, data in grid.wire.items() if name.startswith("up")}
    assert len(sent) == 2 and hits(small_run(), sent) == []
    assert all(str(tmp_path).encode() not in data for data in sent.values())


@pytest.mark.parametrize(
    "leak",
    [
        SECRET.encode(),
        SECRET.upper().encode(),
        b"... quillfeather ...",
        SECRET.encode("utf-16"),
        SECRET.encode("utf-16-be"),
        base64.b64encode(SECRET.encode()),
        base64.b64encode(b"x" + SECRET.encode()),
        base64.b64encode(b"xy" + SECRET.encode()),
        SECRET.encode().hex().encode(),
        json.dumps({"text": SECRET}).encode(),
    ],
)
def test_the_search_finds_what_it_looks_for(leak: bytes) -> None:
    assert hits(small_run(), {"place": b"\x01" + leak + b"\x02"})


def test_the_search_finds_token_ids() -> None:
    ids = adapted_model(small_run()).base.tokenizer(SECRET)["input_ids"]
    for leak in (np.array(ids, np.int64), np.array(ids, np.int32)):
        assert hits(small_run(), {"place": leak.tobytes()})
    assert hits(small_run(), {"place": json.dumps({"ids": ids}).encode()})
