"""One child process that is started again, with growing pauses, whenever it ends."""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from client.runner.backoff import Backoff

# Who ran this long was well; what ended it is no reason to wait long.
HEALTHY_SECONDS = 60.0
_LAST_LINES_SECONDS = 1.0


@dataclass(frozen=True)
class Command:
    """What to start. descriptors: open files that the child inherits."""

    words: Sequence[str]
    environment: Mapping[str, str]
    descriptors: Sequence[int]


@dataclass(frozen=True)
class Ended:
    """status: exit status, negative for a signal. pause_seconds: until the next start.

    asked: it ended because it was to be started anew.
    """

    status: int
    ran_seconds: float
    pause_seconds: float
    asked: bool

    @property
    def how(self) -> str:
        """For a log."""
        return f"by signal {-self.status}" if self.status < 0 else f"with status {self.status}"


class Child:
    """Start and stop it from one thread, the main one. heard: gets every line it writes."""

    def __init__(
        self, name: str, command: Callable[[], Command], heard: Callable[[str], None]
    ) -> None:
        self.name = name
        self.num_starts = 0
        self._command = command
        self._heard = heard
        self._backoff = Backoff()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._start_at = 0.0
        self._kill_at = math.inf
        # Since it was last well for a while.
        self._was_started_anew = False
        self._listener: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process else None

    def tick(self) -> Ended | None:
        """Start it where it is time to; how it ended, where it just has."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self._try_to_start(now)
            return None
        status = self._process.poll()
        if status is None:
            if now > self._kill_at:
                self._process.kill()
            return None
        self._process = None
        if self._listener:
            # Its last lines say why it ended.
            self._listener.join(_LAST_LINES_SECONDS)
        ran = now - self._started
        asked, self._kill_at = self._kill_at < math.inf, math.inf
        if ran >= HEALTHY_SECONDS:
            self._backoff.reset()
            self._was_started_anew = False
        at_once = asked and not self._was_started_anew
        self._was_started_anew |= asked
        ended = Ended(status, ran, 0.0 if at_once else self._backoff.next_pause(), asked)
        self._start_at = now + ended.pause_seconds
        return ended

    def start_anew(self, grace_seconds: float) -> None:
        """SIGTERM, after the grace SIGKILL, at once where there is none; `tick` then starts it.

        Without a pause the first time; from then on, until it has run for HEALTHY_SECONDS, as after
        a failure: what makes it go wrong again and again must not keep all sites starting.
        """
        if self._process is None:
            return
        self._kill_at = time.monotonic() + grace_seconds
        if grace_seconds > 0:
            self._process.terminate()
        else:
            self._process.kill()

    def stop(self, grace_seconds: float) -> bool:
        """SIGTERM, and SIGKILL after the grace; False where that was needed."""
        if self._process is None:
            return True
        self._process.terminate()
        try:
            self._process.wait(grace_seconds)
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        finally:
            self._process = None

    def _try_to_start(self, now: float) -> None:
        try:
            self._start(now)
        except OSError as error:
            # Too many processes, too little memory: that passes.
            pause = self._backoff.next_pause()
            self._start_at = now + pause
            self._heard(
                f"ERROR: it could not be started ({error.strerror}); again in {pause:.0f} s"
            )

    def _start(self, now: float) -> None:
        command = self._command()
        # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which then stops
        # its children in order.
        self._process = subprocess.Popen(
            command.words,
            env=dict(command.environment),
            pass_fds=command.descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started = now
        self.num_starts += 1
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout, "started with a pipe"
        with process.stdout:
            for line in process.stdout:
                self._heard(line.decode(errors="replace"))
