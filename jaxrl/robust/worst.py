"""The worst law of a set for given values, and the slopes of what it is worth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.risk import CVaR, EVaR, laws
from jaxrl.robust import polyhedral
from jaxrl.robust.base import Support
from jaxrl.robust.rows import Row, Worst, mean, pose
from jaxrl.robust.sets import KL, ChiSquare


@laws.pytree
class Density:
    """`p <= (1 + radius) p0`: the dual set of `CVaR(1 / (1 + radius))`."""

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)

    def worst(self, row: Row) -> Worst:
        return polyhedral.density(row, laws.setting(self.radius, row.values))


def worst_case(set: Any, nominal: ArrayLike, values: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The least mean of the values over a set of laws, and the law that attains it.

        min {p . z : p in the set around p0},    or max if the set is optimistic

    - `set`: a set of `jaxrl.robust`; or a measure of `jaxrl.risk` that has a worst law (`CVaR`, `EVaR`, `Entropic`, an
      averse `Expectile`, ...): then the value is that of the measure, p . z and the penalty on p.
    - `nominal`: p0, `[n]` or `[..., n]`.
    - `values`: z, `[n]` or `[..., n]`.

    Returns the value `[...]`, and p, `[..., n]`, on the simplex and in the set up to rounding; p0 itself, to the last
    bit, if the radius is 0 or all values are the same. Leading axes are a batch, as under `jax.vmap`; settings of the
    set are numbers, or have these axes. Give values that all rows share as `[n]`: one order then serves all rows,
    which makes the sets that move mass in it (`L1`, `TotalVariation`, `LInf`, `Interval`, `CVaR`) several times faster.

    The value has derivatives, of the first order only, in all arguments: in the values it is p (Danskin's theorem), in
    p0 and the settings it follows from the conditions of optimality. In p0 it is for changes that keep the sum, and
    under support "nominal" the support. The law is a constant to differentiation.

    ValueError if `set` is neither, or `nominal` and `values` have different numbers of states. In a trace, a negative
    radius gives NaN.

    >>> from jaxrl import robust
    >>> value, probs = worst_case(robust.L1(0.5), jnp.array([0.5, 0.25, 0.25]), jnp.array([2.0, 0.0, 4.0]))
    >>> print(value, probs)
    1.0 [0.5 0.5 0. ]
    """
    nominal, values = _check(set, nominal, values)
    if isinstance(set, CVaR):
        set = Density(1 / _level(set, values) - 1)
    elif isinstance(set, EVaR):
        set = KL(-jnp.log(_level(set, values)))
    elif not hasattr(set, "worst"):
        return set(values, nominal), _dual_law(set, nominal, values)
    set = jax.tree.map(lambda leaf: jnp.asarray(leaf, values.dtype), set)
    if not set.optimistic:
        return _worst_case(set, nominal, values)
    value, probs = _worst_case(set, nominal, -values)
    return -value, probs


@jax.custom_jvp
def _worst_case(set: Any, nominal: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    worst = _solve(set, nominal, values)
    return worst.value, worst.probs


@_worst_case.defjvp
def _slope(primals: tuple, tangents: tuple) -> tuple:
    worst = _solve(*_once(primals))
    d_set, d_nominal, d_values = tangents
    slope = jnp.sum(worst.probs * d_values + worst.of_nominal * d_nominal, axis=-1)
    for of_leaf, d_leaf in zip(worst.of_set, jax.tree.leaves(d_set), strict=True):
        slope += jnp.sum(of_leaf * d_leaf, axis=tuple(range(worst.value.ndim, of_leaf.ndim)))
    return (worst.value, worst.probs), (slope, jnp.zeros_like(worst.probs))


@jax.custom_jvp
def _once(tree: Any) -> Any:
    """What may be differentiated no further."""
    return tree


@_once.defjvp
def _twice(primals: tuple, tangents: tuple) -> tuple:
    raise ValueError(
        "worst_case was differentiated twice, expected once: its slopes are no differentiable functions; put "
        "jax.lax.stop_gradient around what the inner derivative is taken at"
    )


@jax.jit
def _solve(set: Any, nominal: jax.Array, values: jax.Array) -> Worst:
    """The worst law; the nominal one where nature has no choice, or does not care."""
    dominated = isinstance(set, (KL, ChiSquare, Density))  # p is 0 where p0 is
    row = pose(nominal, values, "nominal" if dominated else set.support)
    worst = set.worst(row)
    worst = worst._replace(of_nominal=jnp.where(row.allowed, worst.of_nominal, 0))
    if not hasattr(set, "radius"):
        return worst
    none = jnp.broadcast_to(set.radius == 0, worst.value.shape)
    careless = jnp.all(~row.allowed | (values == row.low), axis=-1)
    value = jnp.where(none, mean(nominal, values), worst.value)
    return worst._replace(
        value=jnp.where(set.radius >= 0, value, jnp.nan),
        probs=jnp.where((none | careless)[..., None], nominal, worst.probs),
    )


def _dual_law(measure: Any, nominal: jax.Array, values: jax.Array) -> jax.Array:
    """The law at which a measure is the mean and a penalty: its gradient in the atoms."""
    measure, nominal, values = jax.lax.stop_gradient((measure, nominal, values))
    atoms = jnp.broadcast_to(values, jnp.broadcast_shapes(nominal.shape, values.shape))
    value, pull = jax.vjp(lambda atoms: measure(atoms, nominal), atoms)
    return pull(jnp.ones_like(value))[0]


def _level(measure: CVaR | EVaR, like: jax.Array) -> jax.Array:
    """The level of a measure, in (0, 1], so large that its inverse is finite."""
    level, least = jnp.asarray(measure.level, like.dtype), jnp.finfo(like.dtype).tiny ** 0.5
    return jnp.where(level > 1, 1, jnp.where(level < least, least, level))


def _check(set: Any, nominal: ArrayLike, values: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Law and values as arrays of their common float type."""
    if isinstance(set, type) or not (hasattr(set, "worst") or callable(set)):
        raise ValueError(f"set is {set!r}, expected a set as robust.L1(0.1), or a measure as risk.CVaR(0.1)")
    dtype = jnp.result_type(nominal, values, float)
    nominal, values = jnp.asarray(nominal, dtype), jnp.asarray(values, dtype)
    if nominal.ndim == 0 or values.ndim == 0 or nominal.shape[-1] != values.shape[-1] or nominal.shape[-1] == 0:
        raise ValueError(
            f"nominal has shape {nominal.shape} and values {values.shape}, expected [..., n] and [..., n] or [n]: "
            f"one value for each state, and its probability"
        )
    return nominal, values
