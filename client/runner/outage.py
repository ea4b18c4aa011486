"""Why the SuperNode ended, in words for the person who has to act on it."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

HEALTH_PATH = "/v1/foedus/health"
# Flower refuses requests signed more than 5 minutes ago or ahead.
CLOCK_TOLERANCE_SECONDS = 240.0
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Reached:
    """clock_ahead_seconds: of this machine, before the coordinator's; to about a second."""

    clock_ahead_seconds: float


@dataclass(frozen=True)
class NotReached:
    """why: one sentence."""

    why: str


def ask_coordinator(address: str, root_certificates: Path) -> Reached | NotReached:
    """One request for the coordinator's health, over TLS by the consortium's own authority."""
    try:
        context = ssl.create_default_context(cafile=str(root_certificates))
        return Reached(clock_ahead_seconds(address, context))
    except (httpx.HTTPError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return NotReached(
                f"What answers at {address} does not show a certificate of the consortium's. Ask "
                "the coordinator whether the certificate has expired or the address has changed; "
                "else somebody stands in between."
            )
        return NotReached(
            f"The coordinator at {address} does not answer ({type(error).__name__}). It may be "
            "down, or a firewall may be in between."
        )
    except ValueError:
        return NotReached(f"What answers at {address} is no coordinator of foedus.")


def clock_ahead_seconds(address: str, context: ssl.SSLContext) -> float:
    """How far this machine's clock is before the coordinator's; to about a second.

    Errors: httpx.HTTPError, OSError; ValueError where the answer tells no time.
    """
    asked = time.time()
    # The headers alone: the body of what answers there may be of any size.
    with httpx.stream(
        "GET", f"https://{address}{HEALTH_PATH}", verify=context, timeout=_TIMEOUT_SECONDS
    ) as answer:
        answered = time.time()
        theirs = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    # The header counts whole seconds, cut off.
    return (asked + answered) / 2 - (theirs + 0.5)


def explain_end(refused: bool, answer: Reached | NotReached) -> str:
    """Why a SuperNode that nobody stopped has ended. refused: the coordinator had answered it."""
    if isinstance(answer, NotReached):
        return answer.why
    ahead = answer.clock_ahead_seconds
    if abs(ahead) > CLOCK_TOLERANCE_SECONDS:
        side = "ahead of" if ahead > 0 else "behind"
        return (
            f"This machine's clock is {abs(ahead):.0f} s {side} the coordinator's, so it refuses "
            "what this site signs. Set the clock (NTP)."
        )
    if refused:
        return (
            "The coordinator answers, and does not accept this site's key: it was not admitted "
            "yet, its membership has expired, or it was expelled. Ask the coordinator, unless this "
            "site has just crashed: its last connection may count for another minute."
        )
    return "The coordinator answers; see the lines before it ended in up.log."
