r"""Max-min TD3 (M2TD3): TD3 for the worst environment of a family.

Each episode has parameters omega of the environment of its own, in the unit box. The critics see them, the policy does
not. The policy ascends the value that K candidates omega_k for the worst parameters descend:

    a'  = clip( pi_target(s_m) + clip(epsilon, -noise_clip, noise_clip), -1, 1 ),    epsilon ~ N(0, target_noise^2),
    w'  = the same of omega, in half widths of its box: the target looks at models nearby too,
    y   = sum_{t<m} discount^t r_t + discount^m (1 - terminated) min_i Q_target_i(s_m, a', w'),
    J_Q = E[ sum_i 1/2 (Q_i(s, a, omega) - y)^2 ],

and every `delay` updates, with V_k = E[ Q_1(s, pi(s), omega_k) ] and the worst candidate k* = argmin_k V_k,

    J_pi = -V_k*,  or softly  -sum_k p_k V_k,        J_omega = V_k*, for omega_k* alone,
    p_k <- p_k + probability_rate (1[k = k*] - p_k).

An episode's omega is a candidate drawn by p, with noise that falls over time; before the first update it is uniform. A
candidate near a later one, or with a small p_k, is drawn anew, and gets the mean p of the others.

Source: Tanabe et al. 2022, "Max-Min Off-Policy Actor-Critic Method Focusing on Worst-Case Robustness to Model
Misspecification" (M2TD3 and SoftM2TD3), and its released code.
Differs from the code: omega is in the unit box, and so is the distance of candidates; they are looked at after each
step of the actor and not before each episode; p moves at a rate that is set, not at 1 / the length of the last episode;
the noise on omega falls in both variants, which the released M2TD3 leaves out; targets go on through truncation.
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

from jaxrl import networks, normalise, proposals, returns
from jaxrl.distributional import critics as laws
from jaxrl.risk import Mean
from jaxrl.types import Metrics, PyTree, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import rarl, sac, td3

learner: Any = td3  # its `act` takes any Config and State with the fields of its own


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of actor, critics and candidates
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    exploration_noise: float = 0.1  # standard deviation, for actions in [-1, 1], where it acts with a key
    target_noise: float = 0.2  # standard deviation, in half widths of their boxes, of actions and omega in the target
    noise_clip: float = 0.5  # that noise is at most so much
    target_rate: float = 0.005  # tau: share of actor and critics that goes into their targets, every `delay` updates
    omega_noise: float = 1.0  # standard deviation, in half widths of the box, of an episode's omega about its candidate
    last_omega_noise: float = 0.1  # the same in the end
    noise_updates: float = 1e6  # updates over which it falls linearly from the one to the other
    probability_rate: float = 1e-3  # of p, at each step of the actor; 1 / the length of an episode in the code
    min_probability: float = 0.05  # a candidate with less is drawn anew; at most 1 / num_candidates
    min_distance: float = 0.03  # L1, in the unit box; 0.1 in physical units in the code, whose ranges are 3 to 30 wide
    critic: laws.Critic = laws.Scalar()  # what the critics learn: a number, or the law of the return
    num_params: int = struct.field(pytree_node=False, default=1)  # d: how many parameters of the environment vary
    num_candidates: int = struct.field(pytree_node=False, default=5)  # K
    soft: bool = struct.field(pytree_node=False, default=False)  # SoftM2TD3: the actor looks at all candidates, by p
    delay: int = struct.field(pytree_node=False, default=2)  # updates of the critics for one of actor and candidates
    num_critics: int = struct.field(pytree_node=False, default=2)  # the smallest of so many
    normalise_observations: bool = struct.field(pytree_node=False, default=False)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor and each critic
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of both
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    def __post_init__(self) -> None:
        check_positive("Config", num_params=self.num_params, num_candidates=self.num_candidates)
        check_positive("Config", delay=self.delay, num_critics=self.num_critics)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate, probability_rate=self.probability_rate)
        check_between("Config", 0, 1 / self.num_candidates, min_probability=self.min_probability)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, noise_clip=self.noise_clip)
        check_between("Config", 0, math.inf, exploration_noise=self.exploration_noise, target_noise=self.target_noise)
        check_between("Config", 0, math.inf, omega_noise=self.omega_noise, last_omega_noise=self.last_omega_noise)
        check_between("Config", 0, math.inf, noise_updates=self.noise_updates, min_distance=self.min_distance)


@struct.dataclass
class Candidates:
    """What the worst parameters may be."""

    logits: jax.Array  # [K, d]; omega_k is their sigmoid
    optimiser: Any  # of each, [K, ...]
    probability: jax.Array  # [K]: p, how often each was the worst

    @property
    def omega(self) -> jax.Array:
        """The parameters, in the unit box, [K, d]."""
        return jax.nn.sigmoid(self.logits)


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # "actor" and "critics" [num_critics, ...]
    target: Any  # of both
    optimiser: Any  # of each, by the same names
    candidates: Candidates  # for the worst parameters
    worst_value: jax.Array  # []: V_k* at the last step of the actor, 0 before the first
    updates: jax.Array  # [], integer: how many there were
    normaliser: normalise.Moments | None  # of observations
    spec: Spec = struct.field(pytree_node=False)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and bounded actions of `spec`, and uniform candidates."""
    actor_key, critics_key, candidates_key = jax.random.split(key, 3)
    observation = spec.observation.zeros()
    actor = td3.actor_module(config, spec).init(actor_key, observation)
    action_and_omega = jnp.concatenate([spec.action.zeros(), jnp.zeros(config.num_params)])
    critics = sac.critics_module(config).init(critics_key, observation, action_and_omega)
    params = {"actor": actor, "critics": critics}
    return State(
        params=params,
        target=params,
        optimiser={name: sac.optimiser(config).init(group) for name, group in params.items()},
        candidates=draw(config, candidates_key),
        worst_value=jnp.zeros(()),
        updates=jnp.zeros((), jnp.int32),
        normaliser=normalise.init(spec.observation) if config.normalise_observations else None,
        spec=spec,
    )


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], with noise; without a key, that of the policy."""
    action, extras = learner.act(config, state, observation, key)
    return action, extras


def propose(config: Config, state: State, params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
    """Parameters [N, ...] for N episodes: those in use, with the first d of their numbers those of a noisy candidate.

    Before the first update, the d numbers are uniform. In a family of `envs.uncertain` they are all that there are.
    """
    choice_key, noise_key, uniform_key = jax.random.split(key, 3)
    candidates, shape = state.candidates, (observation.shape[0], config.num_params)
    chosen = jax.random.choice(choice_key, config.num_candidates, shape[:1], p=candidates.probability)
    noise = 0.5 * omega_noise(config, state) * jax.random.normal(noise_key, shape)
    omega = jnp.clip(candidates.omega[chosen] + noise, 0, 1)
    omega = jnp.where(state.updates > 0, omega, jax.random.uniform(uniform_key, shape))

    return proposals.put(params, omega)


def omega_noise(config: Config, state: State) -> jax.Array:
    """Standard deviation of the noise on an episode's omega after so many updates, in half widths of the box, []."""
    passed = jnp.minimum(state.updates / config.noise_updates, 1)
    return config.omega_noise + passed * (config.last_omega_noise - config.omega_noise)


