"""Small released adapters on the embedded models, with every tensor drawn at random."""

from pathlib import Path

import numpy as np

from models.adapted import adapted_model
from models.base import public_name
from protocol.adapter import AdapterState
from protocol.peft_folder import write_peft_folder
from protocol.settings import (
    AdapterSettings,
    FederationSettings,
    ModelSettings,
    RunSettings,
    TaskSettings,
)

LABELS = ("Confidentiality", "Governing Law", "Termination", "Payment")

CLASSIFIER = RunSettings(
    task=TaskSettings("classify", LABELS),
    model=ModelSettings("minilm", pooling="mean", max_tokens=48, precision="float32"),
    adapter=AdapterSettings(rank=2, targets=("query", "value"), last_layers=1),
)
WRITER = RunSettings(
    task=TaskSettings("instruct"),
    model=ModelSettings("novels", max_tokens=128, precision="float32"),
    adapter=AdapterSettings(rank=2, targets=("q_proj", "v_proj"), last_layers=1),
    federation=FederationSettings(method="ffa"),
)


def release(folder: Path, run: RunSettings, stddev: float = 0.3) -> AdapterState:
    """Write an adapter folder; zeros would hide a factor that is never read."""
    adapted = adapted_model(run)
    rng = np.random.default_rng(7)
    tensors = {
        name: rng.normal(scale=stddev, size=shape).astype(np.float32)
        for name, shape in adapted.layout.items()
    }
    method, rank, alpha = run.federation.method, run.adapter.rank, run.adapter.alpha
    state = AdapterState(tensors, rank, alpha, adapted.base.digest, method)
    write_peft_folder(folder, state, run, public_name(run.model))
    return state
