"""How outputs are read as laws: targets by hand, losses by what minimises them, and what an averse actor does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl import risk
from jaxrl.agents import sac
from jaxrl.distributional import critics
from jaxrl.types import Box, Spec, Transition

KINDS = [critics.Scalar(), critics.Categorical(-4.0, 6.0, 51), critics.HLGauss(-4.0, 6.0, 51), critics.Quantile(16)]


def name(critic):
    return type(critic).__name__


@pytest.mark.parametrize("critic", KINDS, ids=name)
def test_shapes_and_constants(critic):
    outputs = jax.random.normal(jax.random.key(0), (2, 5, critic.size))
    atoms, probs = critic.law(outputs)
    assert atoms.shape == probs.shape and atoms.shape[:2] == (2, 5)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    rewards, discounts, costs = jnp.ones(5), jnp.full(5, 0.9), jnp.full(5, 0.2)
    targets = critic.targets(outputs[0], rewards, discounts, costs)
    assert critic.loss(outputs, targets).shape == (2, 5)
    slope = jax.grad(lambda o: jnp.sum(critic.targets(o, rewards, discounts, costs)))(outputs[0])
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("critic", KINDS, ids=name)
def test_the_minimiser_is_the_target(critic):
    """Plain descent on the loss, from the outputs of another law: its mean becomes r + d (E Z' - c)."""
    after = jax.random.normal(jax.random.key(0), (3, critic.size))
    targets = critic.targets(after, jnp.array([1.0, 2.0, 0.5]), jnp.array([0.9, 0.0, 0.5]), jnp.array([0.2, 9.0, -1.0]))
    start = jax.random.normal(jax.random.key(1), (3, critic.size))
    adam = optax.adam(0.02)

    def step(carry, _):
        outputs, state = carry
        change, state = adam.update(jax.grad(lambda o: jnp.sum(critic.loss(o, targets)))(outputs), state)
        return (optax.apply_updates(outputs, change), state), None

    (outputs, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, adam.init(start)), length=2000))()
    old, new = (risk.Mean()(*critic.law(x)) for x in (after, outputs))
    expected = jnp.array([1.0, 2.0, 0.5]) + jnp.array([0.9, 0.0, 0.5]) * (old - jnp.array([0.2, 9.0, -1.0]))
    np.testing.assert_allclose(new, expected, atol=0.05)


def test_laws_move_whole():
    """The spread of a law shrinks by the discount, and nothing of law or cost is left where it ends."""
    quantiles = jnp.array([[0.0, 2.0, 4.0, 6.0]])
    critic = critics.Quantile(4)
    np.testing.assert_allclose(critic.targets(quantiles, 1.0, 0.5, 2.0), [[0, 1, 2, 3]])
    np.testing.assert_allclose(critic.targets(quantiles, 1.0, 0.0, 2.0), [[1, 1, 1, 1]])
    critic = critics.Categorical(0.0, 4.0, 5)
    logits = jnp.log(jnp.array([0.1, 0.2, 0.4, 0.2, 0.1]))
    np.testing.assert_allclose(critic.targets(logits, 1.0, 0.5, 0.0), [0, 0.2, 0.6, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(critic.targets(logits, 3.0, 0.0, 0.7), [0, 0, 0, 1, 0], atol=1e-6)


def test_the_smallest_is_one_whole_law():
    critic = critics.Quantile(2)
    outputs = jnp.array([[[0.0, 10.0], [1.0, 1.0]], [[4.0, 5.0], [-9.0, 12.0]]])  # means 5, 1 and 4.5, 1.5
    np.testing.assert_array_equal(critics.smallest(critic, outputs), [[4, 5], [1, 1]])
    scalars = jax.random.normal(jax.random.key(0), (3, 7, 1))
    np.testing.assert_array_equal(critics.smallest(critics.Scalar(), scalars), scalars.min(0))


@pytest.mark.parametrize("critic", [critics.Categorical(-4.0, 4.0, 33), critics.Quantile(16)], ids=name)
def test_an_averse_actor_goes_where_it_is_safe(critic):
    """One step: an action a > 0 earns 1 + 3 x, x = +-1 at random, and a < 0 earns 0 for sure. The mean prefers a > 0,
    CVaR(0.5), which is -2 there, the other side.
    """
    spec = Spec(Box((1,)), Box((1,), -1.0, 1.0))

    def act(measure):
        config = sac.Config(
            learning_rate=3e-3,
            critic=critic,
            risk=measure,
            initial_temperature=0.05,
            target_entropy=-2.0,
            hidden_sizes=(16,),
        )

        def update(state, key):
            first, second, key = jax.random.split(key, 3)
            action = jax.random.uniform(first, (1, 64, 1), minval=-1.0)
            reward = jnp.where(action[..., 0] > 0, 1 + 3 * jax.random.rademacher(second, (1, 64), jnp.float32), 0)
            ones, ends = jnp.ones((1, 64, 1)), jnp.ones((1, 64), bool)
            return sac.update(config, state, Transition(ones, action, reward, ones, ends, ~ends), key)[0], None

        state = sac.init(config, spec, jax.random.key(0))
        state, _ = jax.lax.scan(update, state, jax.random.split(jax.random.key(1), 1500))
        return sac.act(config, state, jnp.ones(1))[0]

    bold, averse = (jax.jit(act)(measure)[0] for measure in (risk.CVaR(1.0), risk.CVaR(0.5)))
    assert bold > 0.1 and averse < -0.1, (bold, averse)


def test_what_is_no_critic_is_refused():
    with pytest.raises(ValueError, match=r"Categorical needs low < high and size >= 2, got low = 2.0, high = 1.0"):
        critics.Categorical(2.0, 1.0)
    with pytest.raises(ValueError, match=r"HLGauss needs low < high and size >= 2, .* size = 1"):
        critics.HLGauss(0.0, 1.0, 1)
    with pytest.raises(ValueError, match=r"Quantile.size must be an integer of at least 1, got 0"):
        critics.Quantile(0)
    with pytest.raises(ValueError, match=r"Config.risk = CVaR\(level=0.1\) needs a critic that learns a law"):
        sac.Config(critic=critics.HLGauss(0.0, 1.0), risk=risk.CVaR(0.1))
