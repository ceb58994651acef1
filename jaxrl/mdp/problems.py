"""Decision problems of the literature as models.

Sizes are static; probabilities, rewards and the discount may be traced, so that `vmap` sweeps them and `grad`
differentiates an optimum in them. All are sparse; `dense` turns them round. Each raises ValueError if its arguments
make no model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.mdp.checks import validate
from jaxrl.mdp.model import SparseMDP
from jaxrl.types import check_positive


def garnet(states: int, actions: int, branching: int, discount: ArrayLike, key: jax.Array) -> SparseMDP:
    """A random model: every action leads to `branching` states, drawn anew, and everything else is random, too.

    The successors are a uniform subset; their probabilities are the pieces of the unit interval between `branching - 1`
    uniform cuts; the reward of each transition is standard normal, and stays as drawn. The first state is uniform.

    - `branching`: K, at most `states`.

    Source: Bhatnagar, Sutton, Ghavamzadeh, Lee 2009, "Natural Actor-Critic Algorithms", Section 8, stationary and
    without noise in the reward; Archibald, McKinnon, Thomas 1995, "On the Generation of Markov Decision Processes".

    >>> model = garnet(states=5, actions=2, branching=3, discount=0.9, key=jax.random.key(0))
    >>> model.probabilities.shape, model.reward.shape
    ((5, 2, 3), (5, 2, 3))
    """
    check_positive("garnet", states=states, actions=actions, branching=branching)
    if branching > states:
        raise ValueError(f"garnet: branching = {branching} successors must differ, expected at most states = {states}")
    successors, probs, reward = _garnet(states, actions, branching, key)
    return _model(successors, probs, reward, discount, np.full(states, 1 / states))


def river_swim(
    states: int = 6, discount: ArrayLike = 0.95, *, forward: ArrayLike = 0.3, back: ArrayLike = 0.1
) -> SparseMDP:
    """Swim with the current (action 0) for a small reward, or against it (action 1) for a large one upstream.

    Downstream always succeeds; upstream gets ahead with probability `forward`, is carried back with `back`, and stays
    else; at the upper end it stays with `forward`, at the lower one it can't be carried back. The reward is 5 for
    swimming down in the first state, and 10,000 for staying in the last. It starts in the second or third state.

    - `states`: at least 3.

    Source: Strehl and Littman 2008, "An Analysis of Model-Based Interval Estimation for Markov Decision Processes";
    numbers as in CRAAM's example, `riverswim_mdp.csv`. Others use `forward=0.35, back=0.05`, other ends, and rewards of
    0.005 and 1.
    """
    if states < 3:
        raise ValueError(f"river_swim needs at least 3 states, got {states}")
    state = np.arange(states)
    last = states - 1
    successors = np.stack([np.maximum(state - 1, 0), state, np.minimum(state + 1, last)], axis=1)
    successors = np.stack([successors[:, [0, 1, 2]], successors], axis=1)
    ahead = jnp.where(state == last, 0, forward)
    carried = jnp.where(state == 0, 0, jnp.where(state == last, 1 - forward, back))
    upstream = jnp.stack([carried, 1 - carried - ahead, ahead], axis=1)
    downstream = jnp.broadcast_to(jnp.array([1.0, 0, 0]), upstream.shape)
    reward = np.zeros((states, 2, 3))
    reward[0, 0, 0], reward[last, 1, 1] = 5, 10_000
    initial = np.zeros(states)
    initial[[1, 2]] = 0.5
    return _model(successors, jnp.stack([downstream, upstream], axis=1), reward, discount, initial)


def machine_replacement(discount: ArrayLike = 0.8) -> SparseMDP:
    """A machine wears out (states 0 to 7); it runs on (action 0), or is repaired (action 1), shortly or for long.

    Running, it wears by one state with probability 0.8. A repair is a short one (state 9, reward -2) with probability
    0.6, a long one (state 8, -10) with 0.1, and fails with 0.3, when the machine wears on; the worst state, 7, has
    reward -20. The reward is that of the state that is reached. From state 9 the machine returns new with probability
    0.8, if it is to run; a long repair goes on until it is repaired again, which works with probability 0.6.

    Source: Delage and Mannor 2010, "Percentile Optimization for Markov Decision Processes with Parameter Uncertainty",
    Figure 3; numbers as in CRAAM's example, `machine_replacement_mdp.csv`.
    """
    wear = np.minimum(np.arange(8) + 1, 7)
    stay = np.arange(8)
    run = [[s, t, t] for s, t in zip(stay, wear, strict=True)] + [[8, 8, 8], [9, 0, 0]]
    repair = [[t, 9, 8] for t in wear] + [[8, 9, 9], [9, 9, 9]]
    run_probs = [[0.2, 0.8, 0]] * 8 + [[1, 0, 0], [0.2, 0.8, 0]]
    repair_probs = [[0.3, 0.6, 0.1]] * 8 + [[0.4, 0.6, 0], [1, 0, 0]]
    successors = np.stack([run, repair], axis=1)
    probs = _distinct(successors, jnp.asarray(np.stack([run_probs, repair_probs], axis=1)))
    arrival = np.zeros(10)
    arrival[7:] = -20, -10, -2
    return _model(successors, probs, arrival[successors], discount, np.eye(10)[0])


def inventory(
    capacity: int = 3,
    discount: ArrayLike = 0.95,
    *,
    demand: ArrayLike | Sequence[float] = (0.25, 0.5, 0.25),
    price: ArrayLike = 8.0,
    order_cost: ArrayLike = 4.0,
    unit_cost: ArrayLike = 2.0,
    holding_cost: ArrayLike = 1.0,
) -> SparseMDP:
    """How much to order each month, when the demand D is random and what is not in stock is not sold.

        u = min(stock + order, capacity),    stock' = max(u - D, 0)
        r = price E min(D, u) - order_cost 1[u > stock] - unit_cost (u - stock) - holding_cost u

    States are the stock, actions the order, both from 0 to `capacity`; what does not fit is not ordered.

    - `demand`: `[n]`, the probabilities of 0, 1, ..., n - 1.

    Source: Puterman 1994, "Markov Decision Processes", Section 3.2.2, whose numbers are the defaults.

    >>> print(inventory().reward)
    [[ 0. -1. -2. -5.]
     [ 5.  0. -3. -3.]
     [ 6. -1. -1. -1.]
     [ 5.  5.  5.  5.]]
    """
    check_positive("inventory", capacity=capacity)
    demand = jnp.asarray(demand, float)
    stock, order = np.mgrid[: capacity + 1, : capacity + 1]
    level = np.minimum(stock + order, capacity)
    wanted = np.arange(len(demand))
    successors = np.maximum(level[..., None] - wanted, 0)
    sold = jnp.sum(demand * np.minimum(level[..., None], wanted), axis=-1)
    ordered = level - stock
    reward = price * sold - jnp.where(ordered > 0, order_cost, 0) - unit_cost * ordered - holding_cost * level
    probs = _distinct(successors, jnp.broadcast_to(demand, successors.shape))
    return _model(successors, probs, reward, discount, np.eye(capacity + 1)[0])


def forest(
    states: int = 3, discount: ArrayLike = 0.9, *, old: ArrayLike = 4.0, cut: ArrayLike = 2.0, fire: ArrayLike = 0.1
) -> SparseMDP:
    """Let a forest grow (action 0) or cut it (action 1), when it may burn down each year.

    States are ages; waiting makes the forest older, or with probability `fire` the youngest, as cutting does. The
    reward is `old` for waiting in the oldest state, and 0, 1, ..., 1, `cut` for cutting.

    - `states`: at least 2.

    Source: the example `forest` of MDPToolbox (Chades et al. 2014), with its defaults.
    """
    if states < 2:
        raise ValueError(f"forest needs at least 2 states, got {states}")
    age = np.arange(states)
    waiting = np.stack([np.zeros_like(age), np.minimum(age + 1, states - 1)], axis=1)
    cutting = np.broadcast_to([0, 1], waiting.shape)
    burns = jnp.stack([jnp.asarray(fire, float), 1 - jnp.asarray(fire, float)])
    probs = jnp.stack([burns, jnp.array([1.0, 0.0])])
    reward = jnp.zeros((states, 2)).at[1:, 1].set(1).at[-1].set(jnp.stack([jnp.asarray(old), jnp.asarray(cut)]))
    successors = np.stack([waiting, cutting], axis=1)
    return _model(successors, jnp.broadcast_to(probs, successors.shape), reward, discount, np.eye(states)[0])


AIMA = ("...+", ".#.-", "S...")
EXITS = {"+": 1.0, "-": -1.0}


def grid_world(
    cells: tuple[str, ...] = AIMA,
    discount: ArrayLike = 0.99,
    *,
    exits: Mapping[str, ArrayLike] = EXITS,
    slip: ArrayLike = 0.2,
    step_reward: ArrayLike = -0.04,
) -> SparseMDP:
    """Walk on a grid, drawn as text, to an exit: up, right, down, left (actions 0 to 3).

    A move goes astray with probability `slip`, to either side alike; walls (`#`) and the border hold it back. Each
    action costs `step_reward`; at an exit, all lead to the end and are worth what `exits` says. It starts at any `S`,
    or anywhere; other characters are free cells.

    States are the cells that are no walls, row by row, and the end, where nothing happens, as the last.

    - `cells`: rows of one length.
    - `exits`: the reward by character.

    Source: Russell and Norvig 2010, "Artificial Intelligence: A Modern Approach", Figure 17.1, is the default but for
    its discount of 1; FrozenLake has `slip=2/3, step_reward=0`.
    """
    if not cells or len({len(row) for row in cells}) != 1 or not cells[0]:
        raise ValueError(f"cells must be rows of one length, got lengths {[len(row) for row in cells]}")
    grid = np.array([list(row) for row in cells])
    free = grid != "#"
    if not free.any():
        raise ValueError("cells has walls only, expected at least one other character")
    end = int(free.sum())
    index = np.full(grid.shape, -1)
    index[free] = np.arange(end)
    places = np.argwhere(free)
    moves = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
    ahead = np.clip(places[:, None] + moves, 0, np.array(grid.shape) - 1)
    reached = index[ahead[..., 0], ahead[..., 1]]
    reached = np.where(reached < 0, np.arange(end)[:, None], reached)  # [cells, 4]
    successors = np.stack([reached, np.roll(reached, -1, axis=1), np.roll(reached, 1, axis=1)], axis=-1)
    out = np.isin(grid[free], list(exits))
    successors[out] = end
    successors = np.concatenate([successors, np.full((1, 4, 3), end)])
    slip = jnp.asarray(slip, float)
    probs = _distinct(successors, jnp.broadcast_to(jnp.stack([1 - slip, slip / 2, slip / 2]), successors.shape))
    worth = jnp.append(jnp.full(end, step_reward, float), 0)
    for cell, reward in exits.items():
        worth = jnp.where(np.append(grid[free] == cell, False), reward, worth)
    start = grid[free] == "S" if (grid == "S").any() else ~out if not out.all() else out
    reward = jnp.broadcast_to(worth[:, None], (end + 1, 4))
    return _model(successors, probs, reward, discount, np.append(start / start.sum(), 0))


# ----------------------------------------------------------------------------------------------- helpers


def _model(
    successors: ArrayLike, probabilities: ArrayLike, reward: ArrayLike, discount: ArrayLike, initial: ArrayLike
) -> SparseMDP:
    """The model of these arrays, in the default types, checked."""
    numbers = (jnp.asarray(x, float) for x in (probabilities, reward, discount, initial))
    model = SparseMDP(jnp.asarray(successors, jnp.int32), *numbers)
    validate(model)
    return model


def _distinct(successors: np.ndarray, probs: jax.Array) -> jax.Array:
    """The probabilities `[S, A, K]` when slots with the same successor are added up, in the first of them."""
    first = np.argmax(successors[..., :, None] == successors[..., None, :], axis=-1)
    moved = first[..., :, None] == np.arange(successors.shape[-1])  # [S, A, K, K], from slot to slot
    return jnp.sum(probs[..., :, None] * moved, axis=-2)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _garnet(states: int, actions: int, branching: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Successors, probabilities and rewards, each `[S, A, K]`."""
    successors_key, cuts_key, reward_key = jax.random.split(key, 3)
    rows = (states, actions)

    def draw(slot: jax.Array, chosen: jax.Array) -> jax.Array:  # Floyd: a uniform subset without a permutation
        largest = states - branching + slot
        drawn = jax.random.randint(jax.random.fold_in(successors_key, slot), rows, 0, largest + 1)
        taken = jnp.any(chosen == drawn[..., None], axis=-1)
        return chosen.at[..., slot].set(jnp.where(taken, largest, drawn))

    successors = jax.lax.fori_loop(0, branching, draw, jnp.full((*rows, branching), -1))
    cuts = jnp.sort(jax.random.uniform(cuts_key, (*rows, branching - 1)), axis=-1)
    probs = jnp.diff(jnp.concatenate([jnp.zeros((*rows, 1)), cuts, jnp.ones((*rows, 1))], axis=-1), axis=-1)
    return jnp.sort(successors, axis=-1), probs, jax.random.normal(reward_key, (*rows, branching))
