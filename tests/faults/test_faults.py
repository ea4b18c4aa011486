"""Every scenario of the table, one after the other, in one deployment of real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from tests.faults.checks import expect_survived
from tests.faults.deployment import Deployment
from tests.faults.page import forget, keep
from tests.faults.scene import Scenario, Scene
from tests.faults.table import SCENARIOS, THOROUGH

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("consortium"))
    try:
        yield made
    finally:
        made.end()


def _in_its_place(scenario: Scenario) -> ParameterSet:
    marks = (pytest.mark.thorough,) if scenario.name in THOROUGH else ()
    return pytest.param(scenario, id=scenario.name, marks=marks)


@pytest.mark.parametrize("scenario", [_in_its_place(scenario) for scenario in SCENARIOS])
def test_a_run_survives(deployment: Deployment, scenario: Scenario) -> None:
    if reason := scenario.needs(deployment):
        pytest.skip(reason)
    forget(scenario)
    deployment.make_whole()
    try:
        scene = Scene(deployment, scenario)
        scenario.act(scene)
        scene.wait_for_end()
        keep(expect_survived(scene))
    except BaseException:
        # The next one must not meet what this one has left.
        deployment.stop()
        raise
