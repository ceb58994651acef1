r"""Proximal policy optimisation (PPO).

Follows the policy gradient over several epochs of minibatches of one rollout, with the gain of moving away from the
policy that collected it cut off where the ratio of probabilities leaves [1 - epsilon, 1 + epsilon]:

    L_clip(theta) = E[ min( r_t A_t, clip(r_t, 1 - epsilon, 1 + epsilon) A_t ) ],
    r_t = pi(a_t | s_t) / pi_old(a_t | s_t),
    L(theta) = -L_clip + c_v/2 E[ (V(s_t) - G_t)^2 ] - c_e E[ H(pi(. | s_t)) ],
    A_t = GAE(discount, lambda),    G_t = A_t + V_old(s_t).

Two options keep entropy from collapsing. They look at how much each sample lowers it, which is its share in the
covariance of advantage and log-probability, c_t = (A_t - mean A) (log pi_t - mean log pi): of the samples with the
largest, `clip_cov` stops the gradient (Clip-Cov), and `kl_cov` adds |log r_t| to their loss (KL-Cov).

Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eqs. (7) and (9); the advantages are those of
Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. (16);
covariances: Cui et al. 2025, "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models".
Differs from the paper, as released implementations do: advantages are normalised over each minibatch, gradients are
clipped by their global norm, observations by running moments, actor and critic share no weights. Differs from most of
those: a truncated episode bootstraps from its true last observation. Clip-Cov takes the largest, as KL-Cov does, where
its paper draws among those in a band.
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


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size
    anneal_updates: float = math.inf  # updates over which the step size falls linearly to 0; inf: constant
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    lambda_: float = 0.95  # trace decay of the advantages, in [0, 1]
    clip_ratio: float = 0.2  # epsilon
    clip_value: float | None = None  # largest change of a value that still lowers its loss; None: no limit
    value_coefficient: float = 0.5  # c_v; the paper has 1 where weights are shared
    entropy_coefficient: float = 0.0  # c_e, nats; the paper has 0.01 for Atari
    max_gradient_norm: float = 0.5  # global norm, of actor and critic together
    target_kl: float | None = None  # nats; no further minibatch once pi has moved this far; None: no limit
    clip_cov: float | None = None  # share of each minibatch, those of largest covariance, that gives no gradient
    kl_cov: float | None = None  # share of each minibatch, those of largest covariance, that is held near pi_old
    kl_cov_coefficient: float = 1.0  # how strongly
    num_epochs: int = struct.field(pytree_node=False, default=4)  # passes over the rollout; the paper has 10
    num_minibatches: int = struct.field(pytree_node=False, default=4)  # per epoch
    normalise_observations: bool = struct.field(pytree_node=False, default=True)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))  # of actor and critic each
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of both
    data: Rollout = struct.field(pytree_node=False, default=Rollout(num_envs=64, length=32))  # one rollout per update

    def __post_init__(self) -> None:
        check_positive("Config", num_epochs=self.num_epochs, num_minibatches=self.num_minibatches)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, lambda_=self.lambda_)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, clip_ratio=self.clip_ratio)
        check_minibatches(self.data, self.num_minibatches)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # actor and critic
    optimiser: optax.OptState
    updates: jax.Array  # [] int32, calls of `update` so far
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


class ActorCritic(nn.Module):
    """Normalised observation [..., *observation] -> action distribution [...], value [...]."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    spec: Spec

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[policies.Distribution, jax.Array]:
        shape = self.spec.observation.shape
        actor = networks.Torso(shape, self.hidden_sizes, self.activation, name="actor")(observation)
        critic = networks.Torso(shape, self.hidden_sizes, self.activation, name="critic")(observation)
        return policies.Head(self.spec.action, name="policy")(actor), networks.Scalar(name="value")(critic)


def network(config: Any, spec: Spec) -> ActorCritic:
    """The actor and the critic, from `config.hidden_sizes` and `config.activation`."""
    return ActorCritic(config.hidden_sizes, config.activation, spec)


def apply(config: Any, spec: Spec, params: Any, observation: jax.Array) -> tuple[policies.Distribution, jax.Array]:
    """Policy and value at a normalised observation [..., *observation]."""
    outputs: Any = network(config, spec).apply(params, observation)
    return outputs


