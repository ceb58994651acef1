"""Kernels of finite rank: random features, and noise that samples share through them.

A Gaussian process that is not of interest itself, such as a state value in a policy gradient, is noise of covariance
F F^T to all that is: `whitener` takes it out at the cost of its rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import triangular
from jaxrl.bayes.regression import Whitener, full_precision
from jaxrl.types import check_positive


def frequencies(key: jax.Array, size: int, num_features: int) -> jax.Array:
    """Frequencies of `fourier` for inputs of `size` numbers, `[size, num_features / 2]`, standard normal.

    Raises ValueError for sizes below 1 and an odd number of features.
    """
    check_positive("frequencies", size=size, num_features=num_features)
    if num_features % 2:
        raise ValueError(f"num_features is {num_features}, expected an even number: a sine and a cosine each")
    return jax.random.normal(key, (size, num_features // 2))


@full_precision
def fourier(frequencies: ArrayLike, inputs: ArrayLike, length_scale: ArrayLike = 1.0) -> jax.Array:
    """Random Fourier features of inputs `[..., D]`, `[..., m]`, for the squared exponential kernel.

        phi(x) = sqrt(2 / m) (cos W^T x / length_scale, sin W^T x / length_scale),
        E phi(x)^T phi(x') = exp(-|x - x'|^2 / (2 length_scale^2)),    phi(x)^T phi(x) = 1

    Errors of the kernel are O(1 / sqrt m).

    - `frequencies`: W, `[D, m / 2]`.
    - `length_scale`: positive, in units of the inputs.

    Source: Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines", algorithm 1 (with pairs of sine
    and cosine).

    >>> w = frequencies(jax.random.key(0), 2, 4000)
    >>> phi = fourier(w, jnp.array([[0.0, 0.0], [1.0, 0.0]]))
    >>> print((phi @ phi.T).round(2))  # exp(-1/2) = 0.61
    [[1.   0.61]
     [0.61 1.  ]]
    """
    frequencies, inputs = jnp.asarray(frequencies), jnp.asarray(inputs)
    if frequencies.ndim != 2 or inputs.shape[-1:] != frequencies.shape[:1]:
        raise ValueError(
            f"frequencies has shape {frequencies.shape}, expected [D, m / 2] with D the last axis of inputs, of shape "
            f"{inputs.shape}"
        )
    phase = inputs @ frequencies / length_scale
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1) / jnp.sqrt(frequencies.shape[1]).astype(
        phase.dtype
    )


@full_precision
def whitener(features: ArrayLike, noise_variance: ArrayLike) -> Whitener:
    """The whitener of `S = F F^T + noise_variance I`, for F `[M, m]` of few columns: `W^T W = S^-1`.

        W = (I - Z (I + L^T)^-1 L^-1 Z^T) / sqrt(noise_variance),    Z = F / sqrt(noise_variance),    L L^T = I + Z^T Z

    Costs O(M m^2 + m^3) once, and O(M m) a product; no square root of an M x M matrix. A row of F that is 0 is left
    alone, so padding is 0 in F and in what W is applied to.

    - `noise_variance`: `[]`, above 0.

    Raises ValueError for features that are not a matrix.
    """
    features = jnp.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"features has shape {features.shape}, expected [M, m]")
    deviation = jnp.sqrt(jnp.asarray(noise_variance, features.dtype))
    scaled = features / deviation
    identity = jnp.eye(features.shape[1], dtype=features.dtype)
    factor = triangular.cholesky(identity + scaled.T @ scaled)
    inner = triangular.solve_transposed(factor + identity, triangular.solve(factor, identity))  # (I + L^T)^-1 L^-1

    def times(x: jax.Array) -> jax.Array:
        return (x - scaled @ (inner @ (scaled.T @ x))) / deviation

    def transposed(x: jax.Array) -> jax.Array:
        return (x - scaled @ (inner.T @ (scaled.T @ x))) / deviation

    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + 2 * len(features) * jnp.log(deviation)
    return Whitener(times, transposed, log_det)
