"""The robust average reward: relative value iteration."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.mdp import Model
from jaxrl.mdp.checks import check
from jaxrl.mdp.solution import floats
from jaxrl.robust.certificate import rounding, scale
from jaxrl.robust.iteration import Chain, chain_of, matrix, mix
from jaxrl.robust.operator import backup, ball, in_blocks, play, rows
from jaxrl.robust.scenarios import by_row
from jaxrl.robust.sets import SignedLp
from jaxrl.types import check_positive

LAZINESS = 0.1  # the share of the old bias in the new one, so that periodic chains settle, too


@struct.dataclass
class Average:
    """The robust average reward per step, with a proof of how near it is.

    With h the bias and w = T h, the worst average reward of `policy`, and the best one there is, lie in
    [min(w - h), max(w - h)] from each state; `gain` is the middle, and `error_bound` half of the width, and rounding.

    `gain` is differentiable, once, in the leaves of the model and the settings of the set; the other fields are
    constants. With m the stationary law of the chain of the policy and the worst laws, its slope is that of m . (T h)
    at a fixed h, as m P = m. Where two policies or laws are equally good, that is one of the subgradients; where the
    chain has more than one recurrent class, there is none, and it is NaN or means nothing.
    """

    gain: jax.Array  # [], reward per step
    bias: jax.Array  # [S], what it is worth to start in a state rather than in state 0
    q: jax.Array  # [S, A], T of the bias, less the gain
    policy: jax.Array  # [S, A], a best action has all probability, unless the actions share a budget
    worst_transition: jax.Array  # [S, A, N], the law that nature picks, in the layout of the model's kernel
    error_bound: jax.Array  # [], of the gain
    iterations: jax.Array  # [], integer, sweeps
    converged: jax.Array  # [], bool, error_bound <= tolerance


def average(model: Model, set: Any, *, tolerance: ArrayLike | None = None, max_iterations: int = 100_000) -> Average:
    """The best reward per step in the long run, against a nature that picks the worst law for each state and action.

        gain + h(s) = max_a min {p . (r(s, a) + h) : p in set(s, a)},    h(0) = 0

    by relative value iteration, h <- (1 - c) (w - w(0)) + c h with w = T h: the share c of the old bias makes all
    chains aperiodic, and changes neither gain nor bias.

    Assumes a unichain model: under each policy and each law in the set there is one recurrent class. Else the best
    average may depend on where one starts, w - h need not become a constant, and the iteration ends at
    `max_iterations`, with bounds that hold all the same.

    - `model`: dense or sparse; its discount has no effect.
    - `set`: as for `solve`, but `SignedLp`, whose measures are no laws.
    - `tolerance`: `[]`, in units of the reward, for the error bound of the gain. None is 1e-6, or what is attainable.
    - `max_iterations`: sweeps.

    The derivative of the gain takes the solution of S linear equations, in S^3 operations, also for a sparse model.

    Raises ValueError if the model or the set is none, or if the two don't fit.

    Source: Tewari and Bartlett 2007, "Bounded Parameter Markov Decision Processes with Average Reward Criterion"; Wang
    et al. 2023, "Robust Average-Reward Markov Decision Processes"; Puterman 1994, Sections 8.5.4 and 8.5.5, for the
    bounds and for periodic chains.

    >>> from jaxrl import mdp, robust
    >>> for radius in (0.0, 0.2):
    ...     print(f"{average(mdp.river_swim(), robust.L1(radius)).gain:.1f}")
    668.7
    95.2
    """
    check_positive("average", max_iterations=max_iterations)
    check(model)
    set = by_row(set, model)
    if isinstance(ball(set), SignedLp):
        raise ValueError("SignedLp has measures that are no laws, expected a set of laws, such as L2")
    model = floats(model)
    set = jax.tree.map(lambda leaf: jnp.asarray(leaf, model.reward.dtype), set)
    goal = None if tolerance is None else jnp.asarray(tolerance, model.reward.dtype)
    return _average(model, set, goal, jnp.asarray(max_iterations, jnp.int32))


@jax.jit
def _average(model: Model, set: Any, tolerance: jax.Array | None, max_iterations: jax.Array) -> Average:
    known = scale(*jax.lax.stop_gradient((model, set)))
    known = known._replace(modulus=jnp.where(jnp.isnan(known.modulus), jnp.nan, 1))
    model = dataclasses.replace(model, discount=jnp.ones_like(model.discount))
    fixed = jax.lax.stop_gradient((model, set))

    def operator(h: jax.Array) -> jax.Array:
        return backup(*fixed, h)[0]

    def bound(h: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The error of the gain, the one to reach, and its rounding."""
        rho = rounding(set, known, h)
        half = (jnp.max(w - h) - jnp.min(w - h)) / 2
        return half + rho, jnp.maximum(1e-6, 4 * rho) if tolerance is None else tolerance, rho

    def going(state: tuple) -> jax.Array:
        count, h, w = state
        error, goal, rho = bound(h, w)
        return (error > jnp.maximum(goal, 2 * rho)) & (count < max_iterations)

    def sweep(state: tuple) -> tuple:
        count, h, w = state
        h = LAZINESS * h + (1 - LAZINESS) * (w - w[0])
        return count + 1, h, operator(h)

    start = jnp.zeros(model.num_states, model.reward.dtype)
    count, h, _ = jax.lax.while_loop(going, sweep, (jnp.ones((), jnp.int32), start, operator(start)))
    every = rows(model, set)
    best = in_blocks(lambda part: play(model, set, h, part), every)
    w, q, policy, laws = jax.lax.stop_gradient(best)
    chain = chain_of(mix(policy, laws, every.successors), every.successors)
    error, goal, _ = bound(h, w)
    gain = jnp.where(jnp.isnan(error), jnp.nan, (jnp.max(w - h) + jnp.min(w - h)) / 2)
    return Average(
        gain=_of_stationary(gain, best.value, chain),
        bias=h,
        q=q - gain,
        policy=policy,
        worst_transition=laws,
        error_bound=error,
        iterations=count,
        converged=error <= goal,
    )


@jax.custom_jvp
def _of_stationary(gain: jax.Array, w: jax.Array, chain: Chain) -> jax.Array:
    """The gain, whose slope is that of the mean of w under the stationary law of the chain."""
    return gain


@_of_stationary.defjvp
def _slope(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    gain, w, chain = primals
    system = jnp.eye(len(w), dtype=w.dtype) - matrix(chain) + 1  # m (I - P + 1 1^T) = 1^T
    stationary = jnp.linalg.solve(system.T, jnp.ones_like(w))
    return gain, jnp.sum(stationary * tangents[1])
