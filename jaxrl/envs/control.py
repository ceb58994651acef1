"""The two control problems of Bayesian actor-critic: a random walk and a mountain car."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from jaxrl.envs.tiny import float_name, going_on
from jaxrl.mdp import MDP
from jaxrl.types import Box, Discrete, Spec, Step, canonical, check_positive

# ------------------------------------------------------------------------------------- random walk


@struct.dataclass
class RandomWalkParams:
    """The reward of `RandomWalk`."""

    reward: float | jax.Array = -1.0  # mean, of a step
    noise: float | jax.Array = 1.0  # standard deviation of the reward


@dataclasses.dataclass(frozen=True)
class RandomWalk:
    r"""Walk along a line: it starts at its left end, where it is reflected, and is over at its right end.

        x' = max(x - 1, 0) for action 0, x + 1 for action 1,    reward = params.reward + params.noise * standard normal

    The state is observed as a one-hot vector of the `states - 1` places to walk from; the last one is all zeros.

    Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", section 8, with
    the sign of a cost: its reward of +1 a step would be for staying.
    """

    states: int = 10
    max_steps: int = 600

    def __post_init__(self) -> None:
        check_positive("RandomWalk", max_steps=self.max_steps)
        if self.states < 2:
            raise ValueError(f"RandomWalk.states must be at least 2, a start and an end, got {self.states}")

    @property
    def spec(self) -> Spec:
        return Spec(Box((self.states - 1,), 0.0, 1.0, float_name()), action=Discrete(2))

    def params(self) -> RandomWalkParams:
        return canonical(RandomWalkParams())

    def reset(self, params: RandomWalkParams, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.zeros((), jnp.int32)
        return state, self._observe(state)

    def step(
        self, params: RandomWalkParams, state: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Step]:
        state = jnp.where(action == 1, state + 1, jnp.maximum(state - 1, 0))
        reward = params.reward + params.noise * jax.random.normal(key)
        step = going_on(self._observe(state), reward)
        return state, dataclasses.replace(step, terminated=state == self.states - 1)

    def model(self, params: RandomWalkParams, discount: ArrayLike) -> MDP:
        """The walk as a finite MDP of the expected reward, whose last state stays and is worth nothing."""
        end = self.states - 1
        place = np.arange(end)
        transition = np.zeros((self.states, 2, self.states))
        transition[place, 0, np.maximum(place - 1, 0)] = 1
        transition[place, 1, place + 1] = 1
        transition[end, :, end] = 1
        reward = jnp.where(jnp.arange(self.states) < end, jnp.asarray(params.reward), 0)
        rewards = jnp.broadcast_to(reward[:, None], (self.states, 2))
        initial = jnp.eye(self.states)[0]
        return canonical(MDP(jnp.asarray(transition), rewards, jnp.asarray(discount), initial))

    def _observe(self, state: jax.Array) -> jax.Array:
        return jax.nn.one_hot(state, self.states - 1, dtype=float)


# ------------------------------------------------------------------------------------ mountain car


@struct.dataclass
class MountainCarParams:
    """The dynamics of `MountainCar`."""

    force: float | jax.Array = 0.001
    gravity: float | jax.Array = 0.0025


@struct.dataclass
class MountainCarState:
    """Where the car is."""

    position: jax.Array  # [], in [-1.2, 0.5]
    velocity: jax.Array  # [], in [-0.07, 0.07]


@dataclasses.dataclass(frozen=True)
class MountainCar:
    r"""Drive an underpowered car out of a valley, with full throttle back (action 0) or forth (action 1).

        velocity' = clip(velocity +- force - gravity cos(3 position), -0.07, 0.07)
        position' = clip(position + velocity', -1.2, 0.5),    where -1.2 stops it, and 0.5 is the goal
        reward    = -1, and 0 for the step that reaches the goal

    It starts anywhere at any velocity. The observation is the state on a grid of `grid` x `grid` radial basis functions
    with centres (i - 1/2) / grid and width 1.3 / grid, where both coordinates are scaled to [0, 1].

    Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", section 8.
    """

    grid: int = 4
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive("MountainCar", grid=self.grid, max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        return Spec(Box((self.grid**2,), 0.0, 1.0, float_name()), action=Discrete(2))

    def params(self) -> MountainCarParams:
        return canonical(MountainCarParams())

    def reset(self, params: MountainCarParams, key: jax.Array) -> tuple[MountainCarState, jax.Array]:
        position_key, velocity_key = jax.random.split(key)
        position = jax.random.uniform(position_key, minval=-1.2, maxval=0.5)
        velocity = jax.random.uniform(velocity_key, minval=-0.07, maxval=0.07)
        state = MountainCarState(position, velocity)
        return state, self._observe(state)

    def step(
        self, params: MountainCarParams, state: MountainCarState, action: jax.Array, key: jax.Array
    ) -> tuple[MountainCarState, Step]:
        push = jnp.where(action == 1, params.force, -params.force)
        velocity = jnp.clip(state.velocity + push - params.gravity * jnp.cos(3 * state.position), -0.07, 0.07)
        position = jnp.clip(state.position + velocity, -1.2, 0.5)
        velocity = jnp.where(position <= -1.2, 0.0, velocity)
        there = position >= 0.5
        state = MountainCarState(position, velocity)
        step = going_on(self._observe(state), there.astype(position.dtype) - 1)
        return state, dataclasses.replace(step, terminated=there)

    def _observe(self, state: MountainCarState) -> jax.Array:
        scaled = jnp.stack([(state.position + 1.2) / 1.7, (state.velocity + 0.07) / 0.14])
        centres = (jnp.arange(self.grid) + 0.5) / self.grid
        near = jnp.exp(-(((scaled[:, None] - centres) * self.grid / 1.3) ** 2) / 2)  # [2, grid]
        return (near[0][:, None] * near[1]).ravel()
