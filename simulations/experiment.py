"""One experiment: sites from data, the federation, what it is compared with, and the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch

from client.app import make_app as make_client_app
from client.audit.training import without_privacy
from client.contracts import Contract
from client.examples.build import build_examples
from client.personal import PersonalFactors
from client.site import Site
from models.adapted import initial_state
from models.evaluation import Scores
from models.examples import ClauseExample, Example
from protocol.errors import FoedusError
from protocol.methods import personal_factors
from protocol.settings import RunSettings
from server.app import CoordinatorSettings, Plan, checkpoint_folder
from server.app import make_app as make_server_app
from server.checkpoint import CheckpointStore
from server.coordinator import RunResult
from server.evaluation import central_evaluation
from server.observer import Observer
from simulations.audit import audit_federation
from simulations.baselines import ArmRequest, ArmResult, ArmRunner, score_all, tfidf_scores
from simulations.data.registry import load_corpus
from simulations.engines.in_process import run_in_process
from simulations.engines.ray import run_on_ray
from simulations.general_text import general_examples
from simulations.partition import SitePartition, partition
from simulations.privacy import PrivacyOutcome, privacy_outcome
from simulations.progress import ExperimentProgress
from simulations.settings import SimulationSettings, with_labels
from simulations.workspace import (
    SimulatedSites,
    clear_state,
    lay_out_sites,
    roster_file,
    site_file,
)

POOLED, GENERAL = "pooled", "general"
CENTRALISED = "centralised"

TestSets = tuple[tuple[str, tuple[Example, ...]], ...]


@dataclass(frozen=True)
class SimulatedSite:
    """One firm of the experiment, as examples."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class Experiment:
    """What was run and what came out. `arms`: results by arm name, sites under "local:NAME".

    Test sets in every arm's scores: "pooled", "general" (causal only) and each site's own name.
    """

    settings: SimulationSettings
    sites: tuple[SimulatedSite, ...]
    result: RunResult
    federated: dict[str, Scores]
    base: dict[str, Scores]
    arms: dict[str, ArmResult]
    tfidf: Scores | None
    total_seconds: float
    privacy: PrivacyOutcome | None = None


def run_experiment(settings: SimulationSettings, progress: ExperimentProgress) -> Experiment:
    """Run everything `settings` asks for. The results depend on settings and data alone.

    Errors: FoedusError before anything is trained where data, settings or folder do not fit.
    """
    started = time.monotonic()
    partitions, pooled_test = _partitions(settings)
    settings = with_labels(settings, _labels(partitions, pooled_test))
    run = settings.run
    sites = tuple(_as_examples(part, run.task.kind) for part in partitions)
    _check_examples(sites)
    _check_cohort(len(sites), run)
    if not settings.resume:
        CheckpointStore(checkpoint_folder(Path(settings.output_dir)), run).refuse_to_overwrite()
    tests = _test_sets(settings, sites, _examples(pooled_test, run.task.kind))
    requests = _arm_requests(settings, sites, tests)
    threads = settings.engine.threads(len(requests))
    torch.set_num_threads(threads)
    runner = ArmRunner(settings.engine.baseline_processes, threads)
    try:
        progress.arms_planned(len(requests))
        futures = runner.start(requests, progress.arm_finished)
        result = federate(settings, partitions, dict(tests)[POOLED], progress.observer)
        federated = _federated_scores(settings, run, result, sites, tests)
        base = score_all(run, initial_state(run), tests) if run.task.kind == "instruct" else {}
        arms = _gather(futures)
    finally:
        runner.close()
    tfidf = _tfidf(settings, sites, dict(tests)[POOLED])
    audit = None
    if settings.audit.mode == "canaries":
        audit = audit_federation(
            settings.audit, run, [(s.train, s.test) for s in sites], result.state, progress.audited
        )
    privacy = privacy_outcome(settings, [site.name for site in sites], audit)
    seconds = time.monotonic() - started
    return Experiment(settings, sites, result, federated, base, arms, tfidf, seconds, privacy)


def federate(
    settings: SimulationSettings,
    partitions: Sequence[SitePartition],
    pooled_test: Sequence[Example],
    observer: Observer,
) -> RunResult:
    """The federation itself, by the deployed ServerApp and ClientApp on the chosen engine."""
    output_dir = Path(settings.output_dir)
    if not settings.resume:
        clear_state(output_dir)
    secure = settings.run.secure_aggregation.enabled
    site_files = lay_out_sites(output_dir.resolve(), partitions, with_identities=secure)
    results: list[RunResult] = []
    in_process = settings.engine.name == "in_process"
    plan = Plan(
        settings.run,
        CoordinatorSettings(
            settings.output_dir,
            settings.resume,
            roster=str(roster_file(output_dir)) if secure else "",
        ),
        observer,
        # A state without the sites' own factors would be scored as something nobody uses.
        None
        if personal_factors(settings.run.federation.method)
        else central_evaluation(settings.run, pooled_test),
        # Ray's node ids are random; the in-process engine numbers its nodes from 1.
        {i: p.name for i, p in enumerate(partitions, start=1)} if in_process else {},
        results.append,
    )
    server_app = make_server_app(lambda context: plan)
    client_app = make_client_app(SimulatedSites(site_files))
    if in_process:
        run_in_process(server_app, client_app, len(partitions))
    else:
        run_on_ray(server_app, client_app, len(partitions), settings.engine.cpus_per_site)
    if not results:
        raise FoedusError("The federation ended without a result; the log above says why.")
    return results[0]


