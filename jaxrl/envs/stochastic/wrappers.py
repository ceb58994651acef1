"""What is random in actions, observations and rewards, around any environment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.types import Box, Environment, PyTree, Space, Spec, Step

Strength = float | tuple[float, ...]


@struct.dataclass
class StochasticParams:
    """The parameters of the environment within, and how strongly it is disturbed."""

    env: PyTree
    strength: jax.Array  # [], or one for each element: [D] for observations, [K] for parameters


@struct.dataclass
class StochasticState:
    """The state of the environment within, and what the disturbance remembers."""

    env: PyTree
    memory: PyTree


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is random in an environment: pure functions, each of which leaves things as they are by default."""

    name: str
    space: Callable[[Space], Space] = lambda observation: observation
    memory: Callable[[Space], PyTree] = lambda action: ()
    act: Callable[..., tuple[jax.Array, PyTree]] = lambda space, strength, memory, action, key: (action, memory)
    observe: Callable[..., jax.Array] = lambda strength, observation, key: observation
    reward: Callable[..., jax.Array] = lambda strength, reward, key: reward


@dataclasses.dataclass(frozen=True)
class Stochastic:
    """An environment with something random in its actions, observations or rewards; the functions below make it."""

    env: Environment
    strength: Strength
    kind: Kind

    def __repr__(self) -> str:
        return f"{self.kind.name}({self.env}, {self.strength})"

    @property
    def spec(self) -> Spec:
        return Spec(self.kind.space(self.env.spec.observation), self.env.spec.action)

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> StochasticParams:
        return StochasticParams(self.env.params(), jnp.asarray(self.strength, float))

    def reset(self, params: StochasticParams, key: jax.Array) -> tuple[StochasticState, jax.Array]:
        reset_key, observe_key = jax.random.split(key)
        state, observation = self.env.reset(params.env, reset_key)
        state = StochasticState(state, self.kind.memory(self.env.spec.action))
        return state, self.kind.observe(params.strength, observation, observe_key)

    def step(
        self, params: StochasticParams, state: StochasticState, action: jax.Array, key: jax.Array
    ) -> tuple[StochasticState, Step]:
        act_key, step_key, observe_key, reward_key = jax.random.split(key, 4)
        action, memory = self.kind.act(self.env.spec.action, params.strength, state.memory, action, act_key)
        inner, step = self.env.step(params.env, state.env, action, step_key)
        step = dataclasses.replace(
            step,
            observation=self.kind.observe(params.strength, step.observation, observe_key),
            reward=self.kind.reward(params.strength, step.reward, reward_key),
        )
        return StochasticState(inner, memory), step


def sticky_actions(env: Environment, probability: float) -> Stochastic:
    """With `probability`, in [0, 1], the environment repeats the last action it took; the first one is never repeated.

    Raises ValueError for a probability outside [0, 1].
    """
    check_strength("sticky_actions", 1, probability=probability)
    return Stochastic(env, probability, _STICKY)


def corrupted_actions(env: Environment, probability: float) -> Stochastic:
    """With `probability`, in [0, 1], the environment takes a random action, drawn from `env.spec.action.sample`.

    STORI's type 1 has 0.3. Raises ValueError for a probability outside [0, 1].
    """
    check_strength("corrupted_actions", 1, probability=probability)
    return Stochastic(env, probability, _CORRUPTED)


def noisy_observations(env: Environment, std: Strength) -> Stochastic:
    """Observations with independent normal noise of standard deviation `std` >= 0, one for all or for each element.

    The state is not disturbed; the observations are unbounded. Raises ValueError for a negative `std`, for a tuple of
    another length than the last axis of observations, and for observations that are not real numbers.
    """
    check_strength("noisy_observations", math.inf, std=std)
    check_observed("noisy_observations", env, std, real=True)
    return Stochastic(env, std, _NOISY)


