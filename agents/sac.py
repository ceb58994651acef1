r"""Soft actor-critic (SAC).

Learns, off-policy, a stochastic policy that maximises return plus entropy. Critics regress on one-step (or m-step) soft
targets, the actor climbs the smallest of them, and the temperature alpha keeps the entropy at a target:

    y = sum_{k<m} discount^k r_k + discount^m (1 - terminated) (min_i Q_target_i(s_m, a') - alpha log pi(a' | s_m)),
    J_Q = E[ sum_i 1/2 (Q_i(s, a) - y)^2 ],                                   a' ~ pi(. | s_m),
    J_pi = E[ alpha log pi(a | s) - min_i Q_i(s, a) ],                        a ~ pi(. | s), reparametrised,
    J_alpha = E[ -alpha (log pi(a | s) + target_entropy) ].

With another `critic` than `Scalar` the critics learn the law Z_i of the soft return, and J_Q is its loss. The target is
the whole law of the critic with the smallest mean, moved by r and discount; and in J_pi, Q_i is what Z_i is worth to a
measure of `risk`, whose mean it is by default.

Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", eqs. (5), (9) and (18), and algorithm 1;
the minimum over critics is that of Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic
Methods"; of laws, that of Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning"; the
measure of risk is where Ma et al. 2020, "DSAC: Distributional Soft Actor-Critic for Risk-Sensitive Reinforcement
Learning" has it.
Differs from the paper: one Adam takes the three losses at once, each with respect to its own parameters; the
temperature is learned as its logarithm; n-step targets without correction are a setting. Actions a are those of the
box [-1, 1]^A, so that neither densities nor critics depend on the units of the environment.
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


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of actor, critics and temperature
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    target_rate: float = 0.005  # tau: share of the critics that goes into their targets at each update
    target_entropy: float | None = None  # nats, of actions in [-1, 1]; None: minus their number, as in the paper
    initial_temperature: float = 1.0  # alpha before the first update
    critic: laws.Critic = laws.Scalar()  # what the critics learn: a number, or the law of the soft return
    risk: Measure = Mean()  # what the actor climbs, of that law; needs Categorical or Quantile
    num_critics: int = struct.field(pytree_node=False, default=2)  # the smallest of so many
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    normalise_rewards: bool = struct.field(pytree_node=False, default=False)  # by returns, into the critic's support
    network: networks.Network = struct.field(pytree_node=False, default=networks.Plain())  # of both; or SimbaV2()
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor
    critic_hidden_sizes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)  # None: as the actor's
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    def __post_init__(self) -> None:
        check_positive("Config", num_critics=self.num_critics)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate)
        check_between("Config", 0, math.inf, initial_temperature=self.initial_temperature)
        laws.check_risk(self.critic, self.risk)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor", "critics" [num_critics, ...] and "log_temperature" []
    target: Any  # of the critics
    optimiser: optax.OptState
    normaliser: normalise.Normaliser | normalise.Moments | None  # of observations, and of rewards
    spec: Spec = struct.field(pytree_node=False)


class Actor(nn.Module):
    """Normalised observation [..., *observation] -> squashed normal in [-1, 1]^A."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    action: Box  # [-1, 1]^A
    network: networks.Network = networks.Plain()

    @nn.compact
    def __call__(self, observation: jax.Array) -> policies.Distribution:
        shape, size = observation.shape[-1:], policies.vector_size(self.action)
        features = networks.Torso(shape, self.hidden_sizes, self.activation, self.network)(observation)
        mean, log_std = self.network.heads(features, size, 2)
        return policies.tanh_normal(mean, self.network.log_std(log_std), self.action)


class Critic(nn.Module):
    """Normalised observation [..., *observation] and action in [-1, 1]^A -> [..., size], read by `Config.critic`."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    size: int
    network: networks.Network = networks.Plain()

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([observation, action], axis=-1)
        features = self.network.features(self.hidden_sizes, self.activation)(inputs)
        return self.network.heads(features, self.size)[0]


def actor(config: Any, spec: Spec, params: Any, observation: jax.Array) -> policies.Distribution:
    """The policy at a normalised observation, over [-1, 1]^A."""
    policy: Any = actor_module(config, spec).apply(params["actor"], observation)
    return policy


def critics(config: Any, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """The outputs [num_critics, ..., size] at a normalised observation and an action in [-1, 1]^A."""
    outputs: Any = critics_module(config).apply(params, observation, action)
    return outputs


def values(config: Any, outputs: jax.Array) -> jax.Array:
    """What the laws with these outputs [..., size] are worth, [...]."""
    worth: jax.Array = config.risk(*config.critic.law(outputs))
    return worth


def actor_module(config: Any, spec: Spec) -> Actor:
    """The actor of an agent for bounded actions."""
    return Actor(config.hidden_sizes, config.activation, policies.unit_box(spec.action), network(config))


def critics_module(config: Any) -> nn.Module:
    """The critics side by side."""
    module = networks.ensemble(Critic, config.num_critics)
    return module(critic_sizes(config), config.activation, config.critic.size, network(config))


def network(config: Any) -> networks.Network:
    """The architecture of an agent that may leave no choice of it."""
    chosen: networks.Network = getattr(config, "network", networks.Plain())
    return chosen


def critic_sizes(config: Any) -> tuple[int, ...]:
    """The hidden sizes of an agent's critics, those of its actor unless it has others."""
    sizes: tuple[int, ...] | None = getattr(config, "critic_hidden_sizes", None)
    return config.hidden_sizes if sizes is None else sizes