def _partitions(settings: SimulationSettings) -> tuple[list[SitePartition], list[Contract]]:
    """The sites, and the pooled test: all sites' tests together. Where sites are cut so that
    none has held-out contracts (by company, say), a share of the corpus's test part instead."""
    corpus = load_corpus(settings.data)
    partitions = partition(corpus.train, corpus.test, settings.sites)
    pooled = [contract for part in partitions for contract in part.test]
    if not pooled:
        most = settings.sites.test_examples_per_site * len(partitions)
        step = max(1, len(corpus.test) // max(1, most))
        pooled = list(corpus.test[::step][:most])
    return partitions, pooled


def _labels(
    partitions: Sequence[SitePartition], pooled_test: Sequence[Contract]
) -> tuple[str, ...]:
    trained = {c.label for part in partitions for c in part.train}
    tested = {c.label for c in pooled_test} | {c.label for p in partitions for c in p.test}
    return tuple(sorted(label for label in trained | tested if label is not None))


def _examples(contracts: Sequence[Contract], kind: str) -> tuple[Example, ...]:
    return build_examples(contracts, kind, held_out_fraction=0.0).train


def _as_examples(part: SitePartition, kind: str) -> SimulatedSite:
    return SimulatedSite(part.name, _examples(part.train, kind), _examples(part.test, kind))


def _check_examples(sites: Sequence[SimulatedSite]) -> None:
    empty = [site.name for site in sites if not site.train]
    if empty:
        raise FoedusError(
            f"Expected training examples at every site, got none at {', '.join(empty)}. For "
            "task=classify contracts need labels; raise simulation.min_examples_per_site or use "
            "fewer sites."
        )


def _check_cohort(num_sites: int, run: RunSettings) -> None:
    """A round waits until its deadline for sites that a simulation will never have."""
    smallest = run.federation.min_cohort
    if num_sites < smallest:
        raise FoedusError(
            f"Expected {smallest} sites or more (federation.min_cohort), got {num_sites}. Simulate "
            f"more sites, or set federation.min_cohort={num_sites} and a quorum no larger."
        )


def _test_sets(
    settings: SimulationSettings, sites: Sequence[SimulatedSite], pooled: tuple[Example, ...]
) -> TestSets:
    tests: list[tuple[str, tuple[Example, ...]]] = [(POOLED, pooled)]
    if settings.run.task.kind == "instruct":
        tests.append((GENERAL, general_examples(settings.general_text)))
    tests += [(site.name, site.test) for site in sites]
    return tuple(tests)


def _arm_requests(
    settings: SimulationSettings, sites: Sequence[SimulatedSite], tests: TestSets
) -> list[ArmRequest]:
    requests: list[ArmRequest] = []
    if "centralised" in settings.compare:
        pooled = tuple(example for site in sites for example in site.train)
        requests.append(ArmRequest(CENTRALISED, without_privacy(settings.run), pooled, tests))
    if "local" in settings.compare:
        for site in sites:
            chosen = tuple(t for t in tests if t[0] in (POOLED, GENERAL, site.name))
            requests.append(ArmRequest(f"local:{site.name}", settings.run, site.train, chosen))
    return requests


def _federated_scores(
    settings: SimulationSettings,
    run: RunSettings,
    result: RunResult,
    sites: Sequence[SimulatedSite],
    tests: TestSets,
) -> dict[str, Scores]:
    """Scores of the released adapter; where factors stay at sites, each site scores as
    "NAME@pooled" with its own."""
    if not personal_factors(run.federation.method):
        return score_all(run, result.state, tests)
    scores: dict[str, Scores] = {}
    shared = {name: examples for name, examples in tests if name in (POOLED, GENERAL)}
    for index, site in enumerate(sites):
        path = site_file(Path(settings.output_dir), index, site.name)
        state_folder = Site.from_file(path).state_folder
        kept = PersonalFactors(state_folder, result.run_id).after(run.federation.rounds)
        state = result.state.replace_tensors({**result.state.tensors, **kept})
        own = score_all(run, state, [(site.name, site.test)])
        pooled = score_all(run, state, [(f"{site.name}@{n}", e) for n, e in shared.items()])
        scores |= own | pooled
    return scores


def _gather(futures: Sequence[Future[ArmResult]]) -> dict[str, ArmResult]:
    results = [future.result() for future in futures]
    return {result.name: result for result in results}


def _tfidf(
    settings: SimulationSettings, sites: Sequence[SimulatedSite], pooled: Sequence[Example]
) -> Scores | None:
    if settings.run.task.kind != "classify" or "tfidf" not in settings.compare:
        return None
    train = [e for site in sites for e in site.train if isinstance(e, ClauseExample)]
    return tfidf_scores(train, [e for e in pooled if isinstance(e, ClauseExample)])
