"""`foedus client join`, `identity`, `roster` and `endorse`: membership, at a site's own desk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.site import Site
    from protocol.consortium.chain import SignedRoster
    from protocol.consortium.enrolment import EnrolmentRequest
    from protocol.consortium.invitation import Invitation

_Config = Annotated[Path, typer.Option("--config", help="The site's configuration file.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of text.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `foedus client`."""
    for command in (join, identity, roster, endorse):
        app.command()(command)


def join(
    invitation: Annotated[
        Path | None, typer.Argument(help="The coordinator's invitation.json.")
    ] = None,
    name: Annotated[str, typer.Option(help="The firm's name, as the other members see it.")] = "",
    folder: Annotated[Path, typer.Option(help="The site's own folder.")] = Path("."),
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="Its first line encrypts the keys; else that of the file FOEDUS_PASSPHRASE_FILE, "
            "else FOEDUS_PASSPHRASE, else none."
        ),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="The coordinator's, as read to you; refuse any other.")
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="The same keys, to stay longer.")] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="New keys for a member.")] = False,
    as_json: _Json = False,
) -> None:
    """Make this site's keys and its request to the coordinator. Nothing is sent.

    Send request.json to the coordinator's operator. The private keys stay in the folder, readable
    by their owner alone. --renew and --rotate work in the folder of a site that has joined.
    """
    from client.enrolment import joining
    from client.enrolment.site_files import INVITATION
    from protocol.consortium.invitation import Invitation
    from protocol.errors import FoedusError

    now = int(time.time())
    if renew or rotate:
        if (renew and rotate) or invitation or name or passphrase_file:
            raise FoedusError(
                "--renew and --rotate stand alone: they know the rest from site.yaml."
            )
        request = (joining.renew if renew else joining.rotate)(folder, now)
        invited = Invitation.read(folder / INVITATION)
    else:
        if invitation is None or not name:
            raise FoedusError("Expected the coordinator's INVITATION and --name, got one at most.")
        invited = Invitation.read(invitation)
        _expect_coordinator(invited, fingerprint)
        request = joining.join(folder, invited, name, passphrase_file, now)
    _show_request(folder, invited, request, as_json)


def _expect_coordinator(invitation: Invitation, fingerprint: str | None) -> None:
    from protocol.errors import FoedusError

    if fingerprint is None:
        return
    if not fingerprint.strip():
        raise FoedusError(
            "Expected the coordinator's fingerprint after --fingerprint, got nothing. Was a "
            "variable not set? To join without comparing, leave --fingerprint out."
        )
    if "".join(fingerprint.split()) != invitation.fingerprint.replace(" ", ""):
        raise FoedusError(
            f"Expected the coordinator {fingerprint}, the invitation is of "
            f"{invitation.fingerprint}. Do not join: somebody may have changed it on its way."
        )


def _show_request(
    folder: Path, invitation: Invitation, request: EnrolmentRequest, as_json: bool
) -> None:
    from client.enrolment.site_files import REQUEST
    from client.terminal import print_json, printable_line

    facts = {
        "consortium": invitation.consortium,
        "coordinator": invitation.address,
        "coordinator_fingerprint": invitation.fingerprint,
        "name": request.name,
        "fingerprint": request.fingerprint,
        "request": str(folder / REQUEST),
    }
    if as_json:
        print_json(facts)
        return
    lines = [
        f"{request.name} asks to be a member of {invitation.consortium} at {invitation.address}.",
        "",
        f"  coordinator  {invitation.fingerprint}",
        f"  this site    {request.fingerprint}",
        "",
        "Compare both by telephone with the coordinator's operator, over a number that you know",
        "from elsewhere: they read theirs to you, you read yours to them.",
        f"Then send {folder / REQUEST}; it is public.",
    ]
    for line in lines:
        typer.echo(printable_line(line))


def identity(config: _Config = Path("site.yaml"), as_json: _Json = False) -> None:
    """Show who this site is: its fingerprint, and until when the roster it keeps admits it."""
    from client.enrolment.kept_roster import kept_versions
    from client.site import Site
    from client.terminal import print_json, printable_line

    site = Site.from_file(config)
    facts = _identity_facts(site)
    versions = kept_versions(site)
    facts |= _membership(versions[-1] if versions else None, str(facts["public_key"]))
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(printable_line(f"{name.replace('_', ' '):12} {value}"))


