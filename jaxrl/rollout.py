"""Feeding an agent with rollouts: N environments stepped side by side, reset where they end.

`begin` and `advance` are what the training loop asks of a kind of data; they dispatch on the type of `Config.data`, so
that the loop itself never asks whether an agent learns on-policy. Here they are for `Rollout`; `replay.py` has them for
`Replay`, and anybody may register a kind of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import normalise
from jaxrl.types import Environment, Metrics, PyTree, Rollout, Step, Transition

Policy = Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, Any]]]  # (observation, key) -> (action, extras)
Propose = Callable[[PyTree, jax.Array, jax.Array], PyTree]  # (params in use, observation, key) -> params, all [n, ...]


@struct.dataclass
class Lanes:
    """N environments in the middle of their episodes."""

    state: PyTree  # [N, ...]
    observation: jax.Array  # [N, *observation]
    ended: jax.Array  # [N] bool: restarts before its next step
    episode_return: jax.Array  # [N] so far, undiscounted
    episode_length: jax.Array  # [N] int32, steps so far
    params: PyTree  # [N, ...]: the parameters in use, if there is somebody who proposes them; else None
    prepared: tuple[PyTree, jax.Array, PyTree] | None  # the next start of each lane; None: computed at every step
    turn: jax.Array  # [] int32: rollouts so far, modulo those that renew `prepared` once; -1 before the first


@functools.singledispatch
def begin(data: Any, env: Environment, varying: bool = False) -> Any:
    """The experience of an agent whose `Config.data` is `data`, before the first step.

    `varying`: each lane has parameters of its own, because there is somebody who proposes them.
    """
    raise _unknown(data)


@functools.singledispatch
def advance(
    data: Any,
    agent: Any,
    env: Environment,
    config: Any,
    state: Any,
    experience: Any,
    key: jax.Array,
    propose: Any = None,  # (config, state, params, observation, key) -> params
) -> tuple[Any, Any, Metrics]:
    """Collect and update once: `(state, experience, metrics)`."""
    raise _unknown(data)


def _unknown(data: Any) -> ValueError:
    return ValueError(
        f"Config.data is {data!r}, expected jaxrl.types.Rollout(...) or Replay(...), or a type that is registered with "
        f"rollout.begin and rollout.advance"
    )


@begin.register
def _(data: Rollout, env: Environment, varying: bool = False) -> Lanes:
    return lanes(env, data.num_envs, data.resets, varying)


@advance.register
def _(
    data: Rollout,
    agent: Any,
    env: Environment,
    config: Any,
    state: Any,
    experience: Lanes,
    key: jax.Array,
    propose: Any = None,
) -> tuple[Any, Lanes, Metrics]:
    collect_key, update_key = jax.random.split(key)
    policy = functools.partial(agent.act, config, state)
    proposals = proposed(propose, config, state)
    if data.restart:
        everywhere = jnp.ones_like(experience.ended)
        experience = dataclasses.replace(experience, ended=everywhere, turn=jnp.full_like(experience.turn, -1))
    experience, batch = collect(env, policy, experience, collect_key, data.length, **proposals)
    state, metrics = agent.update(config, state, batch, update_key)
    state = normalise.refresh(config, state, batch)
    return state, experience, metrics | summary(batch)


# --------------------------------------------------------------------------------------- the lanes


def lanes(env: Environment, num_envs: int, resets: str = "pool", varying: bool = False) -> Lanes:
    """N lanes that have not started: the first `collect` resets them, so that a reset is compiled once, only there.

    If `varying`, each has parameters of its own, at first those of the environment.
    """
    start = jax.eval_shape(lambda key: env.reset(env.params(), key), jax.random.key(0))
    params = _own_params(env, num_envs) if varying else None
    state, observation = jax.tree.map(lambda leaf: zeros((num_envs, *leaf.shape), leaf.dtype), start)
    return Lanes(
        state=state,
        observation=observation,
        ended=jnp.ones(num_envs, bool),
        episode_return=jnp.zeros(num_envs),
        episode_length=jnp.zeros(num_envs, jnp.int32),
        params=params,
        prepared=None if resets == "fresh" else (state, observation, params),
        turn=jnp.int32(-1),
    )


def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Zeros of any type, that of random keys too."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape)
    return jnp.zeros(shape, dtype)


def _own_params(env: Environment, num: int) -> PyTree:
    """The parameters of the environment, once for each lane."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *jnp.shape(leaf))), env.params())


def proposed(propose: Any, config: Any, state: Any) -> dict[str, Any]:
    """Who proposes parameters to `collect`, and when, as its arguments."""
    if propose is None:
        return {}
    each_step = getattr(config, "propose_at", "reset") == "step"
    return {"propose": functools.partial(propose, config, state), "each_step": each_step}


