"""Options that several commands of `foedus server` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Consortium = Annotated[
    Path,
    typer.Option("--consortium", envvar="FOEDUS_CONSORTIUM", help="The consortium's folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
