"""Which requests are offered at all, decided on the bytes as they came."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.allowed_paths import FLEET_REQUESTS, fleet_path, member_path


def scope(path: bytes, **changed: object) -> dict[str, Any]:
    """As uvicorn makes it for a POST."""
    made = {"type": "http", "http_version": "1.1", "method": "POST", "raw_path": path}
    return {**made, "path": "/v1/fleet/pull-messages", "query_string": b"", **changed}


@pytest.mark.parametrize("path", FLEET_REQUESTS)
def test_every_path_of_the_list_is_offered(path: str) -> None:
    assert fleet_path(scope(path.encode())) == path


@given(st.binary(max_size=60))
def test_any_other_bytes_are_no_path(raw: bytes) -> None:
    assert fleet_path(scope(raw)) is (None if raw not in _OFFERED else raw.decode())


_OFFERED = {path.encode() for path in FLEET_REQUESTS}


@pytest.mark.parametrize(
    "changed",
    [{"method": "GET"}, {"method": "post"}, {"http_version": "1.0"}, {"query_string": b"x"},
     {"raw_path": None}],
)  # fmt: skip
def test_any_other_method_version_or_query_is_not_offered(changed: dict[str, object]) -> None:
    assert fleet_path(scope(b"/v1/fleet/pull-messages", **changed)) is None


def test_nodes_are_neither_registered_nor_removed_by_firms() -> None:
    assert not {path for path in FLEET_REQUESTS if "register" in path}


def test_the_member_api_is_offered_by_method_and_path() -> None:
    offered = {("GET", "/v1/foedus/health")}
    asked = scope(b"/v1/foedus/health", method="GET", query_string=b"x=1")
    assert member_path(asked, offered) == ("GET", "/v1/foedus/health")
    assert member_path(scope(b"/v1/foedus/health"), offered) is None
    assert member_path(scope(b"/v1/foedus//health", method="GET"), offered) is None
    assert member_path({**asked, "http_version": "1.0"}, offered) is None
