r"""Bounded policy optimisation (BPO): PPO whose policy regresses on the best one with bounded ratios.

Among all policies with 1 - epsilon <= pi / pi_old <= 1 + epsilon, the one of largest E[Q] is known in closed form: it
raises the actions above the median u(s) of Q under pi_old by epsilon, and lowers those below. The ratio
r_t = pi(a_t | s_t) / pi_old(a_t | s_t) is led there, and the closer the less an action matters:

    r*_t = 1 - epsilon + 2 epsilon sigmoid((G_t - u(s_t)) / temperature)    ->    1 + epsilon sign(G_t - u(s_t)),
    L = E[ |r_t - r*_t| |G_t - V(s_t)| ] + c_v E[ (V(s_t) - G_t)^2 ] + c_u E[ phi(G_t - u(s_t)) ] - c_e E[ H(pi) ],
    phi(x) = tau softplus(x / tau) - x / 2,    G_t = GAE(discount, lambda) + V_old(s_t).

phi makes u a smooth median: where it is least, E sigmoid((G - u) / tau) = 1/2. With tau = `median_temperature` equal to
`temperature`, E[r*] is exactly 1.

Source: "Bounded Ratio Reinforcement Learning" (2026), and its released code.
Differs from the code: actor and critic share no weights, and the median is a second output of the critic; observations
are normalised; a truncated episode bootstraps from its true last observation.
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

from jaxrl import networks, normalise, policies
from jaxrl.types import (
    Metrics,
    Rollout,
    Spec,
    Transition,
    check_batch,
    check_between,
    check_minibatches,
    check_positive,
)

from . import ppo


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size
    anneal_updates: float = math.inf  # updates over which the step size falls linearly to 0; inf: constant
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward; advantages are not normalised
    lambda_: float = 0.95  # trace decay of the advantages, in [0, 1]
    bound: float = 0.3  # epsilon: how far the ratio may be from 1, in [0, 1]
    temperature: float = 1e-3  # of the step from 1 - epsilon to 1 + epsilon, in units of the scaled return
    median_temperature: float = 1.0  # tau, of the median's loss, in the same units
    value_coefficient: float = 0.5  # c_v
    median_coefficient: float = 0.5  # c_u
    entropy_coefficient: float = 0.0  # c_e, nats
    max_gradient_norm: float = 1.0  # global norm, of all networks together
    num_epochs: int = struct.field(pytree_node=False, default=10)  # passes over the rollout
    num_minibatches: int = struct.field(pytree_node=False, default=32)  # per epoch
    normalise_observations: bool = struct.field(pytree_node=False, default=True)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of actor and critic each
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Rollout = struct.field(pytree_node=False, default=Rollout(num_envs=64, length=32))  # one rollout per update

    def __post_init__(self) -> None:
        check_positive("Config", num_epochs=self.num_epochs, num_minibatches=self.num_minibatches)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, lambda_=self.lambda_, bound=self.bound)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, temperature=self.temperature)
        check_between("Config", 0, math.inf, median_temperature=self.median_temperature)
        check_minibatches(self.data, self.num_minibatches)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # actor and critic, with both its heads
    optimiser: optax.OptState
    updates: jax.Array  # [] int32, calls of `update` so far
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


class ActorCritic(nn.Module):
    """Normalised observation [..., *observation] -> action distribution, value [...], median [...]."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    spec: Spec

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[policies.Distribution, jax.Array, jax.Array]:
        shape = self.spec.observation.shape
        actor = networks.Torso(shape, self.hidden_sizes, self.activation, name="actor")(observation)
        critic = networks.Torso(shape, self.hidden_sizes, self.activation, name="critic")(observation)
        value, median = networks.Scalar(name="value")(critic), networks.Scalar(name="median")(critic)
        return policies.Head(self.spec.action, name="policy")(actor), value, median


def apply(
    config: Config, spec: Spec, params: Any, observation: jax.Array
) -> tuple[policies.Distribution, jax.Array, jax.Array]:
    """Policy, value and median at a normalised observation [..., *observation]."""
    outputs: Any = ActorCritic(config.hidden_sizes, config.activation, spec).apply(params, observation)
    return outputs


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    params = ActorCritic(config.hidden_sizes, config.activation, spec).init(key, spec.observation.zeros())
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, ppo.optimiser(config, 0).init(params), jnp.int32(0), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], and its log-probability; without a key, the mode."""
    state.spec.observation.check("observation", observation)
    policy, _, _ = apply(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    if key is None:
        return policy.mode(), {}
    action, log_prob = policy.sample_and_log_prob(seed=key)
    return action, {"log_prob": log_prob}


def best_ratio(config: Config, gap: jax.Array) -> jax.Array:
    """r*, for G - u."""
    return 1 - config.bound + 2 * config.bound * jax.nn.sigmoid(gap / config.temperature)


def loss(params: Any, config: Config, spec: Spec, batch: ppo.Samples) -> tuple[jax.Array, Metrics]:
    """L over a minibatch [B]."""
    policy, value, median = apply(config, spec, params, batch.observation)
    log_ratio = policy.log_prob(batch.action) - batch.log_prob
    ratio, gap = jnp.exp(log_ratio), batch.target - median
    wanted = jax.lax.stop_gradient(best_ratio(config, gap))
    policy_loss = jnp.mean(jnp.abs(ratio - wanted) * jax.lax.stop_gradient(jnp.abs(batch.target - value)))
    value_loss = jnp.mean((value - batch.target) ** 2)
    tau = config.median_temperature
    median_loss = jnp.mean(tau * jax.nn.softplus(gap / tau) - gap / 2)
    entropy = jnp.mean(policy.entropy())
    total = policy_loss + config.value_coefficient * value_loss + config.median_coefficient * median_loss
    return total - config.entropy_coefficient * entropy, {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "median_loss": median_loss,
        "entropy": entropy,
        "kl": jnp.mean(ratio - 1 - log_ratio),  # of pi from pi_old: an estimate that is never negative
        "outside": jnp.mean(jnp.abs(ratio - 1) > config.bound),
        "best_ratio": jnp.mean(wanted),
    }


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """Several epochs of minibatches of one rollout [T, N], collected by `act` with this state."""
    check_batch(state.spec, batch)
    rollout = ppo.samples(config, state, batch)  # its network is a part of ours, by the same names
    adam = ppo.optimiser(config, state.updates)

    def step(carry: Any, index: jax.Array) -> tuple[Any, Metrics]:
        params, opt_state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[index], rollout)
        gradients, metrics = jax.grad(loss, has_aux=True)(params, config, state.spec, minibatch)
        direction, opt_state = adam.update(gradients, opt_state)
        new = optax.apply_updates(params, direction), opt_state
        return new, metrics | {"gradient_norm": optax.tree.norm(gradients)}

    size = rollout.value.size
    order = ppo.shuffle(key, size, config.num_epochs).reshape(-1, size // config.num_minibatches)
    (params, opt_state), metrics = jax.lax.scan(step, (state.params, state.optimiser), order)
    state = dataclasses.replace(state, params=params, optimiser=opt_state, updates=state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics)
