"""Laws of the return of a policy against enumeration, loops, rlax and closed forms; worst and best cases by LPs."""

from __future__ import annotations

import itertools
import warnings

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings

from jaxrl import mdp, risk
from jaxrl.distributional import dynamic_programming as ddp
from jaxrl.mdp import MDP

with warnings.catch_warnings():  # what rlax imports uses old names
    warnings.simplefilter("ignore")
    import rlax

S, A, N = 4, 2, 31  # one shape, so that each operator compiles once
SUPPORT = np.linspace(-12.0, 12.0, N)
TAUS = (np.arange(N) + 0.5) / N
WEIGHTS = np.array([0.3, 0.7])
REPRESENTATIONS = {
    "categorical": ddp.Categorical(SUPPORT),
    "quantile": ddp.Quantile(TAUS),
    "averages": ddp.Averages(WEIGHTS),
}

step, bellman = jax.jit(ddp.step), jax.jit(ddp.bellman)


def garnet(seed=0, full_reward=True, discount=0.8):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(S, 0.7), (S, A))
    reward = rng.normal(size=(S, A, S) if full_reward else (S, A))
    return MDP(transition, reward, discount, rng.dirichlet(np.ones(S)))


def some_policy(seed=0):
    return np.random.default_rng(100 + seed).dirichlet(np.ones(A), S)


