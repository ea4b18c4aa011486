"""Typed settings from untyped mappings, with every problem reported at once.

One codec serves the configuration files (nested mappings) and the wire (flat scalars with dotted
keys), so that a bound on a setting is written once, on the field itself.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from protocol.errors import SettingsError, shown

T = TypeVar("T")
Scalar = bool | int | float | str

_LONGEST_KEY = 80


def setting(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] | Sequence[int] | None = None,
) -> Any:
    """Declare a dataclass field with its bounds (inclusive) and its one-line meaning.

    `choices` restricts strings and whole numbers. Bounds of a tuple hold for each element.
    """
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def decode(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build `cls` from a nested mapping.

    A class may say what no bound of one field can by a method `problems() -> Iterator[str]`.
    Errors: SettingsError listing every unknown key, missing key, wrong type and broken bound.
    """
    problems: list[str] = []
    result = _decode(cls, values, "", problems)
    if problems:
        raise SettingsError(where, problems)
    return typing.cast(T, result)


def _decode(cls: type[Any], values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(f"{prefix or 'top level'}: expected a mapping, got {shown(values)}.")
        return None
    known = len(problems)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            expected = f"expected one of {', '.join(fields)}"
            problems.append(f"{prefix}{_shown_key(key)}: unknown setting; {expected}.")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        path = f"{prefix}{name}"
        if name in values:
            arguments[name] = _decode_value(
                hints[name], values[name], path, field.metadata, problems
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{path}: missing; expected {_describe(hints[name])}.")
    if len(problems) > known:
        return None
    result = cls(**arguments)
    if own_problems := getattr(result, "problems", None):
        problems.extend(f"{prefix}{problem}" for problem in own_problems())
    return result


def _shown_key(key: object) -> str:
    """A key from elsewhere: plain where it is a name, else quoted and cut, so that it forges no
    lines of a log."""
    if isinstance(key, str) and key.isascii() and all(map(str.isidentifier, key.split("."))):
        return key[:_LONGEST_KEY]
    return shown(key)


def _decode_value(
    hint: Any, value: Any, path: str, bounds: Mapping[str, Any], problems: list[str]
) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode(hint, value, f"{path}.", problems)
    if typing.get_origin(hint) is tuple:
        return _decode_tuple(hint, value, path, bounds, problems)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        return _decode_value(hint, value, path, bounds, problems)
    converted = _as_scalar(hint, value)
    if converted is None:
        problems.append(f"{path}: expected {_describe(hint)}, got {shown(value)}.")
        return None
    problem = _broken_bound(converted, bounds)
    if problem:
        problems.append(f"{path}: {problem}, got {shown(value)}.")
    return converted


def _decode_tuple(
    hint: Any, value: Any, path: str, bounds: Mapping[str, Any], problems: list[str]
) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        problems.append(f"{path}: expected a list, got {shown(value)}.")
        return None
    element = typing.get_args(hint)[0]
    return tuple(
        _decode_value(element, item, f"{path}[{index}]", bounds, problems)
        for index, item in enumerate(value)
    )


def _as_scalar(hint: Any, value: Any) -> Scalar | None:
    """The value as `hint`, or None where it is of another type; ints pass as floats only."""
    if hint is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if hint is int:
        return value if isinstance(value, int) else None
    if hint is float:
        return _as_float(value) if isinstance(value, int | float) else None
    return value if hint is str and isinstance(value, str) else None


def _as_float(value: float) -> float | None:
    try:
        return float(value)
    except OverflowError:  # A whole number of over 300 digits.
        return None


def _broken_bound(value: Scalar, bounds: Mapping[str, Any]) -> str | None:
    choices, low, high = bounds.get("choices"), bounds.get("minimum"), bounds.get("maximum")
    if choices is not None and value not in choices:
        return f"expected one of {', '.join(map(str, choices))}"
    if isinstance(value, str | bool):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if low is not None and value < low:
        return f"expected at least {low}"
    if high is not None and value > high:
        return f"expected at most {high}"
    return None


def _describe(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(hint, "a mapping" if dataclasses.is_dataclass(hint) else "a value")


def encode(instance: Any) -> dict[str, Any]:
    """The nested mapping of a settings object; inverse of `decode`. None fields are left out."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            values[field.name] = encode(value)
        else:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{'a.b': 1} -> {'a': {'b': 1}}.

    Errors: SettingsError where a key is both a value and a prefix of another.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise _both_value_and_group(key, part)
        if last in node:
            raise _both_value_and_group(key, last)
        node[last] = value
    return nested


def _both_value_and_group(key: str, part: str) -> SettingsError:
    problem = f"{_shown_key(key)}: {_shown_key(part)} is both a value and a group."
    return SettingsError("message", [problem])
