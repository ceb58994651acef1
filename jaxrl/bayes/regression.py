"""Bayesian linear regression, in the space of the features or of the samples: what every posterior here is made of.

    targets = features w + noise,    w ~ N(0, I),    noise ~ N(0, I) after whitening.

Both spaces give the same law; the one with fewer dimensions is the cheaper and the better conditioned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.bayes import triangular

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function with the whole precision of float32 in matrix products, of which a GPU by default takes less."""

    @functools.wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise


class Projection(NamedTuple):
    """The posterior law of `directions^T w` for each of k targets, and what their evidence is made of."""

    mean: jax.Array  # [q, k]
    covariance: jax.Array  # [q, q], the same for each target
    misfit: jax.Array  # [], sum over targets of y^T A^-1 y, A = features features^T + I
    log_det: jax.Array  # [], log det A


def feature_space(features: jax.Array, targets: jax.Array, directions: jax.Array) -> Projection:
    """Solve for the m features, `P = I + F^T F`: features F `[M, m]`, targets `[M, k]`, directions `[m, q]`."""
    factor = triangular.cholesky(jnp.eye(features.shape[1], dtype=features.dtype) + features.T @ features)
    half, whitened = _solve(factor, directions, features.T @ targets)
    weights = triangular.solve_transposed(factor, whitened)
    misfit = jnp.sum((targets - features @ weights) ** 2) + jnp.sum(weights**2)  # no difference of large numbers
    return Projection(half.T @ whitened, half.T @ half, misfit, _log_det(factor))


def sample_space(gram: jax.Array, cross: jax.Array, prior: jax.Array, targets: jax.Array) -> Projection:
    """Solve for the M samples, `A = I + gram`, where all that is known of the features is their products.

    - `gram`: F F^T, `[M, M]`; `cross`: F directions, `[M, q]`; `prior`: directions^T directions, `[q, q]`.
    - `targets`: `[M, k]`.
    """
    factor = triangular.cholesky(jnp.eye(len(gram), dtype=gram.dtype) + gram)
    half, whitened = _solve(factor, cross, targets)
    return Projection(half.T @ whitened, prior - half.T @ half, jnp.sum(whitened**2), _log_det(factor))


class Whitener(NamedTuple):
    """A root W of the inverse of a covariance S, `W^T W = S^-1`; rows and columns of padding are 0."""

    times: Callable[[jax.Array], jax.Array]  # x [M, ...] -> W x
    transposed: Callable[[jax.Array], jax.Array]  # x [M] -> W^T x
    log_det: jax.Array  # [], log det S, of what is real


def whitener(noise_variance: jax.Array, constant_variance: ArrayLike, mask: jax.Array) -> Whitener:
    """The whitener of `S = diag(noise_variance) + constant_variance 1 1^T`.

    A constant with a prior of its own is noise that all samples share: `W = (I - shrink q q^T) D` with
    `D = diag(noise_variance)^-1/2` and q the direction of D 1.
    """
    variance = jnp.where(mask, noise_variance, 1)
    scale = jnp.where(mask, 1 / jnp.sqrt(variance), 0)
    total = jnp.sum(scale**2)
    direction = scale / jnp.sqrt(jnp.where(total > 0, total, 1))
    log_growth = jnp.log1p(constant_variance * total)
    shrink = -jnp.expm1(-log_growth / 2)

    def project(x: jax.Array) -> jax.Array:
        return x - shrink * jnp.tensordot(direction, jnp.tensordot(direction, x, 1), 0)

    def scaled(x: jax.Array) -> jax.Array:
        return scale[(...,) + (None,) * (x.ndim - 1)] * x

    log_det = log_growth + jnp.sum(jnp.log(variance))
    return Whitener(lambda x: project(scaled(x)), lambda x: scaled(project(x)), log_det)


def _solve(factor: jax.Array, left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both systems at once."""
    both = triangular.solve(factor, jnp.concatenate([left, right], axis=1))
    return both[:, : left.shape[1]], both[:, left.shape[1] :]


def _log_det(factor: jax.Array) -> jax.Array:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))


# ------------------------------------------------------------------------------------------ checks


def variances(
    returns: jax.Array,
    noise_variance: ArrayLike,
    constant_variance: ArrayLike,
    amplitude: ArrayLike,
    mask: ArrayLike | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns and noise `[M]`, the latter in units of the amplitude, 0 and 1 at padding; constant, amplitude, mask."""
    real = jnp.ones(returns.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    noise, constant, amplitude = (jnp.asarray(x, returns.dtype) for x in (noise_variance, constant_variance, amplitude))
    for name, x, shapes in (
        ("mask", real, (returns.shape,)),
        ("noise_variance", noise, ((), returns.shape)),
        ("constant_variance", constant, ((),)),
        ("amplitude", amplitude, ((),)),
    ):
        if x.shape not in shapes:
            raise ValueError(
                f"{name} has shape {x.shape}, expected {' or '.join(map(str, shapes))} for {len(returns)} returns"
            )
    noise = jnp.where(real, noise, 1)
    refuse_value("noise_variance", noise, lambda x: x > 0, "above 0; noise-free returns need a small one")
    refuse_value("constant_variance", constant, lambda x: x >= 0, "at least 0")
    refuse_value("amplitude", amplitude, lambda x: x > 0, "above 0")
    return jnp.where(real, returns, 0), noise / amplitude, constant, amplitude, real


def refuse_lost(value: jax.Array, what: str, advice: str) -> None:
    """Raise ValueError if a factor, or what comes from one, is known and NaN."""
    if not isinstance(value, jax.core.Tracer) and np.any(np.isnan(value)):
        raise ValueError(
            f"{what} to the precision of {value.dtype}, or an argument is NaN; {advice}, or compute in float64 "
            f"(jax_enable_x64)"
        )


def refuse_value(name: str, value: jax.Array, good: Callable[[Any], Any], expected: str) -> None:
    """Raise ValueError if a value that is known is not good, NaN included."""
    if isinstance(value, jax.core.Tracer):
        return
    numbers = np.atleast_1d(np.asarray(value))
    if not np.all(good(numbers)):
        raise ValueError(f"{name} is {numbers[~good(numbers)][0]}, expected {expected}")