def exact(function, *args, **settings):
    """What a function gives, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*jax.tree.map(jnp.asarray, args), **settings))


def rewards_of(model):
    """The rewards as [S, A, S]."""
    reward = model.reward if model.reward.ndim == 3 else model.reward[..., None]
    return np.broadcast_to(reward, model.transition.shape)


def true_values(model, policy):
    """The values of a policy, by a linear system."""
    transition = np.einsum("sa,sat->st", policy, model.transition)
    reward = np.einsum("sa,sat,sat->s", policy, model.transition, rewards_of(model))
    return np.linalg.solve(np.eye(S) - model.discount * transition, reward)


def moved(model, policy, atoms, probs, state):
    """The law that the operator makes in a state, by loops: atoms and probabilities."""
    reward = rewards_of(model)
    pairs = [
        (reward[state, a, t] + model.discount * z, policy[state, a] * model.transition[state, a, t] * p)
        for a, t in itertools.product(range(A), range(S))
        for z, p in zip(atoms[t], probs[t], strict=True)
    ]
    return map(np.array, zip(*pairs, strict=True))


def some_laws(seed, representation):
    """A law for each state in a representation, as [S, N] arrays of atoms and probabilities, and as a Law."""
    rng = np.random.default_rng(seed)
    if isinstance(representation, ddp.Categorical):
        probs = rng.dirichlet(np.full(N, 0.3), S)
        return np.tile(SUPPORT, (S, 1)), probs, ddp.Law(SUPPORT, probs)
    size = len(representation.taus if isinstance(representation, ddp.Quantile) else representation.weights)
    atoms = np.sort(3 * rng.normal(size=(S, size)), axis=1)
    probs = np.tile(WEIGHTS if size == 2 else np.full(size, 1 / size), (S, 1))
    return atoms, probs, ddp.Law(atoms, probs)


# -------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("full_reward", [False, True])
def test_categorical_step_is_that_of_loops_and_rlax(full_reward):
    model, policy = garnet(1, full_reward), some_policy(1)
    atoms, probs, law = some_laws(2, ddp.Categorical(SUPPORT))
    ours = exact(step, model, policy, ddp.Categorical(SUPPORT), law)
    np.testing.assert_array_equal(ours.atoms, SUPPORT)
    theirs = jax.jit(rlax.categorical_l2_project)
    for s in range(S):
        with jax.enable_x64(True):
            expected = theirs(*map(jnp.asarray, (*moved(model, policy, atoms, probs, s), SUPPORT)))
        np.testing.assert_allclose(ours.probs[s], expected, atol=1e-14)


def middle_quantile(atoms, probs, tau):
    """The middle of the numbers x with P(X < x) <= tau <= P(X <= x)."""
    order = np.argsort(atoms)
    atoms, cumulative = atoms[order], np.cumsum(probs[order])
    lower = atoms[np.argmax(cumulative >= tau - 1e-12)]
    upper = atoms[np.argmax(cumulative > tau + 1e-12)]
    return (lower + upper) / 2


@pytest.mark.parametrize("full_reward", [False, True])
def test_quantile_step_is_that_of_loops(full_reward):
    model, policy = garnet(2, full_reward), some_policy(2)
    representation = ddp.Quantile(TAUS)
    atoms, probs, law = some_laws(3, representation)
    ours = exact(step, model, policy, representation, law)
    np.testing.assert_allclose(ours.probs, 1 / N, rtol=1e-14)
    for s in range(S):
        x, p = moved(model, policy, atoms, probs, s)
        np.testing.assert_allclose(ours.atoms[s], [middle_quantile(x, p, tau) for tau in TAUS], atol=1e-12)


def test_a_fraction_with_many_quantiles_has_their_middle_whatever_the_rounding():
    representation = ddp.Quantile(jnp.array([0.25, 0.5, 0.75]))
    atoms, thirds = jnp.array([5.0, 3.0, 1.0, 7.0]), jnp.array([0.25, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(representation.project(ddp.Law(atoms, thirds)).atoms, [2.0, 4.0, 6.0])
    tenths = jnp.repeat(thirds / 10, 10)  # ten times 0.025 is 0.25 only up to rounding
    np.testing.assert_array_equal(representation.project(ddp.Law(jnp.repeat(atoms, 10), tenths)).atoms, [2.0, 4.0, 6.0])


@pytest.mark.parametrize("weights", [np.array([0.3, 0.7]), np.array([0.1, 0.25, 0.05, 0.6])], ids=len)
def test_averages_are_the_nearest_law_of_these_masses_in_wasserstein_2(weights):
    rng = np.random.default_rng(4)
    atoms, probs = rng.normal(size=7), rng.dirichlet(np.ones(7))
    ours = exact(lambda law: ddp.Averages(weights).project(law), ddp.Law(atoms, probs))
    np.testing.assert_array_equal(ours.probs, weights)
    assert ours.probs @ ours.atoms == pytest.approx(probs @ atoms, rel=1e-12)

    cost = (atoms[None, :] - ours.atoms[:, None]) ** 2  # the best plan to carry one law to the other
    columns, rows = np.kron(np.ones((1, len(weights))), np.eye(7)), np.kron(np.eye(len(weights)), np.ones((1, 7)))
    plan = scipy.optimize.linprog(
        cost.ravel(), A_eq=np.vstack([columns, rows]), b_eq=np.append(probs, weights), method="highs-ds"
    ).x.reshape(cost.shape)
    np.testing.assert_allclose(ours.atoms, plan @ atoms / weights, atol=1e-9)  # so no shift of an atom helps


def test_averages_are_those_of_the_ends_and_split_the_border():
    law = ddp.Law(np.array([5.0, -1.0, 2.0]), np.array([0.25, 0.5, 0.25]))
    ours = exact(lambda law: ddp.Averages(np.array([0.625, 0.375])).project(law), law).atoms
    np.testing.assert_allclose(ours, [(0.5 * -1 + 0.125 * 2) / 0.625, (0.125 * 2 + 0.25 * 5) / 0.375], rtol=1e-14)


def test_action_laws_are_those_of_policies_that_take_one_action():
    model, (atoms, probs, law) = garnet(3), some_laws(5, ddp.Quantile(TAUS))
    ours = exact(jax.jit(ddp.action_laws), model, law)
    for a in range(A):
        only = np.eye(A)[np.full(S, a)]
        for s in range(S):
            x, p = moved(model, only, atoms, probs, s)
            assert wasserstein(ours.atoms[s, a], ours.probs[s, a], x, p) < 1e-12


# ------------------------------------------------------------------------------------ contractions


def cramer(x, p, y, q):
    return scipy.stats.energy_distance(x, y, p, q) / np.sqrt(2)


def wasserstein(x, p, y, q):
    return scipy.stats.wasserstein_distance(x, y, p, q)


def law_arrays(law):
    return np.broadcast_to(law.atoms, law.probs.shape), law.probs


def farthest(distance, a, b):
    """The largest distance over states."""
    return max(distance(*pair) for pair in zip(*law_arrays(a), *law_arrays(b), strict=True))


seeds = st.integers(0, 10_000)


@settings(deadline=None, max_examples=15)
@given(seeds, seeds, seeds, st.floats(0, 0.99))
def test_operators_contract(model_seed, seed, other, discount):
    """The projected ones as their moduli say; the operator itself in Wasserstein-1, by the discount."""
    model, policy = garnet(model_seed, discount=discount), some_policy(model_seed)
    distances = {
        "categorical": (cramer, np.sqrt(discount)),
        "quantile": (lambda x, p, y, q: np.abs(x - y).max(), discount),
        "averages": (lambda x, p, y, q: np.abs(x - y).max(), discount),
    }
    for name, representation in REPRESENTATIONS.items():
        distance, modulus = distances[name]
        a, b = (some_laws(s, representation)[2] for s in (seed, other))
        after = [exact(step, model, policy, representation, law) for law in (a, b)]
        before = farthest(distance, a, b)
        assert farthest(distance, *after) <= modulus * before + 1e-9
        ours = exact(lambda r, a, b: r.distance(a, b), representation, a, b)
        assert ours.max() == pytest.approx(before, rel=1e-6, abs=1e-7)
        assert exact(lambda r, d: r.modulus(d), representation, discount) == pytest.approx(modulus)
        unprojected = [exact(bellman, model, policy, law) for law in (a, b)]
        assert farthest(wasserstein, *unprojected) <= discount * farthest(wasserstein, a, b) + 1e-9


# ------------------------------------------------------------------------------------ fixed points


def forwards(seed, full_reward):
    """A model in which each state leads to later ones only, and the last, which pays nothing, to itself."""
    rng = np.random.default_rng(seed)
    transition = np.zeros((S, A, S))
    for s in range(S - 1):
        transition[s, :, s + 1 :] = rng.dirichlet(np.ones(S - s - 1), A)
    transition[S - 1, :, S - 1] = 1
    reward = rng.integers(-3, 4, size=(S, A, S) if full_reward else (S, A)).astype(float)
    reward[S - 1] = 0
    return MDP(transition, reward, 0.5, np.array([0.5, 0.25, 0.25, 0.0]))


def trajectories(model, policy, state, horizon):
    """All returns and their probabilities."""
    if horizon == 0 or state == S - 1:
        yield 0.0, 1.0
        return
    for a, t in itertools.product(range(A), range(S)):
        p = policy[state, a] * model.transition[state, a, t]
        if p > 0:
            for z, q in trajectories(model, policy, t, horizon - 1):
                yield rewards_of(model)[state, a, t] + model.discount * z, p * q


@pytest.mark.parametrize("full_reward", [False, True])
def test_fixed_point_is_the_law_of_all_trajectories(full_reward):
    model, policy = forwards(0, full_reward), some_policy(5)
    support = np.arange(-24, 25) / 4  # holds every return: sums of an integer, a half and a quarter of one
    result = exact(ddp.evaluate, model, policy, ddp.Categorical(support))
    assert result.converged and result.error_bound <= 1e-6
    every = []
    for s in range(S):
        returns, probs = map(np.array, zip(*trajectories(model, policy, s, S), strict=True))
        law = np.array([probs[returns == z].sum() for z in support])
        assert law.sum() == pytest.approx(1)
        np.testing.assert_allclose(result.law.probs[s], law, atol=1e-6)
        every.append(model.initial[s] * law)
    start = exact(ddp.initial_law, model, result.law)
    np.testing.assert_allclose(start.probs, np.sum(every, axis=0), atol=1e-6)
    assert risk.CVaR(0.1)(start.atoms, start.probs) < risk.Mean()(start.atoms, start.probs)


def test_initial_law_of_atoms_that_differ():
    model, (atoms, probs, law) = garnet(0), some_laws(1, ddp.Averages(WEIGHTS))
    start = exact(ddp.initial_law, model, law)
    assert start.probs.sum() == pytest.approx(1)
    assert start.probs @ start.atoms == pytest.approx(model.initial @ (probs * atoms).sum(1))


def coin():
    """Rewards 0 or 1, each half of the time; with a discount of 1/2 the return is uniform on [0, 2]."""
    return MDP(np.full((2, 1, 2), 0.5), np.tile([0.0, 1.0], (2, 1, 1)), 0.5, np.array([1.0, 0.0]))


def test_return_of_coins_is_uniform():
    model, policy = coin(), np.ones((2, 1))
    support, gap = np.linspace(0, 2, 41), 0.05
    law = exact(ddp.evaluate, model, policy, ddp.Categorical(support)).law
    mean = law.probs[0] @ support
    assert mean == pytest.approx(1, abs=1e-6)
    inflation = law.probs[0] @ (support - mean) ** 2 - 1 / 3
    assert 0 < inflation <= gap**2 / (4 * (1 - model.discount**2)) + 1e-6
    x = (np.arange(20_000) + 0.5) / 10_000
    assert cramer(support, law.probs[0], x, np.full(20_000, 1 / 20_000)) < gap / 2
    for n, error in ((11, 2 / 11), (40, 1e-6)):  # by the operator's bound; even numbers are exact, as halves fit
        fractions = (np.arange(n) + 0.5) / n
        law = exact(ddp.evaluate, model, policy, ddp.Quantile(fractions)).law
        np.testing.assert_allclose(law.atoms[0], 2 * fractions, atol=error)
    law = exact(ddp.evaluate, model, policy, ddp.Averages(np.array([0.25, 0.75]))).law
    assert law.atoms[0] @ law.probs[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("full_reward", [False, True])
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_mean_of_the_law_is_the_value(name, full_reward):
    """Quantiles alone do not keep the mean: what they add in a sweep, measured by loops, adds up along the chain."""
    model, policy = garnet(4, full_reward), some_policy(4)
    law = exact(ddp.evaluate, model, policy, REPRESENTATIONS[name]).law
    atoms, probs = law_arrays(law)
    mean, bias = (probs * atoms).sum(1), np.zeros(S)
    if name == "quantile":
        for s in range(S):
            x, p = moved(model, policy, atoms, probs, s)
            bias[s] = mean[s] - p @ x
            assert abs(bias[s]) <= (x.max() - x.min()) / (2 * N)
    expected = true_values(model.replace(reward=rewards_of(model) + bias[:, None, None]), policy)
    np.testing.assert_allclose(mean, expected, atol=5e-6)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_error_is_within_its_bound(name):
    model, policy, representation = garnet(5), some_policy(5), REPRESENTATIONS[name]
    best = exact(ddp.evaluate, model, policy, representation, tolerance=1e-11)
    assert best.converged
    iterations = []
    for tolerance in (1.0, 1e-2, 1e-4):
        result = exact(ddp.evaluate, model, policy, representation, tolerance=tolerance)
        distance = exact(lambda r, a, b: r.distance(a, b), representation, result.law, best.law).max()
        assert result.converged and distance <= result.error_bound <= tolerance
        again = exact(step, model, policy, representation, result.law)
        assert exact(lambda r, a, b: r.distance(a, b), representation, again, result.law).max() <= result.residual
        iterations.append(int(result.iterations))
    assert iterations == sorted(set(iterations))

    few = exact(ddp.evaluate, model, policy, representation, tolerance=1e-4, max_iterations=3)
    assert (int(few.iterations), bool(few.converged)) == (3, False)
    law = exact(ddp.init, model, representation)
    for _ in range(3):
        law = exact(step, model, policy, representation, law)
    np.testing.assert_allclose(few.law.probs, law.probs, atol=1e-12)
    np.testing.assert_allclose(few.law.atoms, law.atoms, atol=1e-12)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_single_precision_converges_to_what_is_attainable(name):
    model, policy, representation = garnet(6), some_policy(6), REPRESENTATIONS[name]
    single = ddp.evaluate(model, policy, representation)
    assert single.converged and single.law.probs.dtype == single.law.atoms.dtype == jnp.float32
    best = exact(ddp.evaluate, model, policy, representation, tolerance=1e-10)
    assert single.error_bound < 1e-2
    if name == "quantile":  # a few have passed to the next atom
        errors = np.abs(single.law.atoms - best.law.atoms)
        assert np.mean(errors > single.error_bound) < 0.1 and errors.max() < 0.01
    else:
        distance = exact(lambda r, a, b: r.distance(a, b), representation, single.law, best.law).max()
        assert distance <= single.error_bound


def test_discounts_and_policies_are_swept_by_vmap():
    model, representation = garnet(7), ddp.Categorical(SUPPORT)
    policies, discounts = np.stack([some_policy(seed) for seed in range(3)]), np.array([0.0, 0.5, 0.8])

    def law(discount, policy):
        return ddp.evaluate(model.replace(discount=discount), policy, representation)

    lanes = exact(jax.jit(jax.vmap(law)), discounts, policies)
    for lane, (discount, policy) in enumerate(zip(discounts, policies, strict=True)):
        alone = exact(law, discount, policy)
        np.testing.assert_allclose(lanes.law.probs[lane], alone.law.probs, atol=1e-12)
        assert lanes.iterations[lane] == alone.iterations


def test_forward_derivative_of_the_mean_is_that_of_the_value():
    model, policy = garnet(8), some_policy(8)

    def value(discount):
        law = ddp.evaluate(model.replace(discount=discount), policy, ddp.Averages(WEIGHTS), tolerance=1e-10).law
        return jnp.sum(law.probs * law.atoms, axis=-1)

    slope = exact(lambda d: jax.jvp(value, (d,), (jnp.ones_like(d),))[1], 0.8)
    above, below = (true_values(model.replace(discount=0.8 + h), policy) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, (above - below) / 2e-5, rtol=1e-5)


# ------------------------------------------------------------------------- worst and best, and robust


def least_mean(atoms, probs, level):
    """min {q . z : 0 <= q <= p / level, sum q = 1}, by linear programming."""
    bounds = [(0, p / level) for p in probs]
    return scipy.optimize.linprog(atoms, A_eq=[np.ones(len(atoms))], b_eq=[1], bounds=bounds).fun


@pytest.mark.parametrize("full_reward", [False, True])
def test_cvar_of_the_one_step_law_is_the_robust_operator(full_reward):
    """By the mean of the successor for its law: nature moves each row within the density bound."""
    model, level = garnet(9, full_reward), 0.4

    @jax.jit
    def backup(value):
        after = ddp.action_laws(model, ddp.Law(value[:, None], jnp.ones((S, 1))))
        return risk.CVaR(level)(after.atoms, after.probs)

    value, robust = np.zeros(S), np.zeros(S)
    for _ in range(3):
        targets = rewards_of(model) + model.discount * robust
        q = [[least_mean(targets[s, a], model.transition[s, a], level) for a in range(A)] for s in range(S)]
        ours = exact(backup, value)
        np.testing.assert_allclose(ours, q, atol=1e-9)
        value, robust = ours.max(1), np.max(q, axis=1)


def substate_targets(model, value, state, action):
    """Where the two substates of each successor lead, and with what probability, by loops."""
    pairs = [
        (rewards_of(model)[state, action, t] + model.discount * value[t, j], model.transition[state, action, t] * w)
        for t in range(S)
        for j, w in enumerate(WEIGHTS)
    ]
    return map(np.array, zip(*pairs, strict=True))


def evaluated_pair(model, safe, risky):
    """Values of a policy for each kind of substate, by iterating the linear programs' solution by sorting."""
    value = np.zeros((S, 2))
    for _ in range(100):
        new = np.empty_like(value)
        for s in range(S):
            for j, action in enumerate((safe[s], risky[s])):
                z, p = substate_targets(model, value, s, action)
                order = np.argsort(z) if j == 0 else np.argsort(-z)
                mass = np.minimum(np.cumsum(p[order]), WEIGHTS[j])
                new[s, j] = np.diff(mass, prepend=0) @ z[order] / WEIGHTS[j]
        value = new
    return value


