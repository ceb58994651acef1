"""Bayesian quadrature of the policy gradient: its posterior law given the returns of M trajectories.

The gradient of the expected return is an integral over trajectories xi with return R and score u = grad log Pr(xi),

    grad eta(theta) = int R(xi) u(xi) Pr(xi; theta) d xi,    G = E[u u^T],

and a Gaussian process over its integrand makes it Gaussian. Given y_i = R(xi_i) + noise of variance S_i,

    kernel="quadratic"    Model 1: each R(xi) u_j(xi) ~ GP(0, amplitude ((1 + u^T G^-1 u')^2 + constant_variance)),
    kernel="fisher"       Model 2: R(xi) ~ GP(0, amplitude (u^T G^-1 u' + constant_variance)).

Model 2 is Bayesian linear regression of returns on scores: R = constant + w^T u, w ~ N(0, amplitude G^-1), where w is
the natural gradient. A constant adds nothing to the gradient, so `constant_variance` is a baseline that is learned;
without it, centre the returns.

The mean depends on the ratio of `noise_variance` and `amplitude`. The covariance never looks at the returns: it means
something if both fit them, as `evidence_grid` chooses them, and if the model holds.

Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", section 4.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.bayes import regression, triangular
from jaxrl.bayes.matrix_free import MatrixFreePosterior, gradient_posterior_matrix_free

__all__ = [
    "RATIOS",
    "Evidence",
    "GradientPosterior",
    "Kernel",
    "MatrixFreePosterior",
    "evidence_grid",
    "gradient_posterior",
    "gradient_posterior_matrix_free",
]

Kernel = Literal["fisher", "quadratic"]
RATIOS = tuple(10.0 ** (k / 2) for k in range(-8, 9))  # of noise_variance to amplitude


class GradientPosterior(NamedTuple):
    """The posterior law of the policy gradient for n parameters, and of the natural one, `G^-1` times it."""

    mean: jax.Array  # [n], units of the return per unit of the parameter
    covariance: jax.Array  # [n, n]
    natural_mean: jax.Array  # [n]
    natural_covariance: jax.Array  # [n, n]
    log_evidence: jax.Array  # [], log p(returns | scores), nats


class Evidence(NamedTuple):
    """The settings under which the returns are most likely, and how likely they are at each ratio."""

    noise_variance: jax.Array  # [], or [M] where ratios are [K, M]
    amplitude: jax.Array  # []
    log_evidence: jax.Array  # [K], at the best amplitude of each ratio, nats


@regression.full_precision
def gradient_posterior(
    scores: ArrayLike,
    returns: ArrayLike,
    fisher: ArrayLike,
    noise_variance: ArrayLike,
    *,
    kernel: Kernel = "fisher",
    constant_variance: ArrayLike = 0.0,
    amplitude: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
) -> GradientPosterior:
    """The posterior law of the policy gradient given M returns.

    Model 2, with K_ij = amplitude (u_i^T G^-1 u_j + constant_variance):

        mean = amplitude U^T (K + S)^-1 y,    covariance = amplitude G - amplitude^2 U^T (K + S)^-1 U

    Model 1, with K_ij = amplitude ((1 + u_i^T G^-1 u_j)^2 + constant_variance), b_i = amplitude (1 + u_i^T G^-1 u_i +
    constant_variance), b_0 = amplitude (1 + n + constant_variance), w = (K + S)^-1 b:

        mean = sum_i w_i y_i u_i,    covariance = (b_0 - b^T w) I

    The mean of Model 1 changes with the coordinates of theta as a gradient does, its covariance does not, since the
    paper's prior and noise are the same for each component. If they are proportional to G, the mean stays and the
    covariance has G in the place of I.

    Solves for the features, n in Model 2 and (n + 1)(n + 2)/2 in Model 1, or for the M samples where they are fewer, by
    Cholesky factors without jitter. The result is NaN where rounding would leave less than two digits of a factor, as
    in float32 for a Fisher of condition number 1e5.

    - `scores`: u_i, `[M, n]`, from `jaxrl.bayes.scores.trajectories`.
    - `returns`: y_i, `[M]`.
    - `fisher`: G, `[n, n]`, positive definite; not that of the same scores: see `jaxrl.bayes.fisher`.
    - `noise_variance`: S, `[]` or `[M]`, above 0, units of the return squared; of Model 1, of (R u_j) squared.
    - `constant_variance`: the prior variance of a constant, in units of `amplitude`.
    - `amplitude`: the prior variance along one whitened score, units as `noise_variance`.
    - `mask`: `[M]`, None: no padding. Padded trajectories count for nothing, whatever they hold.

    Raises ValueError for shapes that do not fit and an unknown kernel and, outside a trace, for a variance out of its
    range and what rounding would lose.

    >>> scores, returns = jnp.array([[1.0], [-1.0], [2.0]]), jnp.array([3.0, -3.0, 6.0])
    >>> posterior = gradient_posterior(scores, returns, jnp.eye(1), noise_variance=2.0)
    >>> print(posterior.mean.round(3), posterior.covariance.round(3))
    [2.25] [[0.25]]
    """
    data = _data(scores, returns, fisher, noise_variance, constant_variance, amplitude, mask)
    unit = _unit_posterior(data, kernel)
    regression.refuse_lost(unit.log_det, "the system of the posterior is singular", "raise noise_variance / amplitude")
    scale = data.amplitude
    log_evidence = -(unit.misfit / scale + unit.log_det + unit.observed * jnp.log(2 * jnp.pi * scale)) / 2
    return GradientPosterior(
        unit.mean, scale * unit.covariance, unit.natural_mean, scale * unit.natural_covariance, log_evidence
    )


@regression.full_precision
def evidence_grid(
    scores: ArrayLike,
    returns: ArrayLike,
    fisher: ArrayLike,
    noise_ratios: ArrayLike | tuple[float, ...] = RATIOS,
    *,
    kernel: Kernel = "fisher",
    constant_variance: ArrayLike = 0.0,
    mask: ArrayLike | None = None,
) -> Evidence:
    """The noise variance and the amplitude under which the returns are most likely.

        max over ratio, amplitude of log N(y; 0, amplitude (K + ratio I)),    amplitude = y^T (K + ratio I)^-1 y / M

    for K of amplitude 1; for Model 1 over all components. With few trajectories the maximum is overconfident: the
    guide has its coverage.

    - `noise_ratios`: noise variance / amplitude, `[K]`, or `[K, M]`.
    - the others, and what is raised: as in `gradient_posterior`. A ratio that is lost to rounding is never the best.
    """
    ratios = jnp.asarray(noise_ratios)

    def at(ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
        unit = _unit_posterior(_data(scores, returns, fisher, ratio, constant_variance, 1.0, mask), kernel)
        least = jnp.finfo(unit.misfit.dtype).tiny ** 0.5  # of returns that are all 0
        amplitude = jnp.maximum(unit.misfit / unit.observed, least)
        return amplitude, -(unit.observed * (1 + jnp.log(2 * jnp.pi * amplitude)) + unit.log_det) / 2

    amplitudes, log_evidence = jax.vmap(at)(ratios)
    best = jnp.argmax(jnp.where(jnp.isnan(log_evidence), -jnp.inf, log_evidence))
    amplitude = amplitudes[best]
    return Evidence(amplitude * ratios[best].astype(amplitude.dtype), amplitude, log_evidence)


# ------------------------------------------------------------------------------------- both models


class _Data(NamedTuple):
    """What is checked: in one dtype, 0 at padding, with the variances in units of the amplitude."""

    whitened: jax.Array  # [M, n], z = L^-1 u, of covariance I
    returns: jax.Array  # [M]
    root: jax.Array  # [n, n], L, lower, G = L L^T
    noise: jax.Array  # [M]
    constant: jax.Array  # []
    amplitude: jax.Array  # []
    mask: jax.Array  # [M] bool


class _Unit(NamedTuple):
    """A posterior at amplitude 1, and what the evidence is made of."""

    mean: jax.Array
    covariance: jax.Array
    natural_mean: jax.Array
    natural_covariance: jax.Array
    misfit: jax.Array  # y^T (K + S)^-1 y
    log_det: jax.Array  # log det (K + S)
    observed: jax.Array  # [], how many numbers


def _unit_posterior(data: _Data, kernel: Kernel) -> _Unit:
    if kernel not in ("fisher", "quadratic"):
        raise ValueError(f"kernel is {kernel!r}, expected 'fisher' (Model 2) or 'quadratic' (Model 1)")
    return _model_2(data) if kernel == "fisher" else _model_1(data)


def _model_2(data: _Data) -> _Unit:
    """Regression of returns on whitened scores; the constant is noise that all returns share."""
    whitener = regression.whitener(data.noise, data.constant, data.mask)
    features, targets = whitener.times(data.whitened), whitener.times(data.returns)[:, None]
    count, n = features.shape
    inverse_root = triangular.solve(data.root, jnp.eye(n, dtype=data.root.dtype))
    directions = jnp.concatenate([data.root.T, inverse_root], axis=1)  # to L w, the gradient, and L^-T w, the natural
    if n <= count:
        law = regression.feature_space(features, targets, directions)
    else:
        gram, cross, prior = features @ features.T, features @ directions, directions.T @ directions
        law = regression.sample_space(gram, cross, prior, targets)
    mean, covariance = law.mean[:, 0], law.covariance
    return _Unit(
        mean=mean[:n],
        covariance=covariance[:n, :n],
        natural_mean=mean[n:],
        natural_covariance=covariance[n:, n:],
        misfit=law.misfit,
        log_det=law.log_det + whitener.log_det,
        observed=jnp.sum(data.mask),
    )


def _model_1(data: _Data) -> _Unit:
    """Regression of each R u_j on products of whitened scores; the gradient is the mean of what is fitted.

    phi(z) = (sqrt(1 + constant_variance), sqrt 2 z_i, z_i^2, sqrt 2 z_i z_j),    E phi = (sqrt(1 + ...), 0, 1, 0)
    """
    whiten, _, log_det = regression.whitener(data.noise, 0.0, data.mask)
    z, one = data.whitened, 1 + data.constant
    targets = whiten(data.returns[:, None] * (z @ data.root.T))
    count, n = z.shape
    if (n + 1) * (n + 2) // 2 <= count:
        i, j = np.triu_indices(n)
        pairs = np.where(i == j, 1, np.sqrt(2)).astype(z.dtype) * z[:, i] * z[:, j]
        level = jnp.sqrt(one)
        features = jnp.concatenate([jnp.full_like(z[:, :1], level), jnp.sqrt(2.0).astype(z.dtype) * z, pairs], axis=1)
        mean_features = jnp.concatenate([level[None], jnp.zeros(n, z.dtype), jnp.asarray(i == j, z.dtype)])
        law = regression.feature_space(whiten(features), targets, mean_features[:, None])
    else:
        gram, cross = (1 + z @ z.T) ** 2 + data.constant, one + jnp.sum(z**2, axis=1)
        law = regression.sample_space(whiten(whiten(gram).T), whiten(cross)[:, None], (one + n)[None, None], targets)
    mean, variance = law.mean[0], law.covariance[0, 0]
    identity = jnp.eye(n, dtype=z.dtype)
    inverse_root = triangular.solve(data.root, identity)
    inverse = inverse_root.T @ inverse_root  # the covariance has its square
    return _Unit(
        mean=mean,
        covariance=variance * identity,
        natural_mean=inverse_root.T @ (inverse_root @ mean),
        natural_covariance=variance * inverse @ inverse,
        misfit=law.misfit,
        log_det=n * (law.log_det + log_det),
        observed=n * jnp.sum(data.mask),
    )


# ------------------------------------------------------------------------------------------ checks


def _data(
    scores: ArrayLike,
    returns: ArrayLike,
    fisher: ArrayLike,
    noise_variance: ArrayLike,
    constant_variance: ArrayLike,
    amplitude: ArrayLike,
    mask: ArrayLike | None,
) -> _Data:
    """The arguments in their common float dtype, padding set to 0, scores whitened; ValueError if they are wrong."""
    dtype = jnp.result_type(scores, returns, fisher, float)
    scores, fisher = jnp.asarray(scores, dtype), jnp.asarray(fisher, dtype)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores has shape {scores.shape}, expected [M, n]: a score vector for each trajectory")
    count, n = scores.shape
    if fisher.shape != (n, n):
        raise ValueError(f"fisher has shape {fisher.shape}, expected {(n, n)}, since scores has shape {scores.shape}")
    returns = jnp.asarray(returns, dtype)
    if returns.shape != (count,):
        raise ValueError(f"returns has shape {returns.shape}, expected {(count,)}, one for each row of scores")
    returns, noise, constant, amplitude, mask = regression.variances(
        returns, noise_variance, constant_variance, amplitude, mask
    )
    root = triangular.cholesky((fisher + fisher.T) / 2)
    regression.refuse_lost(root, "fisher is not positive definite", "add damping with jaxrl.bayes.fisher.damped")
    whitened = triangular.solve(root, jnp.where(mask[:, None], scores, 0).T).T
    return _Data(whitened, returns, root, noise, constant, amplitude, mask)
