"""consortium.yaml: how the coordinator is reached and what it allows."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.codec import setting


@dataclass(frozen=True)
class ConsortiumSettings:
    """What the coordinator's operator decides. Members see the name and the address only."""

    name: str = setting(doc="the consortium's name; part of all that is signed, so never change it")
    advertised_address: str = setting(doc="host:port by which the firms reach this coordinator")
    public_host: str = setting("0.0.0.0", doc="address that the firms' port is bound to")
    public_port: int = setting(
        9443, minimum=1, maximum=65535, doc="port that the firms reach, TLS, member paths only"
    )
    control_port: int = setting(
        9444, minimum=1, maximum=65535, doc="port of everything else; on the loopback address only"
    )
    metrics_port: int = setting(
        9445, minimum=1, maximum=65535, doc="port of health and metrics; loopback address only"
    )
    max_body_mib: int = setting(16, minimum=1, doc="largest body of one request, MiB")
    max_unread_mib: int = setting(
        2048, minimum=1, doc="replies of one firm that the run has not taken yet, MiB"
    )
    max_connections: int = setting(512, minimum=1, doc="open connections of all firms together")
    max_connections_per_address: int = setting(
        64, minimum=1, doc="open connections of one address; firms behind one proxy share it"
    )
    header_seconds: float = setting(
        10.0, minimum=0.1, doc="time a connection has to send a request's headers"
    )
    body_idle_seconds: float = setting(
        30.0, minimum=0.1, doc="longest pause within a request's body"
    )
    long_poll_seconds: float = setting(
        20.0,
        minimum=0.0,
        maximum=25.0,
        doc="how long a site's question for messages waits for one; Flower gives up after 30",
    )
    passphrase_file: str = setting(
        "", doc="file whose first line opens the keys; empty = the variable FOEDUS_PASSPHRASE"
    )
    member_days: int = setting(365, minimum=1, doc="how long an admission holds")
    server_certificate_days: int = setting(
        397, minimum=1, maximum=825, doc="how long a new server certificate holds"
    )
    resume_attempts: int = setting(
        3, minimum=0, doc="how often a run that crashed is resumed without being asked"
    )