def test_worst_and_best_case_are_values_of_robust_models():
    model, policy = garnet(10), np.eye(A)[[0, 1, 1, 0]]
    result = exact(ddp.evaluate, model, policy, ddp.Averages(WEIGHTS), tolerance=1e-9)
    value = result.law.atoms
    for s, action in enumerate(policy.argmax(1)):
        z, p = substate_targets(model, value, s, action)
        assert value[s, 0] == pytest.approx(least_mean(z, p, WEIGHTS[0]), abs=1e-8)
        assert value[s, 1] == pytest.approx(-least_mean(-z, p, WEIGHTS[1]), abs=1e-8)
    np.testing.assert_allclose(value, evaluated_pair(model, policy.argmax(1), policy.argmax(1)), atol=1e-8)


def test_safe_and_risky_policies_are_the_best_of_all_pairs():
    model = garnet(11)
    ours = exact(ddp.safe_and_risky, model, 0.3, tolerance=1e-9)
    assert ours.converged and ours.error_bound <= 1e-9
    np.testing.assert_allclose(ours.q.max(1), ours.value, atol=1e-8)
    np.testing.assert_array_equal(ours.q.argmax(1), ours.action)
    np.testing.assert_allclose(evaluated_pair(model, *ours.action.T), ours.value, atol=1e-8)
    assert (ours.action[:, 0] != ours.action[:, 1]).any()
    rng = np.random.default_rng(0)
    everything = list(itertools.product(itertools.product(range(A), repeat=S), repeat=2))
    for index in rng.choice(len(everything), 25, replace=False):
        assert (evaluated_pair(model, *everything[index]) <= ours.value + 1e-8).all()


