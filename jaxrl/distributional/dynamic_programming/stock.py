"""Control of the law of the whole return, on states augmented by a stock.

The stock is what has been collected so far, in units of the present reward:

    c_{t+1} = (c_t + r_{t+1}) / discount,    so that    c_0 + G_0 = discount^t (c_t + G_t),

G_t the return from step t on. So an objective K of the law of c_0 + G_0 is one of the law of c_t + G_t, given what has
happened. If K is indifferent to mixtures (a mixture gains whenever one of its parts does), acting greedily on (s, c)
is optimal among all policies, those that remember the whole history included. Expected utilities and increasing
functions of them are indifferent. CVaR is not, but it is the best of a family of expected utilities:

    max_pi CVaR(G) = max_b  b + max_pi E min(G - b, 0) / level,    the inner one from the stock c_0 = -b.

So `solve` with `Shortfall` and then `cvar`, which searches the initial stock. Greedy choice by CVaR in each state is
something else, and has no such property.

Source: Pires et al. 2025, "Optimizing Return Distributions with Distributional Dynamic Programming", sections 3 to 5;
for CVaR, Baeuerle and Ott 2011, "Markov Decision Processes with Average-Value-at-Risk Criteria".
"""

from __future__ import annotations

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from jaxrl import risk
from jaxrl.distributional import categorical
from jaxrl.distributional.dynamic_programming.reach import reachable
from jaxrl.distributional.dynamic_programming.representations import Law
from jaxrl.mdp import Model, probabilities, successors
from jaxrl.mdp.checks import check, sound
from jaxrl.risk import laws
from jaxrl.types import check_positive

__all__ = [
    "BestCVaR",
    "Homeostatic",
    "Objective",
    "Shortfall",
    "Solution",
    "act",
    "cvar",
    "reachable",
    "solve",
    "step",
]

NOT_INDIFFERENT = (
    risk.CVaR,
    risk.CPW,
    risk.EVaR,
    risk.Expectile,
    risk.MeanCVaR,
    risk.MeanStd,
    risk.Pow,
    risk.Wang,
)


# -------------------------------------------------------------------------------------- objectives


class Objective(Protocol):
    """What to maximise of the law of c_0 + G_0: atoms `[..., N]`, probs `[..., N]` -> `[...]`.

    Must be indifferent to mixtures: any expected utility `sum_k p_k u(x_k)`, `risk.Mean()`, `risk.Entropic(beta)`.
    """

    def __call__(self, atoms: jax.Array, probs: jax.Array) -> jax.Array: ...


@laws.pytree
class Shortfall:
    """`E min(X, 0)`: the expected utility behind CVaR, see `cvar`."""

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        return jnp.sum(probs * jnp.minimum(atoms, 0), axis=-1)


@laws.pytree
class Homeostatic:
    """`-E |X|^power`: keep the return near minus the initial stock, as a target.

    `power`, 1 or above: 2 is the squared, 1 the absolute distance.

    >>> Homeostatic(2.0)(jnp.array([-1.0, 3.0]))
    Array(-5., dtype=float32)
    """

    power: ArrayLike = 2.0

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        size = jnp.abs(atoms)
        distances = jnp.where(size > 0, jnp.where(size > 0, size, 1) ** laws.setting(self.power, atoms), 0)
        return -jnp.sum(probs * distances, axis=-1)


# ---------------------------------------------------------------------------------------- operator


