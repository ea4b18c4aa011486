"""The console command `foedus`: hands its words on to the room that knows what to do with them.

Only the standard library is imported before a sub-command is known, so that help comes at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

_SUB_COMMANDS = {
    "simulate": "a whole federation on this machine, compared with local and central training",
    "client": "at a firm: use an adapter, see what left, see what would be learned from",
    "server": "at the coordinator: runs, checkpoints and releases",
}
_HELP = f"""\
usage: foedus [--version] [--help] {{{",".join(_SUB_COMMANDS)}}} ...

Fine-tune one shared legal model across firms that may not show each other a contract.

{chr(10).join(f"  foedus {name:9} {what}" for name, what in _SUB_COMMANDS.items())}

Each takes --help. FOEDUS_LOG=DEBUG (INFO, WARNING, ERROR) sets how much is logged on stderr.
"""
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status. 2: the command or its settings do not fit."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"foedus {_version()}")
        return 0
    if words[0] not in _SUB_COMMANDS:
        return _refuse(f"expected one of {', '.join(_SUB_COMMANDS)}, got {words[0]!r}")
    # A simulation shows its progress in bars; lines of every site would drown them.
    usual = "WARNING" if words[0] == "simulate" else "INFO"
    level = os.environ.get("FOEDUS_LOG", usual).upper()
    if level not in _LOG_LEVELS:
        return _refuse(f"expected FOEDUS_LOG to be one of {', '.join(_LOG_LEVELS)}, got {level!r}")
    _quieten_libraries()
    _log_to_stderr(level)
    return _dispatch(words[0], words[1:])


def _dispatch(name: str, words: list[str]) -> int:
    from protocol.errors import FoedusError

    module: Any = importlib.import_module(f"{'simulations' if name == 'simulate' else name}.cli")
    try:
        if name == "simulate":
            return int(module.main(words) or 0)
        # A typer application leaves by SystemExit with its own status.
        return int(module.app(args=words, prog_name=f"foedus {name}") or 0)
    except FoedusError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        # A full disk, a file that may not be read: for whoever sits there to mend, so no traceback.
        what = error.strerror or f"{type(error).__name__}: {error}"
        return _refuse(f"{what}: {error.filename}" if error.filename else what)


def _refuse(message: str) -> int:
    print(f"foedus: {message}", file=sys.stderr)
    return 2


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("foedus")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _quieten_libraries() -> None:
    """Flower reports usage to its makers unless told otherwise; the Hub draws bars of its own."""
    import warnings

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # These speak to whoever calls the library, not to whoever runs foedus.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def _log_to_stderr(level: str) -> None:
    """Send foedus.* to stderr, once, and not to whatever Flower or Hydra set up for the root."""
    import logging

    log = logging.getLogger("foedus")
    log.setLevel(level)
    log.propagate = False
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
