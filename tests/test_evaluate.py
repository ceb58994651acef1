"""Evaluation against stepping the environment by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

from jaxrl import envs, evaluate
from jaxrl.agents import ppo
from jaxrl.types import Box, Spec, Step

ENV = envs.make("jaxrl/pendulum", max_steps=12)
CONFIG = small(ppo)


@pytest.fixture(scope="module")
def state():
    return jax.jit(ppo.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))


def run(state, **settings):
    return jax.jit(lambda state: evaluate.evaluate(ppo, CONFIG, state, ENV, jax.random.key(1), episodes=3, **settings))(
        state
    )


def test_greedy_returns_are_those_of_stepping_by_hand(state):
    result = run(state)
    reset_key, _ = jax.random.split(jax.random.key(1))
    step = jax.jit(ENV.step)
    for i, key in enumerate(jax.random.split(reset_key, 3)):
        env_state, observation = ENV.reset(ENV.params(), key)
        total = 0.0
        for _ in range(12):
            action, _ = ppo.act(CONFIG, state, observation)
            env_state, out = step(ENV.params(), env_state, ENV.spec.action.clip(action), jax.random.key(9))
            observation, total = out.observation, total + float(out.reward)
        np.testing.assert_allclose(result.returns[i], total, rtol=1e-4)
    np.testing.assert_array_equal(result.lengths, 12)
    assert not result.terminated.any() and not result.non_finite.any()


def test_greedy_and_sampled_in_one_program_have_the_same_starts(state):
    both = run(state, greedy=jnp.array([True, False, True]))
    greedy, sampled = run(state), run(state, greedy=False)
    np.testing.assert_allclose(both.returns[0], greedy.returns[0], rtol=1e-4)
    np.testing.assert_allclose(both.returns[2], greedy.returns[2], rtol=1e-4)
    np.testing.assert_allclose(both.returns[1], sampled.returns[1], rtol=1e-4)
    assert np.all(greedy.returns != sampled.returns)


def test_parameters_of_the_environment_can_be_given(state):
    heavy = ENV.params().replace(mass=jnp.array(5.0))
    assert np.all(run(state, params=heavy).returns != run(state).returns)
    masses = jnp.array([1.0, 5.0])
    grid = jax.vmap(lambda mass: run(state, params=ENV.params().replace(mass=mass)).returns)(masses)
    np.testing.assert_allclose(grid[0], run(state).returns, rtol=1e-4)


class Short:
    """Episodes of 2, 4, 6, ... steps of reward 1, by their number; the third breaks down at its third step."""

    spec = Spec(Box((1,)), Box((1,), -1.0, 1.0))
    max_steps = 5

    def params(self):
        return {}

    def reset(self, params, key):
        return {"left": jnp.int32(0), "length": jnp.int32(0)}, jnp.zeros(1)

    def step(self, params, state, action, key):
        left = jnp.where(state["length"] == 0, action[0].astype(int), state["left"]) - 1
        length = state["length"] + 1
        broken = (left == 3) & (length == 3)
        observation = jnp.where(broken, jnp.nan, jnp.zeros(1))
        step = Step(observation, jnp.ones(()), left == 0, jnp.array(False))
        return {"left": left, "length": length}, step


def test_each_episode_runs_to_its_own_end():
    env = Short()
    env.spec = Spec(Box((1,)), Box((1,)))
    agent = types.SimpleNamespace(act=lambda config, state, observation, key=None: (config[:, None], {}))
    result = evaluate.evaluate(agent, jnp.array([2.0, 4.0, 6.0, 9.0]), None, env, jax.random.key(0), episodes=4)
    np.testing.assert_array_equal(result.returns, [2, 4, 2, 5])  # terminated, terminated, broke down, time limit
    np.testing.assert_array_equal(result.lengths, [2, 4, 3, 5])
    np.testing.assert_array_equal(result.terminated, [True, True, False, False])
    np.testing.assert_array_equal(result.non_finite, [False, False, True, False])


@pytest.mark.parametrize("discount", [0.5, 0.9, 1.0])
def test_returns_can_be_discounted(discount):
    """In closed form: rewards of 1, and the third episode breaks down at its third step."""
    env = Short()
    env.spec = Spec(Box((1,)), Box((1,)))
    agent = types.SimpleNamespace(act=lambda config, state, observation, key=None: (config[:, None], {}))
    numbers = jnp.array([2.0, 4.0, 6.0, 9.0])
    settings = {"episodes": 4, "discount": discount}
    result = jax.jit(lambda: evaluate.evaluate(agent, numbers, None, env, jax.random.key(0), **settings))()
    np.testing.assert_allclose(result.returns, [sum(discount**t for t in range(n)) for n in (2, 4, 2, 5)], rtol=1e-6)


def test_starts_are_those_of_an_evaluation_with_the_same_key(state):
    _, observation, _ = evaluate.starts(ENV, jax.random.key(1), episodes=3)
    seen = []

    def act(config, state, observation, key=None):
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), observation)
        return jnp.zeros((3, 1)), {}

    agent = types.SimpleNamespace(act=act)
    jax.block_until_ready(evaluate.evaluate(agent, None, None, ENV, jax.random.key(1), episodes=3))
    jax.effects_barrier()
    assert any(np.array_equal(observation, value) for value in seen)


def test_random_returns_are_those_of_uniform_actions():
    returns = evaluate.random_returns(envs.make("jaxrl/pendulum"), jax.random.key(0), episodes=64)
    assert returns.shape == (64,)
    assert -1500 < returns.mean() < -900  # about -1200, as is known of this task


@pytest.mark.parametrize("settings", [{"episodes": 0}, {"episodes": 3, "greedy": jnp.ones(2, bool)}])
def test_bad_settings_are_refused(state, settings):
    with pytest.raises(ValueError, match=r"episodes must be at least 1|greedy has shape \(2,\), expected .* = \(3,\)"):
        evaluate.evaluate(ppo, CONFIG, state, ENV, jax.random.key(0), **settings)
