"""An adversary that has a share in the action."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.stochastic.wrappers import check_strength
from jaxrl.types import Box, Environment, PyTree, Spec, Step


@struct.dataclass
class MixedParams:
    """The parameters of the environment within, and what an adversary does to the action."""

    env: PyTree
    weight: jax.Array  # [], in [0, 1]
    adversary: jax.Array  # [*action]: the adversary's action


@dataclasses.dataclass(frozen=True)
class MixedActions:
    r"""An environment that takes a mixture of the agent's action and an adversary's.

        action = (1 - weight) agent + weight adversary

    The adversary's action is a parameter, so that a `propose` at each step plays the adversary (`Config.propose_at =
    "step"`, see `jaxrl.train.loop`); by default it is 0, or the nearest action. It is clipped to the bounds of actions.

    - `env`: one with continuous actions.
    - `weight`: the default of the adversary's share, in [0, 1]; 0.15 in RRLS, 0.1 in the paper.

    Raises ValueError for a weight outside [0, 1], and for discrete actions.

    Source: Tessler, Efroni and Mannor 2019, "Action Robust Reinforcement Learning and Applications in Continuous
    Control", definition 2 (the noisy action robust MDP).
    """

    env: Environment
    weight: float = 0.15

    def __post_init__(self) -> None:
        check_strength("MixedActions", 1, weight=self.weight)
        if not isinstance(self.env.spec.action, Box):
            raise ValueError(
                f"MixedActions.env acts in {self.env.spec.action}, expected a Box, in which actions can be mixed"
            )

    @property
    def spec(self) -> Spec:
        return self.env.spec

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> MixedParams:
        space = self.spec.action
        return MixedParams(self.env.params(), jnp.asarray(self.weight, float), space.clip(space.zeros()))

    def reset(self, params: MixedParams, key: jax.Array) -> tuple[PyTree, jax.Array]:
        return self.env.reset(params.env, key)

    def step(self, params: MixedParams, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]:
        adversary = self.spec.action.clip(params.adversary)
        mixed = (1 - params.weight) * action + params.weight * adversary
        return self.env.step(params.env, state, mixed.astype(action.dtype), key)
