"""Draws runs side by side: ``python -m experiments.compare runs/gaea runs/darts --out runs/compare``.

Runs that differ only in their seed are a group: one line, the mean over its seeds, and a band of one population
standard deviation, as the GAEA paper reports them. The seeds of a group need not have reported at the same steps: each
is read off at the steps of all, from where the last of them begins to where the shortest ends. Between two reports,
entropy and training accuracy run straight, while the derived cell, and with it true accuracy and rank, stays that of
the report before; where the table of one of the seeds does not have its cell, there is no mean. The time of a step is
its mean over the seeds.
"""

import dataclasses
import functools
import json
import pathlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from experiments.cli import main
from gaea_jax import plot
from gaea_jax.errors import UsageError
from gaea_jax.metrics import read_metrics
from gaea_jax.spaces import get_space, operation_entropy

Record = Mapping[str, Any]
Read = Callable[[Record], float | None]
PICTURES = (".png", ".pdf")
LONGEST_VALUE = 40  # characters of a value, such as a genotype, in a label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags.

    Attributes:
      run: folders of runs, finished or not, or folders that hold one for each seed.
      out: folder that gets compare.png and compare.json; or the name of the picture, which ends in .png or .pdf.
    """

    run: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    out: pathlib.Path = pathlib.Path("runs/compare")


class Run(NamedTuple):
    """What the folder of a run says.

    Attributes:
      path: the folder.
      setting: what decides its numbers besides the seed, by flag.
      seed: its seed.
      records: its reports, of a search with ``entropy`` as the mean over the choices of operations.
      result: its ``result.json``; empty for a run that has not finished.
    """

    path: pathlib.Path
    setting: dict[str, Any]
    seed: int
    records: list[dict[str, Any]]
    result: dict[str, Any]


def run(flags: Flags) -> None:
    """Reads the runs, prints their final numbers and writes the comparison."""
    runs = [read_run(path) for path in find_runs(flags.run)]
    compared = quantities(runs)
    groups = summarise(group(runs), compared)
    print("\n".join(lines(groups)))
    panels = [panel for panel in compared if any(panel.curve in one["curves"] for one in groups)]
    if not panels:
        raise UsageError("run", "wants runs that report entropy, accuracy or the truth of a table")
    picture = flags.out if flags.out.suffix in PICTURES else flags.out / "compare.png"
    try:
        plot.comparison(groups, panels, picture)
        picture.with_suffix(".json").write_text(json.dumps({"groups": groups}, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError("out", f"{picture} cannot be written ({error.strerror}); name another") from error
    print(f"written to {picture} and {picture.with_suffix('.json')}", file=sys.stderr)


def find_runs(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """The folders of runs that are meant by those named.

    Args:
      paths: folders of runs, or folders with ``seed-*`` folders, of which those are taken that have a report.

    Returns:
      Folders of runs, in the order named; seeds in increasing order.

    Raises:
      UsageError: on ``run``, if nothing is named, something twice, or something that is no folder.
    """
    found: list[pathlib.Path] = []
    for path in paths:
        if not path.is_dir():
            raise UsageError("run", f"{path} is not a folder; wants that of a run, or one with seed-* folders of runs")
        seeds = sorted(path.glob("seed-*/metrics.jsonl"), key=lambda file: (len(file.parent.name), file))
        alone = not seeds or (path / "metrics.jsonl").exists()
        found += [path] if alone else [file.parent for file in seeds]
    if not found:
        raise UsageError("run", "is missing; wants the folders of one or more runs")
    if twice := [path for path, count in Counter(path.resolve() for path in found).items() if count > 1]:
        raise UsageError("run", f"{twice[0]} is named twice; name each run once")
    return found


def read_run(path: pathlib.Path) -> Run:
    """Reads the folder of a run.

    Args:
      path: a folder with ``metrics.jsonl``, and with ``config.json`` or, if that has been left out, ``result.json``. As
        a result does not tell the whole configuration, the name of the folder without the seed then counts as a part
        of it.

    Returns:
      The run.

    Raises:
      UsageError: on ``run``, if the folder is none of a run, or of one that has not reported yet.
    """
    records = read_metrics(path / "metrics.jsonl")
    if not records or any("wall_s" not in record for record in records):
        raise UsageError("run", f"{path} wants reports with wall_s in metrics.jsonl; a run just begun has none")
    config, result = (_read_json(path / name) for name in ("config.json", "result.json"))
    if config:
        setting = dict(config.get("identity", {}))
    else:
        names = ("space", "method", "dataset", "steps", "seed")
        setting = {f"--{name}": result[name] for name in names if name in result}
        setting["--name"] = _without_seed(path)
    seed = setting.pop("--seed", None)
    if seed is None:
        raise UsageError("run", f"{path} has no seed in config.json or result.json; wants the folder of a run")
    if any("entropy" in record for record in records):
        choices = get_space(setting["--space"]).choices
        records = [{**one, "entropy": operation_entropy(choices, one["entropy"])} for one in records]
    return Run(path, setting, seed, records, result)


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Puts runs together that differ only in their seed.

    Args:
      runs: the runs.

    Returns:
      For each label the runs of a group. The label says what differs between groups, and what is left at its default
      only where that tells some of them apart.

    Raises:
      UsageError: on ``run``, if two are of the same configuration and seed.
    """
    groups: dict[str, list[Run]] = {}
    for one in runs:
        members = groups.setdefault(json.dumps(one.setting, sort_keys=True), [])
        if same := [other for other in members if other.seed == one.seed]:
            raise UsageError("run", f"{same[0].path} and {one.path} have the same configuration and seed; name one")
        members.append(one)
    settings = [members[0].setting for members in groups.values()]
    flags = dict.fromkeys(flag for setting in settings for flag in setting)
    differing = [
        flag for flag in flags if len({json.dumps(setting[flag]) for setting in settings if flag in setting}) > 1
    ]

    def label(setting: Mapping[str, Any], without_defaults: bool) -> str:
        told = [flag for flag in differing if flag in setting and not (without_defaults and setting[flag] is None)]
        return ", ".join(_in_words(flag, setting[flag]) for flag in told) or str(setting.get("--method", "all runs"))

    short, whole = ([label(setting, without) for setting in settings] for without in (True, False))
    labels = short if len(set(short)) == len(short) else whole
    often = Counter(labels)
    return {
        f"{label} ({_without_seed(members[0].path)})" if often[label] > 1 else label: members
        for label, members in zip(labels, groups.values(), strict=True)
    }


