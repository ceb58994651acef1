"""Harvests: laws on levels against quadrature, the optimum against enumeration and simulation; GPDP and collapse."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxrl import mdp
from jaxrl.bayes import gp, gpdp
from jaxrl.envs.fishery import EXTINCT, Fishery
from jaxrl.mdp import harvest as harvests

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

LEVELS = np.array([0.0, 0.5, 1.2, 2.0, 3.5])


def exact(function, *args, **kwargs):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **kwargs))


# ------------------------------------------------------------------------------------ laws on levels


def by_quadrature(law):
    """E of the hat function of each level, by numerical integration; below and above, the mass goes to the ends."""
    hats = np.eye(len(LEVELS))
    inside = [
        sum(
            scipy.integrate.quad(lambda x: np.interp(x, LEVELS, hat) * law.pdf(x), low, high)[0]  # noqa: B023
            for low, high in itertools.pairwise(LEVELS)
        )
        for hat in hats
    ]
    return np.array(inside) + law.cdf(LEVELS[0]) * hats[0] + law.sf(LEVELS[-1]) * hats[-1]


@pytest.mark.parametrize(("mean", "std"), [(1.0, 0.4), (-0.5, 1.0), (3.4, 0.05), (1.2, 1e-6), (9.0, 0.1)])
def test_normal_law_is_that_of_quadrature(mean, std):
    law = exact(harvests.normal_law, LEVELS, mean, std)
    assert abs(law.sum() - 1) < 1e-14 and law.min() >= 0
    if std > 1e-3:
        np.testing.assert_allclose(law, by_quadrature(scipy.stats.norm(mean, std)), atol=1e-8)
    else:
        np.testing.assert_allclose(law[2], 1, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.4), (1.0, 0.05), (-3.0, 1.0)])
def test_log_normal_law_is_that_of_quadrature(mean, std):
    law = exact(harvests.log_normal_law, LEVELS, mean, std)
    np.testing.assert_allclose(law, by_quadrature(scipy.stats.lognorm(std, scale=np.exp(mean))), atol=1e-8)


def test_a_stock_of_nothing_stays_so_and_slopes_are_finite():
    law = harvests.log_normal_law(LEVELS, jnp.array([-jnp.inf, 0.0]), 0.1)
    np.testing.assert_array_equal(law[0], np.arange(5) == 0)
    slope = jax.grad(lambda m, s: harvests.log_normal_law(LEVELS, m, s)[..., 0].sum(), (0, 1))
    assert all(np.all(np.isfinite(x)) for x in slope(jnp.array([-jnp.inf, -1.0]), jnp.array([0.1, 0.1])))


# ------------------------------------------------------------------------------------------- harvest


def test_the_harvest_is_the_best_over_all_escapements():
    """Value iteration written out over stock and target."""
    growth = np.random.default_rng(0).dirichlet(np.ones(5), 5)
    growth[0] = [1, 0, 0, 0, 0]
    solution = exact(lambda: mdp.policy_iteration(harvests.harvest(growth, LEVELS, 0.8)))
    value = np.zeros(5)
    for _ in range(300):
        value = np.array([max(LEVELS[i] - LEVELS[s] + 0.8 * growth[s] @ value for s in range(i + 1)) for i in range(5)])
    np.testing.assert_allclose(solution.value, value, rtol=1e-9)
    left = exact(gpdp.escapement, solution, LEVELS)
    assert np.all(left <= LEVELS)


def test_arguments_of_a_harvest_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"growth has shape \(3, 3\), expected \[L, L\] for levels of shape \(5,\)"):
        harvests.harvest(np.eye(3), LEVELS, 0.9)
    with pytest.raises(ValueError, match=r"levels has shape \(1,\), expected \[L\] with at least 2"):
        harvests.normal_law(jnp.ones(1), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"left and stock have shapes \(3,\) and \(2,\), expected \[N\] both"):
        gpdp.learn(np.ones(3), np.ones(2), jax.random.key(0))


# --------------------------------------------------------------------------------------- environment


def test_a_year_of_the_fishery_is_that_of_numpy():
    env = Fishery()
    params = env.params()
    for stock, quota in ((9.0, 2.5), (6.0, 0.0), (4.0, 9.0), (5.0, 4.96)):
        key = jax.random.key(int(10 * stock))
        after, step = env.step(params, jnp.asarray(stock), jnp.array([quota]), key)
        catch = min(quota, stock)
        s, z = stock - catch, float(jax.random.normal(jax.random.clone(key)))
        expected = s * np.exp(2 * (1 - s / 8) * (s - 5) / 8 + 0.05 * z)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(step.reward, catch, rtol=1e-6)
        assert step.terminated == (expected < EXTINCT * 8) and not step.truncated


@functools.cache
def fishery(size=61):
    levels = np.linspace(0, 15, size)
    env = Fishery()
    solution = jax.jit(lambda p: mdp.policy_iteration(env.model(p, jnp.asarray(levels), 0.95)))(env.params())
    return levels, solution


def managed(left, levels, years=150, count=2000):
    """Mean discounted catch and share of stocks below 1 at the end, in the continuous fishery from 10."""
    env = Fishery()
    params = env.params()

    @jax.jit
    def run(key):
        def year(stock, key):
            target = jnp.asarray(left)[jnp.argmin(jnp.abs(jnp.asarray(levels) - stock[:, None]), axis=1)]
            quota = jnp.maximum(stock - target, 0)[:, None]
            keys = jax.random.split(key, count)
            stock, step = jax.vmap(lambda s, a, k: env.step(params, s, a, k))(stock, quota, keys)
            return stock, step.reward

        stock, catches = jax.lax.scan(year, jnp.full(count, 10.0), jax.random.split(key, years))
        worth = 0.95 ** jnp.arange(years) @ catches
        return worth, stock

    with jax.debug_key_reuse(False):  # it takes a vmap over a scan over keys for one
        worth, stock = run(jax.random.key(0))
    return float(worth.mean()), float(worth.std() / np.sqrt(count)), float((stock < 1).mean())


def test_the_optimum_on_levels_is_that_of_the_continuous_fishery():
    levels, solution = fishery()
    assert solution.converged
    left = np.asarray(gpdp.escapement(solution, levels))
    value, error, collapsed = managed(left, levels)
    known = np.interp(10.0, levels, solution.value)
    assert abs(value - known) < 5 * error + 0.02 * known, (value, known, error)
    assert collapsed < 0.01
    for other in (1.0, 2.0, -1.0):  # no other constant escapement does better
        full = left[-1] + other
        assert managed(np.minimum(levels, full), levels)[0] < value + 3 * error


# ---------------------------------------------------------------------------------------------- GPDP


@pytest.fixture(scope="module")
def learned():
    """A process that has seen 39 unharvested years near the capacity, and what the optimum for it leaves."""
    env = Fishery()
    params = env.params()

    def year(stock, key):
        stock, _ = env.step(params, stock, jnp.zeros(1), key)
        return stock, stock

    with jax.debug_key_reuse(False), jax.enable_x64(True):
        later = jax.lax.scan(year, jnp.asarray(8.0), jax.random.split(jax.random.key(3), 39))[1]
        history = np.append(8.0, np.asarray(later))
        process = jax.jit(gpdp.learn)(history[:-1], history[1:], jax.random.key(1))
        growth = jax.jit(gpdp.transition)(process, np.linspace(0, 15, 51))
        solution = mdp.policy_iteration(harvests.harvest(growth, np.linspace(0, 15, 51), 0.99))
        return jax.tree.map(np.asarray, (history, process, growth, gpdp.escapement(solution, np.linspace(0, 15, 51))))


def test_the_process_is_an_average_that_knows_what_it_has_seen(learned):
    history, process, growth, _ = learned
    np.testing.assert_allclose(process.weights.sum(), 1, rtol=1e-12)
    assert 1 / np.sum(process.weights**2) > 2  # more than one of the settings counts
    np.testing.assert_allclose(growth.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(growth[0], np.arange(51) == 0)
    levels = np.linspace(0, 15, 51)
    mean = growth @ levels
    std = np.sqrt(growth @ levels**2 - mean**2)
    near = np.argmin(np.abs(levels - np.median(history)))
    assert abs(mean[near] - history.mean()) < 0.3
    assert std[near] < 0.6 and std[levels.searchsorted(4.5)] > 1.5 * std[near]  # wide where nothing was seen


def test_transition_is_the_mixture_of_normal_laws(learned):
    """At one level, from the posterior of each of the settings by explicit conditioning."""
    history, process, growth, _ = learned
    x, y = np.append(history[:-1], 0.0), np.append(history[1:], 0.0)
    s = process.components.settings
    likely = np.argsort(process.weights)[-60:]
    expected = np.zeros(51)
    for i in likely:
        k = lambda a, b: s.amplitude[i] * np.exp(-((a[:, None] - b) ** 2) / (2 * s.length[i] ** 2))  # noqa: E731, B023
        gain = k(np.array([6.0]), x) @ np.linalg.inv(k(x, x) + s.noise[i] * np.diag(np.append(np.ones(39), 0)))
        variance = s.amplitude[i] - gain @ k(x, np.array([6.0])) + s.noise[i]
        law = exact(harvests.normal_law, np.linspace(0, 15, 51), (gain @ y)[0], np.sqrt(variance[0, 0]))
        expected += process.weights[i] * law
    np.testing.assert_allclose(growth[20], expected, atol=2 * (1 - process.weights[likely].sum()) + 1e-6)


def test_its_harvest_spares_the_threshold_that_it_has_never_seen(learned):
    """The true threshold is 5; the Ricker model, which fits such data as well, leaves 3.7 and the stock is lost."""
    *_, left = learned
    assert 5.5 < left[-1] < 8
    _, _, collapsed = managed(left, np.linspace(0, 15, 51), years=50)
    assert collapsed < 0.2
    _, _, lost = managed(np.minimum(np.linspace(0, 15, 51), 3.7), np.linspace(0, 15, 51), years=50)
    assert lost == 1.0


@pytest.mark.slow
def test_solve_is_learn_model_and_policy_iteration(learned):
    history, _, _, left = learned
    levels = np.linspace(0, 15, 51)
    solution = exact(lambda: gpdp.solve(history[:-1], history[1:], levels, 0.99, jax.random.key(1)))
    assert solution.converged
    np.testing.assert_allclose(exact(gpdp.escapement, solution, levels), left)


def test_settings_lost_to_rounding_do_not_count():
    grid = gp.Settings(np.array([1.0, 1.0]), np.array([1.0, 1e4]), np.array([0.1, 1e-18]))
    mixture = gp.mixture(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), grid)
    law = gpdp.transition(mixture, np.linspace(0, 2, 5))
    assert mixture.weights[1] == 0 and np.all(np.isfinite(law))
