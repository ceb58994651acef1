"""`jaxrl.stats` against scipy and cases done by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import stats


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 17), st.sampled_from([0, 1, -1]))
def test_interquartile_mean_is_the_mean_trimmed_by_a_quarter(seed: int, n: int, axis: int) -> None:
    scores = np.random.default_rng(seed).standard_cauchy(size=(n, n))
    np.testing.assert_allclose(stats.interquartile_mean(scores, axis), scipy.stats.trim_mean(scores, 0.25, axis))
    np.testing.assert_allclose(stats.interquartile_mean(scores, None), scipy.stats.trim_mean(scores, 0.25, None))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([0.0, 0.0, 9.0], 3.0),
        ([-np.inf, 1.0, 2.0, np.inf], 1.5),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 3.0),
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -90.0], 3.5),
    ],
)
def test_interquartile_mean_by_hand(scores: list[float], expected: float) -> None:
    assert stats.interquartile_mean(scores) == expected


def test_a_missing_score_is_not_dropped() -> None:
    scores = np.ones((8, 2))
    scores[3, 1] = np.nan
    for statistic in (stats.mean, stats.interquartile_mean):
        np.testing.assert_array_equal(statistic(scores, 0), [1, np.nan])
        assert np.isnan(statistic(scores, None))
        for end in stats.bootstrap_interval(scores, statistic):
            np.testing.assert_array_equal(end, [1, np.nan])


@pytest.mark.parametrize("statistic", [stats.mean, stats.interquartile_mean])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_bootstrap_interval_is_scipys(statistic: Any, confidence: float) -> None:
    scores = np.random.default_rng(1).normal(size=(9, 4))
    low, high = stats.bootstrap_interval(scores, statistic, confidence, resamples=500, seed=7)
    theirs = scipy.stats.bootstrap(
        (scores[:, 0],), statistic, confidence_level=confidence, n_resamples=500, method="percentile", rng=7
    ).confidence_interval
    np.testing.assert_allclose((low[0], high[0]), theirs)  # the same draws
    for point in range(4):
        alone = stats.bootstrap_interval(scores[:, point], statistic, confidence, resamples=500, seed=7)
        np.testing.assert_allclose((low[point], high[point]), alone)


def test_bootstrap_interval_is_the_same_in_blocks() -> None:
    scores = np.random.default_rng(1).normal(size=(5, 900))
    whole = stats.bootstrap_interval(scores, stats.mean)  # 9e6 numbers: three blocks
    np.testing.assert_allclose(
        np.transpose(whole)[:7], np.transpose(stats.bootstrap_interval(scores[:, :7], stats.mean))
    )


def test_bootstrap_interval_of_two_seeds_by_hand() -> None:
    # The mean of a draw is 0, 1/2 or 1 with probability 1/4, 1/2 and 1/4.
    assert stats.bootstrap_interval([0.0, 1.0], stats.mean, confidence=0.9) == (0.0, 1.0)
    assert stats.bootstrap_interval([0.0, 1.0], stats.mean, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 400))  # 400 experiments of 40 seeds
    low, high = stats.bootstrap_interval(samples, stats.mean, confidence=0.9, resamples=400)
    assert 0.85 < np.mean((low < 0) & (high > 0)) < 0.95


def test_stratified_draws_keep_the_tasks_apart() -> None:
    # Tasks of very different level and no spread over seeds: nothing is uncertain, unless tasks are mixed.
    levels = np.tile([0.0, 100.0, 1000.0], (5, 1))
    assert stats.bootstrap_interval(levels, stats.mean, stratified=True) == (1100 / 3, 1100 / 3)
    # The seeds of different tasks are drawn independently, so that their errors average out.
    scores = np.repeat(np.random.default_rng(0).normal(size=(20, 1)), 16, axis=1)
    together = stats.bootstrap_interval(scores[:, 0], stats.mean)
    apart = stats.bootstrap_interval(scores, stats.mean, stratified=True)
    assert np.isclose(np.diff(apart), np.diff(together) / 4, rtol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": []}, r"scores has shape \(0,\), expected \[seeds, ...\] with at least one seed"),
        ({"scores": 1.0}, r"scores has shape \(\)"),
        ({"scores": [1.0, 2.0], "confidence": 95}, "confidence must lie between 0 and 1, got 95"),
        ({"scores": [1.0, 2.0], "stratified": True}, r"expected \[seeds, tasks\]"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.bootstrap_interval(statistic=stats.mean, **arguments)


@pytest.mark.parametrize("ties", [False, True])
def test_the_probability_of_improvement_is_that_of_mann_and_whitney(ties: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, (7, 3)), rng.normal(0, 1, (11, 3))
    if ties:
        a, b = np.round(a), np.round(b)
    expected = [scipy.stats.mannwhitneyu(a[:, task], b[:, task]).statistic / 77 for task in range(3)]
    assert stats.probability_of_improvement(a, b) == pytest.approx(np.mean(expected))
    assert stats.probability_of_improvement(a[:, 0], b[:, 0]) == pytest.approx(expected[0])
    assert stats.probability_of_improvement(b, a) == pytest.approx(1 - np.mean(expected))
    assert np.isnan(stats.probability_of_improvement([1.0, np.nan], [0.0]))


def test_the_interval_of_an_improvement_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.7, 1, 12), rng.normal(0, 1, 9)
    low, high = stats.improvement_interval(a, b, confidence=0.9, resamples=4000)

    def statistic(a, b, axis=-1):
        return np.mean(a[..., :, None] > b[..., None, :], axis=(-1, -2))

    expected = scipy.stats.bootstrap(
        (a, b), statistic, confidence_level=0.9, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    np.testing.assert_allclose((low, high), (expected.low, expected.high), atol=0.02)
    assert stats.improvement_interval([2.0, 3.0], [0.0, 1.0]) == (1.0, 1.0)


def test_a_profile_is_one_less_the_distribution_function() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(5, 4))
    thresholds = np.sort(np.r_[-9, rng.normal(size=6), scores[0, 0], 9])
    expected = 1 - scipy.stats.ecdf(scores.ravel()).cdf.evaluate(thresholds)
    np.testing.assert_allclose(stats.performance_profile(scores, thresholds), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.performance_profile(1.0, [0.0]), r"scores has shape \(\), expected \[seeds\]"),
        (lambda: stats.probability_of_improvement([], [0.0]), r"scores has shape \(0,\), expected \[seeds\]"),
        (lambda: stats.probability_of_improvement(np.ones((2, 3)), np.ones((2, 4))), "3 tasks and others has 4"),
        (lambda: stats.improvement_interval([1.0], [0.0], confidence=95), "between 0 and 1, got 95; 95 % is 0.95"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
