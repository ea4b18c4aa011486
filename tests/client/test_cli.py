import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import app
from client.receipts import ReceiptLog
from client.site import Site
from models.examples import ClauseExample
from tests.client.released import CLASSIFIER, LABELS, WRITER, release

SECRET = "Ruritania"
CLAUSES = [
    {"text": f"The law of {SECRET} governs this deed, number {n}.", "label": label, "matter": m}
    for n, (label, m) in enumerate(
        [("Governing Law", "alpha"), ("Payment", "alpha"), ("Payment", "beta"), ("Notice", None)]
    )
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    release(folder, CLASSIFIER)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The site.yaml of a site with labelled records, a plain contract and a broken file."""
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    lines = "".join(json.dumps(clause) + "\n" for clause in CLAUSES)
    (contracts / "clauses.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    text = f"1. Term. This lease of land in {SECRET} runs for ten years from today.\n" * 5
    (contracts / "lease.txt").write_text(text)
    (contracts / "lease.txt.meta.json").write_text('{"matter": "gamma"}')
    (contracts / "torn.docx").write_text(SECRET)
    (contracts / "private.txt").write_text(text)
    (contracts / "private.txt.meta.json").write_text('{"consent": false}')
    config = tmp_path / "site.yaml"
    config.write_text("name: north\ncontracts: contracts\nstate: state\nheld_out_fraction: 0.4\n")
    return config


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def run_json(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def receipts_of(config: Path, count: int) -> ReceiptLog:
    log = Site.from_file(config).receipts
    for round_ in range(count):
        log.append(
            kind="train", run_id="a" * 32, round_=round_ + 1, status="ok", digest="b" * 64,
            num_bytes=1000 + round_,
        )  # fmt: skip
    return log


def test_predict_prints_each_clause_with_its_label_as_a_table(
    classifier: Path, tmp_path: Path
) -> None:
    path = tmp_path / "msa.txt"
    path.write_text("1. Term. Ten [bold]years[/bold].\n\n2. Fees. They are due at once.\n")
    result = run("predict", "--adapter", classifier, path)
    assert result.exit_code == 0, result.stderr
    assert "1. Term. Ten [bold]years[/bold]." in result.stdout
    assert "2. Fees." in result.stdout
    assert any(label in result.stdout for label in LABELS)
    assert result.stderr == ""


def test_predict_as_json_gives_offsets_text_and_the_top_labels(
    classifier: Path, tmp_path: Path
) -> None:
    path, text = tmp_path / "msa.txt", "1. Term. Ten years.\n\n2. Fees. They are due at once.\n"
    path.write_text(text)
    found = run_json("predict", "--adapter", classifier, "--top", 3, path)
    assert [text[c["start"] : c["end"]] for c in found["clauses"]] == [
        "1. Term. Ten years.", "2. Fees. They are due at once.",
    ]  # fmt: skip
    for clause in found["clauses"]:
        labels = [entry["label"] for entry in clause["labels"]]
        assert len(set(labels)) == 3
        assert [clause["label"], clause["second_label"]] == labels[:2]
        assert clause["probability"] == clause["labels"][0]["probability"]
        assert clause["source"] == clause["file"] == str(path)
    assert found["not_read"] == []


def test_clauses_under_the_smallest_probability_are_counted_not_shown(
    classifier: Path, tmp_path: Path
) -> None:
    path = tmp_path / "msa.txt"
    path.write_text("1. Term. Ten years.\n\n2. Fees. They are due at once.\n")
    everything = run_json("predict", "--adapter", classifier, path)["clauses"]
    bar = max(clause["probability"] for clause in everything)
    found = run_json("predict", "--adapter", classifier, "--min-probability", bar, path)
    assert (len(found["clauses"]), found["hidden"]) == (1, 1)
    shown = run("predict", "--adapter", classifier, "--min-probability", bar, path)
    assert "1 clause labelled with less than" in shown.stderr


def test_broken_files_are_named_on_stderr_and_the_rest_is_labelled(
    classifier: Path, tmp_path: Path
) -> None:
    good, torn = tmp_path / "good.txt", tmp_path / "torn.docx"
    good.write_text("The parties agree.")
    torn.write_text("no zip")
    result = run("predict", "--adapter", classifier, torn, tmp_path / "absent.pdf", good, "--json")
    assert result.exit_code == 1
    assert "torn.docx" in result.stderr and "absent.pdf" in result.stderr
    found = json.loads(result.stdout)
    assert [c["source"] for c in found["clauses"]] == [str(good)]
    assert [u["source"] for u in found["not_read"]] == [str(torn), str(tmp_path / "absent.pdf")]


def test_a_causal_adapter_answers_and_tells_what_it_could_not_see(tmp_path: Path) -> None:
    release(tmp_path / "adapter", WRITER)
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("The tenant pays.")
    long.write_text("The tenant shall pay the rent. " * 200)
    words = ("predict", "--adapter", tmp_path / "adapter", "--max-new-tokens", 6)
    result = run(*words, "--ask", "Who pays?", short, long, "--json")
    assert result.exit_code == 0, result.stderr
    answers = json.loads(result.stdout)["answers"]
    assert [a["source"] for a in answers] == [str(short), str(long)]
    assert all(a["text"] for a in answers)
    assert "long.txt: the model's context holds" in result.stderr
    assert "short.txt" not in result.stderr
    shown = run(*words, "--ask", "Who pays?", short)
    assert shown.stdout.startswith(f"{short}:\n") and len(shown.stdout.splitlines()) > 1


def test_a_folder_that_is_no_adapter_is_one_message_and_status_2(tmp_path: Path) -> None:
    path = tmp_path / "msa.txt"
    path.write_text("The parties agree.")
    result = run("predict", "--adapter", tmp_path, path)
    assert result.exit_code == 2
    assert "Expected an adapter folder" in result.stderr
    assert "Traceback" not in result.output and result.stdout == ""


def test_a_question_to_an_adapter_that_labels_is_refused(classifier: Path, tmp_path: Path) -> None:
    result = run("predict", "--adapter", classifier, "--ask", "Who?", tmp_path / "msa.txt")
    assert result.exit_code == 2
    assert "--ask expects an adapter that writes text" in result.stderr


def test_log_shows_every_receipt(site: Path) -> None:
    log = receipts_of(site, 3)
    shown = run("log", "--config", site)
    assert shown.exit_code == 0, shown.stderr
    assert all(str(1000 + n) in shown.stdout for n in range(3))
    found = run_json("log", "--config", site)
    assert found["receipts"] == [vars(receipt) for receipt in log.verify()]
    assert found["problems"] == []


@pytest.mark.parametrize("damage", ["altered", "removed", "inserted", "no receipt"])
def test_verify_finds_a_broken_chain_and_ends_with_status_1(site: Path, damage: str) -> None:
    path = receipts_of(site, 4).path
    assert run("log", "--config", site, "--verify").exit_code == 0
    lines = path.read_text().splitlines(keepends=True)
    damaged = {
        "altered": [lines[0], lines[1].replace("1001", "9001"), *lines[2:]],
        "removed": [lines[0], *lines[2:]],
        "inserted": [lines[0], lines[1], lines[1], *lines[2:]],
        "no receipt": [lines[0], "[1]\n", *lines[1:]],
    }[damage]
    path.write_text("".join(damaged))
    result = run("log", "--config", site, "--verify")
    assert result.exit_code == 1
    assert "line" in result.stderr and "Traceback" not in result.output


def test_a_line_that_is_being_written_or_that_a_crash_left_is_none_yet(site: Path) -> None:
    path = receipts_of(site, 3).path
    data = path.read_bytes()
    for end in (b'{"digest": "ab', data.splitlines()[-1]):
        path.write_bytes(data + end)
        for words in ([], ["--verify"]):
            result = run("log", "--config", site, *words)
            assert result.exit_code == 0, result.output
        assert "The chain of 3 receipts is whole." in result.stderr
        assert path.read_bytes() == data + end


def test_log_without_verify_shows_what_it_can_and_names_the_rest(site: Path) -> None:
    path = receipts_of(site, 2).path
    path.write_text("half a li\n" + path.read_text())
    result = run("log", "--config", site, "--json")
    assert result.exit_code == 1
    assert [r["num_bytes"] for r in json.loads(result.stdout)["receipts"]] == [1000, 1001]
    assert "line 1 is no receipt" in result.stderr


def test_a_site_that_sent_nothing_has_an_empty_log(site: Path) -> None:
    result = run("log", "--config", site, "--verify")
    assert result.exit_code == 0
    assert "Nothing has left this site" in result.stderr


@pytest.mark.parametrize("content", [None, "name: [", "name: 3\nsecret: 1\n", "- a\n- b\n"])
def test_a_broken_site_configuration_is_one_message_and_status_2(
    tmp_path: Path, content: str | None
) -> None:
    config = tmp_path / "site.yaml"
    if content is not None:
        config.write_text(content)
    for command in ("log", "data"):
        result = run(command, "--config", config)
        assert result.exit_code == 2
        assert str(config) in result.stderr and "Traceback" not in result.output


def test_data_counts_what_the_site_would_learn_from(site: Path) -> None:
    found = run_json("data", "--config", site)
    assert found["site"] == "north"
    assert found["excluded"] == {"no consent": 1}
    assert [broken["source"] for broken in found["unreadable"]] == ["torn.docx"]
    classify = found["tasks"]["classify"]
    totals = {c["name"]: c["train"] + c["held_out"] for c in classify["labels"]}
    assert totals == {"Payment": 2, "Governing Law": 1, "Notice": 1}
    matters = {c["name"]: c["train"] + c["held_out"] for c in classify["matters"]}
    assert matters == {"alpha": 2, "beta": 1, None: 1}
    assert classify["unused"] == {"no label": 1}
    assert "gamma" in {c["name"] for c in found["tasks"]["instruct"]["matters"]}


@pytest.mark.parametrize("own_held_out", [False, True])
def test_data_counts_exactly_what_training_gets(site: Path, own_held_out: bool) -> None:
    if own_held_out:
        held_out = site.parent / "later"
        held_out.mkdir()
        (held_out / "new.jsonl").write_text('{"text": "Fees are due.", "label": "Payment"}\n')
        site.write_text(site.read_text() + "held_out: later\nexcluded_matters: [Alpha]\n")
    found = run_json("data", "--config", site)["tasks"]
    for kind in ("classify", "instruct"):
        expected = Site.from_file(site).examples(kind)
        assert found[kind]["train"] == len(expected.train)
        assert found[kind]["held_out"] == len(expected.held_out)
        assert found[kind]["unused"] == expected.unused
    labels = [e.label for e in Site.from_file(site).examples("classify").train
              if isinstance(e, ClauseExample)]  # fmt: skip
    counted = {c["name"]: c["train"] for c in found["classify"]["labels"] if c["train"]}
    assert counted == {label: labels.count(label) for label in set(labels)}


def test_data_prints_no_text_of_a_contract(site: Path) -> None:
    for words in (("data", "--config", site), ("data", "--config", site, "--json")):
        result = run(*words)
        assert result.exit_code == 0
        assert "Payment" in result.stdout and "torn.docx" in result.stdout
        assert SECRET not in result.output


def test_help_loads_no_model_library() -> None:
    code = (
        "import sys, client.cli\n"
        "print({'torch', 'transformers', 'peft', 'flwr', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
