"""Budgets that actions share: saddle points, proved by linear programs, dual bounds and closed forms."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special

from jaxrl import robust
from jaxrl.robust.state import SRectangular, worst_case_state

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

B, A, N = 16, 3, 5  # one shape, so that each set compiles once
DISTANCES = {
    robust.L1: lambda p, q: np.abs(p - q).sum(-1),
    robust.LInf: lambda p, q: np.abs(p - q).max(-1),
    robust.L2: lambda p, q: np.sqrt(np.square(p - q).sum(-1)),
    robust.KL: lambda p, q: scipy.special.rel_entr(p, q).sum(-1),
}


def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Laws `[B, A, N]`, values `[B, A, N]` and radii `[B]`; the even ones are generic, the odd ones are not."""
    rng = np.random.default_rng(0)
    nominal, values = rng.dirichlet(np.ones(N), (B, A)), 3 * rng.normal(size=(B, A, N))
    radius = rng.uniform(0.05, 1, B)
    nominal[8:, :, 1] = 0
    nominal[9, 0] = np.eye(N)[2]
    radius[1] = 0
    values[3] = np.round(values[3] / 3)  # ties
    values[5] = 2  # nothing to gain
    values[7, 0] = values[7].max() + 1  # an action that nature can't harm
    radius[[9, 11, 13]] = 1e-6, 40, 1e6
    values[15], nominal[15] = values[15, 0], nominal[15, 0]  # actions alike
    return nominal / nominal.sum(-1, keepdims=True), values, radius


NOMINAL, VALUES, RADIUS = cases()
POLICY = np.random.default_rng(5).dirichlet(np.ones(A), B)
POLICY[[2, 4, 6]] = [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3]
METRIC = np.random.default_rng(6).uniform(0.4, 2, (N, N)) * (1 - np.eye(N))


def exact(set, nominal=NOMINAL, values=VALUES, policy=None):
    """The saddle point, or what is the worst for a policy, in float64."""
    with jax.enable_x64(True):
        return tuple(map(np.asarray, worst_case_state(SRectangular(set), nominal, values, policy)))


def alone(set, nominal=NOMINAL, values=VALUES):
    """The worst cases of the actions on their own, in float64."""
    with jax.enable_x64(True):
        return tuple(map(np.asarray, robust.worst_case(set, nominal, values)))


def check_for_nature(value, probs, nominal=NOMINAL, values=VALUES, tolerance=1e-12):
    """`probs` are laws against which no action is worth more than the value."""
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-13)
    np.testing.assert_allclose((probs * values).sum(-1).max(-1), value, atol=tolerance)


def check_policy(policy):
    assert policy.min() >= 0
    np.testing.assert_allclose(policy.sum(-1), 1, atol=1e-14)


# --------------------------------------------------------------------------- duality: against a fixed policy


