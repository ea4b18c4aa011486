"""Readers of the real data sets, on small files of the same form, and on the real ones if there."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import SettingsError
from simulations.data import Corpus, DataError, DataSettings, decode_data_settings, load_corpus
from simulations.data.contract_nli import nearest_sentences
from simulations.data.settings import split_names

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("FOEDUS_DATA", REPOSITORY / ".." / "shared" / "data"))


def write(path: Path, records: Iterable[dict[str, Any] | str]) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines))


def provision(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "split": "train",
        "label": None,
        "topic": "notices",
        "heading": "Notices",
        "text": f"Notice number {number} is given in writing.",
        "doc": f"d{number // 2}",
        "company": "cik1",
        "contract_type": "credit",
        "year": 2001,
        **changes,
    }


def test_edgar_takes_the_chosen_label_and_drops_provisions_without_it(tmp_path: Path) -> None:
    write(
        tmp_path / "markupmna.jsonl.gz",
        [
            provision(1),
            provision(2, topic=None, label="Notices"),
            provision(3, split="dev", topic="taxes"),
            provision(4, split="test"),
            provision(5, text="x"),
        ],
    )
    settings = DataSettings(
        source="edgar", path=str(tmp_path), label_field="topic", min_characters=5
    )
    corpus = load_corpus(settings)
    assert [contract.source for contract in corpus.train] == ["p1"]
    assert [contract.label for contract in corpus.test] == ["taxes"]
    (contract,) = corpus.train
    assert (contract.matter, contract.licence) == ("d0", "MIT")
    assert contract.fields["company"] == "cik1" and contract.fields["year"] == "2001"
    by_label = dataclasses.replace(settings, label_field="label", test_split="")
    assert [contract.source for contract in load_corpus(by_label).train] == ["p2"]


def test_a_broken_line_of_a_data_set_is_named(tmp_path: Path) -> None:
    bad = provision(2)
    del bad["doc"]
    records: list[dict[str, Any] | str] = [
        provision(1),
        "{",
        bad,
        provision(3, text=7),
        provision(4, split="dev"),
    ]
    write(tmp_path / "cuad.jsonl.gz", records)
    corpus = load_corpus(DataSettings(source="edgar", path=str(tmp_path), label_field="topic"))
    assert [unreadable.source for unreadable in corpus.unreadable] == [
        "cuad.jsonl.gz:2",
        "cuad.jsonl.gz:3",
        "cuad.jsonl.gz:4",
    ]
    assert "'doc'" in corpus.unreadable[1].reason
    assert len(corpus.train) == len(corpus.test) == 1


def span(number: int, label: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"s{number}",
        "split": "train",
        "label": label,
        "labels_same_span": [label],
        "text": f"Span {number}.",
        "answer": None,
        "doc": "d1",
        "company": "acme",
        "contract_type": "License",
        "year": None,
        **changes,
    }


def test_cuad_keeps_spans_of_one_clause_category(tmp_path: Path) -> None:
    write(
        tmp_path / "clauses.jsonl.gz",
        [
            span(1, "Insurance"),
            span(2, "Parties"),
            span(3, "Insurance", labels_same_span=["Insurance", "Audit Rights"]),
            span(4, "Audit Rights", split="dev"),
        ],
    )
    paragraph = span(5, "None")
    del paragraph["labels_same_span"]
    write(tmp_path / "none_paragraphs.jsonl.gz", [paragraph])
    settings = DataSettings(source="cuad", path=str(tmp_path))
    corpus = load_corpus(settings)
    assert [contract.source for contract in corpus.train] == ["s1"]
    assert corpus.train[0].fields == {"company": "acme", "contract_type": "License", "doc": "d1"}
    with_none = load_corpus(dataclasses.replace(settings, include_none=True))
    assert with_none.labels == ("Insurance", "None")


def sentence(number: int, fold: int, labels: list[str]) -> dict[str, Any]:
    return {
        "id": f"en-{number}",
        "company": f"Shop{fold}",
        "fold": fold,
        "lang": "en",
        "labels": labels,
        "unfair": int(bool(labels)),
        "text": f"Sentence {number}.",
    }


def test_unfair_tos_splits_by_fold_and_has_two_label_sets(tmp_path: Path) -> None:
    write(
        tmp_path / "en.jsonl.gz",
        [
            sentence(1, 1, []),
            sentence(2, 2, ["arbitration"]),
            sentence(3, 2, ["arbitration", "jurisdiction"]),
            sentence(4, 0, ["jurisdiction"]),
            sentence(5, 3, []),
        ],
    )
    settings = DataSettings(
        source="unfair_tos",
        path=str(tmp_path),
        label_field="unfair",
        train_split="1,2",
        test_split="0",
    )
    corpus = load_corpus(settings)
    assert [contract.label for contract in corpus.train] == ["fair", "unfair", "unfair"]
    assert [contract.matter for contract in corpus.test] == ["Shop0"]
    kinds = load_corpus(dataclasses.replace(settings, label_field="kind"))
    assert [contract.label for contract in kinds.train] == ["arbitration"]


def nli_folder(folder: Path) -> None:
    text = "The Recipient keeps quiet. Reverse engineering is barred. Norland law applies."
    spans = [[0, 26], [27, 57], [58, 78]]
    docs = [{"doc": n, "document_type": "sec", "spans": spans, "text": text} for n in (1, 2)]
    write(folder / "docs.jsonl.gz", docs)
    pair = {"doc": 1, "split": "train_part", "hyp": "nda-11", "label": "Entailment"}
    write(
        folder / "pairs.jsonl.gz",
        [
            {**pair, "evidence": "Reverse engineering is barred."},
            {**pair, "doc": 2, "split": "dev", "label": "NotMentioned", "evidence": ""},
            {**pair, "doc": 3},
        ],
    )
    hypotheses = {"nda-11": {"hypothesis": "Recipient shall not reverse engineer."}}
    (folder / "hypotheses.json").write_text(json.dumps(hypotheses), encoding="utf-8")


@pytest.mark.parametrize("premise", ["retrieved", "evidence", "document"])
def test_contract_nli_joins_hypothesis_and_premise(tmp_path: Path, premise: str) -> None:
    nli_folder(tmp_path)
    settings = DataSettings(
        source="contract_nli",
        path=str(tmp_path),
        train_split="train_part",
        premise=premise,
        premise_spans=1,
    )
    corpus = load_corpus(settings)
    (contract,) = corpus.train
    hypothesis, _, shown = contract.text.partition("\n\n")
    assert hypothesis == "Recipient shall not reverse engineer."
    assert "Reverse engineering is barred." in shown
    assert (len(shown) > 40) == (premise == "document")
    assert corpus.test[0].label == "NotMentioned"
    assert corpus.test[0].text.partition("\n\n")[2], "no premise is empty, or its lack is the label"
    # A pair whose agreement is not there is reported, not dropped in silence.
    assert [unreadable.source for unreadable in corpus.unreadable] == ["pairs.jsonl.gz:3"]


def test_the_nearest_sentences_share_rare_words_and_keep_their_order() -> None:
    sentences = ["the seal is red", "the party pays", "the party keeps the seal", "the end"]
    assert nearest_sentences("Who keeps a seal?", sentences, 2) == [sentences[0], sentences[2]]


def test_a_folder_gives_a_site_per_sub_folder_and_keeps_matters_whole(tmp_path: Path) -> None:
    for site in ("acme", "bolt"):
        (tmp_path / site).mkdir()
        rows = [
            {"text": f"{site} {n}", "matter": f"M{n % 10}", "id": "same", "topic": f"t{n % 2}"}
            for n in range(40)
        ]
        write(tmp_path / site / "all.jsonl.gz", rows)
    (tmp_path / "bolt" / "broken.docx").write_bytes(b"x")
    (tmp_path / "loose.txt").write_text("No site.", encoding="utf-8")
    settings = DataSettings(
        source="folder",
        path=str(tmp_path),
        label_field="topic",
        test_fraction=0.4,
        excluded_matters=("m9",),
    )
    corpus = load_corpus(settings)
    assert {contract.fields.get("site") for contract in corpus.train + corpus.test} == {
        "acme",
        "bolt",
        None,
    }
    assert corpus.labels == ("t0", "t1")
    train_matters = {contract.matter for contract in corpus.train}
    test_matters = {contract.matter for contract in corpus.test}
    assert train_matters.isdisjoint(test_matters)
    assert (train_matters | test_matters) - {None} == {f"M{n}" for n in range(9)}
    assert [unreadable.source for unreadable in corpus.unreadable] == ["bolt/broken.docx"]
    assert sum(corpus.excluded.values()) == 8
    assert load_corpus(settings) == corpus


def test_more_documents_do_not_move_a_matter_between_training_and_test(tmp_path: Path) -> None:
    def parts(count: int) -> dict[str, bool]:
        write(
            tmp_path / "all.jsonl.gz",
            [{"text": f"{n}", "matter": f"M{n}"} for n in range(count)],
        )
        corpus = load_corpus(DataSettings(source="folder", path=str(tmp_path), test_fraction=0.5))
        held_out = {str(contract.matter): True for contract in corpus.test}
        return {**{str(contract.matter): False for contract in corpus.train}, **held_out}

    few, many = parts(20), parts(60)
    assert {matter: many[matter] for matter in few} == few
    assert 15 < sum(many.values()) < 45


@pytest.mark.parametrize("source", ["edgar", "cuad", "unfair_tos", "contract_nli", "folder"])
def test_a_missing_path_names_the_setting_and_what_belongs_there(
    tmp_path: Path, source: str
) -> None:
    label_field = {"edgar": "topic", "unfair_tos": "unfair"}.get(source, "label")
    with pytest.raises(DataError, match=r"data\.path"):
        load_corpus(DataSettings(source=source, label_field=label_field))
    with pytest.raises(DataError, match=r"data\.path=.*nowhere.*not there"):
        load_corpus(
            DataSettings(source=source, label_field=label_field, path=str(tmp_path / "nowhere"))
        )
    with pytest.raises(DataError, match=r"data\.path"):
        load_corpus(DataSettings(source=source, label_field=label_field, path=str(tmp_path)))


def test_splits_that_overlap_or_are_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "cuad.jsonl.gz", [provision(1), provision(2, split="dev")])
    settings = DataSettings(source="edgar", path=str(tmp_path), label_field="topic")
    with pytest.raises(DataError, match="apart"):
        load_corpus(dataclasses.replace(settings, train_split="train,dev"))
    with pytest.raises(DataError, match=r"data\.test_split.*train \(1\)"):
        load_corpus(dataclasses.replace(settings, test_split="tset"))
    with pytest.raises(DataError, match="topic or label"):
        load_corpus(dataclasses.replace(settings, label_field="headline"))


def test_splits_may_be_written_as_text_number_or_list() -> None:
    assert split_names(" 1+2, 3,1") == ("1", "2", "3")
    settings = decode_data_settings({"train_split": [1, 2], "test_split": 0})
    assert (settings.train_split, settings.test_split) == ("1,2", "0")
    with pytest.raises(SettingsError, match="train_splt"):
        decode_data_settings({"train_splt": "train"})


def test_every_data_configuration_is_commented_and_fits_the_settings() -> None:
    from omegaconf import OmegaConf

    paths = sorted((REPOSITORY / "conf" / "data").glob("*.yaml"))
    assert [path.stem for path in paths] == [
        "contract_nli",
        "cuad",
        "edgar",
        "folder",
        "synthetic",
        "unfair_tos",
    ]
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# foedus simulate data={path.stem}"), path
        for above, line in pairwise(lines):
            assert not line or line.startswith("#") or above.startswith("#"), (path, line)
        values = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(values, dict)
        settings = decode_data_settings({str(key): value for key, value in values.items()})
        assert settings.source == path.stem


real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the shared data is not here")


def real_corpus(**changes: Any) -> Corpus:
    return load_corpus(DataSettings(**changes))


@real_data
@pytest.mark.parametrize(
    ("source", "folder", "changes", "labels"),
    [
        ("edgar", "edgar_provisions", {"label_field": "topic"}, 55),
        ("cuad", "cuad", {}, 37),
        ("cuad", "cuad", {"include_none": True}, 38),
        (
            "unfair_tos",
            "unfair_tos",
            {"label_field": "kind", "train_split": "1+2+3", "test_split": "0"},
            9,
        ),
        ("contract_nli", "contract_nli", {"train_split": "train_part"}, 3),
    ],
)
def test_the_real_files_are_read_whole(
    source: str, folder: str, changes: dict[str, Any], labels: int
) -> None:
    corpus = real_corpus(source=source, path=str(REAL / folder), **changes)
    assert corpus.unreadable == ()
    assert len(corpus.labels) == labels
    assert len(corpus.train) > 500 and len(corpus.test) > 200
    train_matters = {contract.matter for contract in corpus.train}
    assert train_matters.isdisjoint({contract.matter for contract in corpus.test})
