"""Sets of finitely many models: nature picks at each step, for the average, or once and for all; by enumeration."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxrl import mdp, robust
from jaxrl.robust.average import average
from jaxrl.robust.iwocs import iwocs
from jaxrl.robust.scenarios import Laws, Scenarios

K, S, A = 2, 3, 2
DISCOUNT = 0.9


def some(seed, count=K):
    """Kernels `[K, S, A, S]` without zeros, so that all chains are irreducible, and rewards `[S, A]`."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(S), (count, S, A)), rng.normal(size=(S, A))


def model_of(kernel, reward, discount=DISCOUNT):
    initial = np.arange(1, S + 1) / (S * (S + 1) / 2)
    return mdp.MDP(*(jnp.asarray(x) for x in (kernel, reward, discount, initial)))


def policies():
    return itertools.product(range(A), repeat=S)


def chains(kernels, policy):
    """The chains that nature can make of a deterministic policy, picking a law in each state."""
    for picks in itertools.product(range(len(kernels)), repeat=S):
        yield np.array([kernels[k, s, a] for s, (k, a) in enumerate(zip(picks, policy, strict=True))])


def gain_of(chain, reward):
    """The mean reward under the stationary law."""
    equations = np.vstack([chain.T - np.eye(S), np.ones(S)])
    return np.linalg.lstsq(equations, [*np.zeros(S), 1], rcond=None)[0] @ reward


@jax.jit
def robust_value(model, ball):
    """The robust value by value iteration, `[S]`, for a set of each state and action."""

    def sweep(_, v):
        z = mdp.targets(model, v)
        return jnp.max(robust.worst_case(ball, model.transition, z)[0], axis=1)

    return jax.lax.fori_loop(0, 600, sweep, jnp.zeros(model.num_states, model.reward.dtype))


# ---------------------------------------------------------------------------------------- scenarios


def test_the_worst_law_of_a_row_is_the_worst_of_the_list():
    kernels, _ = some(0, count=4)
    values = np.random.default_rng(1).normal(size=(S, A, S))
    for optimistic, extreme in ((False, np.min), (True, np.max)):
        ball = Scenarios(kernels, optimistic=optimistic)
        means = (kernels * values).sum(-1)
        value, probs = robust.worst_case(ball.by_row(), kernels[0], values)
        np.testing.assert_allclose(value, extreme(means, axis=0), rtol=1e-5)
        np.testing.assert_allclose((probs * values).sum(-1), value, rtol=1e-5)
        assert all(any(np.allclose(probs[s, a], k[s, a]) for k in kernels) for s, a in np.ndindex(S, A))
        for state, action in np.ndindex(S, A):
            order = np.array([2, 0, 1])
            one = robust.worst_case(ball.row(state, action), kernels[0, 0, 0], values[state, action])
            slots = robust.worst_case(ball.row(state, action, order), kernels[0, 0, 0], values[state, action][order])
            np.testing.assert_allclose(one[0], value[state, action], rtol=1e-6)
            np.testing.assert_allclose(slots[0], value[state, action], rtol=1e-6)
            np.testing.assert_allclose(slots[1], np.asarray(one[1])[order], rtol=1e-6)


def test_slopes_are_the_worst_law_and_its_weights():
    laws, values = some(2, count=4)[0][:, 0, 0], np.array([1.0, -2.0, 0.5])

    def worth(laws, values):
        return robust.worst_case(Laws(laws), jnp.ones(S) / S, values)[0]

    of_laws, of_values = jax.grad(worth, (0, 1))(jnp.asarray(laws), jnp.asarray(values))
    worst = (laws @ values).argmin()
    np.testing.assert_allclose(of_values, laws[worst], rtol=1e-6)
    np.testing.assert_allclose(of_laws, np.eye(4)[worst][:, None] * values, rtol=1e-6)


