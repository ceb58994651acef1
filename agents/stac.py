r"""Stochastic actor-critic (STAC): one critic that knows its one-step uncertainty, in the place of two.

Soft actor-critic with a single critic, a normal law N(mu, sigma^2) fitted by maximum likelihood to a number, and with
`pessimism` beta against overestimation, both in the target and in the actor:

    y = sum_{k<m} discount^k r_k + discount^m (1 - terminated) (mu_target - beta sigma_target - alpha log pi)(s_m, a'),
    J_Q = E[ log sigma(s, a) + (y - mu(s, a))^2 / (2 sigma(s, a)^2) ],                    a' ~ pi(. | s_m),
    J_pi = E[ alpha log pi(a | s) - (mu - beta sigma)(s, a) ],                            a ~ pi(. | s),
    J_alpha = E[ -alpha (log pi(a | s) + target_entropy) ].

sigma is the spread of y over one step (of the reward, the successor and the next action). It is not the spread of the
return, and 0 where dynamics and policy are deterministic. Each hidden layer is dense, dropout, layer norm, activation;
dropout is active in the critic, its target, and the actor wherever it samples.

Source: Ozalp 2026, "Stochastic Actor-Critic: Mitigating Overestimation via Temporal Aleatoric Uncertainty", and its
released code.
Differs from them: one Adam takes the three losses at once, the temperature's too, where the code multiplies alpha by
exp(learning_rate alpha (target_entropy - entropy)); without a key the action is the squashed mean, where the code takes
the mean of ten samples; one pessimism for all tasks, where the paper chose it for each after the fact.
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
from jaxrl.distributional import gaussian
from jaxrl.types import Box, Metrics, Replay, Spec, Transition, check_batch, check_between

from . import sac


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of actor, critic and temperature
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    pessimism: float = 0.25  # beta: standard deviations taken from the mean; 0 to 0.5 in the paper, by task
    actor_dropout: float = 0.01  # share of hidden units left out, in [0, 1)
    critic_dropout: float = 0.01  # the same of the critic; without it the paper's Hopper does not learn
    target_rate: float = 0.005  # tau: share of the critic that goes into its target at each update
    target_entropy: float | None = None  # nats, of actions in [-1, 1]; None: minus their number, as in the paper
    initial_temperature: float = 0.2  # alpha before the first update
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    normalise_rewards: bool = struct.field(pytree_node=False, default=False)  # by the spread of returns
    network: networks.Network = struct.field(pytree_node=False, default=networks.Plain(layer_norm=True))  # or SimbaV2()
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor
    critic_hidden_sizes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)  # None: as the actor's
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=Replay(warmup=10_000))  # as in the paper

    def __post_init__(self) -> None:
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, open_=True, actor_dropout=self.actor_dropout, critic_dropout=self.critic_dropout)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, pessimism=self.pessimism)
        check_between("Config", 0, math.inf, initial_temperature=self.initial_temperature)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor", "critic" and "log_temperature" []
    target: Any  # of the critic
    optimiser: optax.OptState
    normaliser: normalise.Normaliser | normalise.Moments | None  # of observations, and of rewards
    spec: Spec = struct.field(pytree_node=False)


class Actor(nn.Module):
    """Normalised observation [..., F], dropout or None -> squashed normal in [-1, 1]^A."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    action: Box  # [-1, 1]^A
    network: networks.Network

    @nn.compact
    def __call__(self, observation: jax.Array, dropout: Any = None) -> policies.Distribution:
        features = self.network.features(self.hidden_sizes, self.activation)(observation, dropout)
        mean, raw = self.network.heads(features, policies.vector_size(self.action), 2)
        return policies.tanh_normal(mean, jnp.log(gaussian.std(raw)), self.action)


class Critic(nn.Module):
    """Normalised observation [..., F], action in [-1, 1]^A, dropout -> mean and standard deviation, [...] each."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    network: networks.Network

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array, dropout: Any) -> tuple[jax.Array, jax.Array]:
        inputs = jnp.concatenate([observation, action], axis=-1)
        features = self.network.features(self.hidden_sizes, self.activation)(inputs, dropout)
        mean, raw = jnp.moveaxis(self.network.heads(features, 2)[0], -1, 0)
        return mean, gaussian.std(raw)


def actor(
    config: Config, spec: Spec, params: Any, observation: jax.Array, key: jax.Array | None = None
) -> policies.Distribution:
    """The policy at a normalised observation, over [-1, 1]^A; with a key, under dropout."""
    dropout, rngs = (None, {}) if key is None else (config.actor_dropout, {"dropout": key})
    policy: Any = _actor(config, spec).apply(params["actor"], observation, dropout, rngs=rngs)
    return policy


def critic(
    config: Config, params: Any, observation: jax.Array, action: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [...] at a normalised observation and an action in [-1, 1]^A, under dropout."""
    law: Any = _critic(config).apply(params, observation, action, config.critic_dropout, rngs={"dropout": key})
    return law