# ----------------------------------------------------------------------------------------- candidates


def draw(config: Config, key: jax.Array) -> Candidates:
    """Uniform candidates, equally probable: the logit of a uniform number has the logistic law."""
    logits = jax.random.logistic(key, (config.num_candidates, config.num_params))
    probability = jnp.ones(config.num_candidates) / config.num_candidates
    return Candidates(logits, jax.vmap(sac.optimiser(config).init)(logits), probability)


def descend(config: Config, candidates: Candidates, worst: jax.Array, gradient: jax.Array) -> Candidates:
    """A step of Adam for the worst candidate, along its gradient [d], and more probability for it."""
    moving = candidates.logits, candidates.optimiser
    logits, opt_state = jax.tree.map(lambda leaf: leaf[worst], moving)
    step, opt_state = sac.optimiser(config).update(gradient, opt_state)
    moved = optax.apply_updates(logits, step), opt_state
    logits, opt_state = jax.tree.map(lambda all_, one: all_.at[worst].set(one), moving, moved)
    one_hot = jax.nn.one_hot(worst, config.num_candidates, dtype=candidates.probability.dtype)
    probability = candidates.probability + config.probability_rate * (one_hot - candidates.probability)
    return Candidates(logits, opt_state, probability)


def restart(config: Config, candidates: Candidates, drawn: Candidates) -> Candidates:
    """Those `drawn` in place of the first of two that are near, and then of those that are hardly ever the worst."""
    omega = candidates.omega
    distance = jnp.sum(jnp.abs(omega[:, None] - omega), axis=-1)
    later = jnp.arange(len(omega)) > jnp.arange(len(omega))[:, None]
    near = jnp.any((distance <= config.min_distance) & later, axis=1)
    candidates = replaced(candidates, near, drawn)
    return replaced(candidates, candidates.probability < config.min_probability, drawn)


