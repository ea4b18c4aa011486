"""The release of Flower whose internals this package was written against."""

from __future__ import annotations

from importlib import metadata

from protocol.errors import FoedusError

EXPECTED_FLOWER = "1.41"


def require_flower() -> None:
    """Errors: FoedusError where another Flower is installed. Ask before importing its internals."""
    installed = metadata.version("flwr")
    if installed.split(".")[:2] != EXPECTED_FLOWER.split("."):
        raise FoedusError(
            f"Expected flwr {EXPECTED_FLOWER}.* in this environment, as the runner takes its tasks "
            f"over an internal interface of Flower's, got {installed}. Install foedus anew with "
            "its own dependencies: pip install -e . -c constraints.txt"
        )
