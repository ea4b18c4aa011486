"""`foedus client identity`: a key that stays, and an entry that the roster takes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from typer.testing import CliRunner

from client.cli import app
from protocol.consortium.identity import load_identity
from protocol.consortium.roster import Roster


def test_an_identity_is_made_once_and_its_entry_fits_a_roster(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    words = ["identity", str(path), "--name", "Vane & Alder"]
    first, again = (CliRunner().invoke(app, words) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert first.stdout == again.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    entry = json.loads(first.stdout)
    text = json.dumps({"schema": 1, "consortium": "test", "version": 1, "members": [entry]})
    (member,) = Roster.from_json(text).members
    assert member.name == "Vane & Alder"
    assert member.public_key == load_identity(path).public_key
    assert load_identity(path).member_id in first.stderr


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    words = ["identity", str(path), "--name", "Vane"]
    CliRunner().invoke(app, words)
    path.chmod(0o644)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "chmod 600" in result.stderr