def optimiser(config: Any, updates: jax.Array | int) -> optax.GradientTransformation:
    """Adam with clipped gradients and the step size of this update; built where it is traced, so that it stays so."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.scale_by_adam(eps=1e-5),
        optax.scale_by_learning_rate(config.learning_rate * jnp.maximum(0.0, 1.0 - updates / config.anneal_updates)),
    )


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    params = network(config, spec).init(key, spec.observation.zeros())
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, optimiser(config, 0).init(params), jnp.int32(0), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], and its log-probability; without a key, the mode."""
    state.spec.observation.check("observation", observation)
    policy, _ = apply(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    if key is None:
        return policy.mode(), {}
    action, log_prob = policy.sample_and_log_prob(seed=key)
    return action, {"log_prob": log_prob}


@struct.dataclass
class Samples:
    """What the loss is taken over; leaves are [B, ...]."""

    observation: jax.Array  # normalised
    action: jax.Array
    log_prob: jax.Array  # of the action under pi_old
    value: jax.Array  # V_old
    advantage: jax.Array
    target: jax.Array  # G


def samples(config: Any, state: Any, batch: Transition) -> Samples:
    """The rollout [T, N] with its advantages, flattened to [T N]."""
    observation, next_observation = (
        normalise.apply(state.normaliser, x) for x in (batch.observation, batch.next_observation)
    )
    _, values = apply(config, state.spec, state.params, observation)
    _, next_values = apply(config, state.spec, state.params, next_observation)
    advantages = returns.gae(
        config.reward_scale * batch.reward,
        values,
        next_values,
        batch.terminated,
        batch.truncated,
        config.discount,
        config.lambda_,
    )
    rollout = Samples(observation, batch.action, batch.extras["log_prob"], values, advantages, advantages + values)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rollout)


def loss(params: Any, config: Config, spec: Spec, batch: Samples) -> tuple[jax.Array, Metrics]:
    """L of eq. (9), to be minimised, over a minibatch [B]."""
    policy, values = apply(config, spec, params, batch.observation)
    advantage = (batch.advantage - jnp.mean(batch.advantage)) / (jnp.std(batch.advantage) + 1e-8)
    log_prob = policy.log_prob(batch.action)
    log_ratio = log_prob - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - config.clip_ratio, 1 + config.clip_ratio)
    surrogates = jnp.minimum(ratio * advantage, clipped * advantage)
    covariance = jax.lax.stop_gradient(advantage * (log_prob - jnp.mean(log_prob)))
    if config.clip_cov is not None:
        chosen = largest(covariance, config.clip_cov)
        surrogates = (1 - chosen) * surrogates + chosen * jax.lax.stop_gradient(surrogates)
    if config.kl_cov is not None:
        surrogates -= config.kl_cov_coefficient * largest(covariance, config.kl_cov) * jnp.abs(log_ratio)
    surrogate = jnp.mean(surrogates)  # eq. (7)
    errors = (values - batch.target) ** 2
    if config.clip_value is not None:
        near = batch.value + jnp.clip(values - batch.value, -config.clip_value, config.clip_value)
        errors = jnp.maximum(errors, (near - batch.target) ** 2)
    value_loss = 0.5 * jnp.mean(errors)
    entropy = jnp.mean(policy.entropy())
    total = -surrogate + config.value_coefficient * value_loss - config.entropy_coefficient * entropy
    return total, {
        "policy_loss": -surrogate,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": jnp.mean(ratio - 1 - log_ratio),  # of pi from pi_old: an estimate that is never negative
        "clipped": jnp.mean(jnp.abs(ratio - 1) > config.clip_ratio),
    }


def largest(x: jax.Array, share: jax.Array | float) -> jax.Array:
    """1 for that share of the elements of x [B] that are the largest, a part of 1 for the last of them, else 0."""
    rank = jnp.argsort(jnp.argsort(-x))
    return jnp.clip(share * x.size - rank, 0, 1)


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """Several epochs of minibatches of one rollout [T, N], collected by `act` with this state."""
    check_batch(state.spec, batch)
    rollout = samples(config, state, batch)
    adam = optimiser(config, state.updates)

    def step(carry: Any, index: jax.Array) -> tuple[Any, Metrics]:
        params, opt_state, stopped = carry
        minibatch = jax.tree.map(lambda leaf: leaf[index], rollout)
        gradients, metrics = jax.grad(loss, has_aux=True)(params, config, state.spec, minibatch)
        direction, new_opt_state = adam.update(gradients, opt_state)
        new = optax.apply_updates(params, direction), new_opt_state
        if config.target_kl is not None:
            stopped = stopped | (metrics["kl"] > config.target_kl)
            new = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), (params, opt_state), new)
        return (*new, stopped), metrics | {"gradient_norm": optax.tree.norm(gradients), "stopped": stopped}

    order = shuffle(key, rollout.value.size, config.num_epochs).reshape(
        -1, rollout.value.size // config.num_minibatches
    )
    (params, opt_state, _), metrics = jax.lax.scan(step, (state.params, state.optimiser, jnp.array(False)), order)
    state = dataclasses.replace(state, params=params, optimiser=opt_state, updates=state.updates + 1)
    explained = 1 - jnp.var(rollout.target - rollout.value) / (jnp.var(rollout.target) + 1e-8)
    return state, jax.tree.map(jnp.mean, metrics) | {"explained_variance": explained}


def shuffle(key: jax.Array, size: int, times: int) -> jax.Array:
    """Independent permutations of 0, ..., size - 1, [times, size]: the order of random bits."""
    return jnp.argsort(jax.random.bits(key, (times, size)), axis=-1, stable=False)
