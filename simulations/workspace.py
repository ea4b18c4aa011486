"""Simulated firms on disk: each site gets a folder of its own with contracts and a site.yaml.

The site then reads them with the very code that a firm runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from omegaconf import OmegaConf

from client.app import load_site
from client.contracts import Contract
from client.site import Site
from protocol.consortium.identity import Identity, load_identity, save_identity
from protocol.consortium.roster import Member, Roster
from protocol.files import write_atomically
from simulations.partition import SitePartition

SITES_FOLDER = "sites"
IDENTITY_FILE, ROSTER_FILE = "identity.pem", "roster.json"


def lay_out_sites(
    output_dir: Path, partitions: Sequence[SitePartition], *, with_identities: bool = False
) -> list[Path]:
    """Write output_dir/sites/NNN-NAME/{site.yaml, contracts/, held_out/}; state folders of an
    earlier run stay, as a resumed run needs them. Returns the site.yaml paths in order.

    with_identities: a key for each site, and the roster of all in output_dir/sites, as secure
    aggregation needs them; those of an earlier run stay.
    """
    paths: list[Path] = []
    members: list[Member] = []
    for index, partition in enumerate(partitions):
        folder = site_file(output_dir, index, partition.name).parent
        for name, contracts in (("contracts", partition.train), ("held_out", partition.test)):
            shutil.rmtree(folder / name, ignore_errors=True)
            _write_jsonl(folder / name / "clauses.jsonl", contracts)
        settings = {
            "name": partition.name,
            "contracts": "contracts",
            "held_out": "held_out",
            "state": "state",
        }
        if with_identities:
            members.append(Member(partition.name, _identity(folder / IDENTITY_FILE).public_key))
            settings |= {"identity": IDENTITY_FILE, "roster": f"../{ROSTER_FILE}"}
        path = site_file(output_dir, index, partition.name)
        write_atomically(path, OmegaConf.to_yaml(settings).encode())
        paths.append(path)
    if with_identities:
        roster = Roster("simulation", 1, tuple(members))
        write_atomically(roster_file(output_dir), roster.to_json().encode())
    return paths


def site_file(output_dir: Path, index: int, name: str) -> Path:
    """The configuration of one simulated site, counted from 0."""
    return output_dir / SITES_FOLDER / f"{index:03d}-{name}" / "site.yaml"


def roster_file(output_dir: Path) -> Path:
    """Where the simulated consortium's roster lies, for all its sites and the coordinator."""
    return output_dir / SITES_FOLDER / ROSTER_FILE


def _identity(path: Path) -> Identity:
    if not path.exists():
        save_identity(path, Identity.generate())
    return load_identity(path)


def clear_state(output_dir: Path) -> None:
    """Forget receipts and personal factors of an earlier run in the same folder."""
    shutil.rmtree(output_dir / SITES_FOLDER, ignore_errors=True)


class SimulatedSites:
    """Finds a node's site by its partition number. Small and picklable, as Ray ships it."""

    def __init__(self, site_files: Sequence[Path]) -> None:
        self._site_files = tuple(site_files)

    def __call__(self, context: Context) -> Site:
        """The site of this node, the same object for as long as the process lives."""
        return load_site(self._site_files[int(context.node_config["partition-id"])])


def _write_jsonl(path: Path, contracts: Sequence[Contract]) -> None:
    lines = [json.dumps(_record(contract), ensure_ascii=False) for contract in contracts]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _record(contract: Contract) -> dict[str, object]:
    record: dict[str, object] = {"source": contract.source}
    if contract.messages:
        record["messages"] = [{"role": m.role, "content": m.content} for m in contract.messages]
    else:
        record["text"] = contract.text
    optional = {
        "label": contract.label,
        "matter": contract.matter,
        "licence": contract.licence,
    }
    return record | {key: value for key, value in optional.items() if value is not None}
