"""Feeding an agent with batches drawn from what was collected last: a circular buffer over N environments.

    buffer = insert(buffer, transition)                     # one step of every environment, O(N)
    window = sample(buffer, data, key)                      # [n_step, B], windows drawn with replacement
    next_ = bootstrap(window, discount)                     # y = next_.returns + next_.discount * V(next_.observation)

Layout. Every environment has a ring of L = capacity / N + 1 places for observations, raw and in their own type. The
observation of a step is followed by that of the next step, so that each is there once and serves as the successor of
one step and the start of another. Where an episode ends, its last observation takes a place of its own and the next
episode begins at the place after it. So rings move at paces of their own; actions, rewards and flags lie in rings
[L, N] that move together, one row a step, with the place of the step's observation:

    bytes = L N (observation + action + reward + 2 flags + 4 for the place) + 16 N + 4.

Every environment holds its newest capacity / N steps, less one for each end among them, which takes the place of one:
all but a few of them where episodes are long, half where every episode is one step, and never one whose successor is
lost.

Windows. A window of n steps starts at a step after which, in its environment, n steps were taken or the episode has
ended; all such steps are equally likely. After an end a window stays there: rows of reward 0 that start and stop
at the last observation, with the action and the flags of the end. They are padding.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import normalise, rollout
from jaxrl.returns import Bootstrap as Bootstrap
from jaxrl.returns import bootstrap as bootstrap
from jaxrl.returns import until_end
from jaxrl.types import Environment, Metrics, PyTree, Replay, Spec, Transition

# ---------------------------------------------------------------------------------------- the buffer


@struct.dataclass
class Steps:
    """What is kept of each step beside its observation; leaves are [L, N, ...]."""

    action: jax.Array  # [L, N, *action]
    reward: jax.Array  # [L, N]
    terminated: jax.Array  # [L, N] bool
    truncated: jax.Array  # [L, N] bool
    place: jax.Array  # [L, N] int32: of its observation; that of its successor is the next one
    env_params: PyTree = None  # [L, N, ...]: the parameters of the environment, where they vary


@struct.dataclass
class Buffer:
    """The last steps of N environments."""

    observation: jax.Array  # [L, N, *observation]
    steps: Steps  # [L, N, ...]
    row: jax.Array  # [] int32: where the next steps go
    place: jax.Array  # [N] int32: where the next observation goes
    size: jax.Array  # [N] int32: steps that are held
    used: jax.Array  # [N] int32: places that they take, the last observation of an unfinished episode not counted
    unfinished: jax.Array  # [N] int32: steps since the last end, at most L


def init(data: Replay, spec: Spec, env_params: PyTree = None) -> Buffer:
    """Make an empty buffer; `env_params` are those of one environment, if they are to be kept with each step.

    Raises ValueError if it cannot fit into memory; see `bytes_needed`.
    """
    needed, available = bytes_needed(data, spec, env_params), memory()
    if available is not None and needed > available:
        shapes = jax.eval_shape(lambda: _empty(data, spec, env_params))
        length, num_envs = shapes.steps.reward.shape
        parts = {
            "observation": shapes.observation,
            "action": shapes.steps.action,
            "reward": shapes.steps.reward,
            "flags": (shapes.steps.terminated, shapes.steps.truncated),
            "place": shapes.steps.place,
            "parameters": shapes.steps.env_params,
        }
        parts = {name: part for name, part in parts.items() if part is not None}
        sizes = {name: bytes_of(part) // (length * num_envs) for name, part in parts.items()}
        raise ValueError(
            f"{data} needs {needed:,} bytes, and there are {available:,} bytes of memory: capacity + num_envs = "
            f"{length * num_envs:,} steps of {' + '.join(f'{size:,} ({name})' for name, size in sizes.items())} = "
            f"{sum(sizes.values()):,} bytes, for each seed; choose a smaller capacity"
        )
    return _empty(data, spec, env_params)


def bytes_needed(data: Replay, spec: Spec, env_params: PyTree = None) -> int:
    """Bytes of one buffer, to be multiplied by the number of seeds.

    >>> from jaxrl.types import Box
    >>> bytes_needed(Replay(capacity=1_000_000), Spec(Box((17,)), Box((6,), -1.0, 1.0)))
    102000122
    """
    return bytes_of(jax.eval_shape(lambda: _empty(data, spec, env_params)))


def memory() -> int | None:
    """Bytes of the memory that arrays live in: of the first device if it says so, else of the host; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def bytes_of(shapes: PyTree) -> int:
    """Bytes of all leaves; a random key counts as its words."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _empty(data: Replay, spec: Spec, env_params: PyTree) -> Buffer:
    num_envs = data.num_envs
    rings = (data.capacity // num_envs + 1, num_envs)
    steps = Steps(
        action=jnp.zeros((*rings, *spec.action.shape), spec.action.dtype),
        reward=jnp.zeros(rings),
        terminated=jnp.zeros(rings, bool),
        truncated=jnp.zeros(rings, bool),
        place=jnp.zeros(rings, jnp.int32),
        env_params=jax.tree.map(lambda leaf: jnp.zeros(rings + jnp.shape(leaf), jnp.result_type(leaf)), env_params),
    )
    observation = jnp.zeros((*rings, *spec.observation.shape), spec.observation.dtype)
    return Buffer(observation, steps, jnp.int32(0), *(jnp.zeros(num_envs, jnp.int32) for _ in range(4)))


def insert(buffer: Buffer, transition: Transition) -> Buffer:
    """Add one step `[N, ...]` of every environment, in place of the oldest where the buffer is full.

    Each environment goes on from the `next_observation` of its last step, unless that was an end. O(N), whatever the
    capacity; under `jit`, the rings are written in place if the buffer is donated or carried by a loop.

    Raises ValueError if there is not one step for each environment.
    """
    length, num_envs = buffer.steps.reward.shape
    if jnp.shape(transition.reward) != (num_envs,):
        raise ValueError(
            f"transition.reward has shape {jnp.shape(transition.reward)}, expected ({num_envs},): one step of each of "
            f"the environments that the buffer was made for"
        )
    lanes = jnp.arange(num_envs)
    ended = transition.terminated | transition.truncated
    places = jnp.stack([buffer.place, (buffer.place + 1) % length])
    observations = jnp.stack([transition.observation, transition.next_observation])
    observation = buffer.observation.at[places, lanes].set(observations)
    step = Steps(
        action=transition.action,
        reward=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
        place=buffer.place,
        env_params=None if buffer.steps.env_params is None else transition.extras["env_params"],
    )
    steps = jax.tree.map(lambda ring, new: ring.at[buffer.row].set(new), buffer.steps, step)
    row = (buffer.row + 1) % length

    def drop_oldest(_: int, sizes: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        size, used = sizes
        full = used >= length
        return size - full, used - full * (1 + _ended(steps, (row - size) % length, lanes))

    # A step takes one or two places, and frees as many: no more than two others have to go. The loop keeps XLA from
    # fusing the reading of the rings with the writing above, which would copy them.
    size, used = jax.lax.fori_loop(0, 2, drop_oldest, (buffer.size + 1, buffer.used + 1 + ended))
    return Buffer(
        observation=observation,
        steps=steps,
        row=row,
        place=(buffer.place + 1 + ended) % length,
        size=size,
        used=used,
        unfinished=jnp.where(ended, 0, jnp.minimum(buffer.unfinished + 1, length)),
    )


def _ended(steps: Steps, row: jax.Array, lane: jax.Array) -> jax.Array:
    return steps.terminated[row, lane] | steps.truncated[row, lane]


def num_windows(buffer: Buffer, n_step: int) -> jax.Array:
    """How many steps of each environment a window of `n_step` steps can start at, [N] int32."""
    return jnp.maximum(buffer.size - _too_new(buffer, n_step), 0)


def _too_new(buffer: Buffer, n_step: int) -> jax.Array:
    """Count the newest steps of each environment, those whose window is not complete, [N]."""
    return jnp.minimum(buffer.unfinished, n_step - 1)


def sample(buffer: Buffer, data: Replay, key: jax.Array) -> Transition:
    """Windows `[n_step, B]`, drawn uniformly and with replacement from all that there are.

    `B` is `data.batch_size`. Where there is none (see `num_windows`), the result means nothing.
    """
    length, num_envs = buffer.steps.reward.shape
    windows = num_windows(buffer, data.n_step)
    ends = jnp.cumsum(windows)
    index = jax.random.randint(key, (data.batch_size,), 0, jnp.maximum(ends[-1], 1))
    lane = jnp.minimum(jnp.searchsorted(ends, index, side="right"), num_envs - 1)
    first = ends - windows  # the index of the newest window of each lane
    age = index + (_too_new(buffer, data.n_step) - first)[lane]
    return _windows(buffer, (buffer.row - 1 - age) % length, lane, data.n_step)


def _windows(buffer: Buffer, row: jax.Array, lane: jax.Array, n_step: int) -> Transition:
    """Read the windows `[n_step, B]` that start in these rows `[B]` of these lanes `[B]`."""
    length = len(buffer.steps.reward)
    time = jnp.arange(n_step + 1)[:, None]
    rows = (row + time[:-1]) % length
    taken = until_end(_ended(buffer.steps, rows, lane))
    count = jnp.sum(taken, axis=0)
    rows = (row + jnp.minimum(time[:-1], count - 1)) % length
    steps = jax.tree.map(lambda ring: ring[rows, lane], buffer.steps)
    observation = buffer.observation[(steps.place[0] + jnp.minimum(time, count)) % length, lane]
    return Transition(
        observation=observation[:-1],
        action=steps.action,
        reward=jnp.where(taken, steps.reward, 0),
        next_observation=observation[1:],
        terminated=steps.terminated,
        truncated=steps.truncated,
        extras={} if steps.env_params is None else {"env_params": steps.env_params},
    )


# ---------------------------------------------------------------------------------------- the loop


@struct.dataclass
class Experience:
    """Environments in the middle of their episodes, and what is kept of the past."""

    lanes: rollout.Lanes
    buffer: Buffer
    warmup: jax.Array  # [] int32: transitions yet to be taken with random actions


@rollout.begin.register
def _(data: Replay, env: Environment, varying: bool = False) -> Experience:
    lanes = rollout.lanes(env, data.num_envs, data.resets, varying)
    buffer = init(data, env.spec, env.params() if varying else None)
    return Experience(lanes, buffer, jnp.int32(data.warmup))


@rollout.advance.register
def _(
    data: Replay,
    agent: Any,
    env: Environment,
    config: Any,
    state: Any,
    experience: Experience,
    key: jax.Array,
    propose: Any = None,
) -> tuple[Any, Experience, Metrics]:
    """One step of every environment, then `updates_per_step` updates; metrics of updates are NaN before the first."""
    collect_key, update_key = jax.random.split(key)

    def policy(observation: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        act_key, random_key = jax.random.split(key)
        action, _ = agent.act(config, state, observation, act_key)
        random = jax.vmap(env.spec.action.sample)(jax.random.split(random_key, data.num_envs))
        return jnp.where(experience.warmup > 0, random, action), {}

    proposals = rollout.proposed(propose, config, state)
    lanes, batch = rollout.collect(env, policy, experience.lanes, collect_key, length=1, **proposals)
    buffer = insert(experience.buffer, jax.tree.map(lambda leaf: leaf[0], batch))
    warmup = jnp.maximum(experience.warmup - data.num_envs, 0)
    ready = (warmup == 0) & jnp.any(num_windows(buffer, data.n_step) > 0)
    state, metrics = _learn(data, agent, config, state, buffer, update_key, ready)
    state = normalise.refresh(config, state, batch)
    return state, Experience(lanes, buffer, warmup), metrics | rollout.summary(batch)


def _learn(
    data: Replay, agent: Any, config: Any, state: Any, buffer: Buffer, key: jax.Array, ready: jax.Array
) -> tuple[Any, Metrics]:
    """Make the updates, on a batch each, and take the means of their metrics; unless `ready`, keep the state, with NaN.

    This is a loop of one turn or none: under `vmap`, where a `cond` would do the work for nothing, it still skips it
    unless a lane is ready.
    """

    @jax.jit  # traced once, for the shapes of the metrics and for the loop
    def updates(config: Any, state: Any, buffer: Buffer, key: jax.Array) -> tuple[Any, Metrics]:
        def update(state: Any, key: jax.Array) -> tuple[Any, Metrics]:
            sample_key, update_key = jax.random.split(key)
            return agent.update(config, state, sample(buffer, data, sample_key), update_key)

        state, metrics = jax.lax.scan(update, state, jax.random.split(key, data.updates_per_step))
        return state, jax.tree.map(jnp.mean, metrics)

    shapes = jax.eval_shape(updates, config, state, buffer, key)[1]
    nothing = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shapes)

    def turn(index: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        return updates(config, carry[0], buffer, jax.random.fold_in(key, index))

    return jax.lax.fori_loop(0, ready.astype(jnp.int32), turn, (state, nothing))
