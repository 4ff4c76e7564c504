"""Search spaces: what can be chosen, how weights become a genotype, and how genotypes are written."""

from typing import Any

from gaea_jax.errors import UsageError
from gaea_jax.spaces.base import Choice, Graph, SearchSpace, derive, operation_entropy
from gaea_jax.spaces.darts import DARTS_NOZERO, DARTS_SPACE, NASP_SPACE
from gaea_jax.spaces.nas_bench_1shot1 import SPACE_1, SPACE_2, SPACE_3
from gaea_jax.spaces.nas_bench_201 import NAS_BENCH_201, NAS_BENCH_201_NOZERO

__all__ = ["Choice", "Graph", "SearchSpace", "derive", "get_space", "operation_entropy"]

_SPACES: dict[str, SearchSpace[Any]] = {
    space.name: space
    for space in (
        NAS_BENCH_201,
        NAS_BENCH_201_NOZERO,
        DARTS_SPACE,
        DARTS_NOZERO,
        NASP_SPACE,
        SPACE_1,
        SPACE_2,
        SPACE_3,
    )
}


def get_space(name: str) -> SearchSpace[Any]:
    """The search space of that name.

    Args:
      name: ``"nas_bench_201"`` (five operations), ``"nas_bench_201_nozero"`` (the four without ``none``), ``"darts"``
        (eight operations), ``"darts_nozero"`` (the seven without ``none``), ``"nasp"`` (DARTS' cells with the twelve
        operations of NASP), or ``"nas_bench_1shot1_1"``, ``..._2`` and ``..._3``.

    Returns:
      The space, a frozen record.

    Raises:
      UsageError: if there is no such space.

    Example:
      >>> get_space("nas_bench_201").count()
      15625
    """
    if name not in _SPACES:
        raise UsageError("space", f"{name!r} is unknown; known are {', '.join(_SPACES)}")
    return _SPACES[name]