def quantities(runs: Sequence[Run]) -> dict[plot.Panel, Read]:
    """What there is to compare, in the order of the panels.

    Args:
      runs: all runs.

    Returns:
      For each quantity how it is drawn, and a function of a report that gives it, or None where the report lacks it.
    """
    tables = [
        (name, found)
        for one in runs
        for record in one.records
        for name, found in (record.get("table") or {}).items()
        if found
    ]
    metrics = dict.fromkeys((name, found.get("metric", "test")) for name, found in tables)
    ranked = dict.fromkeys((name, found.get("cells")) for name, found in tables if name == tables[0][0])
    found: dict[plot.Panel, Read] = {plot.Panel("entropy", "mean entropy (nats)"): lambda record: record.get("entropy")}
    if not all("table" in one.records[-1] for one in runs):
        found[plot.Panel("accuracy", "training accuracy (%)")] = lambda record: record.get("accuracy")
        found[plot.Panel("test_accuracy", "test accuracy (%)")] = lambda record: record.get("test_accuracy")
    for name, metric in metrics:
        label = f"{name}:\ntrue {metric} accuracy (%)"
        found[plot.Panel(f"{name} {metric}", label, held=True)] = functools.partial(_accuracy, name, metric)
    for name, cells in ranked:
        of = "" if cells is None else f" of {cells:,}"
        panel = plot.Panel(f"{name} rank{of}", f"{name}:\nrank{of} (1 is best)", held=True, rank=True)
        found[panel] = functools.partial(_rank, name, cells)
    return found


def summarise(groups: Mapping[str, Sequence[Run]], compared: Mapping[plot.Panel, Read]) -> list[dict[str, Any]]:
    """The numbers of a comparison, ready for JSON and `plot.comparison`.

    Args:
      groups: for each label the runs of a group, as from `group`.
      compared: the quantities, as from `quantities`.

    Returns:
      For each group ``label``, ``runs`` (folders), ``seeds``, ``unfinished`` (how many runs), ``final`` and ``curves``.
      ``final``, at the end of each run, has ``steps`` [fewest, most] and name to ``{"mean", "std"}``; ``curves`` has
      name to lists ``step``, ``wall_s``, ``mean`` and ``std``. What a run of a group lacks, the group lacks.

    Raises:
      UsageError: on ``run``, if the runs of a group have no steps in common.
    """
    summaries = []
    for label, runs in groups.items():
        last = [one.records[-1] for one in runs]
        final: dict[str, Any] = {
            "steps": [min(record["step"] for record in last), max(record["step"] for record in last)],
            "wall_s": _statistics(np.array([record["wall_s"] for record in last])),
        }
        curves = {}
        for panel, read in compared.items():
            # The result tells of the cell that was chosen in the end, whichever report that is from.
            ends = [read({**one.records[-1], **_known(one.result)}) for one in runs]
            if None not in ends:
                final[panel.curve] = _statistics(np.array(ends, np.float64))
            if curve := _curve(runs, read, panel.held):
                curves[panel.curve] = curve
        summaries.append(
            {
                "label": label,
                "runs": [str(one.path) for one in runs],
                "seeds": [one.seed for one in runs],
                "unfinished": sum(not one.result for one in runs),
                "final": final,
                "curves": curves,
            }
        )
    return summaries


