"""Stock-augmented control against enumeration of every policy that remembers its history, and its environment."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrl import envs, mdp, risk, train
from jaxrl.agents import ppo
from jaxrl.distributional.dynamic_programming import stock
from jaxrl.envs import probes, tiny
from jaxrl.envs.stock import StockAugmented, StockParams
from jaxrl.mdp import MDP
from jaxrl.types import Discrete, Environment, Spec

S, A, H = 2, 2, 3
M, N = 96, 32  # grids are filled up to these sizes, so that one program serves all models
LEVELS = np.array([0.0, 0.05, 0.3, 0.5, 0.8, 1.0])


def exact(function, *args, **settings):
    """What a function gives, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **settings))


def some_model(seed, full_reward=True, spread=False):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(S), (S, A))
    reward = rng.integers(-2, 3, size=(S, A, S) if full_reward else (S, A)).astype(float)
    initial = np.array([0.25, 0.75]) if spread else np.array([0.0, 1.0])
    return MDP(transition, reward, [0.5, 1.0][seed % 2], initial)


def rewards_of(model):
    """The rewards as [S, A, S]."""
    reward = model.reward if model.reward.ndim == 3 else model.reward[..., None]
    return np.broadcast_to(reward, model.transition.shape)


def filled(grid, size):
    """The grid, with numbers above it that are never reached."""
    assert len(grid) <= size
    return np.append(grid, grid[-1] + 1 + np.arange(size - len(grid)))


def exact_grids(model, start=None):
    stocks, support = exact(stock.reachable, model, H, start)
    return filled(stocks, M), filled(support, N)


@functools.cache
def enumerated(seed, **kind):
    """The laws of the return of all deterministic policies: returns and probabilities [P, L], and which are Markov."""
    model = some_model(seed, **kind)
    starts = [s for s in range(S) if model.initial[s] > 0]
    nodes = [
        (first, *rest) for t in range(H) for first in starts for rest in itertools.product(range(S), repeat=t)
    ]  # the states so far; what was done and earned follows from them and the policy
    place = {node: i for i, node in enumerate(nodes)}
    policies = np.array(list(itertools.product(range(A), repeat=len(nodes))))
    returns, probs = [], []
    for first in starts:
        for rest in itertools.product(range(S), repeat=H):
            path = (first, *rest)
            total, chance = np.zeros(len(policies)), np.full(len(policies), model.initial[first])
            for t in range(H):
                step = (path[t], policies[:, place[path[: t + 1]]], path[t + 1])
                total += model.discount**t * rewards_of(model)[step]
                chance *= model.transition[step]
            returns.append(total)
            probs.append(chance)
    alike = [[place[n] for n in nodes if (len(n), n[-1]) == (t, s)] for t in range(1, H + 1) for s in range(S)]
    markov = np.all([np.ptp(policies[:, group], axis=1) == 0 for group in alike if group], axis=0)
    return np.stack(returns, 1), np.stack(probs, 1), markov


def cvars(returns, probs, level):
    """The mean of the worst share of each row, by sorting."""
    order = np.argsort(returns, axis=1)
    returns, probs = (np.take_along_axis(x, order, 1) for x in (returns, probs))
    if level == 0:
        return np.where(probs > 0, returns, np.inf).min(1)
    taken = np.minimum(np.cumsum(probs, axis=1), level)
    return np.sum(np.diff(taken, axis=1, prepend=0) * returns, axis=1) / level


# -------------------------------------------------------------------------------------- optimality

CASES = [
    *((seed, {}) for seed in (0, 1, 18, 24)),
    *((seed, {"spread": True}) for seed in (3, 5, 18, 21)),
    *((seed, {"full_reward": False}) for seed in (0, 1)),
]