def collect(
    env: Environment,
    policy: Policy,
    lanes: Lanes,
    key: jax.Array,
    length: int,
    *,
    propose: Propose | None = None,
    each_step: bool = False,
) -> tuple[Lanes, Transition]:
    """Step every lane `length` times: the lanes as they are then, and the transitions [length, N].

    `extras` holds what the policy returned, `metrics` (of the environment), `non_finite` (the lane was stopped because
    its observation or reward was not finite), and, where an episode ends, `episode_return` and `episode_length`
    (elsewhere 0). The random numbers of all steps are drawn before the first.

    `propose`, for lanes that vary, chooses the parameters of each episode when its start is prepared: it gets those in
    use, and the last observation. If `each_step`, an episode starts with the parameters of the environment, and those
    of each step are chosen right before it. What was used stands in `extras["env_params"]`.

    Raises ValueError if `propose` changes the structure, a shape or a type of the parameters.
    """
    num_envs = lanes.ended.shape[0]
    renew_key, reset_key, policy_key, step_key, *propose_keys = jax.random.split(key, 4 if propose is None else 7)
    at_start, at_step = _when(env, propose, each_step)
    lanes = _renew(env, lanes, (renew_key, *propose_keys[:1]), length, at_start)
    keys = (
        jax.random.split(reset_key, (length, num_envs)) if lanes.prepared is None else None,
        jax.random.split(policy_key, length),
        jax.random.split(step_key, (length, num_envs)),
        [jax.random.split(each, length) for each in propose_keys[1:]],
    )

    def body(lanes: Lanes, keys: Any) -> tuple[Lanes, Transition]:
        reset_keys, policy_key, step_keys, propose_keys = keys
        start = lanes.prepared
        if start is None:
            start = _starts(env, at_start, lanes.params, lanes.observation, reset_keys, propose_keys[:1])
        lanes = _restart(lanes, start)
        if at_step is not None:
            lanes = dataclasses.replace(lanes, params=at_step(lanes.params, lanes.observation, propose_keys[1]))
        action, extras = policy(lanes.observation, policy_key)
        return _step(env, lanes, action, extras, step_keys)

    return jax.lax.scan(body, lanes, keys)


