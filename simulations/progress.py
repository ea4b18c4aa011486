"""How far an experiment has come: bars in a terminal, plain lines anywhere else."""

from __future__ import annotations

from threading import Lock
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from models.evaluation import ClassificationScores, Scores
from server.observer import Observer
from server.records import RoundRecord
from simulations.baselines import ArmResult


class ExperimentProgress:
    """A context manager around a run. Writes to stderr unless given another console.

    In a terminal: one bar for rounds, one for the round's sites, one for the arms that are trained
    beside the federation. Elsewhere: one line for each finished round and arm. Calls may come from
    any thread; nothing is drawn outside the `with` block, except lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._plain = not self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=self._plain,
        )
        self._rounds = _RoundsObserver(self)
        self._arms = self._bars.add_task("baselines", total=None, visible=False, note="")
        self._audit = self._bars.add_task("leakage audit", total=None, visible=False, note="")
        self._arms_total = 0
        self._arms_done = 0
        self._lock = Lock()

    def __enter__(self) -> ExperimentProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    @property
    def observer(self) -> Observer:
        """What the coordinator tells of its rounds."""
        return self._rounds

    @property
    def bars(self) -> Progress:
        """Where bars are drawn, for those that add some of their own."""
        return self._bars

    @property
    def console(self) -> Console:
        """Print here while the bars are up, and they stay whole."""
        return self._console

    def arms_planned(self, count: int) -> None:
        """So many arms will be trained beside the federation."""
        self._arms_total = count
        if count:
            self._bars.update(self._arms, total=count, visible=True)

    def arm_finished(self, result: ArmResult) -> None:
        """One arm is trained and scored."""
        with self._lock:
            self._arms_done += 1
            done = self._arms_done
        note = f"{result.name}: {_best_known(result.scores)}"
        self._bars.update(self._arms, completed=done, note=note)
        self.line(f"arm {done}/{self._arms_total} {note} ({result.train_seconds:.1f} s training)")

    def audited(self, done: int, total: int) -> None:
        """So many parts of the leakage audit are done."""
        self._bars.update(self._audit, total=total, completed=done, visible=True)
        if done == total:
            self.line("leakage audit finished")

    def line(self, text: str) -> None:
        """A line, where there is no terminal to draw bars in."""
        if self._plain:
            self._console.print(Text(text), soft_wrap=True)


class _RoundsObserver:
    """Turns the coordinator's events into bars and lines."""

    def __init__(self, progress: ExperimentProgress) -> None:
        self._progress = progress
        self._bars = progress.bars
        self._round_bar = self._bars.add_task("rounds", total=None, visible=False, note="")
        self._site_bar = self._bars.add_task("sites", total=None, visible=False, note="")
        self._rounds = 0
        self._cohort_size = 0
        self._answered: dict[str, int] = {}
        self._set_aside = 0

    def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
        """See Observer."""
        self._rounds, self._cohort_size = rounds, cohort_size
        self._answered, self._set_aside = {}, 0
        self._bars.update(self._round_bar, total=rounds, completed=round_ - 1, visible=True)
        self._show_sites("train", 0)

    def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
        """See Observer; a bar for every message would only flicker."""

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """See Observer."""
        self._answered[kind] = self._answered.get(kind, 0) + 1
        self._set_aside += 0 if admitted else 1
        self._show_sites(kind, self._answered[kind])

    def checkpoint_started(self, round_: int) -> None:
        """See Observer; a checkpoint here is written in a blink."""

    def round_finished(self, record: RoundRecord) -> None:
        """See Observer."""
        note = _last_score(record.metrics)
        self._bars.update(self._round_bar, completed=record.round, note=note)
        if record.round == self._rounds:
            self._bars.update(self._site_bar, visible=False)
        rejected = f", {len(record.rejected)} set aside" if record.rejected else ""
        self._progress.line(
            f"round {record.round}/{self._rounds}: "
            f"{len(record.admitted)} of {len(record.cohort)} sites{rejected}, "
            f"{record.seconds:.1f} s, {note}"
        )

    def _show_sites(self, kind: str, answered: int) -> None:
        """Every site is asked to evaluate, even where a smaller cohort trained."""
        word = "sites trained" if kind == "train" else "sites evaluated"
        note = f"{self._set_aside} set aside" if self._set_aside else ""
        total = max(self._cohort_size, answered)
        self._bars.update(
            self._site_bar,
            description=word,
            total=total,
            completed=answered,
            note=note,
            visible=True,
        )


def _last_score(metrics: dict[str, float]) -> str:
    """The best known score of a round, in words."""
    for name, word, scale in (
        ("central_accuracy", "accuracy {:.1f}%", 100.0),
        ("sites_accuracy", "accuracy {:.1f}% at the sites", 100.0),
        ("central_perplexity", "perplexity {:.2f}", 1.0),
        ("central_loss", "loss {:.3f}", 1.0),
        ("sites_loss", "loss {:.3f} at the sites", 1.0),
        ("train_loss", "training loss {:.3f}", 1.0),
    ):
        if name in metrics:
            return word.format(scale * metrics[name])
    return "not evaluated"


def _best_known(scores: dict[str, Scores]) -> str:
    pooled = next(iter(scores.values()), None)
    if pooled is None:
        return "not scored"
    if isinstance(pooled, ClassificationScores):
        return f"accuracy {100 * pooled.accuracy:.1f}%"
    return f"perplexity {pooled.perplexity:.2f}"
