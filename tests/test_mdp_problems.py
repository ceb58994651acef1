"""Problems of the literature against their published tables and values, and Gymnasium against its own dynamics."""

from __future__ import annotations

import builtins

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl import mdp


def table(model):
    """The laws of a model as `{(state, action): {successor: (probability, reward)}}`, to six digits."""
    successors, probs, reward = (np.asarray(x) for x in (model.successors, model.probabilities, model.reward))
    reward = np.broadcast_to(reward if reward.ndim == 3 else reward[..., None], probs.shape)
    laws = {index: {} for index in np.ndindex(probs.shape[:2])}
    for *index, slot in np.argwhere(probs > 0):
        place = (*index, slot)
        laws[tuple(index)][int(successors[place])] = round(float(probs[place]), 6), round(float(reward[place]), 6)
    return laws


def exactly(function, *args, **settings):
    """What a function gives in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **settings))


PROBLEMS = {
    "garnet": lambda **settings: mdp.garnet(6, 2, 3, 0.9, jax.random.key(0)),
    "river swim": mdp.river_swim,
    "machine replacement": mdp.machine_replacement,
    "inventory": mdp.inventory,
    "forest": mdp.forest,
    "grid world": mdp.grid_world,
    "fishery": mdp.fishery,
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_problems_are_models_of_the_default_type(problem):
    model = problem()
    mdp.validate(model)
    assert {leaf.dtype for name, leaf in vars(model).items() if name != "successors"} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        mdp.validate(problem())


@pytest.mark.parametrize("problem", list(PROBLEMS.values())[1:], ids=list(PROBLEMS)[1:])
def test_problems_take_traced_numbers(problem):
    with jax.enable_x64(True):
        traced = jax.jit(lambda discount: problem(discount=discount))(0.5)
        for leaf, expected in zip(jax.tree.leaves(traced), jax.tree.leaves(problem(discount=0.5)), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------------------------------- garnet


def test_garnet_is_drawn_as_it_says():
    states, actions, branching = 30, 40, 4
    model = mdp.garnet(states, actions, branching, 0.9, jax.random.key(3))
    successors, probs = np.asarray(model.successors), np.asarray(model.probabilities)
    assert np.all(np.diff(successors, axis=-1) > 0) and successors.min() >= 0 and successors.max() < states
    assert scipy.stats.chisquare(np.bincount(successors.ravel(), minlength=states)).pvalue > 1e-3
    pairs = np.zeros((states, states))
    np.add.at(pairs, (successors[..., 0], successors[..., 1]), 1)  # of a uniform subset the smallest two
    i, j = np.triu_indices(states, 1)
    larger = scipy.special.comb(states - 1 - j, branching - 2) / scipy.special.comb(states, branching)
    seen, expected = (np.bincount(j, x[i, j] if x.ndim == 2 else x)[1:-2] for x in (pairs, larger * states * actions))
    assert scipy.stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3
    for slot in range(branching):  # pieces of a unit interval with uniform cuts
        assert scipy.stats.kstest(probs[..., slot].ravel(), scipy.stats.beta(1, branching - 1).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(np.asarray(model.reward).ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(model.initial, 1 / states)


def test_garnet_with_one_successor_or_all_of_them():
    np.testing.assert_array_equal(mdp.garnet(5, 2, 1, 0.9, jax.random.key(0)).probabilities, 1)
    everywhere = mdp.garnet(5, 2, 5, 0.9, jax.random.key(0)).successors
    np.testing.assert_array_equal(everywhere, np.broadcast_to(np.arange(5), (5, 2, 5)))
    with pytest.raises(ValueError, match=r"branching = 6 successors must differ, expected at most states = 5"):
        mdp.garnet(5, 2, 6, 0.9, jax.random.key(0))
    with pytest.raises(ValueError, match=r"garnet.actions must be an integer of at least 1"):
        mdp.garnet(5, 0, 2, 0.9, jax.random.key(0))


# ------------------------------------------------------------------------------------------------ published


def test_river_swim_has_the_published_table():
    """As in CRAAM's riverswim_mdp.csv."""
    expected = {(s, 0): {s - 1: (1, 0)} for s in range(1, 6)}
    expected |= {(s, 1): {s - 1: (0.1, 0), s: (0.6, 0), s + 1: (0.3, 0)} for s in range(1, 5)}
    expected |= {(0, 0): {0: (1, 5)}, (0, 1): {0: (0.7, 0), 1: (0.3, 0)}, (5, 1): {4: (0.7, 0), 5: (0.3, 10_000)}}
    assert table(mdp.river_swim()) == expected
    np.testing.assert_array_equal(mdp.river_swim().initial, [0, 0.5, 0.5, 0, 0, 0])
    assert mdp.river_swim(100_000).num_states == 100_000


