"""Measures that distort: CVaR, Wang, CPW, Pow.

A distortion is an increasing map of [0, 1], and it can act in two places, as two maps inverse to each other:

- on the **sampled fraction**, `tau -> distort_fraction(tau)`: how an implicit quantile network acts, which reads its
  quantiles at distorted fractions (Dabney et al. 2018, "Implicit Quantile Networks");
- on the **cumulative probability**, `P(Z <= z) -> distort_probability(P)`: what `choquet` integrates.

    measure(Z) = E_{tau ~ U(0, 1)} F^{-1}(distort_fraction(tau)) = int z d distort_probability(F(z))
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from jaxrl.risk import laws


def choquet(
    atoms: ArrayLike, probs: ArrayLike | None, distort_probability: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The mean under distorted cumulative probabilities, `[...]`.

        sum_k z_(k) [h(C_k) - h(C_{k-1})],    z_(k) ascending, C_k = P(Z <= z_(k)),

    for any increasing `h` with h(0) = 0 and h(1) = 1, called on `[..., N]`. Sorts, so time grows as N log N.

    - `atoms`: `[..., N]`, in any order.
    - `probs`: `[..., N]`, or None: 1/N each.
    - `distort_probability`: h.

    >>> choquet(jnp.array([2.0, 0.0]), jnp.array([0.5, 0.5]), jnp.square)
    Array(1.5, dtype=float32)
    """
    atoms, _, cumulative = laws.ascending(*laws.law(atoms, probs))
    distorted = jnp.where(cumulative >= 1, 1, distort_probability(cumulative))
    return jnp.sum(atoms * jnp.diff(distorted, axis=-1, prepend=0), axis=-1)


@laws.pytree
class CVaR:
    """Conditional value at risk, the mean of the worst `level` share of the mass.

        max_v v - E[(v - Z)^+] / level = min {E_q Z : q <= p / level}

    `level` in [0, 1], `[]` or `[...]`, clipped to it where traced: 1 is the mean, 0 the worst atom with mass. An atom
    on the border is split. Its gradient in the atoms is the minimising q.

    Source: Rockafellar and Uryasev 2000, "Optimization of Conditional Value-at-Risk", Theorem 1.

    >>> CVaR(0.5)(jnp.array([3.0, 1.0]))
    Array(1., dtype=float32)
    """

    level: ArrayLike

    def __post_init__(self) -> None:
        laws.check_unit("CVaR.level", self.level, "the share of the mass, 1 is the mean; for the best share, negate Z")

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        return choquet(atoms, probs, self.distort_probability)

    def distort_fraction(self, taus: ArrayLike) -> jax.Array:
        taus = jnp.asarray(taus)
        return laws.level(self.level, taus) * taus

    def distort_probability(self, cumulative: jax.Array) -> jax.Array:
        level = laws.level(self.level, cumulative)
        least = jnp.finfo(level.dtype).tiny ** 0.5  # its inverse square is finite
        level = jnp.where(level <= least, least, level)
        return jnp.where(cumulative >= level, 1, cumulative / level)


@laws.pytree
class Wang:
    """Wang's measure: fractions go through `tau -> Phi(Phi^-1(tau) + eta)`.

    `eta`, any real number, `[]` or `[...]`: below 0 averse, 0 the mean, above 0 seeking. A normal law N(m, s^2) is
    worth m + eta s.

    Source: Wang 2000, "A Class of Distortion Operators for Pricing Financial and Insurance Risks"; the sign is that
    of Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning".

    >>> Wang(0.0)(jnp.array([1.0, 3.0]))
    Array(2., dtype=float32)
    """

    eta: ArrayLike

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        return choquet(atoms, probs, self.distort_probability)

    def distort_fraction(self, taus: ArrayLike) -> jax.Array:
        return _shifted_normal(jnp.asarray(taus), self.eta, 1)

    def distort_probability(self, cumulative: jax.Array) -> jax.Array:
        return _shifted_normal(cumulative, self.eta, -1)