@pytest.mark.parametrize(("seed", "kind"), CASES)
def test_cvar_is_the_best_of_all_policies_with_memory(seed, kind):
    model = some_model(seed, **kind)
    returns, probs, _ = enumerated(seed, **kind)
    solution = exact(stock.solve, model, stock.Shortfall(), *exact_grids(model), H)
    best = exact(lambda: jax.vmap(lambda level: stock.cvar(model, solution, level))(jnp.asarray(LEVELS)))
    for i, level in enumerate(LEVELS):
        assert best.value[i] == pytest.approx(cvars(returns, probs, level).max(), abs=1e-12)
        attained = cvars(best.law.atoms[i : i + 1], best.law.probs[i : i + 1], level)
        assert attained == pytest.approx(best.value[i], abs=1e-12)
        if level > 0:  # the expected utility behind it
            lifted = -solution.stocks + model.initial @ solution.value / level
            assert lifted.max() == pytest.approx(best.value[i], abs=1e-12)
            assert lifted[best.index[i]] <= best.value[i] + 1e-12
        assert solution.stocks[best.index[i]] == best.stock[i]


def test_in_these_cases_memory_matters():
    gains = []
    for seed, kind in CASES:
        returns, probs, markov = enumerated(seed, **kind)
        worth = [cvars(returns, probs, level) for level in LEVELS]
        gains.append(max(x.max() - x[markov].max() for x in worth))
    assert sum(gain > 1e-3 for gain in gains) == 6


def gamble():
    """States bad and good start, game, lost, won. After 0 or 4, the game pays 2, or 0 or 6 with equal chances."""
    transition, reward = np.zeros((5, 2, 5)), np.zeros((5, 2, 5))
    transition[[0, 1], :, 2] = 1
    reward[1, :, 2] = 4
    transition[2, 0, 3], reward[2, 0, 3] = 1, 2
    transition[2, 1, [3, 4]], reward[2, 1, 4] = 0.5, 6
    transition[3, :, 3] = transition[4, :, 4] = 1
    return MDP(transition, reward, 1.0, np.array([0.5, 0.5, 0.0, 0.0, 0.0]))


def test_a_policy_with_stock_beats_every_markov_policy():
    """Randomised ones included: the law of one is a mixture of laws of deterministic ones, and CVaR is convex in it."""
    model, level = gamble(), 0.5
    solution = exact(stock.solve, model, stock.Shortfall(), *exact(stock.reachable, model, 2), 2)
    best = exact(stock.cvar, model, solution, level)
    assert best.value == 3.0
    np.testing.assert_allclose(best.law.probs[np.isin(best.law.atoms, [0, 6])], [0.25, 0.75])  # 0 or 6, and 4 + 2
    assert [int(stock.act(solution, 1, 2, best.stock + first)) for first in (0, 4)] == [1, 0]
    outcomes, half = np.array([[0, 0, 4, 4]]), np.full((1, 4), 0.25)
    for pays in ([2, 2, 2, 2], [0, 6, 0, 6]):  # safe, or risky: after either start, all that a Markov policy can do
        assert cvars(outcomes + pays, half, level) == 2.0
    with pytest.raises(ValueError, match=r"CVaR, which is not indifferent to mixtures.*Shortfall\(\), then use cvar"):
        stock.solve(model, risk.CVaR(level), np.zeros(1), np.arange(2.0), 2)


def exponential(x, p):
    return -scipy.special.logsumexp(-0.7 * x, b=p, axis=1) / 0.7


def utility(atoms, probs):
    return jnp.sum(probs * jnp.tanh(atoms), axis=-1)


@pytest.mark.parametrize(
    ("objective", "oracle"),
    [
        (risk.Mean(), lambda x, p: (p * x).sum(1)),
        (risk.Entropic(0.7), exponential),
        (stock.Homeostatic(2.0), lambda x, p: -(p * x**2).sum(1)),
        (stock.Homeostatic(1.0), lambda x, p: -(p * np.abs(x)).sum(1)),
        (stock.Shortfall(), lambda x, p: (p * np.minimum(x, 0)).sum(1)),
        (utility, lambda x, p: (p * np.tanh(x)).sum(1)),
    ],
    ids=["mean", "entropic", "square", "absolute", "shortfall", "utility"],
)
def test_objectives_are_optimal_among_all_policies_with_memory(objective, oracle):
    start = -1.25
    for seed in range(4):
        model = some_model(seed)
        returns, probs, _ = enumerated(seed)
        stocks, support = exact_grids(model, start)
        solution = exact(stock.solve, model, objective, stocks, support, H)
        place = int(np.argmin(np.abs(stocks - start)))
        assert solution.value[1, place] == pytest.approx(oracle(start + returns, probs).max(), abs=1e-12)
        law = solution.law.probs[1, place]
        assert oracle(start + support[None], law[None]) == pytest.approx(solution.value[1, place], abs=1e-12)


