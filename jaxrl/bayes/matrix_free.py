"""The posterior law of the policy gradient for large policies, through products with scores and Fisher alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import regression
from jaxrl.bayes.fisher import product
from jaxrl.bayes.scores import Operator
from jaxrl.types import PyTree


class MatrixFreePosterior(NamedTuple):
    """The mean of the posterior law of the policy gradient and draws from it, in the shape of the parameters."""

    mean: PyTree  # [n]
    natural_mean: PyTree  # [n]
    draws: PyTree | None  # [num_draws, n]
    natural_draws: PyTree | None  # [num_draws, n]
    residual: jax.Array  # [], |b - P x| / |b| of the linear systems P x = b, the largest


@regression.full_precision
def gradient_posterior_matrix_free(
    scores: Operator,
    returns: ArrayLike,
    fisher_root: Operator,
    noise_variance: ArrayLike,
    key: jax.Array | None = None,
    *,
    damping: ArrayLike,
    num_draws: int = 0,
    constant_variance: ArrayLike = 0.0,
    amplitude: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
    max_iterations: int = 30,
    tolerance: float = 1e-5,
) -> MatrixFreePosterior:
    """The posterior law under Model 2 for large policies, through products with scores and Fisher alone.

        P w = U^T C y,    mean = G w,    P = G + U^T C U,
        G = A^T A + damping I,    C = (S / amplitude + constant_variance 1 1^T)^-1,

    by conjugate gradients. A draw solves `P x = b` for `b ~ N(U^T C y, amplitude P)`. Where `residual` is not small the
    mean is regularised further, and the draws are too narrow.

    - `scores`: U, from `jaxrl.bayes.scores.operator`.
    - `fisher_root`: A, from `jaxrl.bayes.fisher.root`.
    - `damping`: part of G; above 0 where `A^T A` is singular, as with more parameters than the visited states can tell.
    - `key`, `num_draws`: for draws from the posterior.
    - `max_iterations`, `tolerance`: of conjugate gradients, the latter relative to the right-hand side.
    - the others as in `gradient_posterior`.

    Raises ValueError for draws without a key, shapes that do not fit and, outside a trace, variances out of range.

    Source: the draws are those of Papandreou and Yuille 2010, "Gaussian Sampling by Local Perturbations".
    """
    if (num_draws > 0) != (key is not None):
        raise ValueError(f"num_draws is {num_draws} and key is {key}, expected both for draws, or neither")
    returns = jnp.asarray(returns, jnp.result_type(returns, float))
    returns, noise, constant, amplitude, mask = regression.variances(
        returns, noise_variance, constant_variance, amplitude, mask
    )
    damping = jnp.asarray(damping, returns.dtype)
    regression.refuse_value("damping", damping, lambda x: x >= 0, "at least 0")
    whitener = regression.whitener(noise, constant, mask)
    whitened = Operator(lambda v: whitener.times(scores.matvec(v)), lambda w: scores.rmatvec(whitener.transposed(w)))
    times_fisher, times_data = product(fisher_root, damping), product(whitened)

    def solve(right: PyTree) -> tuple[PyTree, jax.Array]:
        def times_precision(v: PyTree) -> PyTree:
            return jax.tree.map(jnp.add, times_fisher(v), times_data(v))

        x, _ = jax.scipy.sparse.linalg.cg(times_precision, right, tol=tolerance, maxiter=max_iterations)
        left = _norm(jax.tree.map(jnp.subtract, right, times_precision(x)))
        return x, left / jnp.where(left > 0, _norm(right), 1)

    right = whitened.rmatvec(whitener.times(returns))
    natural_mean, residual = solve(right)
    mean = times_fisher(natural_mean)
    if key is None:
        return MatrixFreePosterior(mean, natural_mean, None, None, residual)

    like = (returns, jax.eval_shape(fisher_root.matvec, right), right)

    def deviate(key: jax.Array) -> tuple[PyTree, jax.Array]:
        return solve(_perturbation(_normal(key, like), whitened, fisher_root, damping))

    deviations, residuals = jax.vmap(deviate)(jax.random.split(key, num_draws))
    natural_draws = jax.tree.map(lambda m, d: m + jnp.sqrt(amplitude).astype(d.dtype) * d, natural_mean, deviations)
    residual = jnp.maximum(residual, jnp.max(residuals))
    return MatrixFreePosterior(mean, natural_mean, jax.vmap(times_fisher)(natural_draws), natural_draws, residual)


def _perturbation(
    normals: tuple[jax.Array, PyTree, PyTree], whitened: Operator, fisher_root: Operator, damping: jax.Array
) -> PyTree:
    """A draw from N(0, P) by way of the root of each part of P: the scores, the Fisher, the damping."""
    of_scores, of_fisher = whitened.rmatvec(normals[0]), fisher_root.rmatvec(normals[1])
    return jax.tree.map(lambda s, f, d: s + f + jnp.sqrt(damping).astype(d.dtype) * d, of_scores, of_fisher, normals[2])


def _norm(tree: PyTree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _normal(key: jax.Array, like: PyTree) -> PyTree:
    """Standard normal numbers in the shapes of a pytree."""
    keys = jax.tree.unflatten(jax.tree.structure(like), jax.random.split(key, len(jax.tree.leaves(like))))
    return jax.tree.map(lambda leaf, k: jax.random.normal(k, leaf.shape, leaf.dtype), like, keys)
