r"""Incremental worst-case search (IWOCS): a robust policy from a sequence of ordinary problems, each solved by SAC.

A family of environments has parameters in the unit box, the same for a whole episode. Stage 0 learns a default policy
pi_0, with parameters that are uniform for each episode. Each later stage j learns in the one model, psi_j, that was
the worst for what the stages before it do together. Beside the policy pi_j, by SAC, it learns what that policy is worth
without an entropy bonus, and to predict its model, both off-policy:

    y     = sum_{k<m} discount^k r_k + discount^m (1 - terminated) min_i Q_target_i(s_m, pi_j(s_m)),
    J_Q   = E[ sum_i 1/2 (Q_i(s, a) - y)^2 ],                               Q_j = min_i Q_i,  pi_j the mode,
    J_T   = E[ |T_j(s_0, a_0) - s_1|_1 ],                                   T_j(s, a) = s + f_j(s, a).

What is played is pessimistic, over the stages whose model may be the present one: those that predicted the last step,

    valid = { j >= 1 : |T_j(s_{t-1}, a_{t-1}) - s_t|_1 <= rho_j },          all of them at a reset,
    j*    = argmin_{j in valid} Q_j(s_t, pi_j(s_t)),        a_t = pi_j*(s_t),        or pi_0(s_t) if none is valid.

The policies have no memory: the environment is one of `envs.memory.Stacked`, which shows (s_t, s_{t-1}, a_{t-1}). Of
this, networks see s alone. `act` with a key is the policy of the stage in training, without one the robust policy.
The search for the worst model, and the sequence, need an environment: `jaxrl.incremental.search`.

Source: Zouitine, Geist and Rachelson 2024, "Solving Robust MDPs as a Sequence of Static RL Problems", IWOCS and its
deep form.
Differs from the paper: SAC's one Adam has one step size; Q_j is the value of the mode of SAC's policy, which is what is
played; T_j predicts the change of s; several worst models may be learned side by side, as several stages at once.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxrl import networks, policies, proposals, returns, types
from jaxrl.distributional import critics as laws
from jaxrl.types import Box, Metrics, PyTree, Replay, Spec, Transition, check_batch, check_between, check_positive

from . import sac, td3

critic_loss: Any = td3.critic_loss  # takes any Config and State with the fields of TD3's


@struct.dataclass
class Config:
    """What you choose. Floats are traced (vmap over them); the rest fixes shapes."""

    learning_rate: float = 3e-4  # Adam's step size, of SAC and of Q_j; 1e-3 of critics in the paper
    predictor_learning_rate: float = 1e-3  # Adam's step size, of T_j
    discount: float = 0.99  # per step, in [0, 1)
    reward_scale: float = 1.0  # what the agent learns from is so many times the reward
    target_rate: float = 0.005  # tau: share of the critics that goes into their targets at each update
    target_entropy: float | None = None  # nats, of actions in [-1, 1]; None: minus their number
    initial_temperature: float = 1.0  # alpha before the first update of a stage
    radius: float = 1.0  # rho of a stage until it is chosen; L1, in units of the observation
    num_params: int = struct.field(pytree_node=False, default=1)  # d: how many parameters of the environment vary
    num_models: int = struct.field(pytree_node=False, default=3)  # how many stages there may be after the first
    num_critics: int = struct.field(pytree_node=False, default=2)  # the smallest of so many, in SAC and in Q_j
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))  # of the actor
    critic_hidden_sizes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)  # None: as the actor's
    activation: networks.Activation = struct.field(pytree_node=False, default=nn.relu)  # of all networks
    data: Replay = struct.field(pytree_node=False, default=Replay())  # the last 10^6 transitions, batches of 256

    def __post_init__(self) -> None:
        check_positive("Config", num_params=self.num_params, num_models=self.num_models, num_critics=self.num_critics)
        check_between("Config", 0, 1, open_=True, discount=self.discount)
        check_between("Config", 0, 1, target_rate=self.target_rate)
        check_between("Config", 0, math.inf, learning_rate=self.learning_rate, radius=self.radius)
        check_between("Config", 0, math.inf, predictor_learning_rate=self.predictor_learning_rate)
        check_between("Config", 0, math.inf, initial_temperature=self.initial_temperature)


@struct.dataclass
class Solution:
    """What a stage leaves behind."""

    actor: Any  # of pi_j
    critics: Any  # of Q_j, [num_critics, ...]
    predictor: Any  # of T_j
    radius: jax.Array  # []: rho_j


@struct.dataclass
class State:
    """What it has learned."""

    params: Any  # of this stage, "judge" [num_critics, ...] for Q_j and "predictor" for T_j
    target: Any  # of the judge
    optimiser: Any  # of each, by the same names
    learner: sac.State  # of this stage, for observations s
    model: jax.Array  # [d]: psi_j, the parameters of this stage, in the unit box
    solved: Solution  # [1 + num_models, ...], of the stages that are over; zeros for those to come
    finished: jax.Array  # [], integer: how many are over
    training: jax.Array  # [] bool: whether the robust policy plays this stage, too
    normaliser: None  # the networks of all stages see the same numbers
    spec: Spec = struct.field(pytree_node=False)  # of (s_t, s_{t-1}, a_{t-1})


@struct.dataclass
class Choice:
    """What the robust policy does, and why."""

    action: jax.Array  # [..., A], in [-1, 1]
    value: jax.Array  # [...]: Q_j*(s, a), in units of the scaled reward
    stage: jax.Array  # [...], integer: j*


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    """A fresh agent, in its stage 0, for bounded actions and the observations of an `envs.memory.Stacked`.

    Raises ValueError for other observations, as far as a spec tells them apart; `check_start` looks at one.
    """
    inner, sac_config = within(spec), learner_config(config)
    sac_key, judge_key, predictor_key = jax.random.split(key, 3)
    observation, action = inner.observation.zeros(), inner.action.zeros()
    params = {
        "judge": sac.critics_module(sac_config).init(judge_key, observation, action),
        "predictor": predictor_module(config, observation.size).init(predictor_key, observation, action),
    }
    fresh = State(
        params=params,
        target=params["judge"],
        optimiser={name: sac.optimiser(config).init(group) for name, group in params.items()},
        learner=sac.init(sac_config, inner, sac_key),
        model=jnp.full(config.num_params, 0.5),
        solved=Solution(None, None, None, jnp.zeros(())),
        finished=jnp.zeros((), jnp.int32),
        training=jnp.array(True),
        normaliser=None,
        spec=spec,
    )
    one, count = solution(config, fresh), 1 + config.num_models
    solved = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), one)
    solved = dataclasses.replace(solved, radius=jnp.broadcast_to(one.radius, (count,)))
    return dataclasses.replace(fresh, solved=solved)


def act(
    config: Config, state: State, observation: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """An action for each observation [..., 2 n + A], by the policy in training; without a key, by the robust policy."""
    state.spec.observation.check("observation", observation)
    if key is None:
        return policies.from_unit(choose(config, state, observation).action, state.spec.action), {}
    return sac.act(learner_config(config), state.learner, parts(state.learner.spec, observation)[0], key)


def propose(config: Config, state: State, params: PyTree, observation: jax.Array, key: jax.Array) -> PyTree:
    """Parameters [N, ...] for N episodes: those in use, with the first d of their numbers those of the stage's model.

    In stage 0 they are uniform. In a family of `envs.uncertain` they are all that there are.
    """
    uniform = jax.random.uniform(key, (observation.shape[0], config.num_params))
    return proposals.put(params, jnp.where(state.finished == 0, uniform, state.model))


# -------------------------------------------------------------------------------- what is seen, and settings


def within(spec: Spec) -> Spec:
    """The spec of the environment that an `envs.memory.Stacked` holds."""
    observation, actions = spec.observation, policies.vector_size(spec.action)
    if isinstance(observation, Box) and len(observation.shape) == 1:
        size, rest = divmod(observation.shape[0] - actions, 2)
        bounds = observation.bounds()
        twice = all(np.array_equal(bound[:size], bound[size : 2 * size]) for bound in bounds)
        if size > 0 and not rest and twice and all(np.all(np.isinf(bound[2 * size :])) for bound in bounds):
            low, high = (tuple(float(x) for x in bound[:size]) for bound in bounds)
            return Spec(Box((size,), low, high, observation.dtype), spec.action)
    raise ValueError(
        f"the environment shows {observation}, expected a vector (s_t, s_{{t-1}}, a_{{t-1}}) with {actions} numbers "
        f"for the last action: wrap the environment in jaxrl.envs.memory.Stacked"
    )


def parts(inner: Spec, observation: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The present observation [..., n], the last one [..., n], and the action since [..., A], in its own units."""
    size = math.prod(inner.observation.shape)
    return observation[..., :size], observation[..., size : 2 * size], observation[..., 2 * size :]


