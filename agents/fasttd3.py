r"""FastTD3: TD3 with categorical critics, many environments side by side and large batches.

The critics learn laws Z_i on atoms from `low` to `high`, by cross-entropy to the projected target of C51. The target is
the law of the critic with the smaller mean, at the action of the actor as it is, and the actor climbs the smaller mean:

    a'   = clip(pi(s_m) + epsilon, -1, 1),    epsilon ~ N(0, target_noise^2),
    y    = law of sum_{k<m} discount^k r_k + discount^m (1 - terminated) Z_target_i(s_m, a'),   i of the smaller mean,
    J_Q  = E[ sum_i cross-entropy(project(y), Z_i(s, a)) ],
    J_pi = E[ -min_i E Z_i(s, pi(s)) ]        every `delay` updates.

Each environment explores with a noise of its own, from `least_noise` to `most_noise`. Weights decay.

Source: Seo et al. 2025, "FastTD3: Simple, Fast, and Capable Reinforcement Learning for Humanoid Control", and its
released code.
Differs from them: the environments' noises are spread evenly over the range, where the code draws a new one for each
episode; the noise of the target is not clipped, which the code does at 500 standard deviations; the critic of the
smaller mean is found before its law is projected; the replay is a tenth of the paper's; all in float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrl import networks, normalise, policies, returns
from jaxrl.distributional import critics as laws
from jaxrl.risk import Mean
from jaxrl.types import Metrics, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import sac, td3

BIG = Replay(num_envs=1024, capacity=2**20, batch_size=32_768, warmup=10_240, updates_per_step=2)


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # AdamW's step size, of actor and critics
    weight_decay: float = 0.1  # of all weights, in units of the step size
    discount: float = 0.99  # per step, in [0, 1); the paper has 0.97 on MuJoCo Playground
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    least_noise: float = 0.001  # standard deviation, for actions in [-1, 1], of the first environment
    most_noise: float = 0.4  # the same of the last one
    target_noise: float = 0.001  # standard deviation, for actions in [-1, 1], of what the target looks at
    target_rate: float = 0.1  # tau: share of the critics that goes into their targets at each update
    critic: laws.Critic = laws.Categorical(-10.0, 10.0)  # its range is that of the discounted return; or another law
    delay: int = struct.field(pytree_node=False, default=2)  # updates of the critics for one of the actor
    num_critics: int = struct.field(pytree_node=False, default=2)  # the smallest of so many
    normalise_observations: bool = struct.field(pytree_node=False, default=True)  # by running moments
    normalise_rewards: bool = struct.field(pytree_node=False, default=False)  # by returns, into the critic's support
    network: networks.Network = struct.field(pytree_node=False, default=networks.Plain())  # of both; or SimbaV2()
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(512, 256, 128))  # of the actor
    critic_hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(1024, 512, 256))  # of each critic
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=BIG)  # 1024 environments, batches of 32768

    def __post_init__(self) -> None:
        check_positive("Config", delay=self.delay, num_critics=self.num_critics)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        check_between("Config", 0, math.inf, least_noise=self.least_noise, most_noise=self.most_noise)
        check_between("Config", 0, math.inf, target_noise=self.target_noise)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor" and "critics" [num_critics, ...]
    target: Any  # of the critics
    optimiser: Any  # of "actor" and "critics"
    updates: jax.Array  # [], integer: how many there were
    normaliser: normalise.Normaliser | normalise.Moments | None  # of observations, and of rewards
    spec: Spec = struct.field(pytree_node=False)


def optimiser(config: Config) -> optax.GradientTransformation:
    """AdamW, built where it is traced, so that step size and decay stay traced."""
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(config.learning_rate),
    )


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and bounded actions of `spec`."""
    actor_key, critics_key = jax.random.split(key)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": td3.actor_module(config, spec).init(actor_key, observation),
        "critics": sac.critics_module(config).init(critics_key, observation, action),
    }
    optimisers = {name: optimiser(config).init(group) for name, group in params.items()}
    normaliser = sac.normaliser(config, spec)
    return State(params, params["critics"], optimisers, jnp.zeros((), jnp.int32), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., N, *observation], with the noise of its environment; without a key, none.

    An observation by itself has the least noise.
    """
    state.spec.observation.check("observation", observation)
    action = td3.actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    if key is not None:
        count = action.shape[-2] if action.ndim > 1 else 1
        std = jnp.linspace(config.least_noise, config.most_noise, count, dtype=action.dtype)
        std = std[:, None] if action.ndim > 1 else std
        action = jnp.clip(action + std * jax.random.normal(key, action.shape, action.dtype), -1, 1)
    return policies.from_unit(action, state.spec.action), {}


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """The laws that the critics regress on, for a window [m, B]."""
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    action = td3.actor(config, state.spec, state.params, observation)
    action = jnp.clip(action + config.target_noise * jax.random.normal(key, action.shape, action.dtype), -1, 1)
    outputs = laws.smallest(config.critic, sac.critics(config, state.target, observation, action))
    return config.critic.targets(outputs, sac.rewards(config, state, ahead.returns), ahead.discount, 0.0)


def critic_loss(
    params: Any, config: Config, state: State, window: Transition, targets: jax.Array
) -> tuple[jax.Array, Metrics]:
    """J_Q over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    outputs = sac.critics(config, params, observation, policies.to_unit(window.action[0], state.spec.action))
    value = jnp.sum(jnp.mean(config.critic.loss(outputs, targets), axis=-1))
    return value, {"critic_loss": value, "value": jnp.mean(Mean()(*config.critic.law(outputs)))}


def actor_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_pi over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = td3.actor(config, state.spec, {"actor": params}, observation)
    outputs = sac.critics(config, state.params["critics"], observation, action)
    return -jnp.mean(jnp.min(Mean()(*config.critic.law(outputs)), axis=0))


def improve(config: Config, state: State, window: Transition) -> State:
    """A step of the actor."""
    gradient = jax.grad(actor_loss)(state.params["actor"], config, state, window)
    step, opt_state = optimiser(config).update(gradient, state.optimiser["actor"], state.params["actor"])
    params = state.params | {"actor": networks.project(optax.apply_updates(state.params["actor"], step))}
    return dataclasses.replace(state, params=params, optimiser=state.optimiser | {"actor": opt_state})


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step of the critics on windows [m, B] of a replay, and of the actor where it is due."""
    check_batch(state.spec, batch)
    targets = target(config, state, batch, key)
    old = state.params["critics"]
    gradient, metrics = jax.grad(critic_loss, has_aux=True)(old, config, state, batch, targets)
    step, opt_state = optimiser(config).update(gradient, state.optimiser["critics"], old)
    new = networks.project(optax.apply_updates(old, step))
    state = dataclasses.replace(
        state,
        params=state.params | {"critics": new},
        optimiser=state.optimiser | {"critics": opt_state},
        target=optax.incremental_update(new, state.target, config.target_rate),
        updates=state.updates + 1,
    )
    due = state.updates % config.delay == 0
    return jax.lax.cond(due, lambda old: improve(config, old, batch), lambda old: old, state), metrics
