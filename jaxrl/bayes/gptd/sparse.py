"""Online Gaussian process temporal differences with a dictionary of few points.

A point that the dictionary D predicts well enough is written as a combination of it (approximate linear dependence):

    a = K_D^-1 k_D(x),    delta = k(x, x) - k_D(x)^T a,    x joins the dictionary if delta > threshold.

Everything else sees the kernel of the combinations, A K_D A^T for A with a row a for each point: the posterior is that
of the whole batch with this kernel, at O(m^2) operations a step for m places in the dictionary. With K_D = L L^T it is
kept as the law of the weights of the features phi(x) = L^-1 k_D(x), to which a new point adds one and changes none.

Source: Engel, Mannor and Meir 2005, "Reinforcement Learning with Gaussian Processes", section 3, for the kernel; the
recursion for the weights is that of its table 1 in other coordinates.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import kernels
from jaxrl.bayes.regression import full_precision
from jaxrl.types import PyTree, check_positive

ROUNDING = 100.0  # a point is new if delta is above this many units of rounding of k(x, x)


class Sparse(NamedTuple):
    """The law of a value function and where its last episode stands, for a dictionary of at most m points."""

    points: PyTree  # leaves [m, ...], the dictionary, 0 behind the last
    size: jax.Array  # [] int32, how many there are
    refused: jax.Array  # [] int32, how often a point was new and the dictionary full: it was projected instead
    root: jax.Array  # L^-1 [m, m], rows behind the last point are 0
    mean: jax.Array  # E w [m], V(x) = phi(x)^T w
    covariance: jax.Array  # Cov w [m, m]
    features: jax.Array  # phi of the last point [m]
    gain: jax.Array  # c [m], what the last error said of w
    error: jax.Array  # d [], the last temporal difference error
    precision: jax.Array  # 1 / s [], of that error; 0 where an episode begins


def init(point: PyTree, capacity: int) -> Sparse:
    """An empty dictionary with `capacity` places for points like this one: the prior.

    Raises ValueError for a capacity below 1.
    """
    check_positive("init", capacity=capacity)
    dtype = jnp.result_type(float, *jax.tree.leaves(point))
    zero, none = jnp.zeros((), dtype), jnp.zeros(capacity, dtype)
    return Sparse(
        points=jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x)), point),
        size=jnp.int32(0),
        refused=jnp.int32(0),
        root=jnp.zeros((capacity, capacity), dtype),
        mean=none,
        covariance=jnp.eye(capacity, dtype=dtype),
        features=none,
        gain=none,
        error=zero,
        precision=zero,
    )


@full_precision
def begin(law: Sparse, kernel: kernels.Kernel, point: PyTree, threshold: ArrayLike) -> Sparse:
    """The first point of an episode. Arguments as in `update`."""
    law = _enter(law, kernel, point, jnp.bool_(True), threshold)
    zero = jnp.zeros_like(law.error)
    return law._replace(gain=jnp.zeros_like(law.gain), error=zero, precision=zero)


@full_precision
def step(
    law: Sparse,
    kernel: kernels.Kernel,
    point: PyTree,
    reward: ArrayLike,
    terminated: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    threshold: ArrayLike,
) -> Sparse:
    """A reward, and the point that follows, of which nothing is seen if the episode `terminated`.

        g = discount noise_variance / s_last,    h = phi_last - discount phi,    d = g d_last + r - h^T E w,
        c = g c_last + Cov(w) h,
        s = noise_variance (1 + discount^2 - discount g) + h^T Cov(w) h + 2 g c_last^T h,
        E w += c d / s,    Cov w -= c c^T / s,

    with 0 in the place of discount in h and s at a terminal step. Arguments as in `update`, unbatched.
    """
    dtype = law.mean.dtype
    reward, discount, variance = (jnp.asarray(x, dtype) for x in (reward, discount, noise_variance))
    over = jnp.asarray(terminated).astype(bool)
    before = law.features
    law = _enter(law, kernel, point, ~over, threshold)
    follows = jnp.where(over, 0, discount)
    correlation = discount * variance * law.precision
    h = before - follows * law.features
    spread = law.covariance @ h
    gain = correlation * law.gain + spread
    error = correlation * law.error + reward - h @ law.mean
    noise = variance * (1 + follows**2 - discount * correlation)
    precision = 1 / (noise + h @ spread + 2 * correlation * (law.gain @ h))
    return law._replace(
        mean=law.mean + gain * (error * precision),
        covariance=law.covariance - jnp.outer(gain, gain) * precision,
        gain=gain,
        error=error,
        precision=precision,
    )


@full_precision
def update(
    law: Sparse,
    kernel: kernels.Kernel,
    points: PyTree,
    rewards: ArrayLike,
    terminated: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    *,
    threshold: ArrayLike,
    mask: ArrayLike | None = None,
) -> Sparse:
    """The law after the rewards of M more episodes of at most T steps, one after the other, with the noise "mc".

    - `kernel`: of two points; the same for all updates of a law.
    - `points`: leaves `[T + 1, M, ...]`, as from `gptd.points`.
    - `rewards`: `[T, M]`; `terminated`: `[M]`; `mask`: `[T, M]`, None: no padding. As in `gptd.posterior`.
    - `discount`: per step, in [0, 1]; `noise_variance`: `[]`, above 0.
    - `threshold`: of approximate linear dependence, in units of the kernel, at least 0. At 0 only rounding keeps a
      point out. When the dictionary is full all points are projected, and `refused` counts those that were new.

    Raises ValueError for shapes that do not fit.
    """
    rewards = jnp.asarray(rewards, law.mean.dtype)
    real = jnp.ones(rewards.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    shape = {jnp.shape(leaf)[:2] for leaf in jax.tree.leaves(points)}
    if rewards.ndim != 2 or real.shape != rewards.shape or shape != {(len(rewards) + 1, rewards.shape[1])}:
        raise ValueError(
            f"points have leading axes {sorted(shape)}, rewards has shape {rewards.shape} and mask {real.shape}, "
            f"expected [T + 1, M], [T, M] and [T, M]"
        )
    if jnp.shape(terminated) != rewards.shape[1:]:
        raise ValueError(
            f"terminated has shape {jnp.shape(terminated)}, expected {rewards.shape[1:]}, for each episode"
        )
    last = real & ~jnp.concatenate([real[1:], jnp.zeros_like(real[:1])])
    ends = last & jnp.asarray(terminated).astype(bool)

    def one_step(law: Sparse, data: tuple[PyTree, ...]) -> tuple[Sparse, None]:
        point, reward, end, real = data
        after = step(law, kernel, point, reward, end, discount, noise_variance, threshold)
        return jax.tree.map(lambda new, old: jnp.where(real, new, old), after, law), None

    def one_episode(law: Sparse, data: tuple[PyTree, ...]) -> tuple[Sparse, None]:
        points, *steps = data
        first, rest = jax.tree.map(lambda x: x[0], points), jax.tree.map(lambda x: x[1:], points)
        started = begin(law, kernel, first, threshold)
        law = jax.tree.map(lambda new, old: jnp.where(steps[2][0], new, old), started, law)
        return jax.lax.scan(one_step, law, (rest, *steps))

    by_episode = jax.tree.map(lambda x: jnp.swapaxes(jnp.asarray(x), 0, 1), (points, rewards, ends, real))
    return jax.lax.scan(one_episode, law, by_episode)[0]


@full_precision
def value(law: Sparse, kernel: kernels.Kernel, points: PyTree) -> tuple[jax.Array, jax.Array]:
    """The values at points with leaves `[Q, ...]`, mean `[Q]` and covariance `[Q, Q]`.

    What the dictionary does not tell of a point is left uncertain, as the prior has it.
    """
    phi = _features(law, kernels.gram(kernel, law.points, points)).T
    explained = jnp.eye(len(law.mean), dtype=phi.dtype) - law.covariance
    return phi @ law.mean, kernels.gram(kernel, points, points) - phi @ explained @ phi.T


@full_precision
def coefficients(law: Sparse) -> tuple[jax.Array, jax.Array]:
    """Coefficients alpha `[m]` and C `[m, m]` of the dictionary: `E V(x) = k_D(x)^T alpha`, as in `gptd.Posterior`."""
    explained = jnp.eye(len(law.mean), dtype=law.mean.dtype) - law.covariance
    return law.root.T @ law.mean, law.root.T @ explained @ law.root


def _features(law: Sparse, cross: jax.Array) -> jax.Array:
    """Features L^-1 k_D `[m, ...]` from the kernel with the places of the dictionary, `[m, ...]`."""
    used = (jnp.arange(len(law.mean)) < law.size).reshape(-1, *(1,) * (cross.ndim - 1))
    return law.root @ jnp.where(used, cross, 0).astype(law.root.dtype)


def _enter(law: Sparse, kernel: kernels.Kernel, point: PyTree, wanted: jax.Array, threshold: ArrayLike) -> Sparse:
    """The features of a point, which joins the dictionary if it is wanted, new, and there is a place."""
    phi = _features(law, jax.vmap(lambda other: kernel(other, point))(law.points))
    prior = jnp.asarray(kernel(point, point), phi.dtype)
    delta = prior - phi @ phi
    floor = ROUNDING * jnp.finfo(phi.dtype).eps * prior
    new = wanted & (delta > jnp.maximum(jnp.asarray(threshold, phi.dtype), floor))
    joins = new & (law.size < len(phi))
    place = (jnp.arange(len(phi)) == law.size) & joins
    length = jnp.sqrt(jnp.where(new, delta, 1))
    row = (jnp.where(place, 1, 0) - law.root.T @ phi) / length

    def insert(kept: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(place.reshape(-1, *(1,) * jnp.ndim(x)), x, kept)

    return law._replace(
        points=jax.tree.map(insert, law.points, point),
        size=law.size + joins,
        refused=law.refused + (new & ~joins),
        root=jnp.where(place[:, None], row, law.root),
        features=jnp.where(wanted, phi + jnp.where(place, length, 0), 0),
    )
