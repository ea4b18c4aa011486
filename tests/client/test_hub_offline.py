"""A base model that somebody else named is looked for on this machine alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from protocol.codec import encode
from tests.client.released import CLASSIFIER, release
from tests.small_runs import write_site

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMED = "somebody/elses-model"


class Hub(ThreadingHTTPServer):
    """Stands where the Hub would, knows no model, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Asked)


class _Asked(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Hub)
        self.server.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def client(hub: Hub, home: Path, *words: object, **variables: str) -> str:
    """What a command of `foedus client` that fails says, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home)}
    code = "import sys, foedus; sys.exit(foedus.main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "client", *map(str, words)],
        cwd=ROOT, env=environment | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode != 0
    return result.stderr + result.stdout


def command(folder: Path, name: str) -> list[object]:
    """A command that is given a run or a released folder which names a model of the Hub."""
    run = replace(CLASSIFIER, model=replace(CLASSIFIER.model, id=NAMED))
    settings = folder / "run.json"
    settings.write_text(json.dumps(encode(run)))
    if name == "predict":
        release(folder / "adapter", CLASSIFIER)
        (folder / "adapter" / "foedus.json").write_text(
            (folder / "adapter" / "foedus.json").read_text().replace('"minilm"', f'"{NAMED}"')
        )
        return ["predict", "--adapter", folder / "adapter", settings]
    return [name, "--config", write_site(folder / "site", 1), "--settings", settings]


@pytest.mark.parametrize("name", ["predict", "audit", "check"])
def test_no_command_asks_the_hub_for_a_model_that_others_named(
    tmp_path: Path, hub: Hub, name: str
) -> None:
    told = client(hub, tmp_path / "home", *command(tmp_path, name))
    assert hub.asked == []
    assert NAMED in told and "hf download" in " ".join(told.split())


def test_who_sets_the_variable_lets_a_command_ask(tmp_path: Path, hub: Hub) -> None:
    client(hub, tmp_path / "home", *command(tmp_path, "predict"), HF_HUB_OFFLINE="0")
    assert any(NAMED in path for path in hub.asked)
