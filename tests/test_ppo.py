"""PPO's own mathematics: the loss against NumPy, the first ratio, the options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import small

from jaxrl import envs, rollout
from jaxrl.agents import ppo

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(ppo)


@pytest.fixture(scope="module")
def collected():
    """A state, and a rollout [8, 4] that it collected."""
    state = jax.jit(ppo.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    # a policy that is not centred, with values that are not near zero
    state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, state.params))

    def policy(observation, key):
        return ppo.act(CONFIG, state, observation, key)

    lanes = rollout.lanes(ENV, 4)
    return state, jax.jit(lambda key: rollout.collect(ENV, policy, lanes, key, 8)[1])(jax.random.key(1))


def test_the_first_ratio_is_one(collected):
    state, batch = collected
    policy, _ = ppo.apply(CONFIG, ENV.spec, state.params, batch.observation)
    ratio = jnp.exp(policy.log_prob(batch.action) - batch.extras["log_prob"])
    np.testing.assert_allclose(ratio, 1, atol=2e-6)
    config = CONFIG.replace(num_epochs=1, num_minibatches=1)
    _, metrics = ppo.update(config, state, batch, jax.random.key(2))
    assert metrics["clipped"] == 0 and abs(metrics["kl"]) < 1e-6
    np.testing.assert_allclose(metrics["policy_loss"], 0, atol=1e-6)  # of normalised advantages


@pytest.mark.parametrize("clip_value", [None, 0.05])
def test_loss_is_that_of_numpy(collected, clip_value):
    state, batch = collected
    config = CONFIG.replace(clip_value=clip_value, value_coefficient=0.7, entropy_coefficient=0.3, clip_ratio=0.1)
    samples = ppo.samples(config, state, batch)
    params = jax.tree.map(lambda leaf: leaf + 0.05, state.params)  # the policy has moved on
    loss, metrics = ppo.loss(params, config, ENV.spec, samples)

    policy, values = ppo.apply(config, ENV.spec, params, samples.observation)
    mean, values, old = np.asarray(policy.mode(), float), np.asarray(values, float), np.asarray(samples.value, float)
    std = np.exp(np.asarray(params["params"]["policy"]["log_std"], float))
    log_prob = scipy.stats.norm(mean, std).logpdf(np.asarray(samples.action, float)).sum(-1)
    ratio = np.exp(log_prob - np.asarray(samples.log_prob, float))
    advantage = np.asarray(samples.advantage, float)
    advantage = (advantage - advantage.mean()) / advantage.std()
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.9, 1.1) * advantage).mean()
    target = np.asarray(samples.target, float)
    errors = (values - target) ** 2
    if clip_value is not None:
        near = np.clip(values, old - clip_value, old + clip_value)
        errors = np.maximum(errors, (near - target) ** 2)
    entropy = scipy.stats.norm(0, std).entropy().sum()
    np.testing.assert_allclose(metrics["policy_loss"], -surrogate, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], errors.mean() / 2, rtol=1e-3)
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(loss, -surrogate + 0.35 * errors.mean() - 0.3 * entropy, rtol=1e-3)
    assert 0 < metrics["clipped"] < 1
    np.testing.assert_allclose(metrics["clipped"], (abs(ratio - 1) > 0.1).mean(), atol=0.07)


def test_samples_of_large_covariance_are_held_back(collected):
    """The two options, on samples sorted by hand: 5.5 of 32 give no gradient, or are held near the old policy."""
    state, batch = collected
    samples = ppo.samples(CONFIG, state, batch)
    moved = jax.tree.map(lambda leaf: leaf + 0.05, state.params)
    policy, _ = ppo.apply(CONFIG, ENV.spec, moved, samples.observation)
    log_prob, advantage = (np.asarray(x, float) for x in (policy.log_prob(samples.action), samples.advantage))
    advantage = (advantage - advantage.mean()) / advantage.std()
    order = np.argsort(-(advantage * (log_prob - log_prob.mean())))
    chosen = np.zeros(32)
    chosen[order[:5]], chosen[order[5]] = 1, 0.5

    def gradient(**settings):
        config = CONFIG.replace(value_coefficient=0.0, clip_value=None, **settings)
        return jax.grad(lambda params: ppo.loss(params, config, ENV.spec, samples)[0])(moved)

    def by_hand(params):
        policy, _ = ppo.apply(CONFIG, ENV.spec, params, samples.observation)
        log_ratio = policy.log_prob(samples.action) - samples.log_prob
        ratio = jnp.exp(log_ratio)
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        return -jnp.mean((1 - chosen) * surrogate), jnp.mean(-surrogate + 0.7 * chosen * abs(log_ratio))

    for i, settings in enumerate([{"clip_cov": 5.5 / 32}, {"kl_cov": 5.5 / 32, "kl_cov_coefficient": 0.7}]):
        expected = jax.grad(lambda params, i=i: by_hand(params)[i])(moved)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient(**settings), expected
        )


def test_advantages_bootstrap_through_truncation_and_not_through_termination(collected):
    """One step of delta where the trace is cut, by hand."""
    state, batch = collected
    config = CONFIG.replace(lambda_=0.0, discount=0.9)
    assert np.any(batch.truncated) and not np.any(batch.terminated)
    samples = ppo.samples(config, state, batch)
    _, next_values = ppo.apply(config, ENV.spec, state.params, batch.next_observation)
    value = samples.value.reshape(8, 4)
    expected = batch.reward + 0.9 * next_values - value
    np.testing.assert_allclose(samples.advantage.reshape(8, 4), expected, rtol=1e-4, atol=1e-5)
    over = batch.replace(terminated=batch.truncated, truncated=jnp.zeros_like(batch.truncated))
    expected = batch.reward + 0.9 * jnp.where(batch.truncated, 0, next_values) - value
    np.testing.assert_allclose(ppo.samples(config, state, over).advantage.reshape(8, 4), expected, rtol=1e-4, atol=1e-5)


def test_rewards_are_scaled_before_anything_else(collected):
    state, batch = collected
    scaled = ppo.samples(CONFIG.replace(reward_scale=3.0), state, batch)
    tripled = ppo.samples(CONFIG, state, batch.replace(reward=3 * batch.reward))
    np.testing.assert_allclose(scaled.target, tripled.target, rtol=1e-5)
    assert np.all(np.abs(scaled.target - ppo.samples(CONFIG, state, batch).target) > 1e-3)


def test_no_minibatch_is_taken_after_the_policy_has_moved_too_far(collected):
    state, batch = collected
    config = CONFIG.replace(num_epochs=3, learning_rate=0.05)
    free, metrics = ppo.update(config.replace(target_kl=1e9), state, batch, jax.random.key(2))
    assert metrics["stopped"] == 0
    never, metrics = ppo.update(config.replace(target_kl=-1.0), state, batch, jax.random.key(2))
    assert metrics["stopped"] == 1
    jax.tree.map(np.testing.assert_array_equal, never.params, state.params)
    some, metrics = ppo.update(config.replace(target_kl=0.02), state, batch, jax.random.key(2))
    assert 0 < metrics["stopped"] < 1
    moved = [distance(some, state), distance(free, state)]
    assert 0 < moved[0] < moved[1]
    assert never.optimiser[1].count == 0 < some.optimiser[1].count < free.optimiser[1].count == 12


def distance(a, b):
    """How far the parameters of two states are apart."""
    return sum(float(jnp.sum((x - y) ** 2)) for x, y in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True))


def test_the_step_size_falls_to_zero(collected):
    state, batch = collected
    config = CONFIG.replace(anneal_updates=2.0)
    for count, moves in [(0, True), (1, True), (2, False), (5, False)]:
        before = state.replace(updates=jnp.int32(count))
        after, _ = ppo.update(config, before, batch, jax.random.key(2))
        assert (distance(before, after) > 0) == moves
        assert after.updates == count + 1


def test_gradients_are_clipped_by_their_global_norm(collected):
    state, _ = collected
    gradients = jax.tree.map(lambda leaf: jnp.ones_like(leaf), state.params)
    config = CONFIG.replace(max_gradient_norm=1e-9)  # far below Adam's epsilon: steps as good as vanish
    adam = ppo.optimiser(config, 0)
    step, _ = adam.update(gradients, adam.init(state.params))
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(step)) < 1e-3 * config.learning_rate


@pytest.mark.parametrize(("size", "times"), [(12, 3), (32, 1), (1, 2)])
def test_shuffles_are_permutations(size, times):
    order = ppo.shuffle(jax.random.key(0), size, times)
    assert order.shape == (times, size)
    np.testing.assert_array_equal(np.sort(order, axis=-1), np.tile(np.arange(size), (times, 1)))
    if size == 12:
        assert len({tuple(row) for row in np.asarray(order)}) == times


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.0}, r"Config.discount must be in \[0, 1\), got 1.0"),
        ({"lambda_": -0.1}, r"Config.lambda_ must be in \[0, 1\], got -0.1"),
        ({"learning_rate": float("nan")}, r"Config.learning_rate must be in \[0, inf\], got nan"),
        ({"num_epochs": 0}, r"Config.num_epochs must be an integer of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ppo.Config(**settings)
