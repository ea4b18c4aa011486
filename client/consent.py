"""Consent to runs: what a run would do, written down for people, and what they decided.

One file a run, state/consent/RUN_ID.json, holds every form in which the coordinator has asked for
it. An approval is bound to the digest of the settings and the base model, and to a number of
requests: who changes the former or goes beyond the latter has to ask again. A denial is for the
whole run. Nothing here touches contracts or the privacy ledger.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from protocol.codec import encode
from protocol.errors import FoedusError, Refusal
from protocol.files import write_atomically
from protocol.messages import Kind, Request
from protocol.reasons import RefusalReason
from protocol.settings import RunSettings

_SCHEMA = 1
_OWNER_ONLY = 0o600
_POLL_SECONDS = 0.25
# Requests of one kind that an approval covers: each round once and once again, and some more, for
# what is asked again after a crash.
_REQUESTS_PER_ROUND = 2
_MORE_REQUESTS = 10
# The coordinator chooses runs, forms and labels: what nobody has decided on is kept up to here.
_MOST_WAITING_RUNS, _MOST_WAITING_FORMS = 50, 5
_MOST_SUMMARY_BYTES = 32 << 10


class Decision(StrEnum):
    """What people have said to a run."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"


_HOPE = (Decision.APPROVED, Decision.PENDING, Decision.DENIED)


@dataclass(frozen=True)
class Asked:
    """One form of a run. digest: of its settings and base model; summary: what people decide on;
    asked, decided: ISO 8601, UTC; deadline_seconds: of a round. requests_per_approval: of each
    kind; answered, covered: how many of each kind were let through, and may be in all."""

    digest: str
    asked: str
    summary: dict[str, Any]
    deadline_seconds: float
    requests_per_approval: int
    decision: Decision = Decision.PENDING
    decided: str = ""
    answered: dict[str, int] = field(default_factory=dict)
    covered: dict[str, int] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """The summary, and how often the form was answered so far."""
        train, evaluate = self.answered.get("train", 0), self.answered.get("evaluate", 0)
        return {**self.summary, "answered so far": f"{train} to train, {evaluate} to evaluate"}

    def decide(self, decision: Decision) -> Asked:
        """The form once people have decided; an approval covers its requests from here on, a
        denial none."""
        kinds = ("train", "evaluate") if decision is Decision.APPROVED else ()
        covered = {k: self.answered.get(k, 0) + self.requests_per_approval for k in kinds}
        return replace(self, decision=decision, decided=_now(), covered=covered)

    def answer(self, kind: Kind) -> Asked:
        """The approved form with one more answer, or pending again where it covers no more."""
        count = self.answered.get(kind, 0)
        if count >= self.covered.get(kind, 0):
            return replace(self, decision=Decision.PENDING, asked=_now(), decided="")
        return replace(self, answered={**self.answered, kind: count + 1})

    @property
    def untouched(self) -> bool:
        """True where people have not let anything of it pass, nor denied it."""
        return self.decision is Decision.PENDING and not self.answered


