"""BPG: its step against the posterior by hand, Monte Carlo where it has to be, and gradients that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from jax.flatten_util import ravel_pytree

from jaxrl import envs, rollout, train
from jaxrl.agents import bpg
from jaxrl.envs.tiny import LinearQuadratic
from jaxrl.types import Box, Discrete, Rollout, Spec, Transition

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

SPEC = Spec(Box((2,)), Box((1,), -1.0, 1.0))
CONFIG = small(bpg, discount=0.9, hidden_sizes=(), adam=False, learning_rate=1.0, damping=0.01)
LENGTHS = (4, 2, 1, 4, 3, 4)  # of the first episode of each environment; [1] terminates, [2], [4] are truncated
update_ = jax.jit(bpg.update)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    flags = np.zeros((2, 4, 6), bool)
    flags[0, 1, 1] = flags[1, 0, 2] = flags[1, 2, 4] = flags[1, 3, 0] = flags[1, 3, 3] = flags[0, 3, 5] = True
    return Transition(
        observation=jnp.asarray(rng.normal(size=(4, 6, 2)), jnp.float32),
        action=jnp.asarray(rng.normal(size=(4, 6, 1)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=(4, 6)) + 3, jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(4, 6, 2)), jnp.float32),
        terminated=jnp.asarray(flags[0]),
        truncated=jnp.asarray(flags[1]),
    )


@pytest.fixture(scope="module")
def state():
    state = bpg.init(CONFIG, SPEC, jax.random.key(1))
    flat, unravel = ravel_pytree(state.params)
    return state.replace(params=unravel(flat + 0.3 * np.random.default_rng(1).normal(size=flat.size)))


def by_hand(state, batch):
    """Scores, returns and Fisher information of whole episodes, in float64, by loops over their steps.

    The parameters, as they are ravelled, are bias, two gains, log standard deviation: a ~ N(w x + b, exp(2 s)).
    """
    b, w0, w1, s = np.asarray(ravel_pytree(state.params)[0], float)
    x, a, r = (np.asarray(leaf, float) for leaf in (batch.observation, batch.action[..., 0], batch.reward))
    variance = np.exp(2 * s)
    rows, total, information = np.zeros((6, 4)), np.zeros(6), np.zeros((4, 4))
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            slope = np.array([1.0, *x[t, i], 0.0])
            error = a[t, i] - (w0 * x[t, i, 0] + w1 * x[t, i, 1] + b)
            rows[i] += error / variance * slope + np.array([0, 0, 0, error**2 / variance - 1])
            information += (np.outer(slope, slope) / variance + np.diag([0, 0, 0, 2.0])) / 6
            total[i] += 0.9**t * r[t, i]
    return rows, total, information


def step(config, state, batch):
    after, metrics = update_(config, state, batch, jax.random.key(0))
    return np.asarray(ravel_pytree(after.params)[0] - ravel_pytree(state.params)[0], float), metrics


def conditioned(kernel, rows, total, information, noise, constant):
    """The posterior mean of the gradient by conditioning, with an explicit inverse."""
    inverse = np.linalg.inv(information)
    k = rows @ inverse @ rows.T
    if kernel == "fisher":
        return rows.T @ np.linalg.inv(k + constant + noise * np.eye(6)) @ total
    weights = np.linalg.inv((1 + k) ** 2 + constant + noise * np.eye(6)) @ (1 + np.diag(k) + constant)
    return rows.T @ (weights * total)


@pytest.mark.parametrize("natural", [True, False])
@pytest.mark.parametrize(("kernel", "constant"), [("fisher", 0.0), ("fisher", 5.0), ("quadratic", 0.0)])
def test_the_step_is_the_posterior_mean_by_hand(batch, state, kernel, constant, natural):
    config = CONFIG.replace(
        kernel=kernel, natural=natural, noise_variance=0.6, amplitude=2.0, constant_variance=constant
    )
    rows, total, information = by_hand(state, batch)
    information += 0.01 * np.trace(information) / 4 * np.eye(4)
    expected = conditioned(kernel, rows, total, information, 0.3, constant)
    expected = np.linalg.solve(information, expected) if natural else expected
    moved, metrics = step(config, state, batch)
    np.testing.assert_allclose(moved, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())
    np.testing.assert_allclose(metrics["return"], total.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(expected), rtol=1e-3)
    assert metrics["unfinished"] == 0 and metrics["noise_ratio"] == pytest.approx(0.3)


def test_with_the_fisher_of_its_own_scores_the_direction_is_that_of_monte_carlo(batch, state):
    """(1/M) sum_i R_i u_i, and nothing else: what the default gains comes from a better Fisher information."""
    config = CONFIG.replace(fisher="same-batch", natural=False, constant_variance=0.0, noise_variance=0.5, damping=1e-4)
    rows, total, _ = by_hand(state, batch)
    monte_carlo = rows.T @ total / 6

    def angle(config):
        moved, _ = step(config, state, batch)
        return np.degrees(np.arccos(moved @ monte_carlo / np.linalg.norm(moved) / np.linalg.norm(monte_carlo)))

    assert angle(config) < 0.2
    assert angle(config.replace(fisher="state-analytic")) > 10
    moved, _ = step(config, state, batch)
    np.testing.assert_allclose(moved, monte_carlo * 6 / 6.5, rtol=5e-3, atol=5e-3)


def test_padding_counts_for_nothing(batch, state):
    dirty = jnp.arange(4)[:, None] >= jnp.asarray(LENGTHS)
    rubbish = batch.replace(
        reward=jnp.where(dirty, jnp.nan, batch.reward),
        observation=jnp.where(dirty[..., None], jnp.nan, batch.observation),
        action=jnp.where(dirty[..., None], jnp.nan, batch.action),
        terminated=batch.terminated | dirty,
    )
    np.testing.assert_array_equal(step(CONFIG, state, rubbish)[0], step(CONFIG, state, batch)[0])


def test_an_episode_that_the_rollout_cuts_is_reported_and_one_at_the_time_limit_is_not(batch, state):
    cut = batch.replace(truncated=batch.truncated.at[3].set(False))
    assert step(CONFIG, state, cut)[1]["unfinished"] == pytest.approx(2 / 6)
    assert step(CONFIG, state, batch)[1]["unfinished"] == 0


def test_the_running_fisher_is_an_average_over_updates(batch, state):
    config = CONFIG.replace(fisher_rate=0.25, learning_rate=0.1)
    first = state.replace(fisher=jnp.zeros((4, 4)))
    second, _ = update_(config, first, batch, jax.random.key(0))
    third, _ = update_(config, second, batch, jax.random.key(0))
    now, then = (by_hand(s, batch)[2] for s in (second, first))
    np.testing.assert_allclose(second.fisher, then, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(third.fisher, 0.75 * then + 0.25 * now, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("natural", [True, False])
def test_the_scaled_step_is_that_of_the_eigenvectors(batch, state, natural):
    config = CONFIG.replace(natural=natural, constant_variance=0.0, noise_variance=1.0, uapg_limit=1.5)
    rows, total, information = by_hand(state, batch)
    information += 0.01 * np.trace(information) / 4 * np.eye(4)
    inner = np.linalg.inv(rows @ np.linalg.solve(information, rows.T) + np.eye(6))
    mean, covariance = rows.T @ inner @ total, information - rows.T @ inner @ rows
    if natural:
        inverse = np.linalg.inv(information)
        mean, covariance = inverse @ mean, inverse @ covariance @ inverse
    variances, directions = np.linalg.eigh(covariance)
    factors = np.minimum(np.sqrt(variances.max() / variances), 1.5) if natural else np.sqrt(variances.min() / variances)
    expected = directions @ np.diag(factors) @ directions.T @ mean
    np.testing.assert_allclose(step(config, state, batch)[0], expected, rtol=5e-3, atol=5e-4 * np.abs(expected).max())


def test_noise_and_amplitude_by_evidence_fit_the_returns(batch, state):
    """Returns that are linear in the scores but for noise of a known size: the evidence finds the ratio."""
    spec, config = Spec(Box((2,)), Box((1,))), CONFIG.replace(evidence=True)
    rng = np.random.default_rng(3)
    x, a = rng.normal(size=(1, 400, 2)), rng.normal(size=(1, 400, 1))
    state = bpg.init(config, spec, jax.random.key(0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    reward = 2 * a[..., 0] + 0.1 * rng.normal(size=(1, 400))
    yes = jnp.ones((1, 400), bool)
    data = Transition(*(jnp.asarray(v, jnp.float32) for v in (x, a, reward, x)), yes, ~yes)
    moved, metrics = step(config, state, data)
    assert 1e-4 < metrics["noise_ratio"] < 1e-1
    np.testing.assert_allclose(moved, [2, 0, 0, 0], atol=0.04)  # the natural gradient of 2 E a


def collected(env, config, state, key):
    def policy(observation, key):
        return bpg.act(config, state, observation, key)

    lanes = rollout.lanes(env, config.data.num_envs)
    return rollout.collect(env, policy, lanes, key, config.data.length)[1]


def estimates(env, config, state, count):
    """Steps of many updates, [count, n]: the posterior means of the gradient."""

    def one(key):
        collect_key, update_key = jax.random.split(key)
        after, _ = bpg.update(config, state, collected(env, config, state, collect_key), update_key)
        return ravel_pytree(after.params)[0] - ravel_pytree(state.params)[0]

    with jax.debug_key_reuse(False):  # it takes a vmap over a scan over keys for keys that are used twice
        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count)), float)


def test_the_bandit_has_the_mean_that_it_says():
    env = envs.make("jaxrl/gaussian_bandit")
    params = env.params().replace(linear=0.5, quadratic=-1.5, noise=2.0)
    keys, actions = jax.random.split(jax.random.key(0), 40_000), jax.random.normal(jax.random.key(1), (40_000, 1))
    rewards = jax.vmap(lambda a, key: env.step(params, jnp.zeros(1), 0.7 + 0.4 * a, key)[1].reward)(actions, keys)
    mean, spread = float(rewards.mean()), float(rewards.std())
    assert float(env.expected_reward(params, 0.7, 0.4)) == pytest.approx(mean, abs=5 * spread / 200)
    assert spread == pytest.approx(np.sqrt(4 + (1.6 * 0.4) ** 2 + 2 * (1.5 * 0.4**2) ** 2), rel=0.02)


def test_on_the_bandit_the_gradient_in_closed_form_has_a_tenth_of_the_error():
    """Reward a^2 + N(0, 1) under a ~ N(0, 1): the slopes of the expectation are known, Monte Carlo's errors too."""
    env = envs.make("jaxrl/gaussian_bandit")
    config = bpg.Config(
        hidden_sizes=(), adam=False, natural=False, learning_rate=1.0, data=Rollout(20, 1, restart=True)
    )
    state = bpg.init(config, env.spec, jax.random.key(0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))  # bias, gain, log standard deviation
    exact = np.asarray(jax.grad(lambda p: env.expected_reward(env.params(), p[0], jnp.exp(p[1])))(jnp.zeros(2)))
    np.testing.assert_allclose(exact, [0, 2])
    found = estimates(env, config, state, 300)
    assert np.all(found[:, 1] == 0)  # the observation is 0: its gain has no gradient
    error = np.mean(np.sum((found[:, [0, 2]] - exact) ** 2, axis=1))
    monte_carlo = estimates(env, config.replace(fisher="same-batch", constant_variance=0.0), state, 300)
    assert error < np.mean(np.sum((monte_carlo[:, [0, 2]] - exact) ** 2, axis=1)) / 7
    bias = found[:, [0, 2]].mean(axis=0) - exact
    assert np.all(np.abs(bias) < 0.1)