def replaced(candidates: Candidates, which: jax.Array, drawn: Candidates) -> Candidates:
    """The candidates, with those of `which` [K] as they are drawn; each gets the mean probability of the others."""
    old = candidates.probability
    kept = jnp.sum(jnp.where(which, 0, old))
    mean = jnp.where(kept > 0, kept / jnp.maximum(jnp.sum(~which), 1), 1)
    probability = jnp.where(which, mean, old)
    select = jax.vmap(jnp.where)
    candidates = jax.tree.map(lambda new, old: select(which, new, old), drawn, candidates)
    return dataclasses.replace(candidates, probability=probability / jnp.sum(probability))


# --------------------------------------------------------------------------------------------- losses


def value(config: Config, state: State, actor: Any, window: Transition, omega: jax.Array) -> jax.Array:
    """V = E[ Q_1(s, pi(s), omega) ] of the first rows of a window [m, B], for one omega [d], []."""
    observation = normalise.apply(state.normaliser, window.observation[0])
    action = td3.actor(config, state.spec, {"actor": actor}, observation)
    alone = dataclasses.replace(config, num_critics=1)
    first = jax.tree.map(lambda leaf: leaf[:1], state.params["critics"])
    omega = jnp.broadcast_to(omega, (*action.shape[:-1], config.num_params))
    return jnp.mean(Mean()(*config.critic.law(rarl.critics(alone, first, observation, omega, action))))


def target(config: Config, state: State, window: Transition, key: jax.Array) -> jax.Array:
    """What the critics regress on, for a window [m, B]: y [B, 1], or laws."""
    action_key, omega_key = jax.random.split(key)
    ahead, omega = returns.bootstrap(window, config.discount), proposals.used(window, config.num_params)[0]
    observation = normalise.apply(state.normaliser, ahead.observation)
    action = td3.smooth(config, td3.actor(config, state.spec, state.target, observation), action_key)
    omega = (1 + td3.smooth(config, 2 * omega - 1, omega_key)) / 2
    outputs = laws.smallest(config.critic, rarl.critics(config, state.target["critics"], observation, omega, action))
    return config.critic.targets(outputs, config.reward_scale * ahead.returns, ahead.discount, 0.0)


def actor_loss(params: Any, config: Config, state: State, window: Transition, worst: jax.Array) -> jax.Array:
    """J_pi over the first rows of a window [m, B], for the worst candidate, or softly for all."""
    omega = state.candidates.omega
    if config.soft:
        values = jax.vmap(lambda each: value(config, state, params, window, each))(omega)
        return -jnp.dot(state.candidates.probability, values)
    return -value(config, state, params, window, omega[worst])


def omega_loss(logits: jax.Array, config: Config, state: State, window: Transition) -> jax.Array:
    """J_omega over the first rows of a window [m, B], for the logits [d] of one candidate."""
    return value(config, state, state.params["actor"], window, jax.nn.sigmoid(logits))


def improve(config: Config, state: State, window: Transition, drawn: Candidates) -> State:
    """A step of the actor and one of the worst candidate, at once, then new ones; and all targets a little nearer."""
    actor, candidates = state.params["actor"], state.candidates
    values = jax.vmap(lambda omega: value(config, state, actor, window, omega))(candidates.omega)
    worst = jnp.argmin(values)
    descent = jax.grad(omega_loss)(candidates.logits[worst], config, state, window)
    candidates = restart(config, descend(config, candidates, worst, descent), drawn)
    gradient = jax.grad(actor_loss)(actor, config, state, window, worst)
    state = td3.follow(config, td3.descend(config, state, "actor", gradient))
    return dataclasses.replace(state, candidates=candidates, worst_value=values[worst])


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One gradient step of the critics on windows [m, B] of a replay, and of actor and candidates where it is due.

    `batch.extras["env_params"]` has the parameters of the episodes, as it has in `train.loop`; else a ValueError.
    """
    check_batch(state.spec, batch)
    target_key, candidates_key = jax.random.split(key)
    targets = target(config, state, batch, target_key)
    gradient, metrics = jax.grad(rarl.critic_loss, has_aux=True)(state.params["critics"], config, state, batch, targets)
    state = dataclasses.replace(td3.descend(config, state, "critics", gradient), updates=state.updates + 1)
    due = state.updates % config.delay == 0
    drawn = draw(config, candidates_key)  # here, for under vmap a key can't be used in one branch alone
    state = jax.lax.cond(due, lambda old: improve(config, old, batch, drawn), lambda old: old, state)
    return state, metrics | {
        "worst_value": state.worst_value,
        "largest_probability": jnp.max(state.candidates.probability),
        "proposal_noise": omega_noise(config, state),
    }
