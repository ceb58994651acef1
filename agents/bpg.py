r"""Bayesian policy gradient (BPG): the posterior law of the gradient, given the returns of whole episodes.

Monte Carlo forgets that the law of the scores is known: the policy is ours. A Gaussian process over returns, or over
what Monte Carlo averages, takes it into account. From M episodes with returns R_i, scores u_i = grad log Pr(xi_i) and
the Fisher information G = E[u u^T] of an episode,

    kernel="fisher"       Model 2: R ~ GP(0, amplitude (u^T G^-1 u' + constant_variance)), so that
                          gradient = amplitude U^T (K + noise_variance I)^-1 R,
    kernel="quadratic"    Model 1: each R u_j ~ GP(0, amplitude ((1 + u^T G^-1 u')^2 + constant_variance)),

and theta moves along the mean of the posterior of the gradient, or of the natural gradient G^-1 gradient, perhaps
scaled by what its covariance says (`uapg_limit`). See `jaxrl.bayes.quadrature` for both models.

All of the gain comes from knowing G better than the batch does. With the outer products of the scores of this batch,
G = 1/M sum_i u_i u_i^T, Model 2 without its constant follows the direction of Monte Carlo to the last digit, and
nothing is gained: `fisher="same-batch"` is for comparison only. The default, "state-analytic", is the closed-form
Fisher information of the actions, averaged over the visited states. Of either, `fisher_rate` keeps a running average.

Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", sections 4 and 5;
the scaling is that of Akella et al. 2021, "Deep Bayesian Quadrature Policy Optimization", section 5.
Differs from the paper: the Fisher information does not come from the outer products of scores; Model 2 has a constant,
a baseline that is learned; noise and amplitude are in units of the variance of the returns, which changes no mean; a
batch is solved at once, not one episode after the other; Adam unless `adam=False`, which is the paper's ascent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxrl import networks, normalise, returns
from jaxrl.bayes import fisher, quadrature, scaling, scores
from jaxrl.types import Discrete, Metrics, Rollout, Spec, Transition, check_batch, check_between

from . import reinforce

Fisher = Literal["state-analytic", "same-batch"]


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 1e-2  # Adam's step size, or that of plain ascent
    discount: float = 1.0  # per step, in [0, 1]
    noise_variance: float = 0.1  # of a return around the model, in units of the variance of the returns
    amplitude: float = 1.0  # prior variance along one whitened score, in the same units; the paper has 1
    constant_variance: float = 1e4  # prior variance of the constant, in units of amplitude; the paper has 0
    damping: float = 1e-2  # added to the Fisher information, in units of the mean of its diagonal
    fisher_rate: float | None = None  # of a running average of the Fisher over updates; None: this batch alone
    uapg_limit: float | None = None  # the largest factor of a direction, the paper's epsilon (3); None: no scaling
    uapg_rank: int | None = struct.field(pytree_node=False, default=None)  # how many directions it scales; None: all
    kernel: quadrature.Kernel = struct.field(pytree_node=False, default="fisher")  # Model 2; "quadratic": Model 1
    fisher: Fisher = struct.field(pytree_node=False, default="state-analytic")  # "same-batch": to compare, no gain
    natural: bool = struct.field(pytree_node=False, default=True)  # follow the natural gradient
    evidence: bool = struct.field(pytree_node=False, default=False)  # noise and amplitude by the evidence of the batch
    adam: bool = struct.field(pytree_node=False, default=True)  # False: theta <- theta + learning_rate * gradient
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=())  # of the actor; (): linear
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of its hidden layers
    data: Rollout = struct.field(pytree_node=False, default=Rollout(16, 200, restart=True))  # M episodes of <= 200

    def __post_init__(self) -> None:
        check_between("Config", 0, 1, discount=self.discount)
        nonnegative = {
            name: getattr(self, name)
            for name in ("learning_rate", "noise_variance", "amplitude", "constant_variance", "damping", "uapg_limit")
        }
        check_between("Config", 0, math.inf, **nonnegative)
        check_between("Config", 0, 1, fisher_rate=self.fisher_rate)
        if self.fisher not in ("state-analytic", "same-batch"):
            raise ValueError(f"Config.fisher must be 'state-analytic' or 'same-batch', got {self.fisher!r}")
        if not self.data.restart:
            raise ValueError("Config.data must be a Rollout with restart=True: bpg learns from whole episodes")


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # of the actor
    optimiser: optax.OptState
    fisher: jax.Array | None  # [n, n], the running average, if there is one
    updates: jax.Array  # [] int32, calls of `update` so far
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def optimiser(config: Any) -> optax.GradientTransformation:
    """Adam or plain ascent, built where it is traced, so that the step size stays traced."""
    adam = optax.scale_by_adam(eps=1e-5) if config.adam else optax.identity()
    return optax.chain(adam, optax.scale(config.learning_rate))


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    params = reinforce.Actor(config.hidden_sizes, config.activation, spec).init(key, spec.observation.zeros())
    flat, _ = ravel_pytree(params)
    average = None if config.fisher_rate is None else jnp.zeros((flat.size, flat.size), flat.dtype)
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return State(params, optimiser(config).init(params), average, jnp.int32(0), normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the mode of the policy."""
    state.spec.observation.check("observation", observation)
    policy = reinforce.actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    return (policy.mode() if key is None else policy.sample(seed=key)), {}


