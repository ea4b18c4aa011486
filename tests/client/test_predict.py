import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.answers import context_tokens, write_answers
from client.contracts import ChatMessage, Contract, split_clauses
from client.examples.instruct import chat_examples
from client.predict import Document, ReleasedAdapter, label_clauses, load_adapter, read_documents
from models.adapted import adapted_model
from models.base import find_model_folder
from models.examples import ChatExample
from models.tokens import tokenise_chats
from protocol.errors import FoedusError
from protocol.peft_folder import write_peft_folder
from tests.client.released import CLASSIFIER, LABELS, WRITER, release

AGREEMENT = """MASTER SERVICES AGREEMENT

1. Confidentiality. Each party shall keep the other's information secret for five years.

2. Governing Law. This Agreement is governed by the law of Ruritania, and of nowhere else.

3. Payment. Invoices fall due thirty days after they are received by the customer.
"""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    release(folder, CLASSIFIER)
    return folder


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    release(folder, WRITER)
    return folder


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def document(text: str, file: str = "a.txt") -> Document:
    return Document(file, file, Contract(text, file, file=file))


def test_every_clause_of_a_document_is_labelled_where_it_stands(
    classifier: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "msa.txt", AGREEMENT)
    documents, unread = read_documents([path])
    clauses = label_clauses(load_adapter(classifier), documents)
    assert not unread
    assert [(c.start, c.end) for c in clauses] == [
        (c.start, c.end) for c in split_clauses(AGREEMENT)
    ]
    assert all(AGREEMENT[c.start : c.end] == c.text for c in clauses)
    assert {c.source for c in clauses} == {str(path)}


def test_labels_are_ranked_by_probabilities_that_sum_to_one(classifier: Path) -> None:
    (clause,) = label_clauses(load_adapter(classifier), [document("Fees are due at once.")])
    labels, probabilities = zip(*clause.ranked, strict=True)
    assert sorted(labels) == sorted(LABELS)
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    assert (clause.label, clause.second_label) == labels[:2]
    assert clause.probability == probabilities[0] > 1 / len(LABELS)


def test_probabilities_are_those_of_the_model_on_the_clause_alone(classifier: Path) -> None:
    texts = [f"Payment {n}. " + "The customer pays within thirty days. " * n for n in range(70)]
    loaded = load_adapter(classifier)
    records = [document(text, "all.jsonl") for text in texts]
    clauses = label_clauses(loaded, records)
    adapted = loaded.attached()
    for n in (0, 33, 69):
        encoded = adapted.base.tokenizer(
            texts[n], truncation=True, max_length=CLASSIFIER.model.max_tokens, return_tensors="pt"
        )
        with torch.no_grad():
            expected = torch.softmax(adapted.class_logits(dict(encoded)), dim=-1)[0].numpy()
        found = [dict(clauses[n].ranked)[label] for label in LABELS]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_adapter_in_the_same_process_does_not_change_the_predictions(
    classifier: Path, tmp_path: Path
) -> None:
    loaded, texts = load_adapter(classifier), [document("Either party may terminate.")]
    before = label_clauses(loaded, texts)
    release(tmp_path, CLASSIFIER, stddev=1.0)
    other = label_clauses(load_adapter(tmp_path), texts)
    assert label_clauses(loaded, texts) == before != other


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_a_record_is_one_clause_and_named_by_its_line(
    classifier: Path, tmp_path: Path, name: str
) -> None:
    lines = [{"text": AGREEMENT}, {"text": "Fees are due.", "id": "deal-7"}]
    raw = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    documents, _ = read_documents([path])
    clauses = label_clauses(load_adapter(classifier), documents)
    assert [c.text for c in clauses] == [AGREEMENT, "Fees are due."]
    assert [c.source for c in clauses] == [f"{path}:1", "deal-7"]
    assert [(c.start, c.end) for c in clauses] == [(0, len(AGREEMENT)), (0, 13)]


