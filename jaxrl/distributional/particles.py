"""Joint laws of several reward channels, as particles, and how far apart two of them are.

A law is N equal masses in R^K, `[..., N, K]`, K channels; with one channel it is a law of quantiles without an order.
The total reward of a particle is its sum over channels, so `risk` measures of it are `measure(particles.sum(-1))`.

    targets = bellman_particles(rewards, discounts, next_particles)           # [B, N, K]
    loss = maximum_mean_discrepancy(particles, jax.lax.stop_gradient(targets), bandwidths)

Either distance is a loss for particles: its mean over sampled targets is larger than the distance to their mixture, but
by a constant, so its mean gradient is that of the distance.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def bellman_particles(rewards: ArrayLike, discounts: ArrayLike, particles: ArrayLike) -> jax.Array:
    """Where the Bellman operator moves the particles of the successor, `r + d z`, `[..., N, K]`.

    - `rewards`: r, one for each channel, `[..., K]`.
    - `discounts`: d, discount (1 - terminated), `[...]`.
    - `particles`: z, `[..., N, K]`.

    Source: Zhang et al. 2021, "Distributional Reinforcement Learning for Multi-Dimensional Reward Functions".
    """
    dtype = jnp.result_type(rewards, particles, float)
    rewards, discounts, particles = (jnp.asarray(x, dtype) for x in (rewards, discounts, particles))
    if particles.ndim < 2 or rewards.shape[-1:] != particles.shape[-1:]:
        raise ValueError(
            f"rewards has shape {rewards.shape} and particles {particles.shape}, expected [..., K] and [..., N, K]: "
            f"one reward for each channel"
        )
    return rewards[..., None, :] + discounts[..., None, None] * particles


def maximum_mean_discrepancy(
    x: ArrayLike,
    y: ArrayLike,
    bandwidths: ArrayLike,
    x_probs: ArrayLike | None = None,
    y_probs: ArrayLike | None = None,
) -> jax.Array:
    """The squared maximum mean discrepancy under a mixture of Gaussian kernels, `[...]`.

        E k(X, X') - 2 E k(X, Y) + E k(Y, Y'),    k(x, y) = mean_h exp(-|x - y|^2 / (2 h^2)),

    over all pairs, a particle with itself included. It is 0 for equal laws only, and never below but by rounding.
    Particles further than a few of the largest bandwidth from all others feel no gradient. Costs (N + M)^2 K.

    - `x`, `y`: `[..., N, K]`, `[..., M, K]`.
    - `bandwidths`: h, `[H]`, in the units of the reward.
    - `x_probs`, `y_probs`: weights of the particles, `[..., N]`, `[..., M]`; by default equal.

    ValueError if the particles have different numbers of channels, or weights of another number.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", Lemma 6; as a loss, Zhang et al. 2021, "Distributional
    Reinforcement Learning for Multi-Dimensional Reward Functions" (MD3QN).
    """
    widths = jnp.asarray(bandwidths)

    def similarity(squares: jax.Array) -> jax.Array:
        h = widths.astype(squares.dtype)
        return jnp.mean(jnp.exp(-squares[..., None] / (2 * h**2)), axis=-1)

    return _between(similarity, x, y, x_probs, y_probs)


def energy_distance(
    x: ArrayLike, y: ArrayLike, x_probs: ArrayLike | None = None, y_probs: ArrayLike | None = None
) -> jax.Array:
    """The energy distance, `[...]`: a discrepancy without a bandwidth.

        2 E|X - Y| - E|X - X'| - E|Y - Y'|

    With one channel it is twice the squared Cramer distance, `2 int (F - G)^2`. Arguments, cost and errors are those of
    `maximum_mean_discrepancy`; the gradient between two particles in one place is 0.

    Source: Szekely and Rizzo 2013, "Energy Statistics".

    >>> energy_distance(jnp.array([[0.0]]), jnp.array([[3.0]]))
    Array(6., dtype=float32)
    """
    return _between(lambda squares: -_root(squares), x, y, x_probs, y_probs)


def _between(
    similarity: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    y: ArrayLike,
    x_probs: ArrayLike | None,
    y_probs: ArrayLike | None,
) -> jax.Array:
    """`E k(X, X') - 2 E k(X, Y) + E k(Y, Y')` for a similarity of squared distances."""
    dtype = jnp.result_type(x, y, float)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x has shape {x.shape} and y {y.shape}, expected [..., N, K] and [..., M, K] with the same number of "
            f"channels K; for one channel, write x[..., None]"
        )
    p, q = _weights("x", x, x_probs), _weights("y", y, y_probs)

    def mean(a: jax.Array, b: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
        squares = jnp.sum((a[..., :, None, :] - b[..., None, :, :]) ** 2, axis=-1)
        return jnp.einsum("...n,...nm,...m->...", p, similarity(squares), q, precision="highest")

    return mean(x, x, p, p) - 2 * mean(x, y, p, q) + mean(y, y, q, q)


def _weights(name: str, particles: jax.Array, probs: ArrayLike | None) -> jax.Array:
    """The weights of the particles, `[..., N]`."""
    n = particles.shape[-2]
    if probs is None:
        return jnp.full(n, 1 / n, particles.dtype)
    if jnp.shape(probs)[-1:] != (n,):
        raise ValueError(f"{name}_probs has shape {jnp.shape(probs)}, expected [..., {n}]: one weight a particle")
    return jnp.asarray(probs, particles.dtype)


def _root(squares: jax.Array) -> jax.Array:
    """The square root, with slope 0 at 0."""
    none = squares <= jnp.finfo(squares.dtype).tiny
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, squares)))
