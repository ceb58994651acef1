"""What FastTD3 adds to TD3: laws as targets, a noise for each environment, weights that decay, when the actor moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moved, small, window

from jaxrl import envs, normalise, train
from jaxrl.agents import fasttd3, sac, td3
from jaxrl.distributional import critics
from jaxrl.types import Replay

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(fasttd3, critic=critics.Categorical(-3.0, 3.0, 13), normalise_observations=False)


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(fasttd3.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    return fresh.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target))


def test_the_target_is_the_projected_law_of_the_smaller_mean(state):
    """In NumPy, atom by atom, for each member of the batch by itself; the actor is the one that learns."""
    config, batch = CONFIG.replace(discount=0.9, target_noise=0.0), window(ENV, 1)
    targets = fasttd3.target(config, state, batch, jax.random.key(5))
    action = td3.actor(config, ENV.spec, state.params, batch.next_observation[0])
    outputs = sac.critics(config, state.target, batch.next_observation[0], action)
    probs, support = np.asarray(jax.nn.softmax(outputs)), np.linspace(-3, 3, 13)
    for b in range(6):
        law = probs[int((probs[1, b] @ support) < (probs[0, b] @ support)), b]
        expected = np.zeros(13)
        for p, z in zip(law, support, strict=True):
            x = np.clip(float(batch.reward[0, b]) + (0 if b == 1 else 0.9) * z, -3, 3)
            place = (x + 3) / 0.5
            low = min(int(place), 11)
            expected[low] += p * (low + 1 - place)
            expected[low + 1] += p * (place - low)
        np.testing.assert_allclose(targets[b], expected, atol=1e-5)


def test_each_environment_has_its_noise(state):
    config = CONFIG.replace(least_noise=0.01, most_noise=0.09)
    observation = jnp.zeros((1000, 3, 4))
    noise = fasttd3.act(config, state, observation, jax.random.key(0))[0] - fasttd3.act(config, state, observation)[0]
    np.testing.assert_allclose(np.std(noise, axis=(0, 2)), [0.01, 0.05, 0.09], rtol=0.1)


def test_targets_move_at_each_update_and_the_actor_when_it_is_due(state):
    update = jax.jit(fasttd3.update)
    for count in range(1, 5):
        after, _ = update(CONFIG, state, window(ENV, 1), jax.random.key(count))
        changed = [
            moved(old, new)
            for old, new in [(state.target, after.target), (state.params["actor"], after.params["actor"])]
        ]
        assert changed == [True, count % 2 == 0]
        state = after


def test_weights_decay(state):
    """Beside the step of Adam alone, each weight loses learning_rate * weight_decay of itself."""
    batch = window(ENV, 1)
    plain, decayed = (
        fasttd3.update(CONFIG.replace(weight_decay=decay), state, batch, jax.random.key(0))[0].params["critics"]
        for decay in (0.0, 0.5)
    )
    jax.tree.map(
        lambda a, b, old: np.testing.assert_allclose(a - b, 0.01 * 0.5 * old, rtol=1e-2, atol=1e-6),
        plain,
        decayed,
        state.params["critics"],
    )


@pytest.mark.slow
def test_values_of_a_probe():
    env, discount = envs.make("jaxrl/probe_truncation", continuous=True), 0.8
    config = fasttd3.Config(
        learning_rate=3e-3,
        weight_decay=0.0,
        discount=discount,
        critic=critics.Categorical(0.0, 8.0, 41),
        hidden_sizes=(32,),
        critic_hidden_sizes=(32,),
        data=Replay(num_envs=4, capacity=512, batch_size=32, warmup=64),
    )
    loop = train.loop(fasttd3, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 800)
    known = env.values(discount)
    action, _ = fasttd3.act(config, run.agent, known.observation)
    seen = normalise.apply(run.agent.normaliser, known.observation)
    outputs = sac.critics(config, run.agent.params["critics"], seen, action)
    atoms, probs = config.critic.law(outputs)
    np.testing.assert_allclose((atoms * probs).sum(-1), np.tile(known.value, (2, 1)), rtol=0.05, atol=0.05)
