"""Runs small enough for a test: few tokens, one adapted layer, a dozen clauses a site."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.site import Site
from models.adapted import adapted_model, initial_state
from protocol.adapter import AdapterState, FloatArray, subset_layout
from protocol.methods import downloaded_factors, uploaded_factors
from protocol.settings import (
    AdapterSettings,
    FederationSettings,
    ModelSettings,
    RunSettings,
    TaskSettings,
    TrainingSettings,
)
from strategies.registry import build_strategy

LABELS = ("confidentiality", "payment", "termination")
RUN_ID = "0123456789abcdef" * 2

_PHRASES = {
    "confidentiality": "shall keep the other party's information secret and not disclose it",
    "payment": "shall pay each undisputed invoice in full when the amount falls due",
    "termination": "may end this agreement early by written notice after a material breach",
}
_PARTIES = ("The supplier", "The customer", "The licensee", "The lender", "The tenant")

# One object for all tests of a classifier, so that the process attaches its adapter once.
MODEL = ModelSettings(id="minilm", pooling="mean", max_tokens=16, precision="float32")
ADAPTER = AdapterSettings(rank=2, alpha=4.0, targets=("query", "value"), last_layers=1)


def small_run(
    method: str = "fedsvd", *, training: Mapping[str, Any] | None = None, **federation: Any
) -> RunSettings:
    """A classification run; other parameters: fields of FederationSettings."""
    return RunSettings(
        task=TaskSettings(kind="classify", labels=LABELS),
        model=MODEL,
        adapter=ADAPTER,
        training=TrainingSettings(**{"batch_size": 4, **(training or {})}),
        federation=FederationSettings(**{"method": method, "rounds": 2, "seed": 3, **federation}),
    )


def with_training(run: RunSettings, **changes: Any) -> RunSettings:
    """The same run with other local training."""
    return replace(run, training=replace(run.training, **changes))


def with_federation(run: RunSettings, **changes: Any) -> RunSettings:
    """The same run with another federation."""
    return replace(run, federation=replace(run.federation, **changes))


def clause_records(site: int, per_label: int = 4) -> list[dict[str, str]]:
    """Labelled clauses of one site as JSONL records; no two alike, over all sites."""
    return [
        {
            "text": f"{site}.{number} {_PARTIES[(site + number) % 5]} {_PHRASES[label]}.",
            "label": label,
            "matter": f"matter-{site}-{number}",
        }
        for number in range(per_label)
        for label in LABELS
    ]


def write_records(folder: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """A folder of contracts with one JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "clauses.jsonl").write_text(lines, encoding="utf-8")
    return folder


def write_site(folder: Path, site: int, records: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """A site on disk with training and held-out clauses; returns its site.yaml."""
    write_records(folder / "contracts", clause_records(site) if records is None else records)
    write_records(folder / "held_out", clause_records(site + 100, per_label=2))
    path = folder / "site.yaml"
    path.write_text(
        f"name: site-{site}\ncontracts: contracts\nheld_out: held_out\nstate: state\n",
        encoding="utf-8",
    )
    return path


def open_site(
    folder: Path, site: int = 1, records: Sequence[Mapping[str, Any]] | None = None
) -> Site:
    """A fresh site."""
    return Site.from_file(write_site(folder, site, records))


def start_state(run: RunSettings) -> AdapterState:
    """The adapter that round 1 starts from."""
    return build_strategy(run.federation).initial_state(initial_state(run))


def downloaded(run: RunSettings, state: AdapterState) -> AdapterState:
    """What the coordinator sends of it."""
    return state.subset(downloaded_factors(run.federation.method))


def small_update(run: RunSettings, seed: int, round_: int = 1) -> dict[str, FloatArray]:
    """A well-formed update of small random numbers."""
    rng = np.random.default_rng(seed)
    layout = subset_layout(
        adapted_model(run).layout, uploaded_factors(run.federation.method, round_)
    )
    return {n: (0.01 * rng.normal(size=s)).astype(np.float32) for n, s in layout.items()}
