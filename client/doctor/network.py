"""Whether the coordinator can be reached, is who it says it is, and has the same time."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

import httpx

from client.doctor.findings import Check, Finding, fail, ok, warn
from client.runner.outage import clock_ahead_seconds
from client.site import Site
from protocol.consortium.invitation import Invitation, split_address

_TIMEOUT_SECONDS = 10.0
_CLOCK_WARN_SECONDS, _CLOCK_FAIL_SECONDS = 5.0, 60.0
_CERTIFICATE_WARN_DAYS = 30
_DAY_SECONDS = 86400


def network_checks(site: Site) -> tuple[Check, ...]:
    """None where the site has no consortium."""
    if site.invitation_file is None:
        return ()
    file = site.invitation_file
    return (
        Check("tls", lambda: _tls(Invitation.read(file))),
        Check("clock", lambda: _clock(Invitation.read(file))),
    )


def _tls(invitation: Invitation) -> Iterator[Finding]:
    host, port = split_address(invitation.address)
    try:
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS) as plain,
            _context(invitation).wrap_socket(plain, server_hostname=host) as secure,
        ):
            certificate, version = secure.getpeercert() or {}, secure.version()
    except ssl.SSLCertVerificationError as error:
        yield fail(
            "tls",
            f"what answers at {invitation.address} shows no certificate of the consortium's: "
            f"{error.verify_message}",
            "Ask the coordinator's operator whether it has expired or the address has changed; "
            "else somebody stands in between.",
        )
        return
    except OSError as error:
        yield fail(
            "tls",
            f"no connection to {invitation.address}: {error.strerror or type(error).__name__}",
            "Is the coordinator up, and does a firewall let this machine out to it?",
        )
        return
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends - time.time()) / _DAY_SECONDS
    text = f"{version} with {invitation.address}; its certificate holds {days:.0f} more days"
    if days < _CERTIFICATE_WARN_DAYS:
        yield warn("tls", text, "Remind the coordinator's operator: `foedus server renew`.")
    else:
        yield ok("tls", text)


def _clock(invitation: Invitation) -> Iterator[Finding]:
    try:
        ahead = clock_ahead_seconds(invitation.address, _context(invitation))
    except (httpx.HTTPError, OSError) as error:
        text = f"not compared: the coordinator does not answer ({type(error).__name__})"
        yield fail("clock", text, "See tls.")
        return
    except ValueError:
        text = f"not compared: what answers at {invitation.address} is no coordinator of foedus"
        yield fail("clock", text, "Compare the address with the coordinator's operator.")
        return
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if abs(ahead) > _CLOCK_FAIL_SECONDS:
        yield fail("clock", text, "Set the clock (NTP): signed requests are refused.")
    elif abs(ahead) > _CLOCK_WARN_SECONDS:
        yield warn("clock", text, "Set the clock (NTP) before it drifts further.")
    else:
        yield ok("clock", text)


def _context(invitation: Invitation) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=invitation.ca_certificate_pem)
