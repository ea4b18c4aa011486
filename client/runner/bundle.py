"""Is the bundle that came with a run the very code that is installed here?

The coordinator sends every run as a bundle of code (a zip, in Flower's words a FAB). Nothing of it
is written to disk, put on a path or run here: it is compared, file by file, with the installed
release, and the installed code does the work. So a bundle can only say "this is the release that
I run", never "run this".
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import tomllib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from client.terminal import printable_line
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason

# What [tool.flwr.app] fab-include in pyproject.toml puts into a bundle; a test compares the two.
BUNDLED = {
    "protocol": ("**/*.py",),
    "models": ("*.py",),
    "client": ("**/*.py",),
    "strategies": ("**/*.py",),
    "server": ("**/*.py",),
    "conf": ("**/*.py", "**/*.yaml"),
}
PROJECT, CONTENT = "pyproject.toml", ".info/CONTENT"
DISTRIBUTION = "foedus"
COMPONENTS = {"serverapp": "server.app:app", "clientapp": "client.app:app"}

# Flower builds no larger ones.
MAX_BUNDLE_BYTES = 10 * 2**20
_MAX_PROJECT_BYTES = 256 * 1024
_MAX_NAMED = 20
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class InstalledFile:
    """sha256: hex, over num_bytes bytes."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """The installed code: version, and every file that its bundle would hold, by name."""

    version: str
    files: Mapping[str, InstalledFile]


def installed_release() -> Release:
    """What is installed in this environment now, wheel or checkout.

    Take it when the process starts: a later upgrade changes files, but not the code that runs.
    Errors: FoedusError where foedus is not installed whole.
    """
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise FoedusError(
            f"Expected {DISTRIBUTION} to be installed in this environment, found no such "
            "distribution. Install it (pip install) rather than copying its folders."
        ) from None
    return release_in({room: _folder_of(room) for room in BUNDLED}, version)


def release_in(folders: Mapping[str, Path], version: str) -> Release:
    """The release of which each room's package lies in its folder."""
    files: dict[str, InstalledFile] = {}
    for room, patterns in BUNDLED.items():
        folder = folders[room]
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
            content = path.read_bytes()
            name = f"{room}/{path.relative_to(folder).as_posix()}"
            files[name] = InstalledFile(len(content), hashlib.sha256(content).hexdigest())
    return Release(version, files)


def check_bundle(content: bytes, named_sha256: str, release: Release) -> None:
    """Compare a bundle with the installed release; named_sha256: the hash that came with it, hex.

    Errors: Refusal CODE_DIFFERS, naming every file that was altered, added or left out.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise _refusal(release, [f"it has more than {MAX_BUNDLE_BYTES} bytes"])
    if hashlib.sha256(content).hexdigest() != named_sha256:
        raise _refusal(release, ["it does not have the hash it came under"])
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            problems = _differences(archive, release)
    except _UNREADABLE as error:
        raise _refusal(release, [f"it cannot be read ({type(error).__name__})"]) from error
    if problems:
        raise _refusal(release, problems)


def _differences(archive: zipfile.ZipFile, release: Release) -> list[str]:
    """What keeps the archive from being the release, in words; nothing where it is."""
    entries = archive.infolist()
    # The name as it stands in the archive: zipfile itself ends names at a zero byte.
    names = Counter(entry.orig_filename for entry in entries)
    expected = {*release.files, PROJECT, CONTENT}
    special = [e.orig_filename for e in entries if not _is_plain_file(e)]
    problems = _named("twice in the bundle", (n for n, count in names.items() if count > 1))
    problems += _named("no plain files", special)
    problems += _named("only in the bundle", names.keys() - expected)
    problems += _named("only installed here", expected - names.keys())
    if special:
        return problems
    by_name = {entry.orig_filename: entry for entry in entries}
    altered = [n for n, f in release.files.items() if n in by_name and _differs(archive, n, f)]
    problems += _named("not as installed", altered)
    if PROJECT in by_name:
        problems += _project_problems(archive, by_name[PROJECT], release.version)
    return problems


def _is_plain_file(entry: zipfile.ZipInfo) -> bool:
    """False for links, folders, devices, and what is encrypted or packed in an unusual way."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    encrypted = entry.flag_bits & 1
    plain = kind in (0, stat.S_IFREG) and not entry.is_dir()
    return plain and not encrypted and entry.compress_type in _PLAIN


def _differs(archive: zipfile.ZipFile, name: str, installed: InstalledFile) -> bool:
    # Sizes first: nothing is unpacked beyond the size of the file that is installed.
    if archive.getinfo(name).file_size != installed.num_bytes:
        return True
    with archive.open(name) as stream:
        content = stream.read(installed.num_bytes)
    return hashlib.sha256(content).hexdigest() != installed.sha256


def _project_problems(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, version: str) -> list[str]:
    """Flower writes this file anew, and a wheel does not have it, so its meaning is compared."""
    if entry.file_size > _MAX_PROJECT_BYTES:
        return [f"{PROJECT} has more than {_MAX_PROJECT_BYTES} bytes"]
    with archive.open(entry) as stream:
        text = stream.read(_MAX_PROJECT_BYTES).decode("utf-8")
    project: Any = tomllib.loads(text)
    try:
        named = (project["project"]["name"], project["project"]["version"])
        components = project["tool"]["flwr"]["app"]["components"]
    except (KeyError, TypeError):
        return [f"{PROJECT} names no release or no components"]
    problems = []
    if named != (DISTRIBUTION, version):
        problems.append(f"{PROJECT} is of release {printable_line(' '.join(map(str, named)))[:80]}")
    if components != COMPONENTS:
        problems.append(f"{PROJECT} names other components")
    return problems


def _folder_of(room: str) -> Path:
    spec = find_spec(room)
    if spec is None or spec.origin is None:
        raise FoedusError(
            f"Expected the package {room!r} of foedus in this environment, found none. Install "
            "foedus anew."
        )
    return Path(spec.origin).parent


def _named(what: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(printable_line(name)[:120] for name in names)
    if not ordered:
        return []
    more = len(ordered) - _MAX_NAMED
    listed = ", ".join(ordered[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [f"{what}: {listed}"]


def _refusal(release: Release, problems: list[str]) -> Refusal:
    return Refusal(
        RefusalReason.CODE_DIFFERS,
        f"Expected the bundle of foedus {release.version} as it is installed here, got another: "
        f"{'; '.join(problems)}. Nothing of it was run. Agree with the coordinator on one release; "
        "after an upgrade of this site, start `foedus client up` again.",
    )
