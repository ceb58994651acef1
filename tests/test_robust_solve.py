"""Robust solvers against linear programs, scalar duals and enumeration; their certificates, traces and gradients."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxrl import mdp, risk, robust
from jaxrl.robust import operator
from jaxrl.robust.solve import METHODS, evaluate, init, solve, step

S, A, K = 6, 2, 3
DISCOUNT = 0.9


def random_model(seed=0, form="dense", discount=DISCOUNT):
    """Rows of two or three successors, the sparse form with padding; the reward is that of the transition."""
    rng = np.random.default_rng(seed)
    successors = np.stack([rng.permutation(S)[:K] for _ in range(S * A)]).reshape(S, A, K)
    kept = np.arange(K) < rng.integers(2, K + 1, (S, A, 1))
    kept[0, 0] = True  # so that every seed has the same shape
    weights = rng.uniform(0.1, 1, (S, A, K)) * kept
    probs, reward = weights / weights.sum(-1, keepdims=True), rng.normal(size=(S, A, K))
    model = mdp.SparseMDP(successors, probs, np.where(kept, reward, 1e3), np.float64(discount), np.full(S, 1 / S))
    return model if form == "sparse" else densely(model)


def densely(model):
    transition, reward = np.zeros((S, A, S)), np.random.default_rng(1).normal(size=(S, A, S))
    kept = model.probabilities > 0
    rows = [np.broadcast_to(x, kept.shape)[kept] for x in (np.arange(S)[:, None, None], np.arange(A)[:, None])]
    transition[*rows, model.successors[kept]] = model.probabilities[kept]
    reward[*rows, model.successors[kept]] = model.reward[kept]
    return mdp.MDP(transition, reward, model.discount, model.initial)


def exactly(function, *args, **settings):
    """What a function gives in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*jax.tree.map(jnp.asarray, args), **settings))


def slots(model, value):
    """For each row: its probabilities and the values that nature weighs, in NumPy."""
    probs = np.asarray(mdp.probabilities(model))
    follows = value[model.successors] if isinstance(model, mdp.SparseMDP) else value
    return probs, np.broadcast_to(model.reward + float(model.discount) * follows, probs.shape)


# ---------------------------------------------------------------------------- nature, by other means than the library


def program(nominal, values, rows, bounds, equal=True):
    """min p . values over laws p that satisfy `rows` (a matrix and a vector, in p and further variables)."""
    n, extra = len(nominal), rows[0].shape[1] - len(nominal)
    found = scipy.optimize.linprog(
        np.append(values, np.zeros(extra)), *rows, np.append(np.ones(n), np.zeros(extra))[None], [1.0], bounds
    )
    assert found.success, found.message
    return found.fun


def by_program(kind, setting, p, z, free):
    """The worst case over a polytope, with HiGHS; `free`: the states that may have mass."""
    n = len(p)
    identity, limits = np.eye(n), [(0, 1 if f else 0) for f in free]
    none = (np.zeros((1, n)), np.zeros(1))
    if kind in ("L1", "TotalVariation"):  # |p - p0| <= d, sum d <= radius
        budget = setting if kind == "L1" else 2 * setting
        matrix = np.block([[identity, -identity], [-identity, -identity], [np.zeros((1, n)), np.ones((1, n))]])
        return program(p, z, (matrix, np.concatenate([p, -p, [budget]])), limits + [(0, None)] * n)
    if kind == "Contamination":
        return program(p, z, none, [((1 - setting) * a, b[1]) for a, b in zip(p, limits, strict=True)])
    if kind == "CVaR":
        return program(p, z, none, [(0, a / setting) for a in p])
    lower, upper = (p - setting, p + setting) if kind == "LInf" else (setting[0] * p, setting[1] * p)
    bounds = [(max(a, 0), min(max(b, 0), c[1])) for a, b, c in zip(lower, upper, limits, strict=True)]
    return program(p, z, none, bounds)


