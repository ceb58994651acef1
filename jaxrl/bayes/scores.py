"""Scores, the gradients of log-probabilities of a policy, written out or as products.

A trajectory xi, with actions a_t at observations x_t, has the score

    u(xi) = grad_theta log Pr(xi; theta) = sum_t grad_theta log mu(a_t | x_t; theta),

since the dynamics do not depend on theta. A policy is any function `log_prob(params, observation, action)` of one step,
unbatched; its parameters are any pytree, and a written-out score is in the order of `jax.flatten_util.ravel_pytree`.

Data is time-major: leaves of `observations` and `actions` are `[T, M, ...]` for M trajectories, and `mask` `[T, M]` is
0, or False, where a trajectory is over. Padding counts for nothing, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxrl.bayes.regression import full_precision
from jaxrl.types import PyTree

LogProb = Callable[[Any, Any, Any], jax.Array]  # (params, observation, action) -> []


class Operator(NamedTuple):
    """A matrix U `[M, n]` as its two products, for one too large to be written out.

    Vectors on the side of n are pytrees like the parameters. Build an operator inside the function that is compiled:
    its fields are functions, which `jit` does not take.
    """

    matvec: Callable[[PyTree], Any]  # v [n] -> U v [M]
    rmatvec: Callable[[Any], PyTree]  # w [M] -> U^T w [n]


@full_precision
def linearise(function: Callable[[PyTree], Any], params: PyTree) -> Operator:
    """The Jacobian of a function at `params`, as products: forward mode and its transpose, linearised once.

    >>> jacobian = linearise(lambda x: jnp.array([x[0] * x[1]]), jnp.array([2.0, 3.0]))
    >>> jacobian.matvec(jnp.array([1.0, 0.0])), jacobian.rmatvec(jnp.array([1.0]))
    (Array([3.], dtype=float32), Array([3., 2.], dtype=float32))
    """
    value, matvec = jax.linearize(function, params)
    transpose = jax.linear_transpose(matvec, params)
    shapes = jax.tree.map(jnp.shape, value)

    def rmatvec(w: Any) -> PyTree:
        if jax.tree.map(jnp.shape, w) != shapes:
            raise ValueError(f"the operator has rows of shape {shapes}, got {jax.tree.map(jnp.shape, w)}")
        return transpose(jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), w, value))[0]

    return Operator(matvec, rmatvec)


@full_precision
def trajectories(
    log_prob: LogProb, params: PyTree, observations: PyTree, actions: PyTree, mask: ArrayLike | None = None
) -> jax.Array:
    """The score of each trajectory, `[M, n]`.

        u_i = grad_theta sum_t mask[t, i] log mu(a_ti | x_ti; theta)

    - `log_prob`: log mu of one step, (params, observation, action) -> `[]`, in nats.
    - `observations`, `actions`: leaves `[T, M, ...]`.
    - `mask`: `[T, M]`, None: no padding. A trajectory that is all padding has the score 0.

    Raises ValueError for leaves that do not share their first two axes, and a mask of another shape.

    >>> log_prob = lambda mean, x, a: -((a - mean) ** 2) / 2
    >>> trajectories(log_prob, jnp.float32(1.0), jnp.zeros((2, 3)), jnp.array([[0.0, 2.0, 4.0], [1.0, 1.0, 0.0]]))
    Array([[-1.],
           [ 1.],
           [ 2.]], dtype=float32)
    """
    observations, actions, mask = _checked(observations, actions, mask)

    def score(observations: PyTree, actions: PyTree, mask: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda p: jnp.sum(_log_probs(log_prob, p, observations, actions, mask)))(params)
        return ravel_pytree(gradient)[0]

    return jax.vmap(score, in_axes=1)(observations, actions, mask)


@full_precision
def steps(
    log_prob: LogProb, params: PyTree, observations: PyTree, actions: PyTree, mask: ArrayLike | None = None
) -> jax.Array:
    """The score of each step, `grad_theta log mu(a_t | x_t; theta)`, `[T, M, n]`; 0 at padding.

    Summed over time it is that of the trajectories. Arguments and errors as in `trajectories`.
    """
    observations, actions, mask = _checked(observations, actions, mask)

    def score(observation: PyTree, action: PyTree, mask: jax.Array) -> jax.Array:
        gradient = ravel_pytree(jax.grad(log_prob)(params, observation, action))[0]
        return jnp.where(mask, gradient, 0)

    return jax.vmap(jax.vmap(score))(observations, actions, mask)


@full_precision
def operator(
    log_prob: LogProb,
    params: PyTree,
    observations: PyTree,
    actions: PyTree,
    mask: ArrayLike | None = None,
    *,
    per_step: bool = False,
) -> Operator:
    """The scores as an `Operator`, that never holds more than M numbers beside what the network holds.

    It maps parameters to `[M]` and back or, with `per_step`, to `[T, M]`. Arguments and errors as in `trajectories`.
    """
    observations, actions, mask = _checked(observations, actions, mask)

    def log_probs(params: PyTree) -> jax.Array:
        values = jax.vmap(lambda *step: _log_probs(log_prob, params, *step))(observations, actions, mask)
        return values if per_step else jnp.sum(values, axis=0)

    return linearise(log_probs, params)


def without_padding(data: PyTree, mask: ArrayLike | None, name: str = "observations") -> tuple[PyTree, jax.Array]:
    """The data `[T, M, ...]` with a real step in the place of each padded one, and the mask `[T, M]` as bool.

    What padding holds, NaN included, then reaches no gradient. Raises ValueError for leaves that do not share their
    first two axes, and a mask of another shape.
    """
    shapes = {jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(data)}
    shape = min(shapes, default=())
    if len(shapes) != 1 or len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{name} has leaves of leading axes {sorted(shapes)}, expected one [T, M] for all of them: "
            f"time, then trajectories; add an axis of size 1 to a single trajectory"
        )
    if mask is None:
        return jax.tree.map(jnp.asarray, data), jnp.ones(shape, bool)
    if jnp.shape(mask) != shape:
        raise ValueError(f"mask has shape {jnp.shape(mask)}, expected {shape}, the leading axes [T, M] of {name}")
    mask = jnp.asarray(mask).astype(bool)
    real = jnp.argmax(mask.ravel())

    def fill(leaf: jax.Array) -> jax.Array:
        example = jnp.where(jnp.any(mask), leaf.reshape(-1, *leaf.shape[2:])[real], 0)
        return jnp.where(mask.reshape(shape + (1,) * (leaf.ndim - 2)), leaf, example)

    return jax.tree.map(lambda leaf: fill(jnp.asarray(leaf)), data), mask


def _checked(observations: PyTree, actions: PyTree, mask: ArrayLike | None) -> tuple[PyTree, PyTree, jax.Array]:
    (observations, actions), mask = without_padding((observations, actions), mask, "observations and actions")
    return observations, actions, mask


def _log_probs(log_prob: LogProb, params: PyTree, observations: PyTree, actions: PyTree, mask: jax.Array) -> jax.Array:
    """The log-probabilities of steps `[K, ...]`, 0 at padding, `[K]`."""
    values = jax.vmap(log_prob, in_axes=(None, 0, 0))(params, observations, actions)
    if values.shape != mask.shape:
        raise ValueError(
            f"log_prob gives shape {values.shape[1:]} for one step, expected a number; sum over the components of an "
            f"action, and take observations without a batch axis"
        )
    return jnp.where(mask, values, 0)
