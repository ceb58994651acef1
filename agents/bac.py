r"""Bayesian actor-critic (BAC): the posterior law of the policy gradient, given a Gaussian process critic.

The critic is a sum of two processes, one over states and one over actions in them,

    Q(s, a) ~ GP(0, amplitude (k(s, s') + u^T G^-1 u')),    u = grad log pi(a | s),    G = E sum_t discount^t F(s_t),
    k(s, s') = constant_variance + state_amplitude exp(-|s - s'|^2 / (2 length_scale^2)),

where F(s) is the Fisher information of the action at s. The rewards of whole episodes condition it as in Gaussian
process temporal difference learning, and the policy gradient, an integral of Q, gets a posterior law in closed form:

    gradient = sum_t discount^t E[u_t Q(s_t, a_t)] = amplitude U^T alpha,    natural gradient = G^-1 gradient,

with a row of U for every step and alpha the coefficients of the critic. The state kernel adds nothing to the gradient:
it is a baseline for each state. theta moves along the mean of that law, natural or not. See `jaxrl.bayes.actor_critic`.

G comes from the visited states and the policy in closed form, and not from the scores of the batch, with which nothing
would be gained. It is not normalised, as the gradient is not: its visits are weighed by discount^t and sum to the
discounted length of an episode. The state kernel is that of random Fourier features, so an update with P steps, n
parameters and m features takes O(P (m + n)^2) operations: for small actors.

Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", section 7 and
algorithm 4; the critic is that of Engel, Mannor and Meir 2005, "Reinforcement Learning with Gaussian Processes".
Differs from the paper: the Fisher information (see above), random features in the place of a dictionary, a constant in
the state kernel, and a bootstrap, by E_a Q, where an episode is cut off; a batch is solved at once; noise and amplitude
are in units of the variance of the returns, which changes no mean; Adam unless `adam=False`, which is the paper's
ascent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl import networks, normalise, returns
from jaxrl.bayes import actor_critic, features, fisher, gptd, scores
from jaxrl.types import Metrics, Rollout, Spec, Transition, check_batch, check_between

from . import bpg, reinforce


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 1e-2  # Adam's step size, or that of plain ascent; the paper has 0.025 at first
    discount: float = 0.99  # per step, in [0, 1]
    noise_variance: float = 1.0  # of a return around the critic, in units of the variance of the returns
    amplitude: float = 1.0  # prior variance along one whitened score, in the same units; the paper has 1
    state_amplitude: float = 10.0  # prior variance of the value of a state, in units of amplitude; the paper has 1
    length_scale: float = 1.0  # over which values vary, units of the (normalised) observation
    constant_variance: float = 1e4  # prior variance of all values together, in units of amplitude; the paper has 0
    damping: float = 1e-2  # added to the Fisher information, in units of the mean of its diagonal
    natural: bool = struct.field(pytree_node=False, default=True)  # follow the natural gradient
    adam: bool = struct.field(pytree_node=False, default=True)  # False: theta <- theta + learning_rate * gradient
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    num_features: int = struct.field(pytree_node=False, default=100)  # of the state kernel, even
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=())  # of the actor; (): linear
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of its hidden layers
    data: Rollout = struct.field(pytree_node=False, default=Rollout(16, 200, restart=True))  # M episodes of <= 200

    def __post_init__(self) -> None:
        check_between("Config", 0, 1, discount=self.discount)
        names = ("learning_rate", "noise_variance", "amplitude", "state_amplitude", "constant_variance", "damping")
        check_between("Config", 0, math.inf, **{name: getattr(self, name) for name in names})
        if not self.data.restart:
            raise ValueError("Config.data must be a Rollout with restart=True: bac learns from whole episodes")


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # of the actor
    optimiser: optax.OptState
    frequencies: jax.Array  # [observation, num_features / 2], of the state kernel
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    actor_key, frequency_key = jax.random.split(key)
    example = spec.observation.zeros()
    params = reinforce.Actor(config.hidden_sizes, config.activation, spec).init(actor_key, example)
    frequencies = features.frequencies(frequency_key, example.size, config.num_features)
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, bpg.optimiser(config).init(params), frequencies, normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the mode of the policy."""
    state.spec.observation.check("observation", observation)
    policy = reinforce.actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    return (policy.mode() if key is None else policy.sample(seed=key)), {}