class ConsentBook:
    """All runs that this site was asked to take part in, in its state folder.

    Of the forms of a run that people have never decided on the newest 5 are kept, of the runs with
    no other forms those that asked last, 50 in all.
    """

    def __init__(self, state_folder: Path) -> None:
        self.folder = state_folder / "consent"

    def ask(self, request: Request) -> Asked:
        """What was decided on the run in this form; written down as pending where it is new.

        A form that is still pending becomes the newest, so that people see what is asked for.
        Errors: Refusal(POLICY) where it has more to say than people can be asked to read;
        FoedusError where the run's file is damaged; OSError.
        """
        digest = consent_digest(request)
        with self._alone():
            forms = self._read(request.run_id)
            found = _form(forms, digest) or _new_form(request, digest)
            if not forms:
                self._make_room()
            if found.decision is Decision.PENDING and forms[-1:] != [found]:
                self._write(request.run_id, [*_others(forms, digest), found])
        return found

    def answer(self, request: Request) -> Asked:
        """The same, when the request is about to be answered: an approved form counts it, and is
        pending again where its approval covers no more. Errors: as `ask`."""
        digest = consent_digest(request)
        with self._alone():
            forms = self._read(request.run_id)
            found = _form(forms, digest)
            if found is not None and found.decision is Decision.APPROVED:
                found = found.answer(request.kind)
                if found.decision is Decision.PENDING:
                    forms = [*_others(forms, digest), found]
                else:  # Where it stood, so that it hides no newer form that still waits.
                    forms = [found if form.digest == digest else form for form in forms]
                self._write(request.run_id, forms)
        return found or self.ask(request)

    def forms(self, run_id: str) -> list[Asked]:
        """All forms of a run, the newest last. Errors: FoedusError where the file is damaged."""
        return self._read(run_id)

    def newest(self, run_id: str) -> Asked | None:
        """The form that was asked for last. Errors: FoedusError where the file is damaged."""
        forms = self._read(run_id)
        return forms[-1] if forms else None

    def all(self) -> dict[str, Asked]:
        """The newest form of every run, the longest known first. Errors: as `newest`."""
        runs = sorted(path.stem for path in self.folder.glob("*.json"))
        known = {run_id: form for run_id in runs if (form := self.newest(run_id)) is not None}
        return dict(sorted(known.items(), key=lambda item: item[1].asked))

    def decide(self, run_id: str, digest: str, decision: Decision) -> Asked:
        """Write down what people say to the form they have seen; a denial is for every form.

        Errors: FoedusError where the run was never asked for in this form.
        """
        with self._alone():
            forms = self._read(run_id)
            if _form(forms, digest) is None:
                raise FoedusError(
                    f"Expected a form of run {run_id[:8]} that was asked for, got settings of "
                    f"digest {digest[:12]}…. Look at it again before you decide."
                )
            every = decision is Decision.DENIED
            forms = [f.decide(decision) if every or f.digest == digest else f for f in forms]
            self._write(run_id, forms)
        return next(form for form in forms if form.digest == digest)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"

    def _read(self, run_id: str) -> list[Asked]:
        try:
            text = self._path(run_id).read_text(encoding="utf-8")
            values = json.loads(text)
            if values["schema"] != _SCHEMA:
                raise ValueError("schema")
            return [Asked(**{**f, "decision": Decision(f["decision"])}) for f in values["forms"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FoedusError(
                f"Expected this site's decisions on a run in {self._path(run_id)}, got a damaged "
                "file. Delete it to be asked again."
            ) from error

    def _make_room(self) -> None:
        """Forget the runs that have waited longest, so that one more may wait."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        waiting = [path for path in paths if self._only_waits(path.stem)]
        for path in waiting[: max(0, len(waiting) + 1 - _MOST_WAITING_RUNS)]:
            path.unlink()

    def _only_waits(self, run_id: str) -> bool:
        try:
            return all(form.untouched for form in self._read(run_id))
        except FoedusError:
            return False

    def _write(self, run_id: str, forms: list[Asked]) -> None:
        untouched = [form.digest for form in forms if form.untouched]
        forgotten = set(untouched[:-_MOST_WAITING_FORMS])
        forms = [form for form in forms if form.digest not in forgotten]
        values = {"schema": _SCHEMA, "run_id": run_id, "forms": [asdict(form) for form in forms]}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self._path(run_id), text.encode(), mode=_OWNER_ONLY)


class ConsentDesk:
    """Lets requests wait for people. wait_seconds: at most; 0 declines at once."""

    def __init__(self, book: ConsentBook, wait_seconds: float) -> None:
        self._book = book
        self._wait_seconds = wait_seconds

    def require(self, request: Request) -> None:
        """Return once the run is approved in this form; counts the request as answered.

        Waits up to half a round's deadline, so that the answer still arrives. Errors:
        Refusal(CONSENT_PENDING, CONSENT_DENIED), and as ConsentBook.ask.
        """
        patience = min(self._wait_seconds, request.settings.federation.deadline_seconds / 2)
        self._book.ask(request)
        self._until_decided(request.run_id, lambda: self._book.answer(request), patience)

    def require_again(self, run_id: str, phase_share: float) -> None:
        """The same, of a message that tells no settings: a run that was never asked for passes, and
        one that is approved in any form. It is not counted.

        phase_share: the message's part of a round's deadline. Errors: as `require`.
        """
        newest = self._book.newest(run_id)
        if newest is not None:
            patience = min(self._wait_seconds, newest.deadline_seconds * phase_share / 2)
            self._until_decided(run_id, lambda: self._best(run_id) or newest, patience)

    def _best(self, run_id: str) -> Asked | None:
        """The form that a message without settings may belong to, as people would have it."""
        forms = self._book.forms(run_id)
        return min(forms, key=lambda form: _HOPE.index(form.decision), default=None)

    def _until_decided(self, run_id: str, look: Callable[[], Asked], patience: float) -> None:
        give_up = time.monotonic() + patience
        while (asked := look()).decision is Decision.PENDING:
            left = give_up - time.monotonic()
            if left <= 0:
                raise Refusal(
                    RefusalReason.CONSENT_PENDING,
                    f"Run {run_id} waits for your decision: foedus client approve {run_id[:8]}",
                )
            time.sleep(min(_POLL_SECONDS, left))
        if asked.decision is Decision.DENIED:
            raise Refusal(RefusalReason.CONSENT_DENIED, f"Run {run_id} was denied at this site.")


def consent_digest(request: Request) -> str:
    """SHA-256 (hex) of all settings of a run and the base model it names."""
    form = {"settings": encode(request.settings), "base_digest": request.state.base_digest}
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def summary(request: Request) -> dict[str, Any]:
    """What people need to know of a run before they let it use their contracts."""
    run = request.settings
    return {
        "task": run.task.kind,
        "labels": list(run.task.labels),
        "model": run.model.id,
        "base_digest": request.state.base_digest,
        "method": run.federation.method,
        "rank": run.adapter.rank,
        "targets": list(run.adapter.targets),
        "rounds": run.federation.rounds,
        "work in a round": _work(run),
        "privacy": _privacy(run),
        "secure aggregation": run.secure_aggregation.enabled,
        "sites asked at least": run.federation.min_cohort,
        "deadline of a round, s": run.federation.deadline_seconds,
    }


def _form(forms: list[Asked], digest: str) -> Asked | None:
    return next((form for form in forms if form.digest == digest), None)


def _others(forms: list[Asked], digest: str) -> list[Asked]:
    return [form for form in forms if form.digest != digest]


def _new_form(request: Request, digest: str) -> Asked:
    federation = request.settings.federation
    covered = _REQUESTS_PER_ROUND * federation.rounds + _MORE_REQUESTS
    told = summary(request)
    if (num_bytes := len(json.dumps(told))) > _MOST_SUMMARY_BYTES:
        raise Refusal(
            RefusalReason.POLICY,
            f"Expected a run that takes {_MOST_SUMMARY_BYTES >> 10} KiB to describe at most, as "
            f"people are to read it, got {num_bytes} bytes: labels, targets or names are too long.",
        )
    return Asked(digest, _now(), told, federation.deadline_seconds, covered)


def _work(run: RunSettings) -> str:
    if run.privacy.enabled:
        return f"{run.privacy.steps_per_round} noisy steps"
    cap = f", {run.training.max_steps} steps at most" if run.training.max_steps else ""
    return f"{run.training.local_epochs} passes{cap}"


def _privacy(run: RunSettings) -> str:
    privacy = run.privacy
    if not privacy.enabled:
        return "none"
    return f"by {privacy.unit}, epsilon {privacy.target_epsilon:g} at delta {privacy.delta:g}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