def test_river_swim_has_the_value_of_its_linear_equations():
    """Against the current all the way: a tridiagonal system, by hand."""
    chain = np.diag([0.7, *[0.6] * 4, 0.3]) + np.diag([0.3] * 5, 1) + np.diag([*[0.1] * 4, 0.7], -1)
    expected = np.linalg.solve(np.eye(6) - 0.95 * chain, [0, 0, 0, 0, 0, 3000])
    solution = exactly(mdp.policy_iteration, exactly(mdp.river_swim))
    np.testing.assert_array_equal(solution.policy[:, 1], 1)
    np.testing.assert_allclose(solution.value, expected, rtol=1e-9)


def test_machine_replacement_has_the_published_table():
    """As in CRAAM's machine_replacement_mdp.csv."""
    expected = {(s, 0): {s: (0.2, 0), s + 1: (0.8, 0)} for s in range(6)}
    expected |= {(s, 1): {s + 1: (0.3, 0), 9: (0.6, -2), 8: (0.1, -10)} for s in range(6)}
    expected |= {(6, 0): {6: (0.2, 0), 7: (0.8, -20)}, (7, 0): {7: (1, -20)}}
    expected |= {(s, 1): {7: (0.3, -20), 9: (0.6, -2), 8: (0.1, -10)} for s in (6, 7)}
    expected |= {(8, 0): {8: (1, -10)}, (8, 1): {9: (0.6, -2), 8: (0.4, -10)}}
    expected |= {(9, 0): {9: (0.2, -2), 0: (0.8, 0)}, (9, 1): {9: (1, -2)}}
    assert table(mdp.machine_replacement()) == expected


def test_inventory_has_the_published_tables_and_values():
    """Puterman 1994: the tables of Section 3.2.2, the values and policies of Section 4.6.1."""
    model = exactly(mdp.inventory)
    level = np.minimum(np.add.outer(range(4), range(4)), 3)
    laws = np.array([[1, 0, 0, 0], [3 / 4, 1 / 4, 0, 0], [1 / 4, 1 / 2, 1 / 4, 0], [0, 1 / 4, 1 / 2, 1 / 4]])
    np.testing.assert_allclose(exactly(mdp.dense, model).transition, laws[level])
    published = {0: [0, -1, -2, -5], 1: [5, 0, -3], 2: [6, -1], 3: [5]}
    for stock, rewards in published.items():
        np.testing.assert_allclose(model.reward[stock, : len(rewards)], rewards)
        np.testing.assert_allclose(model.reward[stock, len(rewards) :], rewards[-1])  # what does not fit
    solution = exactly(mdp.finite_horizon, model.replace(discount=1.0), 3)
    expected = [[67 / 16, 129 / 16, 194 / 16, 227 / 16], [2, 25 / 4, 10, 21 / 2], [0, 5, 6, 5], [0, 0, 0, 0]]
    np.testing.assert_allclose(solution.value, expected, rtol=1e-12)
    np.testing.assert_array_equal(solution.policy.argmax(-1), [[3, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]])


def test_forest_has_the_published_values():
    """Those in the documentation of MDPToolbox, for infinite and finite horizons."""
    model = exactly(mdp.forest)
    np.testing.assert_allclose(exactly(mdp.policy_iteration, model).value, [26.244, 29.484, 33.484], rtol=1e-9)
    solution = exactly(mdp.finite_horizon, model, 3)
    np.testing.assert_allclose(solution.value[:-1], [[2.6973, 5.9373, 9.9373], [0.81, 3.24, 7.24], [0, 1, 4]])
    np.testing.assert_array_equal(solution.policy.argmax(-1), [[0, 0, 0], [0, 0, 0], [0, 1, 0]])
    older = {(s, 0): {0: (0.1, 0), s + 1: (0.9, 0)} for s in range(3)} | {(3, 0): {0: (0.1, 4), 3: (0.9, 4)}}
    cut = {(0, 1): {0: (1, 0)}, (1, 1): {0: (1, 1)}, (2, 1): {0: (1, 1)}, (3, 1): {0: (1, 2)}}
    assert table(mdp.forest(4)) == older | cut


def test_the_grid_of_aima_has_the_published_utilities():
    """Russell and Norvig 2010, Figure 17.3, which has no discount: a long horizon."""
    model = exactly(mdp.grid_world).replace(discount=1.0)
    value = exactly(mdp.finite_horizon, model, 200).value[0]
    expected = [0.812, 0.868, 0.918, 1, 0.762, 0.660, -1, 0.705, 0.655, 0.611, 0.388, 0]
    np.testing.assert_allclose(value, expected, atol=5e-4)
    np.testing.assert_array_equal(model.initial, np.arange(12) == 7)