def masked_observations(env: Environment, probability: Strength) -> Stochastic:
    """Observations in which each element is 0 with `probability`, in [0, 1], independently, at each step anew.

    As a tuple with one probability for each element, 1 hides an element for good. Raises ValueError for a probability
    outside [0, 1], and for a tuple of another length than the last axis of observations.
    """
    check_strength("masked_observations", 1, probability=probability)
    check_observed("masked_observations", env, probability)
    return Stochastic(env, probability, _MASKED)


def random_rewards(env: Environment, std: float) -> Stochastic:
    """Rewards with normal noise of standard deviation `std` >= 0, in units of the reward.

    Raises ValueError for a negative `std`.
    """
    check_strength("random_rewards", math.inf, std=std)
    return Stochastic(env, std, _RANDOM_REWARDS)


def _no_action(space: Space) -> tuple[jax.Array, jax.Array]:
    return space.zeros(), jnp.zeros((), bool)


def _stick(space: Space, strength: jax.Array, memory: PyTree, action: jax.Array, key: jax.Array) -> Any:
    last, started = memory
    action = jnp.where(started & jax.random.bernoulli(key, strength), last, action).astype(last.dtype)
    return action, (action, jnp.ones_like(started))


def _corrupt(space: Space, strength: jax.Array, memory: PyTree, action: jax.Array, key: jax.Array) -> Any:
    key, sample_key = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(key, strength), space.sample(sample_key), action), memory


def _add_noise(strength: jax.Array, value: jax.Array, key: jax.Array) -> jax.Array:
    noise = strength * jax.random.normal(key, value.shape, value.dtype)
    return value + noise.astype(value.dtype)


def _mask(strength: jax.Array, observation: jax.Array, key: jax.Array) -> jax.Array:
    hidden = jax.random.bernoulli(key, strength, observation.shape)
    return jnp.where(hidden, jnp.zeros_like(observation), observation)


def _unbounded(space: Space) -> Space:
    assert isinstance(space, Box)  # check_observed has seen to it
    return Box(space.shape, dtype=space.dtype)


def with_zero(space: Space) -> Space:
    """The box, with bounds between which 0 is."""
    assert isinstance(space, Box)
    low, high = (
        tuple(float(f(0, x)) for x in bound) if isinstance(bound, tuple) else float(f(0, bound))
        for f, bound in ((min, space.low), (max, space.high))
    )
    return dataclasses.replace(space, low=low, high=high)


_STICKY = Kind("sticky_actions", memory=_no_action, act=_stick)
_CORRUPTED = Kind("corrupted_actions", act=_corrupt)
_NOISY = Kind("noisy_observations", space=_unbounded, observe=_add_noise)
_MASKED = Kind("masked_observations", space=with_zero, observe=_mask)
_RANDOM_REWARDS = Kind("random_rewards", reward=_add_noise)


# ------------------------------------------------------------------------------------------- checks


def check_strength(owner: str, most: float, **strengths: Strength) -> None:
    """Raises ValueError unless all numbers lie in [0, most]."""
    for name, strength in strengths.items():
        try:
            hash(strength)
            numbers = np.asarray(strength, float)
        except (TypeError, ValueError):
            raise ValueError(f"{owner}: {name} is {strength!r}, expected a number, or a tuple of numbers") from None
        if not np.all((numbers >= 0) & (numbers <= most) & np.isfinite(numbers)):
            expected = "at least 0" if most == math.inf else f"in [0, {most}]"
            raise ValueError(f"{owner}: {name} is {strength}, expected {expected}")


def check_observed(owner: str, env: Environment, strength: Strength, real: bool = False) -> None:
    """Raises ValueError unless observations are in a Box, of real numbers if `real`, that `strength` fits."""
    space = env.spec.observation
    if not isinstance(space, Box) or (real and not jnp.issubdtype(space.dtype, jnp.floating)):
        raise ValueError(f"{owner}: observations are {space}, expected a Box{' of real numbers' if real else ''}")
    if isinstance(strength, tuple) and (len(strength),) != space.shape[-1:]:
        raise ValueError(
            f"{owner}: {len(strength)} strengths for observations of shape {space.shape}, expected one for all or for "
            f"each element of the last axis"
        )