def program(norm, nominal, values, radius, support, policy):
    """min {sum_a policy_a p_a . z_a} over the set, by linear programming; for policy None, min of max_a p_a . z_a."""
    actions, states = nominal.shape
    size, slacks = actions * states, actions * states if norm == 1 else actions
    owner = np.eye(size) if norm == 1 else np.repeat(np.eye(actions), states, axis=0)
    rest = np.zeros((size, 1))
    rows = [np.hstack([np.eye(size), -owner, rest]), np.hstack([-np.eye(size), -owner, rest])]
    rows += [np.hstack([np.zeros((1, size)), np.ones((1, slacks)), [[0]]])]
    bound = [*nominal.ravel(), *-nominal.ravel(), radius]
    cost = np.zeros(size + slacks + 1)
    if policy is None:
        rows += [np.hstack([scipy.linalg.block_diag(*values), np.zeros((actions, slacks)), -np.ones((actions, 1))])]
        bound += [0] * actions
        cost[-1] = 1
    else:
        cost[:size] = (policy[:, None] * values).ravel()
    mass = np.hstack([np.repeat(np.eye(actions), states, axis=1), np.zeros((actions, slacks + 1))])
    limits = [(0, None if support == "all" or q > 0 else 0) for q in nominal.ravel()] + [(0, None)] * slacks
    found = scipy.optimize.linprog(
        cost, A_ub=np.vstack(rows), b_ub=bound, A_eq=mass, b_eq=np.ones(actions), bounds=[*limits, (None, None)]
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("support", ["nominal", "all"])
@pytest.mark.parametrize("cls", [robust.L1, robust.LInf])
def test_norms_are_their_linear_programs(cls, support):
    value, policy, probs = exact(cls(RADIUS, support=support))
    check_for_nature(value, probs)
    check_policy(policy)
    assert np.all(DISTANCES[cls](probs, NOMINAL).sum(-1) <= RADIUS + 1e-13)
    assert support == "all" or np.all(probs[NOMINAL == 0] == 0)
    for b in range(B):
        problem = (1 if cls is robust.L1 else 2, NOMINAL[b], VALUES[b], RADIUS[b], support)
        assert value[b] == pytest.approx(program(*problem, None), abs=1e-10)
        assert value[b] == pytest.approx(program(*problem, policy[b]), abs=1e-10)


def largest(function, low=-40, high=14):
    """The largest value of a concave function of the logarithm of a price."""
    grid = np.arange(low, high, 0.5)
    best = grid[np.argmax([function(x) for x in grid])]
    low, high = best - 0.5, best + 0.5
    for _ in range(90):
        third = (high - low) / 3
        low, high = (low + third, high) if function(low + third) < function(high - third) else (low, high - third)
    return max(function(low), function(high), function(best))


def least_of_kl(nominal, values, radius, policy):
    """What a policy is worth at least, over the ball of KL."""

    def bound(log_price):  # sum_a min_p policy_a p . z_a + price KL(p, p0_a), less price radius
        price = np.exp(log_price)
        scaled = -policy[:, None] * values / price
        return -price * (scipy.special.logsumexp(scaled, axis=-1, b=nominal).sum() + radius)

    return largest(bound)


def least_of_l2(nominal, values, radius, policy, probs):
    """The same over the ball of L2, by the subgradients of the norm at some laws: sharp if these are the worst."""
    distance = DISTANCES[robust.L2](probs, nominal)
    unused = (policy == 0) | (distance == 0)
    direction = np.where(unused, 0, 1 / np.where(unused, 1, distance))[:, None] * (nominal - probs)

    def bound(log_price):
        # for |g| <= price and nu + g <= policy z: policy z . p >= nu + g . p >= nu + g . p0 - price |p - p0|
        price = np.exp(log_price)
        g = price * direction
        nu = (policy[:, None] * values - g).min(-1)
        return nu.sum() + (g * nominal).sum() - price * radius

    return max(largest(bound), (policy * values.min(-1)).sum())  # the bound at the price 0


def test_kl_has_no_duality_gap():
    value, policy, probs = exact(robust.KL(RADIUS))
    check_for_nature(value, probs)
    check_policy(policy)
    assert np.all(DISTANCES[robust.KL](probs, NOMINAL).sum(-1) <= RADIUS * (1 + 1e-12) + 1e-15)
    for b in np.flatnonzero(RADIUS):
        assert value[b] == pytest.approx(least_of_kl(NOMINAL[b], VALUES[b], RADIUS[b], policy[b]), abs=1e-8)


def test_l2_has_no_duality_gap():
    value, policy, probs = exact(robust.L2(RADIUS, support="all"))
    check_for_nature(value, probs)
    check_policy(policy)
    assert np.all(DISTANCES[robust.L2](probs, NOMINAL).sum(-1) <= RADIUS + 1e-13)
    for b in np.flatnonzero(RADIUS):
        least = least_of_l2(NOMINAL[b], VALUES[b], RADIUS[b], policy[b], probs[b])
        assert value[b] == pytest.approx(least, abs=1e-8)


def transport(nominal, values, radius, policy):
    """`program` for a Wasserstein ball: how much of the mass of each state goes where."""
    size = A * N * N
    mass = np.hstack([np.kron(np.eye(A * N), np.ones(N)), np.zeros((A * N, 1))])
    rows, bound, cost = [np.append(np.tile(METRIC.ravel(), A), 0)], [radius], np.zeros(size + 1)
    arrivals = np.repeat(values[:, None, :], N, axis=1)
    if policy is None:
        rows += list(np.hstack([scipy.linalg.block_diag(*arrivals.reshape(A, 1, -1)), -np.ones((A, 1))]))
        bound += [0] * A
        cost[-1] = 1
    else:
        cost[:-1] = (policy[:, None, None] * arrivals).ravel()
    limits = [(0, None if q > 0 else 0) for q in np.repeat(nominal[:, None, :], N, axis=1).ravel()] + [(None, None)]
    found = scipy.optimize.linprog(cost, np.array(rows), bound, mass, nominal.ravel(), bounds=limits)
    assert found.success
    return found.fun


def test_transport_is_its_linear_program():
    value, policy, probs = exact(robust.Wasserstein(RADIUS, METRIC))
    check_for_nature(value, probs)
    check_policy(policy)
    for b in range(B):
        problem = NOMINAL[b], VALUES[b], RADIUS[b]
        assert value[b] == pytest.approx(transport(*problem, None), abs=1e-10)
        assert value[b] == pytest.approx(transport(*problem, policy[b]), abs=1e-10)


# ------------------------------------------------------------------------------------------ a given policy


def check_answer(value, probs, tolerance=1e-12):
    """`probs` are laws with which the policy has the value."""
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-13)
    np.testing.assert_allclose((POLICY[..., None] * probs * VALUES).sum((-2, -1)), value, atol=tolerance)


