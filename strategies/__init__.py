"""Aggregation of adapter updates: one method per file, the maths pure, the Flower shell thin."""

from strategies.base import LoraStrategy
from strategies.registry import STRATEGIES, build_strategy

__all__ = ["STRATEGIES", "LoraStrategy", "build_strategy"]
