"""Parameters of a family of environments that walk at random, within episodes and between them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs.stochastic.wrappers import StochasticParams, StochasticState, Strength, check_strength
from jaxrl.envs.uncertainty import Uncertain
from jaxrl.types import Environment, PyTree, Spec, Step


@dataclasses.dataclass(frozen=True)
class Drifting:
    r"""A family of environments whose parameters walk at random while an episode lasts.

        p_0 = params.env,    p_{t+1} = reflect(p_t + strength * standard normal)

    in the unit box of the family, widened to the nominal model, at whose walls the walk is reflected. Each episode
    starts at the parameters that it is given: `between_episodes` has those walk from one episode to the next.

    - `env`: a family, `jaxrl.envs.uncertain(...)`.
    - `strength`: the default of the standard deviation of one step, in widths of the ranges; one for all parameters,
      or one for each.

    Raises ValueError for an environment that is no family, a negative strength, and a tuple of the wrong length.
    """

    env: Uncertain
    strength: Strength

    def __post_init__(self) -> None:
        check_strength("Drifting", math.inf, strength=self.strength)
        if not isinstance(self.env, Uncertain):
            raise ValueError(
                f"Drifting.env is {self.env}, expected a family, jaxrl.envs.uncertain(env, ranges); wrap the family in "
                f"it first, and then in what else is random"
            )
        if isinstance(self.strength, tuple) and len(self.strength) != len(self.env.names):
            raise ValueError(
                f"Drifting.strength has {len(self.strength)} numbers, expected one for each of "
                f"{', '.join(self.env.names)}"
            )

    @property
    def spec(self) -> Spec:
        return self.env.spec

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> StochasticParams:
        return StochasticParams(self.env.params(), jnp.asarray(self.strength, float))

    def reset(self, params: StochasticParams, key: jax.Array) -> tuple[StochasticState, jax.Array]:
        state, observation = self.env.reset(params.env, key)
        return StochasticState(state, memory=jnp.asarray(params.env)), observation

    def step(
        self, params: StochasticParams, state: StochasticState, action: jax.Array, key: jax.Array
    ) -> tuple[StochasticState, Step]:
        step_key, walk_key = jax.random.split(key)
        inner, step = self.env.step(state.memory, state.env, action, step_key)
        return StochasticState(inner, walk(self.env, state.memory, params.strength, walk_key)), step


@functools.cache
def between_episodes(env: Environment, strength: float) -> Callable[..., PyTree]:
    r"""A `propose` for `train.loop` and `train.fit`, by which the parameters of a family walk from episode to episode.

        params' = reflect(params + strength * standard normal),    in each lane by itself

    `env` is the environment of the loop, a family (`jaxrl.envs.uncertain`) or one wrapped by others; `strength` >= 0 is
    the standard deviation of a step, in widths of the ranges. The same arguments give the same function, and loop.

    Raises ValueError for a negative strength, and where there is no family within `env`.
    """
    check_strength("between_episodes", math.inf, strength=strength)
    family(env)

    def moved(env: Any, params: PyTree, key: jax.Array) -> PyTree:
        if isinstance(env, Uncertain):
            return walk(env, params, strength, key)
        return dataclasses.replace(params, env=moved(env.env, params.env, key))

    def propose(config: Any, state: Any, params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
        return moved(env, params, key)

    return propose


def walk(env: Uncertain, params: jax.Array, strength: float | jax.Array, key: jax.Array) -> jax.Array:
    """One step of the random walk of `params` [..., K], reflected at the walls of the box."""
    nominal = env.params()
    low, high = jnp.minimum(0, nominal), jnp.maximum(1, nominal)
    size = high - low
    noise = strength * jax.random.normal(key, params.shape, params.dtype)
    unfolded = (params + noise.astype(params.dtype) - low) % (2 * size)
    return low + jnp.minimum(unfolded, 2 * size - unfolded)


def family(env: Any) -> Uncertain:
    """The family within `env`."""
    inner = env
    while not isinstance(inner, Uncertain):
        if not hasattr(inner, "env") or not hasattr(inner.params(), "env"):
            raise ValueError(f"{env} has no family within, expected one, made by jaxrl.envs.uncertain(env, ranges)")
        inner = inner.env
    return inner
