"""The random walk and the mountain car: their dynamics against Gymnasium, NumPy and the model of the walk."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import mdp
from jaxrl.envs import control


def test_the_mountain_car_moves_as_that_of_gymnasium():
    env, rng = control.MountainCar(), np.random.default_rng(0)
    theirs = gymnasium.make("MountainCar-v0").unwrapped
    step = jax.jit(env.step)
    ends = [(0.49, 0.02, 1), (-1.19, -0.06, 0), (0.2, 0.069, 1), (-0.9, -0.069, 0)]
    drawn = zip(rng.uniform(-1.2, 0.49, 20), rng.uniform(-0.07, 0.07, 20), rng.integers(2, size=20), strict=True)
    for position, velocity, action in [*drawn, *ends]:
        theirs.state = np.array([position, velocity])
        (p, v), _, over, *_ = theirs.step(2 * int(action))
        state = control.MountainCarState(jnp.float32(position), jnp.float32(velocity))
        state, found = step(env.params(), state, jnp.int32(action), jax.random.key(0))
        np.testing.assert_allclose([state.position, state.velocity], [min(p, 0.5), v], atol=1e-6)
        assert found.terminated == over
        assert found.reward == (0 if over else -1)


def test_the_mountain_car_is_seen_through_a_grid():
    env = control.MountainCar()
    state = control.MountainCarState(jnp.float32(-0.5), jnp.float32(0.01))
    _, found = jax.jit(env.step)(env.params(), state, jnp.int32(1), jax.random.key(0))
    velocity = 0.01 + 0.001 - 0.0025 * np.cos(-1.5)
    at = np.array([(-0.5 + velocity + 1.2) / 1.7, (velocity + 0.07) / 0.14])
    for i in range(4):
        for j in range(4):
            centre = np.array([(i + 0.5) / 4, (j + 0.5) / 4])
            expected = np.exp(-np.sum((at - centre) ** 2) / (2 * (1.3 / 4) ** 2))
            assert found.observation[4 * i + j] == pytest.approx(expected, rel=1e-4)


def test_the_walk_is_its_model():
    env = control.RandomWalk(states=4)
    params = env.params()
    model = env.model(params, 0.9)
    mdp.validate(model)
    step = jax.jit(jax.vmap(env.step, (None, None, None, 0)))
    for state in range(3):
        for action in range(2):
            keys = jax.random.split(jax.random.key(10 * state + action), 4000)
            after, found = step(params, jnp.int32(state), jnp.int32(action), keys)
            assert np.all(model.transition[state, action, after] == 1)
            assert np.all(found.terminated == (after == 3))
            np.testing.assert_array_equal(found.observation.argmax(-1)[after < 3], after[after < 3])
            assert np.all(found.observation.sum(-1) == (after < 3))
            np.testing.assert_allclose(found.reward.mean(), model.reward[state, action], atol=4.5 / np.sqrt(4000))
            np.testing.assert_allclose(found.reward.std(), 1, atol=4.5 / np.sqrt(8000))
    assert mdp.value_iteration(model).value[0] == pytest.approx(-(1 - 0.9**3) / 0.1, abs=1e-4)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"RandomWalk.states must be at least 2, a start and an end, got 1"):
        control.RandomWalk(states=1)
    with pytest.raises(ValueError, match=r"MountainCar.grid must be an integer of at least 1, got 0"):
        control.MountainCar(grid=0)
