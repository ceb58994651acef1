"""The agent with posterior draws for its critic: its parts against PPO's and NumPy, its values where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small

from jaxrl import envs, rollout, train
from jaxrl.agents import lktd, ppo
from jaxrl.bayes import kalman
from jaxrl.types import Rollout

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(lktd, num_draws=3)


@pytest.fixture(scope="module")
def collected():
    """A state, and a rollout [8, 4] that it collected."""
    state = jax.jit(lktd.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, state.params))

    def policy(observation, key):
        return lktd.act(CONFIG, state, observation, key)

    lanes = rollout.lanes(ENV, 4)
    return state, jax.jit(lambda key: rollout.collect(ENV, policy, lanes, key, 8)[1])(jax.random.key(1))


def draw(state, k):
    return jax.tree.map(lambda leaf: leaf[k], state.params["critics"])


def test_draws_start_apart_and_share_one_actor(collected):
    state, batch = collected
    values = lktd.values(CONFIG, state, batch.observation)
    assert values.shape == (3, 8, 4) and np.all(values.std(0) > 1e-3)
    for k in range(3):
        action, _ = ppo.act(lktd.actor_config(CONFIG), lktd.with_draw(state, draw(state, k)), batch.observation)
        np.testing.assert_array_equal(action, lktd.act(CONFIG, state, batch.observation)[0])


def test_advantages_are_those_of_the_mean_value_and_returns_of_each_draw(collected):
    """GAE is linear in values: PPO's own, for a critic that is the mean of the draws."""
    state, batch = collected
    inner = lktd.actor_config(CONFIG)
    shared, targets = lktd.samples(CONFIG, state, batch)
    each = [ppo.samples(inner, lktd.with_draw(state, draw(state, k)), batch) for k in range(3)]
    np.testing.assert_allclose(shared.advantage, np.mean([x.advantage for x in each], axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets, [x.target for x in each], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shared.target, shared.value + shared.advantage, rtol=1e-4, atol=1e-5)
    values = lktd.values(CONFIG, state, batch.observation).mean(0)
    np.testing.assert_allclose(shared.value, values.reshape(-1), rtol=1e-5, atol=1e-6)
    following = lktd.values(CONFIG, state, batch.next_observation).mean(0)
    advantage, expected = 0.0, np.zeros((8, 4))
    for t in reversed(range(8)):  # no episode terminates; those that are cut off bootstrap
        delta = batch.reward[t] + CONFIG.discount * following[t] - values[t]
        advantage = delta + CONFIG.discount * CONFIG.lambda_ * (1 - batch.truncated[t]) * advantage
        expected[t] = advantage
    np.testing.assert_allclose(shared.advantage.reshape(8, 4), expected, rtol=1e-3, atol=1e-4)


def test_without_noise_a_draw_follows_the_gradient_of_its_squared_error(collected):
    """At a vanishing temperature and share near 1, a step is gradient descent at the rate of the settings."""
    state, batch = collected
    shared, targets = lktd.samples(CONFIG, state, batch)
    config = CONFIG.replace(
        population=1e12, prior_variance=1e12, share=1 - 1e-4, critic_rate=0.01, max_gradient_norm=1e9
    )
    before, observation = draw(state, 1), shared.observation

    def loss(critic):
        params = lktd.with_draw(state, critic).params
        values = ppo.apply(lktd.actor_config(config), state.spec, params, observation)[1]
        return jnp.mean((values - targets[1]) ** 2) / 2

    after = lktd.track(config, state, before, shared, targets[1], jnp.array(0.5), jax.random.key(0))
    expected = jax.tree.map(lambda p, g: p - 0.01 * g, before, jax.grad(loss)(before))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), after, expected)


