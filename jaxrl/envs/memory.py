"""Environments that show more than the present observation: what came before, or the parameters in use.

Actors have no memory of their own, and do not see the parameters of an environment; in these they do, as far as it is
wanted. Each is an environment again, with the parameters of the one within.

>>> from jaxrl import envs
>>> from jaxrl.envs import memory
>>> family = envs.uncertain("jaxrl/pendulum", {"mass": (0.5, 2.5)})
>>> memory.Oracle(family).spec.observation.shape, memory.Stacked(family).spec.observation.shape
((4,), (7,))
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl.types import Box, Environment, PyTree, Space, Spec, Step


@dataclasses.dataclass(frozen=True)
class Oracle:
    r"""An environment that also shows its parameters, those that the last step was taken with, [n + d].

        o_t = (s_t, psi_t),    psi_0 those of the reset

    - `env`: one whose observation is a vector, as a family, `jaxrl.envs.uncertain(...)`, of d parameters; or of
      another one whose parameters are numbers, in the order of its leaves.

    Raises ValueError for an observation that is no vector.

    Source: Zouitine et al. 2024, "Time-Constrained Robust MDPs", the oracle.
    """

    env: Environment

    def __post_init__(self) -> None:
        _vector("Oracle", "observes", self.env.spec.observation)

    @property
    def spec(self) -> Spec:
        numbers = jax.eval_shape(lambda: ravel_pytree(self.env.params())[0]).size
        return Spec(_joined(self.env.spec.observation, Box((numbers,))), self.env.spec.action)

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> PyTree:
        return self.env.params()

    def reset(self, params: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]:
        state, observation = self.env.reset(params, key)
        return state, _joint(observation, ravel_pytree(params)[0])

    def step(self, params: PyTree, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]:
        state, step = self.env.step(params, state, action, key)
        return state, dataclasses.replace(step, observation=_joint(step.observation, ravel_pytree(params)[0]))


@struct.dataclass
class StackedState:
    """The state of the environment within, and what it showed last."""

    env: PyTree
    observation: jax.Array  # [n]


@dataclasses.dataclass(frozen=True)
class Stacked:
    r"""An environment that also shows its last observation and the action since, [n + n + A].

        o_t = (s_t, s_{t-1}, a_{t-1}),    o_0 = (s_0, s_0, 0)

    - `env`: one whose observation and action are vectors.

    Raises ValueError for others.

    Source: Zouitine et al. 2024, "Time-Constrained Robust MDPs", the stacked variant, which has them in another order.
    """

    env: Environment

    def __post_init__(self) -> None:
        _vector("Stacked", "observes", self.env.spec.observation)
        _vector("Stacked", "acts in", self.env.spec.action)

    @property
    def spec(self) -> Spec:
        inner = self.env.spec
        return Spec(_joined(inner.observation, inner.observation, Box(inner.action.shape)), inner.action)

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> PyTree:
        return self.env.params()

    def reset(self, params: PyTree, key: jax.Array) -> tuple[StackedState, jax.Array]:
        state, observation = self.env.reset(params, key)
        nothing = jnp.zeros(self.env.spec.action.shape, observation.dtype)
        return StackedState(state, observation), _joint(observation, observation, nothing)

    def step(self, params: PyTree, state: StackedState, action: jax.Array, key: jax.Array) -> tuple[StackedState, Step]:
        inner, step = self.env.step(params, state.env, action, key)
        shown = _joint(step.observation, state.observation, action)
        return StackedState(inner, step.observation), dataclasses.replace(step, observation=shown)


def _joint(observation: jax.Array, *others: jax.Array) -> jax.Array:
    """One vector of the type of the first."""
    return jnp.concatenate([observation, *(other.astype(observation.dtype) for other in others)])


def _joined(observation: Space, *others: Space) -> Box:
    """The box of `_joint`; what is added has no bounds of its own but those of observations."""
    assert isinstance(observation, Box)  # _vector has seen to it
    bounds = [box.bounds() for box in (observation, *others) if isinstance(box, Box)]
    low, high = (tuple(float(x) for bound in side for x in bound) for side in zip(*bounds, strict=True))
    return Box((len(low),), low, high, observation.dtype)


def _vector(owner: str, verb: str, space: Space) -> None:
    """Raises ValueError unless `space` is a Box with one axis."""
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(
            f"{owner}.env {verb} {space}, expected a Box with one axis, to put others beside it; flatten or encode it "
            f"in a wrapper first"
        )