def _when(env: Environment, propose: Propose | None, each_step: bool) -> tuple[Propose | None, Propose | None]:
    """Who chooses the parameters at the start of an episode, and who at each step."""
    if propose is None:
        return None, None

    def checked(params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
        choice = propose(params, observation, key)
        wanted, got = (
            (jax.tree.structure(tree), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)])
            for tree in (params, choice)
        )
        if wanted != got:
            raise ValueError(
                f"propose returned parameters with {got[0]}, shapes and types {got[1]}; expected those of the "
                f"parameters that it was given, {wanted[0]}, {wanted[1]}: one set for each environment"
            )
        return choice

    def own(params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
        return _own_params(env, observation.shape[0])

    return (own, checked) if each_step else (checked, None)


def _starts(
    env: Environment,
    propose: Propose | None,
    params: PyTree,
    observation: jax.Array,
    keys: jax.Array,
    propose_key: Sequence[jax.Array],
) -> tuple[PyTree, jax.Array, PyTree]:
    """The starts of n episodes: state, observation and parameters."""
    if propose is None:
        return *jax.vmap(env.reset, (None, 0))(env.params(), keys), params
    params = propose(params, observation, *propose_key)
    return *jax.vmap(env.reset)(params, keys), params


def _restart(lanes: Lanes, start: tuple[PyTree, jax.Array, PyTree]) -> Lanes:
    """The lanes, with those that ended at their new start."""
    state, observation, params = where(lanes.ended, start, (lanes.state, lanes.observation, lanes.params))
    return dataclasses.replace(
        lanes,
        state=state,
        observation=observation,
        params=params,
        episode_return=jnp.where(lanes.ended, 0, lanes.episode_return),
        episode_length=jnp.where(lanes.ended, 0, lanes.episode_length),
    )


def _step(
    env: Environment, lanes: Lanes, action: jax.Array, extras: dict[str, Any], keys: jax.Array
) -> tuple[Lanes, Transition]:
    """One step of every lane, and its transition [N]."""
    state, step, non_finite = step_all(env, lanes, action, keys)
    ended = step.terminated | step.truncated
    episode_return = lanes.episode_return + step.reward
    episode_length = lanes.episode_length + 1
    extras = extras | {
        "episode_return": jnp.where(ended, episode_return, 0),
        "episode_length": jnp.where(ended, episode_length, 0),
        "non_finite": non_finite,
        "metrics": step.metrics,
    }
    transition = Transition(
        observation=lanes.observation,
        action=action,
        reward=step.reward,
        next_observation=step.observation,
        terminated=step.terminated,
        truncated=step.truncated,
        extras=extras if lanes.params is None else extras | {"env_params": lanes.params},
    )
    lanes = dataclasses.replace(
        lanes,
        state=state,
        observation=step.observation,
        ended=ended,
        episode_return=episode_return,
        episode_length=episode_length,
    )
    return lanes, transition


def step_all(
    env: Environment, lanes: Lanes, action: jax.Array, keys: jax.Array, params: PyTree = None
) -> tuple[PyTree, Step, jax.Array]:
    """Step every lane under its time limit and its guard: `(state, step, non_finite [N])`.

    Lanes that do not vary share `params`, those of the environment by default.

    The environment gets the nearest action in its bounds. Its last step is truncated unless it terminates. A lane
    whose observation or reward is not finite is truncated with reward 0, at the last observation that was finite:
    nothing that is not a number reaches the agent, and a simulation that breaks down is neither gain nor loss.
    """
    action = env.spec.action.clip(action)
    if lanes.params is None:
        params = env.params() if params is None else params
        state, step = jax.vmap(env.step, (None, 0, 0, 0))(params, lanes.state, action, keys)
    else:
        state, step = jax.vmap(env.step)(lanes.params, lanes.state, action, keys)
    axes = tuple(range(1, step.observation.ndim))
    non_finite = ~(jnp.isfinite(step.reward) & jnp.all(jnp.isfinite(step.observation), axes))
    terminated = step.terminated & ~non_finite
    over = lanes.episode_length + 1 >= env.max_steps
    step = dataclasses.replace(
        step,
        observation=where(non_finite, lanes.observation, step.observation),
        reward=jnp.where(non_finite, 0, step.reward),
        terminated=terminated,
        truncated=(step.truncated | over | non_finite) & ~terminated,
        metrics=jax.tree.map(lambda metric: jnp.where(non_finite, 0, metric), step.metrics),
    )
    return state, step, non_finite


def _renew(
    env: Environment, lanes: Lanes, keys: tuple[jax.Array, ...], length: int, propose: Propose | None = None
) -> Lanes:
    """Prepare new starts for a window of the lanes, in turn; for all of them before the first step.

    Windows are as large, and follow as fast, as is needed to renew every lane once in 64 steps. The loop has a traced
    number of turns, so that the reset inside it is compiled once.
    """
    if lanes.prepared is None:
        return lanes
    num_envs = lanes.ended.shape[0]
    size = max(1, num_envs * min(length, 64) // 64)
    windows = -(-num_envs // size)
    pause = max(1, 64 // (windows * length))  # rollouts from one window to the next

    def renew(window: jax.Array, prepared: PyTree) -> PyTree:
        index = (window * size + jnp.arange(size)) % num_envs
        key, *propose_key = (jax.random.fold_in(key, window) for key in keys)
        params, observation = jax.tree.map(lambda leaf: leaf[index], (lanes.params, lanes.observation))
        start = _starts(env, propose, params, observation, jax.random.split(key, size), propose_key)
        return jax.tree.map(lambda old, new: old.at[index].set(new), prepared, start)

    first = lanes.turn < 0
    begin = jnp.where(first, 0, lanes.turn // pause)
    end = jnp.where(first, windows, begin + (lanes.turn % pause == 0))
    prepared = jax.lax.fori_loop(begin, end, renew, lanes.prepared)
    return dataclasses.replace(lanes, prepared=prepared, turn=(lanes.turn + 1) % (windows * pause))


def where(condition: jax.Array, true: PyTree, false: PyTree) -> PyTree:
    """Leaf by leaf, `true` where `condition` [N] holds and `false` elsewhere; leaves are [N, ...]."""

    def select(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)), a, b)

    return jax.tree.map(select, true, false)


def summary(batch: Transition) -> Metrics:
    """What a batch [T, N] from `collect` says of the environments; means over episodes are NaN where none ended."""
    extras = batch.extras
    episodes = jnp.sum(batch.terminated | batch.truncated)

    def mean_over_episodes(total: jax.Array) -> jax.Array:
        return jnp.where(episodes > 0, jnp.sum(total) / jnp.maximum(episodes, 1), jnp.nan)

    return {
        "episodes": episodes,
        "episode_return": mean_over_episodes(extras["episode_return"]),
        "episode_length": mean_over_episodes(extras["episode_length"]),
        "non_finite": jnp.sum(extras["non_finite"]),
    } | {f"environment/{name}": jnp.mean(metric) for name, metric in extras["metrics"].items()}
