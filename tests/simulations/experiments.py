"""Small experiments built by hand, with an adapter folder on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.audit.bounds import Scores as AttackScores
from client.audit.report import AuditResult, membership_findings, run_findings
from models.evaluation import ClassificationScores, LanguageScores, Scores
from models.examples import ChatExample, ClauseExample
from protocol.adapter import AdapterState
from protocol.peft_folder import write_peft_folder
from protocol.settings import (
    FederationSettings,
    ModelSettings,
    PrivacySettings,
    RunSettings,
    TaskSettings,
)
from server.coordinator import RunResult
from server.records import RoundRecord
from simulations.baselines import ArmResult
from simulations.data import DataSettings
from simulations.experiment import Experiment, SimulatedSite
from simulations.partition import SitesSettings
from simulations.privacy import PrivacyOutcome, SiteSpending
from simulations.settings import AuditSettings, EngineSettings, SimulationSettings

SITES = ("ashford", "birch")
LABELS = ("governing law", "notice")


def clause_scores(accuracy: float, macro_f1: float) -> ClassificationScores:
    return ClassificationScores(10, 0.5, accuracy, macro_f1, (0, 1))


def language_scores(loss: float) -> LanguageScores:
    return LanguageScores(4, 100, loss)


def clause_experiment(
    output_dir: Path,
    *,
    sites: tuple[str, str] = SITES,
    federated: dict[str, Scores] | None = None,
    method: str = "fedsvd",
    compare: tuple[str, ...] = ("centralised", "local", "tfidf"),
) -> Experiment:
    """Two sites, two rounds, three baselines; 0.8 federated against 0.85, 0.6, 0.5 and 0.7."""
    first, second = sites
    run = RunSettings(
        TaskSettings("classify", LABELS),
        ModelSettings("minilm"),
        federation=FederationSettings(method=method, rounds=2),
    )
    arms = {
        "centralised": ArmResult(
            "centralised",
            {
                "pooled": clause_scores(0.85, 0.84),
                first: clause_scores(0.9, 0.88),
                second: clause_scores(0.8, 0.78),
            },
            4.0,
        ),
        f"local:{first}": _local(first, 0.6, 0.55, own=0.75),
        f"local:{second}": _local(second, 0.5, 0.45, own=0.65),
    }
    return Experiment(
        settings=simulation_settings(run, output_dir, compare),
        sites=tuple(
            SimulatedSite(
                name,
                tuple(ClauseExample(f"text {i}", LABELS[i % 2]) for i in range(examples)),
                tuple(ClauseExample(f"held out {i}", LABELS[i % 2]) for i in range(4)),
            )
            for name, examples in zip(sites, (6, 8), strict=True)
        ),
        result=RunResult("0f" * 16, _released(output_dir, run), records(sites)),
        federated=federated
        or {
            "pooled": clause_scores(0.8, 0.79),
            first: clause_scores(0.82, 0.81),
            second: clause_scores(0.78, 0.77),
        },
        base={},
        arms={name: a for name, a in arms.items() if name.split(":")[0] in compare},
        tfidf=clause_scores(0.7, 0.69) if "tfidf" in compare else None,
        total_seconds=60.0,
    )


def causal_experiment(output_dir: Path) -> Experiment:
    """Losses on contracts: 3.0 base, 2.0 federated; on general text 2.5 base, 2.75 federated."""
    run = RunSettings(
        TaskSettings("instruct"), ModelSettings("novels"), federation=FederationSettings(rounds=2)
    )

    def scores(pooled: float, general: float, **own: float) -> dict[str, Scores]:
        losses = {"pooled": pooled, "general": general, **own}
        return {name: language_scores(loss) for name, loss in losses.items()}

    chats = tuple(
        ChatExample((("user", "Continue."), ("assistant", f"clause {i}"))) for i in range(3)
    )
    rounds = records(SITES, [{"central_loss": 2.5}, {"central_loss": 2.0}])
    return Experiment(
        settings=simulation_settings(run, output_dir, ("centralised", "local")),
        sites=tuple(SimulatedSite(name, chats, chats[:1]) for name in SITES),
        result=RunResult("0f" * 16, _released(output_dir, run), rounds),
        federated=scores(2.0, 2.75, ashford=1.9, birch=2.1),
        base=scores(3.0, 2.5, ashford=2.9, birch=3.1),
        arms={
            "centralised": ArmResult("centralised", scores(1.9, 2.6, ashford=1.8, birch=2.0), 4.0),
            "local:ashford": ArmResult("local:ashford", scores(2.2, 2.7, ashford=2.0), 2.0),
            "local:birch": ArmResult("local:birch", scores(2.4, 2.9, birch=2.3), 2.0),
        },
        tfidf=None,
        total_seconds=30.0,
    )


def private_experiment(output_dir: Path, **outcome: Any) -> Experiment:
    """The clause experiment by examples at epsilon 8, of which ashford spent 7.9 and birch 4.1.

    outcome: other fields of its PrivacyOutcome.
    """
    experiment = clause_experiment(output_dir)
    privacy = PrivacySettings(mode="dp", unit="example")
    run = replace(experiment.settings.run, privacy=privacy)
    spent = {"ashford": SiteSpending(7.9, 2, 0, 6), "birch": SiteSpending(4.1, 1, 1, 8)}
    fields: dict[str, Any] = {
        "mode": "dp",
        "unit": "example",
        "delta": privacy.delta,
        "target_epsilon": privacy.target_epsilon,
        "sigma": 0.91,
        "clip_norm": privacy.clip_norm,
        "secure_aggregation": False,
        "per_site": spent,
        **outcome,
    }
    settings = replace(experiment.settings, run=run)
    return replace(experiment, settings=settings, privacy=PrivacyOutcome(**fields))


def clear_outcome(**outcome: Any) -> dict[str, Any]:
    """Fields of the PrivacyOutcome of a run without differential privacy."""
    unbounded = {name: SiteSpending(float("inf"), 2, 0, 6) for name in SITES}
    return {
        "mode": "none",
        "unit": "none",
        "target_epsilon": float("inf"),
        "sigma": 0.0,
        "clip_norm": 0.0,
        "per_site": unbounded,
        **outcome,
    }


def audit_of(
    found: float, *, control: float | None = 1.0, private: bool = True, epsilon: float = 8.0
) -> dict[str, Any]:
    """An audit of 240 canaries that finds this share of those planted; control: the same of its
    control, None without one. Figures follow from scores by the audit's own code."""
    rng = np.random.default_rng(0)
    planted = rng.permutation(240) % 2 == 0

    def scores(share: float) -> AttackScores:
        guessed: AttackScores = rng.random(240)
        known = rng.permutation(np.flatnonzero(planted))[: round(share * planted.sum())]
        guessed[known] += 1.0
        return guessed

    def findings(share: float, *, private: bool) -> Any:
        attacks = [(name, scores(share)) for name in ("loss", "wire_site", "wire_sum")]
        accountant = epsilon if private else None
        return run_findings(
            attacks, planted, private=private, accountant_epsilon=accountant, delta=1e-5
        )

    result = AuditResult(
        unit="example",
        repeats=1,
        canaries_planted=120,
        canaries_left_out=120,
        delta=1e-5,
        confidence=0.95,
        settings_digest="ab" * 32,
        audited=findings(found, private=private),
        control=None if control is None else findings(control, private=False),
        membership=membership_findings(rng.random(50), rng.random(40)),
    )
    return result.to_json()


