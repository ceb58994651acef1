r"""TC-RARL: TD3 against an adversary that moves the environment's parameters by at most L a step (a TC-RMDP).

In a time-constrained robust MDP nature's move depends on the last one. The parameters psi in [0, 1]^d are part of the
state of the game; at each step the adversary nu moves them, and the step is taken with those that result,

    psi' = move(psi, b) = clip(psi + L b, 0, 1),    b = nu(s, psi) in [-1, 1]^d,
    v(s, psi) = max_a min_{|psi' - psi|_inf <= L} Q(s, psi', a),    Q(s, psi', a) = r + discount E_psi'[ v(s', psi') ].

So the successor of a step is (s', psi'), with the parameters that the step was taken with, and its value is that after
the adversary's next move. With psi_k the parameters of step k of a window, and noise as in RARL,

    a'   = clip(pi_target(s_m) + noise, -1, 1),  psi' = move(psi_{m-1}, clip(nu_target(s_m, psi_{m-1}) + noise, -1, 1)),
    y    = sum_{k<m} discount^k r_k + discount^m (1 - terminated) min_i Q_target_i(s_m, psi', a'),
    J_Q  = E[ sum_i 1/2 (Q_i(s_0, psi_0, a_0) - y)^2 ],    J_pi = E[ -Q_1(s_0, psi_0, pi(s_0)) ],
    J_nu = E[ Q_1(s_m, move(psi_{m-1}, nu(s_m, psi_{m-1})), pi(s_m)) ],    over the s_m that are not terminal.

The adversary learns where the target asks it, at successors: what psi was before the first move of a window is not in
the replay. The actor answers the move that was made, which is within 2 L of the one that would be made now.

What pi sees is the observation, and so a matter of the environment: of a family as it is the variant is *vanilla*; of
`envs.memory.Oracle(family)`, which shows psi, *oracle*; of `envs.memory.Stacked(family)`, which shows the last
observation and action, *stacked*. Critics and adversary see psi in any case.

Source: Zouitine et al. 2024, "Time-Constrained Robust MDPs", TC-RARL and the time-constrained robust Bellman operator;
its released code.
Differs from the code: one ensemble of critics for both players, as in RARL, where the code trains two TD3s, of which
the agent's does not see psi; the adversary does not see the action, of which it knows the policy; L is in widths of the
ranges, where the code adds L b to physical numbers; episodes begin at the nominal model, where the rollout puts them,
and not at a uniform psi. In which norm the paper bounds the move is not known to us; its code bounds each parameter.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import networks, normalise, proposals, returns
from jaxrl.distributional import critics as laws
from jaxrl.risk import Mean, Measure
from jaxrl.types import Metrics, PyTree, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import rarl, td3

learner: Any = td3  # its functions take any Config and State with the fields of its own


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    largest_move: float = 0.001  # L: of each parameter in a step, in widths of its range
    learning_rate: float = 3e-4  # Adam's step size, of actor, adversary and critics
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    exploration_noise: float = 0.1  # standard deviation, in [-1, 1], of both players where they collect
    target_noise: float = 0.2  # standard deviation, in [-1, 1], of what the target looks at, for both
    noise_clip: float = 0.5  # that noise is at most so much
    target_rate: float = 0.005  # tau: share of all networks that goes into their targets, every `delay` updates
    critic: laws.Critic = laws.Scalar()  # what the critics learn: a number, or the law of the return
    risk: Measure = Mean()  # what the actor climbs and the adversary descends; needs Categorical or Quantile
    num_params: int = struct.field(pytree_node=False, default=1)  # d: how many parameters the adversary moves
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
        check_between("Config", 0, 1, target_rate=self.target_rate, largest_move=self.largest_move)
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


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent, and its adversary, for observations and bounded actions of `spec`."""
    observation = spec.observation.zeros()
    seen = jnp.concatenate([observation, jnp.zeros(config.num_params)])
    return State(*rarl.parts(config, spec, key, seen))


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], with noise; without a key, that of the policy."""
    action, extras = learner.act(config, state, observation, key)
    return action, extras


def adversary(config: Any, params: Any, observation: jax.Array, psi: jax.Array) -> jax.Array:
    """What the adversary does at a normalised observation and psi [..., d]: b [..., d] in [-1, 1]^d."""
    return rarl.adversary(config, params, jnp.concatenate([observation, 2 * psi - 1], axis=-1))


def move(config: Any, psi: jax.Array, choice: jax.Array) -> jax.Array:
    """The parameters psi' [..., d] after the adversary's move b [..., d], none of them changed by more than L.

    A nominal model that lies outside of the unit box may stay there, but goes no further out.
    """
    return jnp.clip(psi + config.largest_move * choice, jnp.minimum(psi, 0), jnp.maximum(psi, 1))


def propose(config: Config, state: State, params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
    """The parameters [N, ...] of the next step: those in use, moved by the adversary in the first d of their numbers.

    It explores, with noise as the agent; before the first update it moves uniformly.

    Raises ValueError if the environment has fewer parameters than `config.num_params`.
    """
    psi = proposals.numbers(params, config.num_params, observation.shape[:1])
    choice = adversary(config, state.params, normalise.apply(state.normaliser, observation), psi)
    return proposals.put(params, move(config, psi, rarl.explore(config, state, choice, key)))


def successors(config: Any, state: Any, window: Transition) -> tuple[jax.Array, jax.Array, returns.Bootstrap]:
    """The normalised s_m [B, ...] and psi_{m-1} [B, d] at which windows [m, B] are bootstrapped, and how."""
    psi = proposals.used(window, config.num_params)
    both = jnp.concatenate([window.next_observation, psi], axis=-1)
    ahead = returns.bootstrap(dataclasses.replace(window, next_observation=both), config.discount)
    observation, psi = ahead.observation[..., : -config.num_params], ahead.observation[..., -config.num_params :]
    return normalise.apply(state.normaliser, observation), psi, ahead


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """What the critics regress on, for a window [m, B]: y [B, 1], or laws."""
    actor_key, adversary_key = jax.random.split(key)
    observation, psi, ahead = successors(config, state, window)
    action = td3.smooth(config, td3.actor(config, state.spec, state.target, observation), actor_key)
    choice = td3.smooth(config, adversary(config, state.target, observation, psi), adversary_key)
    psi = move(config, psi, choice)
    outputs = rarl.critics(config, state.target["critics"], observation, psi, action)
    outputs = laws.smallest(config.critic, outputs)
    return config.critic.targets(outputs, config.reward_scale * ahead.returns, ahead.discount, 0.0)


def actor_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_pi over the first rows of a window [m, B]."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = td3.actor(config, state.spec, {"actor": params}, observation)
    return -jnp.mean(rarl.value(config, state, observation, proposals.used(window, config.num_params)[0], action))


def adversary_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_nu over the successors of a window [m, B] that are not terminal."""
    observation, psi, _ = successors(config, state, window)
    action = td3.actor(config, state.spec, state.params, observation)
    psi = move(config, psi, adversary(config, {"adversary": params}, observation, psi))
    values = rarl.value(config, state, observation, psi, action)
    alive = ~jnp.any(window.terminated & returns.until_end(window.terminated | window.truncated), axis=0)
    return jnp.sum(jnp.where(alive, values, 0)) / jnp.maximum(jnp.sum(alive), 1)


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step of the critics on windows [m, B] of a replay, and of both players where it is due.

    Raises ValueError if `batch.extras` does not have the parameters of each step, as `env_params`.
    """
    check_batch(state.spec, batch)
    targets = target(config, state, batch, key)
    return rarl.learn(config, state, batch, targets, {"actor": actor_loss, "adversary": adversary_loss})
