r"""Twin delayed deep deterministic policy gradient (TD3).

Learns, off-policy, a deterministic policy pi. The target looks at pi with noise on it, so that narrow peaks of the
critics do not count, and trusts the smaller of two critics; actor and targets are updated more rarely than the critics:

    a'  = clip( pi_target(s_m) + clip(epsilon, -noise_clip, noise_clip), -1, 1 ),    epsilon ~ N(0, target_noise^2),
    y   = sum_{k<m} discount^k r_k + discount^m (1 - terminated) min_i Q_target_i(s_m, a'),
    J_Q = E[ sum_i 1/2 (Q_i(s, a) - y)^2 ],        J_pi = E[ -Q_1(s, pi(s)) ]    every `delay` updates.

With another `critic` than `Scalar` the critics learn the law Z_i of the return, J_Q is its loss, the target is the law
of the critic with the smaller mean, and the actor climbs what Z_1 is worth to a measure of `risk`. With `Categorical`
that is the learner of D4PG and FastTD3.

Source: Fujimoto, van Hoof and Meger 2018, "Addressing Function Approximation Error in Actor-Critic Methods", eqs. (10)
and (14) and algorithm 1.
Differs from the paper: batches of 256, a network of 256 x 256 and a step size of 3e-4, as its authors' later code;
actions, and so the noise, are in the box [-1, 1]^A.
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
from jaxrl.risk import Mean, Measure
from jaxrl.types import Box, Metrics, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import sac


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of actor and critics
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    exploration_noise: float = 0.1  # standard deviation, for actions in [-1, 1], where it acts with a key
    target_noise: float = 0.2  # standard deviation, for actions in [-1, 1], of what the target looks at
    noise_clip: float = 0.5  # that noise is at most so much
    target_rate: float = 0.005  # tau: share of actor and critics that goes into their targets, every `delay` updates
    critic: laws.Critic = laws.Scalar()  # what the critics learn: a number, or the law of the return
    risk: Measure = Mean()  # what the actor climbs, of that law; needs Categorical or Quantile
    delay: int = struct.field(pytree_node=False, default=2)  # updates of the critics for one of the actor
    num_critics: int = struct.field(pytree_node=False, default=2)  # the smallest of so many
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor and each critic
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    def __post_init__(self) -> None:
        check_positive("Config", delay=self.delay, num_critics=self.num_critics)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, noise_clip=self.noise_clip)
        check_between("Config", 0, math.inf, exploration_noise=self.exploration_noise, target_noise=self.target_noise)
        laws.check_risk(self.critic, self.risk)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor" and "critics" [num_critics, ...]
    target: Any  # of both
    optimiser: Any  # of each, by the same names
    updates: jax.Array  # [], integer: how many there were
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


class Actor(nn.Module):
    """Normalised observation [..., *observation] -> action in [-1, 1]^A."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    action: Box  # [-1, 1]^A
    network: networks.Network = networks.Plain()

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        shape, size = observation.shape[-1:], policies.vector_size(self.action)
        features = networks.Torso(shape, self.hidden_sizes, self.activation, self.network)(observation)
        return jnp.tanh(self.network.heads(features, size)[0])


def actor(config: Any, spec: Spec, params: Any, observation: jax.Array) -> jax.Array:
    """The action in [-1, 1]^A at a normalised observation."""
    action: Any = actor_module(config, spec).apply(params["actor"], observation)
    return action


def actor_module(config: Any, spec: Spec) -> Actor:
    """The actor, from `config.hidden_sizes`, `config.activation` and, where there is one, `config.network`."""
    return Actor(config.hidden_sizes, config.activation, policies.unit_box(spec.action), sac.network(config))


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and bounded actions of `spec`."""
    actor_key, critics_key = jax.random.split(key)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": actor_module(config, spec).init(actor_key, observation),
        "critics": sac.critics_module(config).init(critics_key, observation, action),
    }
    optimisers = {name: sac.optimiser(config).init(group) for name, group in params.items()}
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, params, optimisers, jnp.zeros((), jnp.int32), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], with noise; without a key, that of the policy."""
    state.spec.observation.check("observation", observation)
    action = actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    if key is not None:
        noise = config.exploration_noise * jax.random.normal(key, action.shape, action.dtype)
        action = jnp.clip(action + noise, -1, 1)
    return policies.from_unit(action, state.spec.action), {}


def smooth(config: Any, choice: jax.Array, key: jax.Array) -> jax.Array:
    """What the target looks at: a choice in [-1, 1], [..., n], with clipped noise on it."""
    noise = config.target_noise * jax.random.normal(key, choice.shape, choice.dtype)
    return jnp.clip(choice + jnp.clip(noise, -config.noise_clip, config.noise_clip), -1, 1)


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """What the critics regress on, for a window [m, B]: y [B, 1], or laws."""
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    action = actor(config, state.spec, state.target, observation)
    action = smooth(config, action, key)
    outputs = laws.smallest(config.critic, sac.critics(config, state.target["critics"], observation, action))
    return config.critic.targets(outputs, config.reward_scale * ahead.returns, ahead.discount, 0.0)


def critic_loss(
    params: Any, config: Config, state: State, window: Transition, targets: jax.Array
) -> tuple[jax.Array, Metrics]:
    """J_Q over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = policies.to_unit(window.action[0], state.spec.action)
    outputs = sac.critics(config, params, observation, action)
    value = jnp.sum(jnp.mean(config.critic.loss(outputs, targets), axis=-1))
    return value, {"critic_loss": value, "value": jnp.mean(Mean()(*config.critic.law(outputs)))}


def actor_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_pi over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = actor(config, state.spec, {"actor": params}, observation)
    return -jnp.mean(sac.values(config, sac.critics(config, state.params["critics"], observation, action)[0]))


def descend(config: Any, state: Any, name: str, gradient: Any) -> Any:
    """The state after a step of Adam of the network `name`."""
    step, opt_state = sac.optimiser(config).update(gradient, state.optimiser[name])
    params = state.params | {name: optax.apply_updates(state.params[name], step)}
    return dataclasses.replace(state, params=params, optimiser=state.optimiser | {name: opt_state})


def follow(config: Any, state: Any) -> Any:
    """The state with all targets a little nearer."""
    slow = optax.incremental_update(state.params, state.target, config.target_rate)
    return dataclasses.replace(state, target=slow)


def improve(config: Config, state: State, window: Transition) -> State:
    """A step of the actor, and all targets a little nearer."""
    gradient = jax.grad(actor_loss)(state.params["actor"], config, state, window)
    new: State = follow(config, descend(config, state, "actor", gradient))
    return new


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step of the critics on windows [m, B] of a replay, and of the actor where it is due."""
    check_batch(state.spec, batch)
    targets = target(config, state, batch, key)
    gradient, metrics = jax.grad(critic_loss, has_aux=True)(state.params["critics"], config, state, batch, targets)
    state = dataclasses.replace(descend(config, state, "critics", gradient), updates=state.updates + 1)
    due = state.updates % config.delay == 0
    return jax.lax.cond(due, lambda old: improve(config, old, batch), lambda old: old, state), metrics
