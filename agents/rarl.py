r"""Robust adversarial reinforcement learning (RARL), off-policy: TD3 against an adversary that chooses the environment.

Two players share a replay. The agent's policy pi chooses the action; the adversary nu, whose reward is -r, chooses at
each step the parameters psi in [0, 1]^d of the environment in which it is taken. Since what one wins the other loses,
one ensemble of critics Q(s, psi, a) serves both: pi climbs it and nu descends it, in turn. With

    psi_nu(s) = (1 + nu(s)) / 2,    nu(s) in [-1, 1]^d,

and noise = clip(epsilon, -noise_clip, noise_clip), epsilon ~ N(0, target_noise^2), drawn for each player,

    a'   = clip(pi_target(s_m) + noise, -1, 1),    psi' = (1 + clip(nu_target(s_m) + noise, -1, 1)) / 2,
    y    = sum_{k<m} discount^k r_k + discount^m (1 - terminated) min_i Q_target_i(s_m, psi', a'),
    J_Q  = E[ sum_i 1/2 (Q_i(s, psi, a) - y)^2 ],                psi as it was in the step,
    J_pi = E[ -Q_1(s, psi_nu(s), pi(s)) ] = -J_nu                every `delay` updates.

Source: Pinto et al. 2017, "Robust Adversarial Reinforcement Learning", algorithm 1, for the game; Fujimoto, van Hoof
and Meger 2018, "Addressing Function Approximation Error in Actor-Critic Methods", for the learner.
Differs from the paper: its players learn on-policy, by TRPO, each for some iterations while the other is held, and its
adversary applies forces; here they take one gradient step in turn, and the adversary moves parameters, as in RRLS
(Zouitine et al. 2024). The code released with TC-RMDP trains two TD3s side by side, whose critics do not know what the
other player chose: their replay holds rewards against past opponents. Critics that see psi can ask the present one. By
which code the RARL in the tables of M2TD3 and IWOCS was trained is not known to us.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import networks, normalise, policies, proposals, returns
from jaxrl.distributional import critics as laws
from jaxrl.risk import Mean, Measure
from jaxrl.types import Box, Metrics, PyTree, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import sac, td3

learner: Any = td3  # its functions take any Config and State with the fields of its own
Loss = Callable[[Any, Any, Any, Transition], jax.Array]  # (parameters of a player, config, state, window) -> []


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of actor, adversary and critics
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    exploration_noise: float = 0.1  # standard deviation, in [-1, 1], of both players where they collect
    target_noise: float = 0.2  # standard deviation, in [-1, 1], of what the target looks at, for both
    noise_clip: float = 0.5  # that noise is at most so much
    target_rate: float = 0.005  # tau: share of all networks that goes into their targets, every `delay` updates
    critic: laws.Critic = laws.Scalar()  # what the critics learn: a number, or the law of the return
    risk: Measure = Mean()  # what the actor climbs and the adversary descends; needs Categorical or Quantile
    num_params: int = struct.field(pytree_node=False, default=1)  # d: how many parameters the adversary chooses
    delay: int = struct.field(pytree_node=False, default=2)  # updates of the critics for one of each player
    num_critics: int = struct.field(pytree_node=False, default=2)  # the smallest of so many
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of each player and critic
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of all
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    propose_at: ClassVar[str] = "step"  # when the loop asks the adversary

    def __post_init__(self) -> None:
        check_positive("Config", num_params=self.num_params, delay=self.delay, num_critics=self.num_critics)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, noise_clip=self.noise_clip)
        check_between("Config", 0, math.inf, exploration_noise=self.exploration_noise, target_noise=self.target_noise)
        laws.check_risk(self.critic, self.risk)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor", "adversary" and "critics" [num_critics, ...]
    target: Any  # of all three
    optimiser: Any  # of each, by the same names
    updates: jax.Array  # [], integer: how many there were
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def adversary_module(config: Any) -> td3.Actor:
    """The adversary: what it sees [..., n] -> its choice in [-1, 1]^d."""
    return td3.Actor(config.hidden_sizes, config.activation, Box((config.num_params,), -1.0, 1.0))


def adversary(config: Any, params: Any, seen: jax.Array) -> jax.Array:
    """The choice of the adversary in [-1, 1]^d, where it sees so much, [..., n]."""
    choice: Any = adversary_module(config).apply(params["adversary"], seen)
    return choice


def critics(config: Any, params: Any, observation: jax.Array, psi: jax.Array, action: jax.Array) -> jax.Array:
    """The outputs [num_critics, ..., size] at a normalised observation, psi in [0, 1]^d and an action in [-1, 1]^A."""
    return sac.critics(config, params, observation, jnp.concatenate([action, 2 * psi - 1], axis=-1))


def value(config: Any, state: Any, observation: jax.Array, psi: jax.Array, action: jax.Array) -> jax.Array:
    """Q_1(s, psi, a), [...]: what one player climbs, and the other descends."""
    return sac.values(config, critics(config, state.params["critics"], observation, psi, action)[0])


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent, and its adversary, for observations and bounded actions of `spec`."""
    return State(*parts(config, spec, key, seen=spec.observation.zeros()))


