"""Settings from a YAML file, everything wrong in it at once; and such a file, commented."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from protocol.codec import decode
from protocol.errors import FoedusError

T = TypeVar("T")


def read_settings(cls: type[T], path: Path, what: str) -> T:
    """Decode the file as `cls`. what: its name in an error, such as "a site configuration".

    Errors: SettingsError with everything wrong in it; FoedusError where there is no YAML to read.
    """
    if not path.is_file():
        raise FoedusError(f"Expected {what} at {path}, got no file.")
    try:
        loaded: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise FoedusError(f"Expected {what} in YAML at {path}, got {error}") from error
    return decode(cls, loaded, str(path))


def commented_yaml(instance: Any, opening: str, left_out: Collection[str] = ()) -> str:
    """A settings dataclass as YAML, each setting below its meaning.

    opening: the file's first comment lines, without "# ". left_out: names of settings that are
    shown, but commented out.
    """
    head = [f"# {line}".rstrip() for line in opening.splitlines()]
    return "\n".join([*head, *_commented_lines(instance, "", left_out)]) + "\n"


def _commented_lines(instance: Any, indent: str, left_out: Collection[str]) -> list[str]:
    lines = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        off = "# " if field.name in left_out else ""
        if dataclasses.is_dataclass(value):
            inner = _commented_lines(value, f"{indent}  ", ())
            lines += [f"{off}{line}" for line in (f"{indent}{field.name}:", *inner)]
        else:
            # JSON's values are YAML's too, and its quotes leave no text that breaks the file.
            # "${" would be taken for a reference to another setting.
            shown = json.dumps(value, ensure_ascii=False).replace("${", "\\\\${")
            lines += [f"{indent}# {field.metadata['doc']}", f"{off}{indent}{field.name}: {shown}"]
    return lines
