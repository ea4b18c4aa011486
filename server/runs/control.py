"""Flower's Control API as runs and the roster need it, over the loopback listener.

The only module of these that knows Flower's client and messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
from click import ClickException
from flwr.app.user_config import UserConfig
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from protocol.errors import FoedusError

T = TypeVar("T")

# More of Flower's runs than one of ours can have been resumed into.
_MOST_RUNS_LISTED = 1000
_UNREGISTERED = "unregistered"


class CoordinatorDown(FoedusError):
    """Nothing answers at the control address."""


@dataclass(frozen=True)
class FlowerRun:
    """What Flower says of a run: pending, starting, running, or finished with how it ended."""

    run_id: int
    status: str
    ending: str
    details: str

    @property
    def is_over(self) -> bool:
        """True where Flower will do nothing more with it."""
        return self.status == "finished"


@dataclass(frozen=True)
class FlowerNode:
    """A registered SuperNode. status: registered, online, offline."""

    node_id: int
    status: str

    @property
    def is_online(self) -> bool:
        """True where it has sent a heartbeat lately."""
        return self.status == "online"


class ControlPlane:
    """A connection to the coordinator's Control API; a context manager, and a NodeRegistry.

    address: host:port. Errors of every method: CoordinatorDown; FoedusError in Flower's own words.
    """

    def __init__(self, address: str, ca_certificate: Path) -> None:
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=str(ca_certificate),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="foedus server")],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def start_run(self, bundle: bytes, config: UserConfig) -> int:
        """Have Flower start the bundle's ServerApp; returns Flower's number of the run.

        config: every site gets to see it.
        """
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(config),
        )
        response = self._ask(lambda: self._client.StartRun(request))
        if not response.HasField("run_id"):
            raise FoedusError(
                "Flower did not start the run and gave no reason. The coordinator's log may hold "
                "it."
            )
        return int(response.run_id)

    def stop_run(self, run_id: int) -> None:
        """Have Flower stop a run; one that is over stays as it is."""
        found = self.runs([run_id]).get(run_id)
        if found is not None and not found.is_over:
            self._ask(lambda: self._client.StopRun(StopRunRequest(run_id=run_id)))

    def runs(self, run_ids: Iterable[int]) -> dict[int, FlowerRun]:
        """What Flower knows of these runs; those it does not know are left out."""
        wanted = set(run_ids)
        request = ListRunsRequest(limit=_MOST_RUNS_LISTED)
        listed = self._ask(lambda: self._client.ListRuns(request)).run_dict
        return {
            int(number): FlowerRun(
                int(number), run.status.status, run.status.sub_status, run.status.details
            )
            for number, run in listed.items()
            if number in wanted
        }

    def nodes(self) -> dict[int, FlowerNode]:
        """The registered SuperNodes by their number."""
        listed = self._ask(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return {int(node.node_id): FlowerNode(int(node.node_id), node.status) for node in listed}

    def registered(self) -> dict[bytes, int]:
        """See NodeRegistry."""
        nodes = self._ask(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return {n.public_key: int(n.node_id) for n in nodes if n.status != _UNREGISTERED}

    def register(self, public_key: bytes) -> int:
        """See NodeRegistry."""
        request = RegisterNodeRequest(public_key=public_key)
        return int(self._ask(lambda: self._client.RegisterNode(request)).node_id)

    def unregister(self, node_id: int) -> None:
        """See NodeRegistry."""
        request = UnregisterNodeRequest(node_id=node_id)
        self._ask(lambda: self._client.UnregisterNode(request))

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            told = FlowerError.from_json(error.response.text)
            text = told.public_details or told.message if told else str(error)
            raise FoedusError(f"Flower refused: {text}") from error
        except httpx.HTTPError as error:
            raise CoordinatorDown(
                f"Expected the coordinator at {self._address}, got no answer "
                f"({str(error) or type(error).__name__}). Start it: foedus server up."
            ) from error


def installed_bundle() -> bytes:
    """The Flower app bundle of the code that runs here.

    Errors: FoedusError where foedus is not installed from its checkout, or it cannot be packed.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "pyproject.toml").is_file():
        raise FoedusError(
            f"Expected foedus to be installed from its checkout, got no pyproject.toml in "
            f"{checkout}. Install it by 'pip install -e CHECKOUT'."
        )
    try:
        return build_fab_from_disk(checkout)
    except (OSError, ValueError, ClickException) as error:
        raise FoedusError(f"The bundle of {checkout} cannot be built: {error}.") from error
