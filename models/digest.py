"""The digest of a base model: over every file that decides what it computes, and no other is read.

transformers lets some files name others, in sub-folders or outside of the folder. A folder that
does so is refused, as what would be loaded from there is in no digest.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from protocol.errors import FoedusError

# The kinds of files in which transformers looks for weights, configurations, vocabularies and chat
# templates. These are fetched from the Hub and hashed, at the top of the folder.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.codes", "*.tokenizer")

# Keys of config.json and tokenizer_config.json whose values are names of files to read.
_WEIGHTS_KEY, _TOKENIZERS_KEY = "transformers_weights", "fast_tokenizer_files"


@functools.lru_cache(maxsize=8)
def model_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all MODEL_FILES at the top of `folder`.

    Errors: FoedusError where there are no safetensors (other formats can run code when loaded), or
    where transformers would read a file that is not among those hashed.
    """
    files = {path.name: path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    files = {name: path for name, path in files.items() if path.is_file()}
    if not any(name.endswith(".safetensors") for name in files):
        raise FoedusError(
            f"Expected *.safetensors in {folder}, got none. Convert the model's weights first; "
            "pickled weights are not loaded."
        )
    if problems := list(_unhashed(folder, files)):
        raise FoedusError(
            f"Expected a base model in {folder} that is read from the files at the top of its "
            f"folder alone, got: {'; '.join(problems)}. Save it anew with `save_pretrained`."
        )
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\x1f{sha256_of(files[name])}\n".encode())
    return total.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unhashed(folder: Path, files: dict[str, Path]) -> Iterator[str]:
    """What transformers would read besides `files`, in words."""
    weights = {name for name in files if name.endswith(".safetensors")}
    for name, path in sorted(files.items()):
        if name.endswith(".safetensors.index.json"):
            for mapping in _found_in(path, "weight_map"):
                named = mapping.values() if isinstance(mapping, dict) else [mapping]
                yield from _strange(name, named, weights)
    indices = {name for name in files if name.endswith(".safetensors.index.json")}
    for name in {"config.json"} & files.keys():
        yield from _strange(name, _found_in(files[name], _WEIGHTS_KEY), weights | indices)
    for name in {"tokenizer_config.json"} & files.keys():
        for listed in _found_in(files[name], _TOKENIZERS_KEY):
            named = listed if isinstance(listed, list) else [listed]
            yield from _strange(name, named, files)
    if "adapter_config.json" in files:
        yield "adapter_config.json, by which an adapter would be put on it"
    # Before the template at the top of the folder, by the order in which they are read.
    if (folder / "additional_chat_templates" / "default.jinja").exists():
        yield "additional_chat_templates/default.jinja, which would be its chat template"


def _strange(name: str, named: Collection[Any], known: Collection[str]) -> Iterator[str]:
    unknown = (n for n in named if n is not None and not (isinstance(n, str) and n in known))
    strange = sorted({str(n)[:80] for n in unknown})
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        yield f"{name} names {', '.join(map(repr, strange[:3]))}{more}"


def _found_in(path: Path, key: str) -> list[Any]:
    """Every value under `key` in a JSON file, at any depth: a part of a model has its own config.

    Empty where it is no JSON, which transformers does not read either.
    """
    found: list[Any] = []

    def look(mapping: dict[str, Any]) -> dict[str, Any]:
        if key in mapping:
            found.append(mapping[key])
        return mapping

    try:
        json.loads(path.read_text(encoding="utf-8"), object_hook=look)
    except ValueError:
        return []
    return found
