"""Makes a table of the official files of a benchmark.

python -m experiments.export --file NATS-tss-v1_0-3ffb9-simple --out nb201.npz
python -m experiments.export --file nasbench_full.tfrecord --out nb101.npz
"""

import dataclasses
import pathlib
import sys

from experiments.cli import main
from gaea_jax.benchmarks import Signal, load_benchmark, load_table
from gaea_jax.benchmarks.export import check_new, export_nats, open_nats, write_table
from gaea_jax.benchmarks.export_101 import export_nas_bench_101


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags.

    Attributes:
      file: NATS-tss-v1_0-3ffb9.pickle.pbz2, or the unpacked folder NATS-tss-v1_0-3ffb9-simple; or of NAS-Bench-101
        nasbench_full.tfrecord or nasbench_only108.tfrecord.
      out: the .npz file to write, for the flag --table of the other scripts.
    """

    file: pathlib.Path
    out: pathlib.Path


def run(flags: Flags) -> None:
    """Exports, and prints the best accuracies, by which a table is known."""
    check_new(flags.out)
    (nas_bench_101 if flags.file.suffix == ".tfrecord" else nas_bench_201)(flags)
    print(f"written to {flags.out}", file=sys.stderr)


def nas_bench_201(flags: Flags) -> None:
    """The table of NAS-Bench-201."""
    write_table(export_nats(open_nats(flags.file)), flags.out)
    table = load_table(flags.out)
    for dataset in dict.fromkeys(dataset for dataset, _, _ in table.columns):
        genotype, accuracy = table.oracle(dataset)
        print(f"{dataset}: best test {accuracy:.2f} %  {genotype}")


def nas_bench_101(flags: Flags) -> None:
    """The table of NAS-Bench-101."""
    arrays = export_nas_bench_101(flags.file)
    signal = Signal(metric="test", epochs=int(arrays["epochs"].max()))
    write_table(arrays, flags.out, lambda path: load_benchmark("nas_bench_101", path, signal))
    benchmark = load_benchmark("nas_bench_101", flags.out, signal)
    best = int(benchmark.scores.argmax())
    print(f"{len(benchmark.scores):,} cells, best test {benchmark.scores[best]:.2f} %  {benchmark.text(best)}")


if __name__ == "__main__":
    main(run, Flags, "Make a table of the official files of a benchmark.")
