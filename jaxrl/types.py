"""The data that agents, environments and loops exchange, and the protocols that they follow.

Axes: `T` time, `N` environments, `B` batch; data is time-major, `[T, N, ...]`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PyTree = Any
Metrics = dict[str, jax.Array]  # scalars by name
T = TypeVar("T")


# ------------------------------------------------------------------------------------------ spaces


@dataclasses.dataclass(frozen=True)
class Box:
    """Real arrays of one shape, between bounds (one for all elements, or one for each element of a vector)."""

    shape: tuple[int, ...]
    low: float | tuple[float, ...] = -math.inf
    high: float | tuple[float, ...] = math.inf
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or not all(isinstance(size, numbers.Integral) for size in self.shape):
            raise ValueError(f"Box.shape must be a tuple of integers, got {self.shape!r}")
        _check_dtype("Box", self.dtype)
        for name, bound in (("low", self.low), ("high", self.high)):
            if not all(isinstance(x, numbers.Real) for x in (bound if isinstance(bound, tuple) else (bound,))):
                raise ValueError(f"Box.{name} must be a number, or a tuple of numbers, to be hashable; got {bound!r}")
            if isinstance(bound, tuple) and (len(bound),) != self.shape:
                raise ValueError(
                    f"Box.{name} is a tuple of {len(bound)} numbers, which Box.shape = {self.shape} does not match; "
                    f"expected one number, or for a vector as many as it has elements"
                )
        try:
            low, high = self.bounds()
        except OverflowError:
            raise ValueError(f"Box of {self.dtype} can't hold low = {self.low} and high = {self.high}") from None
        if not np.all(low < high):
            raise ValueError(f"Box.low must be below Box.high, got low = {self.low} and high = {self.high}")

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper bound, each `[*shape]`."""
        low, high = (np.broadcast_to(np.asarray(bound, self.dtype), self.shape) for bound in (self.low, self.high))
        return low, high

    def zeros(self) -> jax.Array:
        """A zero element, `[*shape]`."""
        return jnp.zeros(self.shape, self.dtype)

    def sample(self, key: jax.Array) -> jax.Array:
        """A uniform element where both bounds are finite, elsewhere a standard normal one, clipped, `[*shape]`."""
        low, high = self.bounds()
        bounded = np.isfinite(low) & np.isfinite(high)
        uniform_key, normal_key = jax.random.split(key)
        uniform = jax.random.uniform(uniform_key, self.shape, self.dtype)
        normal = jax.random.normal(normal_key, self.shape, self.dtype)
        inside = (1 - uniform) * np.where(bounded, low, 0) + uniform * np.where(bounded, high, 0)
        return self.clip(jnp.where(bounded, inside, normal))

    def clip(self, value: jax.Array) -> jax.Array:
        """The nearest element, `[..., *shape]`."""
        low, high = self.bounds()
        if np.all(np.isinf(low)) and np.all(np.isinf(high)):
            return value
        return jnp.clip(value, low, high)

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless `value` is `[..., *shape]`."""
        shape = jnp.shape(value)
        if len(shape) < len(self.shape) or shape[len(shape) - len(self.shape) :] != self.shape:
            expected = ", ".join(["...", *map(str, self.shape)])
            raise ValueError(
                f"{name} has shape {shape}, expected ({expected}) as in the spec this state was made for; "
                f"was the agent initialised for another environment?"
            )


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers 0, ..., n - 1."""

    n: int
    dtype: str = "int32"

    def __post_init__(self) -> None:
        check_positive("Discrete", n=self.n)
        _check_dtype("Discrete", self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def zeros(self) -> jax.Array:
        """The integer 0, `[]`."""
        return jnp.zeros((), self.dtype)

    def sample(self, key: jax.Array) -> jax.Array:
        """A uniform element, `[]`."""
        return jax.random.randint(key, (), 0, self.n, self.dtype)

    def clip(self, value: jax.Array) -> jax.Array:
        """The value itself: an integer action has no nearest element worth taking."""
        return value

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless `value` holds integers."""
        if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise ValueError(
                f"{name} has dtype {jnp.result_type(value)}, expected integers below {self.n} as in the spec "
                f"this state was made for; was the agent initialised for another environment?"
            )


Space = Box | Discrete


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an environment shows and what it takes."""

    observation: Space
    action: Space


# -------------------------------------------------------------------------------------------- data


@struct.dataclass
class Step:
    """What one step of an environment gives, all of it before any reset."""

    observation: jax.Array  # the true successor, [*observation]
    reward: jax.Array  # []
    terminated: jax.Array  # [] bool: the episode is over, nothing follows
    truncated: jax.Array  # [] bool: the episode is cut off, its return goes on
    metrics: dict[str, jax.Array] = struct.field(default_factory=dict)


@struct.dataclass
class Transition:
    """One step of experience; leaves are `[T, N, ...]` in a rollout, `[n_step, B, ...]` in a window of a replay."""

    observation: jax.Array  # [..., *observation]
    action: jax.Array  # [..., *action]
    reward: jax.Array  # [...]
    next_observation: jax.Array  # the true successor, before any reset, [..., *observation]
    terminated: jax.Array  # [...] bool: do not bootstrap
    truncated: jax.Array  # [...] bool: bootstrap from next_observation, and stop there
    extras: dict[str, Any] = struct.field(default_factory=dict)  # what act returned, and what the rollout adds


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Feed an agent with fresh rollouts of `length` steps in `num_envs` environments.

    `resets="pool"`: each environment holds one prepared reset, renewed in turn, between rollouts; an environment
    that ends twice before its renewal starts again from the same state. `resets="fresh"`: a reset is computed for
    every environment at every step, which is exact and costs about as much as a second step of the environment.

    `restart=True`: every rollout begins with new episodes, for agents that learn from whole ones. With a length that no
    episode exceeds, the rows of an environment up to its first end are one trajectory, and the rest is padding to them.
    """

    num_envs: int
    length: int
    resets: Literal["pool", "fresh"] = "pool"
    restart: bool = False

    def __post_init__(self) -> None:
        check_positive("Rollout", num_envs=self.num_envs, length=self.length)
        _check_resets("Rollout", self.resets)

    @property
    def transitions(self) -> int:
        """Environment transitions of one loop step."""
        return self.num_envs * self.length


@dataclasses.dataclass(frozen=True)
class Replay:
    """Feed an agent with batches drawn from the last `capacity` transitions of `num_envs` environments."""

    num_envs: int = 1
    capacity: int = 1_000_000  # transitions, over all environments; each end of an episode takes the place of one
    batch_size: int = 256
    n_step: int = 1  # length of a window
    warmup: int = 10_000  # transitions, over all environments, taken with random actions before the first update
    updates_per_step: int = 1  # gradient updates per vectorised step
    resets: Literal["pool", "fresh"] = "pool"  # as in Rollout

    def __post_init__(self) -> None:
        check_positive(
            "Replay",
            num_envs=self.num_envs,
            capacity=self.capacity,
            batch_size=self.batch_size,
            n_step=self.n_step,
            updates_per_step=self.updates_per_step,
        )
        if not isinstance(self.warmup, numbers.Integral) or self.warmup < 0:
            raise ValueError(f"Replay.warmup must be an integer of at least 0, got {self.warmup!r}")
        _check_resets("Replay", self.resets)
        least = self.num_envs * (self.n_step + 1)
        if not least <= self.capacity < 2**30:
            raise ValueError(
                f"Replay.capacity = {self.capacity} must hold a window of n_step = {self.n_step} transitions, and the "
                f"end of an episode, of each of num_envs = {self.num_envs} environments: expected at least {least}, "
                f"and less than 2**30"
            )
        if self.capacity % self.num_envs:
            raise ValueError(
                f"Replay.capacity = {self.capacity} is not divisible by num_envs = {self.num_envs}, which share it "
                f"equally; {self.capacity - self.capacity % self.num_envs} is"
            )

    @property
    def transitions(self) -> int:
        """Environment transitions of one loop step."""
        return self.num_envs


# --------------------------------------------------------------------------------------- protocols


@runtime_checkable
class Environment(Protocol):
    """One environment, unbatched, pure and hashable; it never resets by itself.

    `params` is a pytree of the parameters of the dynamics, to be varied with `vmap`; `max_steps` is the time limit,
    which the rollout applies. `step` may assume that actions lie in the bounds of `spec.action`.
    """

    @property
    def spec(self) -> Spec: ...

    @property
    def max_steps(self) -> int: ...

    def params(self) -> PyTree: ...

    def reset(self, params: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array]: ...

    def step(self, params: PyTree, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]: ...

    def __hash__(self) -> int: ...


class Agent(Protocol):
    """A module of three pure functions over two pytrees: `Config` (what you chose), `State` (what it has learned)."""

    @property
    def Config(self) -> Any: ...

    @property
    def init(self) -> Any: ...  # (config, spec, key) -> State

    @property
    def act(self) -> Any: ...  # (config, state, observation, key=None) -> (action, extras)

    @property
    def update(self) -> Any: ...  # (config, state, batch, key) -> (State, Metrics)


# ----------------------------------------------------------------------------------------- helpers


def canonical(config: T) -> T:
    """The same configuration with every traced leaf a strongly typed array of the default float type.

    A Python float and an array differ in what `jit` traces; after this, a new value never does.

    Raises ValueError for a leaf that is not a number.
    """

    def convert(path: Any, leaf: Any) -> jax.Array:
        try:
            return jnp.asarray(leaf, jnp.result_type(float))
        except (TypeError, ValueError):
            raise ValueError(
                f"config{jax.tree_util.keystr(path)} is {leaf!r}, expected a number; declare a field that holds "
                f"anything else with struct.field(pytree_node=False)"
            ) from None

    return jax.tree.map_with_path(convert, config)


def default_floats(tree: T) -> T:
    """The same pytree with its floats of the default type: float32, or float64 where `jax_enable_x64` is set.

    Flax makes parameters in float32 whatever is set; beside a configuration and data in float64 they would not stay so.
    """
    default = jnp.result_type(float)
    return jax.tree.map(lambda leaf: leaf.astype(default) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def check_positive(owner: str, **sizes: int) -> None:
    """Raises ValueError unless every size is an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"{owner}.{name} must be an integer of at least 1, got {size!r}")


