"""A bundle is accepted where it is the installed release, file by file; nothing of it is run."""

from __future__ import annotations

import hashlib
import io
import stat
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from hypothesis import given
from hypothesis import strategies as st

import client.runner.bundle
import protocol.errors
from client.runner.bundle import (
    BUNDLED,
    CONTENT,
    MAX_BUNDLE_BYTES,
    PROJECT,
    Release,
    check_bundle,
    installed_release,
)
from protocol.errors import Refusal
from protocol.reasons import RefusalReason
from tests.client.runner.checkouts import copy_checkout, release_of

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that nobody edits meanwhile."""
    return copy_checkout(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def built(code: Path) -> bytes:
    return build_fab_from_disk(code)


@pytest.fixture(scope="module")
def files(built: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(built)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def release(code: Path) -> Release:
    return release_of(code)


def packed(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return stream.getvalue()


def check(bundle: bytes, release: Release) -> None:
    check_bundle(bundle, hashlib.sha256(bundle).hexdigest(), release)


def refused(bundle: bytes, release: Release) -> str:
    with pytest.raises(Refusal) as refusal:
        check(bundle, release)
    assert refusal.value.code == RefusalReason.CODE_DIFFERS
    return str(refusal.value)


def test_the_bundle_that_flower_builds_of_the_installed_release_is_accepted(
    built: bytes, release: Release
) -> None:
    check(built, release)


def test_the_installed_release_is_the_code_that_this_process_imports() -> None:
    files = installed_release().files
    for module in (client.runner.bundle, protocol.errors):
        name = module.__name__.replace(".", "/") + ".py"
        content = Path(str(module.__file__)).read_bytes()
        assert files[name].sha256 == hashlib.sha256(content).hexdigest()
    assert {name.partition("/")[0] for name in files} == set(BUNDLED)


def test_what_is_compared_is_what_flower_bundles(code: Path) -> None:
    project = tomllib.loads((code / PROJECT).read_text(encoding="utf-8"))
    patterns = {f"{room}/{pattern}" for room, each in BUNDLED.items() for pattern in each}
    assert patterns == set(project["tool"]["flwr"]["app"]["fab-include"])


def test_a_bundle_packed_another_way_is_accepted_for_its_content(
    files: Files, release: Release
) -> None:
    check(packed(dict(reversed(files.items()))), release)


def test_one_byte_changed_in_any_file_is_refused_by_name(files: Files, release: Release) -> None:
    for name in ("client/app.py", "server/app.py", "conf/coordinate.yaml", "protocol/adapter.py"):
        content = bytearray(files[name])
        content[len(content) // 2] ^= 1
        text = refused(packed({**files, name: bytes(content)}), release)
        assert f"not as installed: {name}." in text


def test_an_added_file_is_refused_by_name(files: Files, release: Release) -> None:
    for name in ("client/new.py", "evil.py", "../evil.py", "/etc/evil.py", "client\\app.py"):
        assert f"only in the bundle: {name}." in refused(packed({**files, name: b"x"}), release)


def test_a_name_from_the_bundle_cannot_steer_a_terminal(files: Files, release: Release) -> None:
    text = refused(packed({**files, "client/\x1b[2J\r\n.py": b""}), release)
    assert text.isprintable()


def test_a_removed_file_is_refused_by_name(files: Files, release: Release) -> None:
    for name in ("client/egress.py", "conf/coordinate.yaml", PROJECT, CONTENT):
        rest = {n: content for n, content in files.items() if n != name}
        assert f"only installed here: {name}." in refused(packed(rest), release)


def test_many_differences_are_told_with_their_number(files: Files, release: Release) -> None:
    added = {f"client/added_{number:02}.py": b"" for number in range(25)}
    assert "client/added_19.py and 5 more" in refused(packed({**files, **added}), release)


def test_another_version_and_other_components_are_refused(files: Files, release: Release) -> None:
    text = files[PROJECT].decode()
    newer = text.replace(f'version = "{release.version}"', 'version = "99.0"')
    assert newer != text
    assert "is of release foedus 99.0" in refused(
        packed({**files, PROJECT: newer.encode()}), release
    )
    other = text.replace('"client.app:app"', '"client.other:app"')
    assert "names other components" in refused(packed({**files, PROJECT: other.encode()}), release)
    assert "names no release" in refused(packed({**files, PROJECT: b""}), release)
    assert "cannot be read" in refused(packed({**files, PROJECT: b"= ="}), release)
    assert "more than 262144 bytes" in refused(packed({**files, PROJECT: b"#" * 300_000}), release)


def test_a_file_that_is_there_twice_is_refused(files: Files, release: Release) -> None:
    stream = io.BytesIO(packed(files))
    with (
        zipfile.ZipFile(stream, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("client/app.py", b"raise SystemExit")
    assert "twice in the bundle: client/app.py" in refused(stream.getvalue(), release)


def test_links_folders_and_encrypted_files_are_refused(files: Files, release: Release) -> None:
    def with_entry(change: Callable[[zipfile.ZipInfo], None], name: str = "client/app.py") -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for file, content in files.items():
                entry = zipfile.ZipInfo(file)
                if file == name:
                    change(entry)
                archive.writestr(entry, content)
        return stream.getvalue()

    def link(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16

    assert "no plain files: client/app.py" in refused(with_entry(link), release)
    assert "no plain files: client/a/" in refused(packed({**files, "client/a/": b""}), release)
    bundle = bytearray(packed(files))
    central = bundle.index(b"PK\x01\x02")
    bundle[central + 8] |= 1
    assert "no plain files" in refused(bytes(bundle), release)


def test_a_bomb_is_refused_without_being_unpacked(files: Files, release: Release) -> None:
    bomb = packed({**files, "client/app.py": b"\0" * 200 * 2**20})
    assert len(bomb) < 2**21
    assert "not as installed: client/app.py" in refused(bomb, release)
    assert "more than 10485760 bytes" in refused(b"\0" * (MAX_BUNDLE_BYTES + 1), release)


def test_a_bundle_under_another_hash_is_refused(built: bytes, release: Release) -> None:
    with pytest.raises(Refusal, match="does not have the hash"):
        check_bundle(built, "0" * 64, release)


@given(st.binary(max_size=400), st.integers(0, 2**32))
def test_a_damaged_bundle_is_accepted_or_refused_and_nothing_else(
    built: bytes, release: Release, noise: bytes, place: int
) -> None:
    start = place % len(built)
    for damaged in (noise, built[:start] + noise, built[:start] + noise + built[start:]):
        try:
            check(damaged, release)
        except Refusal as refusal:
            assert refusal.code == RefusalReason.CODE_DIFFERS
