"""`foedus client identity`: make a site's key for secure aggregation, show its roster entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def show_identity(
    file: Annotated[Path, typer.Argument(help="The private key; made where there is none.")],
    name: Annotated[str, typer.Option(help="The firm's name as the roster is to show it.")],
) -> None:
    """Make this site's identity if it has none, and print its entry for the members' roster.

    The file stays at the site, readable by its owner alone; name it as `identity` in site.yaml. The
    entry is public: hand it to whoever keeps the consortium's roster, by a way you trust.
    """
    from protocol.consortium.identity import Identity, load_identity, save_identity

    if not file.exists():
        save_identity(file, Identity.generate())
        typer.echo(
            f"Made a new identity in {file}. Keep a copy where only you can read it.", err=True
        )
    identity = load_identity(file)
    typer.echo(f"member id: {identity.member_id}", err=True)
    typer.echo(json.dumps({"name": name, "public_key": identity.public_key.hex()}))
