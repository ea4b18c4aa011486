"""A site: where its contracts lie, what it keeps, and its examples, read once per process."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from client.contracts import Contract, ReadResult, read_contracts
from client.examples.build import SiteExamples, build_examples
from client.policy import PolicySettings
from client.privacy.ledger import Ledger
from client.receipts import ReceiptLog
from models.examples import ChatExample, Example
from protocol.codec import setting
from protocol.settings import ModelSettings, RunSettings, TaskSettings
from protocol.settings_file import read_settings

if TYPE_CHECKING:
    from models.tokens import Tokenised

log = logging.getLogger("foedus.client")

# The examples that a run trains on and those that it evaluates on.
_KEPT_TOKENISED = 2
# What token ids depend on: with or without privacy, of which part.
_Tokenising = tuple[TaskSettings, ModelSettings, bool, str]


@dataclass(frozen=True)
class SiteSettings:
    """What the firm decides and nobody else sees. Relative folders start at the file's folder."""

    name: str = setting(doc="the firm's; sent in requests to join, and nowhere else")
    contracts: str = setting(doc="folder of contracts to learn from")
    state: str = setting(doc="folder for receipts and factors that stay here")
    held_out: str = setting("", doc="folder of contracts to evaluate on; empty = split off")
    held_out_fraction: float = setting(
        0.2, minimum=0.0, maximum=0.9, doc="share of matters kept from training"
    )
    excluded_matters: tuple[str, ...] = setting((), doc="matters that are never read")
    identity: str = setting("", doc="file of this site's private key; for secure aggregation")
    roster: str = setting(
        "", doc="file of the consortium's members, signed or plain; for secure aggregation"
    )
    consortium: str = setting("", doc="file of the invitation; needed for a signed roster")
    supernode_key: str = setting("", doc="file of the key by which this site's SuperNode signs")
    passphrase_file: str = setting(
        "",
        doc="file whose first line opens the keys; empty = that of FOEDUS_PASSPHRASE_FILE, or the "
        "variable FOEDUS_PASSPHRASE",
    )
    superlink_port: int = setting(
        0, minimum=0, maximum=65535, doc="the SuperNode's own port, loopback only; 0 = any free one"
    )
    threads: int = setting(0, minimum=0, doc="CPU threads to train with; 0 = as torch chooses")
    policy: PolicySettings = field(default_factory=PolicySettings)


class Site:
    """One firm's node: settings, contracts and receipts. Examples are read on first use."""

    def __init__(self, settings: SiteSettings, folder: Path) -> None:
        self.settings = settings
        self.contracts_folder = folder / settings.contracts
        self.held_out_folder = folder / settings.held_out if settings.held_out else None
        self.state_folder = folder / settings.state
        self.identity_file = folder / settings.identity if settings.identity else None
        self.roster_file = folder / settings.roster if settings.roster else None
        self.invitation_file = folder / settings.consortium if settings.consortium else None
        self.supernode_key_file = (
            folder / settings.supernode_key if settings.supernode_key else None
        )
        self.passphrase_file = (
            folder / settings.passphrase_file if settings.passphrase_file else None
        )
        self.receipts = ReceiptLog(self.state_folder / "receipts.jsonl")
        self._examples: dict[str, SiteExamples] = {}
        self._tokenised: OrderedDict[_Tokenising, list[Tokenised]] = OrderedDict()

    @classmethod
    def from_file(cls, path: Path) -> Site:
        """Read a site.yaml.

        Errors: SettingsError with everything wrong in it; FoedusError where there is no file.
        """
        settings = read_settings(SiteSettings, path, "a site configuration")
        return cls(settings, path.parent)

    @cached_property
    def ledger(self) -> Ledger:
        """What private training has cost the site's data so far."""
        return Ledger(self.state_folder / "privacy.sqlite3", self.receipts)

    def examples(self, kind: str) -> SiteExamples:
        """The site's examples for a task; what could not be used is logged by count."""
        if kind not in self._examples:
            self._examples[kind] = self._read(kind)
        return self._examples[kind]

    def tokenised(self, run: RunSettings, part: str) -> list[Tokenised]:
        """Token ids of the "train" or "held_out" examples, kept for the run's later rounds."""
        key = (run.task, run.model, run.privacy.enabled, part)
        if key not in self._tokenised:
            tokenised = self._tokenise(run, part)
            # The coordinator chooses the settings: each choice must not cost memory for good.
            while len(self._tokenised) >= _KEPT_TOKENISED:
                self._tokenised.popitem(last=False)
            self._tokenised[key] = tokenised
        self._tokenised.move_to_end(key)
        return self._tokenised[key]

    def _tokenise(self, run: RunSettings, part: str) -> list[Tokenised]:
        # Imported here, so that commands which only look at a site need not load torch.
        from models.evaluation import tokenise

        examples = self.examples(run.task.kind)
        chosen = examples.train if part == "train" else examples.held_out
        if run.privacy.enabled:
            chosen = _with_agreed_labels(chosen, run.task.labels)
        tokenised = tokenise(run, chosen)
        lost = len(chosen) - len(tokenised)
        if lost:
            log.warning("%d %s examples have no answer within max_tokens.", lost, part)
        return tokenised

    def contracts(self) -> tuple[Contract, ...]:
        """The contracts to learn from, read anew; what cannot be read is left out unsaid."""
        excluded = self.settings.excluded_matters
        return read_contracts(self.contracts_folder, excluded_matters=excluded).contracts

    def _read(self, kind: str) -> SiteExamples:
        examples = self._build(kind)
        for reason, count in examples.unused.items():
            log.info("%d contracts gave no example: %s", count, reason)
        return examples

    def _build(self, kind: str) -> SiteExamples:
        read = self._read_folder(self.contracts_folder)
        if self.held_out_folder is None:
            return build_examples(read.contracts, kind, self.settings.held_out_fraction)
        train = build_examples(read.contracts, kind, held_out_fraction=0.0)
        held_out = build_examples(
            self._read_folder(self.held_out_folder).contracts, kind, held_out_fraction=0.0
        )
        unused = Counter(train.unused) + Counter(held_out.unused)
        return SiteExamples(train.train, held_out.train, dict(unused))

    def _read_folder(self, folder: Path) -> ReadResult:
        read = read_contracts(folder, excluded_matters=self.settings.excluded_matters)
        for broken in read.unreadable:
            log.warning("Skipped %s: %s", broken.source, broken.reason)
        for reason, count in read.excluded.items():
            log.info("Left out %d contracts: %s", count, reason)
        return read


def _with_agreed_labels(
    examples: tuple[Example, ...], labels: tuple[str, ...]
) -> tuple[Example, ...]:
    """Without clauses of other labels. To refuse them, as runs without privacy do, would tell the
    coordinator, without noise, which labels a site has."""
    kept = tuple(e for e in examples if isinstance(e, ChatExample) or e.label in labels)
    if len(kept) < len(examples):
        left_out = len(examples) - len(kept)
        log.warning("%d clauses have labels nobody agreed on and are left out.", left_out)
    return kept
