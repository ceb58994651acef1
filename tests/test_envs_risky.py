"""The risky point mass and the two paths: their dynamics in NumPy, their odds by counting, and what is best."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import risk
from jaxrl.envs import risky


def test_the_point_mass_moves_and_pays_as_in_numpy():
    env, rng = risky.RiskyPointMass(), np.random.default_rng(0)
    params = env.params().replace(slip=0.0, penalty=0.0)
    step = jax.jit(jax.vmap(env.step, (None, 0, 0, 0)))
    start, action = rng.uniform(0, 1, (64, 2)), rng.uniform(-1, 1, (64, 2))
    start[:2], action[:2] = [[0.2, 0.1], [0.98, 0.01]], [[-1, -0.2], [1, -1]]  # the goal, and two walls
    state, found = step(params, jnp.float32(start), jnp.float32(action), jax.random.split(jax.random.key(0), 64))
    wanted = np.clip(start + 0.1 * action, 0, 1)
    distance = np.hypot(*(wanted - 0.05).T)
    np.testing.assert_allclose(state, wanted, atol=1e-6)
    np.testing.assert_allclose(found.observation, wanted, atol=1e-6)
    np.testing.assert_allclose(found.reward, -distance - 0.1, atol=1e-6)
    np.testing.assert_array_equal(found.terminated, distance < 0.1)
    np.testing.assert_array_equal(found.metrics["danger"], np.hypot(*(wanted - 0.5).T) < 0.3)
    assert found.terminated[0]
    assert not found.terminated[1]


def test_the_point_mass_slips_and_is_caught_as_often_as_it_says():
    env, count = risky.RiskyPointMass(), 40_000
    params = env.params().replace(probability=0.5, step_cost=0.0)
    step = jax.jit(jax.vmap(env.step, (None, None, None, 0)))
    keys = jax.random.split(jax.random.key(1), (3, count))
    here = jnp.array([0.5, 0.6])
    still = step(params.replace(slip=0.0), here, jnp.zeros(2), keys[0])[1]
    caught = still.reward < -5
    np.testing.assert_allclose(caught.mean(), 0.5 * np.exp(-4 * 0.01 / 0.09), atol=4 * 0.5 / count**0.5)
    np.testing.assert_allclose(still.reward[caught], -np.hypot(0.45, 0.55) - 10, atol=1e-5)
    moved = step(params, here, jnp.array([1.0, 0.0]), keys[1])[0]
    np.testing.assert_allclose(moved.mean(0), [0.6, 0.6], atol=5e-4)
    np.testing.assert_allclose(moved.std(0), 0.02, rtol=0.03)
    slipped, found = step(params.replace(radius=1e6), here, jnp.zeros(2), keys[2])  # everywhere as dangerous
    assert abs(np.corrcoef(slipped[:, 0], found.reward < -5)[0, 1]) < 0.03  # random numbers of their own


@functools.partial(jax.jit, static_argnums=(0, 3))
def walk(env, action, key, count):
    """The first observations, and the steps `[steps, count]`, of the same action throughout."""
    reset_keys, *keys = jax.random.split(key, (1 + env.safe_steps, count))
    state, first = jax.vmap(env.reset, (None, 0))(env.params(), reset_keys)
    found = []
    for each in keys:
        state, step = jax.vmap(env.step, (None, 0, None, 0))(env.params(), state, action, each)
        found.append(step)
    return first, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@pytest.mark.parametrize(("action", "side", "length"), [(-0.3, -1, 6), (0.0, -1, 6), (0.2, 1, 2)])
def test_the_paths_are_as_long_and_as_risky_as_they_say(action, side, length):
    env, count = risky.TwoPaths(), 20_000
    first, steps = walk(env, jnp.array([action]), jax.random.key(2), count)
    np.testing.assert_array_equal(first, np.zeros((count, 2)))
    np.testing.assert_array_equal(steps.terminated, np.arange(1, 7)[:, None] == np.full(count, length))
    walked = np.stack([np.full(length, side), np.arange(1, length + 1) / length], axis=1)
    np.testing.assert_allclose(steps.observation[:length, 0], walked, atol=1e-6)
    assert np.all(steps.metrics["safe"] == (side == -1))
    rewards = np.asarray(steps.reward[:length])
    np.testing.assert_array_equal(rewards[:-1], -1)
    assert set(np.unique(rewards[-1])) == ({-1, -21} if side == 1 else {-1})
    np.testing.assert_allclose(np.mean(rewards[-1] == -21), 0.1 * (side == 1), atol=4 * 0.3 / count**0.5)


def test_the_laws_of_the_paths_are_those_of_their_returns():
    env, discount, count = risky.TwoPaths(safe_steps=4, risky_steps=3), 0.9, 20_000
    atoms, probs = (np.asarray(x) for x in env.laws(env.params(), discount))
    np.testing.assert_array_equal(atoms[0, 0], atoms[0, 1])
    for path, (action, length) in enumerate([(-1.0, 4), (1.0, 3)]):
        _, steps = walk(env, jnp.array([action]), jax.random.key(3), count)
        returns = discount ** np.arange(length) @ np.asarray(steps.reward)[:length]
        share = np.mean(returns < -10)
        np.testing.assert_allclose(np.unique(returns.round(3)), np.unique(atoms[path].round(3)), atol=2e-3)
        np.testing.assert_allclose(share, probs[path, 1] * (path == 1), atol=0.01)


def test_the_risky_path_has_the_better_mean_and_the_safe_one_the_better_cvar_below_a_half():
    env = risky.TwoPaths()
    laws = env.laws(env.params(), 0.99)

    def prefers_safe(measure):
        safe, dangerous = measure(*laws)
        return bool(safe > dangerous)

    assert not prefers_safe(risk.Mean())
    assert [prefers_safe(risk.CVaR(level)) for level in (0.1, 0.25, 0.5, 0.53, 0.75, 1.0)] == [True] * 3 + [False] * 3
    assert [prefers_safe(risk.Entropic(beta)) for beta in (-0.1, 0.0, 0.05, 0.1, 1.0)] == [False] * 3 + [True] * 2


def test_an_episode_is_not_cut_off_before_its_path_ends():
    with pytest.raises(ValueError, match=r"TwoPaths\.max_steps = 5 ends an episode before its path does"):
        risky.TwoPaths(max_steps=5)