def test_files_that_cannot_be_read_are_named_and_the_rest_is_done(tmp_path: Path) -> None:
    good = written(tmp_path / "good.txt", AGREEMENT)
    broken = written(tmp_path / "broken.docx", "no zip")
    absent = tmp_path / "absent.pdf"
    records = written(tmp_path / "half.jsonl", '{"text": "Fees are due."}\nnot json\n')
    private = written(tmp_path / "private.txt", AGREEMENT)
    written(tmp_path / "private.txt.meta.json", '{"consent": false}')
    documents, unread = read_documents([good, broken, absent, records, private])
    assert [d.source for d in documents] == [str(good), f"{records}:1"]
    assert [u.source for u in unread] == [
        str(broken), str(absent), f"{records}:2", str(private),
    ]  # fmt: skip
    assert "no consent" in unread[-1].reason


def test_reading_tells_how_far_it_is_even_past_broken_files(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    good = written(tmp_path / "good.txt", AGREEMENT)
    read_documents([tmp_path / "absent.txt", good], lambda *now: heard.append(now))
    assert heard == [(1, 2), (2, 2)]


def test_another_base_model_is_refused_before_anything_is_labelled(tmp_path: Path) -> None:
    state = replace(release(tmp_path, CLASSIFIER), base_digest="f" * 64)
    write_peft_folder(tmp_path, state, CLASSIFIER, "elsewhere")
    with pytest.raises(FoedusError, match=r"Expected base model ffffffffffff….* got [0-9a-f]{12}"):
        load_adapter(tmp_path)


def test_the_base_model_may_lie_under_another_name_on_this_machine(
    classifier: Path, tmp_path: Path
) -> None:
    away = replace(CLASSIFIER, model=replace(CLASSIFIER.model, id="/not/on/this/machine"))
    write_peft_folder(tmp_path, load_adapter(classifier).state, away, "elsewhere")
    with pytest.raises(FoedusError):
        load_adapter(tmp_path)
    loaded = load_adapter(tmp_path, base=str(find_model_folder(CLASSIFIER.model)))
    texts = [document("Either party may terminate.")]
    assert label_clauses(loaded, texts) == label_clauses(load_adapter(classifier), texts)


def test_an_adapter_with_a_tensor_missing_is_refused(classifier: Path) -> None:
    loaded = load_adapter(classifier)
    tensors = dict(loaded.state.tensors)
    tensors.pop(next(iter(tensors)))
    lacking = ReleasedAdapter(loaded.run, loaded.state.replace_tensors(tensors))
    with pytest.raises(FoedusError, match="tensors that the adapter's settings call for"):
        label_clauses(lacking, [document("Fees are due.")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the base is quantised again")
def test_an_adapter_of_a_quantised_base_labels_without_cuda(tmp_path: Path) -> None:
    state = release(tmp_path, CLASSIFIER)
    quantised = replace(CLASSIFIER, model=replace(CLASSIFIER.model, quantisation="4bit"))
    write_peft_folder(tmp_path, state, quantised, "minilm")
    (clause,) = label_clauses(load_adapter(tmp_path), [document("Fees are due.")])
    assert clause.label in LABELS


def test_each_kind_of_adapter_refuses_the_other_kind_of_work(
    classifier: Path, writer: Path
) -> None:
    with pytest.raises(FoedusError, match="labels clauses"):
        write_answers(load_adapter(classifier), [document("Fees.")])
    with pytest.raises(FoedusError, match="writes text"):
        label_clauses(load_adapter(writer), [document("Fees.")])


def greedy(prompt: list[int], num_tokens: int) -> list[int]:
    """Token after token by the whole sequence's logits: slow and plain."""
    adapted = adapted_model(WRITER)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
            ids.append(int(adapted.token_logits(batch)[0, -1].argmax()))
            if ids[-1] == adapted.base.tokenizer.eos_token_id:
                break
    return ids[len(prompt) :]


@pytest.mark.parametrize("ask", ["", "Who governs this?"])
def test_answers_are_the_greedy_ones_to_the_prompt_that_training_saw(
    writer: Path, ask: str
) -> None:
    loaded = load_adapter(writer)
    texts = ["The tenant shall pay the rent.", "No dogs."]
    answers, unread = write_answers(loaded, [document(t) for t in texts], ask, max_new_tokens=12)
    adapted = loaded.attached()
    assert not unread
    for text, answer in zip(texts, answers, strict=True):
        request = f"{ask}\n\n{text}" if ask else f"Continue this contract: {text}"
        example = ChatExample((("user", request), ("assistant", "x")))
        (tokenised,) = tokenise_chats(adapted.base.tokenizer, [example], 512)
        prompt = [i for i, t in zip(tokenised.input_ids, tokenised.targets, strict=True) if t < 0]
        expected = adapted.base.tokenizer.decode(greedy(prompt, 12), skip_special_tokens=True)
        assert answer.text == expected
        assert (answer.start, answer.end, answer.num_characters) == (0, len(text), len(text))


def test_a_document_is_continued_by_the_request_that_training_makes(writer: Path) -> None:
    text = "The tenant shall pay the rent on the first day of every month, in advance. " * 3
    ((_, request), _) = chat_examples(Contract(text, "lease.txt"))[0].messages
    opening = request.removeprefix("Continue this contract: ")
    assert opening != request
    loaded = load_adapter(writer)
    (continued,), _ = write_answers(loaded, [document(opening)], max_new_tokens=8)
    turns = (ChatMessage("user", request), ChatMessage("assistant", "An answer given before."))
    chat = Document("c.jsonl", "c.jsonl:1", Contract(request, "c.jsonl:1", messages=turns))
    (asked,), _ = write_answers(loaded, [chat], max_new_tokens=8)
    assert continued.text == asked.text != ""


@pytest.mark.parametrize("ask", ["", "What is this about?"])
def test_a_long_document_is_cut_to_the_context_and_the_answer_tells(writer: Path, ask: str) -> None:
    text = " ".join(f"Clause {n} binds the parties." for n in range(400))
    loaded = load_adapter(writer)
    (answer,), unread = write_answers(loaded, [document(text)], ask, max_new_tokens=5)
    assert not unread
    assert answer.num_characters == len(text)
    assert 500 < answer.end - answer.start < len(text)
    # A question reads from the beginning; a continuation needs the end.
    assert (answer.start == 0) if ask else (answer.end == len(text))


def test_a_question_that_leaves_no_room_for_text_is_told_document_by_document(
    writer: Path,
) -> None:
    documents = [document("Fees."), document("Rent.", "b.txt")]
    answers, unread = write_answers(load_adapter(writer), documents, "why " * 900)
    assert (answers, [u.source for u in unread]) == ([], ["a.txt", "b.txt"])
    assert "Ask a shorter question" in unread[0].reason


def test_a_conversation_the_template_refuses_is_named_and_the_rest_is_done(writer: Path) -> None:
    turns = (ChatMessage("tool", "x"), ChatMessage("user", "x"))
    refused = Document("c.jsonl", "c.jsonl:2", Contract("x", "c.jsonl:2", messages=turns))
    documents = [refused, document("Rent.")]
    answers, unread = write_answers(load_adapter(writer), documents, max_new_tokens=4)
    assert [a.source for a in answers] == ["a.txt"]
    assert [u.source for u in unread] == ["c.jsonl:2"]


def test_writing_tells_how_far_it_is_token_by_token(writer: Path) -> None:
    heard: list[tuple[int, int]] = []
    documents = [document("Rent."), document("The tenant pays.")]
    loaded = load_adapter(writer)
    write_answers(loaded, documents, max_new_tokens=4, on_progress=lambda *now: heard.append(now))
    assert heard == [(2, 8), (4, 8), (6, 8), (8, 8)]


def test_an_answer_as_long_as_the_context_is_refused(writer: Path) -> None:
    loaded = load_adapter(writer)
    limit = context_tokens(loaded.attached())
    with pytest.raises(FoedusError, match="--max-new-tokens"):
        write_answers(loaded, [document("Fees.")], max_new_tokens=limit)


def test_half_precision_bases_answer_too(writer: Path) -> None:
    loaded = load_adapter(writer)
    half = replace(loaded.run, model=replace(loaded.run.model, precision="bfloat16"))
    in_half = replace(loaded, run=half)
    (answer,), _ = write_answers(in_half, [document("Fees.")], max_new_tokens=4)
    assert in_half.attached().base.dtype == torch.bfloat16
    assert answer.text
