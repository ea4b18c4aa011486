"""The page about reliability and the harness tell of the same scenarios."""

from __future__ import annotations

import re

from tests.faults.deployment import PRIVATE_AND_MASKED
from tests.faults.page import BEGIN, END, PAGE, names_in, table, with_table
from tests.faults.scene import PLAIN_RUN, Outcome
from tests.faults.table import SCENARIOS, THOROUGH


def test_the_page_has_every_scenario_of_the_harness_and_no_other() -> None:
    assert names_in(PAGE.read_text(encoding="utf-8")) == [s.name for s in SCENARIOS]


def test_scenarios_have_names_of_their_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)


def test_a_row_says_which_runs_are_plain() -> None:
    plain = {s.name for s in SCENARIOS if s.settings != PRIVATE_AND_MASKED}
    assert plain == {s.name for s in SCENARIOS if PLAIN_RUN in s.when}


def test_the_page_names_the_rows_of_which_nothing_need_be_said() -> None:
    words = PAGE.read_text(encoding="utf-8").partition(BEGIN)[0].partition("Of five rows")[2]
    silent = [scenario.name for scenario in SCENARIOS if not scenario.said]
    assert re.findall(r"`([a-z-]+)`", words.partition(".\n")[0]) == silent


def test_what_every_test_run_includes_are_scenarios() -> None:
    assert {scenario.name for scenario in SCENARIOS} > THOROUGH


def test_a_written_table_leaves_the_words_around_it_alone() -> None:
    scenario = SCENARIOS[0]
    outcome = Outcome(scenario.name, (3, 2), (1, 2), 2, 12.4)
    rows = table([(scenario, outcome), (SCENARIOS[1], None)])
    page = with_table(f"before\n{BEGIN}\nstale row\n{END}\nafter\n", rows)
    assert page.startswith(f"before\n{BEGIN}\n| scenario") and page.endswith(f"{END}\nafter\n")
    assert names_in(page) == [scenario.name, SCENARIOS[1].name]
    assert "stale" not in page and "| 3 2; resumed 1 times | 12 |" in page
    assert "| not measured | - |" in page
