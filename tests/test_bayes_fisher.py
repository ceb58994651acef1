"""Fisher information against enumeration of actions and of trajectories, and against quadrature."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl import policies
from jaxrl.bayes import fisher, scores
from jaxrl.mdp.model import MDP
from jaxrl.types import Box


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


T, M, A = 3, 4, 3  # steps, trajectories, actions


def softmax_policy(params, observation):
    """Logits [A] of a small network."""
    return jnp.tanh(observation @ params["w"]) @ params["v"]


def normal_policy(params, observation):
    """Mean [2] and one log_std for both."""
    return jnp.tanh(observation @ params["w"]) @ params["v"][:, :2], params["log_std"]


def some_data(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (2, 3), "v": (3, A), "log_std": ()}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return params, rng.normal(size=(T, M, 2)), np.arange(T)[:, None] < np.array([3, 1, 0, 2])


def outer_over_actions(params, observation):
    """F(x) = E_a[u u^T] of the softmax policy, by enumeration, with scores by NumPy and Jacobians of logits."""
    flat, unravel = ravel_pytree(params)
    logits = np.asarray(softmax_policy(params, observation))
    jacobian = np.asarray(jax.jacfwd(lambda x: softmax_policy(unravel(x), observation))(flat))
    p = np.exp(logits) / np.exp(logits).sum()
    rows = [jacobian[a] - p @ jacobian for a in range(A)]
    return sum(p[a] * np.outer(rows[a], rows[a]) for a in range(A))


def test_state_analytic_of_a_softmax_is_the_mean_outer_product_over_its_actions():
    params, observations, mask = some_data()
    for discount in (1.0, 0.7):
        ours = fisher.state_analytic(fisher.categorical, softmax_policy, params, observations, mask, discount=discount)
        expected = sum(
            discount**t * outer_over_actions(params, observations[t, i]) / 3  # three trajectories are real
            for t, i in np.argwhere(mask)
        )
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_state_analytic_of_a_normal_is_the_mean_outer_product_over_its_actions():
    """By Gauss-Hermite quadrature, exact for the squares of scores, which are polynomials of degree 4."""
    params, observations, _ = some_data(1)
    observations = observations[:1, :1]
    ours = fisher.state_analytic(fisher.normal, normal_policy, params, observations)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    mean, log_std = map(np.asarray, normal_policy(params, observations[0, 0]))

    def log_prob(p, x, a):
        m, s = normal_policy(p, x)
        return jnp.sum(-(((a - m) * jnp.exp(-s)) ** 2) / 2 - s)

    grid = np.array(list(itertools.product(nodes, nodes)))
    chances = np.array([a * b for a, b in itertools.product(weights, weights)]) / (2 * np.pi)
    actions = mean + np.exp(log_std) * grid
    u = np.asarray(scores.trajectories(log_prob, params, np.repeat(observations, 16, axis=1), actions[None]))
    np.testing.assert_allclose(ours, np.einsum("k,ki,kj->ij", chances, u, u), atol=1e-12)
    assert ours[0, 0] == pytest.approx(4)  # of log_std, 2 for each component


def test_fisher_does_not_depend_on_the_units_of_the_action():
    """As agents have it: the location and the scale of a distribution in a box."""
    params, observations, mask = some_data(2)
    box = Box((2,), (-1.0, 0.0), (1.0, 10.0), "float64")

    def in_the_box(params, observation):
        law = policies.normal(*normal_policy(params, observation), box).distribution
        return law.loc, jnp.log(law.scale)

    ours, boxed = (
        fisher.state_analytic(fisher.normal, policy, params, observations, mask)
        for policy in (normal_policy, in_the_box)
    )
    np.testing.assert_allclose(boxed, ours, rtol=1e-10, atol=1e-12)


# ----------------------------------------------------------------------------------- known models


def some_model(seed=0, states=3):
    rng = np.random.default_rng(seed)
    return MDP(
        transition=rng.dirichlet(np.ones(states), (states, 2)),
        reward=np.zeros((states, 2)),
        discount=0.9,
        initial=rng.dirichlet(np.ones(states)),
    ), rng.dirichlet(np.ones(2), states)


def paths(model, probs, horizon):
    """All trajectories (states, actions) of a model, with their probabilities."""
    states, actions = range(model.num_states), range(model.num_actions)
    for x in itertools.product(states, repeat=horizon):
        for a in itertools.product(actions, repeat=horizon):
            chance = model.initial[x[0]] * np.prod([probs[s, b] for s, b in zip(x, a, strict=True)])
            yield x, a, chance * np.prod([model.transition[x[t], a[t], x[t + 1]] for t in range(horizon - 1)])


def test_exact_fisher_is_that_of_whole_trajectories():
    """E[u u^T] over all trajectories, u summed over steps: the cross terms between steps vanish."""
    model, probs = some_model()
    logits = jnp.asarray(np.log(probs))
    horizon = 3
    rows = np.asarray(jax.jacfwd(jax.nn.log_softmax)(logits)).reshape(3, 2, -1)  # grad log mu(a | x), [S, A, n]
    expected, total = np.zeros((6, 6)), 0.0
    for x, a, chance in paths(model, probs, horizon):
        u = sum(rows[s, b] for s, b in zip(x, a, strict=True))
        expected, total = expected + chance * np.outer(u, u), total + chance
    assert total == pytest.approx(1)
    visits = fisher.expected_visits(model, probs, horizon=horizon)
    ours = fisher.exact(fisher.categorical, lambda p, x: p[x], logits, np.arange(3), visits)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_expected_visits_are_those_of_all_trajectories():
    model, probs = some_model(1)
    for discount in (1.0, 0.6):
        expected = np.zeros(3)
        for x, _, chance in paths(model, probs, 3):
            for t, s in enumerate(x):
                expected[s] += discount**t * chance
        np.testing.assert_allclose(fisher.expected_visits(model, probs, discount, 3), expected, atol=1e-13)
    np.testing.assert_allclose(
        fisher.expected_visits(model, probs, 0.6), fisher.expected_visits(model, probs, 0.6, 100), atol=1e-13
    )


# ------------------------------------------------------------------------ batches, roots, operators


def test_a_root_has_the_products_of_the_matrix():
    params, observations, mask = some_data(3)
    v = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(4).normal(size=x.shape)), params)
    flat = ravel_pytree(v)[0]
    for law, policy in ((fisher.categorical, softmax_policy), (fisher.normal, normal_policy)):
        G = np.asarray(fisher.state_analytic(law, policy, params, observations, mask, discount=0.8))
        root = fisher.root(law, policy, params, observations, mask, discount=0.8)
        for damping in (0.0, 0.3):
            product = ravel_pytree(fisher.product(root, damping)(v))[0]
            np.testing.assert_allclose(product, G @ flat + damping * flat, atol=1e-12)
            np.testing.assert_allclose(product, fisher.damped(G, damping) @ flat, atol=1e-12)
        rows = ravel_pytree(root.matvec(v))[0]
        assert rows @ rows == pytest.approx(flat @ G @ flat)


def test_padding_counts_for_nothing():
    params, observations, mask = some_data(5)
    holes = np.where(mask[..., None], observations, np.nan)
    clean = fisher.state_analytic(fisher.categorical, softmax_policy, params, observations, mask)
    np.testing.assert_array_equal(fisher.state_analytic(fisher.categorical, softmax_policy, params, holes, mask), clean)
    root = fisher.root(fisher.categorical, softmax_policy, params, holes, mask)
    assert np.all(np.isfinite(ravel_pytree(fisher.product(root)(params))[0]))


def test_same_batch_and_running_averages():
    rng = np.random.default_rng(6)
    batches = rng.normal(size=(4, 7, 3))
    means = [np.mean([np.outer(u, u) for u in batch], axis=0) for batch in batches]
    average = np.zeros((3, 3))
    for k, batch in enumerate(batches, start=1):
        average = fisher.running(average, fisher.same_batch(batch), 1 / k)
    np.testing.assert_allclose(average, np.mean(means, axis=0), atol=1e-13)
    padded = np.concatenate([batches[0], np.full((2, 3), np.nan)])
    np.testing.assert_allclose(fisher.same_batch(padded, np.arange(9) < 7), means[0], atol=1e-13)


def test_extreme_policies_have_finite_information_and_slopes():
    def total(logits):
        return jnp.sum(fisher.state_analytic(fisher.categorical, lambda p, x: p * x, logits, jnp.ones((1, 1))))

    value, slope = jax.value_and_grad(total)(jnp.array([0.0, 2000.0, -2000.0]))
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


def test_information_has_the_type_of_the_parameters():
    params, observations, mask = some_data()
    single = jax.tree.map(jnp.float32, (params, observations))
    assert fisher.state_analytic(fisher.normal, normal_policy, *single, mask).dtype == jnp.float32
    root = fisher.root(fisher.normal, normal_policy, *single, mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(root.matvec(single[0]))} == {jnp.dtype(jnp.float32)}


def test_errors_say_what_is_wrong():
    params, observations, mask = some_data()
    with pytest.raises(ValueError, match=r"mask has shape \(4, 3\), expected \(3, 4\)"):
        fisher.state_analytic(fisher.normal, normal_policy, params, observations, mask.T)
    with pytest.raises(ValueError, match=r"infinite for discount = 1\.0 without a horizon"):
        fisher.expected_visits(*some_model())
    with pytest.raises(ValueError, match=r"visits has shape \(4,\), expected \(3,\)"):
        fisher.exact(fisher.normal, normal_policy, params, observations[:, 0], np.ones(4))