def tied(seed):
    """A model whose actions are all optimal but for one, of state 3, and its optimal values."""
    model, value = garnet(seed), np.random.default_rng(seed).normal(size=S)
    mean = np.einsum("sat,sat->sa", model.transition, model.reward + model.discount * value)
    gap = np.zeros((S, A))
    gap[3, 0] = 0.05
    return model.replace(reward=model.reward + (value[:, None] - gap - mean)[..., None]), value


@pytest.mark.parametrize("seed", range(2))
def test_ties_are_broken_for_the_safest_and_the_most_risky_policy(seed):
    model, value = tied(seed)
    safe, risky = (exact(ddp.break_ties, model, 0.3, risky=risky, tolerance=1e-9) for risky in (False, True))
    optimal = [actions for actions in itertools.product(range(A), repeat=S) if actions[3] == 1]
    values = np.stack([evaluated_pair(model, actions, actions) for actions in optimal])
    np.testing.assert_allclose(values @ WEIGHTS, np.tile(value, (len(optimal), 1)), atol=1e-8)
    np.testing.assert_allclose(safe.value[:, 0], values[..., 0].max(0), atol=1e-7)
    np.testing.assert_allclose(risky.value[:, 1], values[..., 1].max(0), atol=1e-7)
    assert (safe.value[:, 0] > risky.value[:, 0] + 0.01).any()
    gap = np.zeros((S, A))
    gap[3, 0] = 0.05
    for result in (safe, risky):
        assert result.converged
        np.testing.assert_allclose(evaluated_pair(model, *[result.action] * 2), result.value, atol=1e-7)
        np.testing.assert_allclose(result.q @ WEIGHTS, value[:, None] - gap, atol=1e-6)


