"""How good a policy is: whole episodes, from fixed keys, with and without sampling."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import rollout
from jaxrl.types import Environment, PyTree


@struct.dataclass
class Evaluation:
    """What came of each episode."""

    returns: jax.Array  # [episodes], undiscounted unless asked for otherwise
    lengths: jax.Array  # [episodes] int32
    terminated: jax.Array  # [episodes] bool; the others ran into the time limit
    non_finite: jax.Array  # [episodes] bool; stopped because the simulation broke down


def evaluate(
    agent: Any,
    config: Any,
    state: Any,
    env: Environment,
    key: jax.Array,
    *,
    episodes: int,
    greedy: bool | jax.Array = True,
    params: PyTree = None,
    discount: float | jax.Array = 1.0,
) -> Evaluation:
    """Run `episodes` whole episodes side by side, each to its end.

    `greedy` takes the mode of the policy instead of samples; as an array [episodes] it says so for each episode, in
    one program. The same key gives the same starts whatever the agent, so that agents are compared on equal terms;
    they are those of `starts`. `params` are the parameters of the environment, its own by default. Returns are
    sum_t discount^t r_t. Pure: use it under `jit` and `vmap`.

    Raises ValueError if `episodes` is not positive, or `greedy` has another shape.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if jnp.shape(greedy) not in ((), (episodes,)):
        raise ValueError(f"greedy has shape {jnp.shape(greedy)}, expected a bool or [episodes] = ({episodes},)")
    params = env.params() if params is None else params
    env_state, observation, key = starts(env, key, episodes=episodes, params=params)
    lanes = rollout.lanes(env, episodes, resets="fresh")
    lanes = dataclasses.replace(lanes, state=env_state, observation=observation, ended=jnp.zeros(episodes, bool))
    nothing = jnp.zeros(episodes, bool)

    def policy(observation: jax.Array, key: jax.Array) -> jax.Array:
        if isinstance(greedy, bool):
            return agent.act(config, state, observation, None if greedy else key)[0]
        mode, sample = agent.act(config, state, observation)[0], agent.act(config, state, observation, key)[0]
        return rollout.where(jnp.asarray(greedy), mode, sample)

    def running(carry: Any) -> jax.Array:
        return ~jnp.all(carry[0].ended)

    def body(carry: Any) -> Any:
        lanes, terminated, non_finite, key = carry
        key, policy_key, step_key = jax.random.split(key, 3)
        action = policy(lanes.observation, policy_key)
        env_state, step, broken = rollout.step_all(env, lanes, action, jax.random.split(step_key, episodes), params)
        alive, reward = ~lanes.ended, discount**lanes.episode_length * step.reward
        lanes = dataclasses.replace(
            lanes,
            state=env_state,
            observation=step.observation,
            ended=lanes.ended | step.terminated | step.truncated,
            episode_return=lanes.episode_return + jnp.where(alive, reward, 0),
            episode_length=lanes.episode_length + alive,
        )
        return lanes, terminated | (alive & step.terminated), non_finite | (alive & broken), key

    lanes, terminated, non_finite, _ = jax.lax.while_loop(running, body, (lanes, nothing, nothing, key))
    return Evaluation(lanes.episode_return, lanes.episode_length, terminated, non_finite)


def starts(
    env: Environment, key: jax.Array, *, episodes: int, params: PyTree = None
) -> tuple[PyTree, jax.Array, jax.Array]:
    """States and observations [episodes, ...] with which `evaluate` begins by this key; and a key for what follows."""
    params = env.params() if params is None else params
    reset_key, key = jax.random.split(key)
    state, observation = jax.vmap(env.reset, (None, 0))(params, jax.random.split(reset_key, episodes))
    return state, observation, key


def random_returns(env: Environment, key: jax.Array, *, episodes: int) -> jax.Array:
    """Returns [episodes] of the policy that draws its actions from `env.spec.action.sample`: what there is to beat."""

    def act(config: Any, state: Any, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        return jax.vmap(env.spec.action.sample)(jax.random.split(key, episodes)), {}

    agent = types.SimpleNamespace(act=act)
    return evaluate(agent, None, None, env, key, episodes=episodes, greedy=False).returns
