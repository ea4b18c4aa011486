"""Release: the finished adapter as a folder that others can check and load.

A PEFT folder, a model card, and a manifest that ties the files to the run they came from. Nothing
is written before the consortium's gate has let the adapter pass.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from models.base import public_name
from protocol.errors import FoedusError
from protocol.files import write_atomically
from protocol.peft_folder import write_peft_folder
from protocol.settings import RunSettings
from server.checkpoint import settings_digest
from server.coordinator import RunResult
from server.model_card import model_card
from server.release_gate import ReleaseGate

MANIFEST, MODEL_CARD = "manifest.json", "README.md"
_SCHEMA = 1


def release(
    folder: Path, result: RunResult, settings: RunSettings, gate: ReleaseGate | None = None
) -> dict[str, Any]:
    """Write the adapter folder and return its manifest, whose files' digests are all checked.

    gate: what must be shown first; None lets everything pass.
    Errors: FoedusError where no round was aggregated or the gate stays shut; then nothing in
    `folder` has changed.
    """
    if not any(record.aggregated for record in result.records):
        raise FoedusError(
            f"The adapter is not released: none of {len(result.records)} rounds had enough good "
            "replies, so it is as untrained as it began. history.json and the log say what came "
            "of each site."
        )
    audit = gate.check(result.state, settings) if gate else None
    write_peft_folder(folder, result.state, settings, public_name(settings.model))
    write_atomically(folder / MODEL_CARD, model_card(result, settings, audit).encode())
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
        "privacy": privacy_facts(settings),
        "secure_aggregation": secure_aggregation_facts(settings),
        "audit": audit,
        "files": file_digests(folder),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / MANIFEST, text.encode())
    return manifest


def privacy_facts(settings: RunSettings) -> dict[str, Any]:
    """What the run promised of each site's contracts, for the manifest."""
    privacy = settings.privacy
    if not privacy.enabled:
        return {"mode": privacy.mode}
    return {
        "mode": privacy.mode,
        "unit": privacy.unit,
        "target_epsilon": privacy.target_epsilon,
        "delta": privacy.delta,
    }


def secure_aggregation_facts(settings: RunSettings) -> dict[str, Any]:
    """What the coordinator could see of single updates, for the manifest."""
    secure = settings.secure_aggregation
    return {"enabled": True, "bits": secure.bits} if secure.enabled else {"enabled": False}


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
