"""TQC's own mathematics: the pool, what is dropped from it, and what the actor climbs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, window

from jaxrl import envs, train
from jaxrl.agents import sac, tqc
from jaxrl.types import Replay

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(tqc, num_critics=3, num_quantiles=4, drop=1.0, target_entropy=None)


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(tqc.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    fresh = fresh.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target))
    return fresh.replace(params=fresh.params | {"log_temperature": jnp.log(0.3)})


def test_what_the_critics_regress_on(state):
    """In NumPy, for each member of the batch by itself: of 3 x 4 quantiles the 3 largest of all are left out."""
    config, batch, rows = CONFIG.replace(discount=0.9, reward_scale=2.0), window(ENV, 3), 3
    pool, weights = tqc.target(config, state, batch, jax.random.key(5))
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    action, log_prob = sac.actor(config, ENV.spec, state.params, last).sample_and_log_prob(seed=jax.random.key(5))
    quantiles = np.asarray(tqc.critics(config, state.target, last, action))
    np.testing.assert_allclose(weights, [1 / 9] * 9 + [0] * 3)
    for b, m in enumerate(steps):
        kept = sorted(q for critic in quantiles[:, b] for q in critic)[:9]
        alive = 0.0 if b == 1 else 1.0  # the one that terminated
        earned = sum(0.9**k * 2 * batch.reward[k, b] for k in range(m))
        expected = [earned + alive * 0.9**m * (q - 0.3 * log_prob[b]) for q in kept]
        np.testing.assert_allclose(pool[b, :9], expected, rtol=1e-4, atol=1e-5)


def test_the_losses_written_out(state):
    """The loss of the critics as four sums; the actor climbs the mean of all quantiles, none left out."""
    batch = window(ENV, 1)
    targets = tqc.target(CONFIG, state, batch, jax.random.key(5))
    total, metrics = tqc.loss(state.params, CONFIG, state, batch, targets, jax.random.key(3))
    quantiles = np.asarray(tqc.critics(CONFIG, state.params["critics"], batch.observation[0], batch.action[0]))
    losses = []
    for critic in quantiles:
        for b in range(6):
            for i, theta in enumerate(critic[b]):
                for y in np.asarray(targets[0])[b, :9]:
                    u, tau = y - theta, (2 * i + 1) / 8
                    losses.append(abs(tau - (u < 0)) * (u**2 / 2 if abs(u) <= 1 else abs(u) - 0.5))
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-4)
    policy = sac.actor(CONFIG, ENV.spec, state.params, batch.observation[0])
    action, log_prob = policy.sample_and_log_prob(seed=jax.random.key(3))
    value = np.mean(tqc.critics(CONFIG, state.params["critics"], batch.observation[0], action), axis=(0, 2))
    np.testing.assert_allclose(metrics["actor_loss"], np.mean(0.3 * log_prob - value), rtol=1e-4, atol=1e-6)
    temperature_loss = -0.3 * (np.mean(log_prob) - 2)
    expected = metrics["critic_loss"] + metrics["actor_loss"] + temperature_loss
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_more_is_dropped_the_lower_the_target(state):
    means = []
    for drop in (0.0, 0.5, 1.0, 3.0):
        pool, weights = tqc.target(CONFIG.replace(drop=drop), state, window(ENV, 1), jax.random.key(5))
        means.append(pool @ weights)
    assert np.all(np.diff(np.array(means), axis=0)[:, [0, 2, 3, 4, 5]] < 0)  # all but the one that terminated


@pytest.mark.slow
def test_values_of_a_probe():
    """Without entropy, and with nothing left out, the quantiles are all at the known value."""
    env, discount = envs.make("jaxrl/probe_truncation", continuous=True), 0.8
    config = tqc.Config(
        learning_rate=3e-3,
        discount=discount,
        drop=0.0,
        num_critics=2,
        num_quantiles=5,
        initial_temperature=1e-4,
        target_entropy=-100.0,
        target_rate=0.05,
        hidden_sizes=(32,),
        critic_hidden_sizes=(32,),
        data=Replay(num_envs=4, capacity=512, batch_size=32, warmup=64),
    )
    loop = train.loop(tqc, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 1500)
    known = env.values(discount)
    action, _ = tqc.act(config, run.agent, known.observation)
    quantiles = tqc.critics(config, run.agent.params["critics"], known.observation, action)
    np.testing.assert_allclose(quantiles, np.tile(known.value[:, None], (2, 1, 5)), rtol=0.1, atol=0.1)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"Config.drop must be in \[0, 4\), got 4"):
        CONFIG.replace(drop=4.0)
    with pytest.raises(ValueError, match=r"Config.num_quantiles must be an integer of at least 1, got 0"):
        CONFIG.replace(num_quantiles=0)
