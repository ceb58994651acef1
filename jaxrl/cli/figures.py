"""The figures of a report, beside learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxrl.cli import laws, runs

COLUMNS = 3


def metrics(path: Path, train: dict[str, np.ndarray]) -> None:
    """Every metric [seeds, P] of a record against steps [P]: a thin line for each seed, a thick one for their mean."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from jaxrl import plot

    names = [name for name, values in sorted(train.items()) if values.ndim == 2 and name != "seconds"]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(9.6, 2.1 * rows), dpi=120, layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names, strict=False):
        values = train[name]
        marker = "." if values.shape[1] == 1 else ""
        thin, thick = {"linewidth": 0.6, "alpha": 0.4}, {"linewidth": 1.6}
        for line, look in [*((seed, thin) for seed in values), (_mean(values), thick)]:
            there = np.isfinite(line)  # episodes do not end at every point
            axes.plot(train["steps"][there], line[there], color=plot.COLOURS[0], marker=marker, **look)
        axes.set_title(_plain(name), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(color="0.94", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    with runs.whole(path) as file:
        figure.savefig(file)


def distribution(path: Path, returns: dict[str, np.ndarray]) -> None:
    """The distribution functions of returns [seeds, episodes], over the episodes of all seeds."""
    from matplotlib.figure import Figure

    from jaxrl import plot

    figure = Figure(figsize=(6.4, 3.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, values) in enumerate(returns.items()):
        finite = values[np.isfinite(values)]
        if len(finite):
            axes.ecdf(finite, color=plot.COLOURS[i], linestyle=plot.DASHES[i], label=f"{name} ({len(finite)} episodes)")
    axes.set(xlabel="return of an episode", ylabel="share of episodes", ylim=(0, 1.02))
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with runs.whole(path) as file:
        figure.savefig(file)


def law(path: Path, quantiles: np.ndarray) -> None:
    """The distribution function of each seed, from its quantiles [seeds, laws.LEVELS]."""
    from matplotlib.figure import Figure

    from jaxrl import plot

    figure = Figure(figsize=(6.4, 3.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row in quantiles:
        axes.plot(row, laws.LEVELS, color=plot.COLOURS[0], linewidth=1, alpha=max(0.2, 1 / len(quantiles)))
    axes.set(xlabel="return, as the critics see it", ylabel="probability", ylim=(0, 1.02))
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    with runs.whole(path) as file:
        figure.savefig(file)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over seeds [seeds, P] that have a number; NaN where none has."""
    finite = np.isfinite(values)
    count = finite.sum(0)
    return np.where(count > 0, np.where(finite, values, 0).sum(0) / np.maximum(count, 1), np.nan)


def _plain(name: str) -> str:
    return name.replace("$", r"\$")
