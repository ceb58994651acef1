"""Sets from data: their coverage by simulation, and their radii in the cases that have closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jaxrl import mdp, robust
from jaxrl.robust.counts import from_counts

S, A = 4, 2


def sample(rng, truth, visits):
    return np.stack([[rng.multinomial(visits, law) for law in rows] for rows in truth])


def test_weissman_covers_all_rows_whatever_the_truth():
    rng = np.random.default_rng(0)
    trials, delta = 400, 0.3
    both, one = 0, np.zeros((S, A))
    for _ in range(trials):
        truth = rng.dirichlet(np.ones(S) * rng.choice([0.2, 1, 5]), (S, A))
        counts = sample(rng, truth, visits=rng.integers(1, 40))
        transition, ball = from_counts(counts, 1 - delta)
        both += np.all(np.abs(truth - transition).sum(-1) <= ball.radius)
        transition, ball = from_counts(counts, 1 - delta, jointly=False)
        one += np.abs(truth - transition).sum(-1) <= ball.radius
    assert both >= (1 - delta) * trials
    assert np.all(one >= (1 - delta) * trials)


def test_weissman_is_near_the_binomial_law_for_two_states():
    """For two states, P(2 |frequency - p| >= radius) <= delta, and not far below it (Hoeffding)."""
    visits, delta = 1000, 0.05
    counts = np.full((2, 1, 2), visits / 2)
    radius = float(from_counts(counts, 1 - delta, jointly=False)[1].radius[0, 0])
    outside = 2 * scipy.stats.binom.sf(visits / 2 + visits * radius / 2 - 1e-9, visits, 0.5)
    assert delta / 20 < outside <= delta
    assert radius == pytest.approx(np.sqrt(2 / visits * np.log((2**2 - 2) / delta)))


def test_weissman_formula_of_all_rows_and_of_what_was_never_seen():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 900, (S, A, S))
    counts[1, 0] = 0
    counts[2, 1] = [1, 0, 0, 0]
    with jax.enable_x64(True):
        transition, ball = jax.tree.map(np.asarray, from_counts(counts, 0.9))
    for s, a in np.ndindex(S, A):
        n = counts[s, a].sum()
        expected = min(np.sqrt(2 / n * np.log((2**S - 2) * S * A / 0.1)), 2) if n else 2
        assert ball.radius[s, a] == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(transition[s, a], counts[s, a] / n if n else 1 / S, rtol=1e-12)
    assert ball.support == "all"
    assert np.max(ball.radius) == 2
    assert from_counts(np.ones((1, 1, 1)), 0.9)[1].radius == 0  # one state: nothing is uncertain
    assert np.all(np.isfinite(from_counts(np.ones((80, 1, 80)), 0.9)[1].radius))  # 2^80


def test_bayes_is_calibrated_under_its_prior():
    rng = np.random.default_rng(2)
    trials, level = 150, 0.7
    one, both = 0, 0
    for trial in range(trials):
        truth = rng.dirichlet(np.ones(S), (S, A))
        counts = sample(rng, truth, visits=6)
        keys = jax.random.split(jax.random.key(trial))
        transition, ball = from_counts(counts, level, "bayes", jointly=False, draws=200, key=keys[0])
        one += np.sum(np.abs(truth - transition).sum(-1) <= ball.radius)
        transition, ball = from_counts(counts, level, "bayes", draws=200, key=keys[1])
        both += np.all(np.abs(truth - transition).sum(-1) <= ball.radius)
    for covered, total in ((one, trials * S * A), (both, trials)):
        assert scipy.stats.binomtest(int(covered), total, level).pvalue > 1e-3


def test_bayes_in_closed_form_for_two_states():
    counts = np.array([[[7, 2]], [[0, 0]]])
    transition, ball = from_counts(counts, 0.8, "bayes", jointly=False, draws=20_000, key=jax.random.key(0))
    for s in range(2):
        law = scipy.stats.beta(*counts[s, 0] + 1)
        np.testing.assert_allclose(transition[s, 0, 0], law.mean(), rtol=1e-6)
        radius = scipy.optimize.brentq(
            lambda r, law=law: law.cdf(law.mean() + r / 2) - law.cdf(law.mean() - r / 2) - 0.8, 0, 2
        )
        assert ball.radius[s, 0] == pytest.approx(radius, rel=0.02)


def test_it_fits_a_model():
    counts = np.random.default_rng(3).integers(0, 9, (S, A, S))
    transition, ball = from_counts(counts, 0.95)
    mdp.validate(mdp.MDP(transition, jnp.zeros((S, A)), jnp.asarray(0.9), jnp.ones(S) / S))
    value, probs = robust.worst_case(ball, transition, jnp.arange(4.0))
    assert value.shape == (S, A) and np.all(np.abs(probs - transition).sum(-1) <= ball.radius + 1e-6)


def test_errors():
    counts = np.ones((2, 1, 2))
    with pytest.raises(ValueError, match=r"counts has shape \(2, 2\), expected \[S, A, S\]"):
        from_counts(np.ones((2, 2)), 0.9)
    with pytest.raises(ValueError, match=r"counts has the entry -1"):
        from_counts(-counts, 0.9)
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\), got 95"):
        from_counts(counts, 95)
    with pytest.raises(ValueError, match=r"kind must be 'weissman' or 'bayes', got 'hoeffding'"):
        from_counts(counts, 0.9, "hoeffding")
    with pytest.raises(ValueError, match=r"expected a key"):
        from_counts(counts, 0.9, "bayes")
    with pytest.raises(ValueError, match=r"expected no key"):
        from_counts(counts, 0.9, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"prior must be above 0, got 0"):
        from_counts(counts, 0.9, "bayes", prior=0.0, key=jax.random.key(0))
