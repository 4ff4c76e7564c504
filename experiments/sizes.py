"""Prints the size of every published cell of the DARTS family: ``python -m experiments.sizes``."""

import dataclasses
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.cli import main
from gaea_jax.nets import Mixture, count, network, supernet
from gaea_jax.spaces import get_space
from gaea_jax.spaces.published import PUBLISHED


class Setting(NamedTuple):
    """A size of network.

    Attributes:
      size: arguments of the network.
      side: side of an image in pixels.
    """

    size: dict[str, Any]
    side: int


# The two settings in which the papers report sizes, and those of the supernets that searched.
NETWORKS = {
    "CIFAR, C=36, L=20": Setting({"channels": 36, "cells": 20, "num_classes": 10}, 32),
    "ImageNet, C=48, L=14": Setting({"channels": 48, "cells": 14, "num_classes": 1000, "stem": "imagenet"}, 224),
}
SUPERNETS = {
    ("darts", "CIFAR, C=16, L=8"): Setting({"channels": 16, "cells": 8, "num_classes": 10}, 32),
    ("nasp", "CIFAR, C=16, L=8"): Setting({"channels": 16, "cells": 8, "num_classes": 10}, 32),
    ("darts", "CIFAR, C=16, L=8, K=4"): Setting({"channels": 16, "cells": 8, "num_classes": 10, "partial": 4}, 32),
    ("darts", "ImageNet, C=16, L=8, K=2"): Setting(
        {"channels": 16, "cells": 8, "num_classes": 1000, "partial": 2, "stem": "imagenet"},
        224,
    ),
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """There are none."""


def run(flags: Flags) -> None:
    """Counts, from shapes alone, and prints."""
    table = Table("network", "cell", "parameters", "with auxiliary head", "multiply-adds (M)")
    for setting, (size, side) in NETWORKS.items():
        for name, genotype in PUBLISHED.items():
            plain, with_head = (
                count(network(get_space(genotype.space), genotype, auxiliary=auxiliary, **size), (side, side, 3))
                for auxiliary in (False, True)
            )
            numbers = f"{plain.parameters:,}", f"{with_head.parameters:,}", f"{plain.multiply_adds / 1e6:.6f}"
            table.add_row(setting, name, *numbers)
    for (name, setting), (size, side) in SUPERNETS.items():
        space = get_space(name)
        uniform = Mixture({name: choice.uniform() for name, choice in space.choices.items()})
        found = count(supernet(space, **size), (side, side, 3), uniform)
        table.add_row(setting, f"supernet of {name}", f"{found.parameters:,}", "", f"{found.multiply_adds / 1e6:.6f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(run, Flags, "Print parameters and multiply-adds of the published cells of the DARTS family.")