def test_dynamic_choice_is_a_game_over_all_mixtures_of_rows():
    kernels, reward = some(3)
    with jax.enable_x64(True):
        value = np.asarray(robust_value(model_of(kernels[0], reward), Scenarios(kernels).by_row()))

    def worth(chain, policy):
        return np.linalg.solve(np.eye(S) - DISCOUNT * chain, reward[np.arange(S), list(policy)])

    game = [np.min([worth(chain, policy) for chain in chains(kernels, policy)], axis=0) for policy in policies()]
    np.testing.assert_allclose(value, np.max(game, axis=0), rtol=1e-10)
    assert len(list(chains(kernels, (0, 0, 0)))) == K**S


def test_scenarios_errors():
    kernels, _ = some(4)
    with pytest.raises(ValueError, match=r"Scenarios.transitions has shape \(3, 2, 3\), expected \[K, S, A, S\]"):
        Scenarios(kernels[0])
    with pytest.raises(ValueError, match=r"Scenarios.transitions\[scenario 1, state 2, action 0\] sums to 2"):
        Scenarios(kernels * (1 + (np.arange(12) == 10).reshape(K, S, A, 1)))
    with pytest.raises(ValueError, match=r"one model for good.*robust.iwocs"):
        Scenarios(kernels, static=True).by_row()
    with pytest.raises(ValueError, match=r"expected that of one row: set.row\(state, action\)"):
        robust.worst_case(Scenarios(kernels), kernels[0, 0, 0], np.zeros(S))
    with pytest.raises(ValueError, match=r"list all successors once"):
        Scenarios(kernels).row(0, 0, np.array([0, 1]))


# ------------------------------------------------------------------------------------------- average


@pytest.mark.parametrize("seed", range(3))
def test_average_against_enumeration(seed):
    kernels, reward = some(10 + seed)
    best = max(
        min(gain_of(chain, reward[np.arange(S), list(policy)]) for chain in chains(kernels, policy))
        for policy in policies()
    )
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, average(model_of(kernels[0], reward), Scenarios(kernels), tolerance=1e-10))
    assert found.converged and found.error_bound <= 1e-10
    assert abs(found.gain - best) <= found.error_bound
    actions = found.policy.argmax(-1)
    worst = found.worst_transition[np.arange(S), actions]
    assert gain_of(worst, reward[np.arange(S), actions]) == pytest.approx(best, abs=1e-9)
    np.testing.assert_allclose(found.q.max(-1), found.bias, atol=1e-9)
    assert found.bias[0] == 0


def test_average_without_a_set_is_a_linear_program():
    """Puterman 1994, Section 8.8: max sum x r over the frequencies of states and actions."""
    kernels, reward = some(20)
    balance = np.array([[(s == t) - kernels[0, s, a, t] for s in range(S) for a in range(A)] for t in range(S)])
    program = scipy.optimize.linprog(
        -reward.ravel(), A_eq=np.vstack([balance, np.ones(S * A)]), b_eq=[*np.zeros(S), 1], bounds=(0, None)
    )
    with jax.enable_x64(True):
        found = average(model_of(kernels[0], reward), robust.Nominal(), tolerance=1e-10)
    assert float(found.gain) == pytest.approx(-program.fun, abs=1e-9)


def test_average_is_the_limit_of_small_interest():
    kernels, reward = some(21)
    ball = robust.L1(0.3, support="all")
    with jax.enable_x64(True):
        gain = float(average(model_of(kernels[0], reward), ball, tolerance=1e-9).gain)
        value = np.asarray(robust_value(model_of(kernels[0], reward, 0.95), ball))
    low, high = 0.05 * value.min(), 0.05 * value.max()
    assert low <= gain <= high and high - low < 0.2  # T(value) = value bounds the gain


def test_average_of_a_periodic_chain():
    cycle = np.roll(np.eye(S), 1, axis=1)[:, None]
    reward = np.array([[3.0], [0.0], [0.0]])
    model = mdp.MDP(*(jnp.asarray(x, jnp.float32) for x in (cycle, reward, 0.5, np.eye(S)[0])))
    found = average(model, robust.Nominal())
    assert bool(found.converged) and float(found.gain) == pytest.approx(1, abs=1e-5)