def law(spec: Spec, policy: Any) -> tuple[fisher.Law, Any]:
    """The kind of the law of an action, and its parameters: (mean, log_std), or logits."""
    if isinstance(spec.action, Discrete):
        return fisher.categorical, policy.logits
    normal = policy.distribution
    return fisher.normal, (normal.loc, jnp.log(normal.scale))


def functions(config: Any, spec: Spec) -> tuple[scores.LogProb, fisher.Law, fisher.Policy]:
    """What `jaxrl.bayes` asks of the actor: log pi(a | s), the kind of the law of an action, and its parameters."""

    def log_prob(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        return reinforce.actor(config, spec, params, observation).log_prob(action)

    def parameters(params: Any, observation: jax.Array) -> Any:
        return law(spec, reinforce.actor(config, spec, params, observation))[1]

    return log_prob, fisher.categorical if isinstance(spec.action, Discrete) else fisher.normal, parameters


class Episodes(NamedTuple):
    """A rollout [T, M] of whole episodes as the models see it, for n parameters."""

    scores: jax.Array  # [M, n], u
    returns: jax.Array  # [M], R
    fisher: jax.Array  # [n, n], G of this batch
    mask: jax.Array  # [T, M] bool: not behind the first end


def episodes(config: Config, state: State, batch: Transition) -> Episodes:
    """Scores, returns and Fisher information of a rollout [T, M]; what is behind the first end is padding."""
    mask = returns.until_end(batch.terminated | batch.truncated)
    discounts = jnp.asarray(config.discount, batch.reward.dtype) ** jnp.arange(len(mask))[:, None]
    observation = normalise.apply(state.normaliser, batch.observation)
    log_prob, kind, parameters = functions(config, state.spec)
    rows = scores.trajectories(log_prob, state.params, observation, batch.action, mask)
    if config.fisher == "same-batch":
        information = fisher.same_batch(rows)
    else:
        information = fisher.state_analytic(kind, parameters, state.params, observation, mask)
    return Episodes(rows, jnp.sum(jnp.where(mask, discounts * batch.reward, 0), axis=0), information, mask)


def damped(information: jax.Array, damping: Any) -> jax.Array:
    """`G + damping tr(G)/n I`: what hardly moves the policy then hardly moves, and float32 can bear the condition."""
    return fisher.damped(information, damping * jnp.trace(information) / len(information))


def posterior(
    config: Config, data: Episodes, information: jax.Array
) -> tuple[quadrature.GradientPosterior, tuple[Any, Any]]:
    """The posterior law of the gradient of returns in units of `deviation`; the noise variance and the amplitude."""
    targets = data.returns / deviation(data.returns)
    settings: dict[str, Any] = {"kernel": config.kernel, "constant_variance": config.constant_variance}
    noise: Any = config.noise_variance
    amplitude: Any = config.amplitude
    if config.evidence:
        best = quadrature.evidence_grid(data.scores, targets, information, **settings)
        noise, amplitude = best.noise_variance, best.amplitude
    found = quadrature.gradient_posterior(data.scores, targets, information, noise, amplitude=amplitude, **settings)
    return found, (noise, amplitude)


def deviation(values: jax.Array) -> jax.Array:
    """The standard deviation, or a thousandth of the largest value where all are the same; above 0."""
    least = jnp.maximum(1e-3 * jnp.max(jnp.abs(values)), jnp.finfo(values.dtype).tiny ** 0.5)
    return jnp.maximum(jnp.std(values), least)


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One step along the mean of the posterior of the gradient, from a rollout [T, M] of whole episodes."""
    check_batch(state.spec, batch)
    data = episodes(config, state, batch)
    average = data.fisher
    if config.fisher_rate is not None:
        assert state.fisher is not None
        rate = jnp.where(state.updates == 0, 1, jnp.asarray(config.fisher_rate, average.dtype))
        average = fisher.running(state.fisher, data.fisher, rate)
    found, (noise, amplitude) = posterior(config, data, damped(average, config.damping))
    mean, covariance = found.mean, found.covariance
    if config.natural:
        mean, covariance = found.natural_mean, found.natural_covariance
    norm = jnp.maximum(jnp.linalg.norm(mean), jnp.finfo(mean.dtype).eps)  # it is 0 where all returns are the same
    uncertainty = jnp.sqrt(jnp.trace(covariance)) / norm
    if config.uapg_limit is not None:
        mean = scaling.uncertainty_aware(
            mean, covariance, natural=config.natural, limit=config.uapg_limit, rank=config.uapg_rank
        )
    mean = deviation(data.returns) * mean
    step, opt_state = optimiser(config).update(ravel_pytree(state.params)[1](mean), state.optimiser)
    state = dataclasses.replace(
        state,
        params=optax.apply_updates(state.params, step),
        optimiser=opt_state,
        fisher=None if config.fisher_rate is None else average,
        updates=state.updates + 1,
    )
    ended = (batch.terminated | batch.truncated)[-1]
    return state, {
        "return": jnp.mean(data.returns),
        "unfinished": jnp.mean(data.mask[-1] & ~ended),
        "gradient_norm": jnp.linalg.norm(mean),
        "uncertainty": uncertainty,
        "noise_ratio": jnp.asarray(noise / amplitude),
        "log_evidence": found.log_evidence,
    }
