"""Kalman temporal differences: a law of the parameters of a critic that each batch of transitions updates.

The state-space model of a critic V(s; theta) sees rewards through differences of values,

    theta_t = theta_{t-1} + N(0, Q),    r_t = h_t(theta_t) + N(0, sigma^2),
    h_t(theta) = V(s_t; theta) - discount (1 - terminated_t) V(s_{t+1}; theta).

- `kalman_td_step` is the exact filter where V is linear in theta. Without process noise Q it is the posterior of
  Gaussian process temporal differences with white noise, in the space of the features.
- `lktd_step` draws from the posterior of any differentiable h, by Langevin dynamics whose correction is a Kalman gain:
  one vector-Jacobian product a step, no Jacobian, no inverse.

White noise is right where transitions are not random, or where h is the value and r a return that was collected: else
r has noise that neighbours share, and the value is biased.

Source: Geist and Pietquin 2010, "Kalman Temporal Differences", section 3; Shih and Liang 2024, "Fast Value Tracking for
Deep Reinforcement Learning", section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from jaxrl.bayes import regression, triangular
from jaxrl.types import PyTree, check_between

# ------------------------------------------------------------------------------------ linear critics


class KalmanState(NamedTuple):
    """The law of the weights of a linear critic, N(mean, root root^T): positive semidefinite whatever is rounded."""

    mean: jax.Array  # [n]
    root: jax.Array  # [n, n]

    @property
    def covariance(self) -> jax.Array:
        """Of the weights, `[n, n]`."""
        return self.root @ self.root.T


class Innovation(NamedTuple):
    """What a reward was, less what was expected, and the variance of that under the model."""

    error: jax.Array  # []
    variance: jax.Array  # []


def init(num_features: int, prior_variance: ArrayLike) -> KalmanState:
    """The prior N(0, prior_variance I) of n weights; `prior_variance` is `[]` or `[n]`, above 0."""
    variance = jnp.asarray(prior_variance, jnp.result_type(prior_variance, float))
    if variance.shape not in ((), (num_features,)):
        raise ValueError(f"prior_variance has shape {variance.shape}, expected () or ({num_features},)")
    regression.refuse_value("prior_variance", variance, lambda x: x > 0, "above 0")
    std = jnp.broadcast_to(jnp.sqrt(variance), (num_features,))
    return KalmanState(jnp.zeros_like(std), jnp.diag(std))


@regression.full_precision
def kalman_td_step(
    state: KalmanState,
    features: ArrayLike,
    next_features: ArrayLike,
    reward: ArrayLike,
    terminated: ArrayLike,
    *,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    process_noise: ArrayLike | None = None,
) -> tuple[KalmanState, Innovation]:
    """The law of the weights after one more transition.

        P <- P + Q,    h = phi - discount (1 - terminated) phi',    s = h^T P h + sigma^2,    K = P h / s
        mean <- mean + K (r - h^T mean),    P <- P - K h^T P

    computed for a root S of P = S S^T (Potter's form), as S - K (S^T h)^T / (1 + sigma / sqrt(s)). Use it in
    `jax.lax.scan` over transitions; an episode that is cut off goes on in its true successor.

    - `features`, `next_features`: phi, phi', `[n]`. `reward`: `[]`. `terminated`: `[]`, bool.
    - `noise_variance`: sigma^2, above 0, units of the reward squared.
    - `process_noise`: Q, `[]` (times I), `[n]` (a diagonal) or `[n, n]` (positive definite): how far the weights wander
      between two transitions, for a policy that changes. None: not at all, which takes O(n^2), not O(n^3) operations.

    Raises ValueError for shapes that do not fit.

    Source: Geist and Pietquin 2010, algorithm 1 for linear values; Bierman 1977, "Factorization Methods for Discrete
    Sequential Estimation", for Potter's form.

    >>> state = init(1, prior_variance=1.0)
    >>> state, innovation = kalman_td_step(state, [1.0], [1.0], 3.0, True, discount=0.9, noise_variance=1.0)
    >>> print(f"{state.mean[0]:.2f}, {state.covariance[0, 0]:.2f}")
    1.50, 0.50
    """
    mean, root = state
    size = (len(mean),)
    phi, following = (jnp.asarray(x, mean.dtype) for x in (features, next_features))
    for name, x in (("features", phi), ("next_features", following)):
        if x.shape != size:
            raise ValueError(f"{name} has shape {x.shape}, expected {size}, one for each weight; scan over transitions")
    noise = jnp.asarray(noise_variance, mean.dtype)
    regression.refuse_value("noise_variance", noise, lambda x: x > 0, "above 0")
    if process_noise is not None:
        root = _root_of_sum(root, _root_of_noise(jnp.asarray(process_noise, mean.dtype), size))
    h = phi - jnp.asarray(discount, mean.dtype) * (1 - jnp.asarray(terminated, mean.dtype)) * following
    seen = root.T @ h
    variance = seen @ seen + noise
    gain = root @ seen / variance
    error = jnp.asarray(reward, mean.dtype) - h @ mean
    root = root - jnp.outer(gain, seen) / (1 + jnp.sqrt(noise / variance))
    return KalmanState(mean + gain * error, root), Innovation(error, variance)


def _root_of_noise(noise: jax.Array, size: tuple[int]) -> jax.Array:
    if noise.shape == size * 2:
        root = triangular.cholesky(noise)
        regression.refuse_lost(root, "process_noise is not positive definite", "give a diagonal [n]")
        return root
    if noise.shape not in ((), size):
        raise ValueError(f"process_noise has shape {noise.shape}, expected (), {size} or {size * 2}")
    regression.refuse_value("process_noise", noise, lambda x: x >= 0, "at least 0")
    return jnp.diag(jnp.broadcast_to(jnp.sqrt(noise), size))


def _root_of_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """A lower root of a a^T + b b^T, by the Gram-Schmidt process on the rows of (a, b)."""

    def row(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, root = carry
        length = jnp.sqrt(jnp.sum(rows[i] ** 2))
        direction = jnp.where(length > 0, rows[i] / jnp.where(length > 0, length, 1), 0)
        column = jnp.where(jnp.arange(len(rows)) < i, 0, rows @ direction)
        return rows - jnp.outer(column, direction), root.at[:, i].set(column)

    return jax.lax.fori_loop(0, len(a), row, (jnp.concatenate([a, b], axis=1), jnp.zeros_like(a)))[1]


def value(state: KalmanState, features: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the value phi^T theta, for features `[..., n]`, each `[...]`."""
    phi = jnp.asarray(features, state.mean.dtype)
    return phi @ state.mean, jnp.sum((phi @ state.root) ** 2, axis=-1)


# -------------------------------------------------------------------------------------- any critic


class LangevinState(NamedTuple):
    """A draw of the parameters, and of what the rewards of one batch were before their noise."""

    params: PyTree
    latent: jax.Array  # [B], xi


def lktd_init(
    params: PyTree,
    predict: Callable[[PyTree], jax.Array],
    rewards: jax.Array,
    key: jax.Array,
    *,
    noise_variance: ArrayLike,
    share: ArrayLike = 0.5,
    population: ArrayLike | None = None,
) -> LangevinState:
    """Draw the latents of a new batch given the parameters and the rewards, arguments as in `lktd_step`.

        xi | theta, r ~ N((1 - share) h(theta) + share r, share (1 - share) sigma^2 B / N)

    The paper resets them to h(theta), from where they take some steps to come to this law.
    """
    _check(rewards, share)
    share, noise = jnp.asarray(share, rewards.dtype), jnp.asarray(noise_variance, rewards.dtype)
    std = jnp.sqrt(share * (1 - share) * noise * _temperature(rewards, population))
    mean = (1 - share) * predict(params) + share * rewards
    return LangevinState(params, mean + std * jax.random.normal(key, rewards.shape, rewards.dtype))


@regression.full_precision
def lktd_step(
    state: LangevinState,
    predict: Callable[[PyTree], jax.Array],
    rewards: jax.Array,
    key: jax.Array,
    *,
    step_size: ArrayLike,
    noise_variance: ArrayLike,
    prior_variance: ArrayLike,
    share: ArrayLike = 0.5,
    population: ArrayLike | None = None,
) -> LangevinState:
    """One step of Langevinised Kalman temporal differences on a batch of B out of N transitions.

    The noise is split, xi | theta ~ N(h(theta), share sigma^2), r | xi ~ N(xi, (1 - share) sigma^2). With T = B / N,
    R = 2 (1 - share) sigma^2 and the gain K = step_size / (step_size + R):

        forecast    theta <- theta + step_size/2 (-T theta / prior_variance + J^T e) + N(0, T step_size)
                    xi_f   = xi - step_size/2 e + N(0, T step_size),    e = (xi - h(theta)) / (share sigma^2)
        analysis    xi    <- xi_f + K (r - xi_f + N(0, T R))

    with J the Jacobian of h. It is stochastic gradient Langevin dynamics on the law of (theta, xi) given r, with the
    preconditioner T (I on theta, 1 - K on xi): for a linear h and B = N the mean of its stationary law is that of the
    posterior, its covariance is off by O(step_size). For many independent draws, `vmap` over states and keys.

    - `predict`: h, parameters -> `[B]`: V(s) - discount (1 - terminated) V(s'), or V(s) for collected returns.
    - `rewards`: r, `[B]`: rewards, or returns.
    - `step_size`: well below 4 share sigma^2 / (the largest eigenvalue of J^T J, and 1), or it diverges.
    - `noise_variance`: sigma^2, above 0, units of the reward squared.
    - `prior_variance`: of each parameter around 0, above 0; inf: flat.
    - `share`: of the noise that lies between h and xi, in (0, 1).
    - `population`: N, how many transitions the batch stands for; None: B.

    Raises ValueError for rewards that are no vector and a share out of its range.
    """
    _check(rewards, share)
    temperature = _temperature(rewards, population)
    keys = jax.random.split(key, 3)
    for_params = optax.tree.random_like(keys[0], state.params, jax.random.normal)
    forecast, observed = (jax.random.normal(k, rewards.shape, rewards.dtype) for k in keys[1:])
    return _langevin(
        state,
        predict,
        rewards,
        (for_params, forecast, observed),
        step_size=step_size,
        noise_variance=noise_variance,
        prior_variance=prior_variance,
        share=share,
        temperature=temperature,
    )


def _langevin(
    state: LangevinState,
    predict: Callable[[PyTree], jax.Array],
    rewards: jax.Array,
    normals: tuple[PyTree, jax.Array, jax.Array],
    *,
    step_size: ArrayLike,
    noise_variance: ArrayLike,
    prior_variance: ArrayLike,
    share: ArrayLike,
    temperature: ArrayLike,
) -> LangevinState:
    """`lktd_step` given its standard normal numbers: for the parameters, the forecast and the observation."""
    params, latent = state
    for_params, forecast, observed = normals
    predicted, pull = jax.vjp(predict, params)
    error = (latent - predicted) / (share * noise_variance)
    (slope,) = pull(error.astype(predicted.dtype))
    std = jnp.sqrt(temperature * step_size)

    def move(leaf: jax.Array, gradient: jax.Array, normal: jax.Array) -> jax.Array:
        drift = gradient - temperature * leaf / prior_variance
        return (leaf + step_size / 2 * drift + std * normal).astype(leaf.dtype)

    remaining = 2 * (1 - share) * noise_variance  # R
    gain = step_size / (step_size + remaining)
    latent = latent - step_size / 2 * error + std * forecast
    latent = latent + gain * (rewards - latent + jnp.sqrt(temperature * remaining) * observed)
    return LangevinState(jax.tree.map(move, params, slope, for_params), latent.astype(state.latent.dtype))


def interval(mean: ArrayLike, variance: ArrayLike, level: ArrayLike = 0.9) -> tuple[jax.Array, jax.Array]:
    """The interval around the mean that holds a normal number with probability `level`; each `[...]`.

    For draws of values `[K, ...]`: `interval(jnp.mean(draws, 0), jnp.var(draws, 0, ddof=1))`.
    """
    check_between("interval", 0, 1, level=level)
    mean = jnp.asarray(mean, jnp.result_type(mean, float))
    half = ndtri((1 + jnp.asarray(level, mean.dtype)) / 2) * jnp.sqrt(jnp.asarray(variance, mean.dtype))
    return mean - half, mean + half


def _temperature(rewards: jax.Array, population: ArrayLike | None) -> jax.Array:
    return len(rewards) / jnp.asarray(len(rewards) if population is None else population, rewards.dtype)


def _check(rewards: jax.Array, share: ArrayLike) -> None:
    if jnp.ndim(rewards) != 1 or not len(rewards):
        raise ValueError(f"rewards has shape {jnp.shape(rewards)}, expected [B]: flatten time and environments")
    if isinstance(share, (int, float)) and not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
