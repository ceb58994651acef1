"""Distances between joint laws against explicit loops, scipy and closed forms."""

from __future__ import annotations

import math

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from jaxrl.distributional import particles

WIDTHS = np.array([0.5, 1.0, 4.0])
mmd, energy = map(jax.jit, (particles.maximum_mean_discrepancy, particles.energy_distance))
clouds = hnp.arrays(np.float64, (4, 2), elements=st.floats(-5, 5).map(lambda x: round(x, 2)))


def by_loops(kernel, x, y, p, q) -> float:
    def mean(a, b, p, q):
        return sum(u * v * kernel(s, t) for s, u in zip(a, p, strict=True) for t, v in zip(b, q, strict=True))

    return mean(x, x, p, p) - 2 * mean(x, y, p, q) + mean(y, y, q, q)


def gaussian_mixture(s, t):
    return sum(math.exp(-(math.dist(s, t) ** 2) / (2 * h**2)) for h in WIDTHS) / len(WIDTHS)


@pytest.mark.parametrize("weighted", [False, True])
def test_distances_are_those_of_explicit_loops(weighted):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 5, 2))
    p = rng.dirichlet(np.ones(4), 3) if weighted else np.full((3, 4), 1 / 4)
    q = rng.dirichlet(np.ones(5), 3) if weighted else np.full((3, 5), 1 / 5)
    probs = (p, q) if weighted else ()
    with jax.enable_x64(True):
        discrepancies, distances = np.asarray(mmd(x, y, WIDTHS, *probs)), np.asarray(energy(x, y, *probs))
    for b in range(3):
        assert discrepancies[b] == pytest.approx(by_loops(gaussian_mixture, x[b], y[b], p[b], q[b]), abs=1e-13)
        expected = by_loops(lambda s, t: -math.dist(s, t), x[b], y[b], p[b], q[b])
        assert distances[b] == pytest.approx(expected, abs=1e-13)


def test_energy_distance_of_one_channel_is_that_of_scipy():
    rng = np.random.default_rng(1)
    x, y, p = rng.normal(size=4), rng.normal(size=5), rng.dirichlet(np.ones(4))
    with jax.enable_x64(True):
        ours = float(energy(x[:, None], y[:, None], p))
    assert ours == pytest.approx(scipy.stats.energy_distance(x, y, p) ** 2, abs=1e-13)  # scipy's is the root


def test_discrepancy_of_normal_laws_is_its_closed_form():
    """`E exp(-|X - Y|^2 / 2)` of normal laws of variance v, d apart, is `(1 + 2 v)^(-1/2) exp(-d^2 / (2 + 4 v))`."""
    grid = 0.8 * scipy.stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    kernel = [math.exp(-(d**2) / (2 + 4 * 0.64)) / math.sqrt(1 + 2 * 0.64) for d in (0.0, 1.5)]
    ours = mmd(grid[:, None], grid[:, None] + 1.5, np.ones(1))
    assert ours == pytest.approx(2 * kernel[0] - 2 * kernel[1], abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(clouds, clouds, hnp.arrays(np.float64, 2, elements=st.floats(-3, 3)))
def test_distances_are_symmetric_and_never_negative_and_0_for_one_law(x, y, shift):
    order = np.array([2, 0, 3, 1])
    with jax.enable_x64(True):
        for distance in (lambda *laws: float(mmd(*laws, WIDTHS)), lambda *laws: float(energy(*laws))):
            d = distance(x, y)
            assert d >= -1e-12
            assert distance(y, x) == pytest.approx(d, abs=1e-12)
            assert distance(x + shift, y + shift) == pytest.approx(d, abs=1e-9)
            assert distance(x, x[order]) == pytest.approx(0, abs=1e-12)
            if not np.array_equal(np.sort(x.view("f8,f8").ravel()), np.sort(y.view("f8,f8").ravel())):
                assert d > 0


def test_distances_see_dependence_that_the_channels_apart_do_not():
    together = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    opposed = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    assert energy(together, opposed) > 0.1
    assert mmd(together, opposed, WIDTHS) > 0.01
    assert energy(together[:, :1], opposed[:, :1]) == pytest.approx(0, abs=1e-6)


def test_gradients_are_finite_where_particles_meet():
    x = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]])
    y = jnp.array([[0.0, 0.0], [1.0, 2.0], [1e15, 0.0]])
    of_energy = jax.jit(jax.grad(particles.energy_distance, (0, 1)))(x, y)
    of_discrepancy = jax.jit(jax.grad(particles.maximum_mean_discrepancy, (0, 1, 2)))(x, y, WIDTHS)
    chex.assert_tree_all_finite((of_energy, of_discrepancy))


def test_descent_on_sampled_targets_finds_the_joint_law():
    """Each batch has one draw of the reward: the law of (r, -r), r = 0 or 2, is found, not the mean (1, -1)."""
    outcomes = jnp.array([[0.0, 0.0], [2.0, -2.0]])

    def step(cloud, inputs):
        key, rate = inputs
        draws = jax.random.choice(key, outcomes, (8, 1))
        targets = particles.bellman_particles(draws[:, 0], jnp.zeros(8), jnp.zeros((8, 1, 2)))
        slope = jax.grad(lambda c: particles.energy_distance(c, targets).mean())(cloud)
        return cloud - rate * slope, None

    keys = jax.random.split(jax.random.key(0), 1500)
    start = jax.random.normal(jax.random.key(1), (4, 2))
    rates = 2.0 * 0.997 ** jnp.arange(1500)
    cloud, _ = jax.jit(lambda cloud: jax.lax.scan(step, cloud, (keys, rates)))(start)
    nearest = np.argmin(np.linalg.norm(np.asarray(cloud)[:, None] - outcomes, axis=-1), axis=1)
    assert sorted(nearest) == [0, 0, 1, 1]
    np.testing.assert_allclose(cloud, outcomes[nearest], atol=0.1)


def test_bellman_particles_are_explicit_and_end_with_the_episode():
    rewards, discounts = np.array([[1.0, -1.0], [2.0, 0.5]]), np.array([0.9, 0.0])
    z = np.arange(12.0).reshape(2, 3, 2)
    ours = particles.bellman_particles(rewards, discounts, z)
    expected = [[[rewards[b, k] + discounts[b] * z[b, n, k] for k in range(2)] for n in range(3)] for b in range(2)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_dtype_is_kept_and_wrong_shapes_are_refused():
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            x = np.zeros((3, 2), dtype)
            assert jax.eval_shape(particles.energy_distance, x, x).dtype == dtype
            assert jax.eval_shape(particles.maximum_mean_discrepancy, x, x, WIDTHS).dtype == dtype
            assert jax.eval_shape(particles.bellman_particles, x[0], np.float64(0.9), x).dtype == dtype
    with pytest.raises(ValueError, match="channels K"):
        particles.energy_distance(jnp.zeros((3, 2)), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="x_probs"):
        particles.energy_distance(jnp.zeros((3, 2)), jnp.zeros((4, 2)), jnp.ones(4) / 4)
    with pytest.raises(ValueError, match="each channel"):
        particles.bellman_particles(jnp.zeros(2), 0.9, jnp.zeros((4, 3)))
