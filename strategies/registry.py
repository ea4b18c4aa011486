"""From settings to a strategy."""

from __future__ import annotations

from protocol.errors import FoedusError
from protocol.settings import FederationSettings
from strategies.aggregation import Aggregation, MeanAggregation
from strategies.base import LoraStrategy
from strategies.fedit import FedIt
from strategies.fedsa import FedSaLora
from strategies.fedsvd import FedSvd
from strategies.ffa import FfaLora
from strategies.foreign import ForeignAggregation
from strategies.rolora import RoLora

STRATEGIES: dict[str, type[LoraStrategy]] = {
    strategy.method: strategy for strategy in (FedSvd, FfaLora, RoLora, FedIt, FedSaLora)
}


def build_strategy(settings: FederationSettings) -> LoraStrategy:
    """The strategy of ``settings.method``, aggregating by ``settings.aggregator`` if that is set.

    Errors: FoedusError for an unknown method, or an aggregator that is unusable or unfit for it.
    """
    if settings.method not in STRATEGIES:
        raise FoedusError(
            f"Expected federation.method out of {', '.join(STRATEGIES)}, got "
            f"{settings.method!r}: choose one with strategy=NAME."
        )
    aggregation: Aggregation = (
        ForeignAggregation(settings) if settings.aggregator else MeanAggregation(settings)
    )
    return STRATEGIES[settings.method](settings, aggregation)
