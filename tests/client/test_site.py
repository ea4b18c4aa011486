"""A site from its site.yaml: folders, what is kept back, and what is said of the unusable."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from client.site import Site
from models.examples import ClauseExample
from protocol.errors import FoedusError, Refusal, SettingsError
from protocol.settings import PrivacySettings
from tests.small_runs import clause_records, open_site, small_run, write_records, write_site


def test_relative_folders_start_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_site(tmp_path / "firm", 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    site = Site.from_file(path)
    assert site.receipts.path == tmp_path / "firm" / "state" / "receipts.jsonl"
    assert len(site.examples("classify").train) == 12
    assert len(site.examples("classify").held_out) == 6


def test_an_absolute_folder_stays_absolute(tmp_path: Path) -> None:
    write_records(tmp_path / "archive", clause_records(1))
    path = tmp_path / "site.yaml"
    path.write_text(f"name: a\ncontracts: {tmp_path / 'archive'}\nstate: state\n")
    assert len(Site.from_file(path).examples("classify").train) > 0


def test_everything_wrong_in_a_site_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("name: 3\ncontract: x\nstate: s\nheld_out_fraction: 2\n")
    with pytest.raises(SettingsError) as caught:
        Site.from_file(path)
    assert len(caught.value.problems) == 4
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "name: [unclosed\n", "a: ${b}\n"])
def test_a_file_that_is_no_site_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(FoedusError, match=r"site\.yaml"):
        Site.from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FoedusError, match=r"no_such\.yaml, got no file"):
        Site.from_file(tmp_path / "no_such.yaml")


def test_an_excluded_matter_is_never_read_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_site(tmp_path, 1)
    path.write_text(path.read_text() + "excluded_matters: [matter-1-0, matter-101-1]\n")
    site = Site.from_file(path)
    with caplog.at_level(logging.INFO, logger="foedus.client"):
        examples = site.examples("classify")
    assert len(examples.train) == 9 and len(examples.held_out) == 3
    matters = {e.matter for e in (*examples.train, *examples.held_out)}
    assert not matters & {"matter-1-0", "matter-101-1"}
    assert "Left out 3 contracts: matter excluded" in caplog.text


def test_without_a_held_out_folder_matters_are_split_off(tmp_path: Path) -> None:
    write_records(tmp_path / "contracts", clause_records(1, per_label=40))
    path = tmp_path / "site.yaml"
    path.write_text("name: a\ncontracts: contracts\nstate: state\nheld_out_fraction: 0.3\n")
    examples = Site.from_file(path).examples("classify")
    assert len(examples.train) + len(examples.held_out) == 120
    assert {e.matter for e in examples.train}.isdisjoint(e.matter for e in examples.held_out)
    assert examples.held_out


def test_a_broken_file_is_named_in_the_log_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_site(tmp_path, 1)
    (tmp_path / "contracts" / "lease.docx").write_bytes(b"PK\x03\x04 not a document")
    site = Site.from_file(path)
    with caplog.at_level(logging.WARNING, logger="foedus.client"):
        assert len(site.examples("classify").train) == 12
    assert "Skipped lease.docx" in caplog.text


def test_contracts_that_gave_no_example_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [*clause_records(1), {"text": "A clause that nobody labelled."}]
    site = open_site(tmp_path, 1, records)
    with caplog.at_level(logging.INFO, logger="foedus.client"):
        site.examples("classify")
    assert "1 contracts gave no example: no label" in caplog.text
    assert "nobody labelled" not in caplog.text


def test_examples_are_read_and_tokenised_once(tmp_path: Path) -> None:
    site = open_site(tmp_path)
    run = small_run()
    first = site.tokenised(run, "train")
    (tmp_path / "contracts" / "clauses.jsonl").unlink()
    assert site.tokenised(run, "train") is first
    assert len(first) == 12 and len(site.tokenised(run, "held_out")) == 6
    assert {len(t.targets) for t in first} == {1}
    assert all(isinstance(e, ClauseExample) for e in site.examples("classify").train)


def test_settings_that_token_ids_do_not_depend_on_cost_no_memory_and_others_none_for_good(
    tmp_path: Path,
) -> None:
    site = open_site(tmp_path)
    run = small_run()
    first = site.tokenised(run, "train")
    later = replace(run, federation=replace(run.federation, rounds=99, seed=5))
    assert site.tokenised(later, "train") is first
    for max_tokens in (20, 21, 22):
        other = replace(run, model=replace(run.model, max_tokens=max_tokens))
        assert site.tokenised(other, "train") is not first
    again = site.tokenised(run, "train")
    assert again is not first and again == first


def test_in_a_private_run_other_labels_are_left_out_and_the_coordinator_hears_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal would answer, without noise, whether a site has a label."""
    records = [*clause_records(1), {"text": "Rent is due.", "label": "rent", "matter": "m"}]
    site = open_site(tmp_path, records=records)
    run = small_run()
    with pytest.raises(Refusal, match="rent"):
        site.tokenised(run, "train")
    private = replace(run, privacy=PrivacySettings(mode="dp"))
    with caplog.at_level(logging.WARNING, "foedus.client"):
        assert len(site.tokenised(private, "train")) == 12
    assert "1 clauses have labels nobody agreed on" in caplog.text
