"""Names of simulated sites: safe as folder names on every system, and never two alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_NAME_CHARACTERS = 40
# Names of the test sets that all sites share, in scores that are kept by site name.
_RESERVED = {"pooled", "general"}
# Names that Windows keeps for devices.
_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in range(10)
}


def numbered_names(count: int) -> list[str]:
    """site-01, site-02, ..., as wide as needed to sort by number."""
    width = max(2, len(str(count)))
    return [f"site-{number:0{width}d}" for number in range(1, count + 1)]


def site_names(values: Sequence[str]) -> list[str]:
    """A folder-safe name for each of the different `values`: a-z, 0-9 and hyphens, no two alike.

    Values that read alike once simplified get -2, -3, ... in their order.
    """
    names: list[str] = []
    for value in values:
        ascii_value = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
        base = re.sub(r"[^a-z0-9]+", "-", ascii_value.lower()).strip("-")[:_NAME_CHARACTERS]
        base = base.strip("-") or "site"
        base = f"site-{base}" if base in _DEVICES | _RESERVED else base
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
