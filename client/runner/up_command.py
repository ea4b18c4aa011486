"""`foedus client up`: take part in a consortium's runs, until it is stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def up(
    config: Annotated[Path, typer.Option("--config", help="The site's configuration file.")] = Path(
        "site.yaml"
    ),
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="With --insecure: where to connect instead.")
    ] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS and keys, on this machine only.")
    ] = False,
) -> None:
    """Take part in the consortium's runs until stopped (Ctrl-C, SIGTERM).

    Keeps two processes going: Flower's SuperNode, which talks to the coordinator, and a runner,
    which answers with the code installed here, and only where the coordinator's bundle is that same
    code. Both are started again when they end. state/up.log has what happened, state/up.json how
    things are.
    """
    from client.runner.flower_version import require_flower
    from client.runner.launch import Launch
    from client.runner.supervisor import Supervisor, only_one
    from client.runner.up_log import UpLog
    from client.site import Site

    trial_address = _trial_address(superlink, insecure)
    require_flower()
    _require_linux()
    site = Site.from_file(config)
    with only_one(site.state_folder):
        launch = Launch(config, site, trial_address)
        Supervisor(launch, site, UpLog(site.state_folder)).run()


def _trial_address(superlink: str, insecure: bool) -> str:
    """Errors: FoedusError unless both are given, for this machine, or neither."""
    from protocol.consortium.invitation import split_address
    from protocol.errors import FoedusError

    if not superlink and not insecure:
        return ""
    try:
        host, _ = split_address(superlink)
    except ValueError:
        host = ""
    if not insecure or host not in ("127.0.0.1", "::1", "localhost"):
        raise FoedusError(
            "Expected --insecure together with --superlink HOST:PORT of this very machine, such as "
            f"127.0.0.1:8000, got insecure={insecure} and superlink={superlink!r}. A consortium's "
            "address and authority come from its invitation: see `foedus client join`."
        )
    return superlink


def _require_linux() -> None:
    """Secrets in memory files, and children that end with their parent, are Linux's."""
    from protocol.errors import FoedusError

    if sys.platform != "linux":
        raise FoedusError(f"Expected Linux for `foedus client up`, got {sys.platform}.")
