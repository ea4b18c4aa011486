"""`foedus server init`, `admit`, `adopt`, `expel`, `members`, `renew`, `rotate-key`,
`require-signatures`: who the consortium is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.consortium.options import AsJson, Consortium

if TYPE_CHECKING:
    from protocol.consortium.chain import SignedRoster
    from protocol.consortium.enrolment import EnrolmentRequest
    from server.consortium.folder import ConsortiumFolder
    from server.consortium.roster_change import Outcome

Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
AlsoKnownAs = Annotated[
    list[str] | None,
    typer.Option(help="A further host name or address of the certificate; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `foedus server`."""
    for command in (init, admit, adopt, expel, members, renew):
        app.command()(command)
    app.command("rotate-key")(rotate_key)
    app.command("require-signatures")(require_signatures)


def init(
    name: Annotated[str, typer.Argument(help="The consortium's name; it can never change.")],
    address: Annotated[str, typer.Option(help="host:port by which firms reach this machine.")],
    folder: Annotated[Path, typer.Option(help="A new folder, kept secret.")] = Path("consortium"),
    signatures: Annotated[
        int, typer.Option(min=0, help="Members who must sign each change of the roster.")
    ] = 0,
    also_known_as: AlsoKnownAs = None,
    public_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 = the address's.")
    ] = 0,
    control_port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback only.")] = 9444,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback only.")] = 9445,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Its first line encrypts the keys; else FOEDUS_PASSPHRASE, else none."),
    ] = None,
) -> None:
    """Found a consortium: its authority and certificate, the coordinator's key, an empty roster.

    Give invitation.json to the firms, and read them the fingerprint by telephone.
    """
    import datetime

    from protocol.consortium.invitation import split_address
    from protocol.consortium.passphrase import read_passphrase
    from protocol.errors import FoedusError
    from server.consortium.folder import ConsortiumFolder
    from server.consortium.founding import found_consortium
    from server.consortium.settings import ConsortiumSettings

    try:
        port = public_port or split_address(address)[1]
    except ValueError:
        raise FoedusError(f"--address: expected host:port, got {address!r}.") from None
    settings = ConsortiumSettings(
        name=name,
        advertised_address=address,
        public_port=port,
        control_port=control_port,
        metrics_port=metrics_port,
        passphrase_file=str(passphrase_file.resolve()) if passphrase_file else "",
    )
    invitation = found_consortium(
        folder,
        settings,
        signatures,
        also_known_as or (),
        read_passphrase(passphrase_file),
        datetime.datetime.now(datetime.UTC),
    )
    made = ConsortiumFolder(folder)
    typer.echo(f"Founded {name} in {folder}. Keep a copy where only you can read it.")
    typer.echo(f"Give {made.invitation} to the firms, and read them by telephone:")
    typer.echo(f"  {invitation.fingerprint}")


