"""Small consortia with real keys, for tests of what they sign."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec

from protocol.consortium.chain import MemberEntry, SignedRoster, first_version, next_version
from protocol.consortium.identity import Identity
from protocol.consortium.supernode_key import public_pem

NOW = 1_800_000_000
YEAR = 365 * 86_400
LEAGUE = "Test League"


@dataclass(frozen=True)
class Firm:
    """A firm with both its private keys."""

    name: str
    identity: Identity
    supernode: ec.EllipticCurvePrivateKey

    def entry(self, admitted: int = NOW, expires: int = NOW + YEAR) -> MemberEntry:
        return MemberEntry(
            self.name, self.identity.public_key, public_pem(self.supernode), admitted, expires
        )


@functools.cache
def firm(name: str) -> Firm:
    """Always the same firm within a test run; keys are slow to make."""
    return Firm(name, Identity.generate(), ec.generate_private_key(ec.SECP384R1()))


COORDINATOR = Identity.generate()
ANNE, BELL, COLE = firm("Anne & Co"), firm("Bell LLP"), firm("Cole")


def founded(signatures_needed: int = 0) -> SignedRoster:
    return first_version(LEAGUE, COORDINATOR, signatures_needed, NOW)


def with_members(head: SignedRoster, *members: MemberEntry, issued: int = NOW) -> SignedRoster:
    """The unsigned next version with these members."""
    return replace(next_version(head, issued), members=members)


def three_versions() -> list[SignedRoster]:
    """Anne is admitted, then Bell with Anne's signature, as the consortium asks for one."""
    first = founded(signatures_needed=1)
    second = with_members(first, ANNE.entry()).signed_by(COORDINATOR)
    third = with_members(second, ANNE.entry(), BELL.entry())
    return [first, second, third.signed_by(COORDINATOR, ANNE.identity)]


def lines_of(*versions: SignedRoster) -> list[str]:
    return [version.to_line() for version in versions]