def parts(config: Any, spec: Spec, key: jax.Array, seen: jax.Array) -> tuple[Any, ...]:
    """The fields of a fresh State, where what the adversary sees looks like `seen`."""
    actor_key, adversary_key, critics_key = jax.random.split(key, 3)
    observation, action = spec.observation.zeros(), spec.action.zeros()
    params = {
        "actor": td3.actor_module(config, spec).init(actor_key, observation),
        "adversary": adversary_module(config).init(adversary_key, seen),
        "critics": sac.critics_module(config).init(
            critics_key, observation, jnp.concatenate([action, jnp.zeros(config.num_params, action.dtype)])
        ),
    }
    optimisers = {name: sac.optimiser(config).init(group) for name, group in params.items()}
    normaliser = normalise.init(spec.observation) if config.normalise_observations else None
    return params, params, optimisers, jnp.zeros((), jnp.int32), normaliser, spec


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], with noise; without a key, that of the policy."""
    action, extras = learner.act(config, state, observation, key)
    return action, extras


def propose(config: Config, state: State, params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
    """The parameters [N, ...] of the next step: those in use, with psi_nu(s) for the first d of their numbers.

    The adversary explores, with noise as the agent; before the first update psi is uniform. In a family of
    `envs.uncertain` the parameters are the numbers of its unit box.

    Raises ValueError if the environment has fewer parameters than `config.num_params`.
    """
    choice = adversary(config, state.params, normalise.apply(state.normaliser, observation))
    return proposals.put(params, (1 + explore(config, state, choice, key)) / 2)


def explore(config: Any, state: Any, choice: jax.Array, key: jax.Array) -> jax.Array:
    """A choice in [-1, 1]^d with noise on it; before the first update, a uniform one."""
    noise_key, random_key = jax.random.split(key)
    noise = config.exploration_noise * jax.random.normal(noise_key, choice.shape, choice.dtype)
    anywhere = jax.random.uniform(random_key, choice.shape, choice.dtype, -1, 1)
    return jnp.where(state.updates == 0, anywhere, jnp.clip(choice + noise, -1, 1))


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """What the critics regress on, for a window [m, B]: y [B, 1], or laws."""
    actor_key, adversary_key = jax.random.split(key)
    ahead = returns.bootstrap(window, config.discount)
    observation = normalise.apply(state.normaliser, ahead.observation)
    action = td3.smooth(config, td3.actor(config, state.spec, state.target, observation), actor_key)
    psi = (1 + td3.smooth(config, adversary(config, state.target, observation), adversary_key)) / 2
    outputs = laws.smallest(config.critic, critics(config, state.target["critics"], observation, psi, action))
    return config.critic.targets(outputs, config.reward_scale * ahead.returns, ahead.discount, 0.0)


def critic_loss(
    params: Any, config: Any, state: Any, window: Transition, targets: jax.Array
) -> tuple[jax.Array, Metrics]:
    """J_Q over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = policies.to_unit(window.action[0], state.spec.action)
    outputs = critics(config, params, observation, proposals.used(window, config.num_params)[0], action)
    loss = jnp.sum(jnp.mean(config.critic.loss(outputs, targets), axis=-1))
    return loss, {"critic_loss": loss, "value": jnp.mean(Mean()(*config.critic.law(outputs)))}


def adversary_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_nu over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = td3.actor(config, state.spec, state.params, observation)
    psi = (1 + adversary(config, {"adversary": params}, observation)) / 2
    return jnp.mean(value(config, state, observation, psi, action))


def actor_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_pi over the first rows of a window [m, B]."""
    played = dataclasses.replace(state, params=state.params | {"actor": params})
    return -adversary_loss(state.params["adversary"], config, played, window)


def learn(
    config: Any, state: Any, window: Transition, targets: jax.Array, losses: dict[str, Loss]
) -> tuple[Any, Metrics]:
    """A step of the critics and, where it is due, of each player in turn down its loss; then all targets follow."""
    gradient, metrics = jax.grad(critic_loss, has_aux=True)(state.params["critics"], config, state, window, targets)
    state = dataclasses.replace(td3.descend(config, state, "critics", gradient), updates=state.updates + 1)

    def improve(state: Any) -> Any:
        for name, loss in losses.items():
            state = td3.descend(config, state, name, jax.grad(loss)(state.params[name], config, state, window))
        return td3.follow(config, state)

    return jax.lax.cond(state.updates % config.delay == 0, improve, lambda state: state, state), metrics


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step of the critics on windows [m, B] of a replay, and of both players where it is due.

    Raises ValueError if `batch.extras` does not have the parameters of each step, as `env_params`.
    """
    check_batch(state.spec, batch)
    targets = target(config, state, batch, key)
    return learn(config, state, batch, targets, {"actor": actor_loss, "adversary": adversary_loss})
