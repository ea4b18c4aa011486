"""Which function reads which source."""

from __future__ import annotations

from collections.abc import Callable

from simulations.data.contract_nli import contract_nli_corpus
from simulations.data.corpus import Corpus, DataError
from simulations.data.cuad import cuad_corpus
from simulations.data.edgar import edgar_corpus
from simulations.data.folder import folder_corpus
from simulations.data.settings import DataSettings
from simulations.data.synthetic import synthetic_corpus
from simulations.data.unfair_tos import unfair_tos_corpus

_READERS: dict[str, Callable[[DataSettings], Corpus]] = {
    "synthetic": synthetic_corpus,
    "edgar": edgar_corpus,
    "cuad": cuad_corpus,
    "unfair_tos": unfair_tos_corpus,
    "contract_nli": contract_nli_corpus,
    "folder": folder_corpus,
}


def load_corpus(settings: DataSettings) -> Corpus:
    """The corpus of `settings.source`. Raises DataError where the settings do not fit the files."""
    if settings.source not in _READERS:
        raise DataError(
            f"Expected data.source to be one of {', '.join(_READERS)}, got {settings.source!r}."
        )
    return _READERS[settings.source](settings)
