"""Central evaluation: a public test set, scored by the coordinator itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from models.evaluation import evaluate, tokenise
from models.examples import ChatExample, ClauseExample
from protocol.errors import FoedusError, Refusal
from protocol.settings import AdapterSettings, ModelSettings, TaskSettings
from server.evaluation import central_evaluation, read_test_set
from tests.small_runs import clause_records, small_run, start_state, write_records

CHAT = {
    "messages": [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "Within ten days."},
    ]
}


def test_a_test_set_of_clauses_is_scored_as_the_sites_would(tmp_path: Path) -> None:
    run = small_run()
    write_records(tmp_path, clause_records(1))
    examples = read_test_set(tmp_path / "clauses.jsonl", "classify")
    assert examples[0] == ClauseExample(clause_records(1)[0]["text"], "confidentiality")
    state = start_state(run)
    expected = evaluate(run, state, tokenise(run, examples)).as_metrics()
    assert central_evaluation(run, examples)(state) == expected
    assert expected["num_examples"] == 12


def test_a_causal_test_set_has_a_perplexity(tmp_path: Path) -> None:
    run = replace(
        small_run(),
        task=TaskSettings(kind="instruct"),
        model=ModelSettings(id="novels", precision="float32", max_tokens=64),
        adapter=AdapterSettings(rank=2, targets=("q_proj",)),
    )
    write_records(tmp_path, [CHAT])
    examples = read_test_set(tmp_path / "clauses.jsonl", "instruct")
    assert examples == [ChatExample((("user", "When?"), ("assistant", "Within ten days.")))]
    metrics = central_evaluation(run, examples)(start_state(run))
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("no json", "classify"),
        ('{"text": "Fees fall due."}', "classify"),
        ("[1, 2]", "classify"),
        ('{"messages": "hello"}', "instruct"),
        ('{"messages": [{"role": "user"}]}', "instruct"),
        ('{"text": "x", "label": "payment"}', "instruct"),
    ],
)
def test_a_line_of_another_form_is_named_by_its_number(
    tmp_path: Path, line: str, kind: str
) -> None:
    good = json.dumps(CHAT | {"text": "Fees fall due.", "label": "payment"})
    path = tmp_path / "test.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(FoedusError, match=r"test\.jsonl:2"):
        read_test_set(path, kind)


def test_an_empty_test_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(FoedusError, match="at least one example"):
        read_test_set(tmp_path / "test.jsonl", "classify")


def test_a_test_set_with_other_labels_is_refused_before_the_first_round(tmp_path: Path) -> None:
    examples = [ClauseExample("Force majeure.", "force_majeure")]
    with pytest.raises(Refusal, match="force_majeure"):
        central_evaluation(small_run(), examples)
