"""DORAEMON: which episodes count, what is proposed, and that its law widens where it succeeds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_same, small

from jaxrl import envs, randomisation, train
from jaxrl.agents import doraemon, ppo
from jaxrl.types import Rollout, Transition

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")
PLANE = envs.make("jaxrl/inclined_plane", max_steps=10)
CONFIG = small(doraemon, widening=doraemon.Widening(success_return=-0.5))


def state_for(config, env=PLANE):
    return jax.jit(doraemon.init, static_argnums=1)(config, env.spec, jax.random.key(0))


def rollout_of(lengths, returns, params, rows=8):
    """A rollout [rows, N] in which environment i ends after `lengths[i][0]` rows, `lengths[i][1]` more, and so on."""
    lanes = len(lengths)
    ended, episode_return, episode_length = (np.zeros((rows, lanes)) for _ in range(3))
    env_params = np.zeros((rows, lanes))
    for lane in range(lanes):
        row = -1
        for length, value, param in zip(lengths[lane], returns[lane], params[lane], strict=True):
            env_params[row + 1 : row + 1 + length, lane] = param
            row += length
            if row < rows:
                ended[row, lane], episode_return[row, lane], episode_length[row, lane] = 1, value, length
    shape = (rows, lanes)
    return Transition(
        observation=jnp.zeros((*shape, 2)),
        action=jnp.zeros((*shape, 1)),
        reward=jnp.zeros(shape),
        next_observation=jnp.zeros((*shape, 2)),
        terminated=jnp.asarray(ended, bool),
        truncated=jnp.zeros(shape, bool),
        extras={
            "log_prob": jnp.zeros(shape),
            "episode_return": jnp.asarray(episode_return, jnp.float32),
            "episode_length": jnp.asarray(episode_length, jnp.int32),
            "non_finite": jnp.zeros(shape, bool),
            "env_params": {"angle": jnp.asarray(env_params, jnp.float32), "mass": jnp.ones(shape)},
        },
    )


def test_the_first_episode_of_each_environment_under_the_law_counts():
    batch = rollout_of(
        lengths=[[3, 5], [8], [9], [2, 2]], returns=[[-1, 0], [-0.2], [0], [0, -1]], params=[[1, 2], [3], [4], [5, 6]]
    )
    gather = jax.jit(doraemon.gather)
    first = gather(CONFIG, doraemon.fresh(CONFIG), batch)
    np.testing.assert_array_equal(first.over, [True, True, False, True])
    np.testing.assert_array_equal(first.params[first.over, 0], [1, 3, 5])
    np.testing.assert_array_equal(first.success[first.over], [0, 1, 1])
    assert first.steps == 8

    ends = rollout_of([[1], [1], [1], [1]], [[0], [0], [-2], [0]], [[7], [7], [7], [7]])
    lengths = ends.extras["episode_length"].at[0].set(jnp.array([1, 1, 9, 1]))
    ends = ends.replace(extras=ends.extras | {"episode_length": lengths})
    then = gather(CONFIG, first, ends)
    np.testing.assert_array_equal(then.over, True)
    np.testing.assert_array_equal(then.params[:, 0], [1, 3, 7, 5])  # the others had their first one
    np.testing.assert_array_equal(then.success, [0, 1, 0, 1])

    old = gather(CONFIG, doraemon.fresh(CONFIG), ends)  # that of the third began under the law before
    np.testing.assert_array_equal(old.over, [True, True, False, True])
    broken = ends.replace(extras=ends.extras | {"non_finite": jnp.ones((8, 4), bool)})
    np.testing.assert_array_equal(gather(CONFIG, first, broken).success[2], 0)


def test_the_policy_learns_as_that_of_ppo():
    batch = rollout_of([[3], [8], [4], [2]], [[0]] * 4, [[0.5]] * 4)
    state = state_for(CONFIG)
    fields = {name: getattr(state, name) for name in ("params", "optimiser", "updates", "normaliser", "spec")}
    ours, metrics = jax.jit(doraemon.update)(CONFIG, state, batch, jax.random.key(1))
    theirs, expected = jax.jit(ppo.update)(small(ppo), ppo.State(**fields), batch, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours.params, theirs.params)
    assert metrics["policy_loss"] == pytest.approx(float(expected["policy_loss"]), rel=1e-3, abs=1e-6)


def test_the_law_takes_a_step_once_every_environment_has_had_an_episode():
    state, update = state_for(CONFIG), jax.jit(doraemon.update)
    part = rollout_of([[3], [8], [9], [2]], [[0]] * 4, [[0.5], [0.6], [0.4], [0.5]])
    waiting, metrics = update(CONFIG, state, part, jax.random.key(1))
    assert_same(waiting.law, state.law)
    assert metrics["success_rate"] == 0
    whole = rollout_of([[3], [8], [8], [2]], [[0]] * 4, [[0.5], [0.6], [0.4], [0.5]])
    moved, metrics = update(CONFIG, state, whole, jax.random.key(1))
    law, step = randomisation.widen(state.law, jnp.array([[0.5], [0.6], [0.4], [0.5]]), jnp.ones(4), CONFIG.widening)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), moved.law, law)
    assert metrics["law_divergence"] == pytest.approx(float(step.divergence), rel=1e-2)
    assert metrics["law_entropy"] > randomisation.entropy(state.law)
    assert not moved.episodes.over.any()
    assert moved.episodes.steps == 0
    assert moved.began


def test_the_law_stays_until_the_success_rate_has_been_reached_once():
    state, update = state_for(CONFIG), jax.jit(doraemon.update)
    few = rollout_of([[3], [8], [8], [2]], [[-2], [0], [-2], [-2]], [[0.5], [0.6], [0.4], [0.5]])
    after, metrics = update(CONFIG, state, few, jax.random.key(1))
    assert metrics["success_rate"] == 0.25
    assert_same(after.law, state.law)
    assert not after.episodes.over.any()
    begun, _ = update(CONFIG, state.replace(began=jnp.array(True)), few, jax.random.key(1))
    assert begun.law.a[0] / (begun.law.a[0] + begun.law.b[0]) > 0.5  # towards the one that succeeds, at 0.6


def test_proposals_are_drawn_from_the_law():
    config = CONFIG.replace(num_params=2)
    law = randomisation.Beta(jnp.array([2.0, 8.0]), jnp.array([5.0, 3.0]))
    state = state_for(config).replace(law=law)
    params = {"angle": jnp.full((2000,), 0.3), "extra": jnp.full((2000, 2), 7.0)}
    drawn = jax.jit(doraemon.propose)(config, state, params, jnp.zeros((2000, 2)), jax.random.key(0))
    assert scipy.stats.kstest(drawn["angle"], scipy.stats.beta(2, 5).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(drawn["extra"][:, 0], scipy.stats.beta(8, 3).cdf).pvalue > 1e-4
    np.testing.assert_array_equal(drawn["extra"][:, 1], 7)
    with pytest.raises(ValueError, match=r"the environment has 1 parameters, and Config.num_params is 2"):
        jax.eval_shape(doraemon.propose, config, state, jnp.zeros((5, 1)), jnp.zeros((5, 2)), jax.random.key(0))


def test_another_number_of_environments_is_refused():
    batch = rollout_of([[3], [8]], [[0], [0]], [[0.5], [0.5]])
    with pytest.raises(ValueError, match=r"batch has 2 environments, and Config.data 4; they must agree"):
        jax.eval_shape(doraemon.update, CONFIG, state_for(CONFIG), batch, jax.random.key(0))
    with pytest.raises(ValueError, match=r"Config.num_params must be an integer of at least 1, got 0"):
        doraemon.Config(num_params=0)


def test_the_loop_widens_the_law_of_a_task_that_always_succeeds():
    env = envs.uncertain(PLANE, {"angle": (-0.02, 0.02), "mass": (0.9, 1.1)})
    config = small(
        doraemon, num_params=2, data=Rollout(16, 10, restart=True), widening=doraemon.Widening(-100.0, 0.5, 0.1, 100.0)
    )
    loop = train.loop(doraemon, env)
    run = loop.init(config, jax.random.key(0))
    run, metrics = train.scan(loop, config, run, 20)
    np.testing.assert_array_equal(metrics["success_rate"], 1)
    assert np.all(np.diff(metrics["law_entropy"][:10]) > 0)
    assert metrics["law_entropy"][0] > -3.7
    assert metrics["law_entropy"][-1] > -0.01


@pytest.mark.slow
def test_the_law_of_the_inclined_plane_widens_to_what_can_be_held():
    """Angles beyond asin(3 / 9.81) can't be held: the law of most entropy with half of its mass within is known."""
    env = envs.uncertain("jaxrl/inclined_plane", {"angle": (-np.pi / 2, np.pi / 2)})
    width = np.arcsin(3 / 9.81) / np.pi
    config = doraemon.Config(
        doraemon.Widening(-0.5, 0.5, 0.02, 100.0), learning_rate=1e-3, data=Rollout(256, 50, restart=True)
    )
    loop = train.loop(doraemon, env)
    _, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 120)
    settled = np.asarray(metrics["law_entropy"])[60:]
    known = max(
        (scipy.stats.beta(c, c).entropy(), c)
        for c in np.linspace(1, 50, 2000)
        if np.diff(scipy.stats.beta(c, c).cdf([0.5 - width, 0.5 + width])) >= 0.5
    )[0]
    assert settled.mean() == pytest.approx(known, abs=0.12)
    assert np.asarray(metrics["success_rate"])[60:].mean() == pytest.approx(0.5, abs=0.04)
