"""Worst cases over L2 balls, by active sets."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.robust.rows import Row, Worst, total, unit


def ball(row: Row, radius: jax.Array) -> Worst:
    """Over `{p : |p - p0|_2 <= radius}`.

        p = (p0 - theta (y - nu))^+,    sum p = 1,    |p - p0|_2 = radius

    Both conditions give theta and nu in closed form once it is known which states have mass. As theta grows to its
    final value, they only become fewer (each p is concave in theta). So from all states on, those that would get none
    are dropped until all get some, which is exact, takes at most n rounds, and some six in practice: theta never
    overshoots, since to project on fewer states moves the law by less.
    """
    y, size = unit(row)
    p0 = row.nominal
    radius = jnp.clip(radius, jnp.finfo(radius.dtype).tiny ** 0.25, 2)

    def law(active: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """If these states have the mass: p, theta (0 where they all have one value), and y - nu."""
        on = active.astype(y.dtype)
        count, missing = total(on), total(jnp.where(active, 0, p0))
        deviation = y - total(on * y) / count
        deviation = deviation - total(on * deviation) / count  # again, for theta may be large
        variance = total(on * deviation**2)
        left = radius**2 - total(jnp.where(active, 0, p0**2)) - missing**2 / count
        theta = jnp.where(variance > 0, jnp.sqrt(jnp.maximum(left, 0) / jnp.where(variance > 0, variance, 1)), 0)
        probs = jnp.where(active, p0 + missing / count - theta * deviation, 0)
        return probs, theta, deviation - missing / count / jnp.where(theta > 0, theta, 1)

    def drop(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        active, _ = state
        remaining = active & (law(active)[0] > 0)
        return remaining, jnp.any(remaining != active)

    shape = jnp.broadcast_shapes(p0.shape, y.shape, radius.shape)
    start = jnp.broadcast_to(row.allowed, shape), jnp.array(True)
    active, _ = jax.lax.while_loop(lambda state: state[1], drop, start)
    probs, theta, above = law(active)
    binds = theta > 0
    theta = jnp.where(binds, theta, 1)
    of_nominal = jnp.where(binds, size * jnp.minimum(above, p0 / theta), 0)
    of_radius = jnp.where(binds, -size * radius / theta, 0)
    return Worst((row.low + size * total(probs * y))[..., 0], probs, of_nominal, (of_radius[..., 0],))
