"""What the coordinator counts, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.gateway.event_log import log_connection_refused, log_served
from server.gateway.observing import Served
from server.gateway.refusal_log import RefusalLog

# Held polls take as long as they are held and are not counted here.
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """One registry; also the guard's Observer, which logs what it counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests of firms", "path", "status")
        self._refused = self._counter("refused", "Requests refused", "reason")
        self._no_entry = self._counter("connections_refused", "Connections refused", "reason")
        self._bytes = self._counter("bytes", "Bytes of bodies", "direction")
        self._seconds = Histogram(
            "foedus_request_seconds",
            "Time to answer a firm's request, polls for messages left out",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._refusals = RefusalLog()

    def gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A number that is asked for whenever somebody looks."""
        made = Gauge(f"foedus_{name}", meaning, registry=self.registry)
        made.set_function(value)

    def labelled_gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """A number for each value of its labels; the caller sets it."""
        return Gauge(f"foedus_{name}", meaning, labels, registry=self.registry)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)

    def served(self, served: Served) -> None:
        """See Observer."""
        self._requests.labels(served.path, str(served.status)).inc()
        if served.reason:
            self._refused.labels(served.reason).inc()
        self._bytes.labels("in").inc(served.bytes_in)
        self._bytes.labels("out").inc(served.bytes_out)
        if not served.path.endswith("/pull-messages"):
            self._seconds.labels(served.path).observe(served.seconds)
        if served.is_refused:
            self._refusals.note(
                served.reason, served.address, lambda left_out: log_served(served, left_out)
            )
        # What nobody signed and nobody refused (health) is counted only: strangers can ask for it
        # as often as they like.
        elif served.who:
            log_served(served)

    def connection_refused(self, address: str, reason: str) -> None:
        """See Observer."""
        self._no_entry.labels(reason).inc()
        self._refusals.note(
            reason, address, lambda left_out: log_connection_refused(address, reason, left_out)
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"foedus_{name}", meaning, labels, registry=self.registry)
