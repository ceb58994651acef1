"""What bounds the error of a robust solution: the modulus of the operator, and the rounding of a sweep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.mdp import Model
from jaxrl.mdp.solution import Scale, attainable
from jaxrl.mdp.solution import scale as nominal_scale
from jaxrl.risk import Entropic, EVaR
from jaxrl.robust.operator import Rows, ball, in_blocks, rows
from jaxrl.robust.sets import KL, Burg, SignedLp

__all__ = ["attainable", "error_bound", "rounding", "scale"]
SERIES = (KL, EVaR, Burg, Entropic)  # whose small radii are treated by series, up to a term of their parameter cubed


def scale(model: Model, set: Any) -> Scale:
    """The scale of a model and a set; `modulus` is NaN unless the model is one.

    A law that is none, p0 + u with |u| <= radius, has at most `sum (radius - p0)^+` of negative mass, and at most half
    of |u|_1; then the operator is Lipschitz with 1 and twice that mass, times the discount.
    """
    known = nominal_scale(model)
    around = ball(set)
    if getattr(around, "support", "nominal") == "all":
        known = known._replace(terms=jnp.asarray(model.num_states, known.reward.dtype))
    if not isinstance(around, SignedLp):
        return known

    def negative(part: Rows) -> jax.Array:
        radius, p0 = part.settings[0] if part.settings[0] is not None else jnp.asarray(around.radius), part.nominal
        allowed = (p0 > 0) | (around.support == "all")
        short = jnp.sum(jnp.where(allowed, jnp.maximum(radius[..., None] - p0, 0), 0), axis=-1)
        return jnp.minimum(short, radius * jnp.sum(allowed, axis=-1) ** (1 - 1 / around.order) / 2)

    mass = jnp.max(in_blocks(negative, rows(model, set)))
    return known._replace(modulus=known.modulus * (1 + 2 * mass))


def rounding(set: Any, known: Scale, value: jax.Array) -> jax.Array:
    """How far a computed robust sweep from `value` can be from the exact one, at worst, `[]`.

    As `jaxrl.mdp.solution.rounding`, with two sums for one, and more constants. What follows a series up to a parameter
    of eps^(1/4) errs by up to its cube there, times the variance of values that lie 2 `size` apart.
    """
    size = known.reward + known.modulus * jnp.max(jnp.abs(value))
    precision = jnp.finfo(value.dtype).eps
    units = (known.terms + 16) * precision
    return (units + precision**0.75 / 2 if isinstance(ball(set), SERIES) else units) * size


def error_bound(known: Scale, residual: jax.Array, rho: jax.Array) -> jax.Array:
    """How far w = T v is from the fixed point of T, `[]`: infinite if T need not contract, NaN for what is no model."""
    contracts = known.modulus < 1
    bound = (known.modulus * residual + rho) / jnp.where(contracts, 1 - known.modulus, 1)
    return jnp.where(contracts | jnp.isnan(known.modulus), bound, jnp.inf)
