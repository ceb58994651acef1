"""Worst cases over balls of a divergence: the nominal law, reweighted by a curve that falls with the values.

    p ~ p0 f(theta y),    divergence of p and p0 = radius,    z = low + size y with y in [0, 1],

where f(x) is exp(-x) for KL, 1 / (1 + x) for Burg and (1 - x)^+ for chi-square. The divergence increases with theta,
which Halley's method finds. If the radius allows for it, all mass is on the least value, and theta is infinite.

Source: Ben-Tal et al. 2013, "Robust Solutions of Optimization Problems Affected by Uncertain Probabilities".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.robust.rows import Row, Worst, total, unit

STEPS = 64  # at most; some four are taken
BEYOND = 45.0  # log theta at which all mass is on the least value


class Curve(NamedTuple):
    """A divergence at some theta, and its derivatives in log theta."""

    height: jax.Array
    slope: jax.Array
    bend: jax.Array


def kl(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : sum p log(p / p0) <= radius}`.

    max_theta -(log E exp(-theta y) + radius) / theta
    """
    y, size = unit(row)
    p0 = row.nominal
    whole = total(p0)

    def law(theta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        weights = p0 * jnp.exp(-theta * y)
        mass = total(weights)
        return weights, mass, total(weights * y) / mass

    def curve(theta: jax.Array) -> Curve:
        weights, mass, mean = law(theta)
        second = total(weights * y * y) / mass
        variance, third = second - mean**2, total(weights * y * y * y) / mass - 3 * mean * second + 2 * mean**3
        slope = theta**2 * variance
        return Curve(-theta * mean - jnp.log(mass / whole), slope, 2 * slope - theta**3 * third)

    saturated = radius >= -jnp.log(total(jnp.where(y == 0, p0, 0)))
    first, skew = _first_order(p0, y, radius)
    small = first < _small(y)
    rise = skew / 3 * first
    start = jnp.log(first * jnp.clip(1 + rise, 0.5, 2))
    theta = _root(curve, radius, start, jnp.log(8 * radius) / 2, BEYOND, small | saturated)
    theta = _choose(small, first * (1 + rise), theta, saturated)
    weights, mass, mean = law(theta)

    step = _positive(theta)
    log_mass = _log(total(p0 * jnp.expm1(-step * y)), mass / whole)
    of_nominal = -size * jnp.expm1(-step * y - log_mass) / step
    of_radius = jnp.where(saturated | (theta <= 0), 0, -size / step)
    return Worst((row.low + size * mean)[..., 0], weights / mass, of_nominal, (of_radius[..., 0],))


def chi_square(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : sum (p - p0)^2 / p0 <= radius}`.

        max_t t - sqrt((1 + radius) E((t - y)^+)^2),    p ~ p0 (t - y)^+

    Once it is known which states have mass, t is in closed form: with h the nominal mass of these states and m and V
    the mean and the variance of y in it, `(t - m)^2 = V / (radius h - (1 - h))`.
    """
    y, size = unit(row)
    p0 = row.nominal
    saturated = radius * total(jnp.where(y == 0, p0, 0)) >= total(jnp.where(y == 0, 0, p0))
    budget = jnp.maximum(radius, jnp.finfo(y.dtype).tiny ** 0.5)

    def curve(theta: jax.Array) -> Curve:
        weights = jnp.maximum(1 - theta * y, 0)
        first, second = total(p0 * weights), total(p0 * weights**2)
        held = total(jnp.where(weights > 0, p0, 0))
        ratio, change = second / first**2, (first - held) / first
        slope = 2 * (ratio * held - 1) / first
        return Curve(
            ratio - 1, slope, 2 * held * (2 * (ratio - 1 / first) - 3 * ratio * change) / first + 2 * change / first
        )

    average = total(p0 * y)
    ratio = jnp.sqrt(budget / _or_one(total(p0 * (y - average) ** 2)))
    start = ratio / (1 + ratio * average)  # the solution up to 1, where all states have mass
    theta = _root(curve, budget, jnp.log(start), 0.0, BEYOND, (start <= 1) | saturated)
    theta = _choose(start <= 1, start, theta, saturated)

    has_mass = theta * y < 1
    on = jnp.where(has_mass, p0, 0)
    held, missing = total(on), total(jnp.where(has_mass, 0, p0))
    deviation = y - total(on * y) / held
    deviation = deviation - total(on * deviation) / held  # again, for the reach may be short
    reach = jnp.sqrt(total(on * deviation**2) / held / _or_one(budget * held - missing))  # t - m
    ratios = jnp.where(has_mass, jnp.maximum(1 - deviation / _or_one(reach), 0) / held, 0)  # p / p0
    probs = p0 * ratios
    of_nominal = jnp.where(has_mass, deviation - missing * reach, held * reach) * (1 + ratios) / 2
    of_budget = jnp.where(saturated | (radius <= 0), 0, -size * held * reach / 2)
    return Worst((row.low + size * total(probs * y))[..., 0], probs, size * of_nominal, (of_budget[..., 0],))


def burg(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : sum p0 log(p0 / p) <= radius}`.

        E log(1 + theta y) + log E[1 / (1 + theta y)] = radius

    If the least value has no nominal mass (support "all"), the left side has a limit. Beyond it p = c p0 / y where p0
    has mass, with log c = E log y - radius, and what is left is on the least value.
    """
    y, size = unit(row)
    p0 = row.nominal
    whole = total(p0)

    def curve(theta: jax.Array) -> Curve:
        x = theta * y
        shrunk = 1 / (1 + x)
        mean, second, third = (total(p0 * shrunk**k) / whole for k in (1, 2, 3))
        variance = second - mean**2
        bend = 2 * (third - second) / mean + (second / mean**2 + 1) * variance
        height = total(p0 * jnp.log1p(x)) / whole + jnp.log(mean)
        return Curve(height, variance / mean, bend)

    at_low = row.allowed & (y == 0)
    least = total(jnp.where(at_low, p0, 0))
    positive = jnp.where(y > 0, y, 1)
    inverse = total(p0 / positive)
    c = jnp.exp(total(p0 * jnp.log(positive)) - radius)
    beyond, certain = (least <= 0) & (c * inverse <= 1), least >= whole

    first, skew = _first_order(p0, y, radius)
    small, highest = first < _small(y), 0.9 * math.log(jnp.finfo(y.dtype).max)
    rise = (2 / 3 * skew + total(p0 * y)) * first
    start = jnp.log(first * jnp.clip(1 + rise, 0.5, 2))
    theta = _root(curve, radius, start, jnp.log(8 * radius) / 2, highest, small | beyond | certain)
    theta = _choose(small, first * (1 + rise), theta, certain)
    weights = p0 / (1 + theta * y)
    mass = total(weights)
    rest = (1 - c * inverse) / total(at_low.astype(y.dtype))
    probs = jnp.where(beyond, jnp.where(at_low, rest, c * p0 / positive), weights / mass)

    step = _positive(theta)
    price = jnp.where(beyond, c, 1 / (step * mass))
    log_mass = _log(-total(p0 * step * y / (1 + step * y)), mass / whole)
    slope = jnp.where(beyond, jnp.log(positive), jnp.log1p(step * y) + log_mass)
    of_nominal = jnp.where(p0 > 0, size * price * slope, 0)  # elsewhere it is infinite
    of_radius = jnp.where(certain | (theta <= 0), 0, -size * price)
    return Worst((row.low + size * total(probs * y))[..., 0], probs, of_nominal, (of_radius[..., 0],))


def _first_order(p0: jax.Array, y: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The theta of a small radius, where KL and Burg are `theta^2 Var y / 2`; and `E(y - mean)^3 / Var y`."""
    deviation = y - total(p0 * y)
    variance, third = total(p0 * deviation**2), total(p0 * deviation**3)
    return jnp.sqrt(2 * radius / _or_one(variance)), third / _or_one(variance)


def _root(
    curve: Callable[[jax.Array], Curve],
    radius: jax.Array,
    start: jax.Array,
    low: ArrayLike,
    high: ArrayLike,
    known: jax.Array,
) -> jax.Array:
    """The theta at which an increasing curve reaches the radius, `[..., 1]`; any number where it is `known` already.

    Halley's method on the logarithms of both, in which the curves are almost straight; Newton's where the two differ
    by much; and where a step leaves the bracket, it is halved instead. The steps shrink with their cubes: after one
    below the root of the precision, what is left is rounding.

    - `curve`: theta -> the divergence, with its first two derivatives in log theta.
    - `start`, `low`, `high`: of log theta. KL and Burg are at most theta^2 / 8 (Hoeffding's lemma), which gives `low`.
    """
    limits = jnp.finfo(start.dtype)
    low, high = jnp.broadcast_arrays(jnp.minimum(low, high), jnp.full_like(start, high))
    begin = 0, jnp.clip(start, low, high), low, high, known | jnp.zeros_like(start, bool)

    def step(state: tuple) -> tuple:
        count, x, low, high, done = state
        theta = jnp.exp(x)
        height, slope, bend = curve(theta)
        low, high = jnp.where(height > radius, low, x), jnp.where(height > radius, x, high)
        close = jnp.abs(height - radius) <= 4 * limits.eps * (radius + jnp.minimum(theta, 1))
        newton = jnp.log(jnp.maximum(height, limits.tiny) / radius) * height / slope
        curvature = bend / slope - slope / height  # of the logarithm of the height, over its slope
        shrink = 1 - newton * curvature / 2
        halley = x - newton / jnp.where((shrink >= 0.5) & (shrink <= 2), shrink, 1)
        moved = jnp.where((halley >= low) & (halley <= high), halley, (low + high) / 2)
        moved = jnp.where(done | close, x, moved)
        return count + 1, moved, low, high, done | ~(jnp.abs(moved - x) > limits.eps**0.5)

    def going(state: tuple) -> jax.Array:
        return (state[0] < STEPS) & ~jnp.all(state[-1])

    return jnp.exp(jax.lax.while_loop(going, step, begin)[1])


def _small(y: jax.Array) -> float:
    """Below this theta, the second order is more accurate than what rounding leaves of the curve."""
    return float(jnp.finfo(y.dtype).eps) ** 0.25


def _choose(small: jax.Array, formula: jax.Array, root: jax.Array, saturated: jax.Array) -> jax.Array:
    return jnp.where(saturated, jnp.exp(jnp.full_like(root, BEYOND)), jnp.where(small, formula, root))


def _or_one(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)


def _positive(theta: jax.Array) -> jax.Array:
    """Theta; in place of 0 a number so small that the slopes are those at 0."""
    return jnp.maximum(theta, jnp.finfo(theta.dtype).tiny ** 0.5)


def _log(excess: jax.Array, whole: jax.Array) -> jax.Array:
    """The logarithm of `whole`, which is 1 + `excess`, from whichever is the more accurate."""
    near = excess > -0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0)), jnp.log(jnp.where(near, 1, whole)))
