"""Two atoms for each state: its worst and its best case, and control by them.

The law of a return is cut at a level into two shares, and each becomes its mean (`Averages`, the projection in
Wasserstein-2). So each state s splits into a worst-case and a best-case substate, of values v_1(s) <= v_2(s):

    q_1(s, a) = mean of the worst `level` share,    q_2(s, a) = mean of the rest,    of the law of
    r(s, a, s') + discount v_j(s'),    s' ~ P(.|s, a),    j = 1, 2 with probability level, 1 - level,

and level q_1 + (1 - level) q_2 is the action value Q(s, a) exactly, if the v_j are those of one policy. Both are values
of robust models: q_1 is the least mean, and q_2 the greatest, over the laws of (s', j) with density at most 1/level, or
1/(1 - level), with respect to the nominal one.

Evaluation of a policy is `evaluate(model, policy, Averages(jnp.array([level, 1 - level])))`.

Source: Achab and Neu 2021, "Robustness and Risk Management via Distributional Dynamic Programming".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from jaxrl.distributional.dynamic_programming.evaluation import Evaluation, action_laws, fixed_point
from jaxrl.distributional.dynamic_programming.representations import Averages, Law
from jaxrl.mdp import Model, policy_iteration, probabilities, validate


@struct.dataclass
class Split:
    """Values of the two substates of each state, worst and best in this order on the last axis."""

    value: jax.Array  # [S, 2]
    q: jax.Array  # [S, A, 2]
    action: jax.Array  # the policy, integers, [S, 2] in each substate or [S]
    residual: jax.Array  # [], the largest change of a value in the last sweep
    error_bound: jax.Array  # [], on the largest error of a value, with rounding
    iterations: jax.Array  # [], sweeps
    converged: jax.Array  # [] bool: error_bound <= tolerance


def safe_and_risky(
    model: Model, level: ArrayLike, *, tolerance: ArrayLike | None = None, max_iterations: ArrayLike = 100_000
) -> Split:
    """A safe policy for the worst-case substates and a risky one for the best-case substates.

        v_j(s) = max_a q_j(s, a),    q_j as in this module's docstring

    The safe policy is `action[:, 0]`, the risky one `action[:, 1]`. They are optimal where nature chooses the law of
    the successor and its substate, within the bound on the density: against them in the worst-case substates, and for
    them in the best-case substates.

    - `level`: in (0, 1), the share of the worst case; may be traced.
    - `tolerance`: in the unit of the return; by default 1e-6, or in single precision what is attainable, if more.

    Raises ValueError for what is no model, or a level that is not in (0, 1).
    """
    validate(model)
    _check_level(level)
    return _safe_and_risky(model, level, tolerance, max_iterations)


@jax.jit
def _safe_and_risky(model: Model, level: jax.Array, tolerance: jax.Array | None, max_iterations: jax.Array) -> Split:
    weights = _cut(model, level)
    result = _control(model, weights, lambda q: jnp.max(q, axis=1), tolerance, max_iterations)
    return _split(model, weights, result, lambda q: jnp.argmax(q, axis=1))


def break_ties(
    model: Model,
    level: ArrayLike,
    *,
    risky: ArrayLike = False,
    slack: ArrayLike | None = None,
    tolerance: ArrayLike | None = None,
    max_iterations: ArrayLike = 100_000,
) -> Split:
    """The safest, or the most risky, of the policies of optimal mean.

        action(s) = argmax q_1(s, a), or of q_2 if `risky`,    over the a with Q(s, a) >= max_a Q(s, a) - slack

    Policy iteration first finds which actions are optimal. As their mean is the same, the larger the worst case the
    smaller the best case: the safest policy has the largest `value[:, 0]` of all that are optimal, in every state, and
    the most risky one the largest `value[:, 1]`. `value` and `q` are those of the policy `action` `[S]`.

    - `level`: in (0, 1), the share of the worst case; may be traced.
    - `risky`: whether to prefer the larger best case; may be traced.
    - `slack`: what counts as a tie, in the unit of the return; by default the root of the unit of rounding, times the
      largest |Q|.
    - `tolerance`: in the unit of the return; by default 1e-6, or in single precision what is attainable, if more.

    Raises ValueError for what is no model, or a level that is not in (0, 1).

    >>> from jaxrl.mdp import MDP
    >>> gamble = jnp.array([[[0.0, 0.5, 0.5]] * 2, [[0.0, 1.0, 0.0]] * 2, [[0.0, 0.0, 1.0]] * 2])
    >>> reward = jnp.zeros((3, 2, 3)).at[0].set(jnp.array([[0.0, 1.0, 1.0], [0.0, 0.0, 2.0]]))
    >>> model = MDP(gamble, reward, jnp.float32(0.5), jnp.eye(3)[0])
    >>> [int(break_ties(model, 0.5, risky=risky).action[0]) for risky in (False, True)]
    [0, 1]
    """
    validate(model)
    _check_level(level)
    return _break_ties(model, level, risky, slack, tolerance, max_iterations)


@jax.jit
def _break_ties(
    model: Model,
    level: jax.Array,
    risky: jax.Array,
    slack: jax.Array | None,
    tolerance: jax.Array | None,
    max_iterations: jax.Array,
) -> Split:
    best = policy_iteration(model)
    if slack is None:
        slack = jnp.sqrt(jnp.finfo(best.q.dtype).eps) * jnp.max(jnp.abs(best.q))
    optimal = best.q >= jnp.max(best.q, axis=1, keepdims=True) - slack

    def choose(q: jax.Array) -> jax.Array:
        preferred = jnp.where(risky, q[..., 1], q[..., 0])
        return jnp.argmax(jnp.where(optimal, preferred, -jnp.inf), axis=1)

    def follow(q: jax.Array) -> jax.Array:
        return jnp.take_along_axis(q, choose(q)[:, None, None], axis=1)[:, 0]

    weights = _cut(model, level)
    result = _control(model, weights, follow, tolerance, max_iterations)
    result = dataclasses.replace(result, converged=result.converged & best.converged)
    return _split(model, weights, result, choose)


def _check_level(level: ArrayLike) -> None:
    """Raises ValueError if `level` is a number outside (0, 1)."""
    if isinstance(level, (int, float, np.number)) and not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number in (0, 1): the share of the mass that is the worst case")


def _cut(model: Model, level: jax.Array) -> jax.Array:
    """The masses of the worst and the best case, `[2]`."""
    level = jnp.asarray(level, jnp.result_type(probabilities(model), float))
    return jnp.stack([level, 1 - level])


def _action_values(model: Model, weights: jax.Array, law: Law) -> jax.Array:
    """The mean of each share of the law of the return after an action, `[S, A, N]`."""
    return Averages(weights).project(action_laws(model, law)).atoms


def _control(
    model: Model,
    weights: jax.Array,
    select: Callable[[jax.Array], jax.Array],
    tolerance: ArrayLike | None,
    max_iterations: ArrayLike,
) -> Evaluation:
    """The fixed point of `v = select(q)`, where `select` takes `[S, A, N]` to `[S, N]`."""

    def sweep(law: Law) -> Law:
        return Law(select(_action_values(model, weights, law)), law.probs)

    return fixed_point(model, sweep, Averages(weights), tolerance, max_iterations)


def _split(model: Model, weights: jax.Array, result: Evaluation, choose: Callable[[jax.Array], jax.Array]) -> Split:
    q = _action_values(model, weights, result.law)
    return Split(
        value=result.law.atoms,
        q=q,
        action=choose(q),
        residual=result.residual,
        error_bound=result.error_bound,
        iterations=result.iterations,
        converged=result.converged,
    )
