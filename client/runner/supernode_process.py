"""Flower's own `flower-supernode`, unmodified, as a child that ends when it cannot work on.

Left to itself it can go on as a shell: where its main loop ends by an error, or a background thread
such as its heartbeat dies, the process stays and the coordinator hears no more of the site. Here
both end the process, so that the supervisor starts a new one.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback

from client.runner.parent import end_with_parent

_FAILED = 1


def _end_process(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_type is SystemExit:
        return
    name = arguments.thread.name if arguments.thread else "unknown"
    place = traceback.extract_tb(arguments.exc_traceback)[-1:]
    where = f"{place[0].filename}:{place[0].lineno}" if place else "unknown place"
    error = arguments.exc_type.__name__
    print(f"ERROR: {error} in thread {name} at {where}: ending", file=sys.stderr, flush=True)
    os._exit(_FAILED)


def main() -> None:
    """`python -m client.runner.supernode_process PARENT_PID WORDS-OF-FLOWER-SUPERNODE…`"""
    end_with_parent(int(sys.argv[1]))
    threading.excepthook = _end_process
    # By this name Flower knows what it is.
    sys.argv = ["flower-supernode", *sys.argv[2:]]
    from flwr.supernode.cli import flower_supernode

    flower_supernode()
    # It has returned without being asked to; threads of its own would keep the process.
    print("ERROR: the SuperNode's main loop ended", file=sys.stderr, flush=True)
    os._exit(_FAILED)


if __name__ == "__main__":
    main()