def admit(
    requests: Annotated[list[Path], typer.Argument(metavar="REQUEST…", help="From the firms.")],
    consortium: Consortium = Path("."),
    fingerprint: Annotated[
        list[str] | None,
        typer.Option(help="A firm's, as read to you, instead of being asked; may be repeated."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Admit firms, renew members or give them new keys, as their requests ask.

    Shows each firm's fingerprint; compare it with what the firm reads to you by telephone. A
    coordinator that is up lets the firm in within seconds.
    """
    from protocol.consortium.enrolment import EnrolmentRequest
    from server.consortium.admission import admit as admitted
    from server.consortium.folder import ConsortiumFolder

    folder = ConsortiumFolder(consortium)
    settings, versions = folder.settings(), folder.chain()
    read = [EnrolmentRequest.read(path) for path in requests]
    version = admitted(versions, read, settings.member_days, int(time.time()))
    if fingerprint:
        _expect_fingerprints(read, fingerprint)
    _change(folder, version, yes or bool(fingerprint))


def _expect_fingerprints(requests: list[EnrolmentRequest], given: list[str]) -> None:
    from protocol.errors import FoedusError

    heard = {"".join(text.split()) for text in given}
    for request in requests:
        if request.fingerprint.replace(" ", "") not in heard:
            raise FoedusError(
                f"The request of {request.name!r} has the fingerprint {request.fingerprint}, which "
                "is none of those given. Do not admit it: ask the firm for its request again."
            )


def adopt(
    endorsements: Annotated[
        list[Path], typer.Argument(metavar="ENDORSEMENT…", help="Signed by members.")
    ],
    consortium: Consortium = Path("."),
) -> None:
    """Bring a proposed change into force with the signatures of members."""
    from protocol.consortium.endorsement import Endorsement
    from server.consortium.folder import ConsortiumFolder
    from server.consortium.roster_change import adopt_proposal

    read = [Endorsement.read(path) for path in endorsements]
    folder = ConsortiumFolder(consortium)
    _report(adopt_proposal(folder, read, folder.passphrase()))


def expel(
    name: Annotated[str, typer.Argument(help="The member's name in the roster.")],
    consortium: Consortium = Path("."),
    yes: Yes = False,
) -> None:
    """Expel a member. Its site is shut out within seconds, and its keys never come back."""
    from server.consortium.admission import expel as expelled
    from server.consortium.folder import ConsortiumFolder

    folder = ConsortiumFolder(consortium)
    version = expelled(folder.chain()[-1], name, int(time.time()))
    _change(folder, version, yes)


def require_signatures(
    signatures: Annotated[int, typer.Argument(min=0, help="Members who must sign each change.")],
    consortium: Consortium = Path("."),
    yes: Yes = False,
) -> None:
    """Change how many members must sign a change of the roster; under the rule in force now."""
    from dataclasses import replace

    from protocol.consortium.chain import next_version
    from server.consortium.folder import ConsortiumFolder

    folder = ConsortiumFolder(consortium)
    version = next_version(folder.chain()[-1], int(time.time()))
    _change(folder, replace(version, signatures_needed=signatures), yes)


def rotate_key(
    consortium: Consortium = Path("."),
    yes: Yes = False,
) -> None:
    """Give the coordinator a new key. Members follow by the roster; there is a new invitation.

    Start `foedus server up` again after that.
    """
    from server.consortium.folder import ConsortiumFolder
    from server.consortium.roster_change import rotate_coordinator_key

    folder = ConsortiumFolder(consortium)
    if not yes:
        typer.confirm("Give the coordinator a new key?", abort=True, err=True)
    _report(rotate_coordinator_key(folder, folder.passphrase(), int(time.time())))
    typer.echo(f"The invitation is of {folder.read_invitation().fingerprint} now.")


def renew(
    consortium: Consortium = Path("."),
    also_known_as: AlsoKnownAs = None,
) -> None:
    """Make a new server certificate by the same authority, and the invitation fit the address.

    Members notice nothing; a coordinator that is up takes the certificate up within a minute.
    """
    import datetime

    from server.consortium.folder import ConsortiumFolder
    from server.consortium.founding import renew_server_certificate

    folder = ConsortiumFolder(consortium)
    now = datetime.datetime.now(datetime.UTC)
    certificate = renew_server_certificate(folder, also_known_as or (), folder.passphrase(), now)
    typer.echo(f"The server's certificate is valid until {certificate.not_valid_after_utc:%F}.")


def members(consortium: Consortium = Path("."), as_json: AsJson = False) -> None:
    """Show the members: fingerprint, when the admission ends, node, and whether it is online."""
    from server.consortium.folder import ConsortiumFolder
    from server.consortium.membership import print_members

    print_members(ConsortiumFolder(consortium), as_json)


def _change(folder: ConsortiumFolder, version: SignedRoster, yes: bool) -> None:
    """Say what changes, ask, and do it."""
    from protocol.consortium.roster_changes import describe_changes
    from protocol.errors import FoedusError
    from server.consortium.roster_change import change_roster

    changes = describe_changes(folder.chain()[-1], version)
    if not changes:
        raise FoedusError("This changes nothing of the roster.")
    typer.echo(f"Version {version.version} of the roster")
    for change in changes:
        typer.echo(f"  {change}")
    if not yes:
        typer.confirm("Do so? Fingerprints compared by telephone?", abort=True, err=True)
    _report(change_roster(folder, version, folder.passphrase()))


def _report(outcome: Outcome) -> None:
    if outcome.proposal is None:
        typer.echo(f"Version {outcome.version.version} of the roster is in force.")
        return
    noun = "member" if outcome.missing == 1 else "members"
    typer.echo(f"Proposed in {outcome.proposal}: {outcome.missing} more {noun} must sign it with")
    typer.echo(f"  foedus client endorse {outcome.proposal.name}")
    typer.echo("and what they send back brings it into force: foedus server adopt ENDORSEMENT…")