def check_between(owner: str, low: float, high: float, *, open_: bool = False, **values: Any) -> None:
    """Raises ValueError unless each value lies in [low, high], or in [low, high) if `open_`.

    Arrays and tracers pass unchecked: a configuration is built anew wherever it is traced.
    """
    for name, value in values.items():
        if not isinstance(value, (int, float, np.integer, np.floating)):
            continue
        if not (low <= value < high if open_ else low <= value <= high):
            raise ValueError(f"{owner}.{name} must be in [{low}, {high}{')' if open_ else ']'}, got {value}")


def check_minibatches(data: Rollout, num_minibatches: int) -> None:
    """Raise ValueError unless the samples of a rollout can be cut into so many minibatches of one size."""
    size = data.num_envs * data.length
    if size % num_minibatches:
        raise ValueError(
            f"num_envs * length = {data.num_envs} * {data.length} = {size} is not divisible by "
            f"num_minibatches = {num_minibatches}"
        )


def _check_resets(owner: str, resets: str) -> None:
    if resets not in ("pool", "fresh"):
        raise ValueError(f"{owner}.resets must be 'pool' or 'fresh', got {resets!r}")


def _check_dtype(owner: str, dtype: str) -> None:
    if not isinstance(dtype, str):
        raise ValueError(f"{owner}.dtype must be a name such as 'float32', got {dtype!r}")


def check_batch(spec: Spec, batch: Transition, axes: int = 2) -> None:
    """Raises ValueError unless the leaves of `batch` have `axes` leading axes and then the shapes of `spec`."""
    shape = jnp.shape(batch.reward)
    if len(shape) != axes:
        raise ValueError(
            f"batch.reward has shape {shape}, expected {axes} axes, time first: "
            f"a rollout is [T, N], a window of a replay [n_step, B]"
        )
    expected = {
        "observation": (*shape, *spec.observation.shape),
        "next_observation": (*shape, *spec.observation.shape),
        "action": (*shape, *spec.action.shape),
        "terminated": shape,
        "truncated": shape,
    }
    for name, want in expected.items():
        got = jnp.shape(getattr(batch, name))
        if got != want:
            raise ValueError(
                f"batch.{name} has shape {got}, expected {want}: the axes of batch.reward {shape}, then the spec's"
            )
