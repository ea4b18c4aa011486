"""Sources of contracts for simulations: `load_corpus(settings)` gives training and test parts."""

from simulations.data.corpus import Corpus, DataError
from simulations.data.registry import load_corpus
from simulations.data.settings import DataSettings, decode_data_settings

__all__ = ["Corpus", "DataError", "DataSettings", "decode_data_settings", "load_corpus"]
