"""Harvesting a stock whose growth is any law of the next stock given what is left: on levels, as a finite MDP.

    s = min(x, target),    x' ~ law(s),    reward = x - s

The stock x is one of L ascending levels and so is the target, the action: leave as much, take the rest. A law of real
numbers goes to the levels by linear interpolation, which keeps its mean: level j gets E[hat_j(x')] with hat_j the
function that is 1 at level j, 0 at all others and linear between. With G(l) = E max(x' - l, 0) it is a difference of
differences, (G(l_{j-1}) - G(l_j)) / (l_j - l_{j-1}) - (G(l_j) - G(l_{j+1})) / (l_{j+1} - l_j).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from jaxrl.mdp.checks import validate
from jaxrl.mdp.model import MDP


def normal_law(levels: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """The law N(mean, std^2) on L ascending levels; `[..., L]` for a mean and a standard deviation above 0, `[...]`.

    What is below the lowest level goes there, and what is above the highest.

    >>> [f"{p:.2f}" for p in normal_law(jnp.array([0.0, 1.0, 2.0]), 1.0, 0.5)]
    ['0.20', '0.61', '0.20']
    """
    mean, std = (jnp.asarray(x)[..., None] for x in (mean, std))
    z = (mean - levels) / std
    return _interpolate(jnp.asarray(levels), std * (z * ndtr(z) + norm.pdf(z)))


def log_normal_law(levels: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """The law `exp(N(mean, std^2))` on L ascending levels from 0, `[..., L]`; a mean of -inf stays at 0."""
    mean, std = (jnp.asarray(x)[..., None] for x in (mean, std))
    levels = jnp.asarray(levels)
    some = jnp.isfinite(mean)
    log_mean = jnp.where(some, mean, 0)
    positive = levels > 0
    z = (log_mean - jnp.log(jnp.where(positive, levels, 1))) / std
    expected = jnp.exp(log_mean + std**2 / 2)
    excess = jnp.where(positive, expected * ndtr(z + std) - levels * ndtr(z), expected - levels)
    return jnp.where(some, _interpolate(levels, excess), jnp.arange(levels.size) == 0)


def harvest(growth: ArrayLike, levels: ArrayLike, discount: ArrayLike, *, initial: ArrayLike | None = None) -> MDP:
    """The decision problem of a harvester, an `MDP` of L states and L actions.

    - `growth`: `[L, L]`, the law of the next stock, given the level that was left.
    - `levels`: `[L]`, of the stock, ascending from 0, units of the catch.
    - `initial`: `[L]`, the law of the first stock; None: uniform.

    Raises ValueError for shapes that do not fit, and what `jaxrl.mdp.validate` raises.
    """
    growth, levels = jnp.asarray(growth), jnp.asarray(levels)
    if levels.ndim != 1 or growth.shape != levels.shape * 2:
        raise ValueError(f"growth has shape {growth.shape}, expected [L, L] for levels of shape {levels.shape}")
    count = levels.size
    left = jnp.minimum(jnp.arange(count)[:, None], jnp.arange(count))
    start = jnp.full(count, 1 / count, growth.dtype) if initial is None else jnp.asarray(initial)
    model = MDP(growth[left], levels[:, None] - levels[left], jnp.asarray(discount, float), start)
    validate(model)
    return model


def _interpolate(levels: jax.Array, excess: jax.Array) -> jax.Array:
    """The law on the levels `[L]` of what has the expected excess `[..., L]` over each of them."""
    if levels.ndim != 1 or levels.size < 2:
        raise ValueError(f"levels has shape {levels.shape}, expected [L] with at least 2 levels")
    above = -jnp.diff(excess, axis=-1) / jnp.diff(levels)  # the mean of P(x' > l) between two levels
    edges = jnp.concatenate([jnp.ones_like(above[..., :1]), above, jnp.zeros_like(above[..., :1])], axis=-1)
    law = jnp.maximum(-jnp.diff(edges, axis=-1), 0)
    return law / jnp.sum(law, axis=-1, keepdims=True)
