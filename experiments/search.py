"""Searches a space and writes what was found: ``python -m experiments.search --dataset digits --steps 500``."""

import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
from typing import Annotated, Any

import tyro

from experiments.cli import Processes, main
from gaea_jax.errors import UsageError
from gaea_jax.processes import is_first
from gaea_jax.train import SearchConfig, SearchResult, search, sweep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(SearchConfig, Processes):
    """The flags: a `SearchConfig`, whose cells the DARTS family calls layers, and what to run of it at once.

    Attributes:
      seeds: run this many searches at once, of seeds from `seed` up, each with a folder of its own below `out`, and sum
        them up; see `sweep`.
      learning_rates: the same for each of these peaks, in place of `learning_rate`.
      arch_learning_rates: the same for each of these, in place of `arch_learning_rate`.
    """

    cells: Annotated[int, tyro.conf.arg(aliases=["--layers"])] = SearchConfig.cells
    seeds: int | None = None
    learning_rates: tuple[float, ...] = ()
    arch_learning_rates: tuple[float, ...] = ()


def run(flags: Flags) -> None:
    """Runs one search, or all of a sweep."""
    flags.join()
    fields = {field.name: getattr(flags, field.name) for field in dataclasses.fields(SearchConfig)}
    if flags.out is None:
        fields["out"] = pathlib.Path("runs", "-".join(("search", flags.space, flags.method, flags.dataset)))
    config = SearchConfig(**fields)
    if flags.seeds is None and not flags.learning_rates and not flags.arch_learning_rates:
        result = search(config)
        if is_first():
            show(result)
        return
    results = sweep(swept(config, flags))
    for result in results:
        show(result)
    groups = [sum_up(list(group)) for _, group in itertools.groupby(results, key=_rates)]
    summary = {"groups": groups, "runs": [result.to_json() for result in results]}
    (pathlib.Path(fields["out"]) / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    for group in groups:
        print(line(group, flags))


def swept(config: SearchConfig, flags: Flags) -> list[SearchConfig]:
    """The configurations of a sweep: all seeds of each pair of learning rates."""
    seeds = 1 if flags.seeds is None else flags.seeds
    if seeds < 1:
        raise UsageError("seeds", f"must be more than 0, not {seeds}")
    for name in ("learning_rates", "arch_learning_rates"):
        if len(set(getattr(flags, name))) < len(getattr(flags, name)):
            raise UsageError(name, "has a value twice")
    return [
        dataclasses.replace(config, learning_rate=rate, arch_learning_rate=arch_rate, seed=config.seed + number)
        for rate in flags.learning_rates or (config.learning_rate,)
        for arch_rate in flags.arch_learning_rates or (config.arch_learning_rate,)
        for number in range(seeds)
    ]


def _rates(result: SearchResult) -> tuple[float, float | None]:
    return result.config.learning_rate, result.config.arch_learning_rate


def show(result: SearchResult) -> None:
    """Prints the derived cell and, where a table was given, how good it truly is."""
    print(result.genotype)
    for dataset, found in (result.table or {}).items():
        if not found:
            print(f"{dataset}: the table does not have this cell")
            continue
        metric = found["metric"]
        of = f" of the {found['cells']:,} in the table" if "cells" in found else ""
        print(f"{dataset}: {metric} {found[metric]:.2f} %, rank {found['rank']:,}{of}, best {found['oracle']:.2f} %")
    print(f"written to {result.config.out}", file=sys.stderr)


def sum_up(results: list[SearchResult]) -> dict[str, Any]:
    """What the seeds of one pair of learning rates found.

    Returns:
      ``learning_rate``, ``arch_learning_rate`` (None for the method's own) and ``seeds``; and, each with ``mean`` and
      population standard deviation, ``std``, as the GAEA paper reports them: of the last report ``loss``, ``accuracy``
      and, where images are held out, ``valid_accuracy``; and by data set ``table``, the true accuracy and its
      ``metric``, over those ``known`` of the cells that the table has.
    """
    rate, arch_rate = _rates(results[0])
    last = [result.records[-1] for result in results]
    names = [name for name in ("loss", "accuracy", "valid_accuracy") if name in last[0]]
    tables = [result.table or {} for result in results]
    found = {name: [table[name] for table in tables if table[name]] for name in tables[0]}
    metrics = {name: entries[0]["metric"] for name, entries in found.items() if entries}
    return {
        "learning_rate": rate,
        "arch_learning_rate": arch_rate,
        "seeds": [result.config.seed for result in results],
        **{name: spread([record[name] for record in last]) for name in names},
        "table": {
            name: {"metric": metric, "known": len(found[name]), **spread([entry[metric] for entry in found[name]])}
            for name, metric in metrics.items()
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean and population standard deviation."""
    return {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}


def line(group: dict[str, Any], flags: Flags) -> str:
    """Sums up a group of a sweep for a reader."""
    names = [name for name in ("learning_rate", "arch_learning_rate") if getattr(flags, f"{name}s")]
    of = "".join(f"{name.replace('_', ' ')} {group[name]:g}, " for name in names)
    found = {f"{name}: {accuracy['metric']}": accuracy for name, accuracy in group["table"].items()}
    found = found or {name.replace("_", " "): group[name] for name in ("accuracy", "valid_accuracy") if name in group}
    count = len(group["seeds"])
    texts = (
        f"{name} {value['mean']:.2f} ± {value['std']:.2f} %"
        + (f" ({value['known']} of {count} cells in the table)" if value.get("known", count) < count else "")
        for name, value in found.items()
    )
    return f"{of}{count} seed{'s' * (count > 1)}: {', '.join(texts)}"


if __name__ == "__main__":
    main(run, Flags, "Search a space by gradient and derive a genotype.")
