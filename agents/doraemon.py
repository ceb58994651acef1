r"""DORAEMON: PPO that is trained in ever more different environments, as long as it succeeds in enough of them.

Each episode has its own parameters xi of the environment, drawn from independent Beta laws nu_phi on the unit box, that
are narrow at first. After enough episodes under nu_phi the law becomes the one of most entropy that is near, and under
which a share alpha of the episodes is expected to succeed,

    max_phi' H(nu_phi')   such that   G(phi') >= alpha   and   KL(nu_phi' || nu_phi) <= epsilon,
    G(phi') = 1/n sum_i nu_phi'(xi_i) / nu_phi(xi_i) 1[R_i >= success_return],

with the returns R_i of the n episodes. If no law that is near is expected to succeed so often, it becomes the one with
the largest G. PPO does not know of the parameters; it learns from the rollouts as they come.

Source: Tiboni et al. 2024, "Domain Randomization via Entropy Maximization", eqs. (3) to (6), and its released code.
Differs from the code: the learner is PPO and not SAC; the problem is solved by Newton's method on a logarithmic barrier
inside the compiled update, where the code calls scipy's trust-constr; the code bounds KL(nu_phi || nu_phi'), which is
the same to second order. The n episodes are the first one of each environment that began under nu_phi, so that
short episodes, which are failures on many tasks, count no more than long ones.
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

from jaxrl import networks, normalise, proposals, randomisation
from jaxrl.randomisation import Beta, Widening
from jaxrl.types import (
    Metrics,
    PyTree,
    Rollout,
    Spec,
    Transition,
    check_batch,
    check_between,
    check_minibatches,
    check_positive,
)

from . import ppo

learner: Any = ppo  # its functions take any Config and State with the fields of its own


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    widening: Widening = Widening()  # of the law: success_return, success_rate, trust_region, concentration
    learning_rate: float = 3e-4  # Adam's step size
    anneal_updates: float = math.inf  # updates over which the step size falls linearly to 0; inf: constant
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    lambda_: float = 0.95  # trace decay of the advantages, in [0, 1]
    clip_ratio: float = 0.2  # epsilon of PPO
    clip_value: float | None = None  # largest change of a value that still lowers its loss; None: no limit
    value_coefficient: float = 0.5  # of the values' loss
    entropy_coefficient: float = 0.0  # of the policy's entropy, nats
    max_gradient_norm: float = 0.5  # global norm, of actor and critic together
    target_kl: float | None = None  # nats; no further minibatch once pi has moved this far; None: no limit
    clip_cov: float | None = None  # share of each minibatch, those of largest covariance, that gives no gradient
    kl_cov: float | None = None  # share of each minibatch, those of largest covariance, that is held near pi_old
    kl_cov_coefficient: float = 1.0  # how strongly
    num_params: int = struct.field(pytree_node=False, default=1)  # d: how many parameters of the environment vary
    num_epochs: int = struct.field(pytree_node=False, default=4)  # passes over the rollout
    num_minibatches: int = struct.field(pytree_node=False, default=16)  # per epoch
    normalise_observations: bool = struct.field(pytree_node=False, default=True)  # by running moments
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))  # of actor and critic each
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.tanh)  # of both
    data: Rollout = struct.field(pytree_node=False, default=Rollout(64, 200, restart=True))  # whole episodes, at best

    def __post_init__(self) -> None:
        check_positive(
            "Config", num_params=self.num_params, num_epochs=self.num_epochs, num_minibatches=self.num_minibatches
        )
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, lambda_=self.lambda_)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, clip_ratio=self.clip_ratio)
        check_minibatches(self.data, self.num_minibatches)


@struct.dataclass
class Episodes:
    """The first episode of each environment that began under the law in use."""

    params: jax.Array  # [N, d], in the unit box
    success: jax.Array  # [N] float, 0 or 1
    over: jax.Array  # [N] bool: there has been one
    steps: jax.Array  # [] int32, since the law is in use


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # actor and critic
    optimiser: optax.OptState
    updates: jax.Array  # [] int32, calls of `update` so far
    normaliser: normalise.Moments | None  # of observations
    law: Beta  # nu_phi, of the parameters of the environment, [d]
    episodes: Episodes  # under this law
    began: jax.Array  # [] bool: the success rate has been reached once; until then the law stays as it is
    last: randomisation.Step  # what the last step of the law came to
    spec: Spec = struct.field(pytree_node=False)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent for observations and actions of `spec`, with narrow laws at the centre of the unit box."""
    learned = learner.init(config, spec, key)
    zero = jnp.zeros(())
    return State(
        params=learned.params,
        optimiser=learned.optimiser,
        updates=learned.updates,
        normaliser=learned.normaliser,
        law=randomisation.centred(config.num_params, config.widening.concentration),
        episodes=fresh(config),
        began=jnp.array(False),
        last=randomisation.Step(zero, zero, zero, jnp.array(False)),
        spec=spec,
    )


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., *observation], and its log-probability; without a key, the mode."""
    action, extras = learner.act(config, state, observation, key)
    return action, extras


def propose(config: Config, state: State, params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
    """Parameters [N, ...] for N episodes: those in use, with the first d of their numbers drawn from nu_phi.

    In a family of `envs.uncertain` they are the d numbers of its unit box, and nothing else.
    """
    return proposals.put(params, randomisation.sample(state.law, key, observation.shape[0]))


def fresh(config: Config) -> Episodes:
    """No episode yet."""
    num_envs = config.data.num_envs
    nothing = jnp.zeros(num_envs, bool)
    return Episodes(jnp.zeros((num_envs, config.num_params)), jnp.zeros(num_envs), nothing, jnp.int32(0))


def gather(config: Config, episodes: Episodes, batch: Transition) -> Episodes:
    """The episodes, with those that a rollout [T, N] ended."""
    length, num_envs = batch.reward.shape
    if num_envs != config.data.num_envs:
        raise ValueError(f"batch has {num_envs} environments, and Config.data {config.data.num_envs}; they must agree")
    extras = batch.extras
    began = episodes.steps + 1 + jnp.arange(length)[:, None] - extras["episode_length"]
    ended = (batch.terminated | batch.truncated) & (began >= 0)
    row = jnp.argmax(ended, axis=0)
    new = jnp.any(ended, axis=0) & ~episodes.over

    def at_end(leaf: jax.Array) -> jax.Array:
        return leaf[row, jnp.arange(num_envs)]

    success = at_end((extras["episode_return"] >= config.widening.success_return) & ~extras["non_finite"])
    params = at_end(proposals.used(batch, config.num_params))
    return Episodes(
        params=jnp.where(new[:, None], params, episodes.params),
        success=jnp.where(new, success, episodes.success),
        over=episodes.over | new,
        steps=episodes.steps + length,
    )


def widen(config: Config, state: State) -> State:
    """The state with its next law, and no episodes, if there has been one in each environment."""

    def step(state: State) -> State:
        law, last = randomisation.widen(state.law, state.episodes.params, state.episodes.success, config.widening)
        began = state.began | (last.success_rate >= config.widening.success_rate)
        law = jax.tree.map(lambda new, old: jnp.where(began, new, old), law, state.law)
        return dataclasses.replace(state, law=law, episodes=fresh(config), began=began, last=last)

    return jax.lax.cond(jnp.all(state.episodes.over), step, lambda state: state, state)


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """PPO's update on one rollout [T, N], collected by `act` with this state, and a step of the law when it is due.

    Episodes count if `extras["env_params"]` has the parameters that `propose` chose, as it has in `train.loop`; from a
    batch without them the policy learns, and the law stays.
    """
    check_batch(state.spec, batch)
    state, metrics = learner.update(config, state, batch, key)
    if "env_params" in batch.extras:
        state = dataclasses.replace(state, episodes=gather(config, state.episodes, batch))
        state = widen(config, state)
    return state, metrics | {
        "law_entropy": randomisation.entropy(state.law),
        "success_rate": state.last.success_rate,
        "expected_success_rate": state.last.expected_rate,
        "law_divergence": state.last.divergence,
        "feasible": state.last.feasible.astype(float),
    }
