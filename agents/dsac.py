r"""Distributional soft actor-critic with three refinements (DSAC-T, or DSAC-v2).

Soft actor-critic whose two critics learn the whole law of the soft return as a normal law N(mu, sigma^2). The
refinements: the mean regresses on means rather than on a draw; the smaller of two critics is trusted, with its whole
law; and each critic scales its gradients by its mean sigma b, which makes them independent of the size of the reward.
With i the critic of the smaller mean at (s_m, a'), and z = mu_i + sigma_i clip(epsilon, -3, 3), epsilon ~ N(0, 1),

    y_q = sum_{k<m} discount^k r_k + discount^m (1 - terminated) (mu_i - alpha log pi)(s_m, a'),
    y_z = the same with z in the place of mu_i,       clipped to mu +- 3 b,
    dJ_Q/dmu    = -w (y_q - mu),                      w = clip(b^2 / (sigma^2 + 0.1), 0.1, 10),
    dJ_Q/dsigma = w (sigma^2 - (y_z - mu)^2) / (sigma + 0.1),
    J_pi = E[ alpha log pi(a | s) - min_i mu_i(s, a) ],    J_alpha = E[ -alpha (log pi(a | s) + target_entropy) ],

the last two, and the targets, every `delay` updates. sigma is the spread of the return; STAC's is another thing.

Source: Duan et al. 2023, "DSAC-T: Distributional Soft Actor-Critic with Three Refinements", and its released code.
Differs from them: sigma goes to the root mean square of y_z - mu, where the code's goes to 1/sqrt(2) of that
(`exact=False` has it so); 256 x 256 networks with ReLU as in the library's other agents, where the paper has three
layers with GELU; the temperature's step size is that of the others.
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
from jaxrl.types import Metrics, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import sac


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 1e-4  # Adam's step size, of actor, critics and temperature
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    target_rate: float = 0.005  # tau: share that goes into the targets every `delay` updates, and into b at each
    target_entropy: float | None = None  # nats, of actions in [-1, 1]; None: minus their number, as in the paper
    initial_temperature: float = 1.0  # alpha before the first update
    exact: bool = struct.field(pytree_node=False, default=True)  # False: the released code's sigma, too small
    delay: int = struct.field(pytree_node=False, default=2)  # updates of the critics for one of the actor
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor and each critic
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    def __post_init__(self) -> None:
        check_positive("Config", delay=self.delay)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate)
        check_between("Config", 0, math.inf, initial_temperature=self.initial_temperature)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor", "critics" [2, ...] and "log_temperature" []
    target: Any  # "actor" and "critics"
    optimiser: Any  # of "critics", and of the others together, "policy"
    scale: jax.Array  # [2], b: the running mean of each critic's sigma
    updates: jax.Array  # [], integer: how many there were
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def critics(config: Config, params: Any, observation: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [2, ...] at a normalised observation and an action in [-1, 1]^A."""
    outputs: Any = critics_module(config).apply(params, observation, action)
    mean, raw = jnp.moveaxis(outputs, -1, 0)
    return mean, gaussian.std(raw)


def critics_module(config: Config) -> nn.Module:
    """The two critics side by side."""
    return networks.ensemble(sac.Critic, 2)(config.hidden_sizes, config.activation, 2)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and bounded actions of `spec`."""
    actor_key, critics_key = jax.random.split(key)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": sac.actor_module(config, spec).init(actor_key, observation),
        "critics": critics_module(config).init(critics_key, observation, action),
        "log_temperature": jnp.log(jnp.asarray(config.initial_temperature, observation.dtype)),
    }
    optimiser = sac.optimiser(config)
    return State(
        params=params,
        target=_slow(params),
        optimiser={"critics": optimiser.init(params["critics"]), "policy": optimiser.init(_policy(params))},
        scale=jnp.zeros(2, observation.dtype),
        updates=jnp.zeros((), jnp.int32),
        normaliser=normalise.init(spec.observation) if config.normalise_observations else None,
        spec=spec,
    )


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation]; without a key, the squashed mean."""
    state.spec.observation.check("observation", observation)
    policy = sac.actor(config, state.spec, state.params, normalise.apply(state.normaliser, observation))
    return policies.from_unit(policy.mode() if key is None else policy.sample(seed=key), state.spec.action), {}


