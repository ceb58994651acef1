"""A bandit whose policy gradient is known in closed form: to tell a good estimate of it from a bad one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.envs.tiny import float_name
from jaxrl.types import Box, Spec, Step, canonical


@struct.dataclass
class GaussianBanditParams:
    """The reward of `GaussianBandit`."""

    linear: float | jax.Array = 0.0
    quadratic: float | jax.Array = 1.0
    noise: float | jax.Array = 1.0  # standard deviation


@dataclasses.dataclass(frozen=True)
class GaussianBandit:
    """One step, whose reward is a noisy polynomial of an action in R.

        reward = linear a + quadratic a^2 + noise * standard normal

    The observation is 0, so that a linear policy a ~ N(mean, std^2) has its bias for a mean. The first environment of
    Ghavamzadeh, Engel and Valko 2016, section 7.1, which has (linear, quadratic) of (1, 0) and (0, 1) without noise.
    """

    max_steps: int = 10

    @property
    def spec(self) -> Spec:
        return Spec(observation=Box((1,), dtype=float_name()), action=Box((1,), dtype=float_name()))

    def params(self) -> GaussianBanditParams:
        return canonical(GaussianBanditParams())

    def reset(self, params: GaussianBanditParams, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(
        self, params: GaussianBanditParams, state: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Step]:
        noise = params.noise * jax.random.normal(key, (), action.dtype)
        reward = params.linear * action[0] + params.quadratic * action[0] ** 2 + noise
        over = jnp.ones((), bool)
        return state, Step(observation=state, reward=reward, terminated=over, truncated=~over)

    @staticmethod
    def expected_reward(params: GaussianBanditParams, mean: ArrayLike, std: ArrayLike) -> jax.Array:
        """`linear mean + quadratic (mean^2 + std^2)` under a ~ N(mean, std^2): its slopes are the policy gradient."""
        return jnp.asarray(params.linear * mean + params.quadratic * (mean**2 + std**2))
