r"""Deep Bayesian quadrature policy gradient (DBQPG): the integral over actions is that of a Gaussian process.

The policy gradient is an integral of scores u(s, a) = grad log pi(a | s) times action values, which Monte Carlo
averages over M steps, U^T A / M. A Gaussian process for the action values is integrated in closed form,

    Q ~ GP(0, c_s k(s, s') + c_f u(s, a)^T G^-1 u(s', a')),    A_i = Q(s_i, a_i) + noise of variance sigma^2,

since its kernel of states integrates to 0 against scores and its Fisher kernel to G. So the posterior mean of the
gradient has weights alpha for advantages, and that of the natural gradient, w = G^-1 gradient, solves a linear system:

    gradient = c_f U^T alpha,    alpha = (c_s K_s + c_f U G^-1 U^T + sigma^2 I)^-1 A = S^-1 (A - U w),
    (G / c_f + U^T S^-1 U) w = U^T S^-1 A,    S = c_s K_s + sigma^2 I.

K_s has random Fourier features of the last layer of the critic, so that S^-1 costs their number, and w is found by
conjugate gradients, through products alone. A natural step d is as long as `max_kl` says: d . G d / 2 = max_kl. The
critic is fitted to lambda-returns afterwards. `quadrature=False` is the plain counterpart, U^T A / M, the rest as is.

G is the Fisher information of the actions in closed form at the visited states, damped, and not the outer product
U^T U / M of the scores of this batch. The paper has that one, of low rank and beside the kernel of states, without
which it would give Monte Carlo's direction back; with the closed form the Fisher kernel has something to say itself.

Source: Akella et al. 2021, "Deep Bayesian Quadrature Policy Optimization", sections 3 to 5.
Differs from the paper: the Fisher information; random features in the place of structured interpolation, of the
critic's last layer as it is, with fixed kernel parameters where the paper maximises the marginal likelihood; advantages
are standardised, so that variances are in units of theirs; a natural step has no line search; no scaling by the
covariance.
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

from jaxrl import networks, normalise, returns
from jaxrl.bayes import features, fisher, quadrature, scores
from jaxrl.types import Metrics, Rollout, Spec, Transition, check_batch, check_between, check_positive

from . import bpg, ppo, reinforce


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 1e-3  # Adam's step size, of the critic and, unless `natural`, of the actor
    max_kl: float = 0.01  # how far a natural step moves the policy, nats
    discount: float = 0.99  # per step, in [0, 1); the paper has 0.995
    lambda_: float = 0.95  # trace decay of the advantages, in [0, 1]; the paper has 0.97
    noise_variance: float = 1.0  # sigma^2, in units of the variance of the advantages
    state_amplitude: float = 0.1  # c_s, prior variance of the value of a state, in the same units
    fisher_amplitude: float = 1e-3  # c_f, prior variance along one whitened score, in the same units
    length_scale: float = 0.5  # of the kernel of states, in units of one feature of the critic
    damping: float = 0.1  # added to G, per step; the paper has 0.1
    quadrature: bool = struct.field(pytree_node=False, default=True)  # False: alpha = A / (c_f M), plain Monte Carlo
    natural: bool = struct.field(pytree_node=False, default=True)  # False: Adam on the gradient
    max_iterations: int = struct.field(pytree_node=False, default=20)  # of conjugate gradients; the paper has 50
    num_features: int = struct.field(pytree_node=False, default=64)  # random features of the kernel of states, even
    num_epochs: int = struct.field(pytree_node=False, default=5)  # passes of the critic over the rollout
    num_minibatches: int = struct.field(pytree_node=False, default=8)  # per epoch
    normalise_observations: bool = struct.field(pytree_node=False, default=True)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))  # of actor and critic each
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of both
    data: Rollout = struct.field(pytree_node=False, default=Rollout(num_envs=64, length=32))  # one rollout per update

    def __post_init__(self) -> None:
        sizes = ("max_iterations", "num_features", "num_epochs", "num_minibatches")
        check_positive("Config", **{name: getattr(self, name) for name in sizes})
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, lambda_=self.lambda_)
        variances = ("noise_variance", "state_amplitude", "fisher_amplitude", "length_scale", "damping")
        for name in ("learning_rate", "max_kl", *variances):
            check_between("Config", 0, math.inf, **{name: getattr(self, name)})
        if self.data.transitions % self.num_minibatches:
            raise ValueError(
                f"num_envs * length = {self.data.num_envs} * {self.data.length} = {self.data.transitions} is not "
                f"divisible by num_minibatches = {self.num_minibatches}"
            )


@struct.dataclass
class State:
    """What it has learned."""

    params: dict[str, Any]  # actor, critic
    optimiser: dict[str, optax.OptState]  # actor (of no use where `natural`), critic
    frequencies: jax.Array  # [hidden_sizes[-1], num_features / 2], of the kernel of states; never learned
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


class Critic(nn.Module):
    """Normalised observation [..., *observation] -> value [...] and the features that it is linear in [..., F]."""

    hidden_sizes: tuple[int, ...]
    activation: networks.Activation
    spec: Spec

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        torso = networks.Torso(self.spec.observation.shape, self.hidden_sizes, self.activation)(observation)
        return networks.Scalar()(torso), torso


def critic(config: Config, spec: Spec, params: Any, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values and features at a normalised observation."""
    outputs: Any = Critic(config.hidden_sizes, config.activation, spec).apply(params["critic"], observation)
    return outputs


