"""What the guard refuses, and how it says so to whoever asked."""

from __future__ import annotations

import json
from enum import StrEnum

from server.gateway.asgi import Reply


class Reason(StrEnum):
    """Why a request goes no further; the names of the metric and of the log's field too."""

    NOT_OFFERED = "not_offered"
    UNAUTHENTICATED = "unauthenticated"
    REPLAYED = "replayed"
    WRONG_MEDIA_TYPE = "wrong_media_type"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TOO_SLOW = "body_too_slow"
    MALFORMED = "malformed"
    NOT_YOURS = "not_yours"
    TREE_TOO_LARGE = "tree_too_large"
    TOO_MUCH_UNREAD = "too_much_unread"
    UNAVAILABLE = "unavailable"


STATUS = {
    Reason.NOT_OFFERED: 404,
    Reason.UNAUTHENTICATED: 401,
    Reason.REPLAYED: 401,
    Reason.WRONG_MEDIA_TYPE: 415,
    Reason.BODY_TOO_LARGE: 413,
    Reason.BODY_TOO_SLOW: 408,
    Reason.MALFORMED: 400,
    # 409 and not 403: to a SuperNode 403 means that the run is over.
    Reason.NOT_YOURS: 409,
    Reason.TREE_TOO_LARGE: 413,
    Reason.TOO_MUCH_UNREAD: 409,
    Reason.UNAVAILABLE: 503,
}

# Whoever is not known learns nothing beyond the status.
_WITHOUT_DETAIL = {Reason.NOT_OFFERED, Reason.UNAUTHENTICATED, Reason.REPLAYED}


class Refused(Exception):
    """A request that goes no further. `text` is for the coordinator's log, never for the asker."""

    def __init__(self, reason: Reason, text: str) -> None:
        self.reason = reason
        super().__init__(text)

    def reply(self) -> Reply:
        """The answer: the status, and the reason's code where the asker may know it.

        The connection is closed after it, so that what is left of the body need not be read.
        """
        body = b""
        if self.reason not in _WITHOUT_DETAIL:
            body = json.dumps({"refused": self.reason.value}).encode()
        headers = ((b"content-type", b"application/json"), (b"connection", b"close"))
        return Reply(STATUS[self.reason], headers, body)
