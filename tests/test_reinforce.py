"""REINFORCE: the estimate against explicit sums over episodes, and against a gradient that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

from jaxrl import envs, train
from jaxrl.agents import reinforce
from jaxrl.types import Box, Rollout, Spec, Transition

SPEC = Spec(Box((2,)), Box((1,), -1.0, 1.0))
CONFIG = small(reinforce, discount=0.9, hidden_sizes=(), adam=False, max_gradient_norm=jnp.inf, learning_rate=1.0)
LENGTHS = (4, 2, 1, 4)  # of the first episode of each environment; the second terminates, the third is truncated


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    flags = np.zeros((2, 4, 4), bool)
    flags[0, 1, 1] = flags[1, 0, 2] = flags[1, 3, 0] = flags[1, 3, 3] = True
    return Transition(
        observation=jnp.asarray(rng.normal(size=(4, 4, 2)), jnp.float32),
        action=jnp.asarray(rng.normal(size=(4, 4, 1)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=(4, 4)), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(4, 4, 2)), jnp.float32),
        terminated=jnp.asarray(flags[0]),
        truncated=jnp.asarray(flags[1]),
    )


@pytest.mark.parametrize("reward_to_go", [True, False])
@pytest.mark.parametrize("baseline", [True, False])
def test_the_step_is_the_sum_over_episodes(batch, reward_to_go, baseline):
    config = CONFIG.replace(reward_to_go=reward_to_go, baseline=baseline)
    state = reinforce.init(config, SPEC, jax.random.key(1))
    state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.3, state.params))

    @jax.jit
    @jax.grad
    def score(params, observation, action):
        return reinforce.actor(config, SPEC, params, observation).log_prob(action)

    reward = np.asarray(batch.reward, float)
    to_go = np.zeros((4, 4))
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            to_go[t, i] = sum(0.9 ** (k - t) * reward[k, i] for k in range(t, length))
    expected = jax.tree.map(jnp.zeros_like, state.params)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            gain = to_go if reward_to_go else np.broadcast_to(to_go[0], to_go.shape)
            weight = gain[t, i] - (np.mean([gain[t, j] for j in range(4) if j != i]) if baseline else 0)
            weight *= 0.9**t if reward_to_go else 1
            u = score(state.params, batch.observation[t, i], batch.action[t, i])
            expected = jax.tree.map(lambda total, x, w=weight: total + w * x / 4, expected, u)
    after, metrics = reinforce.update(config, state, batch, jax.random.key(0))
    jax.tree.map(
        lambda new, old, step: np.testing.assert_allclose(new - old, step, rtol=2e-4, atol=2e-5),
        after.params, state.params, expected,
    )  # fmt: skip
    np.testing.assert_allclose(metrics["return"], to_go[0].mean(), rtol=1e-5)
    assert metrics["unfinished"] == 0


def test_episodes_that_a_rollout_cuts_are_reported(batch):
    state = reinforce.init(CONFIG, SPEC, jax.random.key(1))
    cut = batch.replace(truncated=batch.truncated.at[3].set(False))
    assert reinforce.update(CONFIG, state, cut, jax.random.key(0))[1]["unfinished"] == 0.5


@pytest.mark.parametrize("reward_to_go", [True, False])
def test_the_estimate_is_unbiased_for_a_gradient_in_closed_form(reward_to_go):
    """A bandit, a ~ N(theta, 1) and reward -(a - 2)^2: the gradient of -(theta - 2)^2 - 1 at theta = 0 is 4."""
    config = reinforce.Config(
        hidden_sizes=(), adam=False, reward_to_go=reward_to_go, learning_rate=1.0, data=Rollout(5, 1, restart=True)
    )
    spec = Spec(Box((1,)), Box((1,)))
    state = reinforce.init(config, spec, jax.random.key(0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))

    def step(key):
        act_key, update_key = jax.random.split(key)
        observation = jnp.ones((1, 5, 1))
        action, _ = reinforce.act(config, state, observation, act_key)
        reward, yes = -((action[..., 0] - 2) ** 2), jnp.ones((1, 5), bool)
        batch = Transition(observation, action, reward, observation, yes, ~yes)
        return reinforce.update(config, state, batch, update_key)[0].params["params"]["Head_0"]["Dense_0"]["bias"][0]

    steps = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(1), 20_000))
    assert abs(steps.mean() - 4) < 5 * steps.std() / np.sqrt(20_000) and steps.std() / np.sqrt(20_000) < 0.05


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be a Rollout with restart=True"):
        reinforce.Config(data=Rollout(4, 8))
    with pytest.raises(ValueError, match="baseline needs at least 2 episodes a rollout"):
        reinforce.Config(data=Rollout(1, 8, restart=True))


def test_it_learns_what_to_do_in_each_context():
    env = envs.make("jaxrl/probe_context")
    config = reinforce.Config(learning_rate=3e-2, hidden_sizes=(), data=Rollout(16, env.max_steps, restart=True))
    loop = train.loop(reinforce, env)
    _, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 200)
    assert metrics["return"][-10:].mean() > metrics["return"][:10].mean() + 0.5
    assert np.all(metrics["unfinished"] == 0)
