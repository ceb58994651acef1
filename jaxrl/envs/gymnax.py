"""gymnax's environments: classic control, bsuite, MinAtar and more.

Adapts the raw `reset_env` and `step_env` of gymnax 1 (https://github.com/RobertTLange/gymnax), which do not reset by
themselves. An environment's time enters some observations and `is_truncated`, never the termination; the limit
`max_steps` is therefore set in its parameters too, and what it calls truncated is reported.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs._shared import like, optional, scalars, strong
from jaxrl.types import Box, Discrete, Environment, PyTree, Space, Spec, Step, check_positive

NAMES = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Reacher-misc",
    "Swimmer-misc",
    "Pong-misc",
    "FrozenLake-misc",
)
REFUSED = {
    "MNISTBandit-bsuite": "it downloads its images; if that is wanted, "
    "jaxrl.envs.gymnax.Gymnax(gymnax.make('MNISTBandit-bsuite')[0])"
}
BACKENDS: tuple[str, ...] = ()


def make(name: str, backend: str | None, *, max_steps: int | None = None, **settings: Any) -> Environment:
    """The environment that gymnax calls `name`; `settings` go to its constructor."""
    with optional("gymnax", "pip install 'jaxrl[gymnax]'"):
        import gymnax
    version = importlib.metadata.version("gymnax")
    if int(version.partition(".")[0]) < 1:
        raise ImportError(
            f"gymnax {version} does not tell termination from truncation, expected 1.0 or later: "
            f"pip install -U 'jaxrl[gymnax]'"
        )
    return Gymnax(gymnax.make(name, **settings)[0], max_steps)


class Gymnax:
    """A gymnax environment as an Environment; `params()` are its default parameters, as arrays.

    Integers and flags among the parameters stay integers and flags. Spaces are those of the default parameters.
    """

    def __init__(self, env: Any, max_steps: int | None = None) -> None:
        defaults = env.default_params
        if max_steps is not None:
            check_positive("Gymnax", max_steps=max_steps)
            defaults = defaults.replace(max_steps_in_episode=type(defaults.max_steps_in_episode)(max_steps))
        self.env = env
        self.max_steps = int(defaults.max_steps_in_episode)
        self.spec = Spec(space(env.observation_space(defaults)), space(env.action_space(defaults)))
        self._defaults = defaults

    def __repr__(self) -> str:
        return f"Gymnax({self.env.name}, max_steps={self.max_steps})"

    def params(self) -> PyTree:
        return strong(self._defaults)

    def reset(self, params: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]:
        observation, state = self.env.reset_env(key, params)
        return strong(state), jnp.asarray(observation, self.spec.observation.dtype)

    def step(self, params: PyTree, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]:
        observation, successor, reward, terminated, info = self.env.step_env(key, state, action, params)
        return like(successor, state), Step(
            observation=jnp.asarray(observation, self.spec.observation.dtype),
            reward=jnp.asarray(reward, float),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(self.env.is_truncated(successor, params), bool),
            metrics=scalars({name: value for name, value in info.items() if name != "discount"}),  # 1 - terminated
        )


def space(original: Any) -> Space:
    """The Box or Discrete for a gymnax space.

    Bounds beyond float32's range become infinite, as do those that leave no room between them; bounds that differ
    within an array of several axes are replaced by the widest.

    Raises:
        ValueError: the space is neither a Box nor a Discrete.
    """
    kind = type(original).__name__
    if kind == "Discrete":
        return Discrete(int(original.n))
    if kind != "Box":
        raise ValueError(f"the space is a {kind}, expected a Box or a Discrete: {original}")
    shape = tuple(original.shape)
    low, high = (np.broadcast_to(np.asarray(bound, float), shape) for bound in (original.low, original.high))
    limit = float(np.finfo(np.float32).max)
    free = low >= high
    low = np.where(free | (low <= -limit), -np.inf, low)
    high = np.where(free | (high >= limit), np.inf, high)
    return Box(shape, _bound(low, np.min), _bound(high, np.max), np.dtype(original.dtype).name)


def _bound(values: np.ndarray, widest: Any) -> float | tuple[float, ...]:
    """One number where all `values` agree, or where they have several axes; one for each element otherwise."""
    if values.ndim == 1 and np.any(values != values[0]):
        return tuple(float(value) for value in values)
    return float(widest(values))
