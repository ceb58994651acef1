"""A stock of fish with a tipping point, in continuous stock and quota."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.envs.tiny import float_name
from jaxrl.mdp import MDP
from jaxrl.mdp.harvest import harvest, log_normal_law
from jaxrl.types import Box, Spec, Step, canonical, check_positive

EXTINCT = 0.01  # of the capacity: below, the episode is over


@struct.dataclass
class FisheryParams:
    """The dynamics of `Fishery`."""

    growth: float | jax.Array = 2.0  # r, per year
    capacity: float | jax.Array = 8.0  # K, where an unharvested stock comes to rest, units of the stock
    threshold: float | jax.Array = 5.0  # C, below which it dies out
    noise: float | jax.Array = 0.05  # sigma, of the logarithm of the stock, per year
    initial: float | jax.Array = 10.0  # median of the first stock


@dataclasses.dataclass(frozen=True)
class Fishery:
    r"""How much to fish each year from a stock that dies out below a threshold (an Allee effect).

        s = x - min(quota, x),    x' = s exp(growth (1 - s / capacity) (s - threshold) / capacity + noise N(0, 1))

    The observation is the stock x, the action the quota, and the reward the catch min(quota, x). It starts at
    `initial` times exp(noise N(0, 1)), and terminates when the stock is below a hundredth of the capacity.

    Source: Boettiger, Mangel and Munch 2015, "Avoiding tipping points in fisheries management through Gaussian process
    dynamic programming", the Allen model with the numbers of their code.
    """

    max_steps: int = 50
    max_quota: float = 10.0

    def __post_init__(self) -> None:
        check_positive("Fishery", max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        dtype = float_name()
        return Spec(Box((1,), 0.0, float("inf"), dtype), Box((1,), 0.0, self.max_quota, dtype))

    def params(self) -> FisheryParams:
        return canonical(FisheryParams())

    def reset(self, params: FisheryParams, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        stock = params.initial * jnp.exp(params.noise * jax.random.normal(key))
        return stock, stock[None]

    def step(
        self, params: FisheryParams, state: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Step]:
        catch = jnp.clip(action[0], 0, state)
        log_growth = self.log_growth(params, state - catch)
        stock = (state - catch) * jnp.exp(log_growth + params.noise * jax.random.normal(key, (), state.dtype))
        over = stock < EXTINCT * params.capacity
        return stock, Step(stock[None], catch, terminated=over, truncated=jnp.zeros((), bool))

    @staticmethod
    def log_growth(params: FisheryParams, left: jax.Array) -> jax.Array:
        """The expected logarithm of the next stock over what was left, in the shape of `left`."""
        return jnp.asarray(params.growth) * (1 - left / params.capacity) * (left - params.threshold) / params.capacity

    @staticmethod
    def model(params: FisheryParams, levels: jax.Array, discount: ArrayLike) -> MDP:
        """The same problem on L ascending levels of the stock, from 0; the action is what is left at most.

        Its solution is the optimum, up to the distance of two levels.
        """
        some = levels > 0
        log_mean = jnp.log(jnp.where(some, levels, 1)) + Fishery.log_growth(params, levels)
        growth = log_normal_law(levels, jnp.where(some, log_mean, -jnp.inf), params.noise)
        return harvest(growth, levels, discount)