def test_values_stay_when_the_moments_of_returns_move(collected):
    """With no step at all, an update moves the moments to those of the returns, the parameters, and no value."""
    state, batch = collected
    config = CONFIG.replace(learning_rate=0.0, critic_rate=0.0, population=3.0)
    first, _ = jax.jit(lktd.update)(config, state, batch, jax.random.key(2))
    second, _ = jax.jit(lktd.update)(config, first, batch.replace(reward=7 * batch.reward), jax.random.key(2))
    before = lktd.values(config, state, batch.observation)
    np.testing.assert_allclose(lktd.values(config, first, batch.observation), before, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lktd.values(config, second, batch.observation), before, rtol=1e-4, atol=1e-5)
    returns = np.concatenate(
        [np.asarray(lktd.samples(config, state, b)[0].target) for b in (batch, batch.replace(reward=7 * batch.reward))]
    )
    np.testing.assert_allclose(lktd.location(second.returns), (returns.mean(), returns.std()), rtol=1e-4)
    third = second
    for _ in range(40):
        third, _ = jax.jit(lktd.update)(config, third, batch, jax.random.key(2))
    returns = returns[: len(returns) // 2]  # the others are forgotten
    np.testing.assert_allclose(lktd.location(third.returns), (returns.mean(), returns.std()), rtol=1e-2)


def test_the_actor_takes_the_steps_of_ppo(collected):
    """PPO's update whose samples are those of the mean value, and whose critic is not trained."""
    state, batch = collected
    config = CONFIG.replace(num_epochs=1, num_minibatches=1)
    after, _ = jax.jit(lktd.update)(config, state, batch, jax.random.key(2))
    shared, _ = lktd.samples(config, state, batch)
    inner = lktd.actor_config(config)

    def loss(actor):
        return ppo.loss({"params": actor | draw(state, 0)}, inner, state.spec, shared)[0]

    adam = ppo.optimiser(inner, 0)
    actor = state.params["actor"]
    step, _ = adam.update(jax.grad(loss)(actor), adam.init(actor))
    expected = jax.tree.map(lambda p, u: p + u, actor, step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after.params["actor"], expected)


def test_it_finds_values_and_actions_and_is_sure_of_them():
    env = envs.make("jaxrl/probe_context")
    known = env.values(0.8)
    config = lktd.Config(
        learning_rate=0.01,
        critic_rate=0.03,
        discount=0.8,
        anneal_updates=150.0,
        hidden_sizes=(16,),
        data=Rollout(num_envs=16, length=8),
    )
    loop = train.loop(lktd, env)
    run, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 150)
    values = lktd.values(config, run.agent, known.observation)
    np.testing.assert_allclose(values.mean(0), known.value, atol=0.02)
    np.testing.assert_array_equal(lktd.act(config, run.agent, known.observation)[0], known.action)
    assert metrics["value_std"][-1] < 0.05 * metrics["value_std"][0]  # rewards have no noise left
    low, high = kalman.interval(values.mean(0), values.var(0, ddof=1), 0.999)
    assert np.all(high - low < 0.1)  # rewards are -1 and 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["probe_truncation", "probe_termination", "probe_discount", "probe_action"])
def test_it_finds_the_values_of_a_probe(name):
    continuous = name in ("probe_action", "probe_truncation")
    env = envs.make(f"jaxrl/{name}", continuous=continuous)
    known = env.values(0.8)
    config = lktd.Config(
        learning_rate=0.01,
        critic_rate=0.03,
        discount=0.8,
        anneal_updates=150.0,
        hidden_sizes=(16,),
        data=Rollout(num_envs=16, length=8),
    )
    loop = train.loop(lktd, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 150)
    values = lktd.values(config, run.agent, known.observation).mean(0)
    noise = 0.1 if continuous else 0.02
    spread = jnp.exp(2 * run.agent.params["actor"]["policy"]["log_std"][0]) if name == "probe_action" else 0.0
    np.testing.assert_allclose(values, known.value - spread, atol=noise * max(1, float(abs(known.value).max())))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 1}, r"Config.num_draws must be an integer of at least 2, got 1"),
        ({"share": 1.5}, r"Config.share must be in \[0, 1\], got 1.5"),
        ({"critic_rate": -1.0}, r"Config.critic_rate must be in \[0, inf\], got -1.0"),
        ({"discount": 1.0}, r"Config.discount must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lktd.Config(**settings)
