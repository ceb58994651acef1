"""Random wrappers: their laws against those of SciPy, and that they leave everything else as it is."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

from jaxrl import envs, rollout
from jaxrl.envs import stochastic, tiny
from jaxrl.envs.stochastic import drift, wrappers
from jaxrl.envs.stock import StockAugmented
from jaxrl.types import Box, Discrete, Environment, Spec, Step

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

LENGTH, LANES = 50, 40
RANGES = {"mass": (0.5, 2.5), "length": (0.5, 1.5)}


@dataclasses.dataclass(frozen=True)
class Echo:
    """Observes the action that it took, and two constants; the reward is 3."""

    discrete: bool = False
    max_steps: int = 1000

    @property
    def spec(self):
        return Spec(Box((3,), -1.0, 5.0), Discrete(4) if self.discrete else Box((1,), -1.0, 1.0))

    def params(self):
        return {"two": jnp.float32(2.0)}

    def reset(self, params, key):
        return (), jnp.array([0.0, 2.0, 5.0])

    def step(self, params, state, action, key):
        seen = jnp.stack([jnp.reshape(action, ()).astype(jnp.float32), params["two"], jnp.float32(5.0)])
        no = jnp.zeros((), bool)
        return state, Step(seen, jnp.float32(3.0), terminated=no, truncated=no)


@functools.partial(jax.jit, static_argnums=0)
def play(env, params, actions):
    """Episodes in all lanes: the first observations, the states and the steps [T, N]."""
    keys = jax.random.split(jax.random.key(0), (LENGTH + 1, LANES))
    state, first = jax.vmap(env.reset, (None, 0))(params, keys[0])

    def body(state, inputs):
        state, step = jax.vmap(env.step, (None, 0, 0, 0))(params, state, *inputs)
        return state, (state, step)

    return first, *jax.lax.scan(body, state, (actions, keys[1:]))[1]


UNIFORM = np.random.default_rng(0).uniform(-1, 1, (LENGTH, LANES, 1)).astype(np.float32)
INTEGERS = np.random.default_rng(0).integers(4, size=(LENGTH, LANES)).astype(np.int32)


def probability_is(events, probability):
    """Independent events, against the exact test of their number."""
    assert scipy.stats.binomtest(int(np.sum(events)), np.size(events), probability).pvalue > 1e-3


def law_is(values, law):
    assert scipy.stats.kstest(np.ravel(values), law).pvalue > 1e-3


# ----------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize("discrete", [False, True])
def test_a_sticky_action_is_the_one_before(discrete):
    env = stochastic.sticky_actions(Echo(discrete), 0.25)
    actions = INTEGERS if discrete else UNIFORM
    taken = np.asarray(play(env, env.params(), actions)[2].observation)[..., 0]
    own = actions.reshape(LENGTH, LANES)
    assert_array_equal(taken[0], own[0])
    stuck = (taken[1:] == taken[:-1]) & (own[1:] != taken[:-1])
    assert np.all(stuck | (taken[1:] == own[1:]))
    probability_is(stuck[own[1:] != taken[:-1]], 0.25)
    always = play(env, env.params().replace(strength=jnp.float32(1.0)), actions)[2].observation
    assert_array_equal(always[..., 0], np.broadcast_to(own[0], own.shape))


@pytest.mark.parametrize("discrete", [False, True])
def test_a_corrupted_action_is_uniform(discrete):
    env = stochastic.corrupted_actions(Echo(discrete), 0.3)
    own = np.full_like(INTEGERS if discrete else UNIFORM, 3 if discrete else 0.5)
    taken = np.asarray(play(env, env.params(), own)[2].observation)[..., 0]
    other = taken != own.reshape(taken.shape)
    if discrete:
        probability_is(other, 0.3 * 3 / 4)
        counts = np.bincount(taken[other].astype(int), minlength=3)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    else:
        probability_is(other, 0.3)
        law_is(taken[other], scipy.stats.uniform(-1, 2).cdf)


# ------------------------------------------------------------------------- observations and rewards


def test_noise_of_observations_is_normal_and_leaves_the_state_alone():
    inner = envs.make("jaxrl/pendulum")
    env = stochastic.noisy_observations(inner, (0.1, 0.5, 2.0))
    assert env.spec == Spec(Box((3,)), inner.spec.action)
    first, states, steps = play(env, env.params(), UNIFORM)
    angle, speed = np.asarray(states.env.angle), np.asarray(states.env.speed)
    noise = np.asarray(steps.observation) - np.stack([np.cos(angle), np.sin(angle), speed], -1)
    for column, std in enumerate((0.1, 0.5, 2.0)):
        law_is(noise[..., column], scipy.stats.norm(0, std).cdf)
    assert np.max(np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3))) < 0.1
    assert np.all(np.abs(np.linalg.norm(first[:, :2], axis=1) - 1) > 1e-6)  # the first observation is noisy, too
    torque = 3 * UNIFORM[1:, :, 0]
    expected = np.clip(speed[:-1] + 0.05 * (15 * np.sin(angle[:-1]) + torque), -8, 8)
    assert_allclose(speed[1:], expected, atol=1e-4)


def test_masked_elements_are_zero_independently():
    env = stochastic.masked_observations(Echo(), 0.4)
    assert env.spec.observation == Echo().spec.observation
    first, _, steps = play(env, env.params(), np.full_like(UNIFORM, 0.5))
    seen = np.concatenate([np.asarray(first)[None], np.asarray(steps.observation)])[..., 1:]
    hidden = seen == 0
    assert_array_equal(seen, np.where(hidden, 0, [2.0, 5.0]))
    probability_is(hidden, 0.4)
    probability_is(np.all(hidden, -1), 0.16)
    env = stochastic.masked_observations(Echo(), (1.0, 0.0, 0.0))
    seen = play(env, env.params(), np.full_like(UNIFORM, 0.5))[2].observation
    assert_array_equal(seen, np.broadcast_to([0.0, 2.0, 5.0], seen.shape))


def test_a_mask_puts_zero_inside_the_bounds():
    box = dataclasses.replace(Box((2,)), low=(1.0, -2.0), high=(2.0, -1.0))
    assert wrappers.with_zero(box) == Box((2,), (0.0, -2.0), (2.0, 0.0))
    assert wrappers.with_zero(Box((2, 2), 1.0, 2.0)) == Box((2, 2), 0.0, 2.0)


def test_noise_of_rewards_is_normal():
    env = stochastic.random_rewards(Echo(), 0.7)
    steps = play(env, env.params(), UNIFORM)[2]
    law_is(steps.reward, scipy.stats.norm(3, 0.7).cdf)
    assert_array_equal(steps.observation[..., 0], UNIFORM[..., 0])


# ---------------------------------------------------------------------------------- an adversary


def test_the_adversary_has_its_share():
    env = stochastic.MixedActions(Echo(), 0.25)
    assert env.params().adversary == 0
    for adversary, nearest in ((0.5, 0.5), (-7.0, -1.0)):
        params = env.params().replace(adversary=jnp.array([adversary]))
        taken = play(env, params, UNIFORM)[2].observation[..., 0]
        assert_allclose(taken, 0.75 * UNIFORM[..., 0] + 0.25 * nearest, atol=1e-6)


def test_a_proposal_at_each_step_is_the_adversary():
    env = stochastic.MixedActions(Echo(), 0.5)

    def propose(params, observation, key):  # what it saw, the other way round
        return params.replace(adversary=-observation[:, :1])

    def policy(observation, key):
        return jnp.full((2, 1), 0.8), {}

    @jax.jit
    def collect(key):
        lanes = rollout.lanes(env, 2, "fresh", True)
        return rollout.collect(env, policy, lanes, key, 4, propose=propose, each_step=True)[1]

    batch = collect(jax.random.key(0))
    taken = [0.4]
    for _ in range(3):
        taken.append(0.4 - 0.5 * taken[-1])
    assert_allclose(batch.next_observation[..., 0], np.array(taken)[:, None] * np.ones(2), atol=1e-6)


# ------------------------------------------------------------------------------ drifting parameters


def test_a_drift_walks_as_far_as_it_says_and_the_environment_follows():
    inner = envs.uncertain("jaxrl/pendulum", RANGES)
    env = stochastic.Drifting(inner, (0.01, 0.02))
    first, states, steps = play(env, env.params(), UNIFORM)
    walk = np.concatenate([np.broadcast_to(inner.params(), (1, LANES, 2)), np.asarray(states.memory)])
    assert np.all((walk >= 0) & (walk <= 1))
    within = np.all((walk > 0.1) & (walk < 0.9), axis=(0, 2))  # lanes that never came to a wall
    increments = np.diff(walk[:, within], axis=0)
    assert within.sum() > 10
    law_is(increments[..., 0], scipy.stats.norm(0, 0.01).cdf)
    law_is(increments[..., 1], scipy.stats.norm(0, 0.02).cdf)
    mass, length = np.moveaxis(np.asarray(inner.physical(walk[:-1])), -1, 0)
    observed = np.concatenate([np.asarray(first)[None], np.asarray(steps.observation)])
    _, sin, speed = np.moveaxis(observed, -1, 0)
    torque = 3 * UNIFORM[..., 0] / (mass * length**2)
    assert_allclose(speed[1:], np.clip(speed[:-1] + 0.05 * (15 * sin[:-1] / length + torque), -8, 8), atol=1e-4)


def test_a_reflected_walk_stays_uniform():
    env = envs.uncertain("jaxrl/pendulum", {"mass": (2.0, 4.0), "length": (0.5, 1.5)})  # 1 kg, nominal, is -0.5
    low, size = np.array([-0.5, 0.0], np.float32), np.array([1.5, 1.0], np.float32)
    start = low + size * np.random.default_rng(1).uniform(size=(2000, 2)).astype(np.float32)
    walk = jax.jit(drift.walk, static_argnums=0)
    for strength in (0.3, 5.0):
        walked = np.asarray(walk(env, start, strength, jax.random.key(1)))
        for column in (0, 1):
            law_is(walked[:, column], scipy.stats.uniform(low[column], size[column]).cdf)
        assert np.std(walked - start, 0).min() > 0.1
    assert_allclose(walk(env, start, 0.0, jax.random.key(1)), start, atol=1e-6)


def within_two(env):
    return stochastic.sticky_actions(StockAugmented(env, 0.9), 0.5)


@pytest.mark.parametrize("wrap", [lambda env: env, within_two])
def test_parameters_walk_from_episode_to_episode(wrap):
    inner = envs.uncertain(tiny.Pendulum(max_steps=4), RANGES)
    env = wrap(inner)
    propose = stochastic.between_episodes(env, 0.03)
    assert propose is stochastic.between_episodes(wrap(envs.uncertain(tiny.Pendulum(max_steps=4), RANGES)), 0.03)

    def policy(observation, key):
        return jnp.zeros((LANES, 1)), {}

    @jax.jit
    def collect(key):
        lanes = rollout.lanes(env, LANES, "fresh", True)
        return rollout.collect(env, policy, lanes, key, 32, propose=functools.partial(propose, None, None))[1]

    params = collect(jax.random.key(2)).extras["env_params"]
    if env is not inner:
        assert np.all(params.strength == 0.5)
        assert np.all(params.env.stock == 0)
        params = params.env.env
    params = np.asarray(params).reshape(8, 4, LANES, 2)  # episodes of four steps
    assert_array_equal(params, np.broadcast_to(params[:, :1], params.shape))
    walk = np.concatenate([np.broadcast_to(inner.params(), (1, LANES, 2)), params[:, 0]])
    within = np.all((walk > 0.1) & (walk < 0.9), axis=(0, 2))
    assert within.sum() > 10
    law_is(np.diff(walk[:, within], axis=0), scipy.stats.norm(0, 0.03).cdf)


# ------------------------------------------------------------------------------------ all of them


def wrapped(strength):
    pendulum = envs.make("jaxrl/pendulum")
    return [
        stochastic.sticky_actions(pendulum, strength),
        stochastic.corrupted_actions(pendulum, strength),
        stochastic.noisy_observations(pendulum, strength),
        stochastic.masked_observations(pendulum, strength),
        stochastic.random_rewards(pendulum, strength),
        stochastic.MixedActions(pendulum, strength),
        stochastic.Drifting(envs.uncertain(pendulum, RANGES), strength),
    ]


@dataclasses.dataclass(frozen=True)
class FromOnePlace(tiny.Pendulum):
    """A pendulum that starts at the same angle whatever the key, which each wrapper splits."""

    def reset(self, params, key):
        state = tiny.PendulumState(angle=jnp.ones(()), speed=jnp.zeros(()))
        return state, self._observe(state)


def everything(strength):
    env = stochastic.Drifting(envs.uncertain(FromOnePlace(), RANGES), strength)
    for wrapper in (
        stochastic.sticky_actions,
        stochastic.corrupted_actions,
        stochastic.masked_observations,
        stochastic.noisy_observations,
        stochastic.random_rewards,
        stochastic.MixedActions,
    ):
        env = wrapper(env, strength)
    return env


def test_at_strength_0_all_of_them_together_are_the_environment_within():
    plain, env = FromOnePlace(), everything(0.0)
    first, _, steps = play(env, env.params(), UNIFORM)
    start, _, expected = play(plain, plain.params(), UNIFORM)
    assert_array_equal(first, start)
    assert_allclose(steps.observation, expected.observation, atol=1e-4)
    assert_allclose(steps.reward, expected.reward, rtol=1e-4)


@pytest.mark.parametrize("double", [False, True])
def test_protocol(double):
    with jax.enable_x64(double):
        for env in [*wrapped(0.2), everything(0.2)]:
            assert isinstance(env, Environment)
            spec, params = env.spec, env.params()
            state, observation = jax.eval_shape(env.reset, params, jax.random.key(0))
            successor, step = jax.eval_shape(env.step, params, state, spec.action.zeros(), jax.random.key(0))
            assert jax.tree.structure(successor) == jax.tree.structure(state)
            assert jax.tree.leaves(successor) == jax.tree.leaves(state)
            for seen in (observation, step.observation):
                assert (seen.shape, seen.dtype) == (spec.observation.shape, spec.observation.dtype)
            assert step.reward.dtype == ("float64" if double else "float32")
            assert env.max_steps == 200
    same = everything(0.2)
    assert same == everything(0.2)
    assert hash(same) == hash(everything(0.2))
    assert same != everything(0.3)
    assert repr(stochastic.sticky_actions(Echo(), 0.5)) == "sticky_actions(Echo(discrete=False, max_steps=1000), 0.5)"


def test_strengths_are_swept_with_vmap():
    env = stochastic.random_rewards(Echo(), 0.0)
    strengths = jnp.array([0.0, 1.0, 10.0])
    params = stochastic.StochasticParams({"two": jnp.full(3, 2.0)}, strengths)
    rewards = jax.vmap(lambda params: play(env, params, UNIFORM)[2].reward)(params)
    noise = np.asarray(rewards) - 3
    assert_array_equal(noise[0], 0)
    assert_allclose(noise[2], 10 * noise[1], atol=1e-5)
    law_is(noise[1], scipy.stats.norm.cdf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stochastic.sticky_actions(Echo(), 1.5), r"sticky_actions: probability is 1.5, expected in \[0, 1\]"),
        (lambda: stochastic.corrupted_actions(Echo(), -0.1), r"probability is -0.1, expected in \[0, 1\]"),
        (lambda: stochastic.noisy_observations(Echo(), float("nan")), "std is nan, expected at least 0"),
        (lambda: stochastic.noisy_observations(Echo(), (0.1, 0.2)), r"2 strengths for observations of shape \(3,\)"),
        (lambda: stochastic.masked_observations(Echo(), [0.1] * 3), r"\[0.1, .*\], expected a number, or a tuple"),
        (lambda: stochastic.random_rewards(Echo(), float("inf")), "std is inf, expected at least 0"),
        (lambda: stochastic.MixedActions(Echo(), 2.0), r"weight is 2.0, expected in \[0, 1\]"),
        (lambda: stochastic.MixedActions(Echo(discrete=True), 0.1), r"acts in Discrete.*, expected a Box"),
        (lambda: stochastic.Drifting(Echo(), 0.1), "Drifting.env is Echo.*, expected a family, jaxrl.envs.uncertain"),
        (
            lambda: stochastic.Drifting(envs.uncertain("jaxrl/pendulum", RANGES), (0.1,)),
            "Drifting.strength has 1 numbers, expected one for each of mass, length",
        ),
        (lambda: stochastic.between_episodes(Echo(), 0.1), "Echo.* has no family within, expected one, made by"),
        (
            lambda: stochastic.between_episodes(envs.uncertain("jaxrl/pendulum", RANGES), -0.1),
            "strength is -0.1, expected at least 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
