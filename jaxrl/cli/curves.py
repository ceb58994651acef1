"""`jaxrl plot`: learning curves of one or more runs in one figure."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxrl.cli import options, runs
from jaxrl.cli.errors import UsageError, unknown


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw learning curves of one or more runs: the interquartile mean over seeds, with its bootstrap interval."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]  # their directories
    metric: str = "episode_return"  # any of metrics.jsonl; greedy and sampled are those of the evaluations
    out: Path | None = None  # .png, .pdf or .svg; None: RUN/figures/METRIC.png, or METRIC.png for several runs


def run(arguments: list[str]) -> None:
    """Draw, and say where."""
    asked = options.parse(Plot, arguments, "plot")
    if not asked.runs:
        raise UsageError("plot needs the directory of a run: jaxrl plot RUN...")
    found = [runs.find(path) for path in asked.runs]
    series = {label: curve(each, asked.metric) for label, each in zip(labels(asked.runs), found, strict=True)}
    file = asked.metric.replace("/", "-") + ".png"
    path = asked.out or (found[0].path / "figures" / file if len(found) == 1 else Path(file))
    environments = {each.settings["environment"] for each in found}
    draw(path, series, asked.metric, environments.pop() if len(environments) == 1 else None)
    print(f"wrote {path}")


def curve(found: runs.Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [P] and a metric [seeds, P] of a run. Raises ValueError if it has no such metric."""
    if metric in ("greedy", "sampled"):
        arrays = runs.evaluations(found)
        if arrays:
            return arrays["steps"], arrays[metric].mean(-1)
        raise ValueError(f"{found.path} has no evaluation yet")
    arrays = runs.record(found)
    if not len(arrays.get("steps", ())):
        raise ValueError(f"{found.path} has no point in its record yet")
    if metric not in arrays or metric == "steps":
        known = [*sorted(set(arrays) - {"steps"}), "greedy", "sampled"]
        raise UsageError(unknown("metric", metric, known) + f" {found.path} has {', '.join(known)}")
    return arrays["steps"], arrays[metric]


def labels(paths: tuple[Path, ...]) -> list[str]:
    """A name for each run: its directory, with as much before it as tells it from the others."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UsageError("a run is named twice")
    depth = next(n for n in range(1, 1 + max(map(len, parts))) if len({each[-n:] for each in parts}) == len(parts))
    return ["/".join(each[-depth:]).replace("$", r"\$") for each in parts]


def draw(path: Path, series: dict[str, tuple[np.ndarray, np.ndarray]], metric: str, title: str | None) -> None:
    """`plot.curves` into a file, written whole or not at all."""
    from jaxrl import plot

    ylabel = {"episode_return": "return of training episodes", "greedy": "return without sampling"}.get(metric, metric)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out {path} has the suffix {path.suffix!r}, expected .png, .pdf or .svg")
    title = title and title.replace("$", r"\$")
    with runs.whole(path) as file:
        plot.curves(file, series, xlabel="environment steps", ylabel=ylabel.replace("$", r"\$"), title=title)
