r"""REINFORCE with a leave-one-out baseline: the plain Monte-Carlo policy gradient, and the reference for all others.

From M whole episodes i of a policy pi, with the rewards r_it and the scores u_it = grad log pi(a_it | s_it),

    gradient = 1/M sum_i sum_t discount^t u_it (G_it - b_it),    G_it = sum_{k >= t} discount^(k - t) r_ik,

and, where the whole return is weighed instead of what is still to come (`reward_to_go=False`),

    gradient = 1/M sum_i u_i (R_i - b_i),    u_i = sum_t u_it,    R_i = G_i0.

The baseline of an episode is the mean of the others at the same time, b_it = 1/(M - 1) sum_{j != i} G_jt, which is
independent of its actions; an episode that is over counts as 0. So the estimate is unbiased for the gradient of
E[R], of whole episodes: they begin with the rollout, and have to end in it.

Source: Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
theorem 1; Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", eq. (8).
Differs from the paper: the factor discount^t, which most code leaves out, is kept, so that it is a gradient.
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
from jaxrl.types import Metrics, Rollout, Spec, Transition, check_batch, check_between


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 1e-2  # Adam's step size, or that of plain ascent
    discount: float = 1.0  # per step, in [0, 1]
    max_gradient_norm: float = math.inf  # global norm; inf: no limit
    adam: bool = struct.field(pytree_node=False, default=True)  # False: theta <- theta + learning_rate * gradient
    reward_to_go: bool = struct.field(pytree_node=False, default=True)  # False: the whole return for each action
    baseline: bool = struct.field(pytree_node=False, default=True)  # the mean return of the other episodes
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(32,))  # of the actor; (): linear
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of its hidden layers
    data: Rollout = struct.field(pytree_node=False, default=Rollout(16, 200, restart=True))  # M episodes of <= 200

    def __post_init__(self) -> None:
        check_between("Config", 0, 1, discount=self.discount)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, max_gradient_norm=self.max_gradient_norm)
        if not self.data.restart:
            raise ValueError("Config.data must be a Rollout with restart=True: reinforce learns from whole episodes")
        if self.baseline and self.data.num_envs < 2:
            raise ValueError("Config.baseline needs at least 2 episodes a rollout, got Config.data.num_envs = 1")


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # of the actor
    optimiser: optax.OptState
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


class Actor(nn.Module):
    """Normalised observation [..., *observation] -> policy."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    spec: Spec

    @nn.compact
    def __call__(self, observation: jax.Array) -> policies.Distribution:
        torso = networks.Torso(self.spec.observation.shape, self.hidden_sizes, self.activation)
        return policies.Head(self.spec.action)(torso(observation))


def actor(config: Any, spec: Spec, params: Any, observation: jax.Array) -> policies.Distribution:
    """The policy at a normalised observation."""
    policy: Any = Actor(config.hidden_sizes, config.activation, spec).apply(params, observation)
    return policy


def optimiser(config: Config) -> optax.GradientTransformation:
    """Adam or plain ascent, built where it is traced, so that the step size stays traced."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.scale_by_adam(eps=1e-5) if config.adam else optax.identity(),
        optax.scale(config.learning_rate),
    )


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    params = Actor(config.hidden_sizes, config.activation, spec).init(key, spec.observation.zeros())
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, optimiser(config).init(params), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the mode of the policy."""
    state.spec.observation.check("observation", observation)
    policy = actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    return (policy.mode() if key is None else policy.sample(seed=key)), {}


def weights(config: Config, batch: Transition) -> tuple[jax.Array, jax.Array]:
    """What multiplies the log-probability of each action, [T, M], 0 after the first end; and the returns R [M]."""
    mask = returns.until_end(batch.terminated | batch.truncated)
    reward = jnp.where(mask, batch.reward, 0)
    zeros, never = jnp.zeros_like(reward), jnp.zeros_like(mask)
    to_go = returns.lambda_returns(reward, zeros, never, never, config.discount, 1.0)
    total = to_go[0]
    gain = to_go if config.reward_to_go else jnp.broadcast_to(total, to_go.shape)
    if config.baseline:
        gain = gain - (jnp.sum(gain, axis=1, keepdims=True) - gain) / (gain.shape[1] - 1)
    if config.reward_to_go:
        gain = gain * config.discount ** jnp.arange(len(gain))[:, None]
    return jnp.where(mask, gain, 0), total


def objective(params: Any, config: Config, state: State, batch: Transition, gain: jax.Array) -> tuple[jax.Array, Any]:
    """A function of the parameters whose gradient is the estimate, and log pi of each action [T, M]."""
    observation = normalise.apply(state.normaliser, batch.observation)
    log_prob = actor(config, state.spec, params, observation).log_prob(batch.action)
    return jnp.sum(gain * log_prob) / gain.shape[1], log_prob


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One step along the gradient that a rollout [T, M] of whole episodes estimates."""
    check_batch(state.spec, batch)
    gain, total = weights(config, batch)
    mask = returns.until_end(batch.terminated | batch.truncated)
    gradient, log_prob = jax.grad(objective, has_aux=True)(state.params, config, state, batch, gain)
    step, opt_state = optimiser(config).update(gradient, state.optimiser)
    state = dataclasses.replace(state, params=optax.apply_updates(state.params, step), optimiser=opt_state)
    return state, {
        "return": jnp.mean(total),
        "unfinished": jnp.mean(mask[-1] & ~(batch.terminated | batch.truncated)[-1]),
        "log_prob": jnp.sum(jnp.where(mask, log_prob, 0)) / jnp.sum(mask),
        "gradient_norm": optax.tree.norm(gradient),
    }
