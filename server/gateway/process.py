"""Puts the coordinator's process together: SuperLink, guard, member API, listeners."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Mapping
from typing import cast

import anyio.to_thread
import uvloop
from fastapi import FastAPI
from flwr.server.superlink.linkstate import LinkState

from protocol.consortium.private_pem import from_private_pem, read_private_file
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings
from server.gateway.belongings import Belongings, Database
from server.gateway.database_trouble import DatabaseTrouble
from server.gateway.event_log import configure_logging, keep_output
from server.gateway.false_announcements import FalseAnnouncements
from server.gateway.fleet_rules import FleetRules
from server.gateway.guard import Guard
from server.gateway.health import HealthApp
from server.gateway.hosting import Apps, Hosting, Sockets
from server.gateway.limits import Limits
from server.gateway.long_poll import ArrivalBoard
from server.gateway.member_api import PULL_RECEIPTS, PUSH_RECEIPTS, Handler, MemberApi
from server.gateway.metrics import Metrics
from server.gateway.node_identity import NodeGate
from server.gateway.presence import Nodes, Presence
from server.gateway.redelivery import Redelivery
from server.gateway.reply_check import ReplyCheck
from server.gateway.reply_removal import Removing, ReplyRemoval
from server.gateway.roster_watch import RosterWatch
from server.gateway.run_watch import RunWatch
from server.gateway.superlink import ExecutorWatch, superlink_app
from server.gateway.unread import UnreadBytes
from server.gateway.upkeep import (
    CERTIFICATE_SECONDS,
    EXECUTOR_SECONDS,
    ROSTER_SECONDS,
    RUNS_SECONDS,
    CertificateWatch,
    repeat,
)
from server.gateway.uploads import Uploads
from server.gateway.whole_replies import WholeReplies
from server.receipts.countersign import CountersigningDesk
from server.runs.keeper import Keeper
from server.runs.lifecycle import Runs

log = logging.getLogger("foedus.gateway")

# That answer SuperLink's requests, instead of 40. Nearly all of them write, and SQLite lets one
# write at a time: the others wait with growing pauses, and after 5 s the request fails.
_SUPERLINK_THREADS = 8


def run_gateway(folder: ConsortiumFolder, log_format: str) -> None:
    """Serve until told to stop. Errors: FoedusError where it cannot start."""
    opened_at = datetime.datetime.now(datetime.UTC)
    settings = folder.settings()
    passphrase = folder.passphrase()
    _expect_tls_key(folder, passphrase)
    folder.state.mkdir(parents=True, exist_ok=True)
    sockets = Sockets.bind(settings)
    desk = CountersigningDesk.of(folder)
    stderr = keep_output(folder.state / "flower.log")
    configure_logging(folder.state / "gateway.log", log_format, stderr)
    superlink = superlink_app(folder, settings)
    handlers = {PUSH_RECEIPTS: desk.push, PULL_RECEIPTS: desk.pull}
    # A round is dozens of small requests, one after the other: what counts is how soon each is
    # taken up, and asyncio's own loop takes half as long again (docs/experiments.md).
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(folder, settings, passphrase, sockets, superlink, handlers, opened_at))


def _expect_tls_key(folder: ConsortiumFolder, passphrase: bytes | None) -> None:
    """Errors: FoedusError where the key is missing, readable by others, or does not open."""
    data = read_private_file(folder.server_key, "the key of the coordinator's TLS certificate")
    try:
        from_private_pem(data, passphrase)
    except FoedusError as error:
        raise FoedusError(f"{folder.server_key}: {error}") from error


async def _serve(
    folder: ConsortiumFolder,
    settings: ConsortiumSettings,
    passphrase: bytes | None,
    sockets: Sockets,
    superlink: FastAPI,
    handlers: Mapping[tuple[str, str], Handler],
    opened_at: datetime.datetime,
) -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = _SUPERLINK_THREADS
    limits, metrics, board = Limits.of(settings), Metrics(), ArrivalBoard()
    whole = WholeReplies()
    uploads = Uploads(whole)
    state: LinkState = superlink.state.linkstate_factory.state()
    database = cast(Database, state)
    belongings, removal = Belongings(database), ReplyRemoval(cast(Removing, state))
    unread = UnreadBytes(database, removal)
    for open_upload in belongings.open_uploads():
        uploads.begun(*open_upload)
    roster = RosterWatch(folder, Runs(folder, settings).control)
    gate = NodeGate(roster.admits, state.get_node_id_by_public_key, opened_at)
    asked = DatabaseTrouble(superlink)
    guard = Guard(
        asked,
        gate,
        FleetRules(
            belongings,
            uploads,
            unread,
            ReplyCheck(database, state.object_store, removal),
            limits,
            Presence(cast(Nodes, state)),
        ),
        Redelivery(database),
        board,
        MemberApi(lambda: roster.chain, handlers, limits),
        limits,
        metrics,
    )
    health = HealthApp(folder, database, roster, metrics)
    announcements = FalseAnnouncements(database, removal)
    watch = RunWatch(asked, board, unread, uploads, whole, announcements)
    apps = Apps(watch, guard, health)
    hosting = Hosting(folder, passphrase, sockets, apps, limits, metrics)
    metrics.gauge("held_polls", "SuperNodes waiting for a message", lambda: board.held)
    metrics.gauge("connections", "Open connections of firms", lambda: hosting.firms.num_connections)
    certificate = CertificateWatch(
        folder.server_certificate, folder.server_key, hosting.reload_certificate
    )

    def follow_roster() -> None:
        roster.look(time.time())

    upkeep = (
        repeat(ROSTER_SECONDS, follow_roster),
        repeat(RUNS_SECONDS, Keeper(folder, settings).step),
        repeat(CERTIFICATE_SECONDS, certificate.look),
        repeat(EXECUTOR_SECONDS, ExecutorWatch(superlink).look),
    )
    # A SuperNode that is not registered yet would be told 401, and end.
    await hosting.run(follow_roster, upkeep, gate.takes_from, board.close)
