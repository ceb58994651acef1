r"""Truncated quantile critics (TQC).

Soft actor-critic whose K critics learn N quantiles theta each, and which holds overestimation back by leaving the
largest quantiles out of the target: those of all critics are pooled and sorted, and of their K N the K (N - drop)
smallest are kept.

    y_j = sum_{k<m} discount^k r_k + discount^m (1 - terminated) (z_(j)(s_m, a') - alpha log pi(a' | s_m)),
    J_Q = E[ 1/K sum_k 1/N sum_i mean_j |tau_i - 1{u < 0}| H(u) ],    u = y_j - theta_ki(s, a),    a' ~ pi(. | s_m),
    J_pi = E[ alpha log pi(a | s) - mean_ki theta_ki(s, a) ],                                       a ~ pi(. | s),
    J_alpha = E[ -alpha (log pi(a | s) + target_entropy) ],

with z_(1) <= z_(2) <= ... the pool, from slowly following copies of the critics, and H the Huber function.

Source: Kuznetsov et al. 2020, "Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional
Quantile Critics", eqs. (9) to (14) and algorithm 1.
Differs from the paper: one Adam takes the three losses at once, as in `sac`, whose actor this is; `drop` is traced, and
need not be whole.
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
from jaxrl.distributional import quantile
from jaxrl.types import Metrics, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import sac


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of actor, critics and temperature
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    drop: float = 2.0  # quantiles left out of the target for each critic, in [0, num_quantiles); 0 to 5 in the paper
    kappa: float = 1.0  # where the Huber function turns from a square into a line, in units of the scaled reward
    target_rate: float = 0.005  # tau: share of the critics that goes into their targets at each update
    target_entropy: float | None = None  # nats, of actions in [-1, 1]; None: minus their number, as in the paper
    initial_temperature: float = 1.0  # alpha before the first update
    num_critics: int = struct.field(pytree_node=False, default=5)  # K
    num_quantiles: int = struct.field(pytree_node=False, default=25)  # N, of each critic
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor
    critic_hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(512, 512, 512))  # of each critic
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    def __post_init__(self) -> None:
        check_positive("Config", num_critics=self.num_critics, num_quantiles=self.num_quantiles)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, self.num_quantiles, open_=True, drop=self.drop)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, kappa=self.kappa)
        check_between("Config", 0, math.inf, initial_temperature=self.initial_temperature)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor", "critics" [num_critics, ...] and "log_temperature" []
    target: Any  # of the critics
    optimiser: optax.OptState
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def critics(config: Config, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """The quantiles [K, ..., N] at a normalised observation and an action in [-1, 1]^A, in no order."""
    quantiles: Any = critics_module(config).apply(params, observation, action)
    return quantiles


def critics_module(config: Config) -> nn.Module:
    """The critics side by side."""
    module = networks.ensemble(sac.Critic, config.num_critics)
    return module(config.critic_hidden_sizes, config.activation, config.num_quantiles)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and bounded actions of `spec`."""
    actor_key, critics_key = jax.random.split(key)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": sac.actor_module(config, spec).init(actor_key, observation),
        "critics": critics_module(config).init(critics_key, observation, action),
        "log_temperature": jnp.log(jnp.asarray(config.initial_temperature, observation.dtype)),
    }
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, params["critics"], sac.optimiser(config).init(params), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the squashed mean."""
    state.spec.observation.check("observation", observation)
    policy = sac.actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    return policies.from_unit(policy.mode() if key is None else policy.sample(seed=key), state.spec.action), {}


def target(config: Config, state: State, window: Transition, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pool y [B, K N] for a window [m, B], in ascending order, and the weights of its members [K N]."""
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    action, log_prob = sac.actor(config, state.spec, state.params, observation).sample_and_log_prob(seed=key)
    pool = quantile.pool(critics(config, state.target, observation, action))
    soft_values = pool - (jnp.exp(state.params["log_temperature"]) * log_prob)[:, None]
    keep = config.num_critics * (config.num_quantiles - config.drop)
    weights = quantile.truncated_weights(pool.shape[-1], jnp.asarray(keep, pool.dtype))
    return config.reward_scale * ahead.returns[:, None] + ahead.discount[:, None] * soft_values, weights


def loss(
    params: Any,
    config: Config,
    state: State,
    window: Transition,
    targets: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """J_Q + J_pi + J_alpha over the first rows of a window [m, B], each with gradients for its own parameters alone."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = policies.to_unit(window.action[0], state.spec.action)
    quantiles = critics(config, params["critics"], observation, action)
    taus = quantile.midpoints(config.num_quantiles)
    critic_loss = jnp.mean(quantile.mean_huber_loss(quantiles, taus, targets[0], config.kappa, targets[1]))

    action, log_prob = sac.actor(config, state.spec, params, observation).sample_and_log_prob(seed=key)
    frozen = jax.lax.stop_gradient(params["critics"])
    value = jnp.mean(critics(config, frozen, observation, action), axis=(0, -1))
    actor_loss = jnp.mean(jnp.exp(jax.lax.stop_gradient(params["log_temperature"])) * log_prob - value)

    return critic_loss + actor_loss + sac.temperature_loss(params, config, action, log_prob), {
        "critic_loss": critic_loss,
        "actor_loss": actor_loss,
        "entropy": -jnp.mean(log_prob),
        "temperature": jnp.exp(params["log_temperature"]),
        "value": jnp.mean(quantiles),
        "crossing": jnp.mean(quantile.crossing_share(quantiles)),
    }


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step on windows [m, B] of a replay."""
    check_batch(state.spec, batch)
    target_key, action_key = jax.random.split(key)
    targets = jax.lax.stop_gradient(target(config, state, batch, target_key))
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params, config, state, batch, targets, action_key)
    step, opt_state = sac.optimiser(config).update(gradients, state.optimiser)
    params = optax.apply_updates(state.params, step)
    slow = optax.incremental_update(params["critics"], state.target, config.target_rate)
    return dataclasses.replace(state, params=params, target=slow, optimiser=opt_state), metrics
