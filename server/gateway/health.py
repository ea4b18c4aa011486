"""Is the coordinator well? /health and /metrics on the loopback address, for operators' tools."""

from __future__ import annotations

import asyncio
import datetime
import json
import shutil
import time
from dataclasses import asdict, dataclass

from cryptography.x509 import load_pem_x509_certificate
from starlette.types import Receive, Scope, Send

from server.consortium.folder import ConsortiumFolder
from server.gateway.asgi import Reply, send_reply
from server.gateway.belongings import Database
from server.gateway.metrics import Metrics
from server.gateway.roster_watch import RosterWatch
from server.gateway.run_gauges import RunGauges

LEAST_FREE_BYTES = 1 << 30
LEAST_CERTIFICATE_DAYS = 14.0

_ONLINE = "SELECT COUNT(*) AS online FROM node WHERE status = 'online' AND online_until > :now"


@dataclass(frozen=True)
class Health:
    """problems: one sentence each; none = well. certificate_days: negative once expired."""

    nodes_online: int
    members: int
    roster_version: int
    free_bytes: int
    certificate_days: float
    problems: tuple[str, ...]


class HealthApp:
    """The ASGI app of the metrics port. status 503 where something is wrong."""

    def __init__(
        self,
        folder: ConsortiumFolder,
        database: Database,
        roster: RosterWatch,
        metrics: Metrics,
    ) -> None:
        self._folder = folder
        self._database = database
        self._roster = roster
        self._metrics = metrics
        self._runs = RunGauges(folder.runs, metrics)
        self._last: Health | None = None
        for name, meaning in (
            ("nodes_online", "SuperNodes that sent a heartbeat or asked for messages lately"),
            ("members", "Members of the newest roster"),
            ("roster_version", "The newest roster"),
            ("free_bytes", "Free space where the consortium's folder lies"),
            ("certificate_days", "Days until the server certificate expires"),
        ):
            metrics.gauge(name, meaning, lambda name=name: float(getattr(self._last, name)))  # type: ignore[misc]
        metrics.gauge(
            "healthy", "1 where /health finds no problem", lambda: float(not self._problems())
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /health as JSON, GET /metrics as text, and nothing else."""
        asked = (scope["method"], scope["path"])
        if asked == ("GET", "/health"):
            health = await asyncio.to_thread(self.look)
            body = json.dumps(asdict(health)).encode()
            status = 503 if health.problems else 200
            reply = Reply(status, ((b"content-type", b"application/json"),), body)
        elif asked == ("GET", "/metrics"):
            body = await asyncio.to_thread(self._metrics_text)
            reply = Reply(200, ((b"content-type", b"text/plain; version=0.0.4"),), body)
        else:
            reply = Reply(404, (), b"")
        await send_reply(send, reply)

    def look(self) -> Health:
        """Ask the database, the disk, the certificate and the roster's watch."""
        problems = list(self._roster.problems)
        newest = self._roster.chain[-1]
        self._last = Health(
            nodes_online=self._nodes_online(problems),
            members=len(newest.members),
            roster_version=newest.version,
            free_bytes=self._free_bytes(problems),
            certificate_days=self._certificate_days(problems),
            problems=tuple(problems),
        )
        return self._last

    def _metrics_text(self) -> bytes:
        self.look()
        self._runs.look()
        return self._metrics.text()

    def _problems(self) -> tuple[str, ...]:
        return self._last.problems if self._last else ()

    def _nodes_online(self, problems: list[str]) -> int:
        try:
            rows = self._database.query(_ONLINE, {"now": time.time()})
        # SQLAlchemy's errors are many, and all of them mean the same here.
        except Exception as error:
            problems.append(f"SuperLink's database does not answer: {type(error).__name__}.")
            return 0
        return int(rows[0]["online"])

    def _free_bytes(self, problems: list[str]) -> int:
        free = shutil.disk_usage(self._folder.path).free
        if free < LEAST_FREE_BYTES:
            problems.append(f"{free >> 20} MiB are free for the consortium's folder.")
        return free

    def _certificate_days(self, problems: list[str]) -> float:
        try:
            certificate = load_pem_x509_certificate(self._folder.server_certificate.read_bytes())
        except (OSError, ValueError) as error:
            problems.append(f"The server certificate cannot be read: {type(error).__name__}.")
            return 0.0
        left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        days = left / datetime.timedelta(days=1)
        if days < LEAST_CERTIFICATE_DAYS:
            problems.append(f"The server certificate expires in {days:.0f} days: server renew.")
        return days