def lines(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The final numbers as a table.

    Args:
      groups: as from `summarise`.

    Returns:
      A line a group, below a line of titles. A dash stands for what a group lacks.
    """
    names = [
        name
        for name in dict.fromkeys(name for one in groups for name in one["final"])
        if name not in ("steps", "wall_s")
    ]
    table = [["group", "seeds", *(name.replace("_", " ") for name in names), "steps", "time"]]
    for one in groups:
        final = one["final"]
        cells = [f"{final[name]['mean']:,.2f} ± {final[name]['std']:,.2f}" if name in final else "-" for name in names]
        seeds = f"{len(one['seeds'])} ({one['unfinished']} unfinished)" if one["unfinished"] else f"{len(one['seeds'])}"
        steps = "-".join(dict.fromkeys(map(str, final["steps"])))
        table.append([one["label"], seeds, *cells, steps, f"{final['wall_s']['mean']:,.0f} s"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a file of a run; nothing, if there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError("run", f"{path} cannot be read as JSON; wants the folder of a run") from error
    if not isinstance(content, dict):
        raise UsageError("run", f"{path} is not a JSON object; wants the folder of a run")
    return content


def _without_seed(path: pathlib.Path) -> str:
    """The path of a run as it would be without its seed: a/seed-1 becomes a, and a/gaea_seed1 becomes a/gaea."""
    name = re.sub(r"[-_.]?seed[-_.]?\d+", "", path.name)
    return str(path.parent / name)


def _in_words(flag: str, value: Any) -> str:
    """A setting as a part of a label; names say themselves what they are of, numbers do not."""
    name = flag.removeprefix("--").replace("-", " ")
    if flag == "--name":
        return pathlib.PurePath(value).name
    if isinstance(value, str):
        value = pathlib.PurePath(value).name if flag == "--split" else value
        return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]}…"
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"default {name}" if value is None else f"{name} {value}"


def _truth(dataset: str, record: Record) -> Record:
    """What a table says of a cell; nothing, if there is no table or it lacks the cell."""
    return (record.get("table") or {}).get(dataset) or {}


def _accuracy(dataset: str, metric: str, record: Record) -> float | None:
    found = _truth(dataset, record)
    return found.get(metric) if found.get("metric", "test") == metric else None


def _rank(dataset: str, cells: int | None, record: Record) -> float | None:
    found = _truth(dataset, record)
    return found.get("rank") if found.get("cells") == cells else None


def _known(result: Record) -> Record:
    return {name: result[name] for name in ("table", "test_accuracy") if result.get(name) is not None}


def _statistics(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std())}


def _curve(runs: Sequence[Run], read: Read, held: bool) -> dict[str, Any] | None:
    """Mean and deviation over runs at the steps that lie within all of them; None if a run lacks the quantity."""
    series = []
    for one in runs:
        points = [(record["step"], record["wall_s"], read(record)) for record in one.records]
        known = [point for point in points if point[2] is not None]
        if not known:
            return None
        # A cell that the table lacks ends the stretch of the one before; None becomes NaN.
        series.append(np.array(points if held else known, np.float64).T)
    steps = np.unique(np.concatenate([step for step, _, _ in series]))
    first, last = max(step[0] for step, _, _ in series), min(step[-1] for step, _, _ in series)
    steps = steps[(first <= steps) & (steps <= last)]
    if not len(steps):
        paths = " and ".join(str(one.path) for one in runs)
        raise UsageError("run", f"{paths} differ only in their seed and share no steps; leave out the shortest")
    times = np.stack([np.interp(steps, step, wall_s) for step, wall_s, _ in series])
    if held:
        values = np.stack([value[np.searchsorted(step, steps, side="right") - 1] for step, _, value in series])
    else:
        values = np.stack([np.interp(steps, step, value) for step, _, value in series])
    return {
        "step": steps.astype(int).tolist(),
        "wall_s": times.mean(axis=0).tolist(),
        "mean": _or_none(values.mean(axis=0)),
        "std": _or_none(values.std(axis=0)),
    }


def _or_none(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]


if __name__ == "__main__":
    main(run, Flags, "Draw runs side by side, with the seeds of each configuration as a band.")
