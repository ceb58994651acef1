"""Kernels of states as plain functions, and the finite features that give a kernel or stand for it.

A kernel is any function of two points that returns a number; sums and multiples are Python:

    def kernel(x, y):
        return 4.0 * kernels.rbf(x, y, length_scale=0.3) + 100.0

Features phi have the kernel `phi(x)^T phi(y)`: with m of them a posterior takes O(P m^2) operations for P points, not
O(P^3). Random ones are in `jaxrl.bayes.features`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import triangular
from jaxrl.bayes.regression import full_precision, refuse_lost
from jaxrl.types import PyTree

Kernel = Callable[[PyTree, PyTree], jax.Array]  # (point, point) -> []


def rbf(x: ArrayLike, y: ArrayLike, length_scale: ArrayLike = 1.0) -> jax.Array:
    """The squared exponential of two points of one shape, `exp(-|x - y|^2 / (2 length_scale^2))`, `[]`.

    - `length_scale`: `[]`, or one for each coordinate; units of the point.

    >>> print(f"{rbf(jnp.zeros(2), jnp.array([3.0, 4.0]), length_scale=5.0):.4f}")
    0.6065
    """
    return jnp.exp(-jnp.sum(((jnp.asarray(x) - jnp.asarray(y)) / length_scale) ** 2) / 2)


def linear(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """The product of two points, `x^T y`, `[]`. Of one-hot points, every state has a value of its own."""
    return jnp.sum(jnp.asarray(x) * jnp.asarray(y))


@full_precision
def gram(kernel: Kernel, x: PyTree, y: PyTree) -> jax.Array:
    """The kernel of all pairs, `[P, Q]`, for points with leaves `[P, ...]` and `[Q, ...]`.

    >>> print(gram(linear, jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [10.0]])))
    [[ 1. 10.]
     [ 2. 20.]]
    """
    return jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(y))(x)


@full_precision
def whiten(scores: ArrayLike, fisher: ArrayLike) -> jax.Array:
    """Scores as features of the Fisher kernel, `z = L^-1 u` with `G = L L^T`, so that `z^T z' = u^T G^-1 u'`.

    - `scores`: `[..., n]`; `fisher`: G, `[n, n]`, positive definite.

    Raises ValueError outside a trace for a Fisher matrix that is not positive definite to the precision of its type.
    """
    scores = jnp.asarray(scores)
    return triangular.solve(fisher_root(fisher), scores.reshape(-1, scores.shape[-1]).T).T.reshape(scores.shape)


def fisher_root(fisher: ArrayLike) -> jax.Array:
    """The lower Cholesky factor of a Fisher matrix `[n, n]`; NaN in a trace, ValueError outside, if there is none."""
    fisher = jnp.asarray(fisher)
    root = triangular.cholesky((fisher + fisher.T) / 2)
    refuse_lost(root, "fisher is not positive definite", "add damping with jaxrl.bayes.fisher.damped")
    return root


@full_precision
def inducing(kernel: Kernel, anchors: PyTree, points: PyTree, jitter: ArrayLike = 0.0) -> jax.Array:
    """Features of a kernel through m anchors, `phi(x) = L^-1 k(anchors, x)` with `k(anchors, anchors) = L L^T`.

    Their kernel is `k(x, anchors) k(anchors, anchors)^-1 k(anchors, y)`: exact where all points are anchors, as the
    states of a finite problem can be, and below it elsewhere, by what the anchors do not tell.

    - `anchors`: leaves `[m, ...]`; `points`: leaves `[P, ...]`. Returns `[P, m]`.
    - `jitter`: added to the diagonal of `k(anchors, anchors)`.

    Raises ValueError outside a trace for anchors that are too close to tell apart in the precision of their type.

    Source: Quinonero-Candela and Rasmussen 2005, "A Unifying View of Sparse Approximate Gaussian Process Regression".
    """
    between = gram(kernel, anchors, anchors)
    root = triangular.cholesky(
        between + jnp.asarray(jitter, between.dtype) * jnp.eye(len(between), dtype=between.dtype)
    )
    refuse_lost(root, "the kernel between anchors is singular", "use fewer anchors or some jitter")
    return triangular.solve(root, gram(kernel, anchors, points)).T