def step(
    model: Model, objective: Objective, stocks: ArrayLike, law: Law, scale: ArrayLike = 1.0
) -> tuple[Law, jax.Array, jax.Array]:
    """One sweep of distributional value iteration: the next law, the greedy actions, their objective.

        eta(s, c) <- law of r + discount G(s', (c + r)/discount) after the action that maximises K(scale (c + that))

    A stock between two of the grid is rounded to one of them at random, in proportion to nearness; one outside to the
    end. So the laws are those of a policy that remembers the rounded stock: exact but for the projection on the
    support, and exactly optimal where grid and support hold all that can be reached.

    - `model`: dense or sparse, with any form of reward.
    - `stocks`: ascending, `[M]`.
    - `law`: of the return from each state and stock: atoms the support, ascending, `[N]`; probs `[S, M, N]`.
    - `scale`: discount^t for a decision at step t; without effect if K(a X) orders laws as K(X) does for a > 0.

    Returns a law like `law`, actions `[S, M]` (integers) and objectives `[S, M]`.
    """
    dtype = law.probs.dtype
    support, stocks, kernel, reward, discount, scale = (
        jnp.asarray(x, dtype) for x in (law.atoms, stocks, probabilities(model), model.reward, model.discount, scale)
    )
    reward = reward if reward.ndim == 3 else reward[..., None]  # [S, A, K] or [S, A, 1], with K slots for successors
    collected = stocks[:, None, None] + reward[:, None]
    below, above, share = _neighbours(stocks, collected / jnp.where(discount > 0, discount, 1))
    places = jnp.asarray(successors(model))[:, None]
    probs = (1 - share) * law.probs[places, below] + share * law.probs[places, above]
    probs = kernel[:, None, ..., None] * probs  # [S, M, A, K, N]
    if reward.shape[-1] == 1:
        probs = jnp.sum(probs, axis=-2, keepdims=True)
    atoms = jnp.broadcast_to(reward[:, None, ..., None] + discount * support, probs.shape)
    flat = (*probs.shape[:3], -1)
    moved = categorical.project(atoms.reshape(flat), probs.reshape(flat), support)  # [S, M, A, N]
    objectives = objective(scale * (stocks[:, None, None] + support), moved)
    action = jnp.argmax(objectives, axis=-1)
    chosen = jnp.take_along_axis(moved, action[..., None, None], axis=2)[:, :, 0]
    return Law(support, chosen), action, jnp.max(objectives, axis=-1)