def target(config: Config, state: State, window: Transition, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the critics regress on, y_q and y_z [B], for a window [m, B]."""
    action_key, draw_key = jax.random.split(key)
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    action, log_prob = sac.actor(config, state.spec, state.target, observation).sample_and_log_prob(seed=action_key)
    means, stds = critics(config, state.target["critics"], observation, action)
    index = jnp.argmin(means, axis=0)[None]
    mean, std = (jnp.take_along_axis(x, index, axis=0)[0] for x in (means, stds))
    draw = mean + std * jnp.clip(jax.random.normal(draw_key, mean.shape, mean.dtype), -3, 3)
    cost = jnp.exp(state.params["log_temperature"]) * log_prob
    rewards = config.reward_scale * ahead.returns
    return rewards + ahead.discount * (mean - cost), rewards + ahead.discount * (draw - cost)


def critic_loss(
    params: Any, config: Config, state: State, window: Transition, targets: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
    """J_Q over the first rows of a window [m, B]; its value means nothing. Also the new b [2]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = policies.to_unit(window.action[0], state.spec.action)
    means, stds = critics(config, params, observation, action)
    first = jax.lax.stop_gradient(jnp.mean(stds, axis=-1))
    running = jax.vmap(gaussian.running_scale, in_axes=(0, 0, None))(state.scale, stds, config.target_rate)
    scale = jnp.where(state.updates == 0, first, running)
    loss = gaussian.refined_loss(means, stds, *targets, scale[:, None], exact=config.exact)
    return jnp.sum(jnp.mean(loss, axis=-1)), (
        scale,
        {"value": jnp.mean(means), "std": jnp.mean(stds), "error": jnp.sqrt(jnp.mean((targets[0] - means) ** 2))},
    )


def policy_loss(params: Any, config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """J_pi + J_alpha over the first rows of a window [m, B], each with gradients for its own parameters alone."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action, log_prob = sac.actor(config, state.spec, params, observation).sample_and_log_prob(seed=key)
    value = jnp.min(critics(config, state.params["critics"], observation, action)[0], axis=0)
    actor_loss = jnp.mean(jnp.exp(jax.lax.stop_gradient(params["log_temperature"])) * log_prob - value)
    return actor_loss + sac.temperature_loss(params, config, action, log_prob)


def improve(config: Config, state: State, window: Transition, key: jax.Array) -> State:
    """A step of actor and temperature, and all targets a little nearer."""
    group = _policy(state.params)
    gradient = jax.grad(policy_loss)(group, config, state, window, key)
    step, opt_state = sac.optimiser(config).update(gradient, state.optimiser["policy"])
    params = state.params | optax.apply_updates(group, step)
    slow = optax.incremental_update(_slow(params), state.target, config.target_rate)
    return dataclasses.replace(state, params=params, target=slow, optimiser=state.optimiser | {"policy": opt_state})


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step of the critics on windows [m, B] of a replay, and of the actor where it is due."""
    check_batch(state.spec, batch)
    target_key, action_key = jax.random.split(key)
    targets = jax.lax.stop_gradient(target(config, state, batch, target_key))
    gradient, (scale, metrics) = jax.grad(critic_loss, has_aux=True)(
        state.params["critics"], config, state, batch, targets
    )
    step, opt_state = sac.optimiser(config).update(gradient, state.optimiser["critics"])
    state = dataclasses.replace(
        state,
        params=state.params | {"critics": optax.apply_updates(state.params["critics"], step)},
        optimiser=state.optimiser | {"critics": opt_state},
        scale=scale,
        updates=state.updates + 1,
    )
    due = state.updates % config.delay == 0
    bits = jax.random.key_data(action_key)  # under vmap, cond selects among its operands, and JAX counts that as a use
    state = jax.lax.cond(
        due, lambda old: improve(config, old, batch, jax.random.wrap_key_data(bits)), lambda old: old, state
    )
    return state, metrics | {"temperature": jnp.exp(state.params["log_temperature"])}


def _policy(params: Any) -> Any:
    """What changes every `delay` updates."""
    return {name: params[name] for name in ("actor", "log_temperature")}


def _slow(params: Any) -> Any:
    """What has a target."""
    return {name: params[name] for name in ("actor", "critics")}