def test_a_grid_world_is_frozen_lake():
    """Ours pays for leaving the goal, FrozenLake for entering it: one step apart."""
    lake = exactly(mdp.from_gymnasium, "FrozenLake-v1", 0.95)
    ours = exactly(
        mdp.grid_world, ("SFFF", "FHFH", "FFFH", "HFFG"), 0.95, exits={"H": 0.0, "G": 1.0}, slip=2 / 3, step_reward=0.0
    )
    assert (lake.num_states, ours.num_states) == (17, 17)
    value, expected = (exactly(mdp.policy_iteration, model).value for model in (ours, lake))
    np.testing.assert_allclose(value[:15], 0.95 * expected[:15], atol=1e-9)
    np.testing.assert_allclose(value[15:], [1, 0], atol=1e-9)
    np.testing.assert_array_equal(ours.initial, lake.initial)


def test_grids_have_walls_and_starts():
    model = mdp.grid_world(("#S", ".S"), slip=0.0, exits={})
    moves = {(s, a): next(iter(law)) for (s, a), law in table(model).items()}
    expected = {(0, a): t for a, t in enumerate([0, 0, 2, 0])}  # right of a wall, at the top: up, right, down, left
    expected |= {(1, a): t for a, t in enumerate([1, 2, 1, 1])} | {(2, a): t for a, t in enumerate([0, 2, 2, 1])}
    assert moves == expected | {(3, a): 3 for a in range(4)}
    np.testing.assert_array_equal(model.initial, [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(mdp.grid_world(("..", "+#")).initial, [0.5, 0.5, 0, 0])
    for wrong in ((), ("..", "."), ("",), ("##", "##")):
        with pytest.raises(ValueError, match="cells"):
            mdp.grid_world(wrong)


def test_the_fishery_is_log_normal_around_its_growth():
    model = exactly(mdp.fishery, levels=41, quotas=5)
    stock, quota = np.linspace(0, 2, 41), np.linspace(0, 1, 5)
    for s, a in ((15, 0), (8, 1), (30, 4)):
        y = stock[s] - quota[a]
        law = scipy.stats.lognorm(s=0.1 * y, scale=y * np.exp(0.3 * (1 - y) * (y - 0.5)))
        hats = [
            law.expect(lambda x, t=t: max(0, 1 - abs(min(x, 2) - t) / 0.05), lb=t - 0.05, ub=t + 0.05) for t in stock
        ]
        np.testing.assert_allclose(model.transition[s, a], hats, atol=1e-7)
        assert model.transition[s, a] @ stock == pytest.approx(law.mean(), abs=1e-9)
    np.testing.assert_array_equal(model.transition[0], np.tile(np.arange(41) == 0, (5, 1)))
    np.testing.assert_array_equal(model.transition[10, 2], np.arange(41) == 0)  # all is caught
    np.testing.assert_allclose(model.reward, np.minimum(stock[:, None], quota))
    growth = model.transition[:, 0] @ stock - stock
    assert np.all(growth[1:9] < 0) and np.all(growth[12:19] > 0)  # below and above the threshold, to the capacity
    assert stock[model.initial.argmax()] == 0.75
    np.testing.assert_allclose(mdp.fishery(levels=41, quotas=5).transition, model.transition, atol=2e-5)
    with jax.enable_x64(True):
        slope = jax.grad(
            lambda c: mdp.fishery(levels=41, quotas=5, threshold=c).transition[15, 0] @ jnp.asarray(stock)
        )(0.5)
    assert slope == pytest.approx(-0.3 * 0.25 * float(model.transition[15, 0] @ stock), rel=1e-6)
    survives = exactly(mdp.policy_iteration, model).policy.argmax(1)
    assert survives[15] == 0 and survives[8] > 0  # let it grow, and take what is lost anyhow


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mdp.river_swim(2), "at least 3 states"),
        (lambda: mdp.river_swim(forward=0.95), r"probabilities\[state 1, action 1, slot 1\] is -0.05"),
        (lambda: mdp.inventory(0), "inventory.capacity"),
        (lambda: mdp.inventory(demand=(0.5, 0.6)), r"probabilities\[state 0, action 0\] sums to 1.1"),
        (lambda: mdp.forest(1), "at least 2 states"),
        (lambda: mdp.forest(fire=1.5), r"probabilities\[state 0, action 0, slot 1\] is -0.5"),
        (lambda: mdp.grid_world(slip=-0.5), r"is -0.25, expected a probability"),
        (lambda: mdp.fishery(levels=1), "fishery.levels"),
        (lambda: mdp.fishery(noise=0.0), "fishery.noise must be above 0, got 0"),
        (lambda: mdp.machine_replacement(discount=1.0), "discount is 1.0"),
    ],
)
def test_wrong_problems_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_value_of_a_forest_has_a_slope_in_its_fires():
    with jax.enable_x64(True):
        value = jax.jit(lambda fire: mdp.policy_iteration(mdp.forest(fire=fire)).value[0])
        slope = jax.jit(jax.grad(value))(0.1)
        numeric = (value(0.1 + 1e-6) - value(0.1 - 1e-6)) / 2e-6
        assert float(slope) == pytest.approx(float(numeric), rel=1e-6)
        many = jax.jit(jax.vmap(value))(jnp.linspace(0.05, 0.3, 6))
    assert np.all(np.diff(many) < 0)


