"""TD3's own mathematics: the smoothed target, the delay, whose gradient moves what; and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moved, small, window

from jaxrl import envs, risk, train
from jaxrl.agents import sac, td3
from jaxrl.distributional import critics
from jaxrl.types import Replay

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(td3)


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(td3.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    return fresh.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target))


@pytest.mark.parametrize("rows", [1, 3])
def test_target_is_the_smaller_value_near_the_policy(state, rows):
    """In NumPy, for each member of the batch by itself."""
    config, batch = CONFIG.replace(discount=0.9, reward_scale=2.0, target_noise=0.4, noise_clip=0.3), window(ENV, rows)
    targets = td3.target(config, state, batch, jax.random.key(5))
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    noise = np.clip(0.4 * np.asarray(jax.random.normal(jax.random.key(5), (6, 2))), -0.3, 0.3)
    assert np.any(abs(noise) == np.float32(0.3)) and np.any(abs(noise) < 0.3)
    action = np.clip(td3.actor(config, ENV.spec, state.target, last) + noise, -1, 1)
    values = np.asarray(sac.critics(config, state.target["critics"], last, jnp.asarray(action)))[..., 0]
    for b, m in enumerate(steps):
        expected = sum(0.9**k * 2 * batch.reward[k, b] for k in range(m))
        if b != 1:  # the one that terminated
            expected += 0.9**m * values[:, b].min()
        np.testing.assert_allclose(targets[b, 0], expected, rtol=1e-4, atol=1e-5)


def test_actor_and_targets_move_every_delay_updates(state):
    config, batch = CONFIG.replace(delay=3), window(ENV, 1)
    update = jax.jit(td3.update)
    for count in range(1, 7):
        after, _ = update(config, state, batch, jax.random.key(count))
        changed = [
            moved(old, new)
            for old, new in [
                (state.params["critics"], after.params["critics"]),
                (state.params["actor"], after.params["actor"]),
                (state.target, after.target),
            ]
        ]
        assert changed == [True, count % 3 == 0, count % 3 == 0]
        state = after


def test_the_actor_climbs_the_first_critic(state):
    """The gradient through the action, written out by the chain rule."""
    batch = window(ENV, 1)
    observation = batch.observation[0]
    gradient = jax.grad(td3.actor_loss)(state.params["actor"], CONFIG, state, batch)

    def value(action):
        return jnp.mean(sac.critics(CONFIG, state.params["critics"], observation, action)[0])

    action, back = jax.vjp(lambda p: td3.actor(CONFIG, ENV.spec, {"actor": p}, observation), state.params["actor"])
    (expected,) = back(-jax.grad(value)(action))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, expected)


def test_noise_explores_inside_the_box(state):
    observation = window(ENV, 1, batch=512).observation[0]
    quiet, _ = td3.act(CONFIG, state, observation)
    noisy, _ = td3.act(CONFIG.replace(exploration_noise=0.1), state, observation, jax.random.key(0))
    inside = abs(noisy) < 1
    assert np.all(abs(noisy) <= 1) and np.mean(inside) > 0.5
    np.testing.assert_allclose(np.std((noisy - quiet)[inside & (abs(quiet) < 0.5)]), 0.1, rtol=0.15)


@pytest.mark.parametrize(
    "critic", [critics.Scalar(), pytest.param(critics.Categorical(0.0, 8.0, 41), marks=pytest.mark.slow)]
)
def test_values_of_a_probe(critic):
    """Behind a cut the values are the known ones only if it is bootstrapped through."""
    env, discount = envs.make("jaxrl/probe_truncation", continuous=True), 0.8
    config = td3.Config(
        learning_rate=3e-3,
        discount=discount,
        critic=critic,
        target_rate=0.1,
        hidden_sizes=(32,),
        data=Replay(num_envs=4, capacity=512, batch_size=32, warmup=64),
    )
    loop = train.loop(td3, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 800)
    known = env.values(discount)
    action, _ = td3.act(config, run.agent, known.observation)
    values = sac.values(config, sac.critics(config, run.agent.params["critics"], known.observation, action))
    np.testing.assert_allclose(values, np.tile(known.value, (2, 1)), rtol=0.05, atol=0.05)


def test_settings_that_do_not_fit_are_refused(state):
    with pytest.raises(ValueError, match=r"Config.delay must be an integer of at least 1, got 0"):
        CONFIG.replace(delay=0)
    with pytest.raises(ValueError, match=r"Config.risk = CVaR\(level=0.1\) needs a critic that learns a law"):
        CONFIG.replace(risk=risk.CVaR(0.1))
    with pytest.raises(ValueError, match="expected an action space Box"):
        td3.init(CONFIG, envs.make("jaxrl/probe_context").spec, jax.random.key(0))
    averse = CONFIG.replace(critic=critics.Quantile(7), risk=risk.CVaR(0.1))
    assert jax.tree.map(lambda leaf: leaf, averse).risk == risk.CVaR(0.1)