def normaliser(config: Any, spec: Spec) -> normalise.Normaliser | normalise.Moments | None:
    """What `config.normalise_observations` and `config.normalise_rewards` ask for, before the first step."""
    observations = normalise.init(spec.observation) if config.normalise_observations else None
    if not config.normalise_rewards:
        return observations
    return normalise.Normaliser(observations, normalise.init_returns(config.data.num_envs))


def rewards(config: Any, state: Any, returns: jax.Array) -> jax.Array:
    """What the critics learn from of rewards, or of sums of them, [...]."""
    critic, bound = config.critic, jnp.asarray(jnp.inf)
    if isinstance(critic, laws.Categorical | laws.HLGauss):
        bound = jnp.maximum(jnp.abs(critic.low), jnp.abs(critic.high))
    return config.reward_scale * normalise.scale(state.normaliser, returns, bound)


def optimiser(config: Any) -> optax.GradientTransformation:
    """Adam, built where it is traced, so that the step size stays traced."""
    return optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(config.learning_rate))


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and bounded actions of `spec`."""
    actor_key, critics_key = jax.random.split(key)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": actor_module(config, spec).init(actor_key, observation),
        "critics": critics_module(config).init(critics_key, observation, action),
        "log_temperature": jnp.log(jnp.asarray(config.initial_temperature, observation.dtype)),
    }
    return State(params, params["critics"], optimiser(config).init(params), normaliser(config, spec), spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the squashed mean."""
    state.spec.observation.check("observation", observation)
    policy = actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    return policies.from_unit(policy.mode() if key is None else policy.sample(seed=key), state.spec.action), {}


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """What the critics regress on, for a window [m, B]: y [B, 1], or laws."""
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    action, log_prob = actor(config, state.spec, state.params, observation).sample_and_log_prob(seed=key)
    outputs = laws.smallest(config.critic, critics(config, state.target, observation, action))
    cost = jnp.exp(state.params["log_temperature"]) * log_prob
    return config.critic.targets(outputs, rewards(config, state, ahead.returns), ahead.discount, cost)


def loss(
    params: Any, config: Config, state: State, window: Transition, targets: jax.Array, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """J_Q + J_pi + J_alpha over the first rows of a window [m, B], each with gradients for its own parameters alone."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = policies.to_unit(window.action[0], state.spec.action)
    outputs = critics(config, params["critics"], observation, action)
    critic_loss = jnp.sum(jnp.mean(config.critic.loss(outputs, targets), axis=-1))

    action, log_prob = actor(config, state.spec, params, observation).sample_and_log_prob(seed=key)
    frozen = jax.lax.stop_gradient(params["critics"])
    value = jnp.min(values(config, critics(config, frozen, observation, action)), axis=0)
    actor_loss = jnp.mean(jnp.exp(jax.lax.stop_gradient(params["log_temperature"])) * log_prob - value)

    total = critic_loss + actor_loss + temperature_loss(params, config, action, log_prob)
    return total, {
        "critic_loss": critic_loss,
        "actor_loss": actor_loss,
        "entropy": -jnp.mean(log_prob),
        "temperature": jnp.exp(params["log_temperature"]),
        "value": jnp.mean(Mean()(*config.critic.law(outputs))),
    }


def temperature_loss(params: Any, config: Any, action: jax.Array, log_prob: jax.Array) -> jax.Array:
    """J_alpha, for actions [B, A] and their log pi [B]."""
    wanted = -float(action.shape[-1]) if config.target_entropy is None else config.target_entropy
    return -jnp.exp(params["log_temperature"]) * jax.lax.stop_gradient(jnp.mean(log_prob) + wanted)


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step on windows [m, B] of a replay."""
    check_batch(state.spec, batch)
    target_key, action_key = jax.random.split(key)
    targets = jax.lax.stop_gradient(target(config, state, batch, target_key))
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params, config, state, batch, targets, action_key)
    step, opt_state = optimiser(config).update(gradients, state.optimiser)
    params = networks.project(optax.apply_updates(state.params, step))
    slow = optax.incremental_update(params["critics"], state.target, config.target_rate)
    return dataclasses.replace(state, params=params, target=slow, optimiser=opt_state), metrics
