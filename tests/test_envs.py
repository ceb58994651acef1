from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxrl import envs
from jaxrl.envs import probes, tiny
from jaxrl.mdp import MDP
from jaxrl.types import Box, Discrete, Environment

NAMES = [*envs.names("jaxrl"), "gymnax/CartPole-v1", "gymnax/Pendulum-v1"]
PROBES = [name for name in envs.names("jaxrl") if "probe" in name]
VARIANTS = [(name, {}) for name in NAMES] + [(name, {"continuous": True}) for name in PROBES]
LANES, LENGTH = 8, 20


def garnet(seed=0, states=5, actions=3, full_reward=False):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 0.5), (states, actions))
    transition[..., 1] = 0  # a state that is never reached
    transition /= transition.sum(-1, keepdims=True)
    reward = rng.normal(size=(states, actions, states) if full_reward else (states, actions))
    initial = np.array([0.0, 0.5, 0.25, 0.25, 0.0])
    return MDP(transition.astype(np.float32), reward.astype(np.float32), 0.9, initial)


def made(name, settings):
    return tiny.Tabular(garnet()) if name == "tabular" else envs.make(name, **settings)


def types_of(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name, leaf.weak_type), tree)


def random_actions(space):
    rng = np.random.default_rng(0)
    if isinstance(space, Discrete):
        return jnp.asarray(rng.integers(space.n, size=(LENGTH, LANES)), jnp.int32)
    low, high = np.nan_to_num(space.bounds(), neginf=-1.0, posinf=1.0)
    return jnp.asarray(low + (high - low) * rng.uniform(size=(LENGTH, LANES, *space.shape)), jnp.float32)


# ---------------------------------------------------------------------------------------- protocol


@pytest.mark.parametrize(("name", "settings"), [*VARIANTS, ("tabular", {})])
def test_protocol(name, settings):
    env = made(name, settings)
    spec, params = env.spec, env.params()
    assert isinstance(env, Environment)
    assert isinstance(env.max_steps, int)
    assert hash(env) == hash(env)
    assert hash(spec) == hash(env.spec)

    state, observation = jax.eval_shape(env.reset, params, jax.random.key(0))
    successor, step = jax.eval_shape(env.step, params, state, spec.action.zeros(), jax.random.key(0))
    assert types_of(successor) == types_of(state)
    assert types_of(observation) == types_of(step.observation)
    assert (step.observation.shape, step.observation.dtype) == (spec.observation.shape, spec.observation.dtype)
    assert types_of(step.terminated) == types_of(step.truncated) == ((), "bool", False)
    assert types_of(step.reward) == ((), "float32", False)
    assert all(types_of(leaf) == ((), "float32", False) for leaf in step.metrics.values())

    @jax.jit
    def play(reset_keys, actions, step_keys):
        def body(states, inputs):
            return jax.vmap(env.step, (None, 0, 0, 0))(params, states, *inputs)

        states, first = jax.vmap(env.reset, (None, 0))(params, reset_keys)
        return first, jax.lax.scan(body, states, (actions, step_keys))[1]

    keys = jax.random.split(jax.random.key(1), (LENGTH + 1, LANES))
    first, steps = play(keys[0], random_actions(spec.action), keys[1:])
    assert steps.observation.shape == (LENGTH, LANES, *spec.observation.shape)
    assert np.all(np.isfinite(steps.reward))
    if isinstance(spec.observation, Box):
        going = np.cumsum(steps.terminated, 0) - steps.terminated == 0  # gymnax's bounds hold until the end
        low, high = spec.observation.bounds()
        for value in (np.asarray(first), np.asarray(steps.observation)[going]):
            assert np.all((value >= low) & (value <= high))


def test_keys_matter_at_reset_and_nowhere_else():
    env = envs.make("jaxrl/pendulum")
    reset, step = (jax.jit(function) for function in (env.reset, env.step))
    params = env.params()
    state, first = reset(params, jax.random.key(0))
    np.testing.assert_array_equal(first, reset(params, jax.random.key(0))[1])
    assert not np.allclose(first, reset(params, jax.random.key(1))[1])
    one, other = (step(params, state, jnp.ones(1), jax.random.key(seed))[1] for seed in (0, 1))
    np.testing.assert_array_equal(one.observation, other.observation)