def test_on_the_linear_quadratic_problem_the_gradient_is_that_of_the_moments():
    """x' = x + a + N(0, 0.01), a ~ N(-0.2 x, 1), 20 steps: E x^2 follows a recursion, the gradient its slopes."""
    env = LinearQuadratic(
        A=((1.0,),), B=((1.0,),), Q=((1.0,),), R=((0.1,),), noise=0.1, max_action=float("inf"), max_steps=20
    )
    config = bpg.Config(
        hidden_sizes=(), adam=False, natural=False, learning_rate=1.0, data=Rollout(40, 20, restart=True)
    )

    def expected_return(theta):  # gain, log standard deviation; starts are uniform in [-1, 1]
        gain, std, second, total = theta[0], np.exp(theta[1]), 1 / 3, 0.0
        for _ in range(20):
            total -= (1 + 0.1 * gain**2) * second + 0.1 * std**2
            second = (1 + gain) ** 2 * second + std**2 + 0.01
        return total

    theta, tiny = np.array([-0.2, 0.0]), 1e-5
    exact = np.array([(expected_return(theta + e) - expected_return(theta - e)) / 2 / tiny for e in tiny * np.eye(2)])
    state = bpg.init(config, env.spec, jax.random.key(0))
    state = state.replace(params=ravel_pytree(state.params)[1](jnp.array([0.0, -0.2, 0.0])))
    found = estimates(env, config, state, 100)[:, 1:]
    error = np.sqrt(np.mean(np.sum((found - exact) ** 2, axis=1)))
    assert error < 0.3 * np.linalg.norm(exact)
    cosine = found @ exact / np.linalg.norm(found, axis=1) / np.linalg.norm(exact)
    assert np.degrees(np.arccos(cosine)).mean() < 6  # Monte Carlo with a baseline has about 9


