"""Robust solvers where the actions of a state share a budget, against linear programs, borders and differences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_robust_solve import A, S, exactly, random_model, slots
from test_robust_state import program

from jaxrl import robust
from jaxrl.robust import SRectangular, average, evaluate, init, solve, step
from jaxrl.robust.solve import METHODS

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

RADIUS = np.linspace(0.3, 0.8, S)  # of each state
NORMS = {robust.L1: 1, robust.LInf: 2}


def shared(cls=robust.L1, radius=RADIUS, **settings):
    return SRectangular(cls(radius, **settings))


def sweep(model, cls, value, policy=None):
    """T value by linear programs: of a policy, or of the best one."""
    probs, z = slots(model, value)
    worth = []
    for s in range(S):
        own = None if policy is None else policy[s]
        worth.append(program(NORMS[cls], probs[s], z[s], RADIUS[s], "nominal", own))
    return np.array(worth)


def check_laws(found, model, radius=RADIUS, distance=lambda p, q: np.abs(p - q).sum(-1)):
    """The laws of nature are in the set, and the policy mixes actions that are equally good against them."""
    probs, z = slots(model, found.value)
    laws = found.worst_transition
    assert laws.min() >= 0 and np.all(laws[probs == 0] == 0)
    np.testing.assert_allclose(laws.sum(-1), 1, atol=1e-12)
    assert np.all(distance(laws, probs).sum(-1) <= radius + 1e-12)
    np.testing.assert_allclose((laws * z).sum(-1), found.q, atol=1e-6)
    np.testing.assert_allclose((found.policy * found.q).sum(-1), found.value, atol=1e-6)
    np.testing.assert_allclose(found.policy.sum(-1), 1, atol=1e-12)


SELDOM = [(robust.LInf, "dense"), (robust.L1, "sparse"), (robust.LInf, "sparse")]
SELDOM = [pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM]


@pytest.mark.parametrize("cls, form", [(robust.L1, "dense"), *SELDOM])
def test_value_and_policy_by_linear_programs(cls, form):
    model = random_model(0, form)
    found = exactly(solve, model, shared(cls), tolerance=1e-9)
    assert found.converged and found.error_bound <= 1e-9 and found.iterations <= 12
    np.testing.assert_allclose(sweep(model, cls, found.value), found.value, atol=2e-9)
    np.testing.assert_allclose(sweep(model, cls, found.value, found.policy), found.value, atol=2e-9)
    assert np.sum(found.policy.max(1) < 0.999) >= 2  # the best policy is random, and no action alone is as good
    np.testing.assert_allclose(found.q.max(1), found.value, atol=1e-8)
    if cls is robust.L1:
        check_laws(found, model)
    else:
        check_laws(found, model, distance=lambda p, q: np.abs(p - q).max(-1))


def test_the_sparse_model_is_the_dense_one():
    one, other = (exactly(solve, random_model(0, form), shared(), tolerance=1e-9) for form in ("dense", "sparse"))
    np.testing.assert_allclose(one.value, other.value, atol=2e-9)
    np.testing.assert_allclose(one.policy, other.policy, atol=1e-6)


def test_a_given_policy_by_linear_programs():
    model = random_model(1)
    policy = np.random.default_rng(0).dirichlet(np.ones(A), S)
    found = exactly(evaluate, model, shared(), policy, tolerance=1e-9)
    assert found.converged and found.rejections == 0 and found.iterations <= 10
    np.testing.assert_allclose(sweep(model, robust.L1, found.value, policy), found.value, atol=2e-9)
    np.testing.assert_array_equal(found.policy, policy)
    check_laws(found, model)
    best = exactly(solve, model, shared(), tolerance=1e-9)
    again = exactly(evaluate, model, shared(), best.policy, tolerance=1e-9)
    np.testing.assert_allclose(again.value, best.value, atol=2e-9)
    for other in (policy, np.eye(A)[best.q.argmax(1)], np.full((S, A), 1 / A)):
        assert np.all(exactly(evaluate, model, shared(), other).value <= best.value + 1e-6)


def test_between_the_sets_of_each_action():
    """Each action alone with the whole budget is worse; each with its share, A-th of it, is no better for the agent."""
    model = random_model(2)
    both = exactly(solve, model, shared()).value
    whole, part = (exactly(solve, model, robust.L1(radius)).value for radius in (RADIUS, RADIUS / A))
    nominal = exactly(solve, model, robust.L1(0 * RADIUS)).value
    assert np.all(whole <= both + 1e-6) and np.all(both <= part + 1e-6) and np.all(part <= nominal)
    assert np.any(whole < both - 1e-2) and np.any(both < part - 1e-2)
    np.testing.assert_allclose(exactly(solve, model, shared(radius=0 * RADIUS)).value, nominal, atol=1e-6)


def test_one_action_has_the_whole_budget():
    model = random_model(3, "sparse")
    model = model.replace(**{name: getattr(model, name)[:, :1] for name in ("successors", "probabilities", "reward")})
    one, other = exactly(solve, model, shared(), tolerance=1e-9), exactly(solve, model, robust.L1(RADIUS))
    np.testing.assert_allclose(one.value, other.value, atol=2e-6)
    np.testing.assert_array_equal(one.policy, 1)


@pytest.mark.slow
@pytest.mark.parametrize("make", [robust.L1, robust.KL, robust.L2, robust.ChiSquare, robust.Burg])
def test_methods_agree(make):
    model = random_model(4, "sparse")
    found = [exactly(solve, model, shared(make, 0.3), method=method) for method in METHODS]
    for one in found:
        assert one.converged and one.error_bound <= 1e-6
        np.testing.assert_allclose(one.value, found[0].value, atol=2e-6)
        again = exactly(evaluate, model, shared(make, 0.3), one.policy)
        np.testing.assert_allclose(again.value, one.value, atol=2e-6)
    assert max(one.iterations for one in found[1:]) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_transport(form):
    """With the discrete metric a Wasserstein ball is that of the total variation."""
    model = random_model(5, form)
    metric = 1 - np.eye(S)
    found = exactly(solve, model, SRectangular(robust.Wasserstein(RADIUS / 2, metric)))
    expected = exactly(solve, model, shared(robust.TotalVariation, RADIUS / 2))
    np.testing.assert_allclose(found.value, expected.value, atol=2e-6)
    assert found.converged


@pytest.mark.slow
def test_a_helpful_nature_spends_all_on_the_best_action():
    model = random_model(6)
    found = exactly(solve, model, shared(optimistic=True), tolerance=1e-9)
    expected = exactly(solve, model, robust.L1(RADIUS, optimistic=True), tolerance=1e-9)
    np.testing.assert_allclose(found.value, expected.value, atol=2e-9)
    again = exactly(evaluate, model, shared(optimistic=True), found.policy)
    np.testing.assert_allclose(again.value, found.value, atol=2e-6)


@pytest.mark.slow
def test_signed_measures():
    model = random_model(7)
    found = exactly(solve, model, shared(robust.SignedLp, 0.05, order=2))
    probs, z = slots(model, found.value)
    on = probs > 0
    centre = (on * z).sum(-1, keepdims=True) / on.sum(-1, keepdims=True)
    kappa = np.linalg.norm(on * (z - centre), axis=-1)
    regularised = (found.policy * (probs * z).sum(-1)).sum(-1) - 0.05 * np.linalg.norm(found.policy * kappa, axis=-1)
    np.testing.assert_allclose(regularised, found.value, atol=2e-6)
    assert found.converged
    far = exactly(solve, model, shared(robust.SignedLp, 3.0, order=2), max_iterations=20)
    assert far.error_bound == np.inf and not far.converged


def test_the_bound_holds_in_single_precision():
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_model(7))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), single)
    laws = double.transition / double.transition.sum(-1, keepdims=True)
    double = double.replace(transition=laws, initial=double.initial / double.initial.sum())
    expected = exactly(solve, double, shared(), tolerance=1e-9)
    found = solve(single, shared(radius=jnp.float32(RADIUS)))
    assert found.value.dtype == found.policy.dtype == jnp.float32
    assert found.converged and found.error_bound <= 2e-3
    assert np.abs(found.value - expected.value).max() <= found.error_bound
    policy = np.asarray(found.policy, np.float64)
    kept = exactly(evaluate, double, shared(), policy / policy.sum(-1, keepdims=True)).value
    assert np.abs(found.value - kept).max() <= found.error_bound + 1e-6  # the policy keeps what it promises


@functools.cache
def worth():
    """A number that depends on all values of a sparse model, and its slopes: one program for all differences."""

    def number(radius, probs, reward, discount, model):
        model = model.replace(probabilities=probs, reward=reward, discount=discount)
        found = solve(model, SRectangular(robust.KL(radius)), tolerance=1e-12)
        return jnp.dot(found.value, jnp.arange(1.0, S + 1)), found.q

    return jax.jit(jax.value_and_grad(number, (0, 1, 2, 3), has_aux=True))


def test_slopes_are_finite_differences():
    model = random_model(8, "sparse")
    rng = np.random.default_rng(0)
    change = rng.normal(size=model.probabilities.shape) * model.probabilities
    change -= model.probabilities * change.sum(-1, keepdims=True)
    at = (0.5 * RADIUS, model.probabilities, model.reward, model.discount)
    moves = (rng.normal(size=S), change, rng.normal(size=model.reward.shape), 1.0)
    slopes = exactly(worth(), *at, model)[1]
    for i, move in enumerate(moves):
        h = 1e-5
        up, down = (
            exactly(worth(), *(x + k * move if j == i else x for j, x in enumerate(at)), model)[0][0] for k in (h, -h)
        )
        np.testing.assert_allclose(np.sum(slopes[i] * move), (up - down) / (2 * h), rtol=2e-5)


def test_many_radii_at_once_are_each_alone():
    model = random_model(9)
    radii = np.array([0.0, 0.1, 0.5, 4.0, -0.1])

    def value(radius, model):
        return solve(model, shared(radius=radius * jnp.ones(S))).value

    values = exactly(jax.vmap(value, (0, None)), radii, model)
    assert np.all(np.isnan(values[-1]))  # in a trace it can't be refused
    for radius, value in zip(radii[:-1], values, strict=False):
        np.testing.assert_allclose(value, exactly(solve, model, shared(radius=np.full(S, radius))).value, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_steps_is_the_solver(method):
    with jax.enable_x64(True):
        model, set = jax.tree.map(jnp.asarray, (random_model(2), shared()))
        expected = solve(model, set, tolerance=1e-9).value
        state = init(model, set, method)
        for _ in range(150):
            state, info = step(model, set, state, method)
            if info.error_bound <= 1e-7:
                break
        assert info.error_bound <= 1e-7
        np.testing.assert_allclose(state.value, expected, atol=1.1e-7)


@pytest.mark.slow
def test_the_average_is_the_limit_of_small_interest():
    model = random_model(10).replace(transition=np.random.default_rng(0).dirichlet(np.ones(S), (S, A)))
    found = exactly(average, model, shared())
    value = exactly(solve, model.replace(discount=np.float64(0.999)), shared()).value
    assert found.converged
    assert 0.001 * value.min() - 1e-6 <= found.gain <= 0.001 * value.max() + 1e-6


def test_errors():
    model = random_model(0)
    for call, message in [
        (lambda: solve(model, shared(radius=np.full((S, A), 0.1))), r"SRectangular.set.radius has shape \(6, 2\)"),
        (lambda: solve(random_model(0, "sparse"), shared(support="all")), "mdp.dense"),
        (
            lambda: solve(model, SRectangular(robust.Wasserstein(0.1, 1 - np.eye(3)))),
            r"SRectangular.set.metric has shape",
        ),
        (lambda: evaluate(model, shared(), np.ones((S, A))), "policy"),
        (lambda: average(model, shared(robust.SignedLp, 0.1)), "no laws"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
