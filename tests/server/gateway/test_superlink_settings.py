"""What Flower makes of the words and the environment that `server up` gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from flwr.superlink.cli.flower_superlink import _parse_superlink_lifespan_config

from server.gateway.superlink import LOOPBACK, superlink_arguments
from server.gateway.superlink_environment import superlink_environment
from tests.server.gateway.little_coordinator import Coordinator, executor_of, found, wait_for

# The order is that of server/gateway/__main__.py: Flower reads these variables as it is imported.
TELEMETRY = """
import json, os, sys
import server.gateway.__main__
assert "flwr" not in sys.modules
os.environ.update(json.loads(sys.argv[1]))
from flwr.supercore import telemetry
print(telemetry.FLWR_TELEMETRY_ENABLED)
"""


def test_flower_takes_the_words_for_what_they_are_meant_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = found(tmp_path / "oak", [])
    settings = folder.settings()
    monkeypatch.setattr(sys, "argv", ["flower-superlink", *superlink_arguments(folder, settings)])
    config = _parse_superlink_lifespan_config()
    assert config.database == str(folder.database.resolve())
    assert folder.database.parent == folder.state
    assert config.enable_supernode_auth
    assert not config.runtime_dependency_install
    assert not config.insecure and config.certificates is not None
    assert (config.host, config.port) == (LOOPBACK, settings.control_port)


def test_telemetry_is_off_before_flower_is_imported(tmp_path: Path) -> None:
    folder = found(tmp_path / "oak", [])
    environment = {name: value for name, value in os.environ.items() if "FLWR" not in name}
    told = subprocess.run(
        [sys.executable, "-c", TELEMETRY, json.dumps(superlink_environment(folder))],
        env=environment, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.stdout.strip() == "0"


@pytest.mark.slow
def test_a_running_superlink_knows_nodes_by_signature_and_keeps_to_its_folder(
    coordinator: Coordinator,
) -> None:
    """Of the executor: what SuperLink started it with, and what it inherited."""
    database = coordinator.folder.database.resolve()
    opened = psutil.Process(coordinator.state.pid).open_files()
    assert str(database) in {file.path for file in opened}
    executor = wait_for(lambda: executor_of(coordinator))
    given = executor.environ()
    assert (given["FLWR_TELEMETRY_ENABLED"], given["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert "--allow-runtime-dependency-installation" not in executor.cmdline()
    with coordinator.outside(at=coordinator.state.control_address) as client:
        unsigned = client.post(
            "/v1/fleet/pull-messages", headers={"content-type": "application/protobuf"}
        )
    assert unsigned.status_code == 401