def is_start(now: jax.Array, before: jax.Array, taken: jax.Array) -> jax.Array:
    """Whether there was no step before an observation, of these parts, [...] bool."""
    return jnp.all(now == before, axis=-1) & jnp.all(taken == 0, axis=-1)


def check_start(spec: Spec, observation: jax.Array) -> None:
    """Raises ValueError unless `observation` is what an `envs.memory.Stacked` shows at a reset, (s, s, 0)."""
    if not is_start(*parts(within(spec), observation)):
        raise ValueError(
            f"the environment shows {observation} at a reset, expected (s_t, s_{{t-1}}, a_{{t-1}}) = (s, s, 0): wrap "
            f"it in jaxrl.envs.memory.Stacked"
        )


def unstacked(state: State, batch: Transition) -> Transition:
    """The batch as the environment within shows it."""
    now, following = (parts(state.learner.spec, x)[0] for x in (batch.observation, batch.next_observation))
    return dataclasses.replace(batch, observation=now, next_observation=following, extras={})


def learner_config(config: Config) -> sac.Config:
    """The configuration of SAC that has the settings of this one."""
    shared = {field.name for field in dataclasses.fields(sac.Config)} & {f.name for f in dataclasses.fields(config)}
    return sac.Config(**{name: getattr(config, name) for name in shared})


