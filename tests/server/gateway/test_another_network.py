"""The coordinator seen from another network: a namespace whose only way here is a virtual cable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.gateway.little_coordinator import Coordinator, Firm, found, free_port, up

HERE, THERE = "10.213.77.1", "10.213.77.2"
NAME = f"foedus{os.getpid()}"
ASH = Firm("Ash")

# What the outside tries: each port at each address that leads here, then the paths.
PROBE = """
import json, socket, sys
import httpx
here, ca, ports = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
found = {}
for name, port in ports.items():
    for host in (here, "127.0.0.1", "127.0.0.2"):
        try:
            socket.create_connection((host, port), timeout=5).close()
            found[f"{name} {host}"] = "open"
        except OSError as error:
            found[f"{name} {host}"] = type(error).__name__
with httpx.Client(base_url=f"https://{here}:{ports['public']}", verify=ca) as client:
    found["health"] = client.get("/v1/foedus/health").status_code
    for path in ("/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task"):
        headers = {"content-type": "application/protobuf"}
        found[path] = client.post(path, headers=headers).status_code
print(json.dumps(found))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making a network namespace takes root and the ip command")
    cable, far = f"fa{os.getpid()}", f"fb{os.getpid()}"
    try:
        ip("netns", "add", NAME)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", cable, "type", "veth", "peer", "name", far)
        ip("link", "set", far, "netns", NAME)
        ip("addr", "add", f"{HERE}/24", "dev", cable)
        ip("link", "set", cable, "up")
        ip("-n", NAME, "addr", "add", f"{THERE}/24", "dev", far)
        ip("-n", NAME, "link", "set", far, "up")
        ip("-n", NAME, "link", "set", "lo", "up")
        yield NAME
    finally:
        ip("netns", "del", NAME)
        subprocess.run(["ip", "link", "del", cable], capture_output=True)


@pytest.mark.slow
def test_from_another_network_the_firms_port_is_all_there_is(
    namespace: str, tmp_path: Path
) -> None:
    port = free_port(HERE)
    folder = found(
        tmp_path / "oak", [ASH.entry()], also_known_as=(HERE,),
        public_host=HERE, public_port=port, advertised_address=f"{HERE}:{port}",
    )  # fmt: skip
    with up(folder) as coordinator:
        seen = look(namespace, coordinator)
    assert seen.pop(f"public {HERE}") == "open"
    assert seen.pop("health") == 200
    paths = {name: status for name, status in seen.items() if name.startswith("/v1/")}
    assert set(paths.values()) == {404}
    ports = {name: result for name, result in seen.items() if name not in paths}
    assert len(ports) == 8 and "open" not in ports.values()


def look(namespace: str, coordinator: Coordinator) -> dict[str, object]:
    state = coordinator.state
    ports = {
        name: int(address.rpartition(":")[2])
        for name, address in (
            ("public", state.public_address),
            ("control", state.control_address),
            ("metrics", state.metrics_address),
        )
    }
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", PROBE,
         HERE, coordinator.ca, json.dumps(ports)],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    answer: dict[str, object] = json.loads(done.stdout)
    return answer