class Episodes(NamedTuple):
    """A rollout [T, M] of whole episodes as the critic sees it, for n parameters and m = num_features + 1."""

    scores: jax.Array  # [T, M, n], u
    states: jax.Array  # [T + 1, M, m], of the states and of where the last step led
    rewards: jax.Array  # [T, M]
    terminated: jax.Array  # [M] bool: did not go on
    fisher: jax.Array  # [n, n], G
    mask: jax.Array  # [T, M] bool: not behind the first end


def state_features(config: Config, frequencies: jax.Array, observation: jax.Array) -> jax.Array:
    """Features of k, [T, M, m], of normalised observations [T, M, *observation]: a constant, and waves."""
    flat = observation.reshape(*observation.shape[:2], -1)
    waves = jnp.sqrt(config.state_amplitude) * features.fourier(frequencies, flat, config.length_scale)
    constant = jnp.full_like(waves[..., :1], jnp.sqrt(config.constant_variance))
    return jnp.concatenate([constant, waves], axis=-1)


def episodes(config: Config, state: State, batch: Transition) -> Episodes:
    """What the posterior needs of a rollout [T, M]; what is behind the first end is padding."""
    mask = returns.until_end(batch.terminated | batch.truncated)
    points = gptd.points(batch.observation, batch.next_observation, mask)
    points = normalise.apply(state.normaliser, points)
    observation = points[:-1]
    log_prob, kind, parameters = bpg.functions(config, state.spec)
    information = fisher.state_analytic(kind, parameters, state.params, observation, mask, discount=config.discount)
    return Episodes(
        scores=scores.steps(log_prob, state.params, observation, batch.action, mask),
        states=state_features(config, state.frequencies, points),
        rewards=jnp.where(mask, batch.reward, 0),
        terminated=jnp.any(batch.terminated & mask, axis=0),
        fisher=bpg.damped(information, config.damping),
        mask=mask,
    )


def posterior(config: Config, data: Episodes, unit: jax.Array) -> actor_critic.GradientPosterior:
    """The posterior law of the gradient of returns in units of `unit`."""
    return actor_critic.gradient_posterior(
        data.scores,
        data.states,
        data.rewards / unit,
        data.terminated,
        data.fisher,
        config.discount,
        config.noise_variance,
        amplitude=config.amplitude,
        mask=data.mask,
    )


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One step along the mean of the posterior of the gradient, from a rollout [T, M] of whole episodes."""
    check_batch(state.spec, batch)
    data = episodes(config, state, batch)
    discounts = jnp.asarray(config.discount, data.rewards.dtype) ** jnp.arange(len(data.mask))
    total = discounts @ data.rewards
    unit = bpg.deviation(total)
    law = posterior(config, data, unit)
    mean, covariance = (law.natural_mean, law.natural_covariance) if config.natural else (law.mean, law.covariance)
    norm = jnp.maximum(jnp.linalg.norm(mean), jnp.finfo(mean.dtype).eps)  # it is 0 where all rewards are
    gradient = ravel_pytree(state.params)[1](unit * mean)
    step, opt_state = bpg.optimiser(config).update(gradient, state.optimiser)
    state = dataclasses.replace(state, params=optax.apply_updates(state.params, step), optimiser=opt_state)
    return state, {
        "return": jnp.mean(total),
        "unfinished": jnp.mean(data.mask[-1] & ~(batch.terminated | batch.truncated)[-1]),
        "gradient_norm": unit * jnp.linalg.norm(mean),
        "uncertainty": jnp.sqrt(jnp.trace(covariance)) / norm,
        "log_evidence": law.log_evidence,
    }
