"""The settings of a run, typed: what coordinator and sites must agree on before the first round.

Privacy settings and speed settings are kept apart: nothing in here that makes a run faster changes
what leaves a site.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.codec import setting
from protocol.methods import METHODS

SERVER_OPTIMIZERS = ("none", "momentum", "nesterov", "adam")


@dataclass(frozen=True)
class ModelSettings:
    """The base model every site must hold, and how a classifier reads its output."""

    id: str = setting(doc="embedded name (minilm, novels), Hugging Face id or local folder")
    revision: str = setting("", doc="commit of a Hugging Face id; empty = the newest")
    pooling: str = setting(
        "native", choices=("mean", "native"), doc="what a classification head sees"
    )
    head_scale: float = setting(8.0, minimum=0.01, doc="length of the mean-pooled vector")
    head_start: str = setting(
        "auto",
        choices=("auto", "zero", "labels"),
        doc="a new linear head: zero, or from the labels' names; auto = labels in private runs",
    )
    max_tokens: int = setting(128, minimum=8, maximum=131072, doc="tokens kept per example")
    precision: str = setting(
        "auto", choices=("auto", "float32", "bfloat16"), doc="arithmetic of the base model"
    )
    quantisation: str = setting(
        "none", choices=("none", "8bit", "4bit"), doc="base weights by bitsandbytes, CUDA only"
    )
    gradient_checkpointing: bool = setting(False, doc="trade time for activation memory")


@dataclass(frozen=True)
class AdapterSettings:
    """The LoRA adapter's form. s = alpha / rank, or alpha / sqrt(rank) with rs_lora."""

    rank: int = setting(8, minimum=1, maximum=1024, doc="inner dimension r")
    alpha: float = setting(16.0, minimum=1e-6, doc="numerator of the scale s")
    dropout: float = setting(0.0, minimum=0.0, maximum=0.9, doc="on the adapter's input")
    targets: tuple[str, ...] = setting((), doc="module names that carry the adapter")
    rs_lora: bool = setting(False, doc="scale by alpha / sqrt(rank)")
    last_layers: int = setting(0, minimum=0, doc="adapt only the last n layers; 0 = all")


@dataclass(frozen=True)
class TaskSettings:
    """What is learned."""

    kind: str = setting(choices=("classify", "instruct"), doc="clause labels or chat answers")
    labels: tuple[str, ...] = setting((), doc="classify: the agreed label set, in order")
    packing: bool = setting(False, doc="instruct: several conversations per sequence")


@dataclass(frozen=True)
class TrainingSettings:
    """Local training at a site, the same at every site."""

    local_epochs: int = setting(1, minimum=1, maximum=1000, doc="passes over the site's data")
    max_steps: int = setting(0, minimum=0, doc="optimiser steps per round at most; 0 = no cap")
    batch_size: int = setting(16, minimum=1, maximum=65536, doc="examples per forward pass")
    gradient_accumulation: int = setting(1, minimum=1, doc="forward passes per optimiser step")
    learning_rate: float = setting(2e-3, minimum=0.0, doc="peak, of the LoRA factors")
    head_learning_rate: float = setting(1e-2, minimum=0.0, doc="peak, of a new head")
    weight_decay: float = setting(0.0, minimum=0.0, doc="AdamW's decoupled decay")
    warmup_fraction: float = setting(0.1, minimum=0.0, maximum=1.0, doc="of each round's steps")
    final_learning_rate_fraction: float = setting(
        0.1, minimum=0.0, maximum=1.0, doc="where the cosine over all rounds ends"
    )
    max_grad_norm: float = setting(1.0, minimum=0.0, doc="L2 per step; 0 = no clipping")


