"""The consortium's own certificate authority, and the coordinator's TLS certificate by it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.consortium.private_pem import from_private_pem, to_private_pem
from protocol.errors import FoedusError

CA_DAYS = 3650
WARN_DAYS = 30
# What commands and tests on the coordinator's own machine connect to.
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "127.0.0.2", "::1")

_DAY = datetime.timedelta(days=1)
# Members whose clocks are a little behind must not find a new certificate not valid yet.
_BACKDATED = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Certified:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        """Public."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None, *, for_openssl: bool = False) -> bytes:
        """Secret: PKCS #8, encrypted where a passphrase is given. Other parameters and errors:
        protocol.consortium.private_pem.to_private_pem."""
        return to_private_pem(self.key, passphrase, for_openssl=for_openssl)

    @classmethod
    def from_pem(cls, key: bytes, certificate: bytes, passphrase: bytes | None) -> Certified:
        """Errors: FoedusError where the key does not open or is not the certificate's."""
        private = from_private_pem(key, passphrase)
        try:
            loaded = x509.load_pem_x509_certificate(certificate)
        except ValueError as error:
            raise FoedusError("Expected the authority's certificate in PEM.") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or (
            private.public_key() != loaded.public_key()
        ):
            raise FoedusError("Expected the authority's key to be that of its certificate.")
        return cls(private, loaded)


def make_authority(consortium: str, now: datetime.datetime) -> Certified:
    """A new P-384 authority for one consortium, for ten years; it can certify servers only."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"foedus {consortium}"[:64])
    builder = _builder(name, name, key.public_key(), key.public_key(), now, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    return Certified(key, builder.sign(key, SHA384()))


def make_server_certificate(
    authority: Certified, names: Iterable[str], days: int, now: datetime.datetime
) -> Certified:
    """A new P-256 key and its certificate for these host names and addresses.

    Errors: FoedusError where a name is none, or the authority's own certificate ends sooner.
    """
    if now + days * _DAY > authority.certificate.not_valid_after_utc:
        raise FoedusError(
            f"Expected the consortium's authority to be valid for {days} more days, it ends on "
            f"{authority.certificate.not_valid_after_utc:%Y-%m-%d}. Set a smaller "
            "server_certificate_days, or found the consortium anew."
        )
    unique = list(dict.fromkeys(names))
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    builder = _builder(
        issuer, _name(unique[0][:64]), authority.key.public_key(), key.public_key(), now, days
    )
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in unique])
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (alternatives, False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return Certified(key, builder.sign(authority.key, SHA384()))


def names_of(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses that a server certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def days_left(certificate: x509.Certificate, now: datetime.datetime) -> int:
    """Whole days until it ends, rounded down; negative once it has."""
    return (certificate.not_valid_after_utc - now).days


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, public_key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _BACKDATED).not_valid_after(now + days * _DAY)
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    builder = builder.add_extension(identifier, critical=False)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return builder.add_extension(by, critical=False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise FoedusError(
            f"Expected a host name in ASCII or an IP address, got {name!r}. Write an international "
            "name in its xn-- form."
        ) from error


def _key_usage(
    digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
