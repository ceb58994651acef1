r"""PPO with a critic that knows what it does not know: draws from its posterior by Langevinised Kalman TD (LKTD).

The actor is that of PPO. The critic is K draws theta_k from the posterior of the parameters of a value network, given
the returns of the rollout, G = h(theta) + N(0, sigma^2) with h(theta) = V(s; theta) and theta ~ N(0, prior_variance I).
Each minibatch of B out of N transitions moves every draw by one step of `jaxrl.bayes.kalman.lktd_step`,

    forecast    theta <- theta + epsilon/2 (grad log p(xi | theta) + B/N grad log p(theta)) + N(0, B/N epsilon),
    analysis    xi    <- xi_f + epsilon / (epsilon + 2 (1 - share) sigma^2) (G + noise - xi_f),

where xi is what the returns were before a part of their noise. The networks learn returns less the mean of the last
rollouts, over their standard deviation; when these change, the last layer changes so that no value does. The advantages
are those of the mean value,

    A_t = 1/K sum_k GAE(V_k),    G_t^k = GAE_t(V_k) + V_k(s_t):    each draw learns from its own bootstrap.

Source: Shih and Liang 2024, "Fast Value Tracking for Deep Reinforcement Learning", algorithm 1; standardised returns:
van Hasselt et al. 2016, "Learning values across many orders of magnitude", eqs. (1) to (4); the actor: see `ppo`.
Differs from the paper: h is the value and the observation a lambda-return, not a single reward, whose noise the paper
takes for white; the noise sigma^2 is the mean squared error of the rollout; the step is given by its product with the
likelihood's curvature, and is shorter where the gradient is long; K chains run side by side, in place of one whose past
is kept, since PPO's policy moves on.
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

from jaxrl import networks, normalise
from jaxrl.bayes import kalman
from jaxrl.types import Box, Metrics, Rollout, Spec, Transition, check_batch, check_between, check_positive

from . import ppo


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of the actor
    anneal_updates: float = math.inf  # updates over which it falls linearly to 0; inf: constant
    critic_rate: float = 0.1  # step of each draw along its mean squared error / 2, epsilon = 2 sigma^2 rate / B
    population: float = 10.0  # rollouts that the posterior counts as seen, N / (T num_envs); more: narrower
    prior_variance: float = 1.0  # of each weight around 0, of networks for standardised returns
    share: float = 0.5  # of the noise that lies between values and latents, in (0, 1)
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    lambda_: float = 0.95  # trace decay of advantages and returns, in [0, 1]
    clip_ratio: float = 0.2  # PPO's epsilon
    entropy_coefficient: float = 0.0  # nats
    max_gradient_norm: float = 0.5  # global norm, of the actor and of each draw; a longer one shortens its step
    num_draws: int = struct.field(pytree_node=False, default=8)  # K, value networks
    num_epochs: int = struct.field(pytree_node=False, default=4)  # passes over the rollout
    num_minibatches: int = struct.field(pytree_node=False, default=4)  # per epoch
    normalise_observations: bool = struct.field(pytree_node=False, default=True)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))  # of actor and draws each
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of all
    data: Rollout = struct.field(pytree_node=False, default=Rollout(num_envs=64, length=32))  # one rollout per update

    def __post_init__(self) -> None:
        check_positive("Config", num_draws=self.num_draws)
        if self.num_draws < 2:
            raise ValueError("Config.num_draws must be an integer of at least 2, got 1: one draw has no spread")
        for name in ("critic_rate", "population", "prior_variance"):
            check_between("Config", 0, math.inf, **{name: getattr(self, name)})
        check_between("Config", 0, 1, share=self.share)
        actor_config(self)  # checks the rest


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # {"actor": of the actor, "critics": of the draws, leaves [K, ...]}
    optimiser: optax.OptState  # of the actor
    updates: jax.Array  # [] int32, calls of `update` so far
    returns: normalise.Moments  # [] of the returns of the last `population` rollouts, in units of the scaled reward
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def actor_config(config: Config) -> ppo.Config:
    """The settings of PPO's actor."""
    return ppo.Config(
        learning_rate=config.learning_rate,
        anneal_updates=config.anneal_updates,
        discount=config.discount,
        reward_scale=config.reward_scale,
        lambda_=config.lambda_,
        clip_ratio=config.clip_ratio,
        value_coefficient=0.0,
        entropy_coefficient=config.entropy_coefficient,
        max_gradient_norm=config.max_gradient_norm,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        normalise_observations=config.normalise_observations,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        data=config.data,
    )


