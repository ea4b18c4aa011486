"""The bundle that Flower ships: our packages and configuration, and nothing of a firm's."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol", "models", "client", "strategies", "server", "conf")
MAX_BYTES = 10 * 2**20


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which someone also keeps contracts, outputs and weights."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in (*ROOMS, "simulations"):
        shutil.copytree(
            ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "novels")
        )
    for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE", "foedus.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in (
        "data/site_a.jsonl",
        "client/contracts/acme.docx",
        "client/site.yaml",
        "conf/notes.txt",
        "models/novels/model.safetensors",
        "outputs/run/adapter/adapter_model.safetensors",
        "outputs/run/server/state.py",
        "server/key.pem",
        ".env",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a secret of the firm")
    return folder


@pytest.fixture(scope="module")
def bundle(checkout: Path) -> bytes:
    return build_fab_from_disk(checkout)


def sources() -> set[str]:
    """What belongs in the bundle, by the repository itself."""
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    return found | {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}


def test_the_bundle_holds_exactly_the_packages_and_the_configuration(bundle: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = set(archive.namelist())
        assert all(b"a secret of the firm" not in archive.read(name) for name in names)
    added_by_flower = {"pyproject.toml", ".info/CONTENT", "LICENSE", "README.md"}
    assert names - added_by_flower == sources()
    assert {"pyproject.toml", ".info/CONTENT"} <= names


def test_the_bundle_is_small_enough_to_be_shipped(bundle: bytes) -> None:
    assert len(bundle) <= MAX_BYTES


def test_both_apps_are_importable_from_the_bundle_alone(bundle: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        archive.extractall(tmp_path)
    # An editable install would otherwise put the repository itself on the path.
    code = (
        "import sys; sys.path = [p for p in sys.path if p != sys.argv[1]]; "
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        "sys.path.insert(0, sys.argv[2]); "
        "import client.app, server.app; "
        "from flwr.clientapp import ClientApp; from flwr.serverapp import ServerApp; "
        "assert isinstance(client.app.app, ClientApp) and isinstance(server.app.app, ServerApp); "
        "assert client.app.__file__.startswith(sys.argv[2]), client.app.__file__; "
        "settings = server.app.compose_settings(['task.labels=[a,b]']); "
        "assert settings.federation.method == 'fedsvd'; "
        "print('both apps')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "both apps"
