"""Quantile laws against explicit loops, sample quantiles, the nearest law by enumeration, and rlax."""

from __future__ import annotations

import itertools
import math
import warnings

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from jaxrl.distributional import quantile

with warnings.catch_warnings():  # what rlax imports uses old names
    warnings.simplefilter("ignore")
    import rlax

huber_loss, mean_huber_loss, project = map(jax.jit, (quantile.huber_loss, quantile.mean_huber_loss, quantile.project))


def loss_by_loops(quantiles, taus, targets, kappa, weights) -> float:
    total = 0.0
    for theta, tau in zip(quantiles, taus, strict=True):
        for y, w in zip(targets, weights, strict=True):
            u = y - theta
            huber = abs(u) if kappa == 0 else (u**2 / 2 if abs(u) <= kappa else kappa * (abs(u) - kappa / 2)) / kappa
            total += w * ((1 - tau) if u < 0 else tau) * huber
    return total


# ------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 4.0])
def test_loss_is_that_of_explicit_loops(kappa):
    rng = np.random.default_rng(0)
    quantiles, taus, targets = rng.normal(size=(2, 3)), rng.uniform(size=3), 2 * rng.normal(size=(2, 5))
    quantiles[0, 0] = targets[0, 0]
    weights = rng.dirichlet(np.ones(5))
    with jax.enable_x64(True):
        plain = huber_loss(quantiles, taus, targets, kappa)
        weighted = huber_loss(quantiles, taus, targets, kappa, weights)
        mean = mean_huber_loss(quantiles, taus, targets, kappa, weights)
    for b in range(2):
        assert plain[b] == pytest.approx(loss_by_loops(quantiles[b], taus, targets[b], kappa, [0.2] * 5), rel=1e-12)
        by_loops = loss_by_loops(quantiles[b], taus, targets[b], kappa, weights)
        assert weighted[b] == pytest.approx(by_loops, rel=1e-12)
        assert mean[b] == pytest.approx(by_loops / 3, rel=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 2.5])
def test_loss_is_that_of_rlax(kappa):
    rng = np.random.default_rng(1)
    theta, taus, targets = (jnp.asarray(rng.uniform(-2, 2, size), jnp.float32) for size in (4, 4, 6))
    theirs = rlax.quantile_regression_loss(theta, jnp.abs(taus) / 2, targets, huber_param=kappa)
    ours = huber_loss(theta, jnp.abs(taus) / 2, targets, kappa)
    np.testing.assert_allclose(ours, theirs / (kappa or 1), rtol=1e-6)  # rlax does not divide by kappa


def test_pinball_loss_is_least_at_the_sample_quantiles():
    rng = np.random.default_rng(2)
    sample = rng.gumbel(size=37)
    taus = np.array([0.05, 0.31, 0.5, 0.77, 0.99])
    with jax.enable_x64(True):
        losses = jax.jit(jax.vmap(lambda theta, tau: quantile.huber_loss(theta[None], tau[None], sample, 0.0)))(
            *map(jnp.ravel, np.meshgrid(sample, taus))
        ).reshape(5, 37)
    best = sample[np.argmin(losses, axis=1)]
    np.testing.assert_array_equal(best, np.quantile(sample, taus, method="inverted_cdf"))


def test_gradient_descent_on_the_loss_finds_the_quantiles_of_a_normal_law():
    taus = quantile.midpoints(8)
    sample = jnp.asarray(scipy.stats.norm.ppf((np.arange(400) + 0.5) / 400), jnp.float32)

    def step(theta, rate):
        return theta - rate * jax.grad(quantile.huber_loss)(theta, taus, sample, 0.02), None

    rates = 0.5 * 0.99 ** jnp.arange(600)
    theta, _ = jax.jit(lambda theta: jax.lax.scan(step, theta, rates))(jnp.zeros(8))
    np.testing.assert_allclose(theta, scipy.stats.norm.ppf(np.asarray(taus)), atol=0.02)


