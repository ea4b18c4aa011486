"""The stock side of `round_overhead`: the very training of a foedus site in a plain Flower app.

This file is copied into an app folder of its own and shipped as Flower's bundle. As Flower's
tutorials have it, there is one array for each tensor, `FedAvg.start` drives the rounds, and a
ClientApp builds model and data for each message, because each runs in a new process.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from models.adapted import adapted_model, initial_state
from protocol.codec import decode
from protocol.initial import derive_seed
from protocol.methods import trained_factors
from protocol.settings import RunSettings

client_app = ClientApp()
server_app = ServerApp()


def _run_of(text: Any) -> RunSettings:
    return decode(RunSettings, json.loads(str(text)), "the benchmark's settings")


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One site's round."""
    # Here, so that the ServerApp does not load what only a site needs.
    from client.site import Site
    from client.training.loop import train as train_locally

    config: Any = message.content["config"]
    received: Any = message.content["arrays"]
    run, round_ = _run_of(config["run"]), int(config["server-round"])
    site = Site.from_file(Path(str(context.node_config["site-config"])))
    adapted = adapted_model(run)
    adapted.load({name: array.numpy() for name, array in received.items()})
    factors = trained_factors(run.federation.method, round_)
    seed = derive_seed(run.federation.seed, "train", site.settings.name, round_)
    result = train_locally(adapted, run, site.tokenised(run, "train"), factors, round_, seed)
    arrays = {name: Array(tensor) for name, tensor in adapted.tensors(factors).items()}
    metrics = MetricRecord(
        {"num-examples": result.num_examples, "train_seconds": result.train_seconds}
    )
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over all sites; each round's end and its sites' training go to the result file."""
    settings = Path(str(context.run_config["settings-file"])).read_text(encoding="utf-8")
    result_file = Path(str(context.run_config["result-file"]))
    run = _run_of(settings)
    ends: list[float] = []
    training: list[list[float]] = []

    def on_round(server_round: int, arrays: ArrayRecord) -> None:
        ends.append(time.time())

    def on_replies(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
        metrics: list[Any] = [reply["metrics"] for reply in replies]
        training.append([float(each["train_seconds"]) for each in metrics])
        return MetricRecord({})

    sites = run.federation.min_cohort
    tensors = initial_state(run).tensors
    FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=sites,
        min_available_nodes=sites,
        train_metrics_aggr_fn=on_replies,
    ).start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(tensor) for name, tensor in tensors.items()}),
        num_rounds=run.federation.rounds,
        train_config=ConfigRecord({"run": settings}),
        evaluate_fn=on_round,
    )
    # Renamed when it is whole: the benchmark waits for it.
    unfinished = result_file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"ends": ends, "training": training}), encoding="utf-8")
    unfinished.rename(result_file)