@pytest.mark.parametrize("support", ["nominal", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", [robust.L1, robust.LInf])
def test_the_worst_for_a_policy_is_its_linear_program(cls, support):
    value, policy, probs = exact(cls(RADIUS, support=support), policy=POLICY)
    check_answer(value, probs)
    assert np.array_equal(policy, POLICY)
    assert np.all(DISTANCES[cls](probs, NOMINAL).sum(-1) <= RADIUS + 1e-13)
    for b in range(B):
        problem = (1 if cls is robust.L1 else 2, NOMINAL[b], VALUES[b], RADIUS[b], support)
        assert value[b] == pytest.approx(program(*problem, POLICY[b]), abs=1e-10)


def test_the_worst_for_a_policy_over_kl():
    value, _, probs = exact(robust.KL(RADIUS), policy=POLICY)
    check_answer(value, probs)
    assert np.all(DISTANCES[robust.KL](probs, NOMINAL).sum(-1) <= RADIUS * (1 + 1e-12) + 1e-15)
    for b in np.flatnonzero(RADIUS):
        assert value[b] == pytest.approx(least_of_kl(NOMINAL[b], VALUES[b], RADIUS[b], POLICY[b]), abs=1e-8)


def test_the_worst_transport_for_a_policy():
    value, _, probs = exact(robust.Wasserstein(RADIUS, METRIC), policy=POLICY)
    check_answer(value, probs)
    for b in range(B):
        assert value[b] == pytest.approx(transport(NOMINAL[b], VALUES[b], RADIUS[b], POLICY[b]), abs=1e-10)


@pytest.mark.parametrize(
    "cls", [robust.L2, *(pytest.param(c, marks=pytest.mark.slow) for c in (robust.ChiSquare, robust.Burg))]
)
def test_no_division_of_the_budget_is_worse_for_a_policy(cls):
    """Over a grid of divisions among three actions, refined around the best of them."""
    value, _, probs = exact(cls(RADIUS), policy=POLICY)
    check_answer(value, probs)
    shares, step = np.full((B, A), 1 / 3), 1.0
    moves = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * A), axis=-1).reshape(-1, A)
    for _ in range(12):
        tried = np.maximum(shares[:, None] + step * moves, 0)
        tried = (tried + 1e-300) / (tried + 1e-300).sum(-1, keepdims=True)
        worst = alone(cls(tried * RADIUS[:, None, None]), NOMINAL[:, None], VALUES[:, None])[0]
        worth = (POLICY[:, None] * worst).sum(-1)
        shares, step = tried[np.arange(B), worth.argmin(-1)], step / 2
        assert np.all(worth.min(-1) >= value - 1e-12)
    np.testing.assert_allclose(worth.min(-1), value, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_signed_measures_regularise_a_given_policy(order):
    value, _, probs = exact(robust.SignedLp(RADIUS, order, support="all"), policy=POLICY)
    q, k = (NOMINAL * VALUES).sum(-1), kappa(VALUES, order)
    dual = {1: math.inf, 2: 2, math.inf: 1}[order]
    expected = (POLICY * q).sum(-1) - RADIUS * np.linalg.norm(POLICY * k, ord=dual, axis=-1)
    assert np.all(np.abs(expected - value) <= 1e-12 * (1 + RADIUS))
    attained = (POLICY[..., None] * probs * VALUES).sum((-2, -1))
    assert np.all(np.abs(attained - value) <= 1e-12 * (1 + RADIUS))


def test_a_helpful_nature_helps_a_policy_most():
    value, _, probs = exact(robust.L1(RADIUS, optimistic=True), policy=POLICY)
    check_answer(value, probs)
    for b in range(B):
        worth = -program(1, NOMINAL[b], -VALUES[b], RADIUS[b], "nominal", POLICY[b])
        assert value[b] == pytest.approx(worth, abs=1e-10)


# --------------------------------------------------------------------------------------- signed measures


def kappa(values, order):
    """min_c |z - c|_q."""
    if order == 2:
        return np.sqrt(np.square(values - values.mean(-1, keepdims=True)).sum(-1))
    if order == 1:
        return (values.max(-1) - values.min(-1)) / 2
    return np.abs(values - np.median(values, axis=-1, keepdims=True)).sum(-1)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_signed_measures_regularise_the_policy(order):
    """Derman et al. 2021: max_policy policy . Q - radius |policy kappa|_q, with p0 + u as the laws."""
    value, policy, probs = exact(robust.SignedLp(RADIUS, order, support="all"))
    q, k = (NOMINAL * VALUES).sum(-1), kappa(VALUES, order)
    check_policy(policy)
    dual = {1: math.inf, 2: 2, math.inf: 1}[order]
    scale = 1e-12 * (1 + RADIUS)
    regularised = (policy * q).sum(-1) - RADIUS * np.linalg.norm(policy * k, ord=dual, axis=-1)
    assert np.all(np.abs(regularised - value) <= scale)
    assert np.all(np.abs((probs * VALUES).sum(-1).max(-1) - value) <= scale)
    joint = np.linalg.norm((probs - NOMINAL).reshape(B, -1), ord=order, axis=-1)
    assert np.all(joint <= RADIUS * (1 + 1e-12) + 1e-14)


@pytest.mark.parametrize("order", [1, 2])
def test_signed_measures_in_closed_form(order):
    """Kumar et al.: with one kappa for all actions, x solves sum_a (Q_a - x)_+^p = sigma^p by the k best actions."""
    values = VALUES[:, :1] + np.arange(A)[:, None]
    value = exact(robust.SignedLp(RADIUS, order, support="all"), NOMINAL, values)[0]
    for b in range(B):
        q, sigma = np.sort((NOMINAL[b] * values[b]).sum(-1))[::-1], RADIUS[b] * kappa(values[b, 0], order)
        q, best = q - q[0], q[0]
        k = np.arange(1, A + 1)
        if order == 1:
            x = np.max((np.cumsum(q) - sigma) / k)
        else:
            first, second = np.cumsum(q), np.cumsum(q**2)
            root = np.sqrt(np.maximum(first**2 - k * (second - sigma**2), 0))
            x = next(x for x, q_next in zip((first - root) / k, [*q[1:], -np.inf], strict=True) if x >= q_next)
        assert value[b] == pytest.approx(best + x, rel=1e-12, abs=1e-12)


# ------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("cls", [robust.L1, robust.KL])
def test_between_the_budgets_of_one_action_and_of_all(cls):
    value = exact(cls(RADIUS))[0]
    each, all_of_it = (alone(cls(np.repeat(radius, A).reshape(B, A)))[0].max(-1) for radius in (RADIUS / A, RADIUS))
    assert np.all(all_of_it - 1e-12 <= value)
    assert np.all(value <= each + 1e-12)
    apart = np.flatnonzero((each - all_of_it > 1e-3) & (value > all_of_it + 1e-3) & (value < each - 1e-3))
    assert len(apart) > 4


def test_one_action_has_the_whole_budget():
    value, _, probs = exact(robust.L1(RADIUS), NOMINAL[:, :1], VALUES[:, :1])
    expected, laws = alone(robust.L1(RADIUS), NOMINAL[:, 0], VALUES[:, 0])
    np.testing.assert_allclose(value, expected, atol=1e-13)
    np.testing.assert_allclose((probs[:, 0] * VALUES[:, 0]).sum(-1), (laws * VALUES[:, 0]).sum(-1), atol=1e-13)


def test_without_a_budget_and_with_too_large_a_one():
    for cls in (robust.L1, robust.KL):
        value, policy, probs = exact(cls(RADIUS))
        q = (NOMINAL[1] * VALUES[1]).sum(-1)
        assert value[1] == pytest.approx(q.max(), rel=1e-14)
        assert np.array_equal(probs[1], NOMINAL[1])
        assert np.array_equal(policy[1], np.eye(A)[q.argmax()])
        for b in (11, 13):
            reachable = np.where(NOMINAL[b] > 0, VALUES[b], np.inf).min(-1)
            assert value[b] == pytest.approx(reachable.max(), rel=1e-14)


def test_no_action_is_better_than_a_mixture():
    nominal, values = np.array([[0.5, 0.5]] * 2), np.array([[1.0, 0.0], [0.0, 1.0]])
    value, policy, _ = exact(robust.L1(0.4), nominal, values)
    assert value == pytest.approx(0.4)  # 0.3 for each action alone
    np.testing.assert_allclose(policy, 0.5)


def test_a_helpful_nature_spends_all_on_one_action():
    value, policy, probs = exact(robust.L1(RADIUS, optimistic=True))
    check_for_nature(value, probs)
    q = -alone(robust.L1(np.repeat(RADIUS, A).reshape(B, A)), NOMINAL, -VALUES)[0]
    np.testing.assert_allclose(value, q.max(-1), atol=1e-12)
    np.testing.assert_allclose((policy[..., None] * probs * VALUES).sum((-2, -1)), value, atol=1e-12)
    assert np.all(np.abs(probs - NOMINAL).sum((-2, -1)) <= RADIUS + 1e-13)


@pytest.mark.parametrize("cls", [robust.L1, robust.KL])
def test_single_precision(cls):
    value, policy, probs = worst_case_state(
        SRectangular(cls(jnp.float32(RADIUS))), jnp.float32(NOMINAL), jnp.float32(VALUES)
    )
    assert value.dtype == policy.dtype == probs.dtype == jnp.float32
    np.testing.assert_allclose(value, exact(cls(RADIUS))[0], atol=2e-5)
    np.testing.assert_allclose((probs * VALUES).sum(-1).max(-1), value, atol=1e-5)
    np.testing.assert_allclose(policy.sum(-1), 1, atol=1e-6)


def _worth(cls, radius, nominal, values):
    return worst_case_state(SRectangular(cls(radius)), nominal, values)[0].sum()


@functools.cache
def slopes_of(cls):
    return jax.jit(jax.grad(functools.partial(_worth, cls), (0, 1, 2)))


@pytest.mark.parametrize("cls", [robust.L1, robust.KL])
def test_slopes_are_finite_differences(cls):
    smooth = np.arange(B) % 2 == 0
    rng = np.random.default_rng(1)
    change = rng.normal(size=NOMINAL.shape) * NOMINAL
    moves = [rng.normal(size=B), change - NOMINAL * change.sum(-1, keepdims=True), rng.normal(size=VALUES.shape)]
    moves = [np.where(smooth.reshape(-1, *(1,) * (move.ndim - 1)), move, 0) for move in moves]
    at = (RADIUS, NOMINAL, VALUES)
    with jax.enable_x64(True):
        slopes = jax.tree.map(np.asarray, slopes_of(cls)(*at))
        for i, move in enumerate(moves):
            ahead, behind = (
                _worth(cls, *(x + h * move if j == i else x for j, x in enumerate(at))) for h in (1e-6, -1e-6)
            )
            assert (slopes[i] * move).sum() == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-6)


