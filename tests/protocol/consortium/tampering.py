"""Every small change of a JSON document, one at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any


def tampered(text: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the changed document) for each leaf, list and object in it."""
    document = json.loads(text)
    for path, value in _nodes(document, ()):
        for what, changed in _changes(value):
            yield f"{'.'.join(map(str, path))}: {what}", json.dumps(_with(document, path, changed))


def _nodes(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _nodes(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _nodes(inner, (*path, index))


def _changes(value: Any) -> Iterator[tuple[str, Any]]:
    yield "null", None
    yield "a list", [value]
    if isinstance(value, dict):
        yield "one key more", {**value, "more": 1}
        for key in value:
            yield f"without {key}", {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list):
        for index in range(len(value)):
            yield f"without {index}", [v for i, v in enumerate(value) if i != index]
            yield f"{index} twice", [*value, value[index]]
    elif isinstance(value, str):
        yield "longer", value + "0"
        yield "shorter", value[:-1] if value else "x"
        yield "half a character", value + "\ud800"
        if value:
            middle = len(value) // 2
            other = "1" if value[middle] != "1" else "2"
            yield "one character", value[:middle] + other + value[middle + 1 :]
            yield "upper case", value.upper() if value.upper() != value else value + " "
    elif isinstance(value, int):
        yield "one more", value + 1
        yield "negative", -value - 1
        yield "a float", float(value)
        yield "a text", str(value)


def _with(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed
