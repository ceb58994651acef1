"""Solvers against linear programming, enumeration and closed forms; their certificates, traces and gradients."""

from __future__ import annotations

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings

from jaxrl import mdp
from jaxrl.mdp import linear

S, A = 5, 3
SOLVERS = {
    "value iteration": mdp.value_iteration,
    "modified policy iteration": mdp.modified_policy_iteration,
    "policy iteration": mdp.policy_iteration,
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
FORMS = ("dense", "sparse")
each_form = pytest.mark.parametrize("form", FORMS)


def random_model(seed=0, form="dense", discount=0.9):
    """Rows of one to three successors, the sparse form with padding; the reward is that of the transition."""
    rng = np.random.default_rng(seed)
    successors = np.stack([rng.permutation(S)[:3] for _ in range(S * A)]).reshape(S, A, 3)
    kept = np.arange(3) < rng.integers(1, 4, (S, A, 1))
    kept[0, 0] = True  # so that every seed has the same shape
    weights = rng.uniform(0.1, 1, (S, A, 3)) * kept
    rows = tuple(np.broadcast_to(x, successors.shape) for x in (np.arange(S)[:, None, None], np.arange(A)[:, None]))
    transition, reward = np.zeros((S, A, S)), rng.normal(size=(S, A, S))
    np.put_along_axis(transition, successors, weights / weights.sum(-1, keepdims=True), axis=-1)
    initial = rng.dirichlet(np.ones(S))
    if form == "dense":
        return mdp.MDP(transition, reward, np.float64(discount), initial)
    taken = (rows[0], rows[1], successors)
    return mdp.SparseMDP(
        successors, transition[taken], np.where(kept, reward[taken], 1e3), np.float64(discount), initial
    )


def arrays(model):
    """Dense transition and mean reward, in NumPy."""
    probs, reward = np.asarray(mdp.probabilities(model)), np.asarray(model.reward)
    reward = reward if reward.ndim == 2 else (probs * reward).sum(-1)
    if isinstance(model, mdp.MDP):
        return probs, reward
    transition = np.zeros((*reward.shape, len(reward)))
    rows = np.broadcast_to(np.arange(reward.size)[:, None], (reward.size, probs.shape[-1]))
    np.add.at(
        transition.reshape(reward.size, -1), (rows, np.reshape(model.successors, rows.shape)), probs.reshape(rows.shape)
    )
    return transition, reward


def value_of(model, policy):
    """The value of a policy `[S, A]` by NumPy."""
    transition, reward = arrays(model)
    chain = np.einsum("sa,sat->st", policy, transition)
    return np.linalg.solve(np.eye(len(chain)) - float(model.discount) * chain, (policy * reward).sum(1))


def best_of_all(model):
    """The largest value of any deterministic policy, by trying them all."""
    return np.max([value_of(model, np.eye(A)[list(actions)]) for actions in itertools.product(range(A), repeat=S)], 0)


def by_linear_program(model):
    """min sum v such that v >= r_a + discount P_a v for every action."""
    transition, reward = arrays(model)
    num_states = len(reward)
    rows = float(model.discount) * transition - np.eye(num_states)[:, None]
    program = scipy.optimize.linprog(
        np.ones(num_states), rows.reshape(-1, num_states), -reward.reshape(-1), bounds=(None, None), method="highs"
    )
    assert program.success
    return program.x


def exactly(function, model, *args, **settings):
    """What a solver gives in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(jax.tree.map(jnp.asarray, model), *args, **settings))


def single(model):
    """The model in float32; the integers as they are."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if np.result_type(x) is np.dtype(float) else jnp.asarray(x), model
    )


# ------------------------------------------------------------------------------------------- the optimum


@each_solver
@each_form
@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_that_of_the_linear_program_and_of_all_policies(solver, form, seed):
    model = random_model(seed, form)
    solution = exactly(solver, model)
    expected = best_of_all(model)
    np.testing.assert_allclose(by_linear_program(model), expected, atol=1e-8)
    np.testing.assert_allclose(solution.value, expected, atol=1e-6)
    assert solution.converged and np.abs(solution.value - expected).max() <= solution.error_bound <= 1e-6
    assert np.abs(value_of(model, solution.policy) - solution.value).max() <= solution.error_bound
    np.testing.assert_array_equal(solution.value, (solution.policy * solution.q).sum(1))
    np.testing.assert_array_equal(solution.policy.sum(1), 1)
    transition, reward = arrays(model)
    np.testing.assert_allclose(solution.q, reward + 0.9 * transition @ expected, atol=1e-6)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 0.9999])
def test_a_chain_of_two_states_has_its_closed_form(discount):
    """State 0 pays 1 and is left for good with probability p: v = 1 / (1 - discount (1 - p)); others go there."""
    p, transition, reward = 0.25, np.zeros((S, A, S)), np.zeros((S, A, S))
    transition[2:, :, 0] = transition[1, :, 1] = 1
    transition[0, :, :2] = 1 - p, p
    reward[0] = 1
    model = mdp.MDP(transition, reward, discount, np.eye(S)[0])
    first = 1 / (1 - discount * (1 - p))
    expected = [first, 0, *[discount * first] * (S - 2)]
    for solver in SOLVERS.values():
        np.testing.assert_allclose(exactly(solver, model).value, expected, atol=1e-6)
    for method in ("direct", "iterative"):
        value = exactly(mdp.evaluate, model, np.full((S, A), 1 / A), method=method)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@each_solver
def test_a_constant_reward_is_a_geometric_series(solver):
    model = random_model().replace(reward=np.full((S, A, S), -3.0), discount=0.99)
    solution = exactly(solver, model)
    np.testing.assert_allclose(solution.value, -300, rtol=1e-9)
    assert solution.iterations <= 2  # the shift has it at once


def test_the_shift_saves_sweeps_where_the_chain_mixes():
    with jax.enable_x64(True):
        model = jax.tree.map(np.asarray, mdp.garnet(200, 3, 5, 0.999, jax.random.key(1)))
    solution = exactly(mdp.value_iteration, model)
    assert solution.converged and solution.iterations < 60  # plainly some log(1e-9) / log(0.999) = 20,000
    np.testing.assert_allclose(solution.value, by_linear_program(model), atol=2e-6)


@each_form
@pytest.mark.parametrize("method", ["direct", "iterative"])
def test_the_value_of_a_policy(form, method):
    policy = np.random.default_rng(1).dirichlet(np.ones(A), S)
    for seed, discount in ((0, 0.9), (1, 0.999), (2, 0.0)):
        model = random_model(seed, form, discount)
        value = exactly(mdp.evaluate, model, policy, method=method)
        np.testing.assert_allclose(value, value_of(model, policy), rtol=1e-9)
        value = mdp.evaluate(single(model), policy.astype(np.float32), method=method)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, value_of(model, policy), rtol=1e-5 / (1 - discount), atol=1e-4)


# --------------------------------------------------------------------------------------------- certificate


@each_solver
@each_form
@given(
    seed=st.integers(0, 10_000),
    discount=st.sampled_from([0.0, 0.3, 0.9, 0.99, 0.999]),
    scale=st.floats(1e-3, 1e3),
    cancelling=st.sampled_from([0.0, 1e5]),
)
@settings(deadline=None, max_examples=20)
def test_the_certificate_holds_in_float32(solver, form, seed, discount, scale, cancelling):
    """Also where rewards of an action all but cancel in the mean."""
    model = random_model(seed, form, discount)
    model = model.replace(reward=np.float64(np.float32(scale * (model.reward + with_mean_zero(model, cancelling)))))
    solution = solver(single(model))
    exact = exactly(mdp.policy_iteration, model)
    assert solution.value.dtype == jnp.float32 and solution.converged
    error = np.abs(np.asarray(solution.value, float) - exact.value).max()
    assert error <= float(solution.error_bound) + float(exact.error_bound)
    lost = np.abs(value_of(model, np.asarray(solution.policy, float)) - np.asarray(solution.value, float)).max()
    assert lost <= float(solution.error_bound) + float(exact.error_bound)
    size = scale * (np.abs(arrays(model)[1]).max() / scale / (1 - discount) + cancelling)
    assert float(solution.error_bound) <= 1e-6 + 1e-5 * size / (1 - discount)  # and says something


def with_mean_zero(model, amplitude, seed=8):
    """A reward that every action has on the average nothing of, `[S, A, N]`."""
    probs = np.asarray(mdp.probabilities(model))
    reward = np.random.default_rng(seed).normal(size=probs.shape)
    return amplitude * (reward - (probs * reward).sum(-1, keepdims=True))


@each_solver
def test_what_is_cut_off_says_so_and_keeps_its_bound(solver):
    model = random_model(4, "sparse", 0.99)
    solution = solver(single(model), max_iterations=1)
    assert not solution.converged and solution.iterations == 1
    assert np.all(np.isfinite(solution.value)) and 1e-3 < solution.error_bound < np.inf
    assert np.abs(solution.value - best_of_all(model)).max() <= solution.error_bound


@pytest.mark.parametrize("tolerance", [1e-1, 1e-4, 1e-9])
def test_the_tolerance_is_met_and_not_by_far_more_than_asked(tolerance):
    model = random_model(2, "sparse", 0.99)
    solution = exactly(mdp.value_iteration, model, tolerance=tolerance)
    assert solution.converged and tolerance / 100 < solution.error_bound <= tolerance
    assert np.abs(solution.value - best_of_all(model)).max() <= tolerance


def test_a_tolerance_beyond_rounding_ends_and_is_not_met():
    for seed in range(5):
        solution = mdp.value_iteration(single(random_model(seed, "sparse", 0.99)), tolerance=1e-9)
        assert not solution.converged and 1e-9 < solution.error_bound < 0.1 and solution.iterations < 5000


@pytest.mark.parametrize(("seed", "discount"), [(1232, 0.99), (8228, 0.9999), (685_507, 0.9999), (286_998, 0.9999)])
def test_rounding_is_overcome(seed, discount):
    """Cycles of states on which sweeps in float32 come to a stop; gains in one state that would make a vast shift."""
    model = random_model(seed, "sparse", discount)
    exact = exactly(mdp.policy_iteration, model)
    for solver in SOLVERS.values():
        solution = solver(single(model))
        assert solution.converged and np.abs(solution.value - exact.value).max() <= solution.error_bound


def test_float64_gives_up_on_a_millionth_where_rounding_says_so():
    model = random_model(0, "dense", 0.9999)
    solution = exactly(mdp.policy_iteration, model.replace(reward=1e8 * model.reward))
    assert solution.converged and 1e-6 < solution.error_bound < 1e-12 * np.abs(solution.value).max() / 1e-4


# -------------------------------------------------------------------------------------------------- traces


WRONG = {
    "rows that do not sum to one": {"probabilities": 0.9},
    "a negative probability": {"probabilities": -1.0},
    "an unknown probability": {"probabilities": np.nan},
    "an unknown reward": {"reward": np.nan},
    "an infinite reward": {"reward": np.inf},
    "a discount of one": {"discount": 1.0},
    "a discount above one": {"discount": 1.5},
    "a discount below zero": {"discount": -0.5},
    "an unknown discount": {"discount": np.nan},
    "a successor that is no state": {"successors": S},
    "a successor below zero": {"successors": -1},
}

solve_traced = [jax.jit(mdp.value_iteration), jax.jit(mdp.policy_iteration)]
evaluate_traced = jax.jit(mdp.evaluate, static_argnames="method")


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_no_model_gives_nan_in_a_trace_and_an_error_outside(wrong):
    model = single(random_model(0, "sparse"))
    ((name, value),) = wrong.items()
    leaf = np.array(getattr(model, name))
    leaf[(1, 2, 0) if leaf.ndim else ()] = value
    model = model.replace(**{name: leaf})
    policy = np.full((S, A), 1 / A, np.float32)
    for solve in solve_traced:
        solution = solve(model)
        assert not solution.converged
        for leaf in (solution.value, solution.q, solution.policy, solution.error_bound):
            assert np.all(np.isnan(leaf))
    assert np.all(np.isnan(evaluate_traced(model, policy)))
    assert np.all(np.isnan(evaluate_traced(model, policy, method="direct")))
    for solver in (*SOLVERS.values(), functools.partial(mdp.evaluate, policy=policy)):
        with pytest.raises(ValueError):
            solver(model)


def test_what_is_no_policy_is_refused_or_gives_nan():
    model, policy = single(random_model(0, "sparse")), np.full((S, A), 1 / A, np.float32)
    with pytest.raises(ValueError, match=r"policy has shape \(5,\), expected \[S, A\] = \(5, 3\)"):
        mdp.evaluate(model, np.zeros(S, int))
    policy[3, 0] += 0.5
    with pytest.raises(ValueError, match=r"policy\[state 3\] sums to 1.5"):
        mdp.evaluate(model, policy)
    assert np.all(np.isnan(evaluate_traced(model, policy)))
    with pytest.raises(ValueError, match="method must be"):
        mdp.evaluate(model, np.full((S, A), 1 / A), method="exact")
    with pytest.raises(ValueError, match="sweeps"):
        mdp.modified_policy_iteration(model, sweeps=-1)


@pytest.mark.parametrize(
    ("solver", "form"),
    [(mdp.value_iteration, "sparse"), (mdp.modified_policy_iteration, "dense"), (mdp.policy_iteration, "sparse")],
)
def test_lanes_of_vmap_are_the_models_alone(solver, form):
    models = [random_model(seed, form, discount) for seed, discount in ((0, 0.9), (1, 0.99), (2, 0.3))]
    with jax.enable_x64(True):
        stacked = mdp.stack([*models, models[0].replace(discount=1.0)])
        together = jax.tree.map(np.asarray, jax.jit(jax.vmap(solver))(stacked))
    for lane, model in enumerate(models):
        alone = exactly(solver, model)
        np.testing.assert_allclose(together.value[lane], alone.value, atol=1e-9)
        np.testing.assert_array_equal(together.policy[lane], alone.policy)
        assert together.converged[lane] and together.iterations[lane] == alone.iterations
    assert not together.converged[3] and np.isnan(together.value[3]).all()


def test_new_numbers_do_not_compile_again(caplog):
    model = random_model(0, "sparse")
    mdp.modified_policy_iteration(single(model))
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(0)
        mdp.modified_policy_iteration(single(model).replace(discount=0.5), max_iterations=7)
        mdp.modified_policy_iteration(model, sweeps=3)
    assert "jit(<lambda>)" in caplog.text and "_iterate" not in caplog.text


# ----------------------------------------------------------------------------------------------- gradients


def moved(model, direction, step):
    return model.replace(**{name: getattr(model, name) + step * d for name, d in direction.items()})


def directions(model, seed=5):
    """A change of every number of the model that keeps rows laws with the same support."""
    rng = np.random.default_rng(seed)
    name = "probabilities" if isinstance(model, mdp.SparseMDP) else "transition"
    probs = np.asarray(getattr(model, name))
    change = rng.normal(size=probs.shape) * (probs > 0)
    change -= probs * change.sum(-1, keepdims=True)
    return {name: change * 0.1, "reward": rng.normal(size=np.shape(model.reward)), "discount": np.float64(0.01)}


@functools.partial(jax.jit, static_argnums=0)
def slopes(function, model, direction, *args):
    """The derivatives along `direction`, by forward and by reverse differentiation, of a weighted sum of `function`."""

    def objective(direction, step):
        return jnp.vdot(jnp.arange(1.0, S + 1), function(moved(model, direction, step), *args))

    forward = jax.jvp(lambda step: objective(direction, step), (0.0,), (1.0,))
    gradient = jax.grad(lambda d: objective(d, 1.0))(jax.tree.map(jnp.zeros_like, direction))
    backward = sum(jnp.vdot(gradient[name], direction[name]) for name in direction)
    return forward[1], backward


def solved(model):
    return mdp.policy_iteration(model).value


def iterated(model):
    return mdp.value_iteration(model, tolerance=1e-12).value


@pytest.mark.parametrize(("solver", "form"), [(iterated, "dense"), (solved, "sparse")])
def test_gradients_of_the_optimum_are_finite_differences(solver, form):
    model = random_model(3, form)
    direction = directions(model)
    with jax.enable_x64(True):
        forward, backward = slopes(solver, model, direction)
    weights, step = np.arange(1.0, S + 1), 1e-5
    high, low = (weights @ best_of_all(moved(model, direction, sign * step)) for sign in (1, -1))
    assert forward == pytest.approx((high - low) / (2 * step), rel=1e-6)
    assert backward == pytest.approx(float(forward), rel=1e-9)


@each_form
def test_gradients_of_the_value_of_a_policy_are_finite_differences(form):
    rng = np.random.default_rng(4)
    model, policy, turn = random_model(3, form), rng.dirichlet(np.ones(A), S), rng.normal(size=(S, A))
    turn -= turn.mean(1, keepdims=True)
    direction = directions(model) | {"initial": turn}  # the policy takes the place of a leaf that has no influence

    def value(model):
        return mdp.evaluate(model.replace(initial=np.ones(S) / S), policy + model.initial)

    with jax.enable_x64(True):
        forward, backward = slopes(value, model.replace(initial=np.zeros((S, A))), direction)
    weights, step = np.arange(1.0, S + 1), 1e-5
    high, low = (
        weights @ value_of(moved(model, directions(model), sign * step), policy + sign * step * turn)
        for sign in (1, -1)
    )
    assert forward == pytest.approx((high - low) / (2 * step), rel=1e-6)
    assert backward == pytest.approx(float(forward), rel=1e-9)


def test_gradients_in_float32_under_vmap():
    model = single(random_model(3, "sparse"))
    with_discount = jax.jit(jax.vmap(jax.grad(lambda d: mdp.value_iteration(model.replace(discount=d)).value[0])))
    slopes = with_discount(jnp.array([0.2, 0.5, 0.9]))
    for discount, slope in zip((0.2, 0.5, 0.9), slopes, strict=True):
        high, low = (best_of_all(random_model(3, "sparse", discount + h))[0] for h in (1e-6, -1e-6))
        assert slope == pytest.approx((high - low) / 2e-6, rel=1e-3)


def test_equally_good_actions_have_a_subgradient():
    """Where all actions are the same, and change in the same way, one of them has all of the gradient."""
    model = random_model(3, "dense")
    same = {name: np.repeat(np.asarray(getattr(model, name))[:, :1], A, axis=1) for name in ("transition", "reward")}
    model = model.replace(**same)
    direction = directions(model) | {"transition": 0 * same["transition"], "reward": np.ones((S, A, S))}
    with jax.enable_x64(True):
        forward, backward = slopes(iterated, model, direction)
    weights, step = np.arange(1.0, S + 1), 1e-6
    high, low = (weights @ best_of_all(moved(model, direction, sign * step)) for sign in (1, -1))
    assert forward == pytest.approx((high - low) / (2 * step), rel=1e-6)
    assert backward == pytest.approx(float(forward), rel=1e-9)


# ------------------------------------------------------------------------------------- linear equations


def drift(size, slip=0.2):
    """A chain that drifts to one end: far from normal, where BiCGSTAB breaks down."""
    ahead, back = np.minimum(np.arange(size) + 1, size - 1), np.maximum(np.arange(size) - 1, 0)
    chain = np.zeros((size, size))
    np.add.at(chain, (np.arange(size), ahead), 1 - slip)
    np.add.at(chain, (np.arange(size), back), slip)
    return chain


solve_linear = jax.jit(lambda chain, b, modulus: linear.solve(lambda x: modulus * (chain @ x), b, modulus))
solve_transposed = jax.jit(lambda chain, b, y, modulus: jax.vjp(lambda b: solve_linear(chain, b, modulus), b)[1](y)[0])


@pytest.mark.parametrize("modulus", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["drift", "mixing", "identity"])
def test_linear_equations_without_a_matrix(kind, modulus):
    rng = np.random.default_rng(0)
    chain = {"drift": drift(60), "mixing": rng.dirichlet(np.ones(60), 60), "identity": np.eye(60)}[kind]
    b, y = rng.normal(size=(2, 60))
    matrix = np.eye(60) - modulus * chain
    with jax.enable_x64(True):
        np.testing.assert_allclose(solve_linear(chain, b, modulus), np.linalg.solve(matrix, b), atol=1e-9)
        np.testing.assert_allclose(solve_transposed(chain, b, y, modulus), np.linalg.solve(matrix.T, y), atol=1e-9)
        assert np.all(np.isnan(solve_linear(chain, b * np.nan, modulus)))
    rounded = [np.float32(x) for x in (chain, b, modulus)]
    chain, b, modulus = (x.astype(float) for x in rounded)
    expected = np.linalg.solve(np.eye(60) - modulus * chain, b)
    small = solve_linear(*rounded)
    assert np.abs(small - expected).max() <= 5e-7 * np.abs(expected).max() / (1 - modulus)


def test_a_zero_right_side_has_the_zero_solution():
    np.testing.assert_array_equal(solve_linear(jnp.eye(60), jnp.zeros(60), 0.5), 0)


# ----------------------------------------------------------------------------------------- finite horizon


@each_form
def test_backward_induction_is_its_loop(form):
    model, terminal = random_model(1, form), np.random.default_rng(2).normal(size=S)
    transition, reward = arrays(model)
    values = [terminal]
    for _ in range(4):
        values.insert(0, (reward + 0.9 * transition @ values[0]).max(1))
    solution = exactly(mdp.finite_horizon, model, 4, terminal=terminal)
    np.testing.assert_allclose(solution.value, values, rtol=1e-12)
    np.testing.assert_array_equal(solution.policy.argmax(-1), solution.q.argmax(-1))
    np.testing.assert_array_equal(solution.value[:-1], solution.q.max(-1))
    assert solution.converged and solution.iterations == 4 and solution.residual == 0
    rounded = mdp.finite_horizon(single(model), 4, terminal=terminal.astype(np.float32))
    assert np.abs(rounded.value - np.array(values)).max() <= rounded.error_bound < 1e-4


def test_backward_induction_is_the_best_of_all_plans():
    """Every policy that may change with time, of a small model without a discount."""
    rng = np.random.default_rng(3)
    transition, reward = rng.dirichlet(np.ones(2), (2, 2)), rng.normal(size=(2, 2))
    best = np.full(2, -np.inf)
    for plan in itertools.product(itertools.product(range(2), repeat=2), repeat=3):
        value = np.zeros(2)
        for actions in plan:
            value = np.array([reward[s, a] + transition[s, a] @ value for s, a in enumerate(actions)])
        best = np.maximum(best, value)
    model = mdp.MDP(transition, reward, 1.0, np.ones(2) / 2)
    solution = exactly(mdp.finite_horizon, model, 3)
    np.testing.assert_allclose(solution.value[0], best, rtol=1e-12)
    slope = jax.grad(lambda r: mdp.finite_horizon(model.replace(reward=r), 3).value[0].sum())(jnp.asarray(reward))
    assert slope.sum() == pytest.approx(6, rel=1e-5)  # a step more of reward 1 in all of 3 steps, from both states


def test_a_long_horizon_is_the_optimum():
    model = random_model(2, "sparse", 0.5)
    value = exactly(mdp.finite_horizon, model, 60).value[0]
    np.testing.assert_allclose(value, exactly(mdp.policy_iteration, model).value, atol=1e-12)


def test_a_wrong_horizon_is_refused():
    model = single(random_model())
    with pytest.raises(ValueError, match=r"finite_horizon.horizon must be an integer of at least 1, got 0"):
        mdp.finite_horizon(model, 0)
    with pytest.raises(ValueError, match=r"terminal has shape \(3,\), expected \[S\] = \(5,\)"):
        mdp.finite_horizon(model, 2, terminal=np.zeros(3))
    with pytest.raises(ValueError, match=r"discount is 1.5, expected a number in \[0, 1\]"):
        mdp.finite_horizon(model.replace(discount=1.5), 2)
    solution = jax.jit(mdp.finite_horizon, static_argnums=1)(model.replace(discount=1.5), 2)
    assert not solution.converged and np.all(np.isnan(solution.q)) and np.all(np.isnan(solution.value))


# --------------------------------------------------------------------------------------------------- large


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_hundred_thousand_states(dtype):
    with jax.enable_x64(dtype == np.float64):
        model = mdp.garnet(100_000, 4, 4, 0.99, jax.random.key(0))
        assert model.probabilities.dtype == dtype
        solution = mdp.value_iteration(model)
        assert solution.converged and solution.iterations < 100
        for other in (mdp.modified_policy_iteration(model), mdp.policy_iteration(model)):
            assert other.converged
            assert np.abs(other.value - solution.value).max() <= other.error_bound + solution.error_bound
        value = mdp.evaluate(model, solution.policy)
        assert np.abs(value - solution.value).max() <= 2 * solution.error_bound
        slope = jax.grad(lambda d: mdp.value_iteration(model.replace(discount=d)).value[0])(0.99)
        change = mdp.policy_iteration(model.replace(discount=0.9901)).value[0] - solution.value[0]
        assert slope == pytest.approx(float(change) / 1e-4, rel=0.02)


@pytest.mark.slow
def test_a_large_grid():
    cells = ("S" + "." * 199, *["." * 200] * 98, "." * 199 + "+")
    with jax.enable_x64(True):
        model = mdp.grid_world(cells, 0.999)
        solutions = [solver(model) for solver in (mdp.value_iteration, mdp.modified_policy_iteration)]
        value = mdp.evaluate(model, solutions[0].policy)
    for solution in solutions:
        assert solution.converged and np.abs(value - solution.value).max() <= 2e-6