def test_average_says_when_there_is_no_one_gain():
    model = mdp.MDP(jnp.eye(2)[:, None], jnp.array([[0.0], [1.0]]), jnp.array(0.9), jnp.ones(2) / 2)
    found = average(model, robust.Nominal(), max_iterations=50)
    assert not found.converged and float(found.error_bound) >= 0.5
    with pytest.raises(ValueError, match=r"SignedLp has measures that are no laws"):
        average(model, robust.SignedLp(0.1))
    with pytest.raises(
        ValueError, match=r"Scenarios.transitions has models \(3, 2, 3\), expected \[S, A, S\] = \(2, 1"
    ):
        average(model, Scenarios(some(0)[0]))
    with pytest.raises(ValueError, match=r"use mdp.dense\(model\)"):
        average(mdp.sparse(model), Scenarios(some(0)[0]))


@pytest.mark.parametrize("form", ["dense", pytest.param("sparse", marks=pytest.mark.slow)])
def test_slopes_of_the_gain_are_finite_differences(form):
    kernels, reward = some(22)
    rng = np.random.default_rng(0)
    moves = rng.normal(size=kernels[0].shape), rng.normal(size=reward.shape), 1.0
    moves = (moves[0] - moves[0].mean(-1, keepdims=True), *moves[1:])

    @jax.jit
    def gain(kernel, reward, radius):
        model = model_of(kernel, reward) if form == "dense" else slotted(kernel, reward)
        return average(model, robust.KL(radius), tolerance=1e-11).gain

    def slotted(kernel, reward):
        places = np.broadcast_to(np.arange(S), kernel.shape)
        return mdp.SparseMDP(places, kernel, reward, jnp.asarray(DISCOUNT), jnp.ones(S) / S)

    with jax.enable_x64(True):
        at = jnp.asarray(kernels[0]), jnp.asarray(reward), jnp.asarray(0.1)
        slopes = jax.jit(jax.grad(gain, (0, 1, 2)))(*at)
        for i, move in enumerate(moves):
            up, down = (gain(*(x + h * move if j == i else x for j, x in enumerate(at))) for h in (1e-5, -1e-5))
            assert np.sum(slopes[i] * move) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
        assert slopes[1].sum() == pytest.approx(1)  # a unit more in each step


# --------------------------------------------------------------------------------------------- IWOCS


@pytest.mark.parametrize("seed", range(4))
def test_iwocs_bounds_the_static_optimum(seed):
    kernels, reward = some(30 + seed, count=5)
    with jax.enable_x64(True):
        models = mdp.stack([model_of(kernel, reward) for kernel in kernels])
        found = jax.tree.map(np.asarray, iwocs(models))
    initial = np.asarray(models.initial[0], np.float64)

    def worth(kernel, policy):
        chain = np.einsum("sa,san->sn", policy, kernel)
        return initial @ np.linalg.solve(np.eye(S) - DISCOUNT * chain, (policy * reward).sum(-1))

    worst = [min(worth(kernel, np.eye(A)[list(policy)]) for kernel in kernels) for policy in policies()]
    assert found.lower <= max(worst) + 1e-9
    assert max(worst) <= found.upper + 1e-9
    values = [worth(kernel, found.policy) for kernel in kernels]
    assert found.lower == pytest.approx(min(values), abs=1e-9)
    assert found.worst == np.argmin(values)
    solved = found.models[: found.iterations]
    assert len(set(solved.tolist())) == found.iterations and np.all(found.models[found.iterations :] == -1)
    best = [max(worth(kernels[k], np.eye(A)[list(policy)]) for policy in policies()) for k in solved]
    assert found.upper == pytest.approx(min(best), abs=1e-8)
    last = found.iterations - 1
    assert found.converged == (found.promised[last] - found.attained[last] <= 1e-6)


CELLS = (".......", "..###..", "......G", "S.###..", ".......")
WIND = {0: 6, 2: 1, 4: 3}  # power of alpha by row, in the columns of the walls


