"""A site outlives the death of each of its processes and of its coordinator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.runner.federations import (
    Federation,
    RunningSite,
    is_running,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

# A thousand passes over a dozen clauses, one at a time: minutes.
ENDLESS = ("training.local_epochs=1000", "training.batch_size=1")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with Federation(tmp_path_factory.mktemp("faults"), num_sites=1) as federation:
        federation.start_superlink()
        yield federation


@pytest.fixture
def site(federation: Federation) -> RunningSite:
    """The one site, up and connected, whatever the test before did to it."""
    (site,) = federation.sites
    if site.supervisor is None or site.supervisor.poll() is not None:
        starts = site.log().count("Runner ready")
        federation.up(site)
        site.wait_for("Runner ready", starts + 1)
    wait_for_connection(site)
    return site


def wait_for_connection(site: RunningSite) -> None:
    wait_until(lambda: site.state().get("node_state") == "connected", "connection", site.log)


def wait_for_another(site: RunningSite, which: str, old_pid: int) -> None:
    wait_until(
        lambda: site.state().get(f"{which}_pid") not in (None, old_pid), f"a {which}", site.log
    )


def finished(federation: Federation, output: Path) -> None:
    wait_until(
        lambda: (output / "adapter" / "manifest.json").exists(), "a release", federation.logs
    )


def replies(site: RunningSite) -> list[tuple[str, str]]:
    return [(r["kind"], r["status"]) for r in site.receipts() if r["kind"] != "ledger"]


def ledger_entries(site: RunningSite) -> int:
    return sum(receipt["kind"] == "ledger" for receipt in site.receipts())


def put_to_endless_work(site: RunningSite, federation: Federation, name: str) -> Path:
    """Returns once the site trains: the ledger has the round before its first step."""
    before = ledger_entries(site)
    output = federation.run(*ENDLESS, name=name)
    wait_until(lambda: ledger_entries(site) > before, "an entry in the ledger", federation.logs)
    return output


def test_a_second_supervisor_is_refused_by_the_first_ones_process_id(
    federation: Federation, site: RunningSite
) -> None:
    second = federation.start("second", "foedus", "client", "up", "--config", str(site.config))
    assert second.wait() == 2
    said = (federation.folder / "second.log").read_text(encoding="utf-8")
    assert f"process {site.state()['pid']} is one" in said and "Traceback" not in said
    assert site.supervisor and site.supervisor.poll() is None


def test_killed_processes_are_replaced_and_the_next_run_has_its_replies(
    federation: Federation, site: RunningSite
) -> None:
    ready = site.log().count("Runner ready")
    wait_for_another(site, "runner", site.kill("runner"))
    site.wait_for("Runner ready", ready + 1)
    wait_for_another(site, "supernode", site.kill("supernode"))
    wait_for_connection(site)
    finished(federation, federation.run(name="after-kills"))
    assert replies(site) == [("train", "ok"), ("evaluate", "ok")]


def test_a_supernode_that_lost_track_is_killed_before_it_can_take_leave(
    federation: Federation, site: RunningSite
) -> None:
    def leaves() -> int:
        log = (federation.folder / "superlink.log").read_text(errors="replace")
        return log.count("/v1/fleet/deactivate-node")

    before, pid = leaves(), int(site.state()["supernode_pid"])
    # Into the pipe by which the supervisor hears it.
    Path(f"/proc/{pid}/fd/1").write_text("ERROR :     Failed to receive message 1f: gone\n")
    wait_for_another(site, "supernode", pid)
    wait_for_connection(site)
    assert "The SuperNode gave up a message half way: starting it anew." in site.log()
    assert leaves() == before
    # One that is told to end does take leave.
    pid = int(site.state()["supernode_pid"])
    os.kill(pid, signal.SIGTERM)
    wait_for_another(site, "supernode", pid)
    wait_for_connection(site)
    assert leaves() == before + 1


def test_the_site_comes_back_by_itself_when_the_coordinator_does(
    federation: Federation, site: RunningSite
) -> None:
    before = len(replies(site))
    federation.stop_superlink()
    wait_until(lambda: site.state()["node_state"] == "unreachable", "silence", site.log)
    federation.start_superlink()
    wait_for_connection(site)
    finished(federation, federation.run(name="after-outage"))
    assert replies(site)[before:] == [("train", "ok"), ("evaluate", "ok")]
    assert "The coordinator does not answer; trying until it does." in site.log()


def test_a_runner_killed_at_work_costs_its_reply_and_nothing_more(
    federation: Federation, site: RunningSite
) -> None:
    before = replies(site)
    output = put_to_endless_work(site, federation, "killed-at-work")
    sent = site.log().count("Sending: train message")
    wait_for_another(site, "runner", site.kill("runner"))
    # The next runner says that no reply will come, and answers what comes next.
    site.wait_for("Sending: train message", sent + 1)
    wait_until((output / "history.json").exists, "the run's end", federation.logs)
    assert replies(site)[len(before) :] == [("evaluate", "ok")]
    assert "its runner ended over it" in site.log()
    # Nothing was learnt in the only round.
    assert not (output / "adapter").exists()


def test_stopped_at_work_it_tells_the_coordinator_and_leaves_nothing_running(
    federation: Federation, site: RunningSite
) -> None:
    put_to_endless_work(site, federation, "stopped-at-work")
    sent = site.log().count("Sending: train message")
    state = site.state()
    assert site.supervisor
    site.supervisor.send_signal(signal.SIGTERM)
    assert site.supervisor.wait() == 0
    assert site.log().count("Sending: train message") == sent + 1
    assert "was killed" not in site.log().rpartition("Stopping.")[2]
    assert not is_running(state["runner_pid"]) and not is_running(state["supernode_pid"])
    assert site.state() == {}


def test_a_killed_supervisor_leaves_no_orphans_and_can_be_started_again(
    federation: Federation, site: RunningSite
) -> None:
    state = site.state()
    assert site.supervisor
    site.supervisor.send_signal(signal.SIGKILL)
    site.supervisor.wait()
    wait_until(lambda: not is_running(state["runner_pid"]), "the runner's end", site.log)
    wait_until(lambda: not is_running(state["supernode_pid"]), "the SuperNode's end", site.log)
    federation.up(site)
    wait_until(lambda: site.state().get("pid") != state["pid"], "the new supervisor", site.log)
    wait_for_connection(site)


def test_a_site_that_is_not_admitted_is_told_so_and_comes_in_once_it_is(
    federation: Federation,
) -> None:
    stranger = federation.stranger(2)
    federation.up(stranger)
    stranger.wait_for("does not accept this site's key")
    wait_until(
        lambda: "does not accept" in stranger.state()["problem"], "the problem", stranger.log
    )
    federation.admit(stranger)
    wait_for_connection(stranger)
    wait_until(lambda: stranger.state()["problem"] == "", "no problem", stranger.log)


def test_a_coordinator_of_another_authority_is_not_talked_to(
    federation: Federation, tmp_path: Path
) -> None:
    with Federation(tmp_path / "elsewhere", num_sites=0) as elsewhere:
        elsewhere.invite_to(federation.address)
        site = elsewhere.stranger(1)
        elsewhere.up(site)
        site.wait_for("does not show a certificate of the consortium's")
        assert "Connected" not in site.log()
