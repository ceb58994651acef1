"""Bayesian actor-critic: its step against a critic made by hand, and learning where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from jax.flatten_util import ravel_pytree

from jaxrl import envs, train
from jaxrl.agents import bac
from jaxrl.types import Box, Discrete, Rollout, Spec, Transition

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

DISCRETE, CONTINUOUS = Spec(Box((2,)), Discrete(3)), Spec(Box((2,)), Box((1,), -1.0, 1.0))
CONFIG = small(bac, hidden_sizes=(), adam=False, learning_rate=1.0, num_features=8, discount=0.9)
LENGTHS = (4, 2, 1, 4)  # of the first episode of each environment; the second terminates, the third is truncated


def some_batch(spec):
    rng = np.random.default_rng(0)
    flags = np.zeros((2, 4, 4), bool)
    flags[0, 1, 1] = flags[1, 0, 2] = flags[1, 3, 0] = flags[0, 3, 3] = True
    flags[0, 3, 1] = True  # of a later episode
    action = rng.integers(3, size=(4, 4)) if spec is DISCRETE else np.float32(rng.normal(size=(4, 4, 1)))
    return Transition(
        observation=jnp.asarray(rng.normal(size=(4, 4, 2)), jnp.float32),
        action=jnp.asarray(action),
        reward=jnp.asarray(rng.normal(size=(4, 4)), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(4, 4, 2)), jnp.float32),
        terminated=jnp.asarray(flags[0]),
        truncated=jnp.asarray(flags[1]),
    )


def fisher_at(config, spec, params, observation, score):
    """E u u^T over actions: a sum, or a Gauss-Hermite rule, which is exact for squares of scores of a normal."""
    policy = bac.reinforce.actor(config, spec, params, observation)
    if spec is DISCRETE:
        probs = np.asarray(jax.nn.softmax(policy.logits))
        rows = [np.asarray(score(params, observation, jnp.int32(a))) for a in range(3)]
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        actions = policy.distribution.loc[0] + policy.distribution.scale[0] * nodes
        probs, rows = (
            weights / weights.sum(),
            [np.asarray(score(params, observation, jnp.float32([a]))) for a in actions],
        )
    return np.einsum("k,kn,km->nm", probs, rows, rows)


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("natural", [True, False])
def test_the_step_is_that_of_a_critic_made_by_hand(spec, natural):
    """Loops over steps, kernels in place of features, the inverse of the covariance of rewards."""
    config, batch = CONFIG.replace(natural=natural), some_batch(spec)
    state = bac.init(config, spec, jax.random.key(1))
    state = state.replace(
        params=jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape), state.params)
    )

    @jax.jit
    def score(params, observation, action):
        log_prob = jax.grad(lambda p: bac.reinforce.actor(config, spec, p, observation).log_prob(action))
        return ravel_pytree(log_prob(params))[0]

    points, scores, rewards, H = [], [], [], []
    information = 0.0
    for i, length in enumerate(LENGTHS):
        ended = bool(batch.terminated[length - 1, i])
        for t in range(length):
            points.append(batch.observation[t, i])
            scores.append(np.asarray(score(state.params, batch.observation[t, i], batch.action[t, i]), float))
            information += 0.9**t / 4 * fisher_at(config, spec, state.params, batch.observation[t, i], score)
            rewards.append(float(batch.reward[t, i]))
            H.append((len(points) - 1, None if ended and t == length - 1 else len(points)))
        if not ended:
            points.append(batch.next_observation[length - 1, i])
            scores.append(np.zeros_like(scores[0]))
    information += 1e-2 * np.trace(information) / len(information) * np.eye(len(information))
    rows = np.zeros((len(H), len(points)))
    for row, (now, then) in zip(rows, H, strict=True):
        row[now] = 1
        if then is not None:
            row[then] = -0.9
    angles = np.array(points, float) @ np.asarray(state.frequencies, float)
    waves = np.mean(np.cos(angles[:, None] - angles), axis=-1)  # cos cos + sin sin
    scores = np.array(scores)
    kernel = 1e4 + 10.0 * waves + scores @ np.linalg.solve(information, scores.T)
    alpha = rows.T @ np.linalg.solve(rows @ (kernel + np.eye(len(kernel))) @ rows.T, rewards)
    expected = scores.T @ alpha
    expected = np.linalg.solve(information, expected) if natural else expected

    after, metrics = bac.update(config, state, batch, jax.random.key(0))
    step = ravel_pytree(after.params)[0] - ravel_pytree(state.params)[0]
    np.testing.assert_allclose(step, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(expected), rtol=5e-3)
    first = [sum(0.9**t * float(batch.reward[t, i]) for t in range(length)) for i, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(metrics["return"], np.mean(first), rtol=1e-5)
    assert metrics["unfinished"] == 0


def test_the_units_of_rewards_change_no_direction_and_no_certainty():
    batch = some_batch(DISCRETE)
    state = bac.init(CONFIG, DISCRETE, jax.random.key(1))
    one, first = bac.update(CONFIG, state, batch, jax.random.key(0))
    other, second = bac.update(CONFIG, state, batch.replace(reward=1000 * batch.reward), jax.random.key(0))
    steps = [ravel_pytree(s.params)[0] - ravel_pytree(state.params)[0] for s in (one, other)]
    np.testing.assert_allclose(steps[1], 1000 * steps[0], rtol=1e-2, atol=1.0)
    np.testing.assert_allclose(second["uncertainty"], first["uncertainty"], rtol=1e-3)


def test_episodes_that_a_rollout_cuts_are_reported():
    batch = some_batch(DISCRETE)
    state = bac.init(CONFIG, DISCRETE, jax.random.key(1))
    cut = batch.replace(truncated=batch.truncated.at[3].set(False), terminated=batch.terminated.at[3].set(False))
    after, metrics = bac.update(CONFIG, state, cut, jax.random.key(0))
    assert metrics["unfinished"] == 0.5
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after.params))


def test_rewards_that_are_all_zero_move_nothing():
    batch = some_batch(DISCRETE)
    state = bac.init(CONFIG, DISCRETE, jax.random.key(1))
    after, metrics = bac.update(CONFIG, state, batch.replace(reward=0 * batch.reward), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert np.isfinite(metrics["uncertainty"]) and np.isfinite(metrics["log_evidence"])


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be a Rollout with restart=True"):
        bac.Config(data=Rollout(4, 8))
    with pytest.raises(ValueError, match="num_features is 5, expected an even number"):
        bac.init(bac.Config(num_features=5), DISCRETE, jax.random.key(0))
    with pytest.raises(ValueError, match=r"Config.noise_variance must be in \[0, inf\], got -1"):
        bac.Config(noise_variance=-1.0)


def test_it_learns_what_to_do_in_each_context():
    env = envs.make("jaxrl/probe_context")
    config = bac.Config(learning_rate=3e-2, num_features=16, data=Rollout(16, env.max_steps, restart=True))
    loop = train.loop(bac, env)
    _, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 100)
    assert metrics["return"][-10:].mean() > metrics["return"][:10].mean() + 0.5
    assert np.all(metrics["unfinished"] == 0)


def test_it_learns_to_walk_the_shortest_way():
    env = envs.make("jaxrl/random_walk", max_steps=60)
    config = bac.Config(learning_rate=0.1, num_features=16, data=Rollout(8, env.max_steps, restart=True))
    loop = train.loop(bac, env)
    _, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 60)
    shortest = -np.sum(0.99 ** np.arange(9))  # nine steps
    assert metrics["return"][:5].mean() < -25
    assert metrics["return"][-10:].mean() > shortest - 3
