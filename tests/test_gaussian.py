"""Gaussian critics against scipy, a numerical minimiser and explicit formulas."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jaxrl.distributional import gaussian

negative_log_likelihood, moments = map(jax.jit, (gaussian.negative_log_likelihood, gaussian.moments))


# ------------------------------------------------------------------------------------------- STAC


def test_likelihood_is_that_of_scipy():
    mean, std, y = np.array([0.0, 1.0, -2.0]), np.array([0.5, 2.0, 1e-2]), np.array([0.3, -5.0, -2.001])
    with jax.enable_x64(True):
        ours = np.asarray(negative_log_likelihood(mean, std, y))
    np.testing.assert_allclose(ours + math.log(2 * math.pi) / 2, -scipy.stats.norm.logpdf(y, mean, std), rtol=1e-12)


def test_likelihood_is_best_at_the_moments_of_the_target():
    rng = np.random.default_rng(0)
    atoms, probs = rng.normal(size=6) ** 3, rng.dirichlet(np.ones(6))
    with jax.enable_x64(True):
        loss = jax.jit(
            jax.value_and_grad(lambda x: probs @ gaussian.negative_log_likelihood(x[0], jnp.exp(x[1]), atoms))
        )
        best = scipy.optimize.minimize(lambda x: [np.asarray(v) for v in loss(x)], np.zeros(2), jac=True, tol=1e-10)
        mean, std = moments(atoms, probs)
    assert best.x[0] == pytest.approx(float(mean), abs=1e-6)
    assert math.exp(best.x[1]) == pytest.approx(float(std), abs=1e-6)  # the deviation, not the variance
    assert float(std) == pytest.approx(math.sqrt(np.cov(atoms, aweights=probs, ddof=0)), rel=1e-12)


def test_one_step_target_is_explicit_and_ends_with_the_episode():
    ours = gaussian.one_step_target(
        jnp.array([1.0, 1.0]), jnp.array([0.9, 0.0]), jnp.array([5.0, 5.0]), jnp.array([2.0, 2.0]), 0.25, 0.5
    )
    np.testing.assert_allclose(ours, [1 + 0.9 * (5 - 0.25 * 2 - 0.5), 1.0], rtol=1e-6)


def test_sigma_of_the_fixed_point_is_one_step_uncertainty():
    """A chain with a noisy first reward: its start sees no noise at the state after it, whose return is certain."""
    discount, noise = 0.9, np.array([-1.0, 1.0])
    half = np.array([0.5, 0.5])
    last = moments(np.zeros(1) + 3.0, np.ones(1))  # pays 3 and ends
    middle = moments(noise + discount * gaussian.pessimistic_value(*last, 0.0), half)
    start = moments(0.0 + discount * np.ones(1) * gaussian.pessimistic_value(*middle, 0.0), np.ones(1))
    assert middle[1] == pytest.approx(1.0)
    assert start[1] == pytest.approx(0.0, abs=1e-6)  # the return from it has deviation 0.9
    assert start[0] == pytest.approx(0.81 * 3, rel=1e-6)
    pessimist = gaussian.one_step_target(0.0, discount, *middle, pessimism=0.5)
    assert pessimist == pytest.approx(0.81 * 3 - 0.9 * 0.5, rel=1e-6)


def test_std_of_an_output_is_floored():
    raw = jnp.array([-100.0, -5.0, 0.0, 100.0])
    np.testing.assert_allclose(gaussian.std(raw), [math.log1p(math.exp(-5.0))] * 2 + [math.log(2), 100.0], rtol=1e-5)
    slopes = jax.jit(jax.vmap(jax.grad(gaussian.std)))(raw)
    chex.assert_tree_all_finite(slopes)
    assert slopes[0] == 0


def test_gradients_are_finite_without_variance():
    sum_of_moments = jax.jit(jax.value_and_grad(lambda z: sum(gaussian.moments(z, jnp.full(3, 1 / 3)))))
    value, gradient = sum_of_moments(jnp.full(3, 2.0))
    assert value == pytest.approx(2.0)
    np.testing.assert_allclose(gradient, 1 / 3, rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda m, raw, y: gaussian.negative_log_likelihood(m, gaussian.std(raw), y), (0, 1, 2)))
    chex.assert_tree_all_finite(slopes(5.0, -1e3, 5.1))


# ----------------------------------------------------------------------------------------- DSAC-T


@pytest.mark.parametrize("exact", [True, False])
def test_refined_gradients_are_their_formulas(exact):
    rng = np.random.default_rng(1)
    mean, std = rng.normal(size=8), rng.uniform(0.01, 5, 8)
    y_q, y_z, b = mean + 3 * rng.normal(size=8), mean + 9 * rng.normal(size=8), 1.7
    y_q[0] = mean[0] + 80  # beyond the Huber limit
    with jax.enable_x64(True):
        slopes = jax.jit(jax.grad(lambda *x: gaussian.refined_loss(*x, exact=exact).sum(), argnums=tuple(range(5))))(
            mean, std, y_q, y_z, b
        )
    of_mean, of_std, *of_rest = map(np.asarray, slopes)
    weight = [min(max(b**2 / (s**2 + 0.1), 0.1), 10) for s in std]
    square = [min(abs(z - m), 3 * b) ** 2 * (1 if exact else 0.5) for z, m in zip(y_z, mean, strict=True)]
    expected = [-w * max(-50, min(50, q - m)) for w, q, m in zip(weight, y_q, mean, strict=True)]
    np.testing.assert_allclose(of_mean, expected, rtol=1e-12)
    expected = [w * (s**2 - u) / (s + 0.1) for w, s, u in zip(weight, std, square, strict=True)]
    np.testing.assert_allclose(of_std, expected, rtol=1e-10)
    assert all((x == 0).all() for x in of_rest)  # targets and scale are data
    assert min(weight) > 0.1 - 1e-12
    assert max(weight) == 10
    assert any(abs(z - m) > 3 * b for z, m in zip(y_z, mean, strict=True))  # every clip is at work


def test_law_targets_beyond_the_huber_limit_count_linearly():
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(gaussian.refined_loss, 1))(0.0, 1.0, 0.0, 70.0, 100.0)
    weight, huber = 10.0, 50 * (70 - 25)
    assert slope == pytest.approx(weight * (1 - 2 * huber) / 1.1, rel=1e-12)


@pytest.mark.parametrize(("exact", "factor"), [(True, 1.0), (False, math.sqrt(0.5))])
def test_refined_gradients_lead_to_the_deviation_or_to_a_share_of_it(exact, factor):
    sample = jnp.asarray(4 + 2 * scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200), jnp.float32)

    def step(law, _):
        def loss(mean, std):
            return gaussian.refined_loss(mean, std, sample, sample, 2.0, exact=exact).mean()

        slopes = jax.grad(loss, (0, 1))(*law)
        return tuple(x - 0.1 * slope for x, slope in zip(law, slopes, strict=True)), None

    (mean, std), _ = jax.jit(lambda law: jax.lax.scan(step, law, length=500))((jnp.float32(0.0), jnp.float32(1.0)))
    assert mean == pytest.approx(4.0, abs=1e-3)
    assert std == pytest.approx(2.0 * factor, rel=0.01)


def test_running_scale_follows_the_mean_of_sigma():
    scale = gaussian.running_scale(jnp.float32(1.0), jnp.array([2.0, 4.0]), 0.1)
    assert scale == pytest.approx(1.2)
    assert jax.grad(lambda s: gaussian.running_scale(1.0, s, 0.1))(jnp.float32(3.0)) == 0


def test_dtype_is_kept():
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            x = np.full(4, 0.5, dtype)
            for function in (
                lambda x: gaussian.std(x),
                lambda x: gaussian.one_step_target(x, x, x, x, np.float64(0.25)),
                lambda x: gaussian.negative_log_likelihood(x, x, 0.1),
                lambda x: gaussian.moments(x, x)[1],
                lambda x: gaussian.refined_loss(x, x, x, x, 1.0, huber=np.float64(50)),
            ):
                assert jax.eval_shape(function, x).dtype == dtype
