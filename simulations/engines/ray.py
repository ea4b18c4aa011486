"""Flower's own simulation engine: the same apps on Ray actors, on one machine or a cluster."""

from __future__ import annotations

import importlib.util
import os
import warnings

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from protocol.errors import FoedusError


def run_on_ray(
    server_app: ServerApp, client_app: ClientApp, num_sites: int, cpus_per_site: float
) -> None:
    """Run a whole federation on Ray; each actor keeps its base model loaded between messages.

    cpus_per_site: cores one site occupies while it works; Ray gives it as many torch threads.
    Errors: FoedusError where Ray is not installed; whatever the ServerApp raises.
    """
    if importlib.util.find_spec("ray") is None:
        raise FoedusError(
            "engine=ray expects the package ray, got none. Install foedus with its extra: "
            'pip install -e ".[ray]", or use engine=in_process.'
        )
    # Usage reports would leave the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            server_app,
            client_app,
            num_supernodes=num_sites,
            backend_config={
                "client_resources": {"num_cpus": cpus_per_site, "num_gpus": 0.0},
                "init_args": {
                    "log_to_driver": False,
                    "include_dashboard": False,
                    "num_cpus": os.cpu_count() or 1,
                },
            },
        )
