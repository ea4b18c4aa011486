"""The coordinator's process: `python -m server.gateway --consortium DIR`, kept alive by
`foedus server up`.

Exit status 2: something that starting again would not change.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.gateway.superlink_environment import superlink_environment


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.gateway")
    parser.add_argument("--consortium", type=Path, required=True)
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    folder = ConsortiumFolder(arguments.consortium)
    os.environ.update(superlink_environment(folder))
    # Only now, because Flower reads the environment as it is imported.
    from server.gateway.process import run_gateway

    try:
        run_gateway(folder, arguments.log_format)
    except FoedusError as error:
        print(f"foedus server: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