def test_loss_needs_no_order_of_targets_and_takes_taus_of_each_row():
    rng = np.random.default_rng(3)
    quantiles, taus, targets = rng.normal(size=(4, 3)), rng.uniform(size=(4, 3)), rng.normal(size=(4, 5))
    ours = huber_loss(quantiles, taus, targets)
    np.testing.assert_allclose(huber_loss(quantiles, taus, targets[:, ::-1]), ours, rtol=1e-5)
    for b in range(4):
        assert ours[b] == pytest.approx(loss_by_loops(quantiles[b], taus[b], targets[b], 1.0, [0.2] * 5), rel=1e-5)


def test_gradients_are_finite_at_the_kinks_and_right_elsewhere():
    targets = jnp.array([0.0, 1.0, -1.0, 1e18])
    taus = jnp.array([0.3, 0.9])
    gradient = jax.jit(jax.grad(quantile.huber_loss, (0, 2, 3)))
    for kappa in (0.0, 1.0):
        chex.assert_tree_all_finite(gradient(jnp.array([0.0, 1.0]), taus, targets, kappa))
    with jax.enable_x64(True):
        theta, y, h = np.array([0.2, -0.6]), np.array([0.15, 0.5, 3.0, -2.0]), 1e-6
        ours = gradient(theta, np.array([0.3, 0.9]), y, 0.7)
        for i in range(2):
            shift = h * np.eye(2)[i]
            up, down = (loss_by_loops(theta + s, [0.3, 0.9], y, 0.7, [0.25] * 4) for s in (shift, -shift))
            assert ours[0][i] == pytest.approx((up - down) / (2 * h), abs=1e-8)
        up, down = (loss_by_loops(theta, [0.3, 0.9], y, 0.7 + s, [0.25] * 4) for s in (h, -h))
        assert ours[2] == pytest.approx((up - down) / (2 * h), abs=1e-8)


# ------------------------------------------------------------------------------------- truncation


def test_truncation_by_weights_is_truncation_of_the_pool_by_slicing():
    rng = np.random.default_rng(4)
    critics, n = 3, 4
    target_quantiles = rng.normal(size=(critics, 2, n))  # K, B, N
    quantiles = rng.normal(size=(2, n))
    taus = (2 * np.arange(n) + 1) / (2 * n)
    with jax.enable_x64(True):
        pooled = quantile.pool(target_quantiles)

        def loss(keep):
            return quantile.mean_huber_loss(quantiles, taus, pooled, 1.0, quantile.truncated_weights(12, keep))

        ours = jax.jit(jax.vmap(loss))(jnp.array([12, 9, 6, 3]))  # drops 0, 1, 2, 3 of each critic's 4
    for row, drop in enumerate(range(4)):
        for b in range(2):
            kept = np.sort(target_quantiles[:, b].ravel())[: critics * n - drop * critics]
            expected = loss_by_loops(quantiles[b], taus, kept, 1.0, [1 / len(kept)] * len(kept)) / n
            assert ours[row, b] == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 20.0))
def test_truncated_weights_are_a_law_on_the_smallest(keep):
    with jax.enable_x64(True):
        weights = np.asarray(quantile.truncated_weights(10, keep))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(weights) <= 0).all()
    expected = [min(max(keep - k, 0), 1) for k in range(10)]
    np.testing.assert_allclose(weights, np.array(expected) / sum(expected), atol=1e-12)


def test_keeping_none_is_refused_or_not_a_number():
    with pytest.raises(ValueError, match="above 0"):
        quantile.truncated_weights(5, 0)
    assert np.isnan(jax.jit(quantile.truncated_weights, static_argnums=0)(5, 0)).all()


