"""Probes: environments so small that the right values are known, each of which tests one part of an agent.

The first five are those of Jones 2021, "Debugging Reinforcement Learning Systems". An agent that fails one, and passes
those before it, has its defect in what that one adds:

    Constant      the value of one observation (loss and optimiser of the critic)
    Observation   a value that depends on the observation (gradients through the network, normalisation)
    Discount      a value that comes from the next one (bootstrapping, the discount)
    Action        the better action (advantages, the loss of the policy)
    Context       the better action for each observation (batches that keep observations and actions together)
    Truncation    a stream of rewards that is cut off: the value goes on past the cut
    Termination   the same stream, but over at that point: the value does not

`values(discount)` has the optimal value of each observation, and an optimal action. `continuous=True` makes actions
numbers in [-1, 1]. Where an episode ends, the last observation is the first one again, so that an agent that wrongly
bootstraps there, or wrongly does not, is far off.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.envs.tiny import float_name
from jaxrl.types import Box, Discrete, Spec, Step, check_positive

Params = dict[str, jax.Array]  # always empty


class Values(NamedTuple):
    """What is known of a probe, for K observations in the order of an episode."""

    observation: jax.Array  # [K, D]
    value: jax.Array  # [K], under an optimal policy
    action: jax.Array  # [K], or [K, 1] if continuous: an optimal action, the only one if `Action` or `Context`


@dataclasses.dataclass(frozen=True)
class Constant:
    """One observation, 0, and one step, of reward 1. The value is 1."""

    continuous: bool = False
    max_steps: int = 10

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        return state, _step(state, 1.0, terminated=True)

    def values(self, discount: float) -> Values:
        return Values(jnp.zeros((1, 1)), jnp.ones(1), _any_action(1, self.continuous))


@dataclasses.dataclass(frozen=True)
class Observation:
    """An observation of -1 or 1, each half of the time, and one step. The reward, and the value, is the observation."""

    continuous: bool = False
    max_steps: int = 10

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _sign(key)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        return state, _step(state, state[0], terminated=True)

    def values(self, discount: float) -> Values:
        return Values(jnp.array([[-1.0], [1.0]]), jnp.array([-1.0, 1.0]), _any_action(2, self.continuous))


@dataclasses.dataclass(frozen=True)
class Discount:
    """Two steps, observed as 0 and then 1, the second of reward 1. The values are `discount` and 1."""

    continuous: bool = False
    max_steps: int = 10

    def __post_init__(self) -> None:
        check_positive("Discount", **{"max_steps - 2": self.max_steps - 2})

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        return 1 - state, _step(1 - state, state[0], terminated=state[0] == 1)

    def values(self, discount: float) -> Values:
        return Values(jnp.array([[0.0], [1.0]]), jnp.array([discount, 1.0]), _any_action(2, self.continuous))


@dataclasses.dataclass(frozen=True)
class Action:
    """One observation, 0, and one step. The value is 1, by the right action.

    The reward is 1 for action 1 and -1 for action 0; with continuous actions it is 1 - (action - 1/2)^2.
    """

    continuous: bool = False
    max_steps: int = 10

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous, actions=2)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        return state, _step(state, _reward(action, 1.0, self.continuous), terminated=True)

    def values(self, discount: float) -> Values:
        action = jnp.array([[0.5]]) if self.continuous else jnp.array([1])
        return Values(jnp.zeros((1, 1)), jnp.ones(1), action)


@dataclasses.dataclass(frozen=True)
class Context:
    """An observation of -1 or 1, each half of the time, and one step. The value is 1, by the right action for each.

    The reward is the observation for action 1 and minus the observation for action 0; with continuous actions it is
    1 - (action - observation / 2)^2.
    """

    continuous: bool = False
    max_steps: int = 10

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous, actions=2)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _sign(key)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        return state, _step(state, _reward(action, state[0], self.continuous), terminated=True)

    def values(self, discount: float) -> Values:
        action = jnp.array([[-0.5], [0.5]]) if self.continuous else jnp.array([0, 1])
        return Values(jnp.array([[-1.0], [1.0]]), jnp.ones(2), action)


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Reward 1 at each step for ever, cut off by the time limit. The value is 1 / (1 - discount) everywhere.

    The observation is the number of steps so far, modulo the limit, as a one-hot vector. Only an agent that bootstraps
    through the cut finds this value.
    """

    continuous: bool = False
    max_steps: int = 4

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous, size=self.max_steps)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _place(0, self.max_steps)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        state, observation = _place(state + 1, self.max_steps)
        return state, _step(observation, 1.0, terminated=False)

    def values(self, discount: float) -> Values:
        value = jnp.full(self.max_steps, 1 / (1 - discount))
        return Values(jnp.eye(self.max_steps), value, _any_action(self.max_steps, self.continuous))


@dataclasses.dataclass(frozen=True)
class Termination:
    """Reward 1 at each step, over after `length`. The value with k steps to go is (1 - discount^k) / (1 - discount).

    The observation is the number of steps so far as a one-hot vector, as in `Truncation`; only an agent that does not
    bootstrap at the end finds this value.
    """

    continuous: bool = False
    length: int = 4
    max_steps: int = 10

    def __post_init__(self) -> None:
        check_positive("Termination", length=self.length)
        check_positive("Termination", **{"max_steps - length": self.max_steps - self.length})

    @property
    def spec(self) -> Spec:
        return _spec(self.continuous, size=self.length)

    def params(self) -> Params:
        return {}

    def reset(self, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _place(0, self.length)

    def step(self, params: Params, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        state, observation = _place(state + 1, self.length)
        return state, _step(observation, 1.0, terminated=state == 0)

    def values(self, discount: float) -> Values:
        to_go = self.length - jnp.arange(self.length)
        value = (1 - discount**to_go) / (1 - discount)
        return Values(jnp.eye(self.length), value, _any_action(self.length, self.continuous))


# ----------------------------------------------------------------------------------------- helpers


def _spec(continuous: bool, size: int = 1, actions: int = 1) -> Spec:
    """Observations of `size` numbers in [-1, 1]; one number in [-1, 1], or one of `actions`, for an action."""
    dtype = float_name()
    action = Box((1,), -1.0, 1.0, dtype) if continuous else Discrete(actions)
    return Spec(observation=Box((size,), -1.0, 1.0, dtype), action=action)


def _step(observation: jax.Array, reward: float | jax.Array, terminated: bool | jax.Array) -> Step:
    """A step, which is never truncated."""
    return Step(
        observation=observation,
        reward=jnp.asarray(reward, float),
        terminated=jnp.asarray(terminated),
        truncated=jnp.zeros((), bool),
    )


def _sign(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-1 or 1, as a state and as an observation."""
    sign = jax.random.rademacher(key, (1,), float)
    return sign, sign


def _place(steps: int | jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The number of steps modulo `size`, as a state and as an observation, [size]."""
    state = jnp.asarray(steps, jnp.int32) % size
    return state, jax.nn.one_hot(state, size, dtype=float)


def _reward(action: jax.Array, context: float | jax.Array, continuous: bool) -> jax.Array:
    """The reward of `Action` (whose context is 1) and of `Context`."""
    if continuous:
        return 1 - (action[0] - context / 2) ** 2
    return context * (2 * action - 1)


def _any_action(count: int, continuous: bool) -> jax.Array:
    """An action for each of `count` observations, where it does not matter which."""
    return jnp.zeros((count, 1)) if continuous else jnp.zeros(count, jnp.int32)
