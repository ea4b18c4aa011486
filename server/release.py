"""Release: the finished adapter as a folder that others can check and load.

A PEFT folder, a model card, and a manifest that ties the files to the run they came from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from models.base import public_name
from protocol.errors import FoedusError
from protocol.files import write_atomically
from protocol.methods import METHODS, personal_factors
from protocol.peft_folder import write_peft_folder
from protocol.settings import RunSettings
from server.checkpoint import settings_digest
from server.coordinator import RunResult

MANIFEST, MODEL_CARD = "manifest.json", "README.md"
_SCHEMA = 1


def release(folder: Path, result: RunResult, settings: RunSettings) -> dict[str, Any]:
    """Write the adapter folder and return its manifest, whose files' digests are all checked."""
    write_peft_folder(folder, result.state, settings, public_name(settings.model))
    write_atomically(folder / MODEL_CARD, model_card(result, settings).encode())
    manifest = {
        "schema": _SCHEMA,
        "run_id": result.run_id,
        "base_digest": result.state.base_digest,
        "adapter_digest": result.state.digest(),
        "method": settings.federation.method,
        "rounds": len(result.records),
        "aggregated_rounds": sum(record.aggregated for record in result.records),
        "cohort_sizes": [len(record.admitted) for record in result.records],
        "config_digest": settings_digest(settings),
        "files": file_digests(folder),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / MANIFEST, text.encode())
    return manifest


def file_digests(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256 of every file but the manifest itself."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    }


def verify_release(folder: Path) -> dict[str, Any]:
    """The manifest of a released folder, once every file was found to be what it says.

    Errors: FoedusError naming each file that differs, is missing or is not listed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FoedusError(f"Expected {MANIFEST} in {folder}, got none: no released adapter.")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    listed, found = manifest["files"], file_digests(folder)
    differing = sorted(
        name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name)
    )
    if differing:
        raise FoedusError(
            f"Not as released: {', '.join(differing)} in {folder}. Copy the folder again."
        )
    return manifest


def model_card(result: RunResult, settings: RunSettings) -> str:
    """The README.md of a released adapter, in the Hub's format."""
    federation, adapter = settings.federation, settings.adapter
    traits = METHODS[federation.method]
    base = public_name(settings.model)
    sizes = [len(record.admitted) for record in result.records]
    last = result.records[-1].metrics if result.records else {}
    scores = "".join(
        f"| {name} | {value:.4f} |\n" for name, value in sorted(last.items()) if "num_" not in name
    )
    return f"""---
base_model: {base}
library_name: peft
tags: [foedus, federated-learning, lora, legal]
---
# A federated LoRA adapter

Trained by several firms on contracts that never left them; only bounded adapter updates did.

| | |
|---|---|
| base model | `{base}`, digest `{result.state.base_digest}` |
| task | {settings.task.kind}{_labels_line(settings)} |
| method | {traits.title} ({traits.source}), rank {adapter.rank}, alpha {adapter.alpha:g} |
| rounds | {len(sizes)}, of which {sum(r.aggregated for r in result.records)} were aggregated |
| sites per round | {min(sizes, default=0)} to {max(sizes, default=0)} |
| privacy | no differential privacy; the coordinator saw each site's update in the clear |

## Scores of the last round

| score | value |
|---|---|
{scores}
`sites_*` are means over the sites' own held-out contracts; `central_*` were measured by the
coordinator on a public test set.

## Use

`foedus client predict --adapter DIR FILE…`, or plain transformers and peft: see docs/predict.md of
foedus.
{_personal_note(settings)}
## Limits

The adapter was trained on contracts and can repeat phrases from them. It is no legal advice.
Gradients and updates can reveal training text to whoever sees them singly.
"""


def _labels_line(settings: RunSettings) -> str:
    return f", {len(settings.task.labels)} labels" if settings.task.labels else ""


def _personal_note(settings: RunSettings) -> str:
    kept = personal_factors(settings.federation.method)
    if not kept:
        return ""
    return (
        f"\nFactor {', '.join(sorted(kept))} stayed at the sites and is zero here: outside a site "
        "that took part, this folder is the base model with the shared head.\n"
    )