def _actor(config: Config, spec: Spec) -> Actor:
    if not isinstance(spec.action, Box) or len(spec.observation.shape) != 1:
        raise ValueError(
            f"stac needs observations (F,) and actions Box((A,)) with bounds, got {spec}; ppo takes others"
        )
    return Actor(config.hidden_sizes, config.activation, policies.unit_box(spec.action), config.network)


def _critic(config: Config) -> Critic:
    return Critic(sac.critic_sizes(config), config.activation, config.network)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations [F] and bounded actions of `spec`."""
    actor_key, critic_key = jax.random.split(key)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": _actor(config, spec).init(actor_key, observation),
        "critic": _critic(config).init(critic_key, observation, action, None),
        "log_temperature": jnp.log(jnp.asarray(config.initial_temperature, observation.dtype)),
    }
    return State(params, params["critic"], sac.optimiser(config).init(params), sac.normaliser(config, spec), spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., F]; without a key, the squashed mean without dropout."""
    state.spec.observation.check("observation", observation)
    observation = normalise.apply(state.normaliser, observation)
    if key is None:
        action = actor(config, state.spec, state.params, observation).mode()
    else:
        dropout_key, key = jax.random.split(key)
        action = actor(config, state.spec, state.params, observation, dropout_key).sample(seed=key)
    return policies.from_unit(action, state.spec.action), {}


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """What the critic regresses on, y [B], for a window [m, B]."""
    actor_key, key, critic_key = jax.random.split(key, 3)
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    policy = actor(config, state.spec, state.params, observation, actor_key)
    action, log_prob = policy.sample_and_log_prob(seed=key)
    mean, std = critic(config, state.target, observation, action, critic_key)
    cost = jnp.exp(state.params["log_temperature"]) * log_prob
    rewards = config.reward_scale * normalise.scale(state.normaliser, ahead.returns)
    return gaussian.one_step_target(rewards, ahead.discount, mean, std, config.pessimism, cost)


def loss(
    params: Any, config: Config, state: State, window: Transition, targets: jax.Array, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """J_Q + J_pi + J_alpha over the first rows of a window [m, B], each with gradients for its own parameters alone."""
    critic_key, actor_key, key, value_key = jax.random.split(key, 4)
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = policies.to_unit(window.action[0], state.spec.action)
    mean, std = critic(config, params["critic"], observation, action, critic_key)
    critic_loss = jnp.mean(gaussian.negative_log_likelihood(mean, std, targets))

    policy = actor(config, state.spec, params, observation, actor_key)
    action, log_prob = policy.sample_and_log_prob(seed=key)
    frozen = jax.lax.stop_gradient(params["critic"])
    value = gaussian.pessimistic_value(*critic(config, frozen, observation, action, value_key), config.pessimism)
    actor_loss = jnp.mean(jnp.exp(jax.lax.stop_gradient(params["log_temperature"])) * log_prob - value)

    return critic_loss + actor_loss + sac.temperature_loss(params, config, action, log_prob), {
        "critic_loss": critic_loss,
        "actor_loss": actor_loss,
        "entropy": -jnp.mean(log_prob),
        "temperature": jnp.exp(params["log_temperature"]),
        "value": jnp.mean(mean),
        "std": jnp.mean(std),
    }


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step on windows [m, B] of a replay."""
    check_batch(state.spec, batch)
    target_key, loss_key = jax.random.split(key)
    targets = jax.lax.stop_gradient(target(config, state, batch, target_key))
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params, config, state, batch, targets, loss_key)
    step, opt_state = sac.optimiser(config).update(gradients, state.optimiser)
    params = networks.project(optax.apply_updates(state.params, step))
    slow = optax.incremental_update(params["critic"], state.target, config.target_rate)
    return dataclasses.replace(state, params=params, target=slow, optimiser=opt_state), metrics
