"""The inclined plane and the cartpole swing-up: their dynamics against NumPy and Gymnasium, and what can be held."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.envs import randomised


def test_the_plane_moves_as_newton_says():
    env, rng = randomised.InclinedPlane(), np.random.default_rng(0)
    step = jax.jit(env.step)
    for angle, mass, position, velocity, push in rng.uniform(
        [-1.5, 0.5, -0.5, -1, -1], [1.5, 2, 0.5, 1, 1], (20, 5)
    ).tolist():
        params = env.params().replace(angle=jnp.float32(angle), mass=jnp.float32(mass))
        state = randomised.InclinedPlaneState(jnp.float32(position), jnp.float32(velocity))
        state, found = step(params, state, jnp.float32([push]), jax.random.key(0))
        v = velocity + 0.05 * (3 * push / mass - 9.81 * np.sin(angle))
        x = position + 0.05 * v
        np.testing.assert_allclose(found.observation, [x, v], rtol=1e-4, atol=1e-6)
        assert found.reward == pytest.approx(-(x**2) - (abs(x) > 0.5), rel=1e-4, abs=1e-6)
        assert found.terminated == (abs(x) > 0.5)


def test_a_box_can_be_held_up_to_an_angle_that_is_known():
    """A regulator that knows the angle holds it below asin(3 / 9.81), and nobody can beyond."""
    env = randomised.InclinedPlane()
    limit = np.arcsin(3 / 9.81)

    @jax.jit
    def held(angle):
        params = env.params().replace(angle=angle)

        def body(state, key):
            push = (9.81 * jnp.sin(angle) - 20 * state.position - 8 * state.velocity) / 3
            state, step = env.step(params, state, jnp.clip(push, -1, 1)[None], key)
            return state, (step.terminated, step.reward)

        state, _ = env.reset(params, jax.random.key(0))
        fell, rewards = jax.lax.scan(body, state, jax.random.split(jax.random.key(1), env.max_steps))[1]
        return fell.any(), rewards.sum()

    fell, returns = jax.vmap(held)(limit * jnp.array([-0.95, 0.0, 0.9, 1.2, -1.3]))
    np.testing.assert_array_equal(fell, [False, False, False, True, True])
    assert np.all(returns[:3] > -0.5)
    assert np.all(returns[3:] < -1)


def test_the_cartpole_moves_as_that_of_gymnasium():
    env, rng = randomised.CartPoleSwingUp(), np.random.default_rng(0)
    theirs = gymnasium.make("CartPole-v1").unwrapped
    step = jax.jit(env.step)
    for i in range(20):
        state = rng.uniform([-2, -1, -3, -4], [2, 1, 3, 4])
        length, mass = rng.uniform([0.1, 0.5], [1.0, 3.0])
        theirs.reset(seed=i)
        theirs.length, theirs.masscart, theirs.total_mass = length, mass, mass + 0.1
        theirs.polemass_length = 0.1 * length
        theirs.state = tuple(state)
        action = i % 2
        theirs.step(action)
        params = env.params().replace(half_length=jnp.float32(length), cart_mass=jnp.float32(mass))
        ours, found = step(
            params,
            randomised.CartPoleSwingUpState(*jnp.float32(state)),
            jnp.float32([2 * action - 1]),
            jax.random.key(0),
        )
        after = [ours.position, ours.velocity, ours.angle, ours.speed]
        np.testing.assert_allclose(after, theirs.state, rtol=1e-4, atol=1e-4)
        x, v, angle, speed = theirs.state
        np.testing.assert_allclose(found.observation, [x, v, np.cos(angle), np.sin(angle), speed], rtol=1e-4, atol=1e-4)
        acceleration = (speed - state[3]) / 0.02
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        expected = 10 * (abs(x) <= 2.4) - wrapped**2 - 0.1 * speed**2 - 0.001 * acceleration**2
        assert found.reward == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert found.terminated == (abs(x) > 2.4)


def test_the_pole_hangs_at_first_and_the_cart_must_stay_on_its_track():
    env = randomised.CartPoleSwingUp()
    _, observations = jax.vmap(env.reset, (None, 0))(env.params(), jax.random.split(jax.random.key(0), 50))
    np.testing.assert_allclose(observations[:, 2], -1, atol=0.002)
    assert np.all(np.abs(np.asarray(observations)[:, [0, 1, 3, 4]]) <= 0.0501)
    state = randomised.CartPoleSwingUpState(*jnp.float32([2.39, 1.0, 0.0, 0.0]))
    _, step = jax.jit(env.step)(env.params(), state, jnp.zeros(1), jax.random.key(0))
    assert step.terminated
    assert step.reward == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", [randomised.InclinedPlane, randomised.CartPoleSwingUp])
def test_settings_that_do_not_fit_are_refused(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__}.max_steps must be an integer of at least 1, got 0"):
        kind(max_steps=0)
    assert envs.make(f"jaxrl/{'inclined_plane' if kind is randomised.InclinedPlane else 'cartpole_swing_up'}") == kind()
