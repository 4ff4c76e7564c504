"""Genotypes that papers of the DARTS family published, by name.

Names are those of the sources where they have readable ones, in capitals; GAEA's say the method, the data set of the
search and, of a cell beside the reported one, the seed of the search. `find` ignores case and underscores.

Errors are in percent, on the test images, of networks trained from scratch, ± over trainings. They are as reported in
tables 1, 3, 4 and 5 of `GAEA <https://arxiv.org/abs/2004.07802>`_; the protocols behind them differ in details.
"""

import reprlib

from gaea_jax.errors import UsageError
from gaea_jax.spaces.darts_genotype import GRAMMAR, JSON, OPERATIONS, Genotype

_, _MAX, _AVG, _SKIP, _SEP3, _SEP5, _DIL3, _DIL5 = OPERATIONS

DARTS_V1 = Genotype(
    normal=(
        ((_SEP3, 1), (_SEP3, 0)),
        ((_SKIP, 0), (_SEP3, 1)),
        ((_SKIP, 0), (_SEP3, 1)),
        ((_SEP3, 0), (_SKIP, 2)),
    ),
    reduce=(
        ((_MAX, 0), (_MAX, 1)),
        ((_SKIP, 2), (_MAX, 0)),
        ((_MAX, 0), (_SKIP, 2)),
        ((_SKIP, 2), (_AVG, 0)),
    ),
)
"""The first genotype of `DARTS <https://arxiv.org/abs/1806.09055>`_.

Source: ``genotypes.py`` of ``yuhuixu1993/PC-DARTS``. Reported error: none for this very genotype; the tables have
3.00 ± 0.14 on CIFAR-10 for cells that DARTS found with its first order and 2.76 ± 0.09 with its second, and the source
does not say which a genotype is of.
"""

DARTS_V2 = Genotype(
    normal=(
        ((_SEP3, 0), (_SEP3, 1)),
        ((_SEP3, 0), (_SEP3, 1)),
        ((_SEP3, 1), (_SKIP, 0)),
        ((_SKIP, 0), (_DIL3, 2)),
    ),
    reduce=(
        ((_MAX, 0), (_MAX, 1)),
        ((_SKIP, 2), (_MAX, 1)),
        ((_MAX, 0), (_SKIP, 2)),
        ((_SKIP, 2), (_MAX, 1)),
    ),
)
"""The second genotype of `DARTS <https://arxiv.org/abs/1806.09055>`_.

Source: ``genotypes.py`` of ``yuhuixu1993/PC-DARTS``. Reported error: on ImageNet 26.7 (top 1) and 8.7 (top 5) for a
network of 4.7 million parameters, which is the size of this one's; on CIFAR-10 as of `DARTS_V1`.
"""

PC_DARTS_CIFAR = Genotype(
    normal=(
        ((_SEP3, 1), (_SKIP, 0)),
        ((_SEP3, 0), (_DIL3, 1)),
        ((_SEP5, 0), (_SEP3, 1)),
        ((_AVG, 0), (_DIL3, 1)),
    ),
    reduce=(
        ((_SEP5, 1), (_MAX, 0)),
        ((_SEP5, 1), (_SEP5, 2)),
        ((_SEP3, 0), (_SEP3, 3)),
        ((_SEP3, 1), (_SEP3, 2)),
    ),
)
"""`PC-DARTS <https://arxiv.org/abs/1907.05737>`_ searched on CIFAR-10.

Source: ``genotypes.py`` of ``yuhuixu1993/PC-DARTS``, ``PC_DARTS_cifar``. Reported error: 2.57 ± 0.07 on CIFAR-10; 25.1
(top 1) and 7.8 (top 5) on ImageNet.
"""

PC_DARTS_IMAGE = Genotype(
    normal=(
        ((_SKIP, 1), (_SEP3, 0)),
        ((_SEP3, 0), (_SKIP, 1)),
        ((_SEP3, 1), (_SEP3, 3)),
        ((_SEP3, 1), (_DIL5, 4)),
    ),
    reduce=(
        ((_SEP3, 0), (_SKIP, 1)),
        ((_DIL5, 2), (_MAX, 1)),
        ((_SEP3, 2), (_SEP3, 1)),
        ((_SEP5, 0), (_SEP3, 3)),
    ),
)
"""`PC-DARTS <https://arxiv.org/abs/1907.05737>`_ searched on ImageNet.

Source: ``genotypes.py`` of ``yuhuixu1993/PC-DARTS``, ``PC_DARTS_image``. Reported error: 24.2 (top 1) and 7.3 (top 5)
on ImageNet.
"""

GAEA_PC_DARTS_CIFAR10 = Genotype(
    normal=(
        ((_SEP3, 1), (_SKIP, 0)),
        ((_SEP3, 1), (_SKIP, 2)),
        ((_SEP3, 1), (_SEP3, 2)),
        ((_SEP3, 0), (_DIL3, 4)),
    ),
    reduce=(
        ((_MAX, 0), (_MAX, 1)),
        ((_SEP5, 0), (_SEP5, 2)),
        ((_DIL3, 3), (_SEP5, 2)),
        ((_SEP5, 4), (_SEP3, 1)),
    ),
)
"""GAEA PC-DARTS searched on CIFAR-10 with seed 3103: the reported cell (`GAEA <https://arxiv.org/abs/2004.07802>`_,
figures 3a and 3b).

Source: ``genotypes.py`` of ``liamcli/PC-DARTS``, ``pcdartseedartscifar103103``. Reported error: 2.50 ± 0.06 on CIFAR-10
(table 3 has ± 0.07 for the same trainings), of the best one 2.39; 24.3 (top 1) and 7.3 (top 5) on ImageNet.
"""

