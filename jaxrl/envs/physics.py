"""What Brax and MuJoCo Playground share: an environment as `reset(key)` and `step(state, action)` on one State."""

from __future__ import annotations

import contextlib
import copy
import io
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.envs._shared import like, scalars, strong
from jaxrl.types import Box, PyTree, Spec, Step, check_positive


class Physics:
    """A raw environment of Brax or Playground, which observes one array and acts in [-1, 1], as an Environment.

    Its State holds `obs`, `reward`, `done` (the episode has terminated) and `metrics`, and is the state here; the last
    observation, reward and metrics in it are a quarter of its bytes for Brax's humanoid and about a twentieth for most
    others. Reset and step are compiled even where they are called outside `jit`: run operation by operation, a first
    reset takes up to half a minute. `label` is what the environment calls itself in records and checkpoints.

    Its parameters are the leaves of its model that are replaced, by their path (`{"link.inertia.mass": [links]}`),
    none of them by default. Brax and MJX read some leaves and ignore others without a word: `jaxrl.envs.uncertain` is
    the way to vary those that act, by name.
    """

    def __init__(self, env: Any, max_steps: int = 1000, label: str | None = None) -> None:
        check_positive("Physics", max_steps=max_steps)
        self.env = env
        self.max_steps = max_steps
        self.label = f"Physics({type(env).__name__}, max_steps={max_steps})" if label is None else label
        self._reset = jax.jit(_quietly(lambda params, key: _with(env, params).reset(key)))
        self._step = jax.jit(_quietly(lambda params, state, action: _step(_with(env, params), params, state, action)))
        observation = jax.eval_shape(self._reset, {}, jax.random.key(0)).obs  # env.observation_size may run a reset
        if not isinstance(observation, jax.ShapeDtypeStruct):
            raise ValueError(f"observations of {type(env).__name__} are {observation}, expected one array")
        self.spec = Spec(
            observation=Box(observation.shape, dtype=observation.dtype.name),
            action=Box((env.action_size,), -1.0, 1.0, dtype=jnp.result_type(float).name),
        )

    def __repr__(self) -> str:
        return self.label

    def params(self) -> PyTree:
        return {}

    def reset(self, params: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]:
        state = strong(self._reset(params, key))
        return state, state.obs

    def step(self, params: PyTree, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]:
        state = like(self._step(params, state, action), state)
        return state, Step(
            observation=state.obs,
            reward=state.reward,
            terminated=state.done.astype(bool),
            truncated=jnp.zeros((), bool),
            metrics=scalars(state.metrics),
        )


def _with(env: Any, leaves: dict[str, PyTree]) -> Any:
    """`env`, with other leaves in its model."""
    if not leaves:
        return env
    other = copy.copy(env)
    for name, value in vars(env).items():  # a method that the environment keeps as an attribute knows its old model
        if isinstance(value, types.MethodType) and value.__self__ is env:
            setattr(other, name, types.MethodType(value.__func__, other))
    model = "sys" if hasattr(env, "sys") else "_mjx_model"  # Brax, Playground
    setattr(other, model, getattr(env, model).tree_replace(leaves))
    return other


def _step(env: Any, leaves: dict[str, PyTree], state: Any, action: jax.Array) -> Any:
    """One step; Brax's backends that keep the masses in their state, since the reset, get those of now."""
    mass = leaves.get("link.inertia.mass")
    if mass is not None and hasattr(state.pipeline_state, "mass"):
        mass = mass ** (1 - env.sys.spring_mass_scale)
        state = state.replace(pipeline_state=state.pipeline_state.replace(mass=mass))
    return env.step(state, action)


def label(suite: str, name: str, settings: dict[str, Any]) -> str:
    """`Brax(ant, backend='spring', max_steps=1000)`."""
    return f"{suite}({', '.join([name, *(f'{setting}={value!r}' for setting, value in settings.items())])})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps from users what a simulator prints and warns of while it is imported and built."""
    with no_warnings(), contextlib.redirect_stdout(io.StringIO()):
        import mujoco

        warn = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)  # by default it writes to stderr and to MUJOCO_LOG.TXT
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(warn)


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Keeps from users that Brax is no longer developed, and that parts of JAXopt and MuJoCo are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced without warnings."""

    def traced(*arguments: Any) -> Any:
        with no_warnings():
            return function(*arguments)

    return traced
