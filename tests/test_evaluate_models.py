"""Grids of models and the search for the worst one, on oscillators whose returns NumPy knows."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import evaluate
from jaxrl.types import Box, Spec, Step

STEPS, DT, DRIVE = 60, 0.1, 2.0


@dataclasses.dataclass(frozen=True)
class Oscillator:
    """x'' = action - stiffness x - damping x' + cos(DRIVE t), at the cost x^2; stiffness 1 + 8 u_0, damping 0.2 + u_1.

    It starts at rest, off 0 by a little `noise`; the worst stiffness is in resonance, the worst damping the least.
    """

    noise: float = 0.0
    max_steps: int = STEPS
    spec = Spec(Box((3,)), Box((1,), -1.0, 1.0))

    def params(self):
        return jnp.array([0.5, 0.5])

    def reset(self, params, key):
        state = jnp.append(self.noise * jax.random.normal(key, (2,)), 0.0)
        return state, state

    def step(self, params, state, action, key):
        x, v, t = state
        force = action[0] - (1 + 8 * params[0]) * x - (0.2 + params[1]) * v + jnp.cos(DRIVE * t)
        v = v + DT * force
        state = jnp.stack([x + DT * v, v, t + DT])
        no = jnp.array(False)
        return state, Step(state, -(state[0] ** 2), no, no)


def act(config, state, observation, key=None):
    action = jnp.full((*observation.shape[:-1], 1), config)
    return (action if key is None else action + 0.1 * jax.random.normal(key, action.shape)), {}


@dataclasses.dataclass(frozen=True)
class Constant:
    """The policy whose action is the configuration."""

    act = staticmethod(act)


AGENT, ENV, NOISY = Constant(), Oscillator(), Oscillator(noise=0.3)
POINTS = evaluate.unit_grid(2, 5)


def oscillate(point, start=(0.0, 0.0), action=0.0, discount=1.0):
    """The return of one episode, in NumPy."""
    (x, v), total = start, 0.0
    for i in range(STEPS):
        v = v + DT * (action - (1 + 8 * point[0]) * x - (0.2 + point[1]) * v + np.cos(DRIVE * i * DT))
        x = x + DT * v
        total -= discount**i * x**2
    return total


def run(env=NOISY, params=POINTS, key=0, **settings):
    return evaluate.grid(AGENT, 0.0, None, env, params, jax.random.key(key), episodes=4, **settings)


@pytest.fixture(scope="module")
def noisy():
    return run(fresh_episodes=400)


def test_returns_are_those_of_numpy_with_the_same_starts_in_every_model(noisy):
    common, fresh = jax.random.split(jax.random.key(0))
    starts = jax.vmap(NOISY.reset, (None, 0))(None, jax.random.split(jax.random.split(common)[0], 4))[0][:, :2]
    expected = [[oscillate(point, start) for start in np.asarray(starts, float)] for point in np.asarray(POINTS)]
    np.testing.assert_allclose(noisy.returns, expected, rtol=1e-3)
    assert not noisy.non_finite.any()
    starts = jax.vmap(NOISY.reset, (None, 0))(None, jax.random.split(jax.random.split(fresh)[0], 400))[0][:, :2]
    worst = np.asarray(POINTS)[np.argmin(np.mean(expected, 1))]
    np.testing.assert_allclose(noisy.fresh_returns, [oscillate(worst, s) for s in np.asarray(starts, float)], rtol=1e-3)


def test_summaries_are_their_definitions(noisy):
    means = np.asarray(noisy.returns, float).mean(1)
    assert noisy.worst_index == means.argmin()
    assert noisy.worst_case == pytest.approx(np.asarray(noisy.fresh_returns).mean(), rel=1e-5)
    assert noisy.average == pytest.approx(means.mean(), rel=1e-5)
    lowest = np.sort(means)[:3]  # a tenth of 25 models: two, and half of the next
    assert noisy.worst_decile == pytest.approx((lowest[0] + lowest[1] + lowest[2] / 2) / 2.5, rel=1e-5)
    np.testing.assert_allclose(noisy.profile, np.sort(means), rtol=1e-5)


def test_the_least_of_noisy_means_is_biased_and_the_fresh_one_is_not():
    """In 300 equal models the least mean over 4 episodes is far too low; over fresh ones it is the mean."""
    params = jnp.full((300, 2), 0.5) + jnp.zeros(2)
    env = Drawn()
    result = evaluate.grid(AGENT, 0.0, None, env, params.at[:, 0].set(jnp.arange(300.0)), jax.random.key(3), episodes=4)
    assert result.means.min() < -1  # 2.9 standard deviations of 0.5, in expectation
    assert result.worst_case == pytest.approx(0, abs=0.4)  # 4 standard deviations of 0.1


@dataclasses.dataclass(frozen=True)
class Drawn(Oscillator):
    """One step, whose reward is standard normal and other in every model."""

    max_steps: int = 1

    def step(self, params, state, action, key):
        reward = jax.random.normal(jax.random.fold_in(key, params[0].astype(int)))
        return state, Step(state, reward, jnp.array(False), jnp.array(False))


def test_common_random_numbers_and_samples(noisy):
    alike = run(params=jnp.full((3, 2), 0.25), greedy=False)
    np.testing.assert_array_equal(alike.returns[0], alike.returns[2])
    assert np.all(alike.returns[0] != run(params=jnp.full((3, 2), 0.25)).returns[0])


def test_policies_under_vmap(noisy):
    both = jax.vmap(lambda push: evaluate.grid(AGENT, push, None, ENV, POINTS, jax.random.key(0), episodes=1))(
        jnp.array([0.0, 0.5])
    )
    expected = np.array([[oscillate(p, action=a) for p in np.asarray(POINTS)] for a in (0.0, 0.5)])
    np.testing.assert_allclose(both.means, expected, rtol=1e-3)
    np.testing.assert_array_equal(both.worst_index, expected.argmin(1))
    np.testing.assert_allclose(both.worst_case, expected.min(1), rtol=1e-3)


def test_the_grid_of_rrls_leaves_the_upper_end_out():
    """RRLS has numpy.arange(low, high, (high - low) / 10) in each dimension."""
    low, high = np.array([0.1, 1.0]), np.array([3.0, 31.0])
    axes = [np.arange(a, b, (b - a) / 10)[:10] for a, b in zip(low, high, strict=True)]
    expected = [(x, y) for x in axes[0] for y in axes[1]]
    points = low + np.asarray(evaluate.unit_grid(2, endpoint=False), float) * (high - low)
    np.testing.assert_allclose(points, expected, rtol=1e-6)
    assert evaluate.unit_grid(3).shape == (1000, 3)
    assert evaluate.unit_grid(3).max() == 1


# ----------------------------------------------------------------------------------- the worst model

SEARCHES = [evaluate.Lattice(25), evaluate.CMAES(generations=20, population=24), evaluate.Gradient()]


@pytest.fixture(scope="module")
def known():
    """The worst point and its return, by the same oscillator in NumPy on a grid of 801 stiffnesses."""
    points = [(u, 0.0) for u in np.linspace(0, 1, 801)]
    returns = [oscillate(point) for point in points]
    assert oscillate((0.4, 0.05)) > oscillate((0.4, 0.0))  # less damping is worse
    return np.array(points[np.argmin(returns)]), min(returns)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s).__name__)
def test_every_search_finds_the_resonance(search, known):
    point, least = known
    assert 0.1 < point[0] < 0.9
    found = evaluate.worst_params(AGENT, 0.0, None, ENV, jax.random.key(0), search, episodes=1, fresh_episodes=2)
    np.testing.assert_allclose(found.point, point, atol=0.025)
    assert found.worst_case == pytest.approx(least, rel=0.01)
    assert found.values.min() == pytest.approx(least, rel=0.01)
    assert np.all((found.points >= 0) & (found.points <= 1))
    np.testing.assert_array_equal(found.params, found.point)
    for tried in (0, 7):
        assert found.values[tried] == pytest.approx(oscillate(np.asarray(found.points[tried])), rel=1e-3)


def test_the_worst_model_is_run_again_with_other_random_numbers():
    found = evaluate.worst_params(
        AGENT, 0.0, None, NOISY, jax.random.key(0), evaluate.Lattice(3), episodes=2, fresh_episodes=400
    )
    rng = np.random.default_rng(0)
    drawn = [oscillate(np.asarray(found.point, float), start) for start in 0.3 * rng.normal(size=(400, 2))]
    assert found.worst_case == pytest.approx(np.mean(drawn), abs=4.5 * np.std(drawn) * np.sqrt(2 / 400))
    assert found.values.min() != found.worst_case


def test_any_parameters_of_an_environment_can_be_searched():
    settings = {"place": softer, "dims": 1, "episodes": 1, "fresh_episodes": 1}
    found = evaluate.worst_params(AGENT, 0.0, None, ENV, jax.random.key(0), evaluate.Lattice(5), **settings)
    expected = [oscillate((u / 2, 0.3)) for u in np.linspace(0, 1, 5)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-3)
    np.testing.assert_allclose(found.params, [found.point[0] / 2, 0.3], rtol=1e-6)


def test_the_search_may_discount():
    settings = {"episodes": 1, "fresh_episodes": 1, "discount": 0.9}
    found = evaluate.worst_params(AGENT, 0.0, None, ENV, jax.random.key(0), evaluate.Lattice(5), **settings)
    expected = [oscillate(point, discount=0.9) for point in np.asarray(POINTS)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-3)
    np.testing.assert_allclose(found.point, POINTS[np.argmin(expected)])
    assert found.worst_case == pytest.approx(min(expected), rel=1e-3)


def softer(point):
    return jnp.array([0.5, 0.0]) * point + jnp.array([0.0, 0.3])


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "params", [jnp.ones(2), jnp.ones((4, 3)), {"mass": jnp.ones((4, 2))}, jnp.ones((4, 1, 2))], ids=str
)
def test_parameters_of_another_shape_are_refused(params):
    with pytest.raises(ValueError, match=r"params has shapes .*, expected those of the environment.*, \(2,\)"):
        run(params=params)


def test_bad_settings_are_refused():
    pendulum = types.SimpleNamespace(params=lambda: {"mass": 1.0})

    @dataclasses.dataclass(frozen=True)
    class Other(Oscillator):
        def params(self):
            return pendulum.params()

    with pytest.raises(ValueError, match="dims is needed"):
        evaluate.worst_params(AGENT, 0.0, None, Other(), jax.random.key(0))
    with pytest.raises(ValueError, match="dims and points must be at least 1, got 0 and 10"):
        evaluate.unit_grid(0)
    with pytest.raises(ValueError, match=r"CMAES.population must be an integer of at least 1"):
        evaluate.CMAES(population=0)
    with pytest.raises(ValueError, match=r"Gradient.starts must be an integer of at least 1"):
        evaluate.Gradient(starts=0)
