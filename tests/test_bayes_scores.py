"""Scores against closed forms and finite differences; operators against what is written out; padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl import policies
from jaxrl.bayes import scores
from jaxrl.types import Box

T, M = 3, 5  # one shape for all


def network(params, observation):
    """Mean [2] and log_std [2] of a small policy."""
    hidden = jnp.tanh(observation @ params["w"] + params["b"])
    return hidden @ params["v"], params["log_std"]


def log_prob(params, observation, action):
    mean, log_std = network(params, observation)
    return jnp.sum(-(((action - mean) * jnp.exp(-log_std)) ** 2) / 2 - log_std)


def some_data(seed=0):
    """Parameters, observations [T, M, 3], actions [T, M, 2], and a mask with a trajectory that is all padding."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "b": (4,), "v": (4, 2), "log_std": (2,)}
    params = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
    lengths = np.array([3, 1, 2, 0, 3])
    return params, rng.normal(size=(T, M, 3)), rng.normal(size=(T, M, 2)), np.arange(T)[:, None] < lengths


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def differences(function, x, step=1e-5):
    """Central differences, `[n]`."""
    return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in step * np.eye(len(x))])


def test_scores_are_finite_differences_of_the_log_probability_of_a_trajectory():
    params, observations, actions, mask = some_data()
    ours = jax.jit(lambda p: scores.trajectories(log_prob, p, observations, actions, mask))(params)
    flat, unravel = ravel_pytree(params)

    def total(x, i):  # in NumPy
        p = jax.tree.map(np.asarray, unravel(jnp.asarray(x)))
        mean = np.tanh(observations[:, i] @ p["w"] + p["b"]) @ p["v"]
        steps = -(((actions[:, i] - mean) / np.exp(p["log_std"])) ** 2) / 2 - p["log_std"]
        return steps[mask[:, i]].sum()

    for i in range(M):
        np.testing.assert_allclose(ours[i], differences(lambda x, i=i: total(x, i), np.asarray(flat)), atol=1e-8)


def test_scores_of_a_softmax_and_of_a_normal_are_their_closed_forms():
    rng = np.random.default_rng(1)
    logits, chosen = rng.normal(size=4), rng.integers(0, 4, (T, M))
    ours = scores.trajectories(lambda p, x, a: jax.nn.log_softmax(p)[a], logits, np.zeros((T, M)), chosen)
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(ours, (np.eye(4)[chosen] - p).sum(0), atol=1e-12)

    box, params = Box((1,)), np.array([0.3, -0.2])  # as an agent's policy is: a distribution with a log-probability
    actions = rng.normal(size=(T, M, 1))
    ours = scores.trajectories(
        lambda p, x, a: policies.normal(p[:1], p[1:], box).log_prob(a), params, np.zeros((T, M)), actions
    )
    z = (actions[..., 0] - 0.3) / np.exp(-0.2)
    np.testing.assert_allclose(ours, np.stack([z / np.exp(-0.2), z**2 - 1], -1).sum(0), atol=1e-12)


@jax.jit
def _all(params, observations, actions, mask, v, w, each):
    step_operator = scores.operator(log_prob, params, observations, actions, mask, per_step=True)
    operator = scores.operator(log_prob, params, observations, actions, mask)
    return {
        "trajectories": scores.trajectories(log_prob, params, observations, actions, mask),
        "steps": scores.steps(log_prob, params, observations, actions, mask),
        "products": (operator.matvec(v), operator.rmatvec(w), step_operator.matvec(v), step_operator.rmatvec(each)),
    }


def test_operators_are_the_products_with_what_is_written_out():
    params, observations, actions, mask = some_data(2)
    rng = np.random.default_rng(3)
    v, w, each = jax.tree.map(lambda x: rng.normal(size=x.shape), params), rng.normal(size=M), rng.normal(size=(T, M))
    out = _all(params, observations, actions, mask, v, w, each)
    U, steps, flat = np.asarray(out["trajectories"]), np.asarray(out["steps"]), ravel_pytree(v)[0]
    np.testing.assert_allclose(steps.sum(0), U, atol=1e-13)
    np.testing.assert_array_equal(steps[~mask], 0)
    times, transposed, step_times, step_transposed = out["products"]
    np.testing.assert_allclose(times, U @ flat, atol=1e-12)
    np.testing.assert_allclose(ravel_pytree(transposed)[0], U.T @ w, atol=1e-12)
    np.testing.assert_allclose(step_times, steps @ flat, atol=1e-12)
    np.testing.assert_allclose(ravel_pytree(step_transposed)[0], np.einsum("tmn,tm->n", steps, each), atol=1e-12)


@pytest.mark.parametrize("padding", [0.0, 1e300, np.nan, np.inf])
def test_padding_counts_for_nothing_whatever_it_holds(padding):
    params, observations, actions, mask = some_data(4)
    v, w, each = params, np.ones(M), np.ones((T, M))
    clean = _all(params, observations, actions, mask, v, w, each)
    holes = [np.where(mask[..., None], x, padding) for x in (observations, actions)]
    jax.tree.map(np.testing.assert_array_equal, _all(params, *holes, mask, v, w, each), clean)
    np.testing.assert_array_equal(clean["trajectories"][3], 0)
    alone = scores.trajectories(log_prob, params, observations[:2, 2:3], actions[:2, 2:3])
    np.testing.assert_allclose(clean["trajectories"][2], alone[0], atol=1e-13)
    nothing = _all(params, *holes, np.zeros_like(mask), v, w, each)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), nothing)


def test_scores_have_the_type_of_the_parameters():
    params, observations, actions, mask = some_data()
    single = jax.tree.map(jnp.float32, (params, observations, actions))
    assert scores.trajectories(log_prob, *single, mask).dtype == jnp.float32
    assert scores.operator(log_prob, *single, mask).matvec(single[0]).dtype == jnp.float32


def test_errors_say_what_is_wrong():
    params, observations, actions, mask = some_data()
    with pytest.raises(ValueError, match=r"leading axes \[\(3, 4\), \(3, 5\)\]"):
        scores.trajectories(log_prob, params, observations, actions[:, :4], mask)
    with pytest.raises(ValueError, match="add an axis of size 1"):
        scores.trajectories(log_prob, params, observations[:, 0, 0], actions[:, 0, 0])
    with pytest.raises(ValueError, match=r"mask has shape \(5, 3\), expected \(3, 5\)"):
        scores.operator(log_prob, params, observations, actions, mask.T)
    with pytest.raises(ValueError, match=r"shape \(2,\) for one step, expected a number"):
        scores.operator(lambda p, x, a: a * p["log_std"], params, observations, actions)
