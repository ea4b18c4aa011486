"""The lines of docs/predict.md, run as they stand there on adapters that were just released."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answers import write_answers
from client.contracts import Contract
from client.predict import Document, label_clauses, load_adapter
from models.base import find_model_folder
from protocol.settings import RunSettings
from tests.client.released import CLASSIFIER, LABELS, WRITER, release

PAGE = (Path(__file__).parents[1] / "docs" / "predict.md").read_text(encoding="utf-8")
TEXTS = [
    "This Agreement is governed by the law of Ruritania.",
    "Fees are due thirty days after the invoice, and late fees bear interest. " * 9,
    "Each party keeps the other's information secret.",
]


def code_block(heading: str) -> str:
    section = PAGE.split(f"\n## {heading}")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    assert "foedus" not in re.sub(r"/foedus\.json", "", block)
    return str(block)


def run_block(block: str, **settings: object) -> dict[str, Any]:
    """Execute the page's lines; `settings` replace the values it sets by way of example."""
    for name, value in settings.items():
        line = f"{name} = {value!r}".replace("\\", r"\\")
        block, found = re.subn(rf"^{name} = .*$", line, block, flags=re.MULTILINE)
        assert found == 1, f"the page sets {name} {found} times"
    namespace: dict[str, Any] = {}
    exec(compile(block, "docs/predict.md", "exec"), namespace)
    return namespace


def document(text: str) -> Document:
    return Document("all.jsonl", "all.jsonl:1", Contract(text, "all.jsonl:1"))


def folder_of(run: RunSettings) -> str:
    return str(find_model_folder(run.model))


def test_plain_peft_classifies_like_foedus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release(tmp_path, CLASSIFIER, stddev=0.5)
    block = code_block("A classification adapter with plain transformers and peft")
    ours = label_clauses(load_adapter(tmp_path), [document(text) for text in TEXTS])
    found = run_block(block, ADAPTER=str(tmp_path), BASE=folder_of(CLASSIFIER), clauses=TEXTS)
    assert found["predicted"] == [clause.label for clause in ours]
    expected = [[dict(clause.ranked)[label] for label in LABELS] for clause in ours]
    np.testing.assert_allclose(found["probabilities"].numpy(), expected, atol=1e-4)
    # An adapter or head that was not loaded would give every text the same distribution.
    assert np.ptp(np.array(expected), axis=0).max() > 0.05


def test_plain_peft_writes_like_foedus(tmp_path: Path) -> None:
    release(tmp_path, WRITER, stddev=0.5)
    block = code_block("A causal adapter with plain transformers and peft")
    assert "max_new_tokens=200" in block
    block = block.replace("max_new_tokens=200", "max_new_tokens=40")
    for text in TEXTS[:2]:
        request = f"Continue this contract: {text}"
        (ours,), _ = write_answers(load_adapter(tmp_path), [document(text)], max_new_tokens=40)
        found = run_block(block, ADAPTER=str(tmp_path), BASE=folder_of(WRITER), request=request)
        assert found["answer"] == ours.text
        with found["model"].disable_adapter():
            without = found["model"].generate(**found["prompt"], max_new_tokens=20, do_sample=False)
        start = found["prompt"]["input_ids"].shape[1]
        assert without[0, start:].tolist() != found["written"][0, start : start + 20].tolist()
