"""RARL's own mathematics: what its target looks at, who climbs what the other descends, and a known game."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import struct
from helpers import small, window

from jaxrl import envs, proposals, risk, rollout, train
from jaxrl.agents import rarl, sac, td3
from jaxrl.distributional import critics
from jaxrl.envs import tiny
from jaxrl.types import Box, Replay, Spec, canonical

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")
ENV = envs.uncertain("jaxrl/point_mass", {"mass": (0.5, 2.0), "control_cost": (0.0, 0.1)})
CONFIG = small(rarl, num_params=2)


@struct.dataclass
class DuelParams:
    push: float | jax.Array = 0.0  # u, of the adversary


@dataclasses.dataclass(frozen=True)
class Duel:
    """A context s, drawn anew at each step, and the payoff of `payoff`; the adversary pushes."""

    max_steps: int = 5

    @property
    def spec(self):
        return Spec(Box((1,), -1.0, 1.0, tiny.float_name()), Box((1,), -1.0, 1.0, tiny.float_name()))

    def params(self):
        return canonical(DuelParams())

    def reset(self, params, key):
        context = jax.random.uniform(key, (1,), minval=-1.0)
        return context, context

    def step(self, params, state, action, key):
        following = jax.random.uniform(key, (1,), minval=-1.0)
        return following, tiny.going_on(following, payoff(state[0], action[0], params.push))


def payoff(s, a, u):
    """Concave in what the agent does, convex in what the adversary does."""
    return -((a - 0.5 * s) ** 2) + a * u + (u + 0.4 * s) ** 2


FAMILY = envs.uncertain(Duel(), {"push": (-1.0, 1.0)})


def transitions(rows, num_params=2, **settings):
    """Random ones, with the parameters of each step."""
    batch = window(ENV, rows, **settings)
    psi = np.random.default_rng(1).uniform(size=(*batch.reward.shape, num_params))
    return batch.replace(extras={"env_params": jnp.asarray(psi, jnp.float32)})


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(rarl.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    return fresh.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target), updates=jnp.int32(1))


def q(params, observation, psi, action):
    """Q_i(s, psi, a), [K, B], from the networks of SAC."""
    inputs = jnp.concatenate([jnp.asarray(action), 2 * jnp.asarray(psi, jnp.float32) - 1], -1)
    return sac.critics(CONFIG, params, observation, inputs)[..., 0]


@pytest.mark.parametrize("rows", [1, 3])
def test_target_is_the_smaller_value_near_what_both_players_do(state, rows):
    """In NumPy, for each member of the batch by itself."""
    config = CONFIG.replace(discount=0.9, reward_scale=2.0, target_noise=0.4, noise_clip=0.3)
    batch = transitions(rows)
    targets = jax.jit(rarl.target)(config, state, batch, jax.random.key(5))
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    choices = [td3.actor(config, ENV.spec, state.target, last), rarl.adversary(config, state.target, last)]
    for player, key in enumerate(jax.random.split(jax.random.key(5))):
        noise = np.clip(0.4 * np.asarray(jax.random.normal(key, (6, 2))), -0.3, 0.3)
        choices[player] = np.clip(np.asarray(choices[player]) + noise, -1, 1)
    values = np.asarray(q(state.target["critics"], last, (1 + choices[1]) / 2, choices[0]))
    for b, m in enumerate(steps):
        expected = sum(0.9**k * 2 * batch.reward[k, b] for k in range(m))
        if b != 1:  # the one that terminated
            expected += 0.9**m * values[:, b].min()
        np.testing.assert_allclose(targets[b, 0], expected, rtol=1e-4, atol=1e-5)


def test_critics_learn_from_the_parameters_that_were_used(state):
    batch, targets = transitions(2), jnp.arange(6.0)[:, None]
    loss, metrics = jax.jit(rarl.critic_loss)(state.params["critics"], CONFIG, state, batch, targets)
    values = np.asarray(
        q(state.params["critics"], batch.observation[0], batch.extras["env_params"][0], batch.action[0])
    )
    np.testing.assert_allclose(loss, np.sum(np.mean((values - np.arange(6)) ** 2 / 2, axis=1)), rtol=1e-5)
    np.testing.assert_allclose(metrics["value"], values.mean(), rtol=1e-4, atol=1e-6)


def test_the_adversary_descends_what_the_actor_climbs(state):
    """Both gradients, written out by the chain rule from those of Q_1 alone."""
    batch = transitions(1)
    observation = batch.observation[0]
    climbed = jax.jit(jax.grad(rarl.actor_loss))(state.params["actor"], CONFIG, state, batch)
    descended = jax.jit(jax.grad(rarl.adversary_loss))(state.params["adversary"], CONFIG, state, batch)

    action, back = jax.vjp(lambda p: td3.actor(CONFIG, ENV.spec, {"actor": p}, observation), state.params["actor"])
    choice, nature_back = jax.vjp(
        lambda p: rarl.adversary(CONFIG, {"adversary": p}, observation), state.params["adversary"]
    )

    def value(action, choice):
        return jnp.mean(q(state.params["critics"], observation, (1 + choice) / 2, action)[0])

    slopes = jax.grad(value, argnums=(0, 1))(action, choice)
    for gradient, expected in [(climbed, back(-slopes[0])[0]), (descended, nature_back(slopes[1])[0])]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, expected)
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(descended)) > 1e-4


def test_players_take_their_steps_in_turn_every_delay_updates(state):
    """With Adam of optax, one after the other; targets follow once all have moved."""
    config, batch = CONFIG.replace(delay=2, target_rate=0.25), transitions(1)
    after, _ = jax.jit(rarl.update)(config, state, batch, jax.random.key(0))  # the second update
    expected = state.params | {"critics": after.params["critics"]}
    adam = optax.adam(config.learning_rate)

    def step(name, loss, params):
        played = state.replace(params=params)
        gradient = jax.jit(jax.grad(loss))(params[name], config, played, batch)
        change, _ = adam.update(gradient, adam.init(params[name]))
        return params | {name: optax.apply_updates(params[name], change)}

    expected = step("actor", rarl.actor_loss, expected)
    expected = step("adversary", rarl.adversary_loss, expected)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, after.params, expected)
    jax.tree.map(close, after.target, jax.tree.map(lambda a, b: a / 4 + 3 * b / 4, after.params, state.target))

    third, _ = jax.jit(rarl.update)(config, after, batch, jax.random.key(1))
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), after.params, third.params)
    assert all(jax.tree.leaves([same["actor"], same["adversary"]]))
    assert not any(jax.tree.leaves(same["critics"]))


def test_proposals_are_in_the_box(state):
    params = {"a": jnp.full(2000, 0.3), "b": jnp.full((2000, 2), 7.0)}
    observation = jnp.broadcast_to(window(ENV, 1).observation[0, 0], (2000, 4))
    propose = jax.jit(rarl.propose)
    for settings, count in [({"exploration_noise": 5.0}, 1), ({}, 1), ({}, 0)]:
        played = state.replace(updates=jnp.int32(count))
        chosen = propose(CONFIG.replace(**settings), played, params, observation, jax.random.key(0))
        psi = np.stack([chosen["a"], chosen["b"][:, 0]], axis=-1)
        assert psi.min() >= 0 and psi.max() <= 1
        np.testing.assert_array_equal(chosen["b"][:, 1], 7)  # d = 2 are chosen
        if not settings and count:
            mode = (1 + np.asarray(rarl.adversary(CONFIG, state.params, observation[0]))) / 2
            np.testing.assert_allclose(psi.mean(0), mode, atol=0.01)
            np.testing.assert_allclose(psi.std(0), 0.05, rtol=0.1)  # half of the noise, in units of the box
        if not count:  # before the first update
            assert all(scipy.stats.kstest(column, "uniform").pvalue > 1e-4 for column in psi.T)


def test_the_loop_keeps_what_was_proposed():
    """Each step has parameters of its own, in the box, and the reward is that of the environment with them."""
    config = small(rarl)
    loop = train.loop(rarl, FAMILY)
    run, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 12)
    assert np.isfinite(metrics["critic_loss"][-1])
    buffer = run.experience.buffer
    steps = buffer.steps
    psi = np.asarray(steps.env_params)[:12]
    assert psi.min() >= 0 and psi.max() <= 1 and len(np.unique(psi)) == psi.size
    context = np.take_along_axis(np.asarray(buffer.observation), np.asarray(steps.place)[:12, :, None], axis=0)
    expected = payoff(context[..., 0], np.asarray(steps.action)[:12, :, 0], 2 * psi[..., 0] - 1)
    np.testing.assert_allclose(steps.reward[:12], expected, rtol=1e-4, atol=1e-5)


def saddle(contexts):
    """What both players do, by enumeration: the agent against the worst of all pushes, and the other way round."""
    grid = np.linspace(-1, 1, 401)
    table = payoff(contexts[:, None, None], grid[:, None], grid)
    worst, best = table.min(2), table.max(1)
    np.testing.assert_allclose(worst.max(1), best.min(1), atol=1e-3)  # it has a value
    return grid[worst.argmax(1)], grid[best.argmin(1)], worst.max(1)


LEARNING = {  # what finds a saddle of the duel, for those who move the parameters freely or step by step
    "learning_rate": 3e-3,
    "discount": 0.5,
    "exploration_noise": 0.3,
    "target_noise": 0.0,
    "target_rate": 0.05,
    "hidden_sizes": (32, 32),
    "activation": nn.tanh,  # the payoff is smooth
    "data": Replay(num_envs=8, capacity=16384, batch_size=128, warmup=1024),
}


def test_it_finds_the_saddle_of_a_known_game():
    """Contexts are independent, so that each step is a game by itself, and what follows is worth the mean of it."""
    config = rarl.Config(**LEARNING)
    loop = train.loop(rarl, FAMILY)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 1500)
    contexts = np.linspace(-0.9, 0.9, 7, dtype=np.float32)
    action, push, worth = saddle(contexts)
    observation = jnp.asarray(contexts[:, None])
    learned, _ = rarl.act(config, run.agent, observation)
    nature = rarl.adversary(config, run.agent.params, observation)
    np.testing.assert_allclose(learned[:, 0], action, atol=0.06)
    np.testing.assert_allclose(nature[:, 0], push, atol=0.06)
    values = rarl.value(config, run.agent, observation, (1 + nature) / 2, learned)
    later = 0.5 * saddle(np.linspace(-1, 1, 101))[2].mean() / (1 - 0.5)
    np.testing.assert_allclose(values, worth + later, atol=0.03)


@pytest.mark.slow
def test_critics_may_learn_laws(state):
    config = CONFIG.replace(critic=critics.Quantile(7), risk=risk.CVaR(0.25))
    fresh = jax.jit(rarl.init, static_argnums=1)(config, ENV.spec, jax.random.key(0))
    after, metrics = jax.jit(rarl.update)(config, fresh, transitions(1), jax.random.key(1))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((after, metrics)))


def test_what_does_not_fit_is_refused(state):
    with pytest.raises(ValueError, match=r'batch.extras has no "env_params", expected the parameters'):
        rarl.update(CONFIG, state, window(ENV, 1), jax.random.key(0))
    with pytest.raises(ValueError, match=r"the environment has 1 parameters, and Config.num_params is 2"):
        rarl.update(CONFIG, state, transitions(1, num_params=1), jax.random.key(0))
    with pytest.raises(ValueError, match=r"the environment has 1 parameters, and Config.num_params is 2"):
        jax.eval_shape(rarl.propose, CONFIG, state, jnp.zeros((5, 1)), jnp.zeros((5, 4)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"the environment has 0 parameters, and Config.num_params is 2"):
        proposals.numbers((), CONFIG.num_params, (5,))
    with pytest.raises(ValueError, match=r"Config.num_params must be an integer of at least 1, got 0"):
        rarl.Config(num_params=0)
    with pytest.raises(ValueError, match=r"Config.risk = CVaR\(level=0.1\) needs a critic that learns a law"):
        rarl.Config(risk=risk.CVaR(0.1))
    assert rollout.proposed(rarl.propose, CONFIG, state)["each_step"]