def test_what_counts_as_a_tie_is_a_setting():
    for seed in range(20):
        model, value = tied(seed)
        wide = exact(ddp.break_ties, model, 0.3, slack=0.1, tolerance=1e-9)
        if wide.action[3] == 0:  # not optimal, but safer
            narrow = exact(ddp.break_ties, model, 0.3, slack=0.01, tolerance=1e-9)
            assert narrow.action[3] == 1
            assert wide.value[3] @ WEIGHTS < value[3] - 0.04
            assert wide.q[3, 0, 0] > wide.q[3, 1, 0]
            return
    pytest.fail("no model where the action that is not optimal is the safer one")


def test_ties_and_substates_over_levels():
    model, levels = tied(0)[0], np.array([0.1, 0.3, 0.8])
    for function in (ddp.break_ties, ddp.safe_and_risky):
        lanes = exact(jax.jit(jax.vmap(lambda level, f=function: f(model, level, tolerance=1e-8))), levels)
        assert lanes.converged.all()
        alone = exact(function, model, 0.3, tolerance=1e-8)
        np.testing.assert_allclose(lanes.value[1], alone.value, atol=1e-8)
        assert (np.diff(lanes.value[..., 0], axis=0) >= -1e-8).all()  # a larger share is less extreme


# ------------------------------------------------------------------------------------------- faces


