"""Firm names for node numbers, as firms come and go while a run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from protocol.consortium.identity import Identity
from protocol.consortium.roster import Member, Roster
from protocol.errors import FoedusError
from server.runs.node_names import NodeNames, read_node_ids


def test_names_follow_the_file_of_nodes(tmp_path: Path) -> None:
    firms = [Member(name, Identity.generate().public_key) for name in ("Ash", "Birch")]
    roster = Roster("Oak", 1, tuple(firms))
    path = tmp_path / "nodes.json"
    names = NodeNames(path, roster)
    assert dict(names) == {}
    path.write_text(json.dumps({firms[0].member_id: 2**63 + 5, "unknown": 9}))
    assert dict(names) == {2**63 + 5: "Ash"}
    path.write_text(json.dumps({firms[0].member_id: 7, firms[1].member_id: 8}))
    os.utime(path, ns=(1, 1))
    # A reply to a request from before a firm got a new node still has its name.
    assert dict(names) == {2**63 + 5: "Ash", 7: "Ash", 8: "Birch"}
    path.write_text("{")
    os.utime(path, ns=(2, 2))
    assert names[8] == "Birch"


def test_a_damaged_file_of_nodes_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    assert read_node_ids(path) == {}
    path.write_text('["x"]')
    with pytest.raises(FoedusError, match="damaged"):
        read_node_ids(path)
