"""Whether a request may be worked on: policy, hours and consent, before anything is read.

Hours are looked at again once people have decided, which may take longer than the hours last.
"""

from __future__ import annotations

from client.consent import ConsentBook, ConsentDesk
from client.policy.run_checks import check_hours, check_run_policy
from client.site import Site
from protocol.messages import Request
from protocol.secure_aggregation.wire import DEADLINE_SHARES, Phase


def admit_request(site: Site, request: Request) -> None:
    """What passes may load the base model and read contracts. People are asked last, so that they
    see no run that the policy forbids anyway.

    Errors: Refusal where policy, hours or people decline; FoedusError as ConsentDesk.require.
    """
    policy = site.settings.policy
    check_run_policy(policy, request)
    check_hours(policy)
    if policy.consent == "ask":
        _desk(site).require(request)
        check_hours(policy)


def admit_session(site: Site, run_id: str) -> None:
    """Before keys are made for a session, whose first messages tell no settings of the run: a site
    that would decline later had better not be counted on. Errors: as `admit_request`."""
    policy = site.settings.policy
    check_hours(policy)
    if policy.consent == "ask":
        _desk(site).require_again(run_id, DEADLINE_SHARES[Phase.ADVERTISE])
        check_hours(policy)


def _desk(site: Site) -> ConsentDesk:
    return ConsentDesk(ConsentBook(site.state_folder), site.settings.policy.consent_wait_seconds)