def test_entropic_objectives_need_no_stock_but_time():
    """With a discount, aversion fades: the level of a decision at step t is beta discount^t."""
    for seed in (1, 18, 22):
        model = some_model(seed)
        returns, probs, markov = enumerated(seed)
        _, support = exact_grids(model, 0.0)
        ours = exact(stock.solve, model, risk.Entropic(0.7), np.zeros(1), support, H).value[1, 0]
        assert ours == pytest.approx(exponential(returns, probs)[markov].max(), abs=1e-12)
        assert ours == pytest.approx(exponential(returns, probs).max(), abs=1e-12)
        law = stock.Law(support, np.tile(support == 0, (S, 1, 1)).astype(float))
        for _ in range(H):  # without time
            law, _, value = exact(stock.step, model, risk.Entropic(0.7), np.zeros(1), law)
        assert (value[1, 0] < ours - 0.01) == (seed != 1)


def test_the_law_is_that_of_acting_by_the_policy():
    model = some_model(2)
    stocks, support = exact_grids(model)
    solution = exact(stock.solve, model, stock.Shortfall(), stocks, support, H)
    assert solution.action.shape == (H, S, M) and solution.law.probs.shape == (S, M, N)

    def paths(time, state, holding):
        if time == H:
            yield 0.0, 1.0
            return
        action = int(stock.act(solution, time, state, holding))
        for successor in range(S):
            reward = rewards_of(model)[state, action, successor]
            for z, p in paths(time + 1, successor, (holding + reward) / model.discount):
                yield reward + model.discount * z, model.transition[state, action, successor] * p

    for place in np.flatnonzero(np.isin(stocks, -support))[::7]:
        law = np.zeros(N)
        for z, p in paths(0, 1, stocks[place]):
            law[np.argmin(np.abs(support - z))] += p
        np.testing.assert_allclose(solution.law.probs[1, place], law, atol=1e-12)


# ------------------------------------------------------------------------------------------- grids


def test_a_grid_gives_what_is_attained_and_comes_near():
    model = some_model(0, spread=True)
    returns, probs, _ = enumerated(0, spread=True)
    _, support = exact_grids(model)
    low, high = -returns.max(), -returns.min()
    shortfalls = []
    for size in (12, M):
        solution = exact(stock.solve, model, stock.Shortfall(), np.linspace(low, high, size), support, H)
        value = np.array([exact(stock.cvar, model, solution, level).value for level in LEVELS[1:]])
        optimal = np.array([cvars(returns, probs, level).max() for level in LEVELS[1:]])
        np.testing.assert_allclose(solution.law.probs.sum(-1), 1, rtol=1e-12)
        assert (value <= optimal + 1e-12).all()
        shortfalls.append(np.max(optimal - value))
    assert shortfalls[1] < 0.02 < 0.3 and shortfalls[1] <= shortfalls[0] < 0.3


def test_between_the_stocks_of_a_grid_they_are_rounded_at_random():
    """The mean of the rounded stock is the stock; outside it is the end: by loops, for one step of the operator."""
    model, rng = some_model(3), np.random.default_rng(0)
    stocks, support = np.array([-2.0, -0.7, 0.1, 1.5]), np.arange(-6.0, 7.0)
    law = stock.Law(support, rng.dirichlet(np.ones(13), (S, 4)))
    after, action, value = exact(stock.step, model, stock.Homeostatic(2.0), stocks, law)
    for s, m in itertools.product(range(S), range(4)):
        worth = []
        for a in range(A):
            mixed = np.zeros(13)
            for t in range(S):
                reward = rewards_of(model)[s, a, t]
                held = np.clip((stocks[m] + reward) / model.discount, -2.0, 1.5)
                share = [np.interp(held, stocks, row) for row in np.eye(4)]
                moved = reward + model.discount * support
                near = np.clip(moved, -6, 6)
                tents = np.maximum(1 - np.abs(near[:, None] - support), 0)
                mixed += model.transition[s, a, t] * (share @ law.probs[t]) @ tents
            worth.append((-mixed @ (stocks[m] + support) ** 2, mixed))
        best = max(range(A), key=lambda a, w=worth: w[a][0])
        assert action[s, m] == best
        assert value[s, m] == pytest.approx(worth[best][0], abs=1e-12)
        np.testing.assert_allclose(after.probs[s, m], worth[best][1], atol=1e-12)


