"""The rewards of episodes as a regression on the values of their points.

An episode of L steps has the points x_0, ..., x_L and the rewards

    r_t = V(x_t) - discount V(x_{t+1}) + noise,    without V(x_L) if it terminated there.

With the noise "mc", `n_t - discount n_{t+1}` for independent n_t, sums of rewards have simple noise instead:

    R_t = sum_{t <= k < L} discount^(k - t) r_k = V(x_t) + n_t - discount^(L - t) (V(x_L) + n_L).

So a terminated episode is plain regression on its discounted returns, and one that was cut off differs by one direction
of noise, which all of its returns share. The map from rewards to returns has determinant 1: the evidence is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl import returns
from jaxrl.bayes.regression import refuse_value
from jaxrl.types import PyTree

Noise = Literal["mc", "white"]


class Rows(NamedTuple):
    """What is observed of values, whitened: `targets = times(values) + N(0, I)`. Rows of padding are 0."""

    times: Callable[[jax.Array], jax.Array]  # x [T + 1, M, ...] -> [T M, ...], linear
    targets: jax.Array  # [T M]
    log_det: jax.Array  # [], log det of the covariance of the noise
    observed: jax.Array  # [], how many rewards


def rows(
    rewards: ArrayLike,
    terminated: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    noise: Noise,
    mask: ArrayLike | None,
    dtype: jnp.dtype,
) -> Rows:
    """The regression that episodes are. Arguments and errors as in `posterior`."""
    rewards, terminated, variance, mask = _checked(rewards, terminated, noise_variance, noise, mask, dtype)
    discount = jnp.asarray(discount, dtype)
    length = jnp.sum(mask, axis=0)
    goes_on = ~terminated & (length > 0)
    used = jnp.concatenate([mask, jnp.zeros_like(mask[:1])])
    used = used.at[length, jnp.arange(len(length))].max(goes_on)  # what padding holds never enters
    scale = jnp.where(mask, 1 / jnp.sqrt(variance[: len(mask)]), 0)
    log_det = jnp.sum(jnp.where(mask, jnp.log(variance[: len(mask)]), 0))
    if noise == "white":
        follows = jnp.where(used[1:] & mask, discount, 0)

        def differences(x: jax.Array) -> jax.Array:
            return _like(scale, x) * (x[:-1] - _like(follows, x) * x[1:])

        targets = scale * rewards
    else:
        steps = length - jnp.arange(len(mask))[:, None]
        left = jnp.where(mask & goes_on, discount ** jnp.maximum(steps, 0), 0)  # the weight of V(x_L) in R_t
        growth, project = _share(scale * left, variance[length, jnp.arange(len(length))])
        log_det = log_det + jnp.sum(growth)
        zeros, never = jnp.zeros_like(rewards), jnp.zeros_like(mask)
        targets = project(scale * returns.lambda_returns(rewards, zeros, never, never, discount, 1.0))

        def differences(x: jax.Array) -> jax.Array:
            last = x[length, jnp.arange(len(length))]
            return project(_like(scale, x) * (x[:-1] - _like(left, x) * last))

    def times(x: jax.Array) -> jax.Array:
        whitened = differences(jnp.where(_like(used, x), x, 0))
        return whitened.reshape(-1, *x.shape[2:])

    return Rows(times, targets.ravel(), log_det, jnp.sum(mask))


def points(observations: PyTree, next_observations: PyTree, mask: ArrayLike) -> PyTree:
    """The points of episodes, `[T + 1, M, ...]`: the states of their steps, then where the last of them led.

    - `observations`, `next_observations`: leaves `[T, M, ...]`, those of a `Transition` of whole episodes.
    - `mask`: `[T, M]`, the steps of the episode that each column begins with.

    >>> now, then = jnp.array([[1.0], [2.0], [7.0]]), jnp.array([[2.0], [3.0], [8.0]])
    >>> print(points(now, then, jnp.array([[1], [1], [0]])).T)  # two steps, from 1 to 2 to 3
    [[1. 2. 3. 8.]]
    """
    mask = jnp.asarray(mask).astype(bool)
    length = jnp.sum(mask, axis=0)
    column = jnp.arange(len(length))

    def join(now: jax.Array, then: jax.Array) -> jax.Array:
        all_points = jnp.concatenate([now, then[-1:]])
        last = then[jnp.maximum(length - 1, 0), column]
        return all_points.at[length, column].set(last)

    return jax.tree.map(join, observations, next_observations)


def _share(direction: jax.Array, variance: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The whitener of `I + variance d d^T` for each column d of `[T, M]`, and the log det of it, `[M]`."""
    size = jnp.sum(direction**2, axis=0)
    unit = direction / jnp.sqrt(jnp.where(size > 0, size, 1))
    growth = jnp.log1p(variance * size)
    shrink = -jnp.expm1(-growth / 2)

    def project(x: jax.Array) -> jax.Array:
        along = jnp.sum(_like(unit, x) * x, axis=0)
        return x - _like(shrink * unit, x) * along

    return growth, project


def _like(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Weights `[T, M]` with the axes that x has behind its first two."""
    return weights.reshape(weights.shape + (1,) * (x.ndim - 2))


def _checked(
    rewards: ArrayLike,
    terminated: ArrayLike,
    noise_variance: ArrayLike,
    noise: Noise,
    mask: ArrayLike | None,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Rewards `[T, M]`, 0 at padding, `terminated` `[M]`, the variance `[T + 1, M]`, 1 at padding, and the mask."""
    rewards = jnp.asarray(rewards, dtype)
    if rewards.ndim != 2 or 0 in rewards.shape:
        raise ValueError(f"rewards has shape {rewards.shape}, expected [T, M]: time, then episodes")
    length, count = rewards.shape
    if noise not in ("mc", "white"):
        raise ValueError(f"noise is {noise!r}, expected 'mc' (that of discounted returns) or 'white' (of rewards)")
    terminated = jnp.asarray(terminated).astype(bool)
    if terminated.shape != (count,):
        raise ValueError(
            f"terminated has shape {terminated.shape}, expected {(count,)}: whether each episode ended for good, and "
            f"was not cut off"
        )
    real = jnp.ones(rewards.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    if real.shape != rewards.shape:
        raise ValueError(f"mask has shape {real.shape}, expected {rewards.shape}, that of rewards")
    if not isinstance(real, jax.core.Tracer) and np.any(np.diff(np.asarray(real, int), axis=0) > 0):
        raise ValueError("mask has a real step after a padded one, expected the steps of an episode first")
    variance = jnp.asarray(noise_variance, dtype)
    shape = (length + 1, count) if noise == "mc" else (length, count)
    if variance.shape not in ((), shape):
        raise ValueError(f"noise_variance has shape {variance.shape}, expected () or {shape} for noise={noise!r}")
    variance = jnp.broadcast_to(variance, shape)
    if noise == "mc":
        real_points = jnp.concatenate([real[:1], real])  # a row more than there are steps: the last point has noise too
        variance = jnp.where(real_points, variance, 1)
    else:
        variance = jnp.where(real, variance, 1)
    refuse_value("noise_variance", variance, lambda x: x > 0, "above 0; rewards without noise need a small one")
    return jnp.where(real, rewards, 0), terminated, variance, real
