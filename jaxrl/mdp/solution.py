"""What a solver returns, and the certificate that goes with it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.mdp.checks import sound
from jaxrl.mdp.model import M, Model, action_values, expected_reward, probabilities


@struct.dataclass
class Solution:
    """The optimum of a model, with a proof of how near it is.

    `error_bound` bounds |value - optimal value| in every state, and |value - value of `policy`|, so that `policy` is
    optimal up to twice of it. With w = T v the returned value, T the Bellman operator, computed with an error of at
    most rho, and m the modulus of T,

        error_bound = (m max|w - v| + rho) / (1 - m).

    `rho` counts the rounding of the arithmetic of one sweep and of the numbers of the model itself, at worst; m is the
    discount times the largest sum of a row. `converged` means `error_bound <= tolerance`. A model that is none (rows
    that do not sum to one, a discount of 1, NaN) gives NaN and `converged=False` where it could not be refused.

    `value` and `q` are differentiable in the leaves of the model, by the implicit function theorem at the returned
    policy; the other fields are constants. Where two actions are equally good, that is one of the subgradients.

    Source: Puterman 1994, "Markov Decision Processes", Sections 6.3 and 6.6, for the bound without rounding.
    """

    value: jax.Array  # [S], max_a q
    q: jax.Array  # [S, A]
    policy: jax.Array  # [S, A], probabilities; here a best action has them all
    residual: jax.Array  # [], max|value - v|, v what the last sweep started from
    error_bound: jax.Array  # []
    iterations: jax.Array  # [], integer
    converged: jax.Array  # [], bool


class Scale(NamedTuple):
    """What the certificate of a model depends on, besides the value."""

    modulus: jax.Array  # [], of the Bellman operator; NaN for what is no model
    reward: jax.Array  # [], the largest mean of |r(s, a, s')|
    terms: jax.Array  # [], the largest number of successors with mass


def scale(model: Model, undiscounted: bool = False) -> Scale:
    """The scale of a model, whose `modulus` is NaN unless the model is one; its discount may be 1 if `undiscounted`."""
    model = jax.lax.stop_gradient(model)
    probs = probabilities(model)
    modulus = model.discount * jnp.max(jnp.sum(probs, axis=-1))
    return Scale(
        modulus=jnp.where(sound(model, undiscounted), modulus, jnp.nan),
        reward=jnp.max(expected_reward(dataclasses.replace(model, reward=jnp.abs(model.reward)))),
        terms=jnp.max(jnp.sum(probs > 0, axis=-1)).astype(probs.dtype),
    )


def rounding(scale: Scale, value: jax.Array) -> jax.Array:
    """How far a computed sweep from `value` can be from the exact one, at worst, `[]`.

    A sum of n products in any order errs by at most about n u times the sum of their absolute values, u being the unit
    roundoff; eight more are for the reward, the discount and their products, and for the numbers of the model, which
    were rounded, too. Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", Section 3.1.
    """
    size = scale.reward + scale.modulus * jnp.max(jnp.abs(value))
    return (scale.terms + 8) * jnp.finfo(value.dtype).eps / 2 * size


def error_bound(scale: Scale, residual: jax.Array, rho: jax.Array) -> jax.Array:
    """How far w = T v is from the fixed point of T, `[]`; `residual` is max|w - v|, `rho` the error of w."""
    return jnp.where(scale.modulus < 1, (scale.modulus * residual + rho) / (1 - scale.modulus), jnp.nan)


def attainable(scale: Scale, rho: jax.Array) -> jax.Array:
    """The tolerance that is aimed at when none is given: 1e-6, or what rounding leaves, `[]`."""
    return jnp.maximum(1e-6, 4 * rho / (1 - scale.modulus))


def floats(model: M) -> M:
    """The model as arrays of their common float type, so that one program serves every way to write a number."""
    dtype = jnp.result_type(probabilities(model), model.reward, float)
    types = {"successors": None}
    leaves: dict[str, Any] = {name: jnp.asarray(x, types.get(name, dtype)) for name, x in vars(model).items()}
    return dataclasses.replace(model, **leaves)


def certify(
    model: Model, known: Scale, start: jax.Array, iterations: jax.Array, tolerance: jax.Array | None
) -> Solution:
    """One more sweep, from `start` `[S]`, and what it proves."""
    q = action_values(model, start)
    policy = jax.nn.one_hot(jnp.argmax(q, axis=1), model.num_actions, dtype=q.dtype)
    value = jnp.sum(policy * q, axis=1)
    last, first = jax.lax.stop_gradient((value, start))
    residual, rho = jnp.max(jnp.abs(last - first)), rounding(known, first)
    bound = error_bound(known, residual, rho)
    wrong = jnp.isnan(bound)
    return Solution(
        value=jnp.where(wrong, jnp.nan, value),
        q=jnp.where(wrong, jnp.nan, q),
        policy=jnp.where(wrong, jnp.nan, policy),
        residual=residual,
        error_bound=bound,
        iterations=iterations.astype(jnp.int32),
        converged=bound <= (attainable(known, rho) if tolerance is None else tolerance),
    )