def windy_walk(alpha):
    """A walk to G past two walls: the shorter the corridor, the stronger the wind against it.

    Each step costs 1. In a corridor the wind takes over with its probability, and blows one cell to the left.
    """
    cells = np.array([list(row) for row in CELLS])
    index = {tuple(cell): i for i, cell in enumerate(np.argwhere(cells != "#").tolist())}
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))
    ahead, blown = np.zeros((2, len(index), 4, len(index)))
    power = np.zeros(len(index))
    for (row, column), i in index.items():
        if 2 <= column <= 4:
            power[i] = WIND[row]
        for action, (down, right) in enumerate(moves):
            end = cells[row, column] == "G"
            ahead[i, action, i if end else index.get((row + down, column + right), i)] = 1
            blown[i, action, index.get((row, column - 1), i)] = 1
    chance = jnp.where(power > 0, alpha ** jnp.maximum(power, 1), 0)[:, None, None]
    names = cells[cells != "#"]
    reward = np.repeat(np.where(names == "G", 0.0, -1.0)[:, None], 4, axis=1)
    kernel = (1 - chance) * ahead + chance * blown
    return mdp.MDP(kernel, jnp.asarray(reward), jnp.asarray(0.95), jnp.asarray(1.0 * (names == "S")))


def test_iwocs_needs_two_models_of_the_windy_walk():
    with jax.enable_x64(True):
        models = jax.vmap(windy_walk)(jnp.linspace(0, 0.5, 25))
        found = jax.tree.map(np.asarray, iwocs(models))
        ball = Scenarios(models.transition).by_row()
        calm = jax.tree.map(lambda leaf: leaf[0], models)
        dynamic = float(calm.initial @ robust_value(calm, ball))
    assert found.converged and found.iterations == 2
    assert found.models[:2].tolist() == [0, 24]
    assert found.promised[0] == pytest.approx(-(1 - 0.95**7) / 0.05)  # seven steps without wind
    assert found.attained[0] < found.attained[1] - 1
    np.testing.assert_allclose([found.lower, found.upper, found.promised[1]], dynamic, rtol=1e-9)


def test_slopes_of_the_bounds_are_finite_differences():
    kernels, reward = some(31, count=4)
    move = np.random.default_rng(0).normal(size=reward.shape)

    def bounds(reward, discount):
        models = mdp.stack([model_of(kernel, reward, discount) for kernel in kernels])
        found = iwocs(models)
        return jnp.stack([found.lower, found.upper]), found

    with jax.enable_x64(True):
        at = jnp.asarray(reward), jnp.asarray(DISCOUNT)
        both = jax.jit(jax.jacrev(bounds, (0, 1), has_aux=True))
        slopes, found = both(*at)
        np.testing.assert_allclose(found.lower, found.attained[: found.iterations].max(), rtol=1e-9)
        for slope, moved in ((slopes[0], (1e-5 * move, 0)), (slopes[1], (0, 1e-6))):
            up, down = (both(at[0] + k * moved[0], at[1] + k * moved[1])[1] for k in (1, -1))
            assert up.worst == down.worst == found.worst and np.array_equal(up.policy, down.policy)
            change = np.array([up.lower - down.lower, up.upper - down.upper]) / 2
            expected = (slope * moved[0]).sum((1, 2)) if np.ndim(moved[0]) else slope * moved[1]
            np.testing.assert_allclose(change, expected, rtol=1e-5)


def test_iwocs_errors():
    kernels, reward = some(0)
    with pytest.raises(ValueError, match=r"transition has shape \(3, 2, 3\), expected \[K, ...\]"):
        iwocs(model_of(kernels[0], reward))


def test_solve_takes_the_least_of_the_models_in_each_row():
    models = [mdp.dense(mdp.garnet(4, 2, 3, 0.8, key)) for key in jax.random.split(jax.random.key(0), 3)]
    transitions, reward = np.stack([model.transition for model in models]), np.asarray(models[0].reward)
    value = np.zeros(4)
    for _ in range(200):
        z = np.broadcast_to(reward if reward.ndim == 3 else reward[..., None], (4, 2, 4)) + 0.8 * value
        value = np.max(np.min(np.sum(transitions * z, axis=-1), axis=0), axis=1)
    solution = robust.solve(models[0], robust.Scenarios(transitions))
    np.testing.assert_allclose(solution.value, value, atol=2e-5)
    assert solution.converged
    with pytest.raises(ValueError, match="lets nature pick one model for good"):
        robust.solve(models[0], robust.Scenarios(transitions, static=True))
