"""Sites that are silent or slow, ways that are cut, clocks and certificates that are wrong."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

from cryptography import x509

from protocol.files import write_atomically
from protocol.secure_aggregation.wire import Phase
from server.consortium.certificates import Certified, make_server_certificate, names_of
from server.consortium.folder import ConsortiumFolder
from tests.faults.deployment import Deployment, foedus
from tests.faults.processes import freeze, thaw, wait_for
from tests.faults.scene import Said, Scenario, Scene

_SHORT_SECONDS = 8.0
_ALL = "every round with all three sites"
_GIVEN_UP = Said("coordinator", "is given up, nothing was revealed by it")
_WITHOUT = "the round without it; with all three once it is back"
_LATER = {1: {2}, 2: {2, 3}}
_SLOW_BYTES_PER_SECOND = 64_000
_HOUR_SECONDS = 3600
_SHIFTED_CLOCK = Path(__file__).with_name("shifted_clock.c")
_COMPILER = "cc"


def _silent_site(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)
    silent = scene.victim.family()
    freeze(silent)
    try:
        scene.after_round(1)
    finally:
        thaw(silent)
    scene.mark()


def _slow_site(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)
    slow = scene.victim.family()
    freeze(slow)
    try:
        time.sleep(_SHORT_SECONDS)
    finally:
        thaw(slow)
    scene.mark()


def _short_cut(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)
    scene.victim.route.cut()
    time.sleep(_SHORT_SECONDS)
    scene.victim.route.heal()
    scene.mark()


def _long_cut(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)
    scene.victim.route.cut()
    scene.after_round(1)
    scene.victim.route.heal()
    scene.mark()


def _cut_in_upload(scene: Scene) -> None:
    """Slowed first, so that the cut surely falls into the upload."""
    scene.begin()
    scene.at_training(1)
    scene.victim.route.bytes_per_second = 2_000
    scene.at_upload(Phase.MASKED_INPUT, 1)
    time.sleep(2.0)
    scene.victim.route.cut()
    scene.after_round(1)
    scene.victim.route.bytes_per_second = 0
    scene.victim.route.break_off()
    scene.victim.route.heal()
    scene.mark()


def _broken_off(scene: Scene) -> None:
    scene.begin()
    for phase in (Phase.SHARE, Phase.MASKED_INPUT, Phase.CONFIRM):
        scene.at_phase(phase, 1)
        scene.victim.route.break_off()
    scene.mark()


def _stopped_in_download(scene: Scene) -> None:
    """Slowed first, so that the stop surely falls into the download."""
    scene.begin()
    scene.at_phase(Phase.SHARE, 1)
    scene.victim.route.bytes_per_second = 2_000
    wait_for("the round's message", lambda: scene.was_said(Said("site", "Receiving: train")))
    scene.coordinator.runs.stop(scene.run.name)
    scene.victim.route.bytes_per_second = 0
    scene.coordinator.runs.resume(scene.run.name)
    scene.mark()


def _slow_way(scene: Scene) -> None:
    scene.begin()
    scene.after_round(1)
    scene.victim.route.bytes_per_second = _SLOW_BYTES_PER_SECOND
    scene.after_round(2)
    scene.victim.route.bytes_per_second = 0


def _wrong_clock(scene: Scene, ahead_seconds: int) -> None:
    victim = scene.victim
    victim.end()
    library = scene.deployment.folder / "shifted_clock.so"
    words = [_COMPILER, "-shared", "-fPIC", "-o", str(library), str(_SHIFTED_CLOCK), "-ldl"]
    subprocess.run(words, check=True)
    victim.start(LD_PRELOAD=str(library), FOEDUS_CLOCK_AHEAD=str(ahead_seconds))
    wait_for("the site to see why", lambda: scene.was_said(scene.scenario.said[0]))
    scene.begin()
    scene.after_round(1)
    scene.coordinator.runs.stop(scene.run.name)
    victim.end()
    victim.start()
    scene.deployment.make_whole()
    scene.coordinator.runs.resume(scene.run.name)
    scene.mark()


def _expired_certificate(scene: Scene) -> None:
    folder = scene.coordinator.folder
    scene.coordinator.end()
    _put_expired_certificate(folder)
    scene.coordinator.start()
    wait_for("the site to see why", lambda: scene.was_said(scene.scenario.said[0]))
    foedus("server", "renew", "--consortium", folder.path)
    scene.mark()
    scene.deployment.make_whole()
    scene.begin()


def _put_expired_certificate(folder: ConsortiumFolder) -> None:
    authority = Certified.from_pem(folder.ca_key.read_bytes(), folder.ca.read_bytes(), None)
    now = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    expired = make_server_certificate(authority, names_of(now), 1, long_ago)
    write_atomically(folder.server_key, expired.key_pem(), mode=0o600)
    write_atomically(folder.server_certificate, expired.certificate_pem)


def _no_compiler(_: Deployment) -> str:
    return "" if shutil.which(_COMPILER) else "needs a C compiler, to shift a clock"


OUTAGES = (
    Scenario(
        "silent-site",
        "a site's processes are stopped (SIGSTOP) until the round is over",
        "while it trains",
        _WITHOUT,
        _silent_site,
        cohorts=_LATER,
        said=(_GIVEN_UP,),
    ),
    Scenario(
        "slow-site",
        f"a site's processes are stopped for {_SHORT_SECONDS:.0f} s",
        "while it trains",
        _ALL,
        _slow_site,
        rounds=2,
    ),
    Scenario(
        "network-cut-short",
        f"nothing passes between a site and the coordinator for {_SHORT_SECONDS:.0f} s",
        "while it trains",
        _ALL,
        _short_cut,
        rounds=2,
    ),
    Scenario(
        "network-cut-long",
        "nothing passes between a site and the coordinator until the round is over",
        "while it trains",
        _WITHOUT,
        _long_cut,
        cohorts=_LATER,
        said=(_GIVEN_UP,),
    ),
    Scenario(
        "network-cut-in-upload",
        "the same, and then every connection is reset",
        "halfway through its masked update",
        _WITHOUT,
        _cut_in_upload,
        cohorts=_LATER,
        said=(_GIVEN_UP,),
    ),
    Scenario(
        "connections-reset",
        "every connection of a site is reset",
        "as each of three phases begins",
        _ALL,
        _broken_off,
        rounds=2,
    ),
    Scenario(
        "run-stopped-in-download",
        "`foedus server stop`, and `resume` at once",
        "while a site receives the round's adapter, slowly",
        _ALL,
        _stopped_in_download,
        rounds=2,
        deadline_seconds=180,
        said=(Said("site", "The SuperNode gave up a message half way: starting it anew."),),
    ),
    Scenario(
        "slow-network",
        f"{_SLOW_BYTES_PER_SECOND // 1000} kB/s between a site and the coordinator",
        "a whole round",
        _ALL,
        _slow_way,
    ),
    Scenario(
        "clock-an-hour-ahead",
        "a site's clock is an hour ahead, and then set right",
        "before the run until after round 1",
        "rounds without the site, which is told why; with all three after that",
        partial(_wrong_clock, ahead_seconds=_HOUR_SECONDS),
        cohorts=_LATER,
        needs=_no_compiler,
        said=(Said("site", "ahead of the coordinator's, so it refuses"),),
    ),
    Scenario(
        "clock-an-hour-behind",
        "a site's clock is an hour behind, and then set right",
        "before the run until after round 1",
        "rounds without the site, which is told why; with all three after that",
        partial(_wrong_clock, ahead_seconds=-_HOUR_SECONDS),
        cohorts=_LATER,
        needs=_no_compiler,
        said=(Said("site", "behind the coordinator's, so it refuses"),),
    ),
    Scenario(
        "expired-certificate",
        "the coordinator starts with a certificate that has expired; `foedus server renew`",
        "before the run",
        "sites say so and come back by themselves; every round with all three",
        _expired_certificate,
        rounds=2,
        said=(Said("site", "certificate has expired"),),
    ),
)