# ------------------------------------------------------------------------------------------------ gymnasium


@pytest.mark.parametrize("name", ["Taxi-v4", "CliffWalking-v1", "FrozenLake-v1"])
def test_every_transition_is_that_of_the_environment(name):
    settings = {"is_slippery": False} if name == "FrozenLake-v1" else {}
    raw = gymnasium.make(name, **settings).unwrapped
    model = mdp.from_gymnasium(name, 0.99, **settings)
    raw.reset(seed=0)
    end, laws = model.num_states - 1, table(model)
    for state in range(end):
        for action in range(model.num_actions):
            raw.s, raw.lastaction = state, None
            successor, reward, terminated, *_ = raw.step(action)
            assert laws[state, action] == {end if terminated else successor: (1, reward)}
    assert all(laws[end, action] == {end: (1, 0)} for action in range(model.num_actions))
    np.testing.assert_allclose(model.initial, [*raw.initial_state_distrib, 0], rtol=1e-6)


def test_known_optima_of_gymnasium():
    """13 steps along the cliff; the fare of a taxi that is where it is needed."""
    discount = 0.99
    cliff = exactly(mdp.policy_iteration, exactly(mdp.from_gymnasium, "CliffWalking-v1", discount))
    assert cliff.value[36] == pytest.approx(-sum(discount**t for t in range(13)), abs=1e-9)
    taxi = exactly(mdp.policy_iteration, exactly(mdp.from_gymnasium, "Taxi-v4", discount))
    assert taxi.value[16] == pytest.approx(20, abs=1e-6)  # in the taxi, at the destination: the reward is kept
    assert taxi.value[-1] == pytest.approx(0, abs=1e-6)


def test_the_value_of_frozen_lake_is_its_mean_return():
    discount, episodes = 0.97, 1500
    env = gymnasium.make("FrozenLake-v1", max_episode_steps=500)
    solution = mdp.policy_iteration(mdp.from_gymnasium(env, discount))
    actions, returns = np.asarray(solution.policy.argmax(1)), []
    for episode in range(episodes):
        state, over, steps = env.reset(seed=episode)[0], False, 0
        while not over:
            state, reward, terminated, truncated, _ = env.step(int(actions[state]))
            over, steps = terminated or truncated, steps + 1
        returns.append(reward * discount ** (steps - 1))
    assert abs(np.mean(returns) - float(solution.value[0])) < 4 * np.std(returns) / np.sqrt(episodes)


class EnteredBothWays:
    """State 1 is entered by an end, worth 5, and in passing, after which it pays 1 for ever."""

    def __init__(self):
        self.initial_state_distrib = np.array([1.0, 0.0])
        self.P = {
            0: {0: [(0.5, 1, 5.0, True), (0.5, 1, 0.0, False)], 1: [(0.5, 1, 2.0, True), (0.5, 1, 4.0, True)]},
            1: {0: [(1.0, 1, 1.0, False)], 1: [(1.0, 1, 1.0, False)]},
        }


def test_a_state_that_is_entered_both_ways():
    model = exactly(mdp.from_gymnasium, EnteredBothWays(), 0.5)
    assert table(model)[0, 0] == {2: (0.5, 5), 1: (0.5, 0)}
    assert table(model)[0, 1] == {2: (1, 3)}  # the mean of what the same end pays
    np.testing.assert_allclose(exactly(mdp.policy_iteration, model).value, [0.5 * 5 + 0.5 * 0.5 * 2, 2, 0], atol=1e-9)


def test_what_is_no_table_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="has no table of transitions"):
        mdp.from_gymnasium("Blackjack-v1", 0.9)
    with pytest.raises(ValueError, match=r"settings \['is_slippery'\] go with the name"):
        mdp.from_gymnasium(EnteredBothWays(), 0.9, is_slippery=False)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "gymnasium":
            raise ModuleNotFoundError("No module named 'gymnasium'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'jaxrl\[gymnasium\]'"):
        mdp.from_gymnasium("FrozenLake-v1", 0.9)