@dataclass(frozen=True)
class FederationSettings:
    """Rounds, cohorts and aggregation."""

    method: str = setting("fedsvd", choices=tuple(METHODS), doc="which factors train and travel")
    aggregator: str = setting("", doc="dotted path of a stock Flower strategy instead of ours")
    rounds: int = setting(8, minimum=1, maximum=100000, doc="training rounds in all")
    cohort_fraction: float = setting(1.0, minimum=0.0, maximum=1.0, doc="sites asked per round")
    min_cohort: int = setting(1, minimum=1, doc="sites asked per round at least")
    quorum: int = setting(1, minimum=1, doc="admitted replies a round needs")
    deadline_seconds: float = setting(3600.0, minimum=0.1, doc="time for one round's replies")
    weighting: str = setting("uniform", choices=("uniform", "examples"), doc="of site updates")
    weight_cap: int = setting(1000, minimum=1, doc="examples: weight by min(count, cap)")
    server_optimizer: str = setting("none", choices=SERVER_OPTIMIZERS, doc="on the mean update")
    server_learning_rate: float = setting(1.0, minimum=0.0, doc="of the server optimiser")
    server_momentum: float = setting(0.9, minimum=0.0, maximum=0.999999, doc="first moment's decay")
    server_beta2: float = setting(0.99, minimum=0.0, maximum=0.999999, doc="second moment's decay")
    server_epsilon: float = setting(1e-3, minimum=1e-12, doc="Adam's denominator floor")
    update_norm_bound: float = setting(
        100.0, minimum=1e-6, doc="L2 of a site's update: the site clips to it, admission checks it"
    )
    evaluate_every: int = setting(1, minimum=0, doc="rounds between evaluations; 0 = last only")
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, doc="of initial factors and data order")


@dataclass(frozen=True)
class PrivacySettings:
    """Differential privacy of local training. A site's policy may demand more, never less.

    Every site derives its noise multiplier sigma from target_epsilon, delta, sampling_rate and all
    planned steps, rounds * steps_per_round. The guarantee: see docs/privacy.md.
    """

    mode: str = setting("none", choices=("none", "dp"), doc="none, or dp for DP-SGD at each site")
    unit: str = setting(
        "matter", choices=("matter", "example"), doc="whose presence in the data is hidden"
    )
    target_epsilon: float = setting(8.0, minimum=0.01, doc="epsilon of the whole run, per unit")
    delta: float = setting(1e-5, minimum=1e-12, maximum=1e-2, doc="delta of the whole run")
    clip_norm: float = setting(1.0, minimum=1e-6, doc="L2 of one unit's gradient at most")
    sampling_rate: float = setting(
        0.25, minimum=1e-5, maximum=1.0, doc="chance of each unit to be in a step (Poisson)"
    )
    steps_per_round: int = setting(4, minimum=1, doc="noisy steps at a site in each round")
    examples_per_matter: int = setting(8, minimum=1, doc="drawn of a sampled matter at most")
    optimizer: str = setting("adam", choices=("adam", "sgd"), doc="of the noisy steps")
    learning_rate: float = setting(1e-2, minimum=0.0, doc="peak, of the LoRA factors")
    head_learning_rate: float = setting(5e-2, minimum=0.0, doc="peak, of a new head")
    noise: str = setting(
        "chacha20", choices=("chacha20", "chacha20_x4"), doc="x4: sums of four draws, see docs"
    )
    adaptive_clipping: bool = setting(False, doc="let the clip norm follow a quantile of norms")
    clip_quantile: float = setting(0.5, minimum=0.01, maximum=0.99, doc="the quantile it follows")
    clip_learning_rate: float = setting(0.2, minimum=0.0, maximum=2.0, doc="of its logarithm")
    clip_count_noise: float = setting(
        0.05, minimum=1e-3, doc="noise of the counted share, in shares of the expected batch"
    )
    acknowledge_both_factors: bool = setting(
        False, doc="accept that noise on A and B together grows with their product"
    )

    @property
    def enabled(self) -> bool:
        """True where training is private."""
        return self.mode == "dp"


@dataclass(frozen=True)
class SecureAggregationSettings:
    """The coordinator sees only the sum of a cohort's updates."""

    enabled: bool = setting(False, doc="mask updates; needs a roster at every site")
    bits: int = setting(32, choices=(16, 20, 24, 32), doc="of each coordinate on the wire")
    degree: int = setting(
        0, minimum=0, doc="neighbours of each site in the mask graph; 0 = all up to 32 sites"
    )
    attempts: int = setting(2, minimum=1, maximum=10, doc="tries of a round before it is given up")


@dataclass(frozen=True)
class RunSettings:
    """Everything a run is made of."""

    task: TaskSettings
    model: ModelSettings
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    secure_aggregation: SecureAggregationSettings = field(default_factory=SecureAggregationSettings)

    @property
    def head_from_labels(self) -> bool:
        """True where a new head starts from the labels' names; "auto" spends no noise on what the
        names tell."""
        if self.model.head_start == "auto":
            mean_head = self.task.kind == "classify" and self.model.pooling == "mean"
            return self.privacy.enabled and mean_head
        return self.model.head_start == "labels"
