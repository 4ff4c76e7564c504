"""Training: the state and step of a search, the loop that runs it, and whole runs from one configuration."""

from gaea_jax.train.drive import DivergedError, Interrupted
from gaea_jax.train.functional import Searched, make_search
from gaea_jax.train.loop import data_parallel, run
from gaea_jax.train.retrain import RetrainConfig, RetrainResult, TrainState, make_train_step, retrain
from gaea_jax.train.search import SearchResult, restore_search, search
from gaea_jax.train.search_config import SearchConfig
from gaea_jax.train.state import SearchState
from gaea_jax.train.step import accuracy, cross_entropy, make_search_step
from gaea_jax.train.sweep import sweep

__all__ = [
    "DivergedError",
    "Interrupted",
    "RetrainConfig",
    "RetrainResult",
    "SearchConfig",
    "SearchResult",
    "SearchState",
    "Searched",
    "TrainState",
    "accuracy",
    "cross_entropy",
    "data_parallel",
    "make_search",
    "make_search_step",
    "make_train_step",
    "restore_search",
    "retrain",
    "run",
    "search",
    "sweep",
]
