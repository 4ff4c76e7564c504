"""The whole path on the embedded digits: search a cell, then train it and a random cell alike.

``make search`` runs this; it takes a few minutes on two cores. Run again, it continues where it was cut, or prints the
results of the finished runs.
"""

import dataclasses
import pathlib

import numpy as np

from experiments.cli import main
from gaea_jax.spaces import get_space
from gaea_jax.train import RetrainConfig, SearchConfig, retrain, search

SEARCH = SearchConfig(dataset="digits", cells=1, epochs=25)
RETRAIN = RetrainConfig(genotype="", dataset="digits", cells=1, epochs=12, batch_size=64, preset="nas_bench_201_short")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags.

    Attributes:
      out: folder of the three runs.
      seed: decides the searches, the random cell and the trainings.
    """

    out: pathlib.Path = pathlib.Path("runs/demo")
    seed: int = 0


def run(flags: Flags) -> None:
    """Searches, trains twice and prints both test accuracies."""
    folder = flags.out / "search"
    found = search(dataclasses.replace(SEARCH, seed=flags.seed, out=folder, resume=(folder / "config.json").exists()))
    cells = {
        "derived": found.genotype,
        "random": get_space(SEARCH.space).random(np.random.default_rng(flags.seed)),
    }
    print(f"Test accuracy on digits after {RETRAIN.epochs} epochs from scratch:")
    for name, genotype in cells.items():
        folder = flags.out / name
        config = dataclasses.replace(
            RETRAIN, genotype=str(genotype), seed=flags.seed, out=folder, resume=(folder / "config.json").exists()
        )
        result = retrain(config)
        print(f"  {name:>7} cell  {result.test_accuracy:.2f} %  {result.size.parameters:,} parameters  {genotype}")
    print(f"Genotype, metrics and plots are in {flags.out}/search")


if __name__ == "__main__":
    main(run, Flags, "Search on digits, then train the derived cell and a random one.")
