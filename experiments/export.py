"""Makes a table of the official NATS-Bench files.

python -m experiments.export --file NATS-tss-v1_0-3ffb9-simple --out nb201.npz
"""

import dataclasses
import pathlib
import sys

from experiments.cli import main
from gaea_jax.benchmarks import load_table
from gaea_jax.benchmarks.export import check_new, export_nats, open_nats, write_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags.

    Attributes:
      file: NATS-tss-v1_0-3ffb9.pickle.pbz2, or the unpacked folder NATS-tss-v1_0-3ffb9-simple.
      out: the .npz file to write, for the flag --table of the other scripts.
    """

    file: pathlib.Path
    out: pathlib.Path


def run(flags: Flags) -> None:
    """Exports, and prints the best accuracies, by which a table is known."""
    check_new(flags.out)
    write_table(export_nats(open_nats(flags.file)), flags.out)
    table = load_table(flags.out)
    for dataset in dict.fromkeys(dataset for dataset, _, _ in table.columns):
        genotype, accuracy = table.oracle(dataset)
        print(f"{dataset}: best test {accuracy:.2f} %  {genotype}")
    print(f"written to {flags.out}", file=sys.stderr)


if __name__ == "__main__":
    main(run, Flags, "Make a table of the official NATS-Bench files.")
