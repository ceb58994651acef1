"""Gaussian process regression: a law of functions given N noisy values, with settings learned from the evidence.

    f ~ GP(0, amplitude exp(-1/2 sum_d ((x_d - x'_d) / length_d)^2)),    y_i = f(x_i) + N(0, noise s_i)

With K the kernel of the inputs and A = K + noise diag(s), the law of f at a point x is normal,

    mean = k(x)^T A^-1 y,    variance = amplitude - k(x)^T A^-1 k(x),
    log evidence = -1/2 (y^T A^-1 y + log det A + N log 2 pi).

The prior mean is 0: subtract another one from the targets, and add it to the predicted mean.

Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", eqs. (2.22)-(2.24), (2.30), (5.9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.bayes import kernels, minimise, regression, triangular
from jaxrl.types import check_positive


class Settings(NamedTuple):
    """What the prior and the noise are made of, each above 0."""

    amplitude: ArrayLike  # [], prior variance of f, units of the target squared
    length: ArrayLike  # [] or [D], distance over which f changes, units of the inputs
    noise: ArrayLike  # [], variance, units of the target squared


class Posterior(NamedTuple):
    """A Gaussian process that has seen N targets; `predict` reads it."""

    settings: Settings
    inputs: jax.Array  # [N, D]
    factor: jax.Array  # [N, N], lower, A = factor factor^T
    weights: jax.Array  # [N], A^-1 y
    log_evidence: jax.Array  # [], nats


class Prediction(NamedTuple):
    """The law of f at m points; a new target there has the variance of the noise, too."""

    mean: jax.Array  # [m]
    variance: jax.Array  # [m]


class Mixture(NamedTuple):
    """Gaussian processes of G settings, and how likely each of them is; `jax.vmap(predict)` reads the components."""

    components: Posterior  # leaves [G, ...]
    weights: jax.Array  # [G], their sum is 1


class Fit(NamedTuple):
    """The best settings that were found, and how likely they are."""

    settings: Settings
    objective: jax.Array  # [], log evidence plus log prior, nats
    objectives: jax.Array  # [restarts], of all restarts; -inf: its settings are lost to rounding


def kernel(settings: Settings, a: jax.Array, b: jax.Array) -> jax.Array:
    """The prior covariance of f at points a `[m, D]` and b `[n, D]`, `[m, n]`."""
    return jnp.asarray(settings.amplitude) * kernels.gram(lambda x, y: kernels.rbf(x, y, settings.length), a, b)


@regression.full_precision
def condition(inputs: ArrayLike, targets: ArrayLike, settings: Settings, *, noise_scale: ArrayLike = 1.0) -> Posterior:
    """The Gaussian process given N targets.

    - `inputs`: `[N, D]`. `targets`: `[N]`.
    - `noise_scale`: s, `[]` or `[N]`, the variance of the noise of each target in units of `settings.noise`; 0 for one
      that is known.

    Raises ValueError for shapes that do not fit and, outside a trace, where rounding would leave less than two digits
    of the factor (in a trace the result is NaN): inputs that are close, and next to no noise.

    >>> settings = Settings(amplitude=1.0, length=1.0, noise=0.01)
    >>> posterior = condition(jnp.array([[0.0], [1.0]]), jnp.array([0.0, 1.0]), settings)
    >>> print(predict(posterior, jnp.array([[0.5], [9.0]])).mean.round(2))
    [0.55 0.  ]
    """
    inputs, targets, scale = _data(inputs, targets, noise_scale)
    settings = _settings(settings, inputs)
    factor = triangular.cholesky(_covariance(settings, inputs, scale))
    regression.refuse_lost(factor, "the covariance of the targets is singular", "raise noise or noise_scale")
    whitened = triangular.solve(factor, targets[:, None])
    weights = triangular.solve_transposed(factor, whitened)[:, 0]
    return Posterior(settings, inputs, factor, weights, _log_normal(factor, whitened))


@regression.full_precision
def predict(posterior: Posterior, points: ArrayLike) -> Prediction:
    """The law of f at each of m points `[m, D]`."""
    points = jnp.asarray(points, posterior.inputs.dtype)
    if points.ndim != 2 or points.shape[1] != posterior.inputs.shape[1]:
        raise ValueError(f"points has shape {points.shape}, expected [m, {posterior.inputs.shape[1]}] as the inputs")
    cross = kernel(posterior.settings, posterior.inputs, points)
    half = triangular.solve(posterior.factor, cross)
    variance = jnp.maximum(posterior.settings.amplitude - jnp.sum(half**2, axis=0), 0)
    return Prediction(posterior.weights @ cross, variance)


@regression.full_precision
def log_evidence(
    inputs: ArrayLike, targets: ArrayLike, settings: Settings, *, noise_scale: ArrayLike = 1.0
) -> jax.Array:
    """The log-probability of the targets, `[]`, nats; -inf, of slope 0, where the covariance is lost to rounding.

    Arguments and errors as in `condition`; differentiable once in targets and settings.
    """
    inputs, targets, scale = _data(inputs, targets, noise_scale)
    return _log_density(_covariance(_settings(settings, inputs), inputs, scale), targets)


def fit(
    inputs: ArrayLike,
    targets: ArrayLike,
    key: jax.Array,
    *,
    noise_scale: ArrayLike = 1.0,
    log_prior: Callable[[Settings], jax.Array] | None = None,
    restarts: int = 8,
    steps: int = 60,
) -> Fit:
    """The settings under which the targets are most likely, with a length for each input (type II maximum likelihood).

        max over settings of log evidence + log prior,    by L-BFGS in the logarithms, from several starts at once

    The starts are log-uniform around the spread of inputs and targets. The maximum takes no account of what the data
    leave open: with few targets, give a prior, or average over settings with `mixture`.

    - `log_prior`: the log-density of settings, nats, of their logarithms if it is to be a law; None: flat.
    - `restarts`, `steps`: starts, and iterations of each at most.
    - the others, and what is raised: as in `condition`.
    """
    check_positive("fit", restarts=restarts, steps=steps)
    inputs, targets, scale = _data(inputs, targets, noise_scale)

    def loss(log: Settings) -> jax.Array:
        settings = jax.tree.map(jnp.exp, log)
        prior = 0.0 if log_prior is None else log_prior(settings)
        value = log_evidence(inputs, targets, settings, noise_scale=scale) + prior
        return jnp.where(jnp.isfinite(value), -value / len(targets), jnp.finfo(targets.dtype).max ** 0.5)

    logs, losses = minimise.lbfgs(loss, _starts(inputs, targets, restarts, key), steps)
    lost = ~(losses < jnp.finfo(targets.dtype).max ** 0.5)
    objectives = jnp.where(lost, -jnp.inf, -losses * len(targets))
    best = jnp.argmax(objectives)
    return Fit(jax.tree.map(lambda leaf: jnp.exp(leaf[best]), logs), objectives[best], objectives)


@regression.full_precision
def mixture(
    inputs: ArrayLike,
    targets: ArrayLike,
    settings: Settings,
    *,
    noise_scale: ArrayLike = 1.0,
    log_prior: ArrayLike = 0.0,
) -> Mixture:
    """The law given N targets under each of G settings, weighted by how likely it makes the targets.

        weight_g = prior_g p(targets | settings_g) / sum

    On a grid of settings that is their posterior, up to the distance of two, which says what the best ones leave open.

    - `settings`: with a leading axis, `[G]`, and `[G]` or `[G, D]` of the length.
    - `log_prior`: `[]` or `[G]`, nats. The others as in `condition`. What rounding would lose has weight 0.
    """
    settings = Settings(*(jnp.asarray(x, jnp.result_type(inputs, targets, float)) for x in settings))
    components = jax.vmap(lambda s: condition(inputs, targets, s, noise_scale=noise_scale))(settings)
    score = components.log_evidence + log_prior
    return Mixture(components, jax.nn.softmax(jnp.where(jnp.isnan(score), -jnp.inf, score)))


def _starts(inputs: jax.Array, targets: jax.Array, restarts: int, key: jax.Array) -> Settings:
    """Logarithms of settings, `[restarts]` and, for the length, `[restarts, D]`."""
    size = inputs.shape[1]
    draws = jax.random.uniform(key, (3, restarts, size), inputs.dtype)
    least = jnp.finfo(inputs.dtype).tiny ** 0.25  # of targets that are all 0
    power = jnp.log(jnp.maximum(jnp.mean(targets**2), least))
    spread = jnp.log(jnp.maximum(jnp.std(inputs, axis=0), least))
    amplitude = power + 3 * draws[0, :, 0] - 1
    return Settings(amplitude, spread + 4 * draws[1] - 2, amplitude - 1 - 6 * draws[2, :, 0])


def _covariance(settings: Settings, inputs: jax.Array, scale: jax.Array) -> jax.Array:
    return kernel(settings, inputs, inputs) + jnp.diag(settings.noise * scale)


def _log_normal(factor: jax.Array, whitened: jax.Array) -> jax.Array:
    """Log N(y; 0, L L^T), for L^-1 y."""
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -(jnp.sum(whitened**2) + log_det + len(factor) * jnp.log(2 * jnp.pi)) / 2


@jax.custom_jvp
def _log_density(covariance: jax.Array, targets: jax.Array) -> jax.Array:
    factor = triangular.cholesky(covariance)
    density = _log_normal(factor, triangular.solve(factor, targets[:, None]))
    return jnp.where(jnp.isnan(density), -jnp.inf, density)


@_log_density.defjvp
def _log_density_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Eq. (5.9): the slope in A is (w w^T - A^-1) / 2 with w = A^-1 y, that in y is -w."""
    covariance, targets = primals
    factor = triangular.cholesky(covariance)
    half = triangular.solve(factor, jnp.concatenate([targets[:, None], jnp.eye(len(factor), dtype=factor.dtype)], 1))
    whitened, root = half[:, :1], half[:, 1:]
    weights = (root.T @ whitened)[:, 0]
    density = _log_normal(factor, whitened)
    lost = jnp.isnan(density)
    slope = jnp.where(lost, 0, (jnp.outer(weights, weights) - root.T @ root) / 2)
    tangent = jnp.sum(slope * tangents[0]) - jnp.where(lost, 0, weights) @ tangents[1]
    return jnp.where(lost, -jnp.inf, density), tangent


