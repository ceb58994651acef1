"""A stock of fish on a grid: a decision problem whose successors are many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jax.typing import ArrayLike

from jaxrl.mdp.checks import validate
from jaxrl.mdp.model import MDP
from jaxrl.types import check_positive


def fishery(
    levels: int = 101,
    quotas: int = 21,
    discount: ArrayLike = 0.99,
    *,
    growth: ArrayLike = 0.3,
    capacity: ArrayLike = 1.0,
    threshold: ArrayLike = 0.5,
    noise: ArrayLike = 0.1,
) -> MDP:
    """How much to fish from a stock that dies out below a threshold (an Allee effect), on a grid.

        y = max(stock - quota, 0),    log stock' ~ N(log y + growth (1 - y/capacity) (y - threshold), (noise y)^2)

    The reward is the catch, min(stock, quota). The `levels` of the stock go from 0, which is for good, to twice the
    capacity, the `quotas` from 0 to the capacity. A stock between two levels goes to both, in shares that keep its
    mean, so that a slow decline is one on the grid, too; one above the highest goes there. It starts at 0.75 capacity.

    - `threshold`: in units of the stock.
    - `noise`: per unit of the stock, above 0.

    Source: `fishing-v2` of gym_fishing (Lapeyrolerie, Chapman, Norman, Boettiger 2022, "Deep Reinforcement Learning for
    Conservation Decisions"), with its numbers save the noise, which is 0 there.
    """
    check_positive("fishery", levels=levels - 1, quotas=quotas)
    if isinstance(noise, (int, float)) and not noise > 0:
        raise ValueError(f"fishery.noise must be above 0, got {noise}")
    capacity = jnp.asarray(capacity, float)
    stock = jnp.linspace(0, 2, levels) * capacity
    quota = jnp.linspace(0, 1, quotas) * capacity
    left = jnp.maximum(stock[:, None] - quota, 0)
    some = left > 0
    y = jnp.where(some, left, 1)
    law = _log_normal_on(stock, jnp.log(y) + growth * (1 - y / capacity) * (y - threshold), noise * y)
    law = jnp.where(some[..., None], law, jnp.arange(levels) == 0)
    start = np.eye(levels)[np.argmin(np.abs(np.linspace(0, 2, levels) - 0.75))]
    catch = jnp.minimum(stock[:, None], quota)
    model = MDP(law, catch, jnp.asarray(discount, float), jnp.asarray(start, float))
    validate(model)
    return model


def _log_normal_on(levels: jax.Array, mean: jax.Array, std: ArrayLike) -> jax.Array:
    """The law exp(N(mean, std^2)) on ascending levels from 0, by linear interpolation, `[..., len(levels)]`."""
    mean, std = mean[..., None], jnp.asarray(std)[..., None]
    z = (jnp.log(jnp.maximum(levels, jnp.finfo(levels.dtype).tiny)) - mean) / std
    mass = _between(z[..., :-1], z[..., 1:])
    moment = jnp.exp(mean + std**2 / 2) * _between(z[..., :-1] - std, z[..., 1:] - std)
    gap = jnp.diff(levels)
    down = jnp.maximum(levels[1:] * mass - moment, 0) / gap
    up = jnp.maximum(moment - levels[:-1] * mass, 0) / gap
    law = jnp.concatenate([down, ndtr(-z[..., -1:])], axis=-1).at[..., 1:].add(up)
    return law / jnp.sum(law, axis=-1, keepdims=True)


def _between(low: jax.Array, high: jax.Array) -> jax.Array:
    """P(low < Z < high) of a standard normal Z, with the relative precision of the tails."""
    return jnp.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
