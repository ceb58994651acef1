"""Robust dynamic programming: the best policy against the worst law of each state and action, and what proves it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.mdp import Model, linear
from jaxrl.mdp.checks import check, check_policy
from jaxrl.mdp.solution import Scale, floats
from jaxrl.robust import iteration
from jaxrl.robust.certificate import attainable, error_bound, rounding, scale
from jaxrl.robust.iteration import State
from jaxrl.robust.operator import Play, Rows, in_blocks, play, rows, taken, worst_laws
from jaxrl.robust.scenarios import by_row
from jaxrl.robust.state import SRectangular
from jaxrl.types import check_positive

Method = Literal["auto", "value_iteration", "modified_policy_iteration", "policy_iteration"]
METHODS = ("value_iteration", "modified_policy_iteration", "policy_iteration")
PATIENCE = 5  # sweeps without progress, where rounding may hide it
HOPELESS = 200  # sweeps without progress, after which none is to come


@struct.dataclass
class Solution:
    """The robust optimum of a model, or the robust value of a policy, with a proof of how near it is.

    With T the robust Bellman operator, `error_bound` bounds |value - its fixed point| in every state, and for `solve`
    also |value - robust value of `policy`|. With w = T v the returned value, rho the rounding of a sweep and m the
    modulus of T, which is the discount times the largest sum of a row,

        error_bound = (m max|w - v| + rho) / (1 - m).

    For `solve` with an `SRectangular` set rho also counts the gap between what `policy` is sure to get in one sweep and
    the best answer to the laws of nature. The bound is infinite if T need not contract (`SignedLp` with a large
    radius). `converged` means `error_bound <= tolerance`. What is no model, or leaves nature no law, gives NaN and
    `converged=False`, where it can't be refused.

    `value` and `q` are differentiable, once, in the leaves of the model and the settings of the set (and in `policy`),
    by the implicit function theorem at the returned policy and laws; the other fields are constants, and so is the `q`
    of an `SRectangular` set. Where two are equally good, that is one of the subgradients.
    """

    value: jax.Array  # [S], sum_a policy q
    q: jax.Array  # [S, A], the worst-case value of a state and an action; with the penalty, for a measure of risk
    policy: jax.Array  # [S, A], probabilities; a best action has them all, unless the actions share a budget
    worst_transition: jax.Array  # [S, A, N], the law that nature picks, in the layout of the model's kernel
    residual: jax.Array  # [], max|w - v|
    error_bound: jax.Array  # []
    iterations: jax.Array  # [], integer: sweeps before the last one, which is the proof
    rejections: jax.Array  # [], integer: those that were not taken, see `jaxrl.robust.iteration`
    converged: jax.Array  # [], bool


@struct.dataclass
class Info:
    """What a step has found."""

    residual: jax.Array  # [], max|T v - v| of the proposal v, after the best constant is added to it
    error_bound: jax.Array  # [], of the `value` of the new state
    rejected: jax.Array  # [], bool: whether the proposal was not taken


def solve(
    model: Model,
    set: Any,
    *,
    method: Method = "auto",
    tolerance: ArrayLike | None = None,
    max_iterations: int = 100_000,
) -> Solution:
    """The best policy against a nature that picks the worst law for each state and action.

        value(s) = max_a min {p . z(s, a) : p in set(s, a)},    z(s, a, s') = r(s, a, s') + discount value(s')

    or, if `set` is an `SRectangular`, whose radius nature divides among the actions of a state,

        value(s) = max_policy min {sum_a policy_a p_a . z(s, a) : sum_a d(p_a, p0_a) <= radius(s)}

    for which the best policy is a random one as a rule.

    - `model`: dense or sparse.
    - `set`: of `jaxrl.robust`; or a measure of risk (`CVaR`, `EVaR`, `Entropic`), applied at each step. Its settings
      are numbers, `[S]` or `[S, A]`; those of `Interval` also `[S, A, N]`. The radius in an `SRectangular` is a number
      or `[S]`.
    - `method`: "value_iteration"; "policy_iteration", which takes the fewest sweeps; "modified_policy_iteration", which
      solves no equations. "auto" is policy iteration up to 256 states, and the modified one beyond.
    - `tolerance`: `[]`, in units of the value, for the error bound of the result. None is 1e-6, or four times the
      rounding error where that is more, as it mostly is in float32.
    - `max_iterations`: sweeps; then what has been reached is returned, with its bound and `converged=False`.

    Use `jax.vmap` over radii, discounts or models (`mdp.stack`), and `jax.grad` through `value` and `q`.

    Raises ValueError if the model or the set is none, or if the two don't fit.

    Source: Iyengar 2005, "Robust Dynamic Programming", Theorems 3.1 and 3.2; Wiesemann, Kuhn and Rustem 2013, "Robust
    Markov Decision Processes"; Ho, Petrik and Wiesemann 2021, "Partial Policy Iteration for L1-Robust Markov Decision
    Processes".

    >>> from jaxrl import mdp, robust
    >>> model = mdp.machine_replacement()
    >>> for radius in (0.0, 0.5):
    ...     print(robust.solve(model, robust.L1(radius)).value[:3].round(2))
    [-1.77 -2.32 -3.04]
    [-5.73 -7.16 -8.95]
    """
    check_positive("solve", max_iterations=max_iterations)
    model, set = _prepare(model, set)
    return _solve(model, set, None, _number(tolerance, model), max_iterations, _resolve(method, model))


def evaluate(
    model: Model, set: Any, policy: ArrayLike, *, tolerance: ArrayLike | None = None, max_iterations: int = 100_000
) -> Solution:
    """The value of a policy against a nature that picks the worst law for each state and action.

        value(s) = sum_a policy(s, a) min {p . z(s, a) : p in set(s, a)}

    or, if `set` is an `SRectangular`,

        value(s) = min {sum_a policy(s, a) p_a . z(s, a) : sum_a d(p_a, p0_a) <= radius(s)}

    by policy iteration of nature, for whom this is a decision problem of its own.

    - `policy`: `[S, A]`, the probability of each action.

    All else as for `solve`; also differentiable in the policy. Raises ValueError if the policy is none.

    Source: Iyengar 2005, "Robust Dynamic Programming", Section 3.2.
    """
    check_positive("evaluate", max_iterations=max_iterations)
    model, set = _prepare(model, set)
    policy = jnp.asarray(policy)
    check_policy(model, policy)
    policy = policy.astype(model.reward.dtype)
    return _solve(model, set, policy, _number(tolerance, model), max_iterations, "policy_iteration")


def init(model: Model, set: Any, method: Method = "auto") -> State:
    """The state before the first `step`, at value 0. Raises ValueError as `solve`."""
    model, set = _prepare(model, set)
    _resolve(method, model)
    return iteration.start(model)


def step(model: Model, set: Any, state: State, method: Method = "auto") -> tuple[State, Info]:
    """One sweep of the robust Bellman operator, and the next proposal: `solve` is the loop around it.

    Arguments and errors as for `solve`. `state.value` is within `info.error_bound` of the robust optimum.
    """
    model, set = _prepare(model, set)
    return _step(model, set, state, _resolve(method, model))


# ----------------------------------------------------------------------------------------------- inside


def _prepare(model: Model, set: Any) -> tuple[Model, Any]:
    """Both, checked, as arrays of one float type."""
    check(model)
    set = by_row(set, model)
    model = floats(model)
    return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, model.reward.dtype), set)


def _number(tolerance: ArrayLike | None, model: Model) -> jax.Array:
    """NaN stands for None, so that one program serves both."""
    return jnp.asarray(jnp.nan if tolerance is None else tolerance, model.reward.dtype)


def _goal(tolerance: jax.Array, known: Scale, rho: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(tolerance), attainable(known, rho), tolerance)


def _resolve(method: str, model: Model) -> str:
    if method == "auto":
        return "policy_iteration" if model.num_states <= iteration.DIRECT else "modified_policy_iteration"
    if method not in METHODS:
        raise ValueError(f"method must be 'auto' or one of {METHODS}, got {method!r}")
    return method


@functools.partial(jax.jit, static_argnames="method")
def _step(model: Model, set: Any, state: State, method: str) -> tuple[State, Info]:
    known = scale(model, set)
    rho = rounding(set, known, state.proposal)
    following, residual = iteration.sweep(model, set, known, rho, state, None, method)
    rejected = following.rejections > state.rejections
    return following, Info(residual, error_bound(known, following.residual, rho), rejected)


@functools.partial(jax.jit, static_argnames="method")
def _solve(
    model: Model, set: Any, policy: jax.Array | None, tolerance: jax.Array, max_iterations: ArrayLike, method: str
) -> Solution:
    fixed = jax.lax.stop_gradient((model, set, policy))
    known = scale(*fixed[:2])
    found = _loop(*fixed, known, tolerance, max_iterations, method)
    every = rows(model, set)
    alone = policy is None and not isinstance(set, SRectangular)  # one action is enough, and quicker

    def equation(value: jax.Array) -> jax.Array:
        if alone:
            best = taken(every, jnp.argmax(found.q, axis=1))
            return in_blocks(lambda part: worst_laws(model, set, value, part)[0], best) - value
        return in_blocks(lambda part: play(model, set, value, *part).value, (every, policy)) - value

    def tangent_solve(tangent: Any, y: jax.Array) -> jax.Array:  # tangent(x) = discount P x - x
        return linear.solve(lambda x: x + tangent(x), -y, known.modulus)

    value = jax.lax.custom_root(equation, found.value, lambda _, guess: guess, tangent_solve)
    return _certify(model, set, policy, known, value, found, tolerance)


def _loop(
    model: Model,
    set: Any,
    policy: jax.Array | None,
    known: Scale,
    tolerance: jax.Array,
    max_iterations: ArrayLike,
    method: str,
) -> State:
    """The iteration, until one more sweep is sure to certify the tolerance."""
    slow = method == "value_iteration"

    def body(carry: tuple) -> tuple:
        state, _, best, idle = carry
        rho = rounding(set, known, state.proposal)
        state, residual = iteration.sweep(model, set, known, rho, state, policy, method)
        goal = _goal(tolerance, known, rho)
        goal = jnp.maximum(goal * (1 - known.modulus) - 2 * rho, rho)  # rho: there is no more to be had
        modulus = jnp.minimum(known.modulus, 1)
        idle = jnp.where(residual < (1 + modulus) / 2 * best, 0, idle + 1)  # a contraction shrinks it by more
        blurred = (residual < 4 * rho / (1 - known.modulus if slow else 1)) & (idle >= PATIENCE)
        going = (state.residual > goal) & ~blurred & (idle < HOPELESS) & (state.iterations < max_iterations)
        return state, going, jnp.minimum(best, residual), idle

    state = iteration.start(model)
    state = dataclasses.replace(state, proposal=jnp.where(jnp.isnan(known.modulus), jnp.nan, state.proposal))
    first = state, jnp.array(True), state.residual, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[1], body, first)[0]


def _certify(
    model: Model,
    set: Any,
    policy: jax.Array | None,
    known: Scale,
    start: jax.Array,
    found: State,
    tolerance: jax.Array,
) -> Solution:
    """One more sweep, from `start` `[S]`, and what it proves."""

    def last_sweep(part: tuple[Rows, jax.Array | None]) -> tuple[Play, jax.Array]:
        best = play(model, set, start, *part)
        if part[1] is not None or not isinstance(set, SRectangular):
            return best, jnp.zeros_like(best.value)
        least = play(*jax.lax.stop_gradient((model, set, start, part[0], best.policy))).value
        return best, jnp.max(best.q, axis=1) - least  # what the agent, or nature, could gain

    (value, q, policy, laws), gap = in_blocks(last_sweep, (rows(model, set), policy))
    first, last, gap = jax.lax.stop_gradient((start, value, jnp.max(gap)))
    residual, rho = jnp.max(jnp.abs(last - first)), rounding(set, known, first)
    bound = error_bound(known, residual, rho + gap)
    wrong = jnp.isnan(bound)
    value, q, policy, laws = (jnp.where(wrong, jnp.nan, x) for x in (value, q, policy, laws))
    return Solution(
        value=value,
        q=q,
        policy=policy,
        worst_transition=jax.lax.stop_gradient(laws),
        residual=residual,
        error_bound=bound,
        iterations=found.iterations,
        rejections=found.rejections,
        converged=bound <= _goal(tolerance, known, rho),
    )