def with_draw(state: State, critic: Any) -> ppo.State:
    """PPO's state that has this draw for its critic, with values in units of the scaled reward."""
    params = {"params": state.params["actor"] | rescale(critic, state.returns)}
    return ppo.State(params, (), state.updates, state.normaliser, state.spec)


def rescale(critic: Any, old: normalise.Moments, new: normalise.Moments | None = None) -> Any:
    """The critic whose values, in units of `new` moments (None: as they are), are those it has in units of the old."""
    (old_mean, old_std), (mean, std) = location(old), (0.0, 1.0) if new is None else location(new)
    last = critic["value"]["Dense_0"]
    kernel, bias = old_std / std * last["kernel"], (old_std * last["bias"] + old_mean - mean) / std
    return critic | {"value": {"Dense_0": {"kernel": kernel, "bias": bias}}}


def location(moments: normalise.Moments) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation; 0 and 1 before there was any return, or where all were the same."""
    std = jnp.sqrt(normalise.variance(moments))
    return moments.mean, jnp.where(std > 1e-6, std, 1)


def remember(config: Config, moments: normalise.Moments, returns: jax.Array) -> normalise.Moments:
    """The moments of the last `population` rollouts, of which this is the last one."""
    kept = jnp.minimum(moments.count, (config.population - 1) * returns.size)
    share = kept / jnp.maximum(moments.count, 1)
    return normalise.update(normalise.Moments(kept, moments.mean, share * moments.m2), returns)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`."""
    inner = actor_config(config)
    keys = jax.random.split(key, config.num_draws)
    networks = jax.vmap(lambda k: ppo.network(inner, spec).init(k, spec.observation.zeros())["params"])(keys)
    actor = {name: jax.tree.map(lambda leaf: leaf[0], networks[name]) for name in ("actor", "policy")}
    critics = {name: networks[name] for name in ("critic", "value")}
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    params = {"actor": actor, "critics": critics}
    moments = normalise.init(Box((), dtype=spec.observation.dtype))
    return State(params, ppo.optimiser(inner, 0).init(actor), jnp.int32(0), moments, normaliser, spec)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], and its log-probability; without a key, the mode."""
    return ppo.act(actor_config(config), with_draw(state, first(state)), observation, key)


def first(state: State) -> Any:
    """One of the draws."""
    return jax.tree.map(lambda leaf: leaf[0], state.params["critics"])


def values(config: Config, state: State, observation: jax.Array) -> jax.Array:
    """Draws of the value of each observation [..., *observation], in units of the scaled reward: [K, ...].

    Their `jaxrl.bayes.kalman.interval` is a credible interval.
    """
    inner, seen = actor_config(config), normalise.apply(state.normaliser, observation)
    return jax.vmap(lambda critic: ppo.apply(inner, state.spec, with_draw(state, critic).params, seen)[1])(
        state.params["critics"]
    )


def samples(config: Config, state: State, batch: Transition) -> tuple[ppo.Samples, jax.Array]:
    """The rollout [T, N] with the mean of the draws' values and advantages, flattened; each draw's returns [K, T N]."""
    inner = actor_config(config)
    each = jax.vmap(lambda critic: ppo.samples(inner, with_draw(state, critic), batch))(state.params["critics"])
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), (each.value, each.advantage, each.target))
    shared = jax.tree.map(lambda leaf: leaf[0], each)
    return shared.replace(value=mean[0], advantage=mean[1], target=mean[2]), each.target


def track(
    config: Config, state: State, critic: Any, batch: ppo.Samples, target: jax.Array, noise: jax.Array, key: jax.Array
) -> Any:
    """One step of LKTD of one draw on a minibatch [B] with its returns."""
    inner, keys = actor_config(config), jax.random.split(key)

    def predict(critic: Any) -> jax.Array:
        params = {"params": state.params["actor"] | critic}
        return ppo.apply(inner, state.spec, params, batch.observation)[1]

    def loss(critic: Any) -> jax.Array:
        return jnp.mean((target - predict(critic)) ** 2) / 2

    norm = optax.tree.norm(jax.grad(loss)(critic))
    rate = config.critic_rate * jnp.minimum(1, config.max_gradient_norm / jnp.maximum(norm, 1e-12))
    size = config.data.num_envs * config.data.length
    model: dict[str, Any] = {"noise_variance": noise, "share": config.share, "population": config.population * size}
    latent = kalman.lktd_init(critic, predict, target, keys[0], **model)
    return kalman.lktd_step(
        latent,
        predict,
        target,
        keys[1],
        step_size=2 * noise * rate / len(target),
        prior_variance=config.prior_variance,
        **model,
    ).params


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """Several epochs of minibatches of one rollout [T, N], collected by `act` with this state."""
    check_batch(state.spec, batch)
    inner = actor_config(config)
    rollout, targets = samples(config, state, batch)
    noise = jnp.mean((rollout.target - rollout.value) ** 2) + 1e-8  # sigma^2
    moments = remember(config, state.returns, rollout.target)
    critics = jax.vmap(lambda critic: rescale(critic, state.returns, moments))(state.params["critics"])
    mean, std = location(moments)
    targets = (targets - mean) / std
    adam = ppo.optimiser(inner, state.updates)
    order_key, draw_key = jax.random.split(key)

    def actor_loss(actor: Any, minibatch: ppo.Samples) -> tuple[jax.Array, Metrics]:
        return ppo.loss({"params": actor | first(state)}, inner, state.spec, minibatch)

    def step(carry: Any, data: tuple[jax.Array, jax.Array]) -> tuple[Any, Metrics]:
        actor, opt_state, critics = carry
        index, count = data
        minibatch = jax.tree.map(lambda leaf: leaf[index], rollout)
        gradients, metrics = jax.grad(actor_loss, has_aux=True)(actor, minibatch)
        direction, opt_state = adam.update(gradients, opt_state)
        critics = jax.vmap(
            lambda critic, target, key: track(config, state, critic, minibatch, target, noise / std**2, key)
        )(critics, targets[:, index], jax.random.split(jax.random.fold_in(draw_key, count), config.num_draws))
        kept = {name: metrics[name] for name in ("policy_loss", "entropy", "kl", "clipped")}
        carry = optax.apply_updates(actor, direction), opt_state, critics
        return carry, kept | {"gradient_norm": optax.tree.norm(gradients)}

    size = rollout.value.size
    order = ppo.shuffle(order_key, size, config.num_epochs).reshape(-1, size // config.num_minibatches)
    start = (state.params["actor"], state.optimiser, critics)
    (actor, opt_state, critics), metrics = jax.lax.scan(step, start, (order, jnp.arange(len(order))))
    spread = jnp.var(values(config, state, batch.observation), axis=0, ddof=1)
    state = dataclasses.replace(
        state,
        params={"actor": actor, "critics": critics},
        optimiser=opt_state,
        updates=state.updates + 1,
        returns=moments,
    )
    explained = 1 - jnp.var(rollout.target - rollout.value) / (jnp.var(rollout.target) + 1e-8)
    return state, jax.tree.map(jnp.mean, metrics) | {
        "noise_variance": noise,
        "value_std": jnp.sqrt(jnp.mean(spread)),
        "explained_variance": explained,
    }
