"""`foedus server up`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import FoedusError
from server.consortium.options import Consortium


class LogFormat(StrEnum):
    """How stderr reads; state/gateway.log is always JSON."""

    TEXT = "text"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the command to `foedus server`."""
    app.command()(up)


def up(
    consortium: Consortium = Path("."),
    log_format: Annotated[
        LogFormat, typer.Option(help="Form of the log on stderr.")
    ] = LogFormat.TEXT,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C; a process that dies is started again.

    Exit status: 0 stopped when told, 2 it cannot start like this.
    """
    from server.consortium.folder import ConsortiumFolder
    from server.gateway.supervisor import Supervisor, gateway_command, single_instance

    folder = ConsortiumFolder(consortium)
    try:
        folder.settings()
        with single_instance(folder.state / "gateway.lock"):
            status = Supervisor(gateway_command(folder.path.resolve(), log_format.value)).run()
    except FoedusError as error:
        print(f"foedus server: {error}", file=sys.stderr)
        status = 2
    raise typer.Exit(status)