def test_it_learns_what_to_do_in_each_context():
    env = envs.make("jaxrl/probe_context")
    config = bpg.Config(learning_rate=3e-2, data=Rollout(16, env.max_steps, restart=True))
    loop = train.loop(bpg, env)
    _, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 100)
    assert metrics["return"][-10:].mean() > metrics["return"][:10].mean() + 0.5
    assert np.all(metrics["unfinished"] == 0)


def test_the_law_of_a_policy_is_in_units_of_its_box():
    """The Fisher information of a policy over a box of another width is that of its own parameters."""
    for spec in (Spec(Box((2,)), Box((1,), -5.0, 5.0)), Spec(Box((2,)), Discrete(3))):
        state = bpg.init(CONFIG, spec, jax.random.key(0))
        wide = jnp.broadcast_to(jnp.array([0.5, -1.0]), (1, 4000, 2))
        actions, _ = bpg.act(CONFIG, state, wide, jax.random.key(1))
        yes = jnp.ones((1, 4000), bool)
        data = Transition(wide, actions, jnp.ones((1, 4000)), wide, yes, ~yes)
        episodes = bpg.episodes(CONFIG, state, data)
        sampled = np.asarray(episodes.scores.T @ episodes.scores / 4000)
        np.testing.assert_allclose(episodes.fisher, sampled, atol=0.1 * np.abs(sampled).max())


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be a Rollout with restart=True"):
        bpg.Config(data=Rollout(4, 8))
    with pytest.raises(ValueError, match=r"Config\.fisher must be"):
        bpg.Config(fisher="exact")
    with pytest.raises(ValueError, match=r"Config.noise_variance must be in \[0"):
        bpg.Config(noise_variance=-1.0)
