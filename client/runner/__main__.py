"""`python -m client.runner`: the process that answers messages. `foedus client up` starts it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from client.runner.flower_version import require_flower
from client.runner.parent import end_with_parent
from client.runner.task_phase import PhaseMark
from protocol.errors import FoedusError

log = logging.getLogger("foedus.client")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m client.runner", description=__doc__)
    parser.add_argument("--settings-file", type=Path, required=True, help="site.yaml's, as JSON")
    parser.add_argument("--folder", type=Path, required=True, help="where site.yaml's paths start")
    parser.add_argument("--supernode", required=True, help="host:port of its Runtime API")
    parser.add_argument("--secret-file", type=Path, required=True, help="shared with the SuperNode")
    parser.add_argument("--phase-file", type=Path, required=True, help="see task_phase.py")
    parser.add_argument("--identity-file", type=Path, help="the identity, without a passphrase")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    return parser.parse_args()


def _end(signal_number: int, _frame: FrameType | None) -> NoReturn:
    # One request is enough; another would cut off the message that says that no reply comes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)


def _log_to_stderr() -> None:
    """The supervisor reads these lines and adds the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    foedus = logging.getLogger("foedus")
    foedus.setLevel(os.environ.get("FOEDUS_LOG", "INFO").upper())
    foedus.propagate = False
    foedus.addHandler(handler)


def main() -> int:
    """Run until told to end; 2: the site's settings do not fit."""
    arguments = _arguments()
    end_with_parent(arguments.parent)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    _log_to_stderr()
    try:
        require_flower()
        _run(arguments)
    except FoedusError as error:
        log.error("%s", error)
    return 2


def _run(arguments: argparse.Namespace) -> None:
    from client.runner.bundle import installed_release

    # Before anything else is imported: what runs from now on is what is compared with.
    release = installed_release()

    from client.runner.loop import Runner
    from client.runner.supernode_tasks import SuperNodeTasks
    from client.site import Site, SiteSettings
    from protocol.codec import decode

    values = json.loads(arguments.settings_file.read_bytes())
    site = Site(decode(SiteSettings, values, "site.yaml"), arguments.folder)
    if arguments.identity_file:
        site.identity_file, site.passphrase_file = arguments.identity_file, None
    tasks = SuperNodeTasks(arguments.supernode, arguments.secret_file.read_bytes())
    log.info("Runner ready: foedus %s, %d files.", release.version, len(release.files))
    Runner(tasks, site, release, PhaseMark(arguments.phase_file)).run()


if __name__ == "__main__":
    sys.exit(main())