# ------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("seed", range(3))
def test_projection_is_the_nearest_law_of_equal_masses(seed):
    rng = np.random.default_rng(seed)
    atoms, probs = rng.normal(size=5), rng.dirichlet(np.ones(5))
    with jax.enable_x64(True):
        ours = project(atoms, probs, quantile.midpoints(3))
    distances = {
        theta: scipy.stats.wasserstein_distance(atoms, theta, probs, None)
        for theta in itertools.combinations_with_replacement(np.sort(atoms), 3)
    }
    best = min(distances, key=distances.__getitem__)
    np.testing.assert_array_equal(ours, best)
    off = [scipy.stats.wasserstein_distance(atoms, best + 0.3 * rng.normal(size=3), probs, None) for _ in range(200)]
    assert min(off) >= distances[best]  # nor is one off the atoms nearer


@settings(deadline=None, max_examples=25)
@given(
    hnp.arrays(np.float64, 6, elements=st.floats(-9, 9, allow_subnormal=False)),
    hnp.arrays(np.float64, 6, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.floats(-3, 3, allow_subnormal=False),
)
def test_projection_is_the_generalised_inverse_and_moves_with_the_law(atoms, weights, shift):
    weights = weights + (weights.sum() == 0)
    probs = weights / weights.sum()
    taus = np.array([0.01, 0.3, 0.52, 0.8, 0.999])
    with jax.enable_x64(True):
        ours, moved = np.asarray(project(atoms, probs, taus)), np.asarray(project(atoms + shift, probs, taus))
    for tau, theta in zip(taus, ours, strict=True):
        cumulative = {x: math.fsum(probs[atoms <= x]) for x in atoms}
        assert theta == min(x for x, c in cumulative.items() if c >= tau - 1e-12)
    np.testing.assert_allclose(moved, ours + shift, atol=1e-12)
    assert (np.diff(ours) >= 0).all()


def test_projection_of_a_batch_on_one_support():
    probs = np.random.default_rng(5).dirichlet(np.ones(6), 4)
    support = np.arange(6.0)
    ours = project(support, probs, np.array([0.25, 0.75]))
    for b in range(4):
        np.testing.assert_array_equal(ours[b], [np.argmax(np.cumsum(probs[b]) >= t) for t in (0.25, 0.75)])


# --------------------------------------------------------------------------------- small functions


def test_midpoints_and_cosine_features():
    np.testing.assert_allclose(quantile.midpoints(5), [0.1, 0.3, 0.5, 0.7, 0.9], rtol=1e-6)
    taus = np.array([[0.0, 0.25], [0.5, 1.0]])
    features = quantile.cosine_features(taus, 6)
    expected = [[[math.cos(math.pi * k * t) for k in range(6)] for t in row] for row in taus]
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_crossing_of_quantiles():
    quantiles = jnp.array([[0.0, 1.0, 1.0, 2.0], [3.0, 1.0, 2.0, 1.5]])
    np.testing.assert_allclose(quantile.crossing_share(quantiles), [0, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(quantile.crossing_depth(quantiles), [0, 2.0])


def test_dtype_is_kept_and_wrong_shapes_are_refused():
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            x = np.full(4, 0.25, dtype)
            taus = quantile.midpoints(4)
            assert jax.eval_shape(quantile.huber_loss, x, taus, x).dtype == dtype
            assert jax.eval_shape(quantile.project, x, x, taus).dtype == dtype
            assert jax.eval_shape(quantile.cosine_features, x).dtype == dtype
    with pytest.raises(ValueError, match="taus"):
        quantile.huber_loss(jnp.zeros(3), jnp.zeros(4), jnp.zeros(5))
    with pytest.raises(ValueError, match="target_weights"):
        quantile.huber_loss(jnp.zeros(3), jnp.zeros(3), jnp.zeros(5), 1.0, jnp.ones(3) / 3)
    with pytest.raises(ValueError, match="probs"):
        quantile.project(jnp.zeros(3), jnp.ones(2) / 2, jnp.full(1, 0.5))
    with pytest.raises(ValueError, match="midpoints"):
        quantile.midpoints(0)