def test_dtype_is_the_common_one():
    with jax.enable_x64(True):
        for model_dtype, dtype in ((np.float32, np.float32), (np.float32, np.float64), (np.float64, np.float64)):
            model = jax.tree.map(lambda x, d=model_dtype: jnp.asarray(x, d), garnet())
            policy = some_policy().astype(model_dtype)
            for representation in jax.tree.map(lambda x, d=dtype: x.astype(d), REPRESENTATIONS).values():
                law = jax.eval_shape(ddp.evaluate, model, policy, representation).law
                expected = dtype if isinstance(representation, ddp.Categorical) else model_dtype
                assert law.probs.dtype == law.atoms.dtype == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": np.ones((A, S)) / S}, r"policy has shape \(2, 4\), expected \[S, A\] = \(4, 2\)"),
        ({"policy": np.eye(A)[[0, 0, 0, 0]] * [[1], [1], [0.5], [1]]}, r"policy\[state 2\] sums to 0.5"),
        ({"policy": np.tile([1.5, -0.5], (S, 1))}, r"policy\[state 0, action 1\] is -0.5, expected a probability"),
        ({"model": garnet(discount=1.0)}, "discount is 1.0"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    arguments = {"model": garnet(), "policy": some_policy(), "representation": ddp.Categorical(SUPPORT), **changes}
    with pytest.raises(ValueError, match=message):
        ddp.evaluate(**arguments)


def test_levels_that_leave_one_case_without_mass_are_refused():
    for function, level in itertools.product((ddp.safe_and_risky, ddp.break_ties), (0.0, 1.0)):
        with pytest.raises(ValueError, match=rf"level is {level}, expected a number in \(0, 1\)"):
            function(garnet(), level)


@pytest.mark.parametrize("discount", [1.0, 1.5, -0.5, np.nan])
def test_what_is_no_model_gives_nan_in_a_trace(discount):
    model, policy = garnet(discount=discount), some_policy()
    for result in (
        jax.jit(lambda m: ddp.evaluate(m, policy, ddp.Averages(WEIGHTS)))(model),
        jax.jit(lambda m: ddp.break_ties(m, 0.3))(model),
    ):
        assert not result.converged
        assert np.isnan(result.law.atoms if hasattr(result, "law") else result.value).all()


@pytest.mark.parametrize("full_reward", [False, True])
def test_sparse_models_are_as_dense_ones(full_reward):
    model = forwards(1, full_reward)
    rows = model.replace(transition=np.roll(model.transition, 1, axis=2), discount=0.7)  # other states than their slots
    sparse, policy = exact(mdp.sparse, rows), some_policy(9)
    assert sparse.successors.shape == (S, A, S - 1)
    for representation in REPRESENTATIONS.values():
        law = some_laws(6, representation)[2]
        ours, other = (exact(step, m, policy, representation, law) for m in (rows, sparse))
        np.testing.assert_allclose(other.probs, ours.probs, atol=1e-12)
        np.testing.assert_allclose(other.atoms, ours.atoms, atol=1e-12)
    ours, other = (exact(ddp.safe_and_risky, m, 0.3) for m in (rows, sparse))
    np.testing.assert_allclose(other.value, ours.value, atol=1e-9)
