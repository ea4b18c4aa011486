"""A database that is locked or full makes SuperLink say "not now"; any other fault stays one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fastapi import FastAPI
from flwr.supercore.error.http import http_error_translator
from sqlalchemy import Engine, create_engine, event, text

from server.gateway.asgi import Reply, call, post_scope
from server.gateway.database_trouble import DatabaseTrouble


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'x.sqlite3'}", connect_args={"timeout": 0.1})
    with made.begin() as connection:
        connection.execute(text("CREATE TABLE t (v BLOB UNIQUE)"))
    yield made
    made.dispose()


def app_of(engine: Engine, statement: str) -> FastAPI:
    """An app that writes in a thread and tells of errors as SuperLink does."""
    app = FastAPI()
    app.middleware("http")(http_error_translator)

    @app.post("/")
    def write() -> str:
        with engine.begin() as connection:
            connection.execute(text(statement))
        return "done"

    return app


def answer(engine: Engine, statement: str) -> Reply:
    asked = DatabaseTrouble(app_of(engine, statement))
    return asyncio.run(call(asked, post_scope("/", (), None), b""))


def test_what_works_is_answered_as_it_is(engine: Engine) -> None:
    assert answer(engine, "INSERT INTO t VALUES ('a')").status == 200


def test_while_the_database_is_locked_it_says_not_now(engine: Engine, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite3")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert answer(engine, "INSERT INTO t VALUES ('a')").status == 503
    assert answer(engine, "INSERT INTO t VALUES ('a')").status == 200


def test_while_there_is_no_room_it_says_not_now_and_the_log_says_why_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @event.listens_for(engine, "connect")
    def leave_no_room(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    engine.dispose()
    asked = DatabaseTrouble(app_of(engine, "INSERT INTO t VALUES (randomblob(100000))"))
    answers = [asyncio.run(call(asked, post_scope("/", (), None), b"")) for _ in range(3)]
    assert {one.status for one in answers} == {503}
    said = [r for r in caplog.records if "database or disk is full" in r.getMessage()]
    assert [r.name for r in said].count("foedus.gateway") == 1


def test_what_would_fail_again_stays_an_error(engine: Engine) -> None:
    assert answer(engine, "INSERT INTO t VALUES ('a')").status == 200
    assert answer(engine, "INSERT INTO t VALUES ('a')").status == 500
    assert answer(engine, "INSERT INTO nowhere VALUES ('a')").status == 500
