"""How nature divides one budget among the actions of a policy that it knows.

    min {sum_a policy_a f_a(k_a) : sum_a k_a = radius, k >= 0}

where f_a(k), convex and falling, is the worst case of action a alone with the budget k. By cutting planes: a tangent of
f_a bounds it from below, and so the highest of some of them does, a piecewise linear function. With these in place of
all f_a, the budget goes to the steepest pieces; there the next tangents are drawn, until the minimum of the bound is
the value that its budgets attain. That is exact in finitely many rounds where f_a is piecewise linear, and takes off
some three quarters of the gap in each where it is smooth.

Source: Kelley 1960, "The Cutting-Plane Method for Solving Convex Programs".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.robust.rows import fill, threshold

ROUNDS = 62  # at most; some ten are taken, and thirty for smooth sets in float64


class Tangents(NamedTuple):
    """Tangents of the f_a, each `[..., A, M]`, in ascending order of the budgets."""

    at: jax.Array  # budgets
    height: jax.Array  # f_a there
    fall: jax.Array  # -f_a' there


def allocate(
    curve: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    policy: jax.Array,
    radius: jax.Array,
    tolerance: float,
) -> tuple[jax.Array, jax.Array]:
    """The budgets, `[..., A]`, and the price of a unit of them, `[...]`.

    - `curve`: budgets `[..., A]` -> f and -f', each `[..., A]`.
    - `policy`: `[..., A]`.
    - `radius`: `[..., 1]`.
    - `tolerance`: how far the value may be from the least, in units of f.
    """
    whole = jnp.broadcast_to(radius, policy.shape)
    least = whole * jnp.finfo(whole.dtype).eps  # not 0, where a slope may be infinite

    def step(state: tuple) -> tuple:
        count, tangents, _, _, _ = state
        budgets, price = _divide(tangents, policy, radius)
        budgets = jnp.maximum(budgets, least)
        bound = jnp.max(tangents.height - tangents.fall * (budgets[..., None] - tangents.at), axis=-1)
        height, fall = curve(budgets)
        gap = jnp.sum(policy * (height - bound), axis=-1)
        return count + 1, _insert(tangents, budgets, height, fall), budgets, price, gap

    def going(state: tuple) -> jax.Array:
        return (state[0] < ROUNDS) & jnp.any(state[-1] > tolerance)

    ends = jnp.stack([least, whole])
    first, last = (Tangents(*x) for x in zip(ends, *jax.vmap(curve)(ends), strict=True))
    tangents = Tangents(*(jnp.broadcast_to(x[..., None], (*policy.shape, ROUNDS + 2)) for x in last))
    tangents = _insert(tangents, *first)
    none = jnp.zeros_like(policy[..., 0])
    _, _, budgets, price, _ = jax.lax.while_loop(going, step, (0, tangents, whole, none, none + jnp.inf))
    return budgets, price


def _divide(tangents: Tangents, policy: jax.Array, radius: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The budgets that minimise the bound, by filling its pieces from the steepest on; and the slope of the last."""
    at, height, fall = tangents
    bend = fall[..., :-1] - fall[..., 1:]
    ahead = jnp.diff(at, axis=-1)
    above = height[..., :-1] - height[..., 1:] - fall[..., 1:] * ahead
    ends = at[..., :-1] + jnp.clip(above / jnp.where(bend > 0, bend, 1), 0, ahead)
    lengths = jnp.diff(ends, axis=-1, prepend=jnp.zeros_like(at[..., :1]), append=at[..., -1:])
    lead = policy.shape[:-1]
    steepness = (-policy[..., None] * fall).reshape(*lead, -1)
    lengths = lengths.reshape(*lead, -1)
    t = threshold(steepness, lengths, radius)
    budgets = jnp.sum(fill(steepness, lengths, radius, t).reshape(at.shape), axis=-1)
    return budgets, -t[..., 0]


def _insert(tangents: Tangents, *new: jax.Array) -> Tangents:
    """With a tangent for each action in its place; the last one, of which there are copies, is dropped."""
    place = jnp.sum(tangents.at < new[0][..., None], axis=-1, keepdims=True)
    slots = jnp.arange(tangents.at.shape[-1])

    def put(old: jax.Array, one: jax.Array) -> jax.Array:
        return jnp.where(slots < place, old, jnp.where(slots == place, one[..., None], jnp.roll(old, 1, axis=-1)))

    return Tangents(*map(put, tangents, new))
