"""Steps that trust a direction of the policy gradient as far as it is known: uncertainty-aware policy gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes.regression import full_precision
from jaxrl.types import check_positive


@full_precision
def uncertainty_aware(
    mean: ArrayLike, covariance: ArrayLike, *, natural: bool = False, limit: ArrayLike = 3.0, rank: int | None = None
) -> jax.Array:
    """The mean of a gradient, `[n]`, with its components scaled towards equal uncertainty.

        sum_i s_i q_i q_i^T mean,    covariance = sum_i v_i q_i q_i^T

        gradient            s_i = sqrt(v_min / v_i) along the `rank` least certain directions,
        natural gradient    s_i = min(sqrt(v_max / v_i), limit) along the `rank` most certain ones,

    with v_min, or v_max, the smallest, or largest, variance among those; s_i = 1 along all others. So the step of a
    gradient is shortened where it is uncertain, and that of a natural gradient, whose uncertain directions are those
    that hardly move the policy, lengthened where it is certain. Of full rank and without a limit, both are
    `covariance^-1/2 mean` but for a factor.

    - `mean`: `[n]`; `covariance`: `[n, n]`, both of the natural gradient where `natural`.
    - `limit`: the largest factor for a natural gradient, the paper's epsilon.
    - `rank`: how many directions are scaled, None: all.

    Its one `eigh` is a call of LAPACK: two that are batched in one program can deadlock in jaxlib 0.10 on the CPU.
    Raises ValueError for shapes that do not fit and a rank that is not in 1, ..., n.

    Source: Akella et al. 2021, "Deep Bayesian Quadrature Policy Optimization", section 5.

    >>> covariance = jnp.diag(jnp.array([1.0, 4.0, 100.0]))
    >>> [round(float(x), 3) for x in uncertainty_aware(jnp.ones(3), covariance)]
    [1.0, 0.5, 0.1]
    >>> [round(float(x), 3) for x in uncertainty_aware(jnp.ones(3), covariance, natural=True)]
    [3.0, 3.0, 1.0]
    """
    dtype = jnp.result_type(mean, covariance, float)
    mean, covariance = jnp.asarray(mean, dtype), jnp.asarray(covariance, dtype)
    if mean.ndim != 1 or covariance.shape != (*mean.shape, *mean.shape):
        raise ValueError(
            f"mean has shape {mean.shape} and covariance {covariance.shape}, expected [n] and [n, n]; ravel parameters "
            f"with jax.flatten_util.ravel_pytree"
        )
    rank = mean.size if rank is None else rank
    check_positive("uncertainty_aware", rank=rank)
    if rank > mean.size:
        raise ValueError(f"rank is {rank}, expected at most n = {mean.size}, the size of mean")
    variances, directions = jnp.linalg.eigh(covariance)  # ascending
    least = jnp.maximum(jnp.finfo(dtype).eps * variances[-1], jnp.finfo(dtype).tiny)
    deviations = jnp.sqrt(jnp.maximum(variances, least))  # rounding may leave variances of 0, or below
    index = jnp.arange(mean.size)
    if natural:
        scale = jnp.where(index < rank, jnp.minimum(deviations[rank - 1] / deviations, limit), 1)
    else:
        scale = jnp.where(index >= mean.size - rank, deviations[-rank] / deviations, 1)
    return directions @ (scale * (directions.T @ mean))
