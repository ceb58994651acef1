"""Laws of the return as quantiles: what QR-DQN, IQN and TQC learn, and what they regress on.

A law is `[..., N]` quantiles `theta_i`, one at each fraction `tau_i` of the mass; at the midpoints, each stands for
1/N of it. Nothing stops a gradient, and everything but a shape may be traced (the threshold, the number kept):

    targets = pool(target_quantiles)                                     # [B, K N], ascending
    targets = rewards[:, None] + discounts[:, None] * targets            # r + discount z
    weights = truncated_weights(K * N, keep)                             # TQC drops the largest
    loss = mean_huber_loss(quantiles, midpoints(N), jax.lax.stop_gradient(targets), target_weights=weights)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.types import check_positive


def midpoints(n: int) -> jax.Array:
    """The fractions `tau_i = (2 i + 1) / (2 n)` of the quantiles nearest to a law in Wasserstein-1, `[n]`.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", Lemma 2.

    >>> midpoints(4)
    Array([0.125, 0.375, 0.625, 0.875], dtype=float32)
    """
    check_positive("midpoints", n=n)
    return (jnp.arange(n, dtype=jnp.result_type(float)) + 0.5) / n


def huber_loss(
    quantiles: ArrayLike,
    taus: ArrayLike,
    targets: ArrayLike,
    kappa: ArrayLike = 1.0,
    target_weights: ArrayLike | None = None,
) -> jax.Array:
    """The quantile Huber loss, summed over quantiles and averaged over targets as in QR-DQN, `[...]`.

        sum_i sum_j w_j |tau_i - 1{u_ij < 0}| L_kappa(u_ij) / kappa,    u_ij = target_j - theta_i,
        L_kappa(u) = u^2 / 2  where |u| <= kappa,  kappa (|u| - kappa / 2)  elsewhere.

    `kappa = 0` is the pinball loss, of which quantiles are the minimisers; above 0 the minimisers lie within kappa of
    them. The targets need no order, and neither do the quantiles. `mean_huber_loss` is 1/N of it.

    - `quantiles`: theta, `[..., N]`.
    - `taus`: fractions in (0, 1), `[N]` or `[..., N]`.
    - `targets`: `[..., M]`.
    - `kappa`: in the units of the return, 0 or above.
    - `target_weights`: w, `[M]` or `[..., M]`, of sum 1; by default 1/M each.

    ValueError if the last axes of `quantiles` and `taus`, or of `targets` and `target_weights`, differ.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", eqs. (9)-(10) and
    Alg. 1; the division by kappa is that of Dabney et al. 2018, "Implicit Quantile Networks", eq. (3).

    >>> huber_loss(jnp.array([0.0]), jnp.array([0.25]), jnp.array([2.0, -2.0]), kappa=0.0)
    Array(1., dtype=float32)
    """
    dtype = jnp.result_type(quantiles, targets, float)
    quantiles, taus, targets, kappa = (jnp.asarray(x, dtype) for x in (quantiles, taus, targets, kappa))
    _check_last("quantiles", quantiles, "taus", taus)
    if target_weights is None:
        weights = jnp.full(targets.shape[-1:], 1 / targets.shape[-1], dtype)
    else:
        weights = jnp.asarray(target_weights, dtype)
        _check_last("targets", targets, "target_weights", weights)
    errors = targets[..., None, :] - quantiles[..., :, None]  # [..., N, M]
    sides = jnp.abs(taus[..., :, None] - (errors < 0))
    return jnp.sum(weights[..., None, :] * sides * _huber(errors, kappa), axis=(-2, -1))


def mean_huber_loss(
    quantiles: ArrayLike,
    taus: ArrayLike,
    targets: ArrayLike,
    kappa: ArrayLike = 1.0,
    target_weights: ArrayLike | None = None,
) -> jax.Array:
    """The quantile Huber loss averaged over quantiles too, as in TQC, `[...]`: `huber_loss` divided by N.

    The two reductions are both in use; between them, a learning rate changes its meaning by the factor N.

    Source: Kuznetsov et al. 2020, "Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional
    Quantile Critics".
    """
    return huber_loss(quantiles, taus, targets, kappa, target_weights) / jnp.shape(quantiles)[-1]


def pool(quantiles: ArrayLike) -> jax.Array:
    """The quantiles of K critics as one law in ascending order, `[..., K N]`, from `[K, ..., N]`.

    What TQC truncates: the largest of the pool, not of each critic.
    """
    quantiles = jnp.moveaxis(jnp.asarray(quantiles), 0, -2)
    return jnp.sort(quantiles.reshape(*quantiles.shape[:-2], -1), axis=-1)


def truncated_weights(total: int, keep: ArrayLike) -> jax.Array:
    """Weights that keep the smallest of `total` targets in ascending order, `[total]`, of sum 1.

        w_k = clip(keep - k, 0, 1) / keep,    k = 0, ..., total - 1,

    so 1/keep for each that is kept. `keep` may be traced, is `total` at most (more is all of them), and need not be
    whole: the weighted mean of the targets is their CVaR at level keep/total. TQC, which drops d targets for each of K
    critics of N quantiles, keeps `K (N - d)` of K N.

    ValueError if `keep` is a number and not above 0; a traced one gives NaN.

    Source: Kuznetsov et al. 2020, "Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional
    Quantile Critics".

    >>> truncated_weights(5, 2)
    Array([0.5, 0.5, 0. , 0. , 0. ], dtype=float32)
    """
    check_positive("truncated_weights", total=total)
    if isinstance(keep, (int, float)) and not keep > 0:
        raise ValueError(f"keep must be above 0, got {keep}; to drop d of N quantiles of K critics, keep K (N - d)")
    keep = jnp.asarray(keep, jnp.result_type(keep, float))
    kept = jnp.clip(keep[..., None] - jnp.arange(total), 0, 1)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)


def project(atoms: ArrayLike, probs: ArrayLike, taus: ArrayLike) -> jax.Array:
    """The quantiles of a discrete law, `[..., N]`.

        theta_i = min {x : P(X <= x) >= tau_i}

    At the midpoints, it is the law of N equal masses nearest to it in the Wasserstein-1 distance. Differentiable in
    the atoms alone: quantiles of a discrete law jump in its probabilities.

    - `atoms`: `[..., M]`, in any order.
    - `probs`: `[..., M]`.
    - `taus`: fractions in (0, 1), `[N]`.

    ValueError if the last axes of `atoms` and `probs` differ.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", Lemma 2.

    >>> project(jnp.array([3.0, 1.0, 2.0]), jnp.array([0.5, 0.25, 0.25]), midpoints(4))
    Array([1., 2., 3., 3.], dtype=float32)
    """
    dtype = jnp.result_type(atoms, probs, float)
    atoms, probs, taus = (jnp.asarray(x, dtype) for x in (atoms, probs, taus))
    _check_last("atoms", atoms, "probs", probs)
    atoms, probs = jnp.broadcast_arrays(atoms, probs)
    order = jnp.argsort(atoms, axis=-1)
    cumulative = jnp.cumsum(jnp.take_along_axis(probs, order, axis=-1), axis=-1)
    below = cumulative[..., None, :] < taus[:, None] * cumulative[..., -1:, None]  # [..., N, M]
    return jnp.take_along_axis(atoms, jnp.take_along_axis(order, jnp.sum(below, axis=-1), axis=-1), axis=-1)


def cosine_features(taus: ArrayLike, n: int = 64) -> jax.Array:
    """The features `cos(pi k tau)`, k = 0, ..., n - 1, of fractions `[...]`, `[..., n]`.

    IQN feeds them to a linear layer and a ReLU; the first is a constant 1.

    Source: Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning", eq. (4).
    """
    taus = jnp.asarray(taus, jnp.result_type(taus, float))
    return jnp.cos(jnp.pi * jnp.arange(n, dtype=taus.dtype) * taus[..., None])


def crossing_share(quantiles: ArrayLike) -> jax.Array:
    """The share of neighbours in the wrong order, `[...]`, of quantiles `[..., N]` at ascending fractions, N >= 2.

    Crossing quantiles are no law. Measures of risk sort their atoms, and so do not see it: watch it.

    >>> crossing_share(jnp.array([0.0, 2.0, 1.0, 3.0, 4.0]))
    Array(0.25, dtype=float32)
    """
    return jnp.mean(jnp.diff(jnp.asarray(quantiles), axis=-1) < 0, axis=-1)


def crossing_depth(quantiles: ArrayLike) -> jax.Array:
    """The largest fall from a quantile to the next, 0 if none falls, `[...]`, of quantiles `[..., N]`, N >= 2.

    In the units of the return; differentiable, so it can be penalised.
    """
    return jnp.max(jnp.maximum(-jnp.diff(jnp.asarray(quantiles), axis=-1), 0), axis=-1)


def _huber(errors: jax.Array, kappa: jax.Array) -> jax.Array:
    """`L_kappa(u) / kappa`, and |u| at kappa = 0."""
    size = jnp.abs(errors)
    inside = errors**2 / (2 * jnp.where(kappa > 0, kappa, 1))
    return jnp.where(size < kappa, inside, size - kappa / 2)


def _check_last(name: str, array: jax.Array, other_name: str, other: jax.Array) -> None:
    """Raise ValueError unless both have a last axis, of one size."""
    if array.ndim == 0 or array.shape[-1:] != other.shape[-1:]:
        raise ValueError(
            f"{name} has shape {array.shape} and {other_name} {other.shape}, expected the same last axis; "
            f"one number of {other_name} belongs to each of {name}"
        )
