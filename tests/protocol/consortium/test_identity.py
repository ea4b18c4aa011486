from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from protocol.consortium.identity import (
    Identity,
    is_weak_key,
    load_identity,
    member_id_of,
    save_identity,
    verify,
)
from protocol.errors import FoedusError


def test_a_saved_identity_comes_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    identity = Identity.generate()
    path = tmp_path / "keys" / "identity.pem"
    save_identity(path, identity)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = load_identity(path)
    assert loaded.public_key == identity.public_key
    assert verify(identity.public_key, b"message", loaded.sign(b"message"))


def test_an_identity_under_a_passphrase_opens_with_it_alone(tmp_path: Path) -> None:
    identity = Identity.generate()
    path = tmp_path / "identity.pem"
    save_identity(path, identity, passphrase=b"correct horse")
    assert load_identity(path, b"correct horse").member_id == identity.member_id
    for wrong in (b"battery staple", None):
        with pytest.raises(FoedusError, match="passphrase"):
            load_identity(path, wrong)


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.pem"
    first = Identity.generate()
    save_identity(path, first)
    with pytest.raises(FoedusError, match="Expected no file"):
        save_identity(path, Identity.generate())
    assert load_identity(path).public_key == first.public_key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_an_identity_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.pem"
    save_identity(path, Identity.generate())
    os.chmod(path, mode)
    with pytest.raises(FoedusError, match="chmod 600"):
        load_identity(path)


def test_other_keys_and_other_files_are_no_identity(tmp_path: Path) -> None:
    x25519 = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(FoedusError, match="Expected an Ed25519 private key, got X25519"):
        Identity.from_pem(x25519)
    with pytest.raises(FoedusError, match="PKCS #8 PEM"):
        Identity.from_pem(b"not a key")
    with pytest.raises(FoedusError, match=r"Expected an identity at .*missing\.pem"):
        load_identity(tmp_path / "missing.pem")


def test_the_private_half_does_not_show() -> None:
    identity = Identity.generate()
    private = identity.to_pem().decode().splitlines()[1]
    assert identity.member_id in repr(identity)
    assert private not in repr(identity)
    assert repr(identity) == f"Identity(member_id={identity.member_id!r})"


def test_a_member_id_is_half_of_the_public_keys_sha256() -> None:
    # SHA-256 of 32 zero bytes starts so.
    assert member_id_of(bytes(32)) == "66687aadf862bd776c8fc18b8e9f8e20"


@given(message=st.binary(max_size=200), position=st.integers(0, 63), difference=st.integers(1, 255))
def test_a_signature_with_one_byte_changed_is_false(
    message: bytes, position: int, difference: int
) -> None:
    signature = bytearray(IDENTITY.sign(message))
    assert verify(IDENTITY.public_key, message, bytes(signature))
    signature[position] ^= difference
    assert not verify(IDENTITY.public_key, message, bytes(signature))


IDENTITY = Identity.generate()


def test_malformed_keys_and_signatures_are_false_and_do_not_raise() -> None:
    signature = IDENTITY.sign(b"m")
    assert not verify(IDENTITY.public_key[:31], b"m", signature)
    assert not verify(b"\xff" * 32, b"m", signature)
    assert not verify(IDENTITY.public_key, b"m", signature[:63])
    assert not verify(IDENTITY.public_key, b"m", b"")


def test_a_low_order_key_would_let_anyone_sign_and_is_told() -> None:
    neutral = bytes([1]) + bytes(31)
    forged = neutral + bytes(32)
    assert verify(neutral, b"any message at all", forged)
    assert is_weak_key(neutral)
    assert is_weak_key(neutral[:31] + b"\x80")
    assert is_weak_key(bytes(32))
    assert not is_weak_key(IDENTITY.public_key)


def test_every_point_of_low_order_is_told() -> None:
    # The curve's equation x^2 (d y^2 + 1) = y^2 - 1 and its addition, written out once more, find
    # the eight points that 8 times themselves give the neutral element.
    weak = {_encoded(point) for point in _points_of_low_order()}
    assert len(weak) == 8
    assert all(is_weak_key(key) for key in weak)


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def _add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P
    return x, y


def _times(factor: int, point: Point) -> Point:
    result = (0, 1)
    while factor:
        if factor & 1:
            result = _add(result, point)
        point = _add(point, point)
        factor >>= 1
    return result


def _points_of_low_order() -> set[Point]:
    order = 2**252 + 27742317777372353535851937790883648493
    found: set[Point] = set()
    for y in range(2, 40):
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        if x * x % P != square:
            x = x * pow(2, (P - 1) // 4, P) % P
        if x * x % P == square:
            found.add(_times(order, (x, y)))
    return found


def _encoded(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")
