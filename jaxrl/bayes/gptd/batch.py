"""The posterior law of a value function given whole batches of episodes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import regression
from jaxrl.bayes.gptd.episodes import Noise, Rows, rows


class Posterior(NamedTuple):
    """The law of a value function given rewards at P = (T + 1) M points, in terms of its kernel: see `value`."""

    coefficients: jax.Array  # alpha [P], E V(x) = k(x)^T alpha
    reduction: jax.Array  # C [P, P], Cov(V(x), V(x')) = k(x, x') - k(x)^T C k(x')
    log_evidence: jax.Array  # [], log p(rewards), nats


class Weights(NamedTuple):
    """The law of a value function `V(x) = phi(x)^T w` given rewards."""

    mean: jax.Array  # E w [m]
    covariance: jax.Array  # Cov w [m, m]
    log_evidence: jax.Array  # [], log p(rewards), nats


@regression.full_precision
def posterior(
    gram: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    *,
    noise: Noise = "mc",
    mask: ArrayLike | None = None,
) -> Posterior:
    """The posterior law of V ~ GP(0, k) given the rewards of M episodes of at most T steps.

        r = H V + N,    alpha = H^T A^-1 r,    C = H^T A^-1 H,    A = H K H^T + Cov(N),

    where the row of H for step t is +1 at x_t and -discount at x_{t+1}, whose entry is missing if the episode
    terminated there. The noise "mc" is that of discounted returns, Cov(N) = H diag(noise_variance) H^T: with it a batch
    of terminated episodes is Gaussian process regression on their returns, and is solved as that. The noise "white" is
    that of each reward alone, noise_variance I: for dynamics and policies without chance, biased for others.

    - `gram`: K, `[P, P]` for the P = (T + 1) M points of `points`, time before episodes, as `reshape(P, ...)` has them.
      Points behind the last one are padding: they count for nothing, whatever they hold. So is the last point x_L of an
      episode that terminated.
    - `rewards`: `[T, M]`.
    - `terminated`: `[M]`, whether each episode ended for good. Others were cut off, and go on from their last point.
    - `discount`: per step, in [0, 1].
    - `noise_variance`: above 0, units of the reward squared: `[]`, or that of each point, `[T + 1, M]`, for "mc", that
      of each step, `[T, M]`, for "white".
    - `mask`: `[T, M]`, None: no padding. The steps of an episode come first.

    The result is NaN where rounding would leave less than two digits. Raises ValueError for shapes that do not fit and,
    outside a trace, for a variance that is not above 0, a mask with holes and what rounding would lose.

    Source: Engel, Mannor and Meir 2005, "Reinforcement Learning with Gaussian Processes", eqs. (2.5)-(2.8) ("mc");
    Engel, Mannor and Meir 2003, "Bayes Meets Bellman", eqs. (9)-(13) ("white").

    >>> law = posterior(jnp.eye(3), jnp.array([[1.0], [1.0]]), jnp.array([True]), discount=0.5, noise_variance=1.0)
    >>> print(value(law, jnp.eye(3), jnp.eye(3))[0].round(2))  # half of the returns 1.5 and 1
    [0.75 0.5  0.  ]
    """
    data, gram = _rows(gram, rewards, terminated, discount, noise_variance, noise, mask, "gram", square=True)
    shape = (jnp.shape(rewards)[0] + 1, jnp.shape(rewards)[1])
    size = gram.shape[0]
    half = data.times(gram.reshape(*shape, size))
    between = data.times(half.T.reshape(*shape, -1))
    differences = data.times(jnp.eye(size, dtype=gram.dtype).reshape(*shape, size))
    none = jnp.zeros((size, size), gram.dtype)
    law = regression.sample_space((between + between.T) / 2, differences, none, data.targets[:, None])
    _refuse_lost(law)
    return Posterior(law.mean[:, 0], -law.covariance, _log_evidence(law, data))


def value(posterior: Posterior, cross: ArrayLike, prior: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The values at Q points, mean `[Q]` and covariance `[Q, Q]`.

    - `cross`: their kernel with the points of the posterior, `[Q, P]`; the columns of padding count for nothing.
    - `prior`: their kernel with each other, `[Q, Q]`.
    """
    cross = jnp.asarray(cross, posterior.coefficients.dtype)
    with jax.default_matmul_precision("highest"):
        return cross @ posterior.coefficients, jnp.asarray(prior) - cross @ posterior.reduction @ cross.T


@regression.full_precision
def weight_posterior(
    features: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    *,
    noise: Noise = "mc",
    mask: ArrayLike | None = None,
) -> Weights:
    """The posterior law of w for `V(x) = phi(x)^T w`, w ~ N(0, I), given the rewards of M episodes.

    The same law as `posterior` with the kernel `phi(x)^T phi(x')`, in O(T M m^2) operations: the noise is whitened in
    closed form, a direction for each episode that was cut off.

    - `features`: phi, `[T + 1, M, m]`, of the points of the episodes.
    - the others, and what is raised: as in `posterior`.
    """
    data, features = _rows(features, rewards, terminated, discount, noise_variance, noise, mask, "features")
    whitened, size = data.times(features), features.shape[-1]
    identity = jnp.eye(size, dtype=features.dtype)
    law = regress(whitened, data.targets, identity)
    return Weights(law.mean[:, 0], law.covariance, _log_evidence(law, data))


def regress(features: jax.Array, targets: jax.Array, directions: jax.Array) -> regression.Projection:
    """Regression in the smaller of two spaces: features `[P, m]`, targets `[P]`, directions `[m, q]`."""
    if features.shape[1] <= features.shape[0]:
        law = regression.feature_space(features, targets[:, None], directions)
    else:
        gram, cross, prior = features @ features.T, features @ directions, directions.T @ directions
        law = regression.sample_space(gram, cross, prior, targets[:, None])
    _refuse_lost(law)
    return law


def _refuse_lost(law: regression.Projection) -> None:
    regression.refuse_lost(law.log_det, "the system of the posterior is singular", "raise noise_variance")


def _log_evidence(law: regression.Projection, data: Rows) -> jax.Array:
    return -(law.misfit + law.log_det + data.log_det + data.observed * jnp.log(2 * jnp.pi)) / 2


def _rows(
    x: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    noise: Noise,
    mask: ArrayLike | None,
    name: str,
    square: bool = False,
) -> tuple[Rows, jax.Array]:
    """The regression, and the features or the Gram matrix in its type; ValueError if their shape does not fit."""
    x = jnp.asarray(x, jnp.result_type(x, rewards, float))
    data = rows(rewards, terminated, discount, noise_variance, noise, mask, x.dtype)
    length, count = jnp.shape(rewards)
    if square and x.shape != (((length + 1) * count),) * 2:
        raise ValueError(
            f"{name} has shape {x.shape}, expected {((length + 1) * count,) * 2}: T + 1 = {length + 1} points of each "
            f"of M = {count} episodes, the last of them where the episode was left"
        )
    if not square and (x.ndim != 3 or x.shape[:2] != (length + 1, count)):
        raise ValueError(
            f"{name} has shape {x.shape}, expected ({length + 1}, {count}, m): a row more than the rewards, that of "
            f"the points where episodes were left"
        )
    return data, x
