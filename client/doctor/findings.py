"""What a check found, and how checks are made so that none keeps the others from going on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import FoedusError, place_of


class State(StrEnum):
    """warn: works, and somebody should look at it; fail: the site cannot take part like this."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """what: the thing looked at. text: how it is. advice: what to do; empty where it is ok."""

    what: str
    state: State
    text: str
    advice: str = ""


def ok(what: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(what, State.OK, text)


def warn(what: str, text: str, advice: str) -> Finding:
    """Somebody should look at it."""
    return Finding(what, State.WARN, text, advice)


def fail(what: str, text: str, advice: str) -> Finding:
    """The site cannot take part like this."""
    return Finding(what, State.FAIL, text, advice)


@dataclass(frozen=True)
class Check:
    """what: for the finding where `look` itself fails."""

    what: str
    look: Callable[[], Iterable[Finding]]

    def findings(self) -> tuple[Finding, ...]:
        """What `look` found; what it raised is a finding too. Of an unforeseen exception only type
        and place are told: its message might quote a contract."""
        try:
            return tuple(self.look())
        except FoedusError as error:
            return (fail(self.what, str(error), "See the text."),)
        except Exception as error:
            text = f"could not be looked at: {place_of(error)}"
            return (fail(self.what, text, "This is a fault of foedus; please report it."),)