def _neighbours(grid: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where x lies in an ascending grid `[M]`: below and above, `[...]`, and the share of the upper, `[..., 1]`."""
    size = grid.shape[0]
    below = jnp.clip(jnp.searchsorted(grid, x, side="right") - 1, 0, max(size - 2, 0))
    above = jnp.minimum(below + 1, size - 1)
    gap = grid[above] - grid[below]
    share = jnp.clip((x - grid[below]) / jnp.where(gap > 0, gap, 1), 0, 1)
    return below, above, share[..., None]


# ----------------------------------------------------------------------------------------- solving


@struct.dataclass
class Solution:
    """A policy over times, states and stocks, and the law of the return under it."""

    stocks: jax.Array  # [M], the grid
    action: jax.Array  # [H, S, M], integers: what to do at step t in state s with stock c
    value: jax.Array  # [S, M], the objective of c + G from step 0 on
    law: Law  # of G from step 0 on: atoms [N], probs [S, M, N]


def solve(model: Model, objective: Objective, stocks: ArrayLike, support: ArrayLike, horizon: int) -> Solution:
    """Distributional value iteration on stocks: the best law of the return of `horizon` steps.

    Repeats `step` backwards from a return of 0. Over an infinite horizon, take one with a small
    discount^horizon: what follows moves no return by more than discount^horizon max|r| / (1 - discount). If K(a X)
    orders laws as K(X) does for all a > 0 (`Shortfall`, `Homeostatic`, the mean), `action[0]` is then a stationary
    policy over (s, c). Without stocks (`jnp.zeros(1)`), the optimum of a mean or an entropic objective, which do not
    depend on it. Costs S M A S N a step (S M A K N if sparse), in memory too.

    - `model`: dense or sparse, with any form of reward; its discount may be 1.
    - `objective`: a pytree as `Shortfall()`, `Homeostatic(2.0)`, `risk.Entropic(beta)`, or a function of atoms and
      probs (which is compiled anew for each function).
    - `stocks`: ascending, `[M]`; all that is reachable, by `reachable`, or a grid. For `Shortfall` one from minus the
      largest to minus the least return is enough: beyond, the choice is that of the end.
    - `support`: of the return, ascending, `[N]`, N >= 2.
    - `horizon`: H, static.

    Raises ValueError for what is no model, for grids that do not ascend, and for measures of risk that are not
    indifferent to mixtures; a model that is none gives NaN where it could not be refused.

    Source: Pires et al. 2025, "Optimizing Return Distributions with Distributional Dynamic Programming", section 4.
    """
    check_positive("solve", horizon=horizon)
    check(model, undiscounted=True)
    _check_ascending("stocks", stocks, 1)
    _check_ascending("support", support, 2)
    if isinstance(objective, NOT_INDIFFERENT):
        raise ValueError(
            f"objective is {type(objective).__name__}, which is not indifferent to mixtures: a greedy choice by it is "
            f"not optimal; expected an expected utility or Entropic. For CVaR, solve with Shortfall(), then use cvar"
        )
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(objective)):  # a plain function
        objective = jax.tree_util.Partial(objective)
    return _solve(model, objective, stocks, support, horizon)


@functools.partial(jax.jit, static_argnums=4)
def _solve(model: Model, objective: Objective, stocks: jax.Array, support: jax.Array, horizon: int) -> Solution:
    dtype = jnp.result_type(probabilities(model), model.reward, stocks, support, float)
    stocks, support = jnp.asarray(stocks, dtype), jnp.asarray(support, dtype)
    nothing = categorical.two_hot(jnp.zeros((model.num_states, len(stocks)), dtype), support)
    scales = jnp.asarray(model.discount, dtype) ** jnp.arange(horizon)
    scales = jnp.maximum(scales, jnp.finfo(dtype).eps)  # below, powers of it would vanish, and it no longer matters

    def sweep(law: Law, scale: jax.Array) -> tuple[Law, tuple[jax.Array, jax.Array]]:
        law, action, value = step(model, objective, stocks, law, scale)
        return law, (action, value)

    law, (action, value) = jax.lax.scan(sweep, Law(support, nothing), scales, reverse=True)
    value, probs = (jnp.where(sound(model, undiscounted=True), x, jnp.nan) for x in (value[0], law.probs))
    return Solution(stocks, action, value, Law(support, probs))


def act(solution: Solution, time: ArrayLike, state: ArrayLike, stock: ArrayLike) -> jax.Array:
    """The action at a step, in a state, with a stock: that of the nearest stock of the grid; integers, `[...]`.

    The law of a solution rounds at random, and to the grid at each step; it is that of acting so if stocks are on it.
    """
    stocks, action = jnp.asarray(solution.stocks), jnp.asarray(solution.action)
    below, above, share = _neighbours(stocks, jnp.asarray(stock, stocks.dtype))
    return action[time, state, jnp.where(share[..., 0] > 0.5, above, below)]


@struct.dataclass
class BestCVaR:
    """Where to start for the largest CVaR, and what it gives."""

    value: jax.Array  # [], the CVaR of `law`
    stock: jax.Array  # [], the initial stock
    index: jax.Array  # [], its place in the grid
    law: Law  # of the return from the initial state: atoms [N], probs [N]


def cvar(model: Model, solution: Solution, level: ArrayLike) -> BestCVaR:
    """The policy of largest CVaR of the return: a search over the initial stock.

        max_c CVaR_level(G under the policy of `Shortfall` from stock c)

    A candidate is worth at least -c + E min(c + G, 0) / level, whose maximum over c and policies is the optimum,
    attained at minus a quantile of the optimal return. So with `reachable` stocks it is the optimum over all policies,
    and with a grid a value that is attained. One solution serves all levels.

    - `solution`: of `solve(model, Shortfall(), ...)`.
    - `level`: in [0, 1], `[]`.
    """
    law = solution.law
    probs = jnp.einsum("s,smn->mn", jnp.asarray(model.initial, law.probs.dtype), law.probs, precision="highest")
    values = risk.CVaR(level)(law.atoms, probs)
    index = jnp.argmax(values)
    return BestCVaR(values[index], jnp.asarray(solution.stocks)[index], index, Law(law.atoms, probs[index]))


def _check_ascending(name: str, grid: ArrayLike, least: int) -> None:
    """Raises ValueError unless `grid` is `[N]` with N >= `least` and, outside a trace, ascends."""
    shape = jnp.shape(grid)
    if len(shape) != 1 or shape[0] < least:
        raise ValueError(f"{name} has shape {shape}, expected one axis of at least {least}")
    if not isinstance(grid, jax.core.Tracer) and not np.all(np.diff(np.asarray(grid)) > 0):
        raise ValueError(f"{name} does not ascend: expected numbers in ascending order, each once: jnp.unique")
