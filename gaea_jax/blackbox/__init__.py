"""Black-box search: algorithms that see nothing but the scores that they ask for."""

from gaea_jax.blackbox.base import Algorithm, Archive
from gaea_jax.blackbox.run import ALGORITHMS, OPTIONS, BlackboxConfig, BlackboxResult, blackbox
from gaea_jax.blackbox.trial import Trial, advance, begin

__all__ = [
    "ALGORITHMS",
    "OPTIONS",
    "Algorithm",
    "Archive",
    "BlackboxConfig",
    "BlackboxResult",
    "Trial",
    "advance",
    "begin",
    "blackbox",
]
