"""What Flower reads from the environment in the coordinator's processes; imports none of Flower."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from server.consortium.folder import ConsortiumFolder
from server.runs.words import CONSORTIUM_VARIABLE


def superlink_environment(folder: ConsortiumFolder) -> dict[str, str]:
    """To be set before any of Flower is imported; the processes it starts inherit it."""
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        CONSORTIUM_VARIABLE: str(folder.path.resolve()),
        "FLWR_HOME": str((folder.state / "flwr").resolve()),
        # Flower starts its executor by name; it must be the one of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