@pytest.mark.parametrize("name", envs.names("jaxrl"))
def test_double_precision(name):
    single = envs.make(name)
    with jax.enable_x64(True):
        env = envs.make(name)
        assert isinstance(env, type(single))
        params = env.params()
        state, observation = jax.eval_shape(env.reset, params, jax.random.key(0))
        successor, step = jax.eval_shape(env.step, params, state, env.spec.action.zeros(), jax.random.key(0))
        assert types_of(successor) == types_of(state)
        assert observation.dtype == step.observation.dtype == env.spec.observation.dtype == "float64"
        assert step.reward.dtype == "float64"


# -------------------------------------------------------------------------------------------- make


def test_the_same_settings_give_the_same_environment():
    env = envs.make("jaxrl/pendulum", max_steps=7)
    assert env is envs.make("jaxrl/pendulum", max_steps=7)
    assert env.max_steps == 7
    assert envs.make("jaxrl/pendulum").max_steps == 200
    assert envs.make("jaxrl/probe_termination", length=3, max_steps=5) is envs.make(
        "jaxrl/probe_termination", max_steps=5, length=3
    )
    assert envs.make("gymnax/CartPole-v1") is envs.make("gymnax/CartPole-v1")


def test_names_are_those_of_the_suites():
    assert set(envs.names()) == {name for suite in envs.SUITES for name in envs.names(suite)}
    assert {name.partition("/")[0] for name in envs.names()} == set(envs.SUITES)
    with pytest.raises(ValueError, match="no suite 'atari', expected one of " + ", ".join(envs.SUITES)):
        envs.names("atari")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("jaxrl/pendulm", {}, r"no environment 'jaxrl/pendulm'; did you mean jaxrl/pendulum.*jaxrl.envs.names\(\)"),
        ("cartpole-v1", {}, "did you mean gymnax/CartPole-v1"),
        ("ant", {}, "did you mean brax/ant"),
        ("atari/breakout", {}, r"no environment 'atari/breakout'.*jaxrl.envs.names\(\)"),
        ("jaxrl/tabular", {}, r"needs a model: jaxrl.envs.tiny.Tabular\(model\)"),
        ("jaxrl/pendulum", {"backend": "spring"}, "no backend 'spring'; this suite has no choice"),
        ("jaxrl/pendulum", {"gravity": 1}, "unexpected keyword argument 'gravity'"),
        ("jaxrl/pendulum", {"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ("jaxrl/probe_termination", {"max_steps": 4}, "max_steps - length must be an integer of at least 1, got 0"),
        ("jaxrl/linear_quadratic", {"A": [[1.0]]}, "the setting 'A' is a list, expected something hashable"),
        ("jaxrl/linear_quadratic", {"A": ((1.0,),)}, r"B has shape \(2, 1\), expected \(1, 1\)"),
    ],
)
def test_what_cannot_be_made_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **settings)


# ---------------------------------------------------------------------------------------- pendulum


def gymnasium_pendulum(angle, speed, action, params):
    """Gymnasium's own step."""
    pendulum = pytest.importorskip("gymnasium.envs.classic_control.pendulum")
    env = pendulum.PendulumEnv(g=params.gravity)
    env.m, env.l, env.dt = params.mass, params.length, params.dt
    env.max_speed, env.max_torque = params.max_speed, params.max_torque
    env.state, env.last_u = np.array([angle, speed]), None
    observation, reward, terminated, truncated, _ = env.step(action)
    return env.state, observation, reward, terminated or truncated


def numpy_pendulum(angle, speed, action, params):
    """The equations, in double precision."""
    torque = min(max(action[0], -params.max_torque), params.max_torque)
    wrapped = np.arctan2(np.sin(angle), np.cos(angle))
    inertia = params.mass * params.length**2 / 3
    moment = params.mass * params.gravity * params.length / 2 * np.sin(angle) + torque
    new_speed = min(max(speed + moment / inertia * params.dt, -params.max_speed), params.max_speed)
    new_angle = angle + new_speed * params.dt
    observation = np.array([np.cos(new_angle), np.sin(new_angle), new_speed])
    return np.array([new_angle, new_speed]), observation, -(wrapped**2 + speed**2 / 10 + torque**2 / 1000), False


