"""Worst cases over Wasserstein balls: an exact search of the price of a unit of transport."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.robust.rows import Row, Worst, unit

STEPS = 100  # at most; some ten are taken


class Plan(NamedTuple):
    """A way to move the mass, for one law."""

    to: jax.Array  # [n], where that of each state goes
    value: jax.Array  # [], the mean of the values after that
    cost: jax.Array  # []


def transport(row: Row, radius: jax.Array, metric: jax.Array) -> Worst:
    """Over `{p : W(p0, p) <= radius}`, where moving a unit of mass from i to j costs `metric[i, j]`.

        max_{price >= 0} sum_i p0_i min_j (z_j + price metric_ij) - price radius

    is concave and piecewise linear in the price. Two plans, one that costs more than the radius and one that costs
    less, bracket the best price; at the price where they are worth the same either no plan is worth less, and the
    best law is their mixture, or that one takes the place of one of them.

    - `radius`: `[...]`, in units of the metric.
    - `metric`: `[..., n, n]`.
    """
    y, size = unit(row)
    y = jnp.where(row.allowed, y, 2)  # nobody goes where no mass may be, whatever the price
    solve = jnp.vectorize(_solve, signature="(n),(n),(),(n,n)->(),(n),(),(n),(n,n)")
    value, probs, price, of_nominal, flow = solve(row.nominal, y, radius, metric)
    size = size[..., 0]
    price = size * price
    return Worst(
        row.low[..., 0] + size * value,
        probs,
        size[..., None] * of_nominal,
        (-price, price[..., None, None] * flow),
    )


def _solve(p0: jax.Array, y: jax.Array, radius: jax.Array, metric: jax.Array) -> tuple[jax.Array, ...]:
    """The least mean, the law, the price, the slopes in p0, and the mass that goes from i to j, for one law."""
    states = jnp.arange(len(y))

    def plan(to: jax.Array) -> Plan:
        return Plan(to, jnp.sum(p0 * y[to]), jnp.sum(p0 * metric[states, to]))

    def improve(state: tuple[jax.Array, Plan, Plan, jax.Array]) -> tuple[jax.Array, Plan, Plan, jax.Array]:
        count, dear, cheap, _ = state
        price = _price(dear, cheap)
        new = plan(_cheapest(y, price, metric))
        better = new.value + price * new.cost < dear.value + price * dear.cost - 8 * jnp.finfo(y.dtype).eps
        dear = jax.tree.map(partial(jnp.where, better & (new.cost > radius)), new, dear)
        cheap = jax.tree.map(partial(jnp.where, better & (new.cost <= radius)), new, cheap)
        return count + 1, dear, cheap, better

    dear = plan(_cheapest(jnp.where(y > 0, jnp.inf, 0), jnp.ones(()), metric))  # all to the nearest of the least
    cheap = plan(states)
    enough = dear.cost <= radius
    start = jnp.zeros((), int), dear, cheap, ~enough
    _, dear, cheap, _ = jax.lax.while_loop(lambda state: (state[0] < STEPS) & state[3], improve, start)

    gap = dear.cost - cheap.cost
    share = jnp.where(enough, 1, jnp.clip((radius - cheap.cost) / jnp.where(gap > 0, gap, 1), 0, 1))
    price = jnp.where(enough, 0, _price(dear, cheap))
    probs = jnp.zeros_like(p0).at[dear.to].add(share * p0).at[cheap.to].add((1 - share) * p0)
    flow = p0[:, None] * (share * (dear.to[:, None] == states) + (1 - share) * (cheap.to[:, None] == states))
    value = share * dear.value + (1 - share) * cheap.value
    return value, probs, price, jnp.min(y + price * metric, axis=1), flow


def _price(dear: Plan, cheap: Plan) -> jax.Array:
    """The price at which the two plans are worth the same."""
    gap = dear.cost - cheap.cost
    return jnp.where(gap > 0, (cheap.value - dear.value) / jnp.where(gap > 0, gap, 1), 0)


def _cheapest(y: jax.Array, price: jax.Array, metric: jax.Array) -> jax.Array:
    """Where to go from each state, argmin_j y_j + price metric_ij, `[n]`.

    A loop over the destinations: it needs no memory for all pairs of a batch, and is faster than `argmin` on CPUs.
    """

    def visit(j: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        least, to = best
        total = y[j] + price * metric[:, j]
        return jnp.minimum(least, total), jnp.where(total < least, j, to)

    start = jnp.full_like(y, jnp.inf), jnp.zeros(y.shape, int)
    return jax.lax.fori_loop(0, len(y), visit, start)[1]
