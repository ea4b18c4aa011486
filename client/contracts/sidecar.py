"""Sidecars: small JSON files that say what the contracts beside them are.

`nda.docx.meta.json` (or `nda.meta.json`) speaks of `nda.docx`; `folder.meta.json` of everything in
its folder and below; `acme.meta.json` beside a sub-folder `acme` of everything in it. Keys:
`matter`, `licence` (or `license`), `consent`, `source`, `label`, and `fields`, an object of single
values.

Where several speak of one file, the nearest wins, key by key, except consent: withheld once, it
stays withheld. A sidecar that cannot be understood may be the one that withholds it, so a broken
one leaves its files out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.contracts.contract import ContractsError

SIDECAR_SUFFIX = ".meta.json"
FOLDER_SIDECAR = "folder" + SIDECAR_SUFFIX
MAX_SIDECAR_BYTES = 1024 * 1024

_KEYS = ("matter", "licence", "license", "consent", "source", "label", "fields")


class SidecarError(ContractsError):
    """A sidecar that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of a file before it is read. None: not said."""

    matter: str | None = None
    licence: str | None = None
    consent: bool | None = None
    source: str | None = None
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def over(self, wider: Sidecar) -> Sidecar:
        """This sidecar laid over a wider one (a folder's)."""
        return Sidecar(
            matter=wider.matter if self.matter is None else self.matter,
            licence=wider.licence if self.licence is None else self.licence,
            consent=joint_consent(wider.consent, self.consent),
            source=wider.source if self.source is None else self.source,
            label=wider.label if self.label is None else self.label,
            fields={**wider.fields, **self.fields},
        )


def joint_consent(*given: bool | None) -> bool | None:
    """False if any says False, else True if any says True, else None."""
    if False in given:
        return False
    return True if True in given else None


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar at `path`. Raises SidecarError, whose message names what is wrong with it."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_SIDECAR_BYTES + 1)
        if len(raw) > MAX_SIDECAR_BYTES:
            raise SidecarError(f"expected at most {MAX_SIDECAR_BYTES} bytes, got more")
        content = parse_json(raw.decode("utf-8-sig"))
    except OSError as failure:
        raise SidecarError(f"cannot be opened: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise SidecarError("expected UTF-8, got other bytes") from None
    except ValueError as failure:
        raise SidecarError(f"expected JSON, got a fault: {failure}") from None
    if not isinstance(content, dict):
        raise SidecarError(f"expected a JSON object, got {json_type(content)}")
    return _from_object(content)


def _from_object(content: Mapping[str, Any]) -> Sidecar:
    """Checks every key at once, so that one look mends the file."""
    faults = [f"unknown key {key!r}" for key in content if key not in _KEYS]
    if "licence" in content and "license" in content:
        faults.append("both 'licence' and 'license' are given")
    texts: dict[str, str | None] = {}
    for key in ("matter", "licence", "license", "source", "label"):
        value = content.get(key)
        if value is not None and not is_scalar(value):
            faults.append(f"{key!r} must be text, got {json_type(value)}")
        else:
            texts[key] = scalar_text(value)
    # A null here is a form left blank; whether consent was given is then unknown.
    if "consent" in content and not isinstance(content["consent"], bool):
        faults.append(f"'consent' must be true or false, got {json_type(content['consent'])}")
    given_fields = content.get("fields", {})
    if not isinstance(given_fields, dict):
        faults.append(f"'fields' must be an object, got {json_type(given_fields)}")
        given_fields = {}
    fields = {key: text for key, value in given_fields.items() if (text := scalar_text(value))}
    faults += [
        f"'fields' must hold single values, got {json_type(value)} for {key!r}"
        for key, value in given_fields.items()
        if value is not None and not is_scalar(value)
    ]
    if faults:
        known = ", ".join(key for key in _KEYS if key != "license")
        raise SidecarError(f"{'; '.join(faults)} (known keys: {known})")
    return Sidecar(
        matter=texts["matter"],
        licence=texts["licence"] if texts["licence"] is not None else texts["license"],
        consent=content.get("consent"),
        source=texts["source"],
        label=texts["label"],
        fields=fields,
    )


def parse_json(text: str) -> Any:
    """JSON, refusing a key given twice (`json` would keep the last one, whichever that is).

    Raises ValueError, whose message says where but quotes no value of the text.
    """
    try:
        return json.loads(text, object_pairs_hook=_object_without_repeats)
    except json.JSONDecodeError as failure:
        raise ValueError(
            f"{failure.msg} at line {failure.lineno}, column {failure.colno}"
        ) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"key {repeated[0]!r} is given twice")
    return content


def is_scalar(value: object) -> bool:
    """Whether a JSON value is text, a number or a truth value."""
    return isinstance(value, str | int | float | bool)


def scalar_text(value: object) -> str | None:
    """A JSON scalar as text, stripped; None for null, blank text and anything that nests."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value).strip() or None
    return None


def json_type(value: object) -> str:
    """What a JSON value is, in words; never the value itself, which may be a contract's."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")
