"""Searches a space and writes what was found: ``python -m experiments.search --dataset digits --steps 500``."""

import dataclasses
import json
import pathlib
import statistics
import sys
from typing import Annotated, Any

import tyro

from experiments.cli import main
from gaea_jax.train import SearchConfig, SearchResult, search, search_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SearchConfig):
    """The flags: a `SearchConfig`, whose cells the DARTS family calls layers, and how many seeds to run.

    Attributes:
      seeds: run this many searches at once, of seeds from `seed` up, each with a folder of its own below `out`, and sum
        them up; see `search_seeds`.
    """

    cells: Annotated[int, tyro.conf.arg(aliases=["--layers"])] = SearchConfig.cells
    seeds: int | None = None


def run(flags: Flags) -> None:
    """Runs one search, or one for each seed."""
    fields = {field.name: getattr(flags, field.name) for field in dataclasses.fields(SearchConfig)}
    if flags.out is None:
        fields["out"] = pathlib.Path("runs", "-".join(("search", flags.space, flags.method, flags.dataset)))
    config = SearchConfig(**fields)
    if flags.seeds is None:
        show(search(config))
        return
    results = search_seeds(config, flags.seeds)
    for result in results:
        show(result)
    summary = sum_up(results)
    (pathlib.Path(fields["out"]) / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    for dataset, found in summary["table"].items():
        print(f"{dataset}: test {found['mean']:.2f} ± {found['std']:.2f} % over {flags.seeds} seeds")


def show(result: SearchResult) -> None:
    """Prints the derived cell and, where a table was given, how good it truly is."""
    print(result.genotype)
    for dataset, found in (result.table or {}).items():
        print(f"{dataset}: test {found['test']:.2f} %, rank {found['rank']:,}, best {found['oracle']:.2f} %")
    print(f"written to {result.config.out}", file=sys.stderr)


def sum_up(results: list[SearchResult]) -> dict[str, Any]:
    """Mean and population standard deviation of the true test accuracies, as the GAEA paper reports them."""
    table: dict[str, dict[str, float]] = {}
    for dataset in results[0].table or {}:
        found = [result.table[dataset]["test"] for result in results if result.table]
        table[dataset] = {"mean": statistics.fmean(found), "std": statistics.pstdev(found)}
    return {"table": table, "runs": [result.to_json() for result in results]}


if __name__ == "__main__":
    main(run, Flags, "Search a space by gradient and derive a genotype.")
