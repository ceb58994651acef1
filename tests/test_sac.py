"""SAC's own mathematics: the target, whose gradient moves what, the temperature; and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, window

from jaxrl import envs, train
from jaxrl.agents import sac
from jaxrl.types import Box, Replay, Spec

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(sac, target_entropy=None)


@pytest.fixture(scope="module")
def state():
    return jax.jit(sac.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))


@pytest.mark.parametrize("rows", [1, 3])
def test_target_is_the_soft_value_of_one_successor(state, rows):
    """In NumPy, for each member of the batch by itself."""
    config, batch = CONFIG.replace(discount=0.9, reward_scale=2.0), window(ENV, rows)
    state = state.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, state.target))
    state = state.replace(params=state.params | {"log_temperature": jnp.log(0.3)})
    targets = sac.target(config, state, batch, jax.random.key(5))
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    action, log_prob = sac.actor(config, ENV.spec, state.params, last).sample_and_log_prob(seed=jax.random.key(5))
    values = np.asarray(sac.critics(config, state.target, last, action))[..., 0]
    for b, m in enumerate(steps):
        expected = sum(0.9**k * 2 * batch.reward[k, b] for k in range(m))
        if b != 1:  # the one that terminated
            expected += 0.9**m * (values[:, b].min() - 0.3 * log_prob[b])
        np.testing.assert_allclose(targets[b, 0], expected, rtol=1e-4, atol=1e-5)


def test_each_loss_moves_its_own_parameters(state):
    """The gradient of the sum is, for each group, the gradient of its own loss written out."""
    batch, targets = window(ENV, 1), jnp.arange(6.0)[:, None]
    gradients = jax.grad(sac.loss, has_aux=True)(state.params, CONFIG, state, batch, targets, jax.random.key(3))[0]
    observation, temperature = batch.observation[0], jnp.exp(state.params["log_temperature"])

    def critic_loss(critics):
        values = sac.critics(CONFIG, critics, observation, batch.action[0])
        return sum(jnp.mean((value - targets) ** 2) / 2 for value in values)

    def actor_loss(actor):
        policy = sac.actor(CONFIG, ENV.spec, {"actor": actor}, observation)
        action, log_prob = policy.sample_and_log_prob(seed=jax.random.key(3))
        first, second = sac.critics(CONFIG, state.params["critics"], observation, action)
        return jnp.mean(temperature * log_prob - jnp.minimum(first, second))

    for name, own in (("critics", critic_loss), ("actor", actor_loss)):
        expected = jax.grad(own)(state.params[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients[name], expected)
    policy = sac.actor(CONFIG, ENV.spec, state.params, observation)
    _, log_prob = policy.sample_and_log_prob(seed=jax.random.key(3))
    expected = -temperature * (jnp.mean(log_prob) - 2)  # minus the number of action elements
    np.testing.assert_allclose(gradients["log_temperature"], expected, rtol=1e-4)


@pytest.mark.parametrize(("wanted", "direction"), [(50.0, 1), (-50.0, -1)])
def test_the_temperature_rises_where_there_is_too_little_entropy(state, wanted, direction):
    config = CONFIG.replace(target_entropy=wanted)
    after, _ = sac.update(config, state, window(ENV, 1), jax.random.key(1))
    assert np.sign(after.params["log_temperature"] - state.params["log_temperature"]) == direction


def test_targets_follow_slowly(state):
    after, _ = sac.update(CONFIG.replace(target_rate=0.25), state, window(ENV, 1), jax.random.key(1))
    jax.tree.map(
        lambda old, new, slow: np.testing.assert_allclose(slow, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-6),
        state.target,
        after.params["critics"],
        after.target,
    )


def test_the_first_targets_are_the_critics_and_critics_differ(state):
    jax.tree.map(np.testing.assert_array_equal, state.target, state.params["critics"])
    values = sac.critics(CONFIG, state.params["critics"], *map(jnp.ones, ((5, 4), (5, 2))))
    assert values.shape == (2, 5, 1) and np.all(values[0] != values[1])


@pytest.mark.parametrize(
    "name", ["jaxrl/probe_truncation", pytest.param("jaxrl/probe_discount", marks=pytest.mark.slow)]
)
def test_values_of_a_probe(name):
    """Without entropy, the values are the known ones: those behind a cut only if it is bootstrapped through."""
    env, discount = envs.make(name, continuous=True), 0.8
    config = sac.Config(
        learning_rate=3e-3,
        discount=discount,
        initial_temperature=1e-4,
        target_entropy=-100.0,
        target_rate=0.05,
        hidden_sizes=(32,),
        data=Replay(num_envs=4, capacity=512, batch_size=32, warmup=64),
    )
    loop = train.loop(sac, env)
    run, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 800)
    known = env.values(discount)
    action, _ = sac.act(config, run.agent, known.observation)  # elsewhere the critics have seen next to nothing
    values = sac.critics(config, run.agent.params["critics"], known.observation, action)[..., 0]
    np.testing.assert_allclose(values, np.tile(known.value, (2, 1)), rtol=0.05, atol=0.05)
    assert np.isnan(metrics["critic_loss"][0]) and np.isfinite(metrics["critic_loss"][-1])  # warm-up first


def test_spaces_and_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected an action space Box.*got Discrete\(n=2"):
        sac.init(CONFIG, envs.make("jaxrl/probe_context").spec, jax.random.key(0))
    with pytest.raises(ValueError, match=r"Config.target_rate must be in \[0, 1\], got 2"):
        CONFIG.replace(target_rate=2.0)
    with pytest.raises(ValueError, match=r"Config.num_critics must be an integer of at least 1, got 0"):
        CONFIG.replace(num_critics=0)


def test_nothing_but_the_units_of_actions_depends_on_the_box():
    """The same problem with actions in another box: the same learning, step by step, and the same policy."""
    shifted = Spec(ENV.spec.observation, Box((2,), (1.0, -10.0), (2.0, 30.0)))
    centre, scale = np.array([1.5, 10.0], np.float32), np.array([0.5, 20.0], np.float32)
    batch = window(ENV, 1)
    states, actions = [], []
    for spec, data in ((ENV.spec, batch), (shifted, batch.replace(action=centre + scale * batch.action))):
        agent = jax.jit(sac.init, static_argnums=1)(CONFIG, spec, jax.random.key(0))
        for step in range(3):
            agent, _ = sac.update(CONFIG, agent, data, jax.random.key(step))
        states.append(agent.params)
        actions.append(sac.act(CONFIG, agent, batch.observation[0], jax.random.key(9))[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states)
    np.testing.assert_allclose(centre + scale * actions[0], actions[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="expected an action space with finite bounds, got low = -inf"):
        sac.init(CONFIG, Spec(ENV.spec.observation, Box((2,))), jax.random.key(0))
