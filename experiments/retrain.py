"""Trains a derived cell from scratch: ``python -m experiments.retrain --genotype runs/demo/search/result.json``."""

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from experiments.cli import Processes, main
from gaea_jax.processes import is_first
from gaea_jax.train import RetrainConfig, retrain
from gaea_jax.train.genotype import read_genotype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(RetrainConfig, Processes):
    """The flags: a `RetrainConfig`, whose cells the DARTS family calls layers."""

    cells: Annotated[int | None, tyro.conf.arg(aliases=["--layers"])] = None


def run(flags: Flags) -> None:
    """Trains, tests and prints the test accuracy."""
    flags.join()
    config = RetrainConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(RetrainConfig)})
    if config.out is None:
        space, _ = read_genotype(config.genotype, config.space)
        out = pathlib.Path("runs", "-".join(("retrain", space.name, config.dataset, str(config.seed))))
        config = dataclasses.replace(config, out=out)
    result = retrain(config)
    if not is_first():
        return
    print(result.genotype)
    print(f"{config.dataset}: test {result.test_accuracy:.2f} %, {result.size.parameters:,} parameters")
    print(f"written to {config.out}", file=sys.stderr)


if __name__ == "__main__":
    main(run, Flags, "Train a derived network from scratch and test it.")