def _data(inputs: ArrayLike, targets: ArrayLike, scale: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs, targets and the scale of the noise `[N]` in their common float type; ValueError if they are wrong."""
    dtype = jnp.result_type(inputs, targets, float)
    inputs, targets, scale = (jnp.asarray(x, dtype) for x in (inputs, targets, scale))
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(f"inputs has shape {inputs.shape}, expected [N, D]; inputs[:, None] of one number each")
    if targets.shape != inputs.shape[:1]:
        raise ValueError(f"targets has shape {targets.shape}, expected {inputs.shape[:1]}, one for each row of inputs")
    if scale.shape not in ((), targets.shape):
        raise ValueError(f"noise_scale has shape {scale.shape}, expected () or {targets.shape}, one for each target")
    regression.refuse_value("noise_scale", scale, lambda x: x >= 0, "at least 0")
    return inputs, targets, jnp.broadcast_to(scale, targets.shape)


def _settings(settings: Settings, inputs: jax.Array) -> Settings:
    """The settings in the type of the inputs; ValueError if they are wrong."""
    size = inputs.shape[1]
    settings = Settings(*(jnp.asarray(x, inputs.dtype) for x in settings))
    shapes: dict[str, tuple] = {"amplitude": ((),), "length": ((), (size,)), "noise": ((),)}
    for name, value in settings._asdict().items():
        if value.shape not in shapes[name]:
            raise ValueError(f"settings.{name} has shape {value.shape}, expected {' or '.join(map(str, shapes[name]))}")
        regression.refuse_value(f"settings.{name}", value, lambda x: x > 0, "above 0")
    return settings
