"""Published test vectors, through the very functions that sessions use."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.consortium.identity import Identity, verify
from protocol.secure_aggregation.keys import exchange, hkdf, public_key_of
from protocol.secure_aggregation.masks import RandomStream, expand, keystream
from protocol.secure_aggregation.shares import seal, unseal


@pytest.mark.parametrize(
    ("secret", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e397"
            "01cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f361"
            "3d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_identities_sign_as_rfc_8032(
    secret: str, public: str, message: str, signature: str
) -> None:
    identity = Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert identity.public_key.hex() == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    assert verify(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature))


def test_key_agreement_is_x25519_of_rfc_7748() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    expected = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert exchange(scalar, point).hex() == expected


def test_iterated_x25519_of_rfc_7748() -> None:
    k = u = bytes([9]) + bytes(31)
    for _ in range(1000):
        k, u = exchange(k, u), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"
    nine = bytes([9]) + bytes(31)
    assert public_key_of(nine) == exchange(nine, nine)


def test_key_derivation_is_hkdf_sha256_of_rfc_5869() -> None:
    secret = bytes([0x0B]) * 22
    with_salt = hkdf(secret, bytes(range(0xF0, 0xFA)), 42, salt=bytes(range(13)))
    assert with_salt.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    assert hkdf(secret, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


# RFC 8439, A.1, vectors 1 and 2: key and nonce zero, blocks 0 and 1.
KEYSTREAM_OF_ZERO = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)


def test_masks_are_the_chacha20_keystream_of_rfc_8439() -> None:
    words = np.frombuffer(KEYSTREAM_OF_ZERO, dtype="<u4")
    assert np.array_equal(expand(bytes(32), 32, bits=32), words)
    assert np.array_equal(expand(bytes(32), 32, bits=20), words & 0xFFFFF)
    stream = RandomStream(bytes(32))
    assert stream(100) + stream(28) == KEYSTREAM_OF_ZERO


def test_keystream_starts_at_counter_and_nonce_of_rfc_8439() -> None:
    # 2.4.2: the sunscreen text, counter 1.
    start = bytes.fromhex("01000000" + "000000000000004a00000000")
    sealed = keystream(bytes(range(32)), start).update(SUNSCREEN)
    assert sealed[:16].hex() == "6e2e359a2568f98041ba0728dd0d6981"
    assert sealed[-10:].hex() == "0bbf74a35be6b40b8eedf2785e42874d"[-20:]


SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)


def test_boxes_are_chacha20_poly1305_of_rfc_8439() -> None:
    key = bytes(range(0x80, 0xA0))
    nonce = bytes.fromhex("070000004041424344454647")
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    box = seal(key, SUNSCREEN, associated, nonce)
    assert box.hex() == (
        "070000004041424344454647"
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116"
        "1ae10b594f09e26a7e902ecbd0600691"
    )
    assert unseal(key, box, associated) == SUNSCREEN
