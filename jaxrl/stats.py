"""Statistics of scores over seeds and tasks, on the host, in NumPy: what a figure or a table may claim.

A score is one number for each run, say its final return; scores are `[seeds]`, `[seeds, points]` along a curve, or
`[seeds, tasks]` over a suite. NaN is never dropped: a score that is missing makes the statistic NaN.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
Statistic = Callable[..., Floats]  # (scores, axis) -> scores without that axis


def mean(scores: ArrayLike, axis: int | None = 0) -> Floats:
    """Return the mean along an axis, or of all scores where `axis` is None."""
    return np.mean(np.asarray(scores, float), axis)


def interquartile_mean(scores: ArrayLike, axis: int | None = 0) -> Floats:
    """Return the mean of the middle half along an axis, or of all scores where `axis` is None.

    The lowest and the highest `floor(n / 4)` of n scores are left out: one lucky or one broken seed in four or more
    does not move it. Of three scores and fewer it is the mean.

    >>> print(interquartile_mean([0.0, 1.0, 3.0, 100.0]))
    2.0
    """
    scores = np.asarray(scores, float)
    if axis is None:
        scores, axis = scores.ravel(), 0
    ordered = np.moveaxis(np.sort(scores, axis), axis, 0)  # NaN comes last
    cut = len(ordered) // 4
    middle = np.mean(ordered[cut : len(ordered) - cut], axis=0)
    return np.where(np.isnan(ordered[-1]), np.nan, middle)[()]


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    stratified: bool = False,
) -> tuple[Floats, Floats]:
    """Percentile bootstrap interval of a statistic over the seeds: its low and its high end.

    Seeds, the leading axis, are drawn with replacement and `statistic(drawn, axis)` is taken of each draw; the ends
    are the `(1 - confidence) / 2` quantiles of these, from below and from above. For scores `[seeds, points]` every
    point has its own interval, `[points]`, from the same draws. `stratified=True` takes scores `[seeds, tasks]`, draws
    the seeds of each task apart, and gives the interval, `[]`, of the statistic over all of them. Of few seeds the
    interval is too short, and of one it has no width.

    Raises ValueError for scores without seeds, a confidence outside (0, 1), and scores without tasks when stratified.

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"; stratified: Agarwal et al. 2021, 4.1.

    >>> low, high = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0], mean)
    >>> print(low, high)
    1.8 4.2
    """
    scores = np.asarray(scores, float)
    if scores.ndim == 0 or scores.size == 0:
        raise ValueError(f"scores has shape {scores.shape}, expected [seeds, ...] with at least one seed")
    if stratified and scores.ndim != 2:
        raise ValueError(f"scores has shape {scores.shape}, expected [seeds, tasks] for stratified=True")
    _check_confidence(confidence)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(scores), (resamples, *(scores.shape if stratified else scores.shape[:1])))
    if stratified:
        drawn = np.take_along_axis(scores[None], draws, axis=1)
        values = statistic(drawn.reshape(resamples, -1), axis=1)
    else:
        blocks = np.array_split(draws, 1 + resamples * scores.size // 2**22)  # of 32 MiB at most, for long curves
        values = np.concatenate([statistic(scores[block], axis=1) for block in blocks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Return the share of runs whose score is above each threshold, `[thresholds]`.

        F(tau) = mean over tasks of the mean over seeds of 1[score > tau]

    Scores are `[seeds]` or `[seeds, tasks]`, thresholds `[thresholds]`: normalise scores over tasks before. One profile
    that lies above another says that its scores are larger at every quantile. Missing scores (NaN) are above nothing.

    Raises ValueError for scores of other axes.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", eq. (2).

    >>> print(performance_profile([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 2.5, 9.0]))
    [1.  0.5 0.5 0. ]
    """
    scores, thresholds = _scores("scores", scores), np.asarray(thresholds, float)
    return np.mean(scores.reshape(1, -1) > thresholds.reshape(-1, 1), axis=1)


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Return how likely a run of one algorithm scores more than a run of another: the mean over tasks of

        P(X > Y) + P(X = Y) / 2 = 1/(n m) sum_ij ( 1[x_i > y_j] + 1[x_i = y_j] / 2 ).

    Scores are `[seeds]` or `[seeds, tasks]`, the same tasks in both; numbers of seeds may differ. It says how often,
    and not by how much. NaN where a score is missing.

    Raises ValueError for scores of other axes and for other numbers of tasks.

    Source: Agarwal et al. 2021, eq. (3); the statistic is Mann and Whitney's U, divided by n m.

    >>> probability_of_improvement([1.0, 2.0, 3.0], [0.0, 2.0])
    0.75
    """
    scores, others = _scores("scores", scores), _scores("others", others)
    if scores.shape[1] != others.shape[1]:
        raise ValueError(
            f"scores has {scores.shape[1]} tasks and others has {others.shape[1]}, expected the same tasks"
        )
    if np.isnan(scores).any() or np.isnan(others).any():
        return float("nan")
    return float(np.mean((1 + np.sign(scores[:, None] - others[None])) / 2))


def improvement_interval(
    scores: ArrayLike, others: ArrayLike, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `probability_of_improvement`: its low and its high end.

    The seeds of each task and of each algorithm are drawn with replacement apart from all others.

    Raises ValueError as `probability_of_improvement` does, and for a confidence outside (0, 1).
    """
    scores, others = _scores("scores", scores), _scores("others", others)
    _check_confidence(confidence)
    rng = np.random.default_rng(seed)

    def drawn(x: Floats) -> Floats:
        return np.take_along_axis(x, rng.integers(0, len(x), x.shape), axis=0)

    values = [probability_of_improvement(drawn(scores), drawn(others)) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _scores(name: str, scores: ArrayLike) -> Floats:
    """Scores as `[seeds, tasks]`; raise ValueError unless they are that, or `[seeds]`."""
    scores = np.asarray(scores, float)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"{name} has shape {scores.shape}, expected [seeds] or [seeds, tasks] with at least one seed")
    return scores.reshape(len(scores), -1)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 95 % is 0.95")
