"""state/gateway.json: written when the coordinator is ready, removed when it stopped cleanly."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from protocol.errors import FoedusError
from protocol.files import write_atomically


@dataclass(frozen=True)
class GatewayState:
    """pid: of the process that listens. started: Unix seconds. Addresses: host:port."""

    pid: int
    started: float
    control_address: str
    public_address: str
    metrics_address: str

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_atomically(path, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read_gateway_state(path: Path) -> GatewayState | None:
    """What the running coordinator wrote; None where none runs (a crash may leave the file).

    Errors: FoedusError where the file is no state of a gateway.
    """
    try:
        state = GatewayState(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise FoedusError(f"Expected the gateway's state at {path}, got {error}.") from error
    try:
        os.kill(state.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return state