def test_beyond_all_returns_shortfall_is_the_mean_or_nothing():
    model = some_model(2)
    returns, probs, _ = enumerated(2)
    _, support = exact_grids(model)
    grid = np.linspace(-support[-1], -support[0], M)
    value = exact(stock.solve, model, stock.Shortfall(), grid, support, H).value[1]
    assert value[-1] == pytest.approx(0, abs=1e-12)
    best_mean = (returns * probs).sum(1).max()
    assert value[0] == pytest.approx(grid[0] + best_mean, abs=1e-12)


def test_late_decisions_are_as_good_as_early_ones_in_single_precision():
    """discount^100 squared vanishes in float32; an objective that is indifferent to scale must not notice."""
    model = some_model(4)
    rng = np.random.default_rng(0)
    model = model.replace(reward=rng.normal(size=(S, A, S)))
    grids = np.linspace(-3, 3, 41), np.linspace(-5, 5, 41)
    short = stock.solve(model, stock.Homeostatic(2.0), *grids, 10)
    long = stock.solve(model, stock.Homeostatic(2.0), *grids, 110)
    assert short.law.probs.dtype == jnp.float32
    assert np.mean(long.action[100] != short.action[0]) < 0.03  # where two are worth the same to rounding
    np.testing.assert_allclose(long.value, short.value, atol=0.02)  # 10 steps are as good as for ever
    assert 0 < np.mean(short.action[0]) < 1


def test_discounts_and_objectives_are_swept_by_vmap():
    model = some_model(0)
    stocks, support = exact_grids(model)

    def value(discount, beta):
        lane = model.replace(discount=discount)
        return stock.solve(lane, risk.Entropic(beta), stocks, support, H).value

    lanes = exact(lambda: jax.jit(jax.vmap(value))(jnp.array([0.0, 0.5, 1.0]), jnp.array([0.7, 0.7, -2.0])))
    for lane, (discount, beta) in enumerate([(0.0, 0.7), (0.5, 0.7), (1.0, -2.0)]):
        np.testing.assert_allclose(lanes[lane], exact(value, discount, beta), atol=1e-12)
    one_step = [exact(risk.Entropic(0.7), rewards_of(model)[1, a], model.transition[1, a]) for a in range(A)]
    assert lanes[0, 1, 0] == pytest.approx(stocks[0] + max(one_step), abs=1e-9)


@pytest.mark.parametrize("full_reward", [False, True])
def test_sparse_models_are_as_dense_ones(full_reward):
    model = some_model(1, full_reward)
    model.transition[:, 1] = [[0, 1], [1, 0]]  # in other slots than their states
    sparse = exact(mdp.sparse, model)
    for a, b in zip(*(exact(stock.reachable, m, H) for m in (model, sparse)), strict=True):
        np.testing.assert_array_equal(a, b)
    ours, other = (exact(stock.solve, m, stock.Shortfall(), *exact_grids(model), H) for m in (model, sparse))
    np.testing.assert_allclose(other.law.probs, ours.law.probs, atol=1e-12)
    np.testing.assert_array_equal(other.action, ours.action)


def test_what_is_no_model_gives_nan_in_a_trace():
    value = jax.jit(lambda m: stock.solve(m, stock.Shortfall(), np.arange(3.0), np.arange(4.0), 2).value)
    assert np.isnan(value(some_model(0).replace(discount=1.5))).all()
    assert np.isfinite(value(some_model(0).replace(discount=1.0))).all()


# --------------------------------------------------------------------------------------- reachable


