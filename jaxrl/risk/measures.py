"""Measures that do not distort: the mean, entropic risk, EVaR, expectiles, and the mean with a penalty."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.risk import laws
from jaxrl.risk.distortion import CVaR


class Measure(Protocol):
    """The sure reward that the law of a reward is worth: atoms `[..., N]`, probs `[..., N]` or None -> `[...]`."""

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array: ...


@laws.pytree
class Mean:
    """The mean, `sum_k p_k z_k`."""

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        return jnp.sum(probs * atoms, axis=-1)

    def distort_fraction(self, taus: ArrayLike) -> jax.Array:
        return jnp.asarray(taus)

    def distort_probability(self, cumulative: jax.Array) -> jax.Array:
        return cumulative


@laws.pytree
class Entropic:
    """The entropic measure, the certainty equivalent of exponential utility.

        -(1/beta) log E exp(-beta Z) = min_q E_q Z + KL(q || p) / beta    (beta > 0)

    `beta`, any real number in 1 / units of the reward, `[]` or `[...]`: above 0 averse, 0 the mean, below 0 seeking
    (and max for min). Exact for any `beta Z`: nothing overflows. Its gradient in the atoms is the optimal q.

    Source: Howard and Matheson 1972, "Risk-Sensitive Markov Decision Processes"; Foellmer and Schied 2002, "Convex
    Measures of Risk and Trading Constraints".

    >>> Entropic(100.0)(jnp.array([0.0, 50.0]), jnp.array([0.5, 0.5]))
    Array(0.00693147, dtype=float32)
    """

    beta: ArrayLike

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        y, low, size = laws.unit(atoms, probs)
        return (low + size * _entropic(y, probs, laws.setting(self.beta, atoms) * size))[..., 0]


@laws.pytree
class EVaR:
    """Entropic value at risk.

        max_{beta > 0} -(1/beta) log(E exp(-beta Z) / level) = min {E_q Z : KL(q || p) <= -log level}

    `level` in [0, 1], `[]` or `[...]`, clipped to it where traced: 1 is the mean, 0 the worst atom with mass; at most
    `CVaR(level)`. The best beta is found by bisection; its gradient in the atoms is the minimising q. At level 1 the
    slope in the level is infinite, and 0 is returned.

    Source: Ahmadi-Javid 2012, "Entropic Value-at-Risk: A New Coherent Risk Measure".
    """

    level: ArrayLike

    def __post_init__(self) -> None:
        laws.check_unit("EVaR.level", self.level, "1 is the mean")

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        y, low, size = laws.unit(atoms, probs)
        level = laws.level(self.level, atoms)
        certain = level >= 1
        budget = -jnp.log(jnp.maximum(jnp.where(certain, 0.5, level), jnp.finfo(level.dtype).tiny))
        beta = best_beta(y, probs, budget)
        worth = _entropic(y, probs, beta) - budget / beta
        mean = jnp.sum(probs * y, axis=-1, keepdims=True)
        return (low + size * jnp.where(certain, mean, worth))[..., 0]


@laws.pytree
class Expectile:
    """The expectile, where gains and losses balance: the e that solves `tau E(Z - e)^+ = (1 - tau) E(e - Z)^+`.

    `tau` in [0, 1], `[]` or `[...]`, clipped to it where traced: below 1/2 averse (then coherent), 1/2 the mean, 0 and
    1 the extreme atoms with mass. Exact: among the sorted atoms, it finds those that lie above e.

    Source: Newey and Powell 1987, "Asymmetric Least Squares Estimation and Testing"; Bellini et al. 2014, "Generalized
    Quantiles as Risk Measures".

    >>> Expectile(0.25)(jnp.array([0.0, 1.0]))
    Array(0.25, dtype=float32)
    """

    tau: ArrayLike

    def __post_init__(self) -> None:
        laws.check_unit("Expectile.tau", self.tau, "1/2 is the mean")

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs, cumulative = laws.ascending(*laws.law(atoms, probs))
        tau = laws.level(self.tau, atoms)
        gaps = jnp.diff(atoms, axis=-1)
        none = jnp.zeros_like(atoms[..., :1])
        shortfall = jnp.cumsum(cumulative[..., :-1] * gaps, axis=-1)  # E(z_k - Z)^+, from the second atom on
        excess = jnp.cumsum(((1 - cumulative[..., :-1]) * gaps)[..., ::-1], axis=-1)[..., ::-1]  # E(Z - z_k)^+
        balance = tau * jnp.append(excess, none, axis=-1) - (1 - tau) * jnp.concatenate([none, shortfall], axis=-1)
        above = jnp.where(tau > 0.5, balance <= 0, balance < 0)  # z_k > e; the border is drawn so that 0 and 1 work
        weights = probs * jnp.where(above, tau, 1 - tau)
        return jnp.sum(weights * atoms, axis=-1) / jnp.sum(weights, axis=-1)


@laws.pytree
class MeanStd:
    """The mean less `weight` standard deviations, `E Z - weight sqrt(Var Z)`.

    `weight`, any real number, `[]` or `[...]`: above 0 averse. Not monotone: more reward can be worth less. Where the
    variance is 0, the gradient is that of the mean.

    >>> MeanStd(0.5)(jnp.array([0.0, 2.0]))
    Array(0.5, dtype=float32)
    """

    weight: ArrayLike

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        mean = jnp.sum(probs * atoms, axis=-1, keepdims=True)
        variance = jnp.sum(probs * (atoms - mean) ** 2, axis=-1, keepdims=True)
        none = variance <= jnp.finfo(variance.dtype).tiny
        std = jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, variance)))
        return (mean - laws.setting(self.weight, atoms) * std)[..., 0]


@laws.pytree
class MeanCVaR:
    """A mixture of the mean and the conditional value at risk, `(1 - weight) E Z + weight CVaR_level(Z)`.

    `level` as in `CVaR`; `weight` in [0, 1] for a coherent measure; each `[]` or `[...]`.

    >>> MeanCVaR(0.5, 0.5)(jnp.array([0.0, 2.0]))
    Array(0.5, dtype=float32)
    """

    level: ArrayLike
    weight: ArrayLike

    def __post_init__(self) -> None:
        laws.check_unit("MeanCVaR.level", self.level, "the share of the mass that CVaR looks at, 1 is the mean")

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        mean, cvar = Mean()(atoms, probs), CVaR(self.level)(atoms, probs)
        return mean + jnp.asarray(self.weight, mean.dtype) * (cvar - mean)


def best_beta(y: jax.Array, probs: jax.Array, budget: jax.Array) -> jax.Array:
    """The beta that attains EVaR for atoms in [0, 1], `[..., 1]`: where the divergence of the tilted law is `budget`.

        q_beta ~ p exp(-beta y),    KL(q_beta || p) = budget,

    which increases in beta. Where even the worst atom alone is within the budget, beta is very large.
    """
    y, probs, budget = jax.lax.stop_gradient((y, probs, budget))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # of log beta
        middle = (low + high) / 2
        beta = jnp.exp(middle)
        log_mean = _log_mean_exp(-beta * y, probs)
        tilted = probs * jnp.exp(jnp.minimum(-beta * y, 60) - log_mean)
        divergence = -beta * jnp.sum(tilted * y, axis=-1, keepdims=True) - log_mean
        above = divergence > budget
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    bounds = jnp.full_like(budget * y[..., :1], -20.0), jnp.full_like(budget * y[..., :1], 34.0)
    low, high = jax.lax.fori_loop(0, 50, halve, bounds)
    return jax.lax.stop_gradient(jnp.exp((low + high) / 2))


def _entropic(y: jax.Array, probs: jax.Array, b: jax.Array) -> jax.Array:
    """`-(1/b) log E exp(-b y)` for atoms in [0, 1], `[..., 1]`; near b = 0 the series of cumulants, to third order."""
    small = jnp.abs(b) < jnp.finfo(y.dtype).eps ** 0.25
    slope = jnp.where(small, 1, b)
    top = jnp.max(jnp.where(probs >= jnp.finfo(probs.dtype).tiny, y, 0), axis=-1, keepdims=True)  # 0 if all are one
    best = jax.lax.stop_gradient(jnp.where(b < 0, top, 0))  # the atom that dominates: -b (y - best) <= 0
    exact = best - _log_mean_exp(-slope * (y - best), probs) / slope
    b = jnp.where(small, b, 0)
    mean = jnp.sum(probs * y, axis=-1, keepdims=True)
    deviation = jnp.where(probs > 0, y - mean, 0)
    second, third = (jnp.sum(probs * deviation**k, axis=-1, keepdims=True) for k in (2, 3))
    series = mean - b / 2 * second + b**2 / 6 * third
    return jnp.where(small, series, exact)


def _log_mean_exp(x: jax.Array, probs: jax.Array) -> jax.Array:
    """`log E exp(x)`, `[..., 1]`, for x whose maximum, where there is mass, is 0; accurate near 0 and far from it."""
    x = jnp.minimum(x, 60)  # x > 0 has no mass, and must not overflow
    excess = jnp.sum(probs * jnp.expm1(x), axis=-1, keepdims=True)
    mean = jnp.sum(probs * jnp.exp(x), axis=-1, keepdims=True)
    near = excess > -0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0)), jnp.log(jnp.where(near, 1, mean)))
