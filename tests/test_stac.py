"""STAC's own mathematics: pessimism, dropout, and the fixed point of its one-step operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, window

from jaxrl import envs
from jaxrl.agents import stac
from jaxrl.types import Box, Spec, Transition

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(stac, target_entropy=None)


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(stac.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    fresh = fresh.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target))
    return fresh.replace(params=fresh.params | {"log_temperature": jnp.log(0.3)})


def forward(params, inputs):
    """The network without dropout, in NumPy: dense, layer norm, relu, twice, and a dense layer."""
    layers, x = params["params"]["MLP_0"], np.asarray(inputs, np.float64)
    for i in range(2):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = np.maximum(x * layers[f"LayerNorm_{i}"]["scale"] + layers[f"LayerNorm_{i}"]["bias"], 0)
    head = params["params"]["Dense_0"]
    return np.split(x @ head["kernel"] + head["bias"], 2, axis=-1)


def spread(raw):
    return np.log1p(np.exp(np.maximum(raw, -5)))


def test_target_and_losses_written_out(state):
    """Without dropout, all in NumPy; pessimism is in the target and in the actor."""
    config = CONFIG.replace(actor_dropout=0.0, critic_dropout=0.0, pessimism=0.5, discount=0.9, reward_scale=2.0)
    batch = window(ENV, 1)
    keys = jax.random.split(jax.random.key(5), 3)
    after = batch.next_observation[0]
    action, log_prob = stac.actor(config, ENV.spec, state.params, after).sample_and_log_prob(seed=keys[1])
    mean, raw = forward(state.target, jnp.concatenate([after, action], -1))
    soft = mean[:, 0] - 0.5 * spread(raw[:, 0]) - 0.3 * log_prob
    expected = 2 * batch.reward[0] + 0.9 * np.where(batch.terminated[0], 0, soft)
    targets = stac.target(config, state, batch, jax.random.key(5))
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-4)

    total, metrics = stac.loss(state.params, config, state, batch, targets, jax.random.key(3))
    before = batch.observation[0]
    mean, raw = (x[:, 0] for x in forward(state.params["critic"], np.concatenate([before, batch.action[0]], -1)))
    expected = np.mean(np.log(spread(raw)) + (targets - mean) ** 2 / (2 * spread(raw) ** 2))
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-3)
    policy = stac.actor(config, ENV.spec, state.params, before)
    action, log_prob = policy.sample_and_log_prob(seed=jax.random.split(jax.random.key(3), 4)[2])
    mean, raw = (x[:, 0] for x in forward(state.params["critic"], np.concatenate([before, action], -1)))
    expected = np.mean(0.3 * log_prob - (mean - 0.5 * spread(raw)))
    np.testing.assert_allclose(metrics["actor_loss"], expected, rtol=1e-3, atol=1e-5)
    expected = metrics["critic_loss"] + metrics["actor_loss"] - 0.3 * (np.mean(log_prob) - 2)
    np.testing.assert_allclose(total, expected, rtol=1e-3)


def test_dropout_is_there_where_it_samples_and_nowhere_else(state):
    config = CONFIG.replace(actor_dropout=0.5, critic_dropout=0.5)
    observation = window(ENV, 1).observation[0]
    action = jnp.zeros((6, 2))
    first, second = (stac.critic(config, state.target, observation, action, jax.random.key(i))[0] for i in (0, 1))
    assert np.all(first != second)
    modes = [stac.act(setting, state, observation)[0] for setting in (CONFIG, config)]
    np.testing.assert_array_equal(*modes)
    one, two = (stac.actor(config, ENV.spec, state.params, observation, jax.random.key(i)).mode() for i in (0, 1))
    assert np.all(one != two)
    mean, _ = stac.critic(config.replace(critic_dropout=0.0), state.target, observation, action, jax.random.key(0))
    expected, _ = forward(state.target, np.concatenate([observation, action], -1))
    np.testing.assert_allclose(mean, expected[:, 0], rtol=1e-4, atol=1e-5)


# Three states; each row is what may happen in a state, all equally likely: reward, successor, whether it ends.
CHAIN = np.array(
    [
        [[1.0, 0, 0], [0.0, 1, 0], [2.0, 1, 0], [-1.0, 2, 0]],
        [[0.5, 2, 0], [0.5, 2, 0], [0.5, 2, 0], [0.5, 2, 0]],  # the same each time: its sigma is that of nothing
        [[3.0, 0, 1], [-1.0, 0, 1], [0.0, 0, 0], [0.0, 1, 0]],
    ]
)


def fixed_point(discount, pessimism):
    """Mean and standard deviation of the target in each state, by iteration in NumPy."""
    reward, successor, ends = CHAIN[..., 0], CHAIN[..., 1].astype(int), CHAIN[..., 2]
    mean, std = np.zeros(3), np.zeros(3)
    for _ in range(500):
        y = reward + discount * (1 - ends) * (mean - pessimism * std)[successor]
        mean, std = y.mean(1), y.std(1)
    return mean, std


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_the_loss_leads_to_the_fixed_point_of_the_operator(pessimism):
    """The critic is given what happens in a chain of three states, as it is likely; actions do nothing there."""
    spec = Spec(Box((3,)), Box((1,), -1.0, 1.0))
    config = stac.Config(
        learning_rate=2e-3,
        discount=0.8,
        pessimism=pessimism,
        actor_dropout=0.0,
        critic_dropout=0.0,
        target_rate=0.05,
        initial_temperature=1e-6,
        target_entropy=-100.0,
        hidden_sizes=(32, 32),
    )
    reward, successor, ends = (jnp.asarray(CHAIN[..., i].reshape(1, -1), jnp.float32) for i in range(3))
    states = jnp.eye(3)

    def update(state, key):
        action_key, key = jax.random.split(key)
        batch = Transition(
            observation=jnp.repeat(states, 4, axis=0)[None],
            action=jax.random.uniform(action_key, (1, 12, 1), minval=-1.0),
            reward=reward,
            next_observation=states[successor.astype(int)],
            terminated=ends > 0,
            truncated=jnp.zeros_like(ends, bool),
        )
        return stac.update(config, state, batch, key)[0], None

    state = stac.init(config, spec, jax.random.key(0))
    state, _ = jax.jit(lambda s: jax.lax.scan(update, s, jax.random.split(jax.random.key(1), 4000)))(state)
    mean, std = stac.critic(config, state.params["critic"], states, jnp.zeros((3, 1)), jax.random.key(0))
    expected = fixed_point(0.8, pessimism)
    np.testing.assert_allclose(mean, expected[0], atol=0.1)
    np.testing.assert_allclose(std[np.array([0, 2])], expected[1][[0, 2]], rtol=0.1)
    assert expected[1][1] == 0 and std[1] < 0.1


def test_without_pessimism_the_mean_is_the_value():
    """The fixed point that the test above is held to, beside the linear equations of the chain."""
    step = np.zeros((3, 3))
    for s in range(3):
        for _, successor, ends in CHAIN[s]:
            step[s, int(successor)] += (1 - ends) / 4
    np.testing.assert_allclose(fixed_point(0.8, 0.0)[0], np.linalg.solve(np.eye(3) - 0.8 * step, CHAIN[..., 0].mean(1)))
    assert np.all(fixed_point(0.8, 0.5)[0] < fixed_point(0.8, 0.0)[0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Config.critic_dropout must be in \[0, 1\), got 1"):
        CONFIG.replace(critic_dropout=1.0)
    with pytest.raises(ValueError, match=r"Config.pessimism must be in \[0, inf\], got -1"):
        CONFIG.replace(pessimism=-1.0)
    with pytest.raises(ValueError, match=r"stac needs observations \(F,\) and actions Box"):
        stac.init(CONFIG, envs.make("jaxrl/probe_context").spec, jax.random.key(0))
