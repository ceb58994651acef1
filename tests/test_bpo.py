"""BPO's own mathematics: the best policy with bounded ratios, the median, and the loss written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import small

from jaxrl import train
from jaxrl.agents import bpo, ppo
from jaxrl.envs import make
from jaxrl.types import Box, Discrete, Rollout, Spec, Transition

SPEC = Spec(Box((1,)), Discrete(4))
Q = np.array([1.0, -2.0, 0.5, 3.0], np.float32)  # of four actions in the only state


def bandit(config, state, key, size=256):
    """A rollout of one-step episodes, and the policy that collected it."""
    observation = jnp.ones((1, size, 1))
    action, extras = bpo.act(config, state, observation, key)
    ends = jnp.ones((1, size), bool)
    batch = Transition(observation, action, jnp.asarray(Q)[action], observation, ends, ~ends, extras)
    return batch, probabilities(config, state)


def probabilities(config, state):
    policy, _, _ = bpo.apply(config, SPEC, state.params, jnp.ones((1, 1)))
    return np.exp(jax.vmap(lambda a: policy.log_prob(a[None])[0])(jnp.arange(4)))


def settled(config, size=256, updates=3):
    """An agent whose critic knows the bandit, and whose policy is the one it began with."""
    state = bpo.init(config, SPEC, jax.random.key(0))
    start = {name: state.params["params"][name] for name in ("actor", "policy")}
    for i in range(updates):
        batch, _ = bandit(config, state, jax.random.key(i), size)
        state, _ = jax.jit(bpo.update)(config, state, batch, jax.random.key(i))
        state = state.replace(params={"params": state.params["params"] | start})
    return state


def test_one_update_leads_to_the_best_policy_with_bounded_ratios():
    """It is the solution of a linear program, and 1 + epsilon sign(Q - median) times the old policy."""
    config = bpo.Config(
        learning_rate=3e-3,
        bound=0.2,
        median_temperature=1e-2,
        max_gradient_norm=100.0,
        num_epochs=60,
        num_minibatches=4,
        normalise_observations=False,
        hidden_sizes=(16,),
        data=Rollout(num_envs=256, length=1),
    )
    state = settled(config)
    batch, old = bandit(config, state, jax.random.key(9))
    _, _, median = bpo.apply(config, SPEC, state.params, jnp.ones((1, 1)))
    assert 0.5 < median[0] < 1  # between the second and the third of four actions, all about as likely
    after, _ = jax.jit(bpo.update)(config, state, batch, jax.random.key(10))
    ratio = probabilities(config, after) / old
    assert np.all(abs(ratio - 1) < 0.2 + 0.03)  # a step of Adam beyond the bound
    program = scipy.optimize.linprog(-Q, A_eq=[np.ones(4)], b_eq=[1], bounds=[(0.8 * p, 1.2 * p) for p in old])
    gain = (probabilities(config, after) - old) @ Q
    assert 0.9 * (-program.fun - old @ Q) < gain < 1.05 * (-program.fun - old @ Q)
    np.testing.assert_array_equal(np.sign(ratio - 1), [1, -1, -1, 1])


def test_the_policy_improves_at_each_update():
    config = bpo.Config(
        learning_rate=3e-3,
        num_minibatches=4,
        normalise_observations=False,
        hidden_sizes=(16,),
        data=Rollout(num_envs=256, length=1),
    )
    state, values = settled(config), []
    for i in range(12):
        batch, old = bandit(config, state, jax.random.key(i))
        values.append(old @ Q)
        state, _ = jax.jit(bpo.update)(config, state, batch, jax.random.key(i))
    assert np.all(np.diff(values) > -0.02) and values[-1] > 2.3, values


def test_the_loss_written_out():
    config = small(bpo, bound=0.25, temperature=0.5, median_temperature=2.0, entropy_coefficient=0.1)
    state = bpo.init(config, SPEC, jax.random.key(1))
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(6, 1)).astype(np.float32)
    action, log_prob, target = np.array([0, 1, 2, 3, 1, 0]), np.log(rng.uniform(0.1, 0.9, 6)), 3 * rng.normal(size=6)
    policy, value, median = bpo.apply(config, SPEC, state.params, jnp.asarray(observation))
    new, entropy = np.asarray(policy.log_prob(jnp.asarray(action))), np.asarray(policy.entropy())
    value, median = np.asarray(value, np.float64), np.asarray(median, np.float64)
    wanted = 0.75 + 0.5 / (1 + np.exp(-(target - median) / 0.5))
    expected = np.mean(abs(np.exp(new - log_prob) - wanted) * abs(target - value))
    expected += 0.5 * np.mean((value - target) ** 2)
    expected += 0.5 * np.mean(2 * np.log1p(np.exp((target - median) / 2)) - (target - median) / 2)
    samples = ppo.Samples(*map(jnp.asarray, (observation, action, log_prob, value, target - value, target)))
    total, _ = bpo.loss(state.params, config, SPEC, samples)
    np.testing.assert_allclose(total, expected - 0.1 * entropy.mean(), rtol=1e-5)


def test_with_one_temperature_the_best_ratio_has_mean_one():
    """Where the loss of the median is least; with another temperature it need not."""
    target = jnp.asarray(np.random.default_rng(0).gamma(0.5, 2.0, 5000), jnp.float32)
    config = bpo.Config(temperature=0.3, median_temperature=0.3)

    def least(tau):
        def slope(u):
            return float(jax.grad(lambda u: jnp.mean(tau * jax.nn.softplus((target - u) / tau) - (target - u) / 2))(u))

        return scipy.optimize.brentq(slope, 0.0, 5.0)

    means = [float(jnp.mean(bpo.best_ratio(config, target - least(tau)))) for tau in (0.3, 3.0)]
    np.testing.assert_allclose(means[0], 1, atol=1e-4)
    assert abs(means[1] - 1) > 0.02
    np.testing.assert_allclose(least(0.01), np.median(target), atol=0.02)


@pytest.mark.slow
def test_it_finds_the_values_of_a_probe():
    env, discount = make("jaxrl/probe_context"), 0.8
    config = bpo.Config(
        learning_rate=3e-3, discount=discount, num_minibatches=4, hidden_sizes=(16,), data=Rollout(16, 8)
    )
    loop = train.loop(bpo, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 150)
    known = env.values(discount)
    actions, _ = bpo.act(config, run.agent, known.observation)
    np.testing.assert_allclose(actions, known.action, atol=0.02)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"Config.bound must be in \[0, 1\], got 1.5"):
        bpo.Config(bound=1.5)
    with pytest.raises(ValueError, match=r"num_envs \* length = 4 \* 8 = 32 is not divisible by num_minibatches = 5"):
        bpo.Config(num_minibatches=5, data=Rollout(4, 8))
