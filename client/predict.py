"""A released adapter at work on documents: what kind of clause is this?

Nothing here writes or sends anything; a document that cannot be read is named, never fatal. What a
causal adapter writes about a document is in `client.answers`.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from client.contracts import (
    BROKEN_SIDECAR,
    Clause,
    Contract,
    ContractsError,
    Unreadable,
    read_contract_file,
    split_clauses,
)
from models.adapted import AdaptedModel, adapted_model
from models.base import find_model_folder
from models.batches import evaluation_batches, pad_batch
from models.digest import model_digest
from models.examples import ClauseExample
from models.tokens import Tokenised, tokenise_clauses
from protocol.adapter import AdapterState, FloatArray
from protocol.errors import FoedusError
from protocol.peft_folder import read_peft_folder
from protocol.settings import RunSettings

log = logging.getLogger("foedus.client")

# (done, in all), in whatever the step counts.
OnProgress = Callable[[int, int], None]

_CLAUSE_BATCH = 64
RECORD_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class ReleasedAdapter:
    """An adapter folder whose base model is here and is the one it was trained on."""

    run: RunSettings
    state: AdapterState

    def attached(self) -> AdaptedModel:
        """The process's model with this adapter's values in it, ready to predict.

        Errors: FoedusError where the folder's tensors are not those its settings call for.
        """
        adapted = adapted_model(self.run)
        if self.state.layout != adapted.layout:
            raise FoedusError(
                f"Expected the {len(adapted.layout)} tensors that the adapter's settings call for, "
                f"got {len(self.state.layout)} of other names or shapes. Copy the folder again "
                "from its source."
            )
        adapted.load(self.state.tensors)
        adapted.network.eval()
        return adapted


@dataclass(frozen=True, slots=True)
class Document:
    """One text to predict on. file: as the caller named it; source: more exactly, for a record."""

    file: str
    source: str
    contract: Contract

    @property
    def clauses(self) -> list[Clause]:
        """A record is one clause; a whole document is split."""
        text = self.contract.text
        if self.file.lower().endswith(RECORD_SUFFIXES):
            return [Clause(text, 0, len(text))]
        return split_clauses(text)


@dataclass(frozen=True, slots=True)
class LabelledClause:
    """A clause and what the adapter takes it for.

    start, end: offsets into the document's text, in characters. ranked: every (label, probability),
    the most probable first.
    """

    file: str
    source: str
    start: int
    end: int
    text: str
    ranked: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.ranked[0][0]

    @property
    def probability(self) -> float:
        """Of `label`, 0..1."""
        return self.ranked[0][1]

    @property
    def second_label(self) -> str | None:
        """The runner-up; None where there is one label only."""
        return self.ranked[1][0] if len(self.ranked) > 1 else None


def load_adapter(folder: Path, base: str = "") -> ReleasedAdapter:
    """Read a released folder and check that its base model is here, before loading any weights.

    base: where the base model lies on this machine; empty = under the name the adapter gives.
    Errors: FoedusError where the folder is damaged, or the base model is missing or another one.
    """
    state, run = read_peft_folder(folder)
    model = replace(run.model, id=base, revision="") if base else run.model
    if model.quantisation != "none" and not torch.cuda.is_available():
        log.warning("Trained on a %s base; without CUDA it is loaded whole.", model.quantisation)
        model = replace(model, quantisation="none")
    found = model_digest(find_model_folder(model))
    if found != state.base_digest:
        raise FoedusError(
            f"Expected base model {state.base_digest[:12]}…, on which the adapter in {folder} was "
            f"trained, got {found[:12]}… under '{model.id}'. Install that very model, or name its "
            "folder with --base."
        )
    return ReleasedAdapter(replace(run, model=model), state)


def read_documents(
    files: Sequence[Path], on_progress: OnProgress | None = None
) -> tuple[list[Document], list[Unreadable]]:
    """Every text in `files`, and by name everything that was not read or may not be used."""
    documents: list[Document] = []
    unread: list[Unreadable] = []
    for number, path in enumerate(files, start=1):
        shown = printable(path)
        try:
            read = read_contract_file(path)
        except (ContractsError, OSError) as failure:
            unread.append(Unreadable(shown, str(failure)))
        else:
            as_given = functools.partial(_as_given, shown, path.resolve().name)
            documents += [Document(shown, as_given(c.source), c) for c in read.contracts]
            unread += [Unreadable(as_given(u.source), u.reason) for u in read.unreadable]
            unread += [
                Unreadable(shown, f"{count} of its texts left out: {reason}")
                for reason, count in read.excluded.items()
                if reason != BROKEN_SIDECAR  # told above, with what is broken
            ]
        if on_progress:
            on_progress(number, len(files))
    return documents, unread


def printable(path: Path) -> str:
    """A path as text that can be printed; bytes that are no UTF-8 shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _as_given(shown: str, name: str, source: str) -> str:
    """A reader's `name`, `name:12` or `name page 3` under the path the caller gave."""
    return shown + source.removeprefix(name) if source.startswith(name) else source


def label_clauses(
    adapter: ReleasedAdapter, documents: Sequence[Document], on_progress: OnProgress | None = None
) -> list[LabelledClause]:
    """Every clause of every document, in order, with all labels ranked by probability.

    A clause longer than the run's max_tokens is judged by its beginning, as in training.
    Errors: FoedusError for an adapter that does not classify.
    """
    labels = adapter.run.task.labels
    if adapter.run.task.kind != "classify" or not labels:
        raise FoedusError("Expected an adapter that labels clauses, got one that writes text.")
    adapted = adapter.attached()
    clauses = [(document, clause) for document in documents for clause in document.clauses]
    # Tokenised as in training; the label that goes with it is not read.
    examples = [ClauseExample(clause.text, labels[0]) for _, clause in clauses]
    tokenizer, max_tokens = adapted.base.tokenizer, adapter.run.model.max_tokens
    tokenised = tokenise_clauses(tokenizer, examples, labels, max_tokens)
    probabilities = _class_probabilities(adapted, tokenised, len(labels), on_progress)
    return [
        LabelledClause(
            document.file, document.source, clause.start, clause.end, clause.text,
            tuple((labels[i], float(row[i])) for i in np.argsort(-row, kind="stable")),
        )
        for (document, clause), row in zip(clauses, probabilities, strict=True)
    ]  # fmt: skip


def _class_probabilities(
    adapted: AdaptedModel,
    examples: Sequence[Tokenised],
    num_labels: int,
    on_progress: OnProgress | None,
) -> FloatArray:
    """Softmax probabilities (examples, labels), in the order of `examples`."""
    probabilities = np.zeros((len(examples), num_labels), dtype=np.float32)
    pad_id = int(adapted.base.tokenizer.pad_token_id or 0)
    done = 0
    with torch.inference_mode():
        for positions, batch in evaluation_batches(examples, _CLAUSE_BATCH):
            inputs, _ = pad_batch(batch, pad_id, adapted.base.device, per_token=False)
            softmax = torch.softmax(adapted.class_logits(inputs), dim=-1)
            probabilities[positions] = softmax.cpu().numpy()
            done += len(batch)
            if on_progress:
                on_progress(done, len(examples))
    return probabilities