GAEA_PC_DARTS_CIFAR10_1307 = Genotype(
    normal=(
        ((_SEP3, 1), (_SKIP, 0)),
        ((_SEP3, 0), (_SEP3, 2)),
        ((_SEP3, 2), (_SEP5, 1)),
        ((_SEP3, 1), (_SEP5, 0)),
    ),
    reduce=(
        ((_MAX, 0), (_SEP5, 1)),
        ((_DIL5, 2), (_MAX, 0)),
        ((_SEP3, 2), (_SKIP, 0)),
        ((_DIL3, 4), (_MAX, 0)),
    ),
)
"""GAEA PC-DARTS searched on CIFAR-10 with seed 1307.

Source: ``genotypes.py`` of ``liamcli/PC-DARTS``, ``pcdartseedartscifar101307``. Reported error: none.
"""

GAEA_PC_DARTS_IMAGENET = Genotype(
    normal=(
        ((_SKIP, 1), (_SKIP, 0)),
        ((_SEP3, 2), (_SEP3, 1)),
        ((_SEP5, 2), (_SEP3, 0)),
        ((_SEP5, 3), (_SEP5, 2)),
    ),
    reduce=(
        ((_MAX, 1), (_SEP3, 0)),
        ((_SEP5, 1), (_DIL5, 2)),
        ((_SEP3, 1), (_SEP3, 3)),
        ((_SEP5, 1), (_MAX, 2)),
    ),
)
"""GAEA PC-DARTS searched on ImageNet (`GAEA <https://arxiv.org/abs/2004.07802>`_, figures 3c and 3d).

Source: ``examples/nas/gaea_pytorch/eval/model_def.py`` of ``determined-ai/determined``. Reported error: 24.0 (top 1)
and 7.3 (top 5) on ImageNet.
"""

NASP = Genotype(
    normal=(
        (("conv_3x1_1x3", 0), ("conv 3x3", 1)),
        ((_DIL3, 2), ("conv 3x3", 1)),
        ((_DIL3, 2), ("conv 3x3", 0)),
        ((_SKIP, 0), (_DIL3, 3)),
    ),
    reduce=(
        ((_MAX, 0), (_MAX, 1)),
        ((_SKIP, 2), ("max_pool_5x5", 1)),
        ((_SKIP, 2), (_SKIP, 3)),
        ((_SKIP, 0), (_SKIP, 1)),
    ),
)
"""`NASP <https://arxiv.org/abs/1905.13577>`_ searched on CIFAR-10 with its twelve operations; of the space ``nasp``.

Source: ``codes/genotypes.py`` of ``xujinfan/NASP-codes``. Reported error: 2.44 ± 0.04 on CIFAR-10, for a network of 7.4
million parameters.
"""

ISTA_TWOSTAGE = Genotype(
    normal=(
        ((_SKIP, 0), (_DIL3, 1)),
        ((_SEP5, 0), (_DIL3, 2)),
        ((_DIL3, 1), (_SEP3, 0)),
        ((_SEP3, 2), (_SKIP, 0)),
    ),
    reduce=(
        ((_AVG, 0), (_SEP5, 1)),
        ((_DIL5, 2), (_MAX, 1)),
        ((_DIL5, 3), (_SEP3, 1)),
        ((_DIL5, 4), (_SEP5, 1)),
    ),
)
"""The genotype of `ISTA-NAS <https://arxiv.org/abs/2010.06176>`_ in two stages, the predecessor of EnTranNAS.

Source: ``tools/genotypes.py`` of ``iboing/ISTA-NAS``. Reported error: none that could be read for this very genotype.
"""

PUBLISHED: dict[str, Genotype] = {
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "PC_DARTS_CIFAR": PC_DARTS_CIFAR,
    "PC_DARTS_IMAGE": PC_DARTS_IMAGE,
    "GAEA_PC_DARTS_CIFAR10": GAEA_PC_DARTS_CIFAR10,
    "GAEA_PC_DARTS_CIFAR10_1307": GAEA_PC_DARTS_CIFAR10_1307,
    "GAEA_PC_DARTS_IMAGENET": GAEA_PC_DARTS_IMAGENET,
    "NASP": NASP,
    "ISTA_TWOSTAGE": ISTA_TWOSTAGE,
}
"""Every published genotype by its name."""


def find(name: str) -> Genotype:
    """The published genotype of a name.

    Args:
      name: one of `PUBLISHED`; case and underscores do not matter.

    Returns:
      The genotype.

    Raises:
      UsageError: on ``genotype``, if there is none of that name.

    Example:
      >>> find("pcdarts_cifar") == PC_DARTS_CIFAR
      True
    """
    found = {_plain(known): genotype for known, genotype in PUBLISHED.items()}.get(_plain(name))
    if found is None:
        accepted = f"known are {', '.join(PUBLISHED)}; or give {GRAMMAR} or {JSON}"
        raise UsageError("genotype", f"{reprlib.repr(name)} is no published genotype; {accepted}")
    return found


def _plain(name: str) -> str:
    return name.replace("_", "").upper()