def adam(config: Config) -> optax.GradientTransformation:
    """Adam, built where it is traced, so that the step size stays traced."""
    return optax.chain(optax.scale_by_adam(eps=1e-5), optax.scale_by_learning_rate(config.learning_rate))


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    actor_key, critic_key, frequency_key = jax.random.split(key, 3)
    zeros = spec.observation.zeros()
    params = {
        "actor": reinforce.Actor(config.hidden_sizes, config.activation, spec).init(actor_key, zeros),
        "critic": Critic(config.hidden_sizes, config.activation, spec).init(critic_key, zeros),
    }
    return State(
        params=params,
        optimiser={name: adam(config).init(part) for name, part in params.items()},
        frequencies=features.frequencies(frequency_key, config.hidden_sizes[-1], config.num_features),
        normaliser=normalise.init(spec.observation) if config.normalise_observations else None,
        spec=spec,
    )


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the mode of the policy."""
    state.spec.observation.check("observation", observation)
    policy = reinforce.actor(config, state.spec, state.params["actor"], normalise.apply(state.normaliser, observation))
    return (policy.mode() if key is None else policy.sample(seed=key)), {}


class Samples(NamedTuple):
    """A rollout, flattened to B steps."""

    observation: jax.Array  # [B, *observation], normalised
    action: jax.Array  # [B, *action]
    advantage: jax.Array  # [B], standardised
    target: jax.Array  # [B], the lambda-returns
    features: jax.Array  # [B, F], of the critic


def samples(config: Config, state: State, batch: Transition) -> Samples:
    """The rollout [T, N] with its advantages, flattened to T N steps."""
    observation, next_observation = (
        normalise.apply(state.normaliser, x) for x in (batch.observation, batch.next_observation)
    )
    values, torso = critic(config, state.spec, state.params, observation)
    next_values, _ = critic(config, state.spec, state.params, next_observation)
    ends = batch.terminated, batch.truncated
    advantages = returns.gae(batch.reward, values, next_values, *ends, config.discount, config.lambda_)
    standardised = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
    rollout = Samples(observation, batch.action, standardised, advantages + values, torso)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rollout)


class Direction(NamedTuple):
    """Where the actor goes, in the shape of its parameters."""

    gradient: Any
    natural: Any  # G^-1 times it
    weights: jax.Array  # [B], alpha: the gradient is c_f U^T alpha
    residual: jax.Array  # [], of conjugate gradients, relative


def direction(config: Config, state: State, data: Samples) -> Direction:
    """The posterior mean of the gradient, or U^T A / M, and G^-1 times it."""
    params = state.params["actor"]
    observation, action = data.observation[None], data.action[None]  # each step is a trajectory of length 1
    log_prob, kind, parameters = bpg.functions(config, state.spec)
    rows = scores.operator(log_prob, params, observation, action)
    root = fisher.root(kind, parameters, params, observation)
    if not config.quadrature:
        return plain(config, rows, root, data.advantage)
    scaled = data.features / math.sqrt(data.features.shape[-1])
    phi = jnp.sqrt(config.state_amplitude) * features.fourier(state.frequencies, scaled, config.length_scale)
    white = features.whitener(phi, config.noise_variance)
    found = quadrature.gradient_posterior_matrix_free(
        scores.Operator(lambda v: white.times(rows.matvec(v)), lambda x: rows.rmatvec(white.transposed(x))),
        white.times(data.advantage),
        root,
        1.0,
        damping=config.damping,
        amplitude=config.fisher_amplitude,
        max_iterations=config.max_iterations,
    )
    weights = white.transposed(white.times(data.advantage - rows.matvec(found.natural_mean)))
    gradient = jax.tree.map(lambda leaf: config.fisher_amplitude * leaf, rows.rmatvec(weights))
    return Direction(gradient, found.natural_mean, weights, found.residual)


def plain(config: Config, rows: scores.Operator, root: scores.Operator, advantage: jax.Array) -> Direction:
    """Monte Carlo, with G^-1 by as many conjugate gradients."""
    gradient = rows.rmatvec(advantage / advantage.size)
    times_fisher = fisher.product(root, config.damping)
    natural, _ = jax.scipy.sparse.linalg.cg(times_fisher, gradient, tol=1e-5, maxiter=config.max_iterations)
    left = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, times_fisher(natural)))
    weights = advantage / (advantage.size * config.fisher_amplitude)
    return Direction(gradient, natural, weights, left / (optax.tree.norm(gradient) + 1e-12))


def improve(config: Config, state: State, found: Direction) -> tuple[Any, optax.OptState]:
    """Parameters and optimiser of the actor after one step."""
    params, opt_state = state.params["actor"], state.optimiser["actor"]
    if config.natural:  # its length is that of the damped G
        slope = jnp.maximum(optax.tree.vdot(found.natural, found.gradient), 1e-12)
        length = jnp.sqrt(2 * config.max_kl / slope)
        return jax.tree.map(lambda p, d: p + length * d, params, found.natural), opt_state
    step, opt_state = adam(config).update(jax.tree.map(jnp.negative, found.gradient), opt_state)
    return optax.apply_updates(params, step), opt_state


def value_loss(params: Any, config: Config, spec: Spec, batch: Samples) -> jax.Array:
    """Half the mean squared error of the values of a minibatch [B]."""
    values, _ = critic(config, spec, {"critic": params}, batch.observation)
    return 0.5 * jnp.mean((values - batch.target) ** 2)


def fit(config: Config, state: State, data: Samples, key: jax.Array) -> tuple[Any, optax.OptState, jax.Array]:
    """Parameters and optimiser of the critic after some epochs of minibatches, and its mean loss on the way."""

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        minibatch = jax.tree.map(lambda leaf: leaf[index], data)
        loss, gradients = jax.value_and_grad(value_loss)(params, config, state.spec, minibatch)
        change, opt_state = adam(config).update(gradients, opt_state)
        return (optax.apply_updates(params, change), opt_state), loss

    size = data.target.size
    order = ppo.shuffle(key, size, config.num_epochs).reshape(-1, size // config.num_minibatches)
    (params, opt_state), losses = jax.lax.scan(step, (state.params["critic"], state.optimiser["critic"]), order)
    return params, opt_state, jnp.mean(losses)


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One step of the actor, and some epochs of the critic, on one rollout [T, N]."""
    check_batch(state.spec, batch)
    data = samples(config, state, batch)
    found = direction(config, state, data)
    actor_params, actor_optimiser = improve(config, state, found)
    critic_params, critic_optimiser, loss = fit(config, state, data, key)
    policy = reinforce.actor(config, state.spec, actor_params, data.observation)
    state = dataclasses.replace(
        state,
        params={"actor": actor_params, "critic": critic_params},
        optimiser={"actor": actor_optimiser, "critic": critic_optimiser},
    )
    return state, {
        "value_loss": loss,
        "entropy": jnp.mean(policy.entropy()),
        "gradient_norm": optax.tree.norm(found.gradient),
        "residual": found.residual,
        "correlation": jnp.corrcoef(found.weights, data.advantage)[0, 1],
    }
