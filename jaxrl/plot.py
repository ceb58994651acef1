"""Figures: learning curves over seeds, returns over models, laws of the return, posteriors of a gradient.

matplotlib is imported where it is used and never through pyplot: no global state, no window, any thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    _frame(axes)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, title=_caption(statistic, counts))
    _save(figure, path)


def heat_map(
    path: str | Path,
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    title: str | None = None,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draw values over two parameters into a file, whose suffix names the format: a cell about each point of a grid.

    - `x`: [X], the values of one parameter, increasing; `y`: [Y], those of the other.
    - `values`: [X, Y], such as `evaluate.grid(...).means.reshape(X, Y)`; what is not finite stays white.
    - `label`: what the values are, beside their scale.
    - `marks`: points (x, y) by their label, such as the nominal model and the worst one.

    Raises ValueError for shapes that do not fit, and for parameters that do not increase.
    """
    from matplotlib.figure import Figure

    x, y, values = np.asarray(x, float), np.asarray(y, float), np.asarray(values, float)
    if x.ndim != 1 or y.ndim != 1 or values.shape != x.shape + y.shape or values.size == 0:
        raise ValueError(
            f"values has shape {values.shape}, x {x.shape} and y {y.shape}, expected [X, Y], [X] and [Y], with at "
            f"least one of each; the means over a grid [X * Y] need a reshape(X, Y)"
        )
    if not (np.all(np.diff(x) > 0) and np.all(np.diff(y) > 0)):
        raise ValueError(f"x and y must increase, got x = {x} and y = {y}")
    figure = Figure(figsize=(5.6, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    cells = axes.pcolormesh(x, y, np.ma.masked_invalid(values.T), shading="nearest", cmap="viridis")
    figure.colorbar(cells, label=label)
    for (name, (at_x, at_y)), marker in zip((marks or {}).items(), itertools.cycle("oX^sD"), strict=False):
        style: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 8, "linestyle": "none"}
        axes.plot(at_x, at_y, marker=marker, label=name, clip_on=False, zorder=3, **style)
    if marks:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    _save(figure, path)


def profiles(
    path: str | Path,
    series: Mapping[str, ArrayLike],
    *,
    ylabel: str,
    title: str | None = None,
    statistic: stats.Statistic = stats.mean,
) -> None:
    """Draw how good policies are from their worst model to their best into a file.

    `series` maps a label to the mean returns in each model, [seeds, models] or [models], in any order, such as
    `evaluate.grid(...).means`: each seed has its own order. A line is the `statistic` over seeds, and the band about it
    a 95 % bootstrap interval; its left end is the worst case of the grid, which noise biases downwards.

    Raises ValueError for an empty `series` and for other shapes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    if not series:
        raise ValueError("series is empty, expected {label: mean returns [seeds, models]}")
    drawn = {}
    for label, means in series.items():
        drawn[label] = np.sort(np.atleast_2d(np.asarray(means, float)), axis=-1)
        if drawn[label].ndim != 2 or 0 in drawn[label].shape:
            raise ValueError(f"series[{label!r}] has shape {np.shape(means)}, expected [seeds, models] or [models]")
    counts = {len(means) for means in drawn.values()}
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (label, means) in enumerate(drawn.items()):
        colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        name = label if len(counts) == 1 else f"{label} ({_seeds(len(means))})"
        share = (np.arange(means.shape[1]) + 0.5) / means.shape[1]
        axes.plot(share, statistic(means, axis=0), color=colour, linestyle=dashes, label=name)
        if len(means) > 1:
            band = stats.bootstrap_interval(means, statistic)
            axes.fill_between(share, *band, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="models, from the worst to the best", ylabel=ylabel, title=title or "", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    _frame(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, title=_caption(statistic, counts))
    _save(figure, path)


def laws(
    path: str | Path,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    title: str | None = None,
    samples: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Draw distribution functions into a file: of laws that were learned, beside samples.

    `series` maps a label to atoms `[n]` and their probabilities `[n]`, such as those of a critic at one state and
    action; `samples` maps a label to numbers `[m]`, such as returns of episodes from there, drawn in grey.

    Raises ValueError if there is nothing to draw, for shapes that do not fit, and for probabilities that are negative
    or do not sum to 1.
    """
    from matplotlib.figure import Figure

    samples = samples or {}
    if not series and not samples:
        raise ValueError("series is empty, expected {label: (atoms [n], probs [n])}")
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (label, (atoms, probs)) in enumerate(series.items()):
        atoms, probs = np.asarray(atoms, float), np.asarray(probs, float)
        if atoms.ndim != 1 or atoms.shape != probs.shape or not atoms.size:
            raise ValueError(f"series[{label!r}] has shapes {atoms.shape} and {probs.shape}, expected [n] and [n]")
        if np.any(probs < 0) or abs(probs.sum() - 1) > 1e-3:
            raise ValueError(
                f"series[{label!r}] has probabilities that sum to {probs.sum():.6g}, expected 1, none below 0"
            )
        dashes = DASHES[i % len(DASHES)]
        axes.ecdf(atoms, weights=probs, color=COLOURS[i % len(COLOURS)], linestyle=dashes, label=label)
    for i, (label, values) in enumerate(samples.items()):
        values = np.asarray(values, float).ravel()
        if not values.size or not np.all(np.isfinite(values)):
            raise ValueError(f"samples[{label!r}] has {values.size} numbers, expected at least one, all of them finite")
        dashes = REFERENCE_DASHES[i % len(REFERENCE_DASHES)]
        axes.ecdf(values, color="0.4", linestyle=dashes, zorder=1, label=f"{label} ({len(values)})")
    axes.set(xlabel=xlabel, ylabel="probability of at most so much", title=title or "", ylim=(0, 1.02))
    _frame(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def ellipses(
    path: str | Path,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    level: float = 0.9,
    points: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Draw normal laws in the plane as the ellipses that hold a share `level` of each, into a file.

        (x - mean)^T covariance^-1 (x - mean) <= -2 log(1 - level)

    `series` maps a label to a mean `[2]` and a covariance `[2, 2]`: two coordinates of a posterior of the policy
    gradient, say. `points` maps a label to points `[2]` or `[n, 2]`, such as the gradient that is known, or estimates.

    Raises ValueError for an empty `series`, other shapes, a level outside (0, 1), and a covariance that is not
    symmetric and positive semidefinite.
    """
    from matplotlib.figure import Figure

    if not series:
        raise ValueError("series is empty, expected {label: (mean [2], covariance [2, 2])}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    turn = np.linspace(0, 2 * np.pi, 361)
    circle = np.sqrt(-2 * np.log(1 - level)) * np.stack([np.cos(turn), np.sin(turn)])
    figure = Figure(figsize=(5.6, 5.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (label, (mean, covariance)) in enumerate(series.items()):
        mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
        if mean.shape != (2,) or covariance.shape != (2, 2):
            raise ValueError(
                f"series[{label!r}] has shapes {mean.shape} and {covariance.shape}, expected [2] and [2, 2]"
            )
        values, vectors = np.linalg.eigh(covariance)
        rounding = 1e-6 * max(values.max(), 0.0)
        if not np.allclose(covariance, covariance.T, atol=rounding) or values.min() < -rounding:
            raise ValueError(f"series[{label!r}] has a covariance that is not symmetric and positive semidefinite")
        line = mean[:, None] + (vectors * np.sqrt(np.maximum(values, 0))) @ circle
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(*line, color=colour, linestyle=DASHES[i % len(DASHES)], label=label)
        axes.plot(*mean, color=colour, marker="+", markersize=8)
    for label, at in (points or {}).items():
        at = np.asarray(at, float).reshape(-1, 2)
        axes.plot(*at.T, color="0.3", marker="x" if len(at) == 1 else ".", linestyle="", markersize=6, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title or "")
    _frame(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, title=f"{100 * level:g} % of each law")
    _save(figure, path)


def _frame(axes: Any) -> None:
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: str | Path) -> None:
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
