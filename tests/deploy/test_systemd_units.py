"""The units: systemd accepts them, and they keep a service in its place."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
FOEDUS = "/opt/foedus/.venv/bin/foedus"
# What systemd-analyze calls "OK" ends at 4; an unhardened service has 9.6.
MOST_EXPOSURE = 2.0


def settings(unit: Path) -> dict[str, list[str]]:
    """The [Service] part; systemd lets a key stand several times."""
    found: dict[str, list[str]] = defaultdict(list)
    section = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def installed(unit: Path, folder: Path) -> Path:
    """The unit with a command that exists on this machine, as systemd looks for it."""
    text = unit.read_text(encoding="utf-8")
    assert text.count(FOEDUS) == 1
    path = folder / unit.name
    here = str(Path(sys.executable).parent / "foedus")
    path.write_text(text.replace(FOEDUS, here), encoding="utf-8")
    return path


def test_there_is_a_unit_for_each_side() -> None:
    assert [unit.name for unit in UNITS] == ["foedus-client.service", "foedus-server.service"]
    for unit in UNITS:
        configparser.ConfigParser(strict=False, interpolation=None).read(unit, encoding="utf-8")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit_and_finds_it_hardened(unit: Path, tmp_path: Path) -> None:
    path = str(installed(unit, tmp_path))
    verified = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0 and not verified.stderr, verified.stderr
    threshold = str(int(MOST_EXPOSURE * 10))
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_service_writes_to_its_own_folder_alone(unit: Path) -> None:
    found = settings(unit)
    assert found["ProtectSystem"] == ["strict"] and found["StateDirectory"] == ["foedus"]
    assert "ReadWritePaths" not in found and found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["User"] == ["foedus"] and found["UMask"] == ["0077"]
    if "client" in unit.name:
        assert found["ReadOnlyPaths"] == ["/srv/contracts"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_service_comes_back_and_gets_its_passphrase_as_a_credential(unit: Path) -> None:
    found = settings(unit)
    assert found["Restart"] == ["always"] and found["KillMode"] == ["mixed"]
    assert found["LoadCredential"] == ["passphrase:/etc/foedus/passphrase"]
    assert "FOEDUS_PASSPHRASE_FILE=%d/passphrase" in found["Environment"]
    assert not any(value.startswith("FOEDUS_PASSPHRASE=") for value in found["Environment"])
    (command,) = found["ExecStart"]
    assert command.startswith(FOEDUS) and "pass" not in command
