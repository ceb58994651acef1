"""Losses whose minimisers are risk measures: the Itakura-Saito loss, and convex scoring functions.

A convex scoring function `score(outcomes, auxiliary)` makes a risk an expectation, minimised over an auxiliary number:

    risk(Y) = min_v E score(Y, v),

so that a policy can be optimised for the risk of its return on a state augmented by the reward so far and v,
alternating with v (or drawing v for each episode). Outcomes are **rewards**, the risk is a **cost**, smaller is
better: that of `ExpectedShortfall(a)` is `-CVaR(a)`. Auxiliaries have a last axis of their own, `[..., K]`, K = 1 or 2;
levels and weights are scalars.

Source: Han, Liu, Yu 2025, "Risk-sensitive Reinforcement Learning Based on Convex Scoring Functions", there for costs.
"""

from __future__ import annotations

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.risk import laws
from jaxrl.risk.measures import Entropic, best_beta

EXPONENT_LIMIT = 20.0  # above, exponentials go on as their tangents: finite gradients, whose squares are finite too


class Score(Protocol):
    """A convex scoring function: outcomes `[...]`, auxiliary `[..., K]` -> `[...]`, and the best auxiliary of a law."""

    def __call__(self, outcomes: ArrayLike, auxiliary: ArrayLike) -> jax.Array: ...

    def minimiser(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array: ...


def risk(score: Score, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
    """The risk `min_v E score(Z, v)` of a discrete law, `[...]`; the minimiser is constant to differentiation.

    >>> risk(ExpectedShortfall(0.5), jnp.array([-3.0, 1.0]))
    Array(3., dtype=float32)
    """
    atoms, probs = laws.law(atoms, probs)
    auxiliary = jax.lax.stop_gradient(score.minimiser(atoms, probs))
    return jnp.sum(probs * score(atoms, auxiliary[..., None, :]), axis=-1)


@laws.pytree
class Variance:
    """`(y - v)^2`, whose least mean is the variance, at the mean."""

    def __call__(self, outcomes: ArrayLike, auxiliary: ArrayLike) -> jax.Array:
        return (jnp.asarray(outcomes) - jnp.asarray(auxiliary)[..., 0]) ** 2

    def minimiser(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        return jnp.sum(probs * atoms, axis=-1, keepdims=True)


@laws.pytree
class ExpectedShortfall:
    """`-v + (v - y)^+ / level`, whose least mean is `-CVaR(level)`, at the quantile of that level; in (0, 1].

    Source: Rockafellar and Uryasev 2000, "Optimization of Conditional Value-at-Risk", Theorem 1.
    """

    level: ArrayLike

    def __post_init__(self) -> None:
        laws.check_unit("ExpectedShortfall.level", self.level, "the share of the mass")

    def __call__(self, outcomes: ArrayLike, auxiliary: ArrayLike) -> jax.Array:
        v = jnp.asarray(auxiliary)[..., 0]
        shortfall = jnp.maximum(v - jnp.asarray(outcomes), 0)
        return shortfall / jnp.asarray(self.level, shortfall.dtype) - v

    def minimiser(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        return laws.quantile(atoms, probs, jnp.asarray(self.level, atoms.dtype))[..., None]


@laws.pytree
class EntropicShortfall:
    """`x + t (exp(-(y + x)/t) - 1 - log level)`, whose least mean over v = (x, t > 0) is `-EVaR(level)`; in (0, 1).

    Convex in x and t together. At the minimum t is 1/beta of `EVaR`, and x is -`Entropic(beta)`. The exponential goes
    on as its tangent above an exponent of 20; the minimum is the same unless an atom has less mass than e^-20.

    Source: Ahmadi-Javid 2012, "Entropic Value-at-Risk: A New Coherent Risk Measure", with the logarithm written as
    `log m = min_u m e^-u + u - 1`, so that the law enters by one expectation.
    """

    level: ArrayLike

    def __post_init__(self) -> None:
        laws.check_unit("EntropicShortfall.level", self.level, "1 is the mean, and has no minimiser")

    def __call__(self, outcomes: ArrayLike, auxiliary: ArrayLike) -> jax.Array:
        x, t = jnp.moveaxis(jnp.asarray(auxiliary), -1, 0)
        exponential = _expm1(-(jnp.asarray(outcomes) + x) / t)
        return x + t * (exponential - jnp.log(jnp.asarray(self.level, exponential.dtype)))

    def minimiser(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        atoms, probs = laws.law(atoms, probs)
        y, _, size = laws.unit(atoms, probs)
        beta = best_beta(y, probs, -jnp.log(laws.setting(self.level, atoms))) / size
        worth = Entropic(beta[..., 0])(atoms, probs)
        return jnp.concatenate([-worth[..., None], 1 / beta], axis=-1)


@laws.pytree
class MeanRisk:
    """`-y + weight score(y, v)`, whose least mean is minus the mean plus `weight` times the risk of `score`."""

    score: Score
    weight: ArrayLike

    def __call__(self, outcomes: ArrayLike, auxiliary: ArrayLike) -> jax.Array:
        score = self.score(outcomes, auxiliary)
        return jnp.asarray(self.weight, score.dtype) * score - jnp.asarray(outcomes)

    def minimiser(self, atoms: ArrayLike, probs: ArrayLike | None = None) -> jax.Array:
        return self.score.minimiser(atoms, probs)


def itakura_saito(values: ArrayLike, targets: ArrayLike, beta: ArrayLike) -> jax.Array:
    """The Itakura-Saito loss, whose least mean over V is at `Entropic(beta)` of the targets, `[...]`.

        (e^x - x - 1) / beta^2,    x = beta (V - Y)

    Times beta^2, it is the divergence of exp(-beta Y) from exp(-beta V) in the paper; so divided, its limit at
    beta = 0 is half the squared error. Any real beta: above 0 averse. Nothing of the size of exp(-beta Y) is computed,
    and above x = 20 the exponential goes on as its tangent, which keeps the loss convex, its gradient finite
    and towards the target, and the minimiser the same unless a target has less mass than e^-20.

    With a discount, `beta` is that of the present reward; the return from step t on has risk level beta discount^t.

    - `values`: V, `[...]`.
    - `targets`: Y, `[...]`; take `jax.lax.stop_gradient` of what is bootstrapped.
    - `beta`: `[]` or `[...]`, in 1 / units of the reward.

    Source: Udovichenko et al. 2025, "Risk-Averse Reinforcement Learning with Itakura-Saito Loss".

    >>> itakura_saito(3.0, 1.0, 0.0)
    Array(2., dtype=float32)
    """
    dtype = jnp.result_type(values, targets, float)
    values, targets, beta = (jnp.asarray(x, dtype) for x in (values, targets, beta))
    error = values - targets
    x = beta * error
    small = jnp.abs(x) < jnp.finfo(dtype).eps ** 0.25
    large = jnp.where(small, 1, x)
    exact = (_expm1(large) - large) / large**2
    x = jnp.where(small, x, 0)
    series = 1 / 2 + x / 6 + x**2 / 24 + x**3 / 120
    return error**2 * jnp.where(small, series, exact)


def _expm1(x: jax.Array) -> jax.Array:
    """`e^x - 1`, and above the limit its tangent there."""
    tangent = math.exp(EXPONENT_LIMIT) * jnp.maximum(x - EXPONENT_LIMIT, 0)
    return jnp.expm1(jnp.minimum(x, EXPONENT_LIMIT)) + tangent