@laws.pytree
class Pow:
    """The power measure of IQN.

        tau -> tau^{1/(1 + eta)}  for eta >= 0 (seeking),    1 - (1 - tau)^{1/(1 - eta)}  for eta < 0 (averse).

    `eta`, any real number, `[]` or `[...]`. For a whole eta < 0 it is the mean of the smallest of 1 - eta draws.

    Source: Dabney et al. 2018, "Implicit Quantile Networks for Distributional Reinforcement Learning".

    >>> Pow(-1.0)(jnp.array([0.0, 1.0]))
    Array(0.25, dtype=float32)
    """

    eta: ArrayLike

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        return choquet(atoms, probs, self.distort_probability)

    def distort_fraction(self, taus: ArrayLike) -> jax.Array:
        taus = jnp.asarray(taus)
        eta = laws.setting(self.eta, taus)
        return _power(taus, 1 / (1 + jnp.abs(eta)), eta >= 0)

    def distort_probability(self, cumulative: jax.Array) -> jax.Array:
        eta = laws.setting(self.eta, cumulative)
        return _power(cumulative, 1 + jnp.abs(eta), eta >= 0)


@laws.pytree
class CPW:
    """The weighting of cumulative prospect theory, put on fractions as IQN does.

        tau -> tau^eta / (tau^eta + (1 - tau)^eta)^{1/eta}

    `eta` in (0.28, 1], where the map increases, `[]` or `[...]`; 0.71 is that of human subjects, 1 the mean. Prospect
    theory itself puts the map on probabilities, which is another measure:
    `choquet(atoms, probs, CPW(0.71).distort_fraction)`. Its inverse is found by
    bisection and a Newton step.

    Source: Tversky and Kahneman 1992, "Advances in Prospect Theory"; Dabney et al. 2018, "Implicit Quantile
    Networks for Distributional Reinforcement Learning".
    """

    eta: ArrayLike = 0.71

    def __call__(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        return choquet(atoms, probs, self.distort_probability)

    def distort_fraction(self, taus: ArrayLike) -> jax.Array:
        taus = jnp.asarray(taus)
        return _on_the_inside(lambda t: _prospect(t, laws.setting(self.eta, t)), taus)

    def distort_probability(self, cumulative: jax.Array) -> jax.Array:
        return _on_the_inside(lambda c: _inverse(lambda t: _prospect(t, laws.setting(self.eta, t)), c), cumulative)


def _on_the_inside(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` on (0, 1), 0 and 1 outside: its slope at the ends may be infinite."""
    outside = (x <= 0) | (x >= 1)
    return jnp.where(outside, jnp.where(x <= 0, 0, 1), function(jnp.where(outside, 0.5, x)))


def _shifted_normal(x: jax.Array, eta: ArrayLike, sign: int) -> jax.Array:
    return _on_the_inside(lambda t: ndtr(ndtri(t) + sign * laws.setting(eta, t)), x)


def _power(x: jax.Array, exponent: jax.Array, below: jax.Array) -> jax.Array:
    """`x^exponent`, or, where not `below`, the same seen from the other end: `1 - (1 - x)^exponent`."""
    return _on_the_inside(lambda t: jnp.where(below, t**exponent, -jnp.expm1(exponent * jnp.log1p(-t))), x)


def _prospect(tau: jax.Array, eta: jax.Array) -> jax.Array:
    return tau**eta / (tau**eta + (1 - tau) ** eta) ** (1 / eta)


def _inverse(function: Callable[[jax.Array], jax.Array], values: jax.Array) -> jax.Array:
    """The x in (0, 1) where an increasing `function` takes `values`; the last step, Newton's, is differentiable."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        above = function(middle) > values
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(values), jnp.ones_like(values)))
    root = jax.lax.stop_gradient((low + high) / 2)
    value, slope = jax.jvp(function, (root,), (jnp.ones_like(root),))
    return root - (value - values) / jax.lax.stop_gradient(slope)