@pytest.mark.parametrize("seed", [0, 1])
def test_reachable_is_all_that_occurs(seed):
    model = some_model(seed)
    model.transition[0, 1] = [1, 0]  # some rows lead to one state only
    stocks, support = exact(stock.reachable, model, H, 0.5)
    held, seen = {0.5}, {0.0}
    for actions in itertools.product(range(A), repeat=H):
        for first, *rest in itertools.product(range(S), repeat=H + 1):
            for length in range(1, H + 1):
                path = [first, *rest][: length + 1]
                steps = list(zip(path[:-1], actions, path[1:], strict=False))
                if any(model.transition[step] == 0 for step in steps):
                    continue
                earned = [rewards_of(model)[step] for step in steps]
                seen.add(sum(model.discount**t * r for t, r in enumerate(earned)))
                if first == 1 and length < H:
                    holding = 0.5
                    for r in earned:
                        holding = (holding + r) / model.discount
                    held.add(holding)
    np.testing.assert_allclose(stocks, sorted(held), atol=1e-12)
    np.testing.assert_allclose(support, sorted(seen), atol=1e-12)
    starts, _ = exact(stock.reachable, some_model(seed), H)
    returns, _, _ = enumerated(seed)
    assert np.isin(-returns, starts).all()  # whole numbers and halves, without rounding


