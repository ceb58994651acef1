"""Figures: learning curves over seeds, with what the line and the band are written beside them.

matplotlib is imported where it is used and never through pyplot: no global state, no window, any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxrl import stats

# Okabe and Ito's palette, which any colour vision tells apart, without its yellow; dashes for print in grey. Seven
# colours and five dashes: 35 different lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (6, 2)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
REFERENCE_DASHES = ((0, (10, 5)), (0, (1, 4)), (0, (10, 4, 1, 4)))


def curves(
    path: str | Path,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    references: Mapping[str, float] | None = None,
    statistic: stats.Statistic = stats.interquartile_mean,
) -> None:
    """Draw learning curves into a file, whose suffix names the format (.png, .pdf, .svg).

    `series` maps a label to steps `[points]` and returns `[seeds, points]`: a line at the `statistic` over seeds, and
    about it a band, its 95 % bootstrap interval. `references` maps a label to the level of a horizontal line, such as
    the random policy, or the threshold at which a task counts as solved.

    A return that is not finite says that no episode has ended since the point before: a seed keeps its last return,
    a curve begins where every seed has one, and a seed that never has one is left out and not counted.

    Raises ValueError for an empty `series`, shapes that do not fit, and steps that do not increase.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if not series:
        raise ValueError("series is empty, expected {label: (steps [points], returns [seeds, points])}")
    checked = {label: _begun(*_checked(label, *data)) for label, data in series.items()}
    counts = {len(returns) for _, returns in checked.values()}
    drawn = {  # by what the legend says
        label if len(counts) == 1 else f"{label} ({_seeds(len(data[1]))})": data for label, data in checked.items()
    }
    references = references or {}
    columns = max(1, 80 // (8 + max(map(len, [*drawn, *references]))))  # of the legend, below the axes
    rows = -(-len([*drawn, *references]) // columns)

    figure = Figure(figsize=(6.4, 4.0 + 0.22 * rows), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (label, (steps, returns)) in enumerate(drawn.items()):
        colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        line = statistic(returns, axis=0) if len(returns) else steps
        axes.plot(steps, line, color=colour, linestyle=dashes, marker="o" if len(steps) == 1 else "", label=label)
        if len(returns) > 1:
            band = stats.bootstrap_interval(returns, statistic)
            axes.fill_between(steps, *band, color=colour, alpha=0.2, linewidth=0)
    for i, (label, level) in enumerate(references.items()):
        dashes = REFERENCE_DASHES[i % len(REFERENCE_DASHES)]
        axes.axhline(level, color="0.4", linewidth=1, linestyle=dashes, zorder=1, label=label)

    axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, title=_caption(statistic, counts))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")


def _caption(statistic: stats.Statistic, counts: set[int]) -> str:
    """Say what the line and the band are."""
    line = f"line: {getattr(statistic, '__name__', 'statistic').replace('_', ' ')}"
    seeds = f" over {_seeds(*counts)}" if len(counts) == 1 else " over seeds"
    return line + seeds + ("; band: 95 % bootstrap interval" if max(counts) > 1 else "")


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _checked(label: str, steps: ArrayLike, returns: ArrayLike) -> tuple[stats.Floats, stats.Floats]:
    """Return both as float arrays; raise ValueError unless they are `[points]`, increasing, and `[seeds, points]`."""
    steps, returns = np.asarray(steps, float), np.asarray(returns, float)
    if steps.ndim != 1 or returns.shape[1:] != steps.shape or 0 in returns.shape:
        cause = "; are its axes swapped?" if returns.shape[:1] == steps.shape else ""
        raise ValueError(
            f"series[{label!r}] has steps of shape {steps.shape} and returns of shape {returns.shape}, expected "
            f"[points] and [seeds, points], with at least one of each{cause}"
        )
    if not (np.all(np.isfinite(steps)) and np.all(np.diff(steps) > 0)):
        raise ValueError(f"series[{label!r}] has steps that do not increase; sort them, and drop what was logged twice")
    return steps, returns


def _begun(steps: stats.Floats, returns: stats.Floats) -> tuple[stats.Floats, stats.Floats]:
    """Return what is drawn: seeds with a return, each held until its next one, from where every one has begun."""
    returns = returns[np.isfinite(returns).any(axis=1)]
    latest = np.maximum.accumulate(np.where(np.isfinite(returns), np.arange(len(steps)), -1), axis=1)
    begun = (latest >= 0).all(axis=0) & (len(returns) > 0)
    return steps[begun], np.take_along_axis(returns, latest, axis=1)[:, begun]