def test_slopes_are_finite_at_the_borders():
    for cls in (robust.L1, robust.KL):
        with jax.enable_x64(True):
            slopes = jax.tree.map(np.asarray, slopes_of(cls)(RADIUS, NOMINAL, VALUES))
        assert all(np.all(np.isfinite(slope)) for slope in slopes)
        np.testing.assert_allclose(slopes[2].sum((-2, -1)), 1, atol=1e-12)  # more for everything is as much more
        assert np.all(slopes[0] <= 0)


def test_slopes_for_a_policy_are_finite_differences():
    rng = np.random.default_rng(2)
    b = np.array([0, 4, 8, 10])  # generic
    at = RADIUS[b], VALUES[b], POLICY[b]
    moves = rng.normal(size=4), rng.normal(size=(4, A, N)), np.tile([0.2, -0.1, -0.1], (4, 1))

    @jax.jit
    def worth(radius, values, policy):
        return worst_case_state(SRectangular(robust.KL(radius)), NOMINAL[b], values, policy)[0].sum()

    with jax.enable_x64(True):
        slopes = jax.grad(worth, (0, 1, 2))(*map(jnp.asarray, at))
        for i, move in enumerate(moves):
            up, down = (worth(*(x + h * move if j == i else x for j, x in enumerate(at))) for h in (1e-5, -1e-5))
            assert (slopes[i] * move).sum() == pytest.approx(float(up - down) / 2e-5, rel=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"policy has shape \(2,\), expected \[\.\.\., A\] = \(16, 3\)"):
        worst_case_state(SRectangular(robust.L1(0.1)), NOMINAL, VALUES, np.ones(2) / 2)
    with pytest.raises(ValueError, match=r"policy\[axis 0: 0\] sums to 3"):
        worst_case_state(SRectangular(robust.L1(0.1)), NOMINAL, VALUES, np.ones((B, A)))
    with pytest.raises(ValueError, match=r"SRectangular.set must be a set with a radius"):
        SRectangular(robust.Nominal())
    with pytest.raises(ValueError, match=r"expected an SRectangular"):
        worst_case_state(robust.L1(0.1), NOMINAL, VALUES)
    with pytest.raises(ValueError, match=r"expected both \[\.\.\., A, n\]"):
        worst_case_state(SRectangular(robust.L1(0.1)), NOMINAL, VALUES[..., 1:])
    with pytest.raises(ValueError, match=r"radius has shape \(3, 5\), expected a number or the leading axes"):
        worst_case_state(SRectangular(robust.L1(np.full((3, 5), 0.1))), NOMINAL[0], VALUES[0])
