"""Worst cases over balls of signed measures of mass one, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.robust.rows import Row, Worst, mean, threshold, total


def shift(row: Row, radius: jax.Array, order: float) -> Worst:
    """Over `{p0 + u : sum u = 0, |u|_order <= radius}`.

        p0 . z - radius kappa(z),    kappa(z) = min_c |z - c|_q,    1 / order + 1 / q = 1

    with c the midrange, the mean or the median of z for the orders 1, 2 and infinity.

    - `order`: 1, 2 or infinity.
    """
    z, on = row.values, row.allowed.astype(row.values.dtype)
    states = total(on)
    if order == 2:
        deviation = on * (z - total(on * z) / states)
        kappa = jnp.sqrt(total(deviation**2))
        direction = deviation / jnp.where(kappa > 0, kappa, 1)
    elif order == 1:
        high = jnp.max(jnp.where(row.allowed, z, -jnp.inf), axis=-1, keepdims=True)
        top, bottom = on * (z == high), on * (z == row.low)
        kappa = (high - row.low) / 2
        direction = (top / total(top) - bottom / total(bottom)) / 2
    else:
        median = threshold(z, on, states / 2)
        above, below, at = on * (z > median), on * (z < median), on * (z == median)
        kappa = total(on * jnp.abs(z - median))
        direction = above - below + at * (total(below) - total(above)) / total(at)
    value = mean(row.nominal, z)[..., None] - radius * kappa
    return Worst(value[..., 0], row.nominal - radius * direction, z * on, (-kappa[..., 0],))
