"""Worst cases over sets cut out by linear inequalities: mass moves in the order of the values."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.robust.rows import Row, Worst, fill, mean, threshold, total


def transfer(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : sum (p0 - p)^+ <= radius}`, the laws that arise by moving that much mass.

        max_{t >= low} p0 . min(z, t) - radius (t - low)

    The mass is taken from the values above t, in part from those at t, and given to the least.
    """
    p0, z, low = row.nominal, row.values, row.low
    radius = jnp.minimum(radius, 1)
    t = -threshold(-z, p0, radius)
    capped = jnp.minimum(z, t)
    value = total(p0 * capped) - radius * (t - low)
    at_low = row.allowed & (z == low)
    moved = jnp.minimum(radius, total(jnp.where(at_low, 0, p0)))
    probs = p0 - fill(-z, p0, moved, -t) + moved * at_low / total(at_low.astype(p0.dtype))
    return Worst(value[..., 0], probs, capped, (jnp.where(radius < 1, low - t, 0)[..., 0],))


def interval(row: Row, lower: jax.Array, upper: jax.Array) -> Worst:
    """Over `{p : lower <= p <= upper}`; NaN if there is no law between the bounds.

    If the nominal law is one, and all values are the same, it is the worst.
    """
    p0, z = row.nominal, row.values
    low, high = (jnp.where(row.allowed, jnp.clip(bound, 0, 1), 0) for bound in (lower, upper))
    worst = _box(row, low, high, high - low, 1 - total(low))
    rounding = 8 * z.shape[-1] * jnp.finfo(z.dtype).eps
    possible = (total(low) <= 1 + rounding) & (total(high) >= 1 - rounding)
    possible &= jnp.all(low <= high, axis=-1, keepdims=True)
    kept = jnp.all((~row.allowed | (z == row.low)) & (low <= p0) & (p0 <= high), axis=-1, keepdims=True)
    slopes = (
        jnp.where(row.allowed & (bound >= 0) & (bound <= 1), slope, 0)
        for bound, slope in zip((lower, upper), worst.of_set, strict=True)
    )
    return Worst(
        jnp.where(possible[..., 0], worst.value, jnp.nan),
        jnp.where(possible, jnp.where(kept, p0, worst.probs), jnp.nan),
        worst.of_nominal,
        tuple(slopes),
    )


def ball(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : max |p - p0| <= radius}`: bounds that cut each other off at 0 and 1."""
    p0 = row.nominal
    radius = jnp.maximum(radius, jnp.finfo(p0.dtype).tiny ** 0.5)  # so that the slope is right at 0, too
    down = jnp.minimum(radius, p0)
    up = jnp.where(row.allowed, jnp.minimum(radius, jnp.maximum(1 - p0, 0)), 0)
    worst = _box(row, p0 - down, p0 + up, down + up, total(down))
    of_lower, of_upper = (
        jnp.where(moved >= radius, slope, 0) for moved, slope in zip((down, up), worst.of_set, strict=True)
    )
    return worst._replace(of_nominal=of_lower + of_upper, of_set=(total(of_upper - of_lower)[..., 0],))


def _box(row: Row, lower: jax.Array, upper: jax.Array, capacity: jax.Array, budget: jax.Array) -> Worst:
    """Over `{p : lower <= p <= upper}`, where the bounds are 0 at states that may not have mass.

        max_t t + lower . (z - t)^+ - upper . (t - z)^+

    - `capacity`: upper - lower.
    - `budget`: the mass that is left above the lower bounds.
    """
    z = row.values
    t = threshold(z, capacity, budget)
    above, below = jnp.maximum(z - t, 0), jnp.maximum(t - z, 0)
    value = t + total(lower * above) - total(upper * below)
    probs = lower + fill(z, capacity, budget, t)
    return Worst(value[..., 0], probs, jnp.zeros_like(probs), (above, -below))


def density(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : p <= (1 + radius) p0}`, the dual set of CVaR at the level 1 / (1 + radius).

    max_t t - (1 + radius) p0 . (t - z)^+
    """
    p0, z = row.nominal, row.values
    level = 1 / (1 + radius)
    t = threshold(z, p0, level)
    below = jnp.maximum(t - z, 0)
    shortfall = total(p0 * below)
    value = t - (1 + radius) * shortfall
    probs = (1 + radius) * fill(z, p0, level, t)
    return Worst(value[..., 0], probs, -(1 + radius) * below, (-shortfall[..., 0],))


def contaminate(row: Row, radius: jax.Array) -> Worst:
    """Over `{(1 - radius) p0 + radius q}`, with any law q."""
    p0, z = row.nominal, row.values
    radius = jnp.minimum(radius, 1)
    at_low = row.allowed & (z == row.low)
    probs = (1 - radius) * p0 + radius * at_low / total(at_low.astype(p0.dtype))
    loss = row.low - mean(p0, z)[..., None]
    value = mean(p0, z)[..., None] + radius * loss
    return Worst(value[..., 0], probs, (1 - radius) * z, (jnp.where(radius < 1, loss, 0)[..., 0],))