def by_dual(kind, setting, p, z):
    """The worst case over a ball of a divergence, by a search for one number; or a penalty, in closed form."""
    p, z = p[p > 0], z[p > 0]
    if kind == "Entropic":
        return -scipy.special.logsumexp(-setting * z, b=p) / setting
    budget = -math.log(setting) if kind == "EVaR" else setting
    span = np.ptp(z)

    def negative(x):
        if kind == "ChiSquare":
            return math.sqrt((1 + budget) * p @ np.maximum(x - z, 0) ** 2) - x
        theta = math.exp(x)
        return (scipy.special.logsumexp(-theta * (z - z.min()), b=p) + budget) / theta - z.min()

    bounds = (z.min(), z.max() + span / max(budget, 1e-9) ** 0.5) if kind == "ChiSquare" else (-12.0, 12.0)
    found = -scipy.optimize.minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-11}).fun
    return max(found, z.min())


CASES = {  # the set, given the model; what nature is told, by its other means
    "L1": (lambda probs: robust.L1(0.3), 0.3),
    "L1 all": (lambda probs: robust.L1(0.3, support="all"), 0.3),
    "L1 optimistic": (lambda probs: robust.L1(0.3, optimistic=True), 0.3),
    "TotalVariation": (lambda probs: robust.TotalVariation(0.2), 0.2),
    "LInf": (lambda probs: robust.LInf(0.15), 0.15),
    "LInf all": (lambda probs: robust.LInf(0.15, support="all"), 0.15),
    "Interval": (lambda probs: robust.Interval(0.5 * probs, 1.5 * probs), (0.5, 1.5)),
    "Contamination all": (lambda probs: robust.Contamination(0.2, support="all"), 0.2),
    "CVaR": (lambda probs: robust.CVaR(0.4), 0.4),
    "KL": (lambda probs: robust.KL(0.1), 0.1),
    "EVaR": (lambda probs: robust.EVaR(0.5), 0.5),
    "ChiSquare": (lambda probs: robust.ChiSquare(0.4), 0.4),
    "ChiSquare optimistic": (lambda probs: robust.ChiSquare(0.4, optimistic=True), 0.4),
    "Entropic": (lambda probs: robust.Entropic(0.8), 0.8),
}
OFTEN = [(name, "dense") for name in ("L1", "L1 all", "Interval", "ChiSquare optimistic", "CVaR")]
OFTEN += [(name, "sparse") for name in ("L1", "LInf", "KL", "Entropic")]
SELDOM = [case for case in itertools.product(CASES, ("dense", "sparse")) if case not in OFTEN]
SELDOM = [(name, form) for name, form in SELDOM if form == "dense" or "all" not in name]


def sweep(model, name, value):
    """The robust Bellman operator with other means: the worst-case values of all actions."""
    kind, setting = name.split()[0], CASES[name][1]
    sign = -1 if "optimistic" in name else 1
    probs, z = slots(model, value)
    q = np.empty((S, A))
    for s, a in np.ndindex(S, A):
        p, free = probs[s, a], (probs[s, a] > 0) | ("all" in name)
        if kind in ("KL", "EVaR", "ChiSquare", "Entropic"):
            q[s, a] = sign * by_dual(kind, setting, p, sign * z[s, a])
        else:
            q[s, a] = sign * by_program(kind, setting, p, sign * z[s, a], free)
    return q


@pytest.mark.parametrize("name, form", OFTEN + [pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM])
def test_the_value_is_the_fixed_point_of_the_operator_by_other_means(name, form):
    model = random_model(0, form)
    found = exactly(solve, model, CASES[name][0](mdp.probabilities(model)), tolerance=1e-9)
    q = sweep(model, name, found.value)
    np.testing.assert_allclose(found.q, q, atol=2e-8)
    np.testing.assert_allclose(found.value, q.max(1), atol=2e-8)  # so the error is at most 2e-8 / (1 - 0.9)
    np.testing.assert_array_equal(found.policy.argmax(1), found.q.argmax(1))
    assert found.converged and found.error_bound <= 1e-9 and found.iterations <= 12
    laws, (probs, z) = found.worst_transition, slots(model, found.value)
    assert laws.shape == probs.shape and laws.min() >= 0
    np.testing.assert_allclose(laws.sum(-1), 1, atol=1e-12)
    if "Entropic" not in name:
        np.testing.assert_allclose((laws * z).sum(-1), found.q, atol=1e-9)
    if "all" not in name:
        assert np.all(laws[probs == 0] == 0)


def test_value_iteration_with_linear_programs_ends_at_the_same_value():
    model = random_model(3, "sparse")
    value = np.zeros(S)
    for _ in range(60):
        value = sweep(model, "L1", value).max(1)
    error = DISCOUNT**60 * np.abs(value).max() / (1 - DISCOUNT)
    np.testing.assert_allclose(exactly(solve, model, robust.L1(0.3)).value, value, atol=error)


NAMED = [mdp.machine_replacement] + [
    pytest.param(make, marks=pytest.mark.slow) for make in (mdp.river_swim, mdp.inventory, mdp.forest, mdp.grid_world)
]


@pytest.mark.parametrize("make", NAMED)
def test_without_ambiguity_the_value_is_that_of_the_model(make):
    with jax.enable_x64(True):
        model = make()
        expected = mdp.policy_iteration(model, tolerance=1e-9).value
        found = solve(model, robust.L1(0.0), tolerance=1e-8)
        np.testing.assert_allclose(found.value, expected, atol=2e-8)
        np.testing.assert_array_equal(found.worst_transition, mdp.probabilities(model))


@functools.cache
def of_machine_replacement():
    with jax.enable_x64(True):
        model = mdp.machine_replacement()
        return model, [np.asarray(solve(model, robust.L1(radius)).value) for radius in (0.0, 0.2, 0.8, 2.0)]


def test_more_ambiguity_is_worth_less_and_all_of_it_is_the_worst_path():
    model, values = of_machine_replacement()
    assert all(np.all(more <= less + 1e-9) for less, more in itertools.pairwise(values))
    worst = np.zeros(len(values[0]))
    possible = np.asarray(model.probabilities) > 0
    for _ in range(500):
        z = np.asarray(model.reward).reshape(*possible.shape[:2], -1) + float(model.discount) * worst[model.successors]
        worst = np.where(possible, z, np.inf).min(-1).max(-1)
    np.testing.assert_allclose(values[-1], worst, atol=1e-6)


# ----------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", [pytest.param("dense", marks=pytest.mark.slow), "sparse"])
def test_methods_agree(method, form):
    model = random_model(1, form)
    expected = exactly(solve, model, robust.L1(0.4), tolerance=1e-10).value
    found = exactly(solve, model, robust.L1(0.4), method=method)
    assert found.converged and np.abs(found.value - expected).max() <= found.error_bound <= 1e-6
    assert found.iterations <= (120 if method == "value_iteration" else 12)


def circles():
    """Two players who improve at the same time, and never agree: found by search among models of this size."""

    def laws(of_first):
        return np.stack([of_first, 1 - of_first], axis=-1)

    least, most = np.array([[0.4, 0.2], [0.0, 0.5]]), np.array([[1.0, 1.0], [0.0, 0.5]])
    reward = np.array([[-5.0, 5.0], [0.0, -1.0]])
    model = mdp.MDP(laws(most), reward, np.float64(0.99), np.full(2, 0.5))
    lower, upper = np.minimum(laws(least), laws(most)), np.maximum(laws(least), laws(most))
    return model, robust.Interval(lower, upper, support="all")


def test_a_proposal_that_is_no_progress_is_not_taken():
    model, set = circles()
    value, residuals, laws = np.zeros(2), [], model.transition
    for _ in range(40):  # Newton's steps alone; to begin with, nature is indifferent
        q = model.reward + 0.99 * laws @ value
        actions = q.argmax(1)
        residuals.append(np.abs(q.max(1) - value).max())
        value = np.linalg.solve(np.eye(2) - 0.99 * laws[[0, 1], actions], model.reward[[0, 1], actions])
        of_first = set.upper[..., 0] if value[0] < value[1] else set.lower[..., 0]
        laws = np.stack([of_first, 1 - of_first], axis=-1)
    assert min(residuals) > 1  # no fixed point, for ever
    found = exactly(solve, model, set, method="policy_iteration")
    assert found.converged and 1 <= found.rejections < found.iterations < 60
    slow = exactly(solve, model, set, method="value_iteration")
    assert slow.converged and slow.rejections == 0
    np.testing.assert_allclose(found.value, slow.value, atol=2e-6)


@pytest.mark.slow
def test_policy_iteration_ends_on_thousands_of_hard_models():
    rng = np.random.default_rng(1)
    n = 4000
    probs = rng.dirichlet(np.ones(2), (n, 2, 2))
    lower = probs * rng.choice([0.0, 0.5, 1.0], probs.shape)
    upper = np.where(rng.random(probs.shape) < 0.6, 1, np.minimum(1, 1.3 * probs))
    reward, discount = rng.integers(-5, 6, (n, 2, 2)).astype(float), rng.choice([0.9, 0.99, 0.999], n)

    def both(transition, lower, upper, reward, discount):
        model = mdp.MDP(transition, reward, discount, np.full(2, 0.5))
        return [solve(model, robust.Interval(lower, upper), method=method) for method in METHODS]

    slow, partial, newton = exactly(jax.jit(jax.vmap(both)), probs, lower, upper, reward, discount)
    assert newton.rejections.max() > 5 and partial.converged.all() and newton.converged.all() and slow.converged.all()
    for found in (partial, newton):
        assert np.all(np.abs(found.value - slow.value).max(1) <= found.error_bound + slow.error_bound)


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_steps_is_the_solver(method):
    with jax.enable_x64(True):
        model, set = jax.tree.map(jnp.asarray, random_model(2)), robust.KL(0.2)
        expected = solve(model, set, tolerance=1e-10).value
        state = init(model, set, method)
        for _ in range(150):
            state, info = step(model, set, state, method)
            assert np.abs(state.value - expected).max() <= info.error_bound + 1e-10
            if info.error_bound <= 1e-6:
                break
        assert info.error_bound <= 1e-6 and not info.rejected
        np.testing.assert_allclose(state.value, state.q.max(1), atol=1e-12)
        assert jax.tree.structure(state) == jax.tree.structure(init(model, set, method))


def test_the_reward_of_an_action_may_be_that_of_all_its_transitions():
    model = random_model(4)
    model = model.replace(reward=model.reward[..., 0])
    spread = model.replace(reward=np.broadcast_to(model.reward[..., None], (S, A, S)))
    one, other = exactly(solve, model, robust.L1(0.3)), exactly(solve, spread, robust.L1(0.3))
    np.testing.assert_allclose(one.q, other.q, atol=1e-6)
    np.testing.assert_allclose(one.worst_transition, other.worst_transition, atol=1e-6)


def test_blocks_are_the_whole(monkeypatch):
    x = np.arange(7.0 * 3).reshape(7, 3)
    for block in (1, 6, 9, 100):
        monkeypatch.setattr(operator, "BLOCK", block)
        double, row = operator.in_blocks(lambda part: (2 * part[0], part[1].sum(-1)), (x[:, 0], x))
        np.testing.assert_array_equal(double, 2 * x[:, 0])
        np.testing.assert_array_equal(row, x.sum(-1))


@pytest.mark.slow
def test_a_large_model_is_solved_alike_in_all_ways():
    with jax.enable_x64(True):
        sparse = mdp.garnet(300, 3, 20, 0.95, jax.random.key(0))
        dense = mdp.dense(sparse)
        expected = solve(sparse, robust.L1(0.3), method="value_iteration", tolerance=1e-9).value
        for model, method in itertools.product((sparse, dense), METHODS[1:]):
            found = solve(model, robust.L1(0.3), method=method, tolerance=1e-8)
            np.testing.assert_allclose(found.value, expected, atol=1.1e-8)
            assert found.iterations <= 10


# ------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("form", ["dense", pytest.param("sparse", marks=pytest.mark.slow)])
def test_no_policy_is_worth_more_than_the_robust_one(form):
    model = random_model(5, form)
    set = robust.L1(0.4)
    found = exactly(solve, model, set, tolerance=1e-9)
    policies = np.eye(A)[np.array(list(itertools.product(range(A), repeat=S)))]
    many = jax.vmap(lambda policy, model: evaluate(model, set, policy).value, (0, None))
    values = exactly(many, policies, model)
    np.testing.assert_allclose(values.max(0), found.value, atol=1e-6)
    np.testing.assert_allclose(exactly(evaluate, model, set, found.policy).value, found.value, atol=1e-6)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_the_value_of_a_random_policy_is_a_fixed_point_by_other_means(form):
    model = random_model(6, form)
    policy = np.random.default_rng(0).dirichlet(np.ones(A), S)
    found = exactly(evaluate, model, robust.L1(0.3), policy, tolerance=1e-9)
    np.testing.assert_allclose((policy * sweep(model, "L1", found.value)).sum(1), found.value, atol=1e-8)
    np.testing.assert_array_equal(found.policy, policy)
    assert found.converged and found.rejections == 0 and found.iterations <= 10


# ----------------------------------------------------------------------------------------- certificates


SINGLE = [robust.L1(0.3), robust.KL(0.1)]
SINGLE += [pytest.param(set, marks=pytest.mark.slow) for set in (robust.ChiSquare(0.1), robust.Entropic(0.5))]


@pytest.mark.parametrize("set", SINGLE)
def test_the_bound_holds_in_single_precision(set):
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None), random_model(7))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), single)
    laws = double.transition / double.transition.sum(-1, keepdims=True)
    double = double.replace(transition=laws, initial=double.initial / double.initial.sum())
    expected = exactly(solve, double, set, tolerance=1e-10).value
    found = solve(single, set)
    assert found.value.dtype == jnp.float32
    assert found.converged and np.abs(found.value - expected).max() <= found.error_bound <= 1e-3


def test_a_tolerance_that_rounding_forbids_is_not_met():
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None), random_model(7))
    found = solve(single, robust.L1(0.3), tolerance=1e-9)
    assert not found.converged and 1e-9 < found.error_bound < 1e-3 and found.iterations < 100
    short = solve(single, robust.L1(0.3), method="value_iteration", max_iterations=2)
    assert not short.converged and short.iterations == 2
    exact = exactly(solve, random_model(7), robust.L1(0.3)).value
    assert np.abs(short.value - exact).max() <= short.error_bound


def test_signed_sets_are_certified_as_far_as_they_contract():
    model = random_model(8)
    near = exactly(solve, model, robust.SignedLp(0.05))
    assert near.converged
    q = np.empty((S, A))
    probs, z = slots(model, near.value)
    for s, a in np.ndindex(S, A):
        on = probs[s, a] > 0
        weighed = z[s, a][on]
        q[s, a] = probs[s, a] @ z[s, a] - 0.05 * np.linalg.norm(weighed - weighed.mean())
    np.testing.assert_allclose(near.value, q.max(1), atol=1e-6)
    far = exactly(solve, model, robust.SignedLp(3.0), max_iterations=50)
    assert far.error_bound == np.inf and not far.converged


def test_what_is_no_model_is_nan_in_a_trace():
    model = random_model(0)
    wrong = [model.replace(discount=np.float64(1.0)), model.replace(transition=2 * model.transition)]
    for bad, radius in [(wrong[0], 0.3), (wrong[1], 0.3), (model, -0.1)]:
        found = exactly(jax.jit(lambda model, radius: solve(model, robust.L1(radius))), bad, radius)
        assert not found.converged and np.isnan(found.value).all() and np.isnan(found.worst_transition).all()
    empty = jax.jit(lambda model, upper: solve(model, robust.Interval(0.0, upper)))
    found = exactly(empty, model, 0.1)
    assert not found.converged and np.isnan(found.value).all()


# --------------------------------------------------------------------------------- vmap, jit, derivatives


def test_many_at_once_are_each_alone():
    radii, discounts = np.linspace(0, 2, 16), np.linspace(0, 0.99, 16)
    models = [random_model(seed, "sparse") for seed in range(4)]

    def value(radius, discount, model):
        found = solve(model.replace(discount=discount), robust.L1(radius))
        return found.value, found.converged

    def alone(radius, discount, model):
        return exactly(solve, model.replace(discount=np.float64(discount)), robust.L1(radius)).value

    values, converged = exactly(jax.vmap(value, (0, 0, None)), radii, discounts, models[0])
    assert converged.all()
    for i in range(16):
        np.testing.assert_allclose(values[i], alone(radii[i], discounts[i], models[0]), atol=1e-6)
    stacked = exactly(mdp.stack, models)
    values, _ = exactly(jax.vmap(value, (None, None, 0)), 0.3, 0.9, stacked)
    for i, model in enumerate(models):
        np.testing.assert_allclose(values[i], alone(0.3, 0.9, model), atol=1e-6)


def total(reward, probs, discount, setting, make, model):
    """A number that depends on all values."""
    name = "transition" if isinstance(model, mdp.MDP) else "probabilities"
    model = model.replace(reward=reward, discount=discount, **{name: probs})
    return jnp.dot(solve(model, make(setting), tolerance=1e-12).value, jnp.arange(1.0, S + 1))


SETS = {
    "L1": (robust.L1, 0.3),
    "KL": (robust.KL, 0.1),
    "ChiSquare": (robust.ChiSquare, 0.2),
    "CVaR": (robust.CVaR, 0.4),
}
SETS |= {"Entropic": (robust.Entropic, 0.7), "L1 of each": (robust.L1, np.linspace(0.1, 0.5, S * A).reshape(S, A))}

SLOPES = [("L1 of each", "dense"), ("KL", "sparse")]
SLOPES += [
    pytest.param(name, form, marks=pytest.mark.slow)
    for name, form in [*((name, "dense") for name in ("KL", "ChiSquare", "CVaR", "Entropic", "L1")), ("L1", "sparse")]
]


@pytest.mark.parametrize("name, form", SLOPES)
def test_the_slopes_are_those_of_differences(name, form):
    make, setting = SETS[name]
    model = random_model(9, form)
    probs = np.asarray(mdp.probabilities(model))
    arguments = (model.reward, probs, model.discount, np.asarray(setting))
    function = functools.partial(total, make=make, model=model)
    slopes = exactly(jax.jit(jax.grad(function, (0, 1, 2, 3))), *arguments)
    rng = np.random.default_rng(0)
    for which, at in enumerate(arguments):
        direction = rng.normal(size=np.shape(at))
        if which == 1:  # along changes that keep the sums and the support
            direction = np.where(probs > 0, direction, 0)
            direction -= np.where(probs > 0, direction.sum(-1, keepdims=True) / (probs > 0).sum(-1, keepdims=True), 0)
        h = 1e-5
        moved = [[x + sign * h * direction if i == which else x for i, x in enumerate(arguments)] for sign in (1, -1)]
        difference = (exactly(function, *moved[0]) - exactly(function, *moved[1])) / (2 * h)
        assert abs(difference) > 1e-3
        np.testing.assert_allclose(np.sum(slopes[which] * direction), difference, rtol=1e-5)


def test_slopes_of_an_evaluation_and_of_worst_case_values():
    model = random_model(10)
    policy = np.random.default_rng(0).dirichlet(np.ones(A), S)

    def number(policy, radius):
        found = evaluate(model, robust.L1(radius), policy, tolerance=1e-12)
        return jnp.sum(found.value) + 2 * found.q[0, 1]

    slopes = exactly(jax.grad(number, (0, 1)), policy, 0.3)
    direction = np.tile([1.0, -1.0], (S, 1))
    h = 1e-5
    for slope, moves in ((np.sum(slopes[0] * direction), (h * direction, 0)), (slopes[1], (0, h))):
        up, down = (exactly(number, policy + k * moves[0], 0.3 + k * moves[1]) for k in (1, -1))
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-5)


# ----------------------------------------------------------------------------------------------- errors


def test_errors():
    model, sparse = random_model(0), random_model(0, "sparse")
    radius = np.full((S, A + 1), 0.1)
    for call, message in [
        (lambda: solve(model, 0.3), "set is of type float, expected a set of jaxrl.robust"),
        (lambda: solve(model, robust.L1), "set is the class L1, expected an instance"),
        (lambda: solve(model, risk.MeanStd(0.5)), "monotone measure"),
        (lambda: solve(sparse, robust.L1(0.1, support="all")), "mdp.dense"),
        (lambda: solve(model, robust.L1(radius)), r"L1.radius has shape \(6, 3\), expected a number"),
        (lambda: solve(model, robust.Wasserstein(0.1, 1 - np.eye(3))), r"Wasserstein.metric has shape \(3, 3\)"),
        (lambda: solve(model, robust.Interval(0.0, 0.1)), "leaves no law for state 0, action 0"),
        (lambda: solve(model, robust.L1(0.1), method="newton"), "method must be 'auto' or one of"),
        (lambda: init(model, robust.L1(0.1), "newton"), "method must be 'auto' or one of"),
        (lambda: solve(model, robust.L1(0.1), max_iterations=0), "solve.max_iterations must be an integer"),
        (lambda: evaluate(model, robust.L1(0.1), np.ones((S, A))), "policy"),
        (lambda: solve(model.replace(discount=np.float64(1.0)), robust.L1(0.1)), "discount is 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