@functools.cache
def pendulum_steps(num=200):
    """Random steps of pendulums of all kinds: what went in, and what came out."""
    rng = np.random.default_rng(0)
    params = tiny.PendulumParams(
        gravity=rng.uniform(5, 15, num),
        mass=rng.uniform(0.5, 2, num),
        length=rng.uniform(0.5, 2, num),
        max_speed=rng.uniform(4, 8, num),
        max_torque=rng.uniform(1, 2, num),
        dt=rng.uniform(0.02, 0.1, num),
    )
    angle, speed, action = rng.uniform(-9, 9, num), rng.uniform(-4, 4, num), rng.uniform(-2, 2, (num, 1))
    single = jax.tree.map(jnp.float32, (params, tiny.PendulumState(angle, speed), action))
    keys = jax.random.split(jax.random.key(0), num)
    state, step = jax.device_get(jax.jit(jax.vmap(tiny.Pendulum().step))(*single, keys))
    return (angle, speed, action, params), (np.stack([state.angle, state.speed], 1), step)


@pytest.mark.parametrize("oracle", [numpy_pendulum, gymnasium_pendulum])
def test_pendulum_is_gymnasiums(oracle):
    inputs, (state, step) = pendulum_steps()
    expected = [oracle(*jax.tree.map(lambda leaf: leaf[lane], inputs)) for lane in range(200)]  # noqa: B023
    states, observations, rewards, ended = (np.array(part) for part in zip(*expected, strict=True))
    np.testing.assert_allclose(state, states, atol=2e-5)
    np.testing.assert_allclose(step.observation, observations, atol=2e-5)
    np.testing.assert_allclose(step.reward, rewards, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(step.terminated | step.truncated, ended)


def test_pendulum_starts_anywhere():
    env = tiny.Pendulum()
    state, _ = jax.vmap(env.reset, (None, 0))(env.params(), jax.random.split(jax.random.key(0), 5000))
    for value, bound in ((state.angle, np.pi), (state.speed, 1)):
        assert scipy.stats.kstest(value, scipy.stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


# -------------------------------------------------------------------------------------- point mass


def test_point_mass_falls_on_a_parabola():
    env = tiny.PointMass()
    goal, mass, force = np.array([0.5, -1.0]), 2.0, np.array([0.75, -0.5])
    params = env.params().replace(goal=jnp.asarray(goal, jnp.float32), mass=mass)
    start = tiny.PointMassState(position=jnp.array([-1.0, 0.5]), velocity=jnp.array([0.25, 1.0]))
    steps = jax.lax.scan(
        lambda state, key: env.step(params, state, jnp.asarray(force, jnp.float32), key),
        start,
        jax.random.split(jax.random.key(0), 30),
    )[1]
    time = 0.1 * np.arange(31)[:, None]
    position = np.array([-1.0, 0.5]) + np.array([0.25, 1.0]) * time + force / mass * time**2 / 2
    velocity = np.array([0.25, 1.0]) + force / mass * time
    np.testing.assert_allclose(steps.observation, np.hstack([goal - position, velocity])[1:], atol=1e-5)
    cost = ((position - goal) ** 2).sum(1) + 0.01 * (force**2).sum()
    np.testing.assert_allclose(steps.reward, -cost[:-1], rtol=1e-5)


# -------------------------------------------------------------------------------- linear-quadratic


def system(seed, states=3, actions=2, noise=0.3):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(states, states))
    A *= rng.uniform(0.5, 1.2) / np.abs(np.linalg.eigvals(A)).max()  # some are unstable
    root_q, root_r = rng.normal(size=(states, states)), rng.normal(size=(actions, actions))
    Q, R = root_q @ root_q.T + 0.1 * np.eye(states), root_r @ root_r.T + 0.1 * np.eye(actions)
    return A, rng.normal(size=(states, actions)), Q, R, noise


def scipy_optimum(A, B, Q, R, noise, discount):
    value = scipy.linalg.solve_discrete_are(np.sqrt(discount) * A, np.sqrt(discount) * B, Q, R)
    gain = discount * np.linalg.inv(R + discount * B.T @ value @ B) @ B.T @ value @ A
    return gain, value, discount / (1 - discount) * noise**2 * np.trace(value)


@pytest.mark.parametrize(("precise", "tolerance"), [(True, 1e-9), (False, 1e-3)])
def test_linear_quadratic_optimum_is_scipys(precise, tolerance):
    with jax.enable_x64(precise):
        optimal = jax.jit(tiny.LinearQuadratic.optimal)
        for seed in range(10):
            discount = [0.5, 0.9, 0.99, 0.999][seed % 4]
            leaves = system(seed)
            solution = optimal(tiny.LinearQuadraticParams(*(jnp.asarray(leaf, float) for leaf in leaves)), discount)
            for got, expected in zip(solution, scipy_optimum(*leaves, discount), strict=True):
                np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_linear_quadratic_default_has_its_optimum_within_the_bounds():
    env = tiny.LinearQuadratic()
    gain, _, _ = scipy_optimum(*(np.array(leaf) for leaf in (env.A, env.B, env.Q, env.R, env.noise)), 0.99)
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    assert np.abs(corners @ gain.T).max() < env.max_action / 2


def test_linear_quadratic_satisfies_the_bellman_equation():
    """V(x) = r(x, u) + discount E V(x') under the optimal action, the expectation over steps of the environment."""
    env = tiny.LinearQuadratic(noise=0.5)
    params, discount, num = env.params(), 0.9, 100_000
    gain, value, offset = scipy_optimum(*(np.array(leaf) for leaf in (env.A, env.B, env.Q, env.R, 0.5)), discount)
    state = np.array([0.75, -0.5])
    keys = jax.random.split(jax.random.key(0), num)
    action = jnp.asarray(-gain @ state, jnp.float32)
    step = jax.jit(jax.vmap(env.step, (None, None, None, 0)))(params, jnp.asarray(state, jnp.float32), action, keys)[1]
    successor = np.asarray(step.observation, float)
    targets = step.reward - discount * (np.einsum("ni,ij,nj->n", successor, value, successor) + offset)
    expected = -(state @ value @ state + offset)
    assert abs(np.mean(targets) - expected) < 4 * np.std(targets) / np.sqrt(num)


# ----------------------------------------------------------------------------------------- tabular


@pytest.mark.parametrize("full_reward", [False, True])
def test_tabular_draws_from_its_model(full_reward):
    model, num = garnet(full_reward=full_reward), 20_000
    env = tiny.Tabular(model, max_steps=12)
    params = env.params()
    keys = jax.random.split(jax.random.key(0), (4, num))
    states, observations = jax.jit(jax.vmap(env.reset, (None, 0)))(params, keys[0])
    assert_frequencies(states, model.initial)
    np.testing.assert_array_equal(observations.argmax(-1), states)
    np.testing.assert_array_equal(observations.sum(-1), 1)
    advance = jax.jit(jax.vmap(env.step, (None, None, None, 0)))
    for step_keys, state, action in zip(keys[1:], (0, 2, 4), (0, 1, 2), strict=True):
        successors, step = advance(params, jnp.int32(state), jnp.int32(action), step_keys)
        assert_frequencies(successors, model.transition[state, action])
        np.testing.assert_array_equal(step.observation.argmax(-1), successors)
        rewards = np.broadcast_to(model.reward[state, action], 5)
        np.testing.assert_array_equal(step.reward, rewards[successors])
        assert not np.any(step.terminated | step.truncated)


def assert_frequencies(draws, law):
    law = np.asarray(law, float)
    counts = np.bincount(draws, minlength=len(law))
    assert np.all(counts[law == 0] == 0)
    assert scipy.stats.chisquare(counts[law > 0], len(draws) * law[law > 0] / law.sum()).pvalue > 1e-3


def test_tabular_takes_its_model_as_parameters():
    models = [garnet(seed) for seed in (0, 1)]
    env = tiny.Tabular(models[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    keys = jax.random.split(jax.random.key(3), 2)
    both = jax.jit(jax.vmap(env.step, (0, None, None, 0)))(stacked, jnp.int32(2), jnp.int32(1), keys)[1]
    for lane in (0, 1):
        alone = tiny.Tabular(models[lane])
        key = jax.random.split(jax.random.key(3), 2)[lane]
        step = jax.jit(alone.step)(alone.params(), jnp.int32(2), jnp.int32(1), key)[1]
        np.testing.assert_array_equal(both.observation[lane], step.observation)
        np.testing.assert_array_equal(both.reward[lane], models[lane].reward[2, 1])


def test_tabular_is_hashable_and_checks_its_model():
    env = tiny.Tabular(garnet())
    assert env == env and env != tiny.Tabular(garnet())
    assert len({env, dataclasses.replace(env)}) == 2
    with pytest.raises(ValueError, match=r"discount is 1.0"):
        tiny.Tabular(garnet().replace(discount=1.0))


# ------------------------------------------------------------------------------------------ probes


def play(env, values, key, horizon):
    """Observations and rewards of one episode under the actions of `values`, past any time limit."""
    params, step = env.params(), jax.jit(env.step)
    table = np.asarray(values.observation)
    state, observation = jax.jit(env.reset)(params, key)
    observations, rewards = [], []
    for _ in range(horizon):
        row = int(np.argmin(np.abs(table - np.asarray(observation)).sum(1)))
        np.testing.assert_array_equal(table[row], observation)
        state, result = step(params, state, values.action[row], jax.random.key(0))
        observations.append(row)
        rewards.append(float(result.reward))
        observation = result.observation
        assert not result.truncated
        if result.terminated:
            break
    return observations, rewards


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", PROBES)
def test_probe_values_are_its_returns(name, continuous):
    env, discount, horizon = envs.make(name, continuous=continuous), 0.5, 30
    values = env.values(discount)
    seen = {}
    for seed in range(6):
        observations, rewards = play(env, values, jax.random.key(seed), horizon)
        total = 0.0
        for row, reward in zip(observations[::-1], rewards[::-1], strict=True):
            total = reward + discount * total
            seen[row] = total  # the earliest visit stays
        assert len(rewards) <= env.max_steps or name == "jaxrl/probe_truncation"
    assert sorted(seen) == list(range(len(values.value)))
    np.testing.assert_allclose([seen[row] for row in sorted(seen)], values.value, rtol=1e-6)
    assert isinstance(env.spec.action, Box if continuous else Discrete)


@pytest.mark.parametrize("name", ["jaxrl/probe_action", "jaxrl/probe_context"])
@pytest.mark.parametrize("continuous", [False, True])
def test_probe_actions_are_the_best(name, continuous):
    env = envs.make(name, continuous=continuous)
    candidates = jnp.linspace(-1, 1, 81)[:, None] if continuous else jnp.arange(2)
    values = env.values(0.5)
    step = jax.vmap(env.step, (None, None, 0, None))
    for observation, value, action in zip(*values, strict=True):
        rewards = np.asarray(step(env.params(), observation, candidates, jax.random.key(0))[1].reward)
        assert np.sum(rewards >= rewards.max() - 1e-6) == 1
        np.testing.assert_allclose(candidates[rewards.argmax()], action, atol=1e-6)
        np.testing.assert_allclose(rewards.max(), value, atol=1e-6)


@pytest.mark.parametrize("env", [probes.Truncation(), probes.Termination()])
def test_probe_values_need_the_right_bootstrap(env):
    """Iterating V = r + discount V' over an episode gives the values, with the bootstrap that the flags ask for."""
    discount, size = 0.8, 4
    value = np.zeros((2, size))  # bootstrap as flagged, and the other way round
    state, _ = env.reset(env.params(), jax.random.key(0))
    flags = []
    for _ in range(size):
        state, step = env.step(env.params(), state, jnp.int32(0), jax.random.key(0))
        flags.append(bool(step.terminated))
    for _ in range(200):
        for row in range(size):
            ahead = discount * value[:, (row + 1) % size]
            last = row == size - 1
            value[:, row] = 1 + np.where([flags[row], last and not flags[row]], 0, ahead)
    np.testing.assert_allclose(value[0], env.values(discount).value, rtol=1e-6)
    assert np.abs(value[1] - value[0]).min() > 1
