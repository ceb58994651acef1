"""Brax's environments: rigid bodies on four physics engines.

Adapts Brax's raw environments (https://github.com/google/brax, `brax.envs`), without its wrappers, so that the end of
an episode is told apart from its time limit. Brax expects actions in [-1, 1] everywhere: its pendulum, pusher and
humanoids stretch them to the limits of their actuators, the actuators of the others have these limits.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs._shared import like, optional, scalars, strong
from jaxrl.types import Box, Environment, PyTree, Spec, Step, check_positive

NAMES = (
    "ant",
    "fast",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
)
REFUSED = {
    "swimmer": "Brax's model of fluids calls jax.numpy.clip with a_min, which JAX has removed, and no other part "
    "of Brax simulates fluids"
}
BACKENDS = ("spring", "generalized", "positional", "mjx")


def make(name: str, backend: str | None, *, max_steps: int = 1000, **settings: Any) -> Environment:
    """The environment that Brax calls `name`; `settings` go to its constructor."""
    with _no_warnings(), contextlib.redirect_stdout(io.StringIO()), optional("brax", "pip install brax"):
        import mujoco
        from brax import envs

        warn = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)  # by default it writes to stderr and to MUJOCO_LOG.TXT
        try:
            env = envs.get_environment(name, backend=backend, **settings)
        finally:
            mujoco.set_mju_user_warning(warn)
    return Brax(env, max_steps)


class Brax:
    """A raw Brax environment, which observes one array, as an Environment.

    The state is Brax's own; the last observation, reward and metrics in it are a quarter of its bytes for the humanoid
    and about a twentieth for most others. Reset and step are compiled even where they are called outside `jit`: run
    operation by operation, a first reset takes up to half a minute.
    """

    def __init__(self, env: Any, max_steps: int = 1000) -> None:
        check_positive("Brax", max_steps=max_steps)
        self.env = env
        self.max_steps = max_steps
        self._reset = jax.jit(_quietly(env.reset))
        self._step = jax.jit(_quietly(env.step))
        observation = jax.eval_shape(self._reset, jax.random.key(0)).obs  # env.observation_size runs a reset
        if not isinstance(observation, jax.ShapeDtypeStruct):
            raise ValueError(f"observations of {type(env).__name__} are {observation}, expected one array")
        self.spec = Spec(
            observation=Box(observation.shape, dtype=observation.dtype.name),
            action=Box((env.action_size,), -1.0, 1.0, dtype=jnp.result_type(float).name),
        )

    def __repr__(self) -> str:
        backend = getattr(self.env, "_backend", None)  # Brax's own `fast` has none
        return f"Brax({type(self.env).__name__}, backend={backend!r}, max_steps={self.max_steps})"

    def params(self) -> PyTree:
        return {}

    def reset(self, params: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]:
        state = strong(self._reset(key))
        return state, state.obs

    def step(self, params: PyTree, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]:
        state = like(self._step(state, action), state)
        return state, Step(
            observation=state.obs,
            reward=state.reward,
            terminated=state.done.astype(bool),
            truncated=jnp.zeros((), bool),
            metrics=scalars(state.metrics),
        )


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Keeps from users that Brax is no longer developed, and uses deprecated parts of JAXopt and MuJoCo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced without warnings."""

    def traced(*arguments: Any) -> Any:
        with _no_warnings():
            return function(*arguments)

    return traced
