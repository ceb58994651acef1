"""What all sets share: one problem of nature, and how mass is moved in the order of the values."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Row(NamedTuple):
    """A problem of nature, or a batch of them: which law near the nominal one has the least mean of the values?"""

    nominal: jax.Array  # p0, [..., n]
    values: jax.Array  # z, [..., n], or [n] if all rows share them
    allowed: jax.Array  # [..., n] or [n] bool, the states that may have mass
    low: jax.Array  # [..., 1], the least value that is allowed


class Worst(NamedTuple):
    """The solution of a `Row`, and the slopes of its value."""

    value: jax.Array  # [...]
    probs: jax.Array  # [..., n], the law that attains it
    of_nominal: jax.Array  # [..., n], in p0, along changes that keep its sum
    of_set: tuple[jax.Array, ...]  # in each leaf of the set, in their order: [...], then the axes of the leaf itself


def pose(nominal: jax.Array, values: jax.Array, support: str) -> Row:
    """The problem on the support of the nominal law ("nominal"), or on all states ("all")."""
    allowed = nominal > 0 if support == "nominal" else jnp.ones(values.shape[-1], bool)
    return Row(nominal, values, allowed, _least(nominal, values, allowed))


def unit(row: Row) -> tuple[jax.Array, jax.Array]:
    """The values as `low + size y`: y `[..., n]`, in [0, 1] also where no mass may be, and size `[..., 1]`."""
    size = -_least(row.nominal, -row.values, row.allowed) - row.low
    size = jnp.where(size > 0, size, 1)
    return jnp.clip((row.values - row.low) / size, 0, 1), size


def total(x: jax.Array) -> jax.Array:
    """The sum over the states, `[..., 1]`."""
    return jnp.sum(x, axis=-1, keepdims=True)


def mean(probs: jax.Array, values: jax.Array) -> jax.Array:
    """The mean of the values, `[...]`; a product of matrices if all rows share them."""
    if values.ndim == 1:
        return jnp.matmul(probs, values, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(probs * values, axis=-1)


def threshold(values: jax.Array, capacity: jax.Array, budget: jax.Array) -> jax.Array:
    """The least value t with `C(t) = sum {capacity : value <= t} > budget`, at most the last with capacity, `[..., 1]`.

    Sorts the values, then finds t among them by bisection, with a masked sum at each step. Values that many rows share
    are sorted once, and a product of matrices stands for the sums.

    - `values`: `[..., n]`, or `[n]`.
    - `capacity`: `[..., n]`, at least 0.
    - `budget`: `[..., 1]`.
    """
    if _shared(values, capacity):
        return _shared_threshold(values, capacity, budget)
    ordered, whole = ascending(values), total(capacity)
    last = values.shape[-1] - 1
    lead = jnp.broadcast_shapes(values.shape[:-1], capacity.shape[:-1], budget.shape[:-1])
    ordered = jnp.broadcast_to(ordered, (*lead, last + 1))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, last = bounds
        middle = (first + last) // 2
        below = total(jnp.where(values <= jnp.take_along_axis(ordered, middle, axis=-1), capacity, 0))
        passed = (below > budget) | (below >= whole)
        return jnp.where(passed, first, middle + 1), jnp.where(passed, middle, last)

    bounds = jnp.zeros((*lead, 1), int), jnp.full((*lead, 1), last)
    found, _ = jax.lax.fori_loop(0, last.bit_length(), halve, bounds)
    return jnp.take_along_axis(ordered, jnp.minimum(found, last), axis=-1)


def fill(values: jax.Array, capacity: jax.Array, budget: jax.Array, t: jax.Array) -> jax.Array:
    """The amounts x with `0 <= x <= capacity`, sum `budget` and the least `x . values`, `[..., n]`.

    - `t`: their `threshold`. Below it all capacity is used, above it none, and at t an equal share of each.
    """
    left = budget - total(jnp.where(values < t, capacity, 0))
    room = total(jnp.where(values == t, capacity, 0))
    share = jnp.clip(left / jnp.where(room > 0, room, 1), 0, 1)
    return capacity * jnp.where(values < t, 1, jnp.where(values == t, share, 0))


def ascending(values: jax.Array) -> jax.Array:
    """The values in ascending order along the last axis, `[..., n]`.

    Sorted as integers of the same order, for XLA sorts these on CPUs six times as fast as floats.
    """
    bits = jnp.finfo(values.dtype).bits
    integer = np.dtype(f"int{bits}")
    all_but_sign = np.array(np.iinfo(integer).max, integer)

    def flip(keys: jax.Array) -> jax.Array:  # for negative numbers, all bits but the sign; its own inverse
        return keys ^ ((keys >> (bits - 1)) & all_but_sign)

    keys = flip(jax.lax.bitcast_convert_type(values, integer))
    return jax.lax.bitcast_convert_type(flip(jax.lax.sort(keys, dimension=-1)), values.dtype)


def _shared(values: jax.Array, capacity: jax.Array) -> bool:
    return values.ndim == 1 and capacity.ndim > 1


def _shared_threshold(values: jax.Array, capacity: jax.Array, budget: jax.Array) -> jax.Array:
    """`threshold` if all rows share one order: first the block of some sqrt(n) values that holds t, then t in it."""
    n = len(values)
    width = math.isqrt(n - 1) + 1
    order = jnp.argsort(values)
    rank = jnp.zeros(n, int).at[order].set(jnp.arange(n))
    in_block_or_before = (rank[:, None] < jnp.arange(width, n + width, width)).astype(capacity.dtype)
    upto = jnp.matmul(capacity, in_block_or_before, precision=jax.lax.Precision.HIGHEST)
    block = _first((upto > budget) | (upto >= upto[..., -1:]))
    before = jnp.where(block > 0, jnp.take_along_axis(upto, jnp.maximum(block - 1, 0), axis=-1), 0)

    places = block * width + jnp.arange(width)
    members = order[jnp.minimum(places, n - 1)]
    inside = jnp.where(places < n, jnp.take_along_axis(capacity, members, axis=-1), 0)
    upto = before + jnp.cumsum(inside, axis=-1)
    found = _first((upto > budget) | (upto >= upto[..., -1:]))
    return values[jnp.take_along_axis(members, found, axis=-1)]


def _first(passed: jax.Array) -> jax.Array:
    """The first place that passed, `[..., 1]`."""
    return jnp.argmax(passed, axis=-1)[..., None]


def _least(nominal: jax.Array, values: jax.Array, allowed: jax.Array) -> jax.Array:
    """The least of the values that are allowed, `[..., 1]`."""
    if allowed.ndim > 1 and _shared(values, nominal):
        return threshold(values, nominal, jnp.zeros((1,), values.dtype))
    return jnp.min(jnp.where(allowed, values, jnp.inf), axis=-1, keepdims=True)