def records(
    sites: tuple[str, ...], metrics: list[dict[str, float]] | None = None
) -> tuple[RoundRecord, ...]:
    """Two rounds: all sites answer in the first; in the second the second site is set aside."""
    metrics = metrics or [
        {"central_accuracy": 0.7, "central_macro_f1": 0.68, "sites_accuracy": 0.69},
        {"central_accuracy": 0.8, "central_macro_f1": 0.79, "sites_accuracy": 0.81},
    ]
    rejected = {"site": sites[1], "reason": "norm_over_bound", "detail": ""}
    return tuple(
        RoundRecord(
            round=round_,
            seconds=10.0,
            cohort=sites,
            admitted=sites if round_ == 1 else sites[:1],
            silent=(),
            rejected=() if round_ == 1 else (rejected,),
            aggregated=True,
            bytes_up=2000 if round_ == 1 else 1500,
            bytes_down=3000,
            bytes_evaluation=1500,
            train_seconds=6.0,
            aggregate_seconds=0.5,
            metrics=metrics[round_ - 1],
            site_metrics={sites[0]: {"accuracy": 0.66, "num_examples": 4.0}},
        )
        for round_ in (1, 2)
    )


def simulation_settings(
    run: RunSettings, output_dir: Path, compare: tuple[str, ...]
) -> SimulationSettings:
    return SimulationSettings(
        run=run,
        data=DataSettings(),
        sites=SitesSettings(),
        engine=EngineSettings(),
        audit=AuditSettings(),
        compare=compare,
        general_text="",
        output_dir=str(output_dir),
        resume=False,
    )


def _local(site: str, accuracy: float, macro_f1: float, own: float) -> ArmResult:
    scores: dict[str, Scores] = {
        "pooled": clause_scores(accuracy, macro_f1),
        site: clause_scores(own, own),
    }
    return ArmResult(f"local:{site}", scores, 2.0)


def _released(output_dir: Path, run: RunSettings) -> AdapterState:
    module = "base_model.model.bert.encoder.layer.0.attention.self.query"
    tensors = {
        f"{module}.lora_A.weight": np.ones((2, 3), dtype=np.float32),
        f"{module}.lora_B.weight": np.ones((5, 2), dtype=np.float32),
    }
    state = AdapterState(tensors, 2, 4.0, "ab" * 32, run.federation.method)
    write_peft_folder(output_dir / "adapter", state, run, "base")
    return state