def test_too_much_to_reach_is_refused():
    model = MDP(np.full((3, 2, 3), 1 / 3), np.random.default_rng(0).normal(size=(3, 2, 3)), 0.9, np.eye(3)[0])
    with pytest.raises(ValueError, match=r"more than 100000 .* take a grid instead"):
        stock.reachable(model, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stocks": np.array([0.0, 1.0, 1.0])}, "stocks does not ascend"),
        ({"stocks": np.zeros((2, 2))}, r"stocks has shape \(2, 2\), expected one axis of at least 1"),
        ({"support": np.zeros(1)}, r"support has shape \(1,\), expected one axis of at least 2"),
        ({"horizon": 0}, "horizon must be an integer of at least 1"),
        ({"model": some_model(0).replace(discount=1.5)}, r"discount is 1.5, expected a number in \[0, 1\]"),
        ({"model": some_model(0).replace(initial=np.ones(2))}, "initial sums to 2"),
        ({"objective": risk.EVaR(0.5)}, "EVaR, which is not indifferent"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    arguments = {
        "model": some_model(0),
        "objective": stock.Shortfall(),
        "stocks": np.zeros(1),
        "support": np.arange(3.0),
        "horizon": 2,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        stock.solve(**arguments)


def test_objectives_have_finite_gradients_and_their_values():
    atoms, probs = jnp.array([-2.0, 0.0, 1.0]), jnp.array([0.5, 0.25, 0.25])
    assert stock.Shortfall()(atoms, probs) == -1
    assert stock.Homeostatic(1.0)(atoms, probs) == -1.25
    assert stock.Homeostatic(3.0)(atoms) == -3
    for power in (1.0, 1.5, 2.0):
        slopes = jax.grad(lambda m, z: m(z, probs), (0, 1))(stock.Homeostatic(power), atoms)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


# ------------------------------------------------------------------------------------- environment


def types_of(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name, leaf.weak_type), tree)


@pytest.mark.parametrize("name", ["jaxrl/pendulum", "jaxrl/probe_termination", "gymnax/CartPole-v1"])
@pytest.mark.parametrize("double", [False, True])
def test_augmented_environment_follows_the_protocol(name, double):
    with jax.enable_x64(double and name.startswith("jaxrl")):
        inner = envs.make(name)
        env = StockAugmented(inner, 0.9, stock=-1.0)
        assert isinstance(env, Environment) and hash(env) == hash(StockAugmented(inner, 0.9, stock=-1.0))
        assert env.max_steps == inner.max_steps and env.spec.action == inner.spec.action
        assert env.spec.observation.shape == (inner.spec.observation.shape[0] + 1,)
        low, high = env.spec.observation.bounds()
        np.testing.assert_array_equal(low[:-1], inner.spec.observation.bounds()[0])
        assert (low[-1], high[-1]) == (-np.inf, np.inf)
        params, key = env.params(), jax.random.key(0)
        state, observation = jax.eval_shape(env.reset, params, key)
        successor, step = jax.eval_shape(env.step, params, state, env.spec.action.zeros(), key)
        assert types_of(successor) == types_of(state)
        expected = (env.spec.observation.shape, env.spec.observation.dtype, False)
        assert types_of(observation) == types_of(step.observation) == expected
        assert types_of(step.reward) == ((), jnp.result_type(float).name, False)
    if not double:
        loop = train.loop(ppo, env)
        jax.eval_shape(loop.step, ppo.Config(), jax.eval_shape(loop.init, ppo.Config(), key))


def test_stock_is_what_was_collected_in_units_of_the_present_reward():
    """c_0 plus the discounted rewards is discount^t c_t; what is within goes on as before."""
    env = StockAugmented(envs.make("jaxrl/pendulum"), 0.9)
    stocks, actions = jnp.array([-3.0, 0.0, 2.0]), jnp.linspace(-2, 2, 12)[:, None]
    keys = jax.random.split(jax.random.key(1), 12)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def play(stock):
        params = dataclasses.replace(env.params(), stock=stock)
        state, first = env.reset(params, jax.random.key(0))
        return first, jax.lax.scan(lambda s, x: env.step(params, s, *x), state, (actions, keys))[1]

    first, steps = play(stocks)
    inner = env.env
    state, observation = inner.reset(inner.params(), jax.random.key(0))
    plain = jax.jit(lambda s: jax.lax.scan(lambda s, x: inner.step(inner.params(), s, *x), s, (actions, keys))[1])(
        state
    )
    np.testing.assert_allclose(first, np.hstack([np.tile(observation, (3, 1)), stocks[:, None]]), rtol=1e-6)
    for lane, start in enumerate(np.asarray(stocks)):
        np.testing.assert_allclose(steps.reward[lane], plain.reward, rtol=1e-5)
        np.testing.assert_allclose(steps.observation[lane, :, :-1], plain.observation, rtol=1e-4, atol=1e-5)
        for t in range(1, 13):
            collected = start + sum(0.9**k * float(plain.reward[k]) for k in range(t))
            assert 0.9**t * float(steps.observation[lane, t - 1, -1]) == pytest.approx(collected, rel=1e-4)
    assert isinstance(env.params(), StockParams) and env.params().stock == 0


def test_ends_and_metrics_are_those_of_the_environment():
    env = StockAugmented(probes.Termination(length=2, max_steps=5), 1.0, stock=0.5)
    state, first = env.reset(env.params(), jax.random.key(0))
    assert first[-1] == 0.5
    for ended, collected in ((False, 1.5), (True, 2.5)):
        state, step = env.step(env.params(), state, jnp.int32(0), jax.random.key(0))
        assert bool(step.terminated) == ended and not step.truncated
        assert step.observation[-1] == collected


def test_policies_over_stocks_act_in_the_augmented_environment():
    """The law that was solved for is that of the returns of many episodes."""
    model = some_model(2)
    stocks, support = exact_grids(model)
    solution = exact(stock.solve, model, stock.Shortfall(), stocks, support, H)
    best = exact(stock.cvar, model, solution, 0.3)
    env = StockAugmented(tiny.Tabular(model, max_steps=H), float(model.discount), stock=float(best.stock))
    solution = jax.tree.map(jnp.asarray, solution)

    @jax.jit
    @jax.vmap
    def episode(key):
        reset_key, *step_keys = jax.random.split(key, H + 1)
        params = env.params()
        state, observation = env.reset(params, reset_key)
        total = 0.0
        for t, step_key in enumerate(step_keys):
            action = stock.act(solution, t, jnp.argmax(observation[:-1]), observation[-1])
            state, step = env.step(params, state, action, step_key)
            total += model.discount**t * step.reward
            observation = step.observation
        return total, observation[-1]

    num = 20_000
    with jax.debug_key_reuse(False):  # it takes a vmap over split keys for a reuse
        returns, held = episode(jax.random.split(jax.random.key(0), num))
    np.testing.assert_allclose(model.discount**H * held, env.stock + returns, atol=1e-5)
    counts = np.bincount(np.abs(np.asarray(returns)[:, None] - support).argmin(1), minlength=N)
    likely = best.law.probs > 1e-9
    assert counts[~likely].sum() == 0 and likely.sum() > 3
    assert scipy.stats.chisquare(counts[likely], num * best.law.probs[likely]).pvalue > 1e-3


@dataclasses.dataclass(frozen=True)
class Counting:
    """An environment that observes a number, not a vector."""

    spec = Spec(Discrete(3), Discrete(2))
    max_steps: int = 3


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ValueError, match=r"env observes Discrete\(n=3.*expected a Box with one axis"):
        StockAugmented(Counting(), 0.9)
    for discount in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"discount must be in \(0, 1\]"):
            StockAugmented(envs.make("jaxrl/pendulum"), discount)
