"""Stock augmentation: an environment that also shows what has been collected so far."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.types import Box, Environment, PyTree, Spec, Step


@struct.dataclass
class StockParams:
    """The parameters of the environment within, and those of the stock."""

    env: PyTree
    stock: float | jax.Array  # of the first step, in units of the reward
    discount: float | jax.Array  # per step, in (0, 1]


@struct.dataclass
class StockState:
    """The state of the environment within, and the stock."""

    env: PyTree
    stock: jax.Array  # []


@dataclasses.dataclass(frozen=True)
class StockAugmented:
    r"""An environment that also observes its stock, the rewards so far in units of the present reward.

        c_{t+1} = (c_t + r_{t+1}) / discount,    so that    c_0 + sum_t discount^t r_{t+1} = discount^t (c_t + G_t)

    It stands last in the observation, of `observation_size + 1` numbers; rewards, ends and dynamics are those of `env`.
    With it a policy can serve an objective of the law of the whole return, as its CVaR, better than any that sees the
    state alone; the initial stock says which, and is a parameter, to be varied with `vmap`. See
    `jaxrl.distributional.dynamic_programming.stock`.

    With a discount below 1 it grows as discount^-t: keep episodes short of a few 1 / (1 - discount) steps, or
    normalise observations.

    - `env`: one whose observation is a vector.
    - `discount`: that of the objective, in (0, 1]; the agent's.
    - `stock`: the default of the initial stock.

    Raises ValueError for an observation that is no vector and for a discount outside (0, 1].

    Source: Pires et al. 2025, "Optimizing Return Distributions with Distributional Dynamic Programming", section 3;
    Baeuerle and Ott 2011, "Markov Decision Processes with Average-Value-at-Risk Criteria".
    """

    env: Environment
    discount: float
    stock: float = 0.0

    def __post_init__(self) -> None:
        observation = self.env.spec.observation
        if not isinstance(observation, Box) or len(observation.shape) != 1:
            raise ValueError(
                f"StockAugmented.env observes {observation}, expected a Box with one axis, to append the stock to; "
                f"flatten or encode the observation first"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"StockAugmented.discount must be in (0, 1], got {self.discount}")

    @property
    def spec(self) -> Spec:
        inner = self.env.spec
        assert isinstance(inner.observation, Box)  # __post_init__ has seen to it
        low, high = (tuple(float(x) for x in bound) for bound in inner.observation.bounds())
        observation = Box((len(low) + 1,), (*low, -math.inf), (*high, math.inf), inner.observation.dtype)
        return Spec(observation, inner.action)

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> StockParams:
        return StockParams(self.env.params(), jnp.asarray(self.stock, float), jnp.asarray(self.discount, float))

    def reset(self, params: StockParams, key: jax.Array) -> tuple[StockState, jax.Array]:
        state, observation = self.env.reset(params.env, key)
        stock = jnp.asarray(params.stock, float)
        return StockState(state, stock), _observe(observation, stock)

    def step(
        self, params: StockParams, state: StockState, action: jax.Array, key: jax.Array
    ) -> tuple[StockState, Step]:
        inner, step = self.env.step(params.env, state.env, action, key)
        stock = jnp.asarray((state.stock + step.reward) / params.discount, state.stock.dtype)
        return StockState(inner, stock), dataclasses.replace(step, observation=_observe(step.observation, stock))


def _observe(observation: jax.Array, stock: jax.Array) -> jax.Array:
    """The observation with the stock at its end."""
    return jnp.append(observation, stock.astype(observation.dtype))
