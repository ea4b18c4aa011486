"""Flower's own SuperLink, unmodified, as an app in this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import FastAPI

from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings

if TYPE_CHECKING:
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan

log = logging.getLogger("foedus.gateway")

LOOPBACK = "127.0.0.1"


def superlink_arguments(folder: ConsortiumFolder, settings: ConsortiumSettings) -> list[str]:
    """The command line that gives this SuperLink; the same words work for flower-superlink."""
    options: Mapping[str, object] = {
        "host": LOOPBACK,
        "port": settings.control_port,
        "ssl-certfile": folder.server_certificate.resolve(),
        "ssl-keyfile": folder.server_key.resolve(),
        "ssl-ca-certfile": folder.ca.resolve(),
        "database": folder.database.resolve(),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return ["--enable-supernode-auth", "--disable-runtime-dependency-installation", *words]


def superlink_app(folder: ConsortiumFolder, settings: ConsortiumSettings) -> FastAPI:
    """The app, with its database open. Flower's parser reads sys.argv, which is put back."""
    from flwr.superlink.cli.flower_superlink import (
        SuperLinkLifespan,
        _parse_superlink_lifespan_config,
    )
    from flwr.superlink.main import create_app

    arguments = sys.argv
    sys.argv = ["flower-superlink", *superlink_arguments(folder, settings)]
    try:
        config = _parse_superlink_lifespan_config()
    finally:
        sys.argv = arguments
    return create_app(config, SuperLinkLifespan)


class ExecutorWatch:
    """Looks after SuperLink's executor, the child process that starts the runs' ServerApps.

    SuperLink starts it once. It ends where it cannot ask for work, such as while the server's
    certificate has expired, and then no run begins any more.
    """

    def __init__(self, superlink: FastAPI) -> None:
        self._lifespan: SuperLinkLifespan = superlink.state.superlink_lifespan

    def look(self) -> None:
        """Start it again where it has ended."""
        process = self._lifespan.superexec_process
        if process is not None and process.poll() is not None:
            log.error("Flower's executor ended with %d; starting another.", process.returncode)
            self._lifespan._start_superexec_if_needed()