def _identity_facts(site: Site) -> dict[str, Any]:
    from client.enrolment.keys import load_supernode_key
    from protocol.consortium.enrolment import keys_fingerprint
    from protocol.consortium.identity import load_identity
    from protocol.consortium.passphrase import read_passphrase
    from protocol.consortium.supernode_key import public_pem
    from protocol.errors import FoedusError

    if site.identity_file is None or site.supernode_key_file is None:
        raise FoedusError("Expected `identity` and `supernode_key` in site.yaml, got none.")
    passphrase = read_passphrase(site.passphrase_file)
    own = load_identity(site.identity_file, passphrase)
    supernode = public_pem(load_supernode_key(site.supernode_key_file, passphrase))
    return {
        "fingerprint": keys_fingerprint(own.public_key, supernode),
        "member_id": own.member_id,
        "public_key": own.public_key.hex(),
    }


def _membership(newest: SignedRoster | None, public_key: str) -> dict[str, Any]:
    from protocol.consortium.documents import day_of

    if newest is None:
        return {"membership": "no roster fetched yet"}
    entry = newest.entry_of(bytes.fromhex(public_key))
    held = {"roster_version": newest.version, "roster_digest": newest.digest}
    if entry is None:
        return {"membership": "not in the roster", **held}
    word = "ended" if entry.expired(time.time()) else "until"
    return {"membership": f"{entry.name}, {word} {day_of(entry.expires)}", **held}


def roster(
    config: _Config = Path("site.yaml"),
    offline: Annotated[bool, typer.Option("--offline", help="Show what is kept.")] = False,
    as_json: _Json = False,
) -> None:
    """Fetch the newest signed roster from the coordinator, check and keep it, and show it.

    A site that is up does this by itself. Keys of `join --rotate` are taken up here, once the
    roster names them; start `foedus client up` again after that.
    """
    from client.enrolment.kept_roster import kept_versions, refresh_roster, take_up_new_keys
    from client.site import Site
    from client.terminal import progress_bar
    from protocol.errors import FoedusError

    site = Site.from_file(config)
    if offline:
        versions = kept_versions(site)
        if not versions:
            raise FoedusError("Expected a kept roster, got none yet. Fetch it without --offline.")
        newest = versions[-1]
    else:
        with progress_bar("Asking the coordinator"):
            newest = refresh_roster(site)
        for file in take_up_new_keys(site, newest):
            typer.echo(f"{file} is the new key now; the old one was kept beside it.", err=True)
    _show_roster(newest, as_json)


def _show_roster(newest: SignedRoster, as_json: bool) -> None:
    from client.terminal import print_json, print_table
    from protocol.consortium.documents import day_of
    from protocol.consortium.enrolment import keys_fingerprint

    now = time.time()
    if as_json:
        members = [
            {
                "name": entry.name,
                "member_id": entry.member_id,
                "fingerprint": keys_fingerprint(entry.public_key, entry.supernode_key),
                "expires": day_of(entry.expires),
                "expired": entry.expired(now),
            }
            for entry in newest.members
        ]
        head = {"version": newest.version, "digest": newest.digest}
        print_json({"consortium": newest.consortium, **head, "members": members})
        return
    title = f"{newest.consortium}, roster version {newest.version}, digest {newest.digest}"
    rows = [
        [
            entry.name,
            keys_fingerprint(entry.public_key, entry.supernode_key),
            f"{day_of(entry.expires)}{' (ended)' if entry.expired(now) else ''}",
        ]
        for entry in newest.members
    ]
    print_table(["firm", "fingerprint", "until"], rows, title=title)


def endorse(
    proposal: Annotated[Path, typer.Argument(help="What the coordinator's operator sent.")],
    config: _Config = Path("site.yaml"),
    output: Annotated[Path, typer.Option(help="Where to write the endorsement.")] = Path(
        "endorsement.json"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
) -> None:
    """Sign a change of the roster that the consortium's rules ask members' signatures for.

    Shows what the change is; send the file it writes back to the coordinator's operator.
    """
    from client.enrolment.endorsing import changes_of, sign_proposal
    from client.site import Site
    from client.terminal import printable_line
    from protocol.files import write_atomically

    site = Site.from_file(config)
    version, changes = changes_of(site, proposal)
    typer.echo(f"Version {version.version} of the roster, digest {version.digest}:", err=True)
    for change in changes:
        typer.echo(printable_line(f"  {change}"), err=True)
    if not yes:
        typer.confirm("Sign it?", abort=True, err=True)
    write_atomically(output, sign_proposal(site, version).to_json().encode())
    typer.echo(f"Signed in {output}; send it to the coordinator's operator.", err=True)