def predictor_module(config: Any, size: int) -> sac.Critic:
    """A network of s [..., n] and an action in [-1, 1]^A, with `size` outputs."""
    return sac.Critic(sac.critic_sizes(config), config.activation, size)


def predict(config: Any, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """T(s, a) = s + f(s, a), [..., n], for an action in [-1, 1]^A."""
    change: Any = predictor_module(config, observation.shape[-1]).apply(params, observation, action)
    return observation + change


# ------------------------------------------------------------------------------------- the robust policy


def choose(config: Config, state: State, observation: jax.Array) -> Choice:
    """What the robust policy does at each observation [..., 2 n + A]: j*, its action and its value.

    The stage in training counts as one that is over, until what it learned is gathered.
    """
    settings, inner = learner_config(config), state.learner.spec
    now, before, taken = parts(inner, observation)

    def judged(stage: Solution) -> tuple[jax.Array, jax.Array, jax.Array]:
        action = sac.actor(settings, inner, {"actor": stage.actor}, now).mode()
        value = jnp.min(sac.critics(settings, stage.critics, now, action)[..., 0], axis=0)
        predicted = predict(config, stage.predictor, before, policies.to_unit(taken, inner.action))
        return action, value, jnp.sum(jnp.abs(predicted - now), axis=-1) <= stage.radius

    stages = gather(state, jax.tree.map(lambda leaf: leaf[None], solution(config, state))).solved
    actions, values, fits = jax.vmap(judged)(stages)
    index = jnp.arange(1 + config.num_models)
    learned = (index > 0) & (index < state.finished + state.training)
    valid = jnp.expand_dims(learned, tuple(range(1, fits.ndim))) & (fits | is_start(now, before, taken))
    stage = jnp.where(jnp.any(valid, axis=0), jnp.argmin(jnp.where(valid, values, jnp.inf), axis=0), 0)
    action = jnp.take_along_axis(actions, stage[None, ..., None], axis=0)[0]
    return Choice(action, jnp.take_along_axis(values, stage[None], axis=0)[0], stage)


def promise(config: Config, state: State, observation: jax.Array) -> jax.Array:
    """The discounted return that the robust policy expects from each observation [..., 2 n + A], [...]."""
    return choose(config, state, observation).value / config.reward_scale


# -------------------------------------------------------------------------------------------- stages


def solution(config: Config, state: State) -> Solution:
    """What the stage in training would leave behind now."""
    actor = state.learner.params["actor"]
    return Solution(actor, state.params["judge"], state.params["predictor"], jnp.asarray(config.radius, float))


def gather(state: State, solutions: Solution) -> State:
    """The state in which k more stages are over, that left `solutions` [k, ...]; those beyond num_models are lost."""
    slots = state.finished + jnp.arange(len(solutions.radius))
    solved = jax.tree.map(lambda over, new: over.at[slots].set(new, mode="drop"), state.solved, solutions)
    finished = state.finished + len(solutions.radius)
    return dataclasses.replace(state, solved=solved, finished=finished, training=jnp.array(False))


def with_radius(state: State, radius: jax.Array, count: int) -> State:
    """The state in which `count` stages, those that were over last, have this rho."""
    index = jnp.arange(len(state.solved.radius))
    newest = (index >= state.finished - count) & (index < state.finished)
    radius = jnp.where(newest, radius, state.solved.radius)
    return dataclasses.replace(state, solved=dataclasses.replace(state.solved, radius=radius))


def begin(config: Config, state: State, model: jax.Array, key: jax.Array) -> State:
    """The state at the beginning of a stage: fresh networks for the parameters `model` [d], in the unit box."""
    fresh = types.default_floats(init(config, state.spec, key))
    model = jnp.asarray(model, state.model.dtype)
    return dataclasses.replace(fresh, solved=state.solved, finished=state.finished, model=model)


# -------------------------------------------------------------------------------------------- losses


def judge_target(config: Config, state: State, window: Transition) -> jax.Array:
    """What Q_j regresses on, for a window [m, B] of observations s: y [B, 1]."""
    settings, ahead = learner_config(config), returns.bootstrap(window, config.discount)
    action = sac.actor(settings, state.learner.spec, state.learner.params, ahead.observation).mode()
    outputs = laws.smallest(settings.critic, sac.critics(settings, state.target, ahead.observation, action))
    rewards = sac.rewards(settings, state.learner, ahead.returns)
    return settings.critic.targets(outputs, rewards, ahead.discount, 0.0)


def predictor_loss(params: Any, config: Config, state: State, window: Transition) -> jax.Array:
    """J_T over the first rows of a window [m, B] of observations s."""
    action = policies.to_unit(window.action[0], state.spec.action)
    predicted = predict(config, params, window.observation[0], action)
    return jnp.mean(jnp.sum(jnp.abs(predicted - window.next_observation[0]), axis=-1))


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, Metrics]:
    """One update of SAC, and one gradient step of Q_j and T_j, on windows [m, B] of a replay."""
    check_batch(state.spec, batch)
    settings, window = learner_config(config), unstacked(state, batch)
    after, metrics = sac.update(settings, state.learner, window, key)

    targets, judge = judge_target(config, state, window), state.params["judge"]
    slope, judged = jax.grad(critic_loss, has_aux=True)(judge, settings, state.learner, window, targets)
    error, change = jax.value_and_grad(predictor_loss)(state.params["predictor"], config, state, window)
    state = td3.descend(settings, state, "judge", slope)
    faster = dataclasses.replace(settings, learning_rate=config.predictor_learning_rate)
    state = td3.descend(faster, state, "predictor", change)

    slow = optax.incremental_update(state.params["judge"], state.target, config.target_rate)
    return dataclasses.replace(state, learner=after, target=slow), metrics | {
        "judge_loss": judged["critic_loss"],
        "judge_value": judged["value"],
        "prediction_error": error,
    }
