"""Bayesian actor-critic: the posterior law of the policy gradient given a Gaussian process critic.

The gradient is an integral over states and actions with the discounted occupancy nu, Z = int nu its mass,

    grad eta(theta) = int nu(x) mu(a | x; theta) u(x, a) Q(x, a) dx da,    u(x, a) = grad_theta log mu(a | x; theta),

and the critic is Q ~ GP(0, amplitude (k_x(x, x') + u^T G^-1 u')), with the Fisher information of the same occupancy,

    G = int nu(x) mu(a | x) u u^T = E sum_t discount^t F(x_t).

The state kernel k_x integrates to zero against grad mu, since the probabilities of actions sum to one: it is a baseline
that is learned, and adds nothing to the gradient. What is left is linear in Q and known in closed form. The rewards of
episodes condition Q as in `jaxrl.bayes.gptd`, a row of scores for each step.

Nothing here is normalised. With a Fisher information of mass 1 the gradient comes out shorter by Z, and with one of
visits without discount^t biased, however many episodes there are.

Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", section 7; the
amplitude, the evidence and the bootstrap of episodes that were cut off are additions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import kernels, regression, triangular
from jaxrl.bayes.gptd.batch import regress
from jaxrl.bayes.gptd.episodes import Noise, rows
from jaxrl.bayes.quadrature import RATIOS, Evidence, GradientPosterior

__all__ = ["Evidence", "GradientPosterior", "evidence_grid", "gradient_posterior"]


@regression.full_precision
def gradient_posterior(
    scores: ArrayLike,
    states: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    fisher: ArrayLike,
    discount: ArrayLike,
    noise_variance: ArrayLike,
    *,
    noise: Noise = "mc",
    amplitude: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
) -> GradientPosterior:
    """The posterior law of the policy gradient given the rewards of M episodes of at most T steps.

        mean = amplitude U^T alpha,    covariance = amplitude G - amplitude^2 U^T C U,

    with alpha, C of `gptd.posterior` for the sum of the two kernels. As a regression on features,

        Q = phi(x)^T v + z^T w,    z = L^-1 u,    G = L L^T,    v, w ~ N(0, amplitude I),    gradient = L w,

    which is solved in O(T M (m + n)^2) operations or, with fewer steps than features, for the steps. Where an episode
    was cut off its critic is V = E_a Q, which is phi(x)^T v alone.

    - `scores`: u of each step, `[T, M, n]`, from `jaxrl.bayes.scores.steps`.
    - `states`: phi, the features of k_x, `[T + 1, M, m]`: those of the points of `gptd.points`, in units of the
      amplitude. `jaxrl.bayes.kernels` has some for any kernel. m may be 0, and should hold a constant.
    - `rewards`: `[T, M]`; `terminated`: `[M]`; `mask`: `[T, M]`, None: no padding. As in `gptd.posterior`.
    - `fisher`: G, `[n, n]`, positive definite, as `fisher.state_analytic(..., discount=discount)` gives it; not from
      the scores of the same steps.
    - `discount`: per step, in [0, 1].
    - `noise_variance`: above 0, units of the return squared, as `noise` says; shapes as in `gptd.posterior`.
    - `amplitude`: the prior variance of Q along one whitened score, units as `noise_variance`.

    The result is NaN where rounding would leave less than two digits. Raises ValueError for shapes that do not fit and,
    outside a trace, for a variance that is not above 0, a mask with holes and what rounding would lose.

    >>> one, end = jnp.ones((1, 3)), jnp.ones(3, bool)  # a bandit: episodes of one step
    >>> scores, rewards = jnp.array([[[1.0], [-1.0], [2.0]]]), jnp.array([[3.0, -3.0, 6.0]])
    >>> law = gradient_posterior(scores, jnp.zeros((2, 3, 0)), rewards, end, jnp.eye(1), 0.9, noise_variance=2.0)
    >>> print(law.mean.round(3), law.covariance.round(3))
    [2.25] [[0.25]]
    """
    amplitude = jnp.asarray(amplitude, jnp.result_type(scores, states, rewards, fisher, float))
    regression.refuse_value("amplitude", amplitude, lambda x: x > 0, "above 0")
    ratio = jnp.asarray(noise_variance, amplitude.dtype) / amplitude
    unit = _unit_posterior(scores, states, rewards, terminated, fisher, discount, ratio, noise, mask)
    n = unit.mean.size // 2
    log_evidence = -(unit.misfit / amplitude + unit.log_det + unit.observed * jnp.log(2 * jnp.pi * amplitude)) / 2
    return GradientPosterior(
        mean=unit.mean[:n],
        covariance=amplitude * unit.covariance[:n, :n],
        natural_mean=unit.mean[n:],
        natural_covariance=amplitude * unit.covariance[n:, n:],
        log_evidence=log_evidence,
    )


@regression.full_precision
def evidence_grid(
    scores: ArrayLike,
    states: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    fisher: ArrayLike,
    discount: ArrayLike,
    noise_ratios: ArrayLike | tuple[float, ...] = RATIOS,
    *,
    noise: Noise = "mc",
    mask: ArrayLike | None = None,
) -> Evidence:
    """The noise variance and the amplitude under which the rewards are most likely.

        max over ratio, amplitude of log N(r; 0, amplitude A(ratio)),    amplitude = r^T A(ratio)^-1 r / count,

    for A of amplitude 1. The returns of an episode share most of their noise, which the model takes for independent: as
    a measure of certainty both come out too small.

    - `noise_ratios`: noise variance / amplitude, `[K]`.
    - the others, and what is raised: as in `gradient_posterior`. A ratio that is lost to rounding is never the best.
    """
    ratios = jnp.asarray(noise_ratios, jnp.result_type(scores, states, rewards, fisher, float))

    def at(ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
        unit = _unit_posterior(scores, states, rewards, terminated, fisher, discount, ratio, noise, mask)
        amplitude = jnp.maximum(unit.misfit / unit.observed, jnp.finfo(unit.misfit.dtype).tiny ** 0.5)
        return amplitude, -(unit.observed * (1 + jnp.log(2 * jnp.pi * amplitude)) + unit.log_det) / 2

    amplitudes, log_evidence = jax.vmap(at)(ratios)
    best = jnp.argmax(jnp.where(jnp.isnan(log_evidence), -jnp.inf, log_evidence))
    return Evidence(amplitudes[best] * ratios[best], amplitudes[best], log_evidence)


class _Unit(NamedTuple):
    """The posterior at amplitude 1, and what the evidence is made of."""

    mean: jax.Array  # [2 n], the gradient and the natural one
    covariance: jax.Array  # [2 n, 2 n]
    misfit: jax.Array  # r^T A^-1 r
    log_det: jax.Array  # log det A
    observed: jax.Array  # how many rewards


def _unit_posterior(
    scores: ArrayLike,
    states: ArrayLike,
    rewards: ArrayLike,
    terminated: ArrayLike,
    fisher: ArrayLike,
    discount: ArrayLike,
    noise_variance: jax.Array,
    noise: Noise,
    mask: ArrayLike | None,
) -> _Unit:
    scores, states, fisher = _checked(scores, states, jnp.shape(rewards), fisher, noise_variance.dtype)
    data = rows(rewards, terminated, discount, noise_variance, noise, mask, noise_variance.dtype)
    if mask is not None:
        scores = jnp.where(jnp.asarray(mask).astype(bool)[..., None], scores, 0)
    root = kernels.fisher_root(fisher)
    n, m = len(root), states.shape[-1]
    whitened = triangular.solve(root, scores.reshape(-1, n).T).T.reshape(scores.shape)
    whitened = jnp.concatenate([whitened, jnp.zeros_like(whitened[:1])])  # E_a u = 0, at the last points
    features = data.times(jnp.concatenate([states, whitened], axis=-1))
    inverse_root = triangular.solve(root, jnp.eye(n, dtype=root.dtype))
    directions = jnp.concatenate([root.T, inverse_root], axis=1)  # to L w, the gradient, and L^-T w, the natural
    law = regress(features, data.targets, jnp.pad(directions, ((m, 0), (0, 0))))
    return _Unit(law.mean[:, 0], law.covariance, law.misfit, law.log_det + data.log_det, data.observed)


def _checked(
    scores: ArrayLike, states: ArrayLike, shape: tuple[int, ...], fisher: ArrayLike, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arguments in one type; ValueError if their shapes do not fit rewards of this shape."""
    scores, states, fisher = (jnp.asarray(x, dtype) for x in (scores, states, fisher))
    if scores.ndim != 3 or scores.shape[:2] != shape or 0 in scores.shape:
        raise ValueError(f"scores has shape {scores.shape}, expected [T, M, n] for rewards of shape {shape}")
    length, count, n = scores.shape
    if states.ndim != 3 or states.shape[:2] != (length + 1, count):
        raise ValueError(
            f"states has shape {states.shape}, expected ({length + 1}, {count}, m): a row more than the rewards, that "
            f"of the points where episodes were left"
        )
    if fisher.shape != (n, n):
        raise ValueError(f"fisher has shape {fisher.shape}, expected {(n, n)}, since scores has shape {scores.shape}")
    return scores, states, fisher
