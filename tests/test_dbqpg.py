"""DBQPG: its weights and steps against dense kernel matrices, and its plain counterpart against sums over steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from jax.flatten_util import ravel_pytree

from jaxrl import envs, normalise, train
from jaxrl.agents import bpg, dbqpg
from jaxrl.bayes import features, fisher, scores
from jaxrl.types import Box, Rollout, Spec, Transition

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

SPEC = Spec(Box((2,), dtype="float64"), Box((1,), -1.0, 1.0, "float64"))
CONFIG = small(dbqpg, normalise_observations=False, num_features=6, max_iterations=300, num_epochs=1)
direction_ = jax.jit(dbqpg.direction)


def data(count=24, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((count, 2), (count, 1), (count,), (count,), (count, 8))
    return dbqpg.Samples(*(jnp.asarray(np.tanh(rng.normal(size=shape))) for shape in shapes))


def fresh(config=CONFIG):
    """A state in float64 whose policy is far from its start, where the head is nearly 0."""
    state = dbqpg.init(config, SPEC, jax.random.key(1))
    state = jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, state)
    flat, unravel = ravel_pytree(state.params["actor"])
    moved = flat + 0.2 * np.random.default_rng(1).normal(size=flat.size)
    return state.replace(params=state.params | {"actor": unravel(moved)})


def dense(config, state, rollout):
    """Scores [B, n], the damped Fisher information, and the features of states [B, m], written out."""
    params = state.params["actor"]
    log_prob, kind, parameters = bpg.functions(config, state.spec)
    rows = scores.trajectories(log_prob, params, rollout.observation[None], rollout.action[None])
    information = fisher.state_analytic(kind, parameters, params, rollout.observation[None])
    phase = np.asarray(rollout.features) @ np.asarray(state.frequencies) / np.sqrt(8) / config.length_scale
    phi = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / np.sqrt(phase.shape[1])
    return np.asarray(rows), np.asarray(information) + config.damping * np.eye(rows.shape[1]), phi


@pytest.mark.parametrize(("noise", "state_amplitude", "fisher_amplitude"), [(1.0, 0.1, 1e-2), (0.3, 2.0, 0.5)])
def test_weights_and_gradients_are_those_of_the_dense_kernel(noise, state_amplitude, fisher_amplitude):
    with jax.enable_x64(True):
        config = CONFIG.replace(
            noise_variance=noise, state_amplitude=state_amplitude, fisher_amplitude=fisher_amplitude
        )
        state, rollout = fresh(config), data()
        found = direction_(config, state, rollout)
        rows, information, phi = dense(config, state, rollout)
        kernel = state_amplitude * phi @ phi.T + fisher_amplitude * rows @ np.linalg.solve(information, rows.T)
        alpha = np.linalg.solve(kernel + noise * np.eye(24), rollout.advantage)
        gradient = fisher_amplitude * rows.T @ alpha
        # conjugate gradients stop at a residual of 1e-5, which S^-1 U takes into the weights
        np.testing.assert_allclose(found.weights, alpha, rtol=1e-3, atol=1e-4 * np.abs(alpha).max())
        for ours, expected in (
            (found.gradient, gradient),
            (found.natural, np.linalg.solve(information, gradient)),
        ):
            np.testing.assert_allclose(ravel_pytree(ours)[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        assert found.residual < 1e-4


def test_without_quadrature_it_is_the_mean_over_steps():
    with jax.enable_x64(True):
        config = CONFIG.replace(quadrature=False)
        state, rollout = fresh(config), data()
        found = direction_(config, state, rollout)
        rows, information, _ = dense(config, state, rollout)
        gradient = np.mean(rows * np.asarray(rollout.advantage)[:, None], axis=0)
        np.testing.assert_allclose(ravel_pytree(found.gradient)[0], gradient, rtol=1e-8, atol=1e-12)
        natural = np.linalg.solve(information, gradient)
        np.testing.assert_allclose(
            ravel_pytree(found.natural)[0], natural, rtol=1e-3, atol=1e-4 * np.abs(natural).max()
        )


def cosine(a, b):
    a, b = ravel_pytree(a)[0], ravel_pytree(b)[0]
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def test_where_noise_rules_it_is_the_plain_direction():
    with jax.enable_x64(True):
        rollout, plain = data(), direction_(CONFIG.replace(quadrature=False), fresh(), data())
        for noise, low, high in ((1e6, 0.9999, 1.0001), (0.1, -1.0, 0.99)):
            config = CONFIG.replace(noise_variance=noise, fisher_amplitude=0.1)
            found = direction_(config, fresh(), rollout)
            assert low < cosine(found.gradient, plain.gradient) < high
            assert low < cosine(found.natural, plain.natural) < high


def test_advantages_that_only_depend_on_the_state_have_no_gradient():
    """The kernel of states explains them, which Monte Carlo takes for a gradient."""
    with jax.enable_x64(True):
        config = CONFIG.replace(state_amplitude=1e6, noise_variance=1.0)
        state, rollout = fresh(config), data()
        _, _, phi = dense(config, state, rollout)
        rollout = rollout._replace(advantage=jnp.asarray(phi @ np.arange(6.0)))
        found = direction_(config, state, rollout)
        assert np.abs(found.weights).max() < 1e-3 * np.abs(rollout.advantage).max()


def test_a_natural_step_has_the_length_that_is_asked_for():
    with jax.enable_x64(True):
        for quadrature in (True, False):
            config = CONFIG.replace(max_kl=0.02, quadrature=quadrature)
            state, rollout = fresh(config), data()
            params, _ = dbqpg.improve(config, state, direction_(config, state, rollout))
            step = np.asarray(ravel_pytree(params)[0] - ravel_pytree(state.params["actor"])[0])
            _, information, _ = dense(config, state, rollout)
            assert step @ information @ step / 2 == pytest.approx(0.02, rel=1e-3)


def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not():
    rng = np.random.default_rng(0)
    spec, config = Spec(Box((2,)), Box((1,), -1.0, 1.0)), CONFIG.replace(discount=0.9, lambda_=0.8)
    flags = np.zeros((2, 5, 3), bool)
    flags[0, 2, 0] = flags[1, 1, 1] = True
    leaves = (rng.normal(size=shape) for shape in ((5, 3, 2), (5, 3, 1), (5, 3), (5, 3, 2)))
    batch = Transition(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves), *map(jnp.asarray, flags))
    state = dbqpg.init(config, spec, jax.random.key(0))
    values, _ = dbqpg.critic(config, spec, state.params, batch.observation)
    following, _ = dbqpg.critic(config, spec, state.params, batch.next_observation)
    advantages = np.zeros((5, 3))
    for i in range(3):
        for t in reversed(range(5)):
            error = batch.reward[t, i] + 0.9 * (0 if flags[0, t, i] else following[t, i]) - values[t, i]
            goes_on = t < 4 and not flags[:, t, i].any()
            advantages[t, i] = error + (0.9 * 0.8 * advantages[t + 1, i] if goes_on else 0)
    found = dbqpg.samples(config, state, batch)
    np.testing.assert_allclose(found.target, (advantages + values).ravel(), rtol=1e-4, atol=1e-5)
    expected = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(found.advantage, expected.ravel(), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- random features


def test_fourier_features_have_the_kernel_in_the_mean():
    x = np.random.default_rng(0).normal(size=(5, 3))
    phi = features.fourier(features.frequencies(jax.random.key(0), 3, 20_000), jnp.asarray(x, jnp.float32), 1.5)
    distances = np.sum((x[:, None] - x) ** 2, axis=-1)
    np.testing.assert_allclose(phi @ phi.T, np.exp(-distances / 2 / 1.5**2), atol=0.03)


@pytest.mark.parametrize("shape", [(7, 3), (3, 5)])
def test_the_whitener_is_a_root_of_the_inverse(shape):
    with jax.enable_x64(True):
        rows = np.random.default_rng(0).normal(size=shape)
        covariance = rows @ rows.T + 0.3 * np.eye(shape[0])
        white = features.whitener(rows, 0.3)
        root = np.asarray(white.times(jnp.eye(shape[0])))
        np.testing.assert_allclose(root.T @ root, np.linalg.inv(covariance), atol=1e-10)
        np.testing.assert_allclose(white.transposed(jnp.eye(shape[0])), root.T, atol=1e-12)
        assert white.log_det == pytest.approx(np.linalg.slogdet(covariance)[1])


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_features is 3, expected an even number"):
        features.frequencies(jax.random.key(0), 2, 3)
    with pytest.raises(ValueError, match=r"frequencies has shape \(2, 4\), expected \[D, m / 2\]"):
        features.fourier(jnp.ones((2, 4)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"features has shape \(3,\)"):
        features.whitener(jnp.ones(3), 1.0)


# ----------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("natural", [True, False])
def test_it_learns_what_to_do_in_each_context_and_what_it_is_worth(natural):
    env = envs.make("jaxrl/probe_context")
    config = dbqpg.Config(
        learning_rate=1e-2,
        max_kl=0.03,
        natural=natural,
        hidden_sizes=(16,),
        num_features=16,
        num_minibatches=4,
        data=Rollout(num_envs=16, length=8),
    )
    loop = train.loop(dbqpg, env)
    run, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 120)
    assert metrics["episode_return"][-10:].mean() > 0.9
    known = env.values(config.discount)
    observation = normalise.apply(run.agent.normaliser, known.observation)
    values, _ = dbqpg.critic(config, env.spec, run.agent.params, observation)
    np.testing.assert_allclose(values, known.value, atol=0.15)


def test_the_critic_finds_the_value_beyond_a_truncation():
    env = envs.make("jaxrl/probe_truncation", continuous=True)
    config = dbqpg.Config(
        learning_rate=1e-2,
        discount=0.8,
        hidden_sizes=(16,),
        num_features=16,
        num_minibatches=4,
        normalise_observations=False,
        data=Rollout(num_envs=16, length=8),
    )
    loop = train.loop(dbqpg, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 120)
    known = env.values(0.8)
    values, _ = dbqpg.critic(config, env.spec, run.agent.params, known.observation)
    np.testing.assert_allclose(values, known.value, rtol=0.1)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="is not divisible by num_minibatches = 7"):
        dbqpg.Config(num_minibatches=7)
    with pytest.raises(ValueError, match=r"Config.damping must be in \[0"):
        dbqpg.Config(damping=-0.1)
    with pytest.raises(ValueError, match="max_iterations"):
        dbqpg.Config(max_iterations=0)
