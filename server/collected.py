"""What a round's training came to, whichever way the updates were collected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.admission import SetAside


@dataclass(frozen=True)
class Collected:
    """Who was asked, whose update is folded into the strategy, and what it cost.

    Node ids are Flower's. metrics: of admitted nodes, as far as they may tell any; bytes over all
    sites; fold_seconds: time of admission, folding and unmasking. See RoundRecord.
    """

    asked: tuple[int, ...]
    admitted: tuple[int, ...]
    silent: tuple[int, ...]
    set_aside: tuple[SetAside, ...]
    metrics: Mapping[int, Mapping[str, float]]
    bytes_up: int
    bytes_down: int
    fold_seconds: float
    secure_attempts: int = 0
