"""DSAC-T's own mathematics: the two targets, the delay, and the law of a return that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moved, small, window

from jaxrl import envs
from jaxrl.agents import dsac, sac
from jaxrl.types import Box, Spec, Transition

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(dsac, target_entropy=None)


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(dsac.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    fresh = fresh.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target))
    return fresh.replace(params=fresh.params | {"log_temperature": jnp.log(0.3)})


def test_the_targets_are_mean_and_draw_of_the_critic_with_the_smaller_mean(state):
    """In NumPy, for each member of the batch by itself."""
    config, batch, rows = CONFIG.replace(discount=0.9, reward_scale=2.0), window(ENV, 3), 3
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    action_key, draw_key = jax.random.split(jax.random.key(5))
    action, log_prob = sac.actor(config, ENV.spec, state.target, last).sample_and_log_prob(seed=action_key)
    means, stds = (np.asarray(x) for x in dsac.critics(config, state.target["critics"], last, action))
    noise = np.clip(jax.random.normal(draw_key, (6,)), -3, 3)
    targets = dsac.target(config, state, batch, jax.random.key(5))
    chosen = set()
    for b, m in enumerate(steps):
        i = int(means[1, b] < means[0, b])
        chosen.add(i)
        earned, alive = sum(0.9**k * 2 * batch.reward[k, b] for k in range(m)), float(b != 1)
        for y, value in zip(targets, (means[i, b], means[i, b] + stds[i, b] * noise[b]), strict=True):
            expected = earned + alive * 0.9**m * (value - 0.3 * log_prob[b])
            np.testing.assert_allclose(y[b], expected, rtol=1e-4, atol=1e-5)
    assert chosen == {0, 1}


def test_actor_temperature_and_targets_move_every_delay_updates(state):
    config, batch = CONFIG.replace(delay=2), window(ENV, 1)
    update = jax.jit(dsac.update)
    for count in range(1, 5):
        after, _ = update(config, state, batch, jax.random.key(count))
        for name, old, new in [
            ("actor", state.params["actor"], after.params["actor"]),
            ("temperature", state.params["log_temperature"], after.params["log_temperature"]),
            ("target", state.target, after.target),
            ("critics", state.params["critics"], after.params["critics"]),
        ]:
            assert moved(old, new) == (name == "critics" or count % 2 == 0), (name, count)
        if count == 1:
            first = after.scale
        state = after
    assert np.all(first > 0) and np.all(state.scale != first)
    assert np.all(abs(state.scale - first) < 0.2 * first)  # a running mean


@pytest.mark.parametrize(("exact", "factor"), [(True, 1.0), (False, 0.5**0.5)])
def test_the_law_of_a_return_that_is_known(exact, factor):
    """One state that always goes on, reward 1 or -1: the return has mean 0 and variance 1 / (1 - discount^2).

    The released code's sigma^2 solves sigma^2 = (1 + discount^2 sigma^2) / 2 instead.
    """
    discount = 0.6
    config = dsac.Config(
        learning_rate=2e-3,
        discount=discount,
        exact=exact,
        target_rate=0.02,
        initial_temperature=1e-6,
        target_entropy=-100.0,
        hidden_sizes=(16,),
    )
    spec = Spec(Box((1,)), Box((1,), -1.0, 1.0))
    reward = jnp.tile(jnp.array([1.0, -1.0]), 64)[None]

    def update(state, key):
        action_key, key = jax.random.split(key)
        ones, never = jnp.ones((1, 128, 1)), jnp.zeros((1, 128), bool)
        action = jax.random.uniform(action_key, (1, 128, 1), minval=-1.0)
        return dsac.update(config, state, Transition(ones, action, reward, ones, never, never), key)[0], None

    state = dsac.init(config, spec, jax.random.key(0))
    state, _ = jax.jit(lambda s: jax.lax.scan(update, s, jax.random.split(jax.random.key(1), 4000)))(state)
    mean, std = dsac.critics(config, state.params["critics"], jnp.ones((1, 1)), jnp.zeros((1, 1)))
    expected = (factor**2 / (1 - (factor * discount) ** 2)) ** 0.5
    np.testing.assert_allclose(mean, 0, atol=0.1)
    np.testing.assert_allclose(std, expected, rtol=0.06)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"Config.delay must be an integer of at least 1, got 0"):
        CONFIG.replace(delay=0)
    with pytest.raises(ValueError, match="expected an action space Box"):
        dsac.init(CONFIG, envs.make("jaxrl/probe_context").spec, jax.random.key(0))
