"""A stock of fish on a grid: a decision problem whose successors are many."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.mdp.checks import validate
from jaxrl.mdp.harvest import log_normal_law
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
    mean = jnp.where(some, jnp.log(y) + growth * (1 - y / capacity) * (y - threshold), -jnp.inf)
    law = log_normal_law(stock, mean, noise * y)
    start = np.eye(levels)[np.argmin(np.abs(np.linspace(0, 2, levels) - 0.75))]
    catch = jnp.minimum(stock[:, None], quota)
    model = MDP(law, catch, jnp.asarray(discount, float), jnp.asarray(start, float))
    validate(model)
    return model
