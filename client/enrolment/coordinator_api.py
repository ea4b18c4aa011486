"""A site's own requests to the coordinator: over TLS with its authority, signed as a member."""

from __future__ import annotations

import json
import ssl
import time
from typing import Any

import httpx

from protocol.consortium.identity import Identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.signed_request import sign_request
from protocol.errors import FoedusError

TIMEOUT_SECONDS = 30.0
# As Python's objects, JSON can take twenty times its bytes.
MAX_ANSWER_BYTES = 4 << 20


class Unreachable(FoedusError):
    """The coordinator gave no answer: down, cut off, or not the one that the authority knows."""


class NotAdmitted(FoedusError):
    """The coordinator does not take this site for a member, or its clock is wrong."""


class CoordinatorApi:
    """One member's view of /v1/foedus/*.

    Errors of every method: Unreachable, NotAdmitted; FoedusError where the answer is none.
    """

    def __init__(self, invitation: Invitation, identity: Identity) -> None:
        self._invitation = invitation
        self._identity = identity
        self._context = ssl.create_default_context(cadata=invitation.ca_certificate_pem)

    def get(self, path: str) -> Any:
        """The answer's JSON. path: with its query."""
        return self._ask("GET", path, b"")

    def post(self, path: str, value: Any) -> Any:
        """Send JSON; the answer's JSON."""
        return self._ask("POST", path, json.dumps(value).encode())

    def _ask(self, method: str, path: str, body: bytes) -> Any:
        consortium = self._invitation.consortium
        headers = sign_request(self._identity, consortium, method, path, body, time.time())
        # A few compressed bytes can unfold to any size.
        headers |= {"accept-encoding": "identity"}
        address = self._invitation.address
        try:
            with (
                httpx.Client(verify=self._context, timeout=TIMEOUT_SECONDS) as client,
                client.stream(
                    method, f"https://{address}{path}", content=body, headers=headers
                ) as answer,
            ):
                return _json(answer)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"Expected the coordinator at {address}, got no answer ({_cause(error)}). If it is "
                "up, compare the address and the authority of the invitation."
            ) from error


def _json(answer: httpx.Response) -> Any:
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise NotAdmitted(
            "The coordinator does not answer this site as a member: it is not admitted (yet, or "
            "any more), or this machine's clock is more than 5 minutes off."
        )
    if answer.status_code != httpx.codes.OK:
        raise FoedusError(f"Expected an answer of the coordinator, got HTTP {answer.status_code}.")
    received = bytearray()
    for part in answer.iter_raw():
        received += part
        if len(received) > MAX_ANSWER_BYTES:
            raise FoedusError(
                f"Expected an answer of at most {MAX_ANSWER_BYTES >> 20} MiB, got a larger one."
            )
    try:
        return json.loads(received)
    except (ValueError, RecursionError) as error:
        raise FoedusError("Expected JSON from the coordinator, got something else.") from error


def _cause(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
