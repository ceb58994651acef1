from __future__ import annotations

import copy
import importlib
import importlib.metadata
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs
from jaxrl.envs import gymnax as gymnax_suite
from jaxrl.envs import tiny
from jaxrl.types import Box, Discrete, Environment, Spec


def types_of(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf).name, leaf.weak_type), tree)


def check_types(env):
    """A scan can carry the state, and the spec says what is observed."""
    assert isinstance(env, Environment)
    spec, params = env.spec, env.params()
    state, observation = jax.eval_shape(env.reset, params, jax.random.key(0))
    successor, step = jax.eval_shape(env.step, params, state, spec.action.zeros(), jax.random.key(0))
    assert types_of(successor) == types_of(state)
    for observed in (observation, step.observation):
        assert types_of(observed) == (spec.observation.shape, spec.observation.dtype, False)
    assert types_of(step.terminated) == types_of(step.truncated) == ((), "bool", False)
    assert types_of(step.reward) == ((), "float32", False)
    assert all(types_of(leaf) == ((), "float32", False) for leaf in step.metrics.values())
    return step


# -------------------------------------------------------------------------------------------- brax

QUIET = """
import sys
import jaxrl.envs
assert len(jaxrl.envs.names()) > 40
heavy = {"brax", "mujoco", "mujoco_playground", "gymnax", "gymnasium", "jaxopt"} & set(sys.modules)
assert not heavy, heavy
import jax
env = jaxrl.envs.make("brax/halfcheetah")
state, observation = jax.eval_shape(env.reset, env.params(), jax.random.key(0))
jax.eval_shape(env.step, env.params(), state, env.spec.action.zeros(), jax.random.key(0))
assert "brax" in sys.modules and "brax.training" not in sys.modules
"""

QUIET_PLAYGROUND = """
import jaxrl.envs
env = jaxrl.envs.make("playground/CheetahRun")
"""


@pytest.mark.parametrize(
    ("package", "program"),
    [("brax", QUIET), pytest.param("mujoco_playground", QUIET_PLAYGROUND, marks=pytest.mark.slow)],
)
def test_suites_are_imported_late_and_say_nothing(tmp_path, package, program):
    pytest.importorskip(package)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())  # MuJoCo likes to leave a log


def test_brax_is_made_by_one_abstract_reset():
    env = envs.make("brax/fast", max_steps=11)
    assert env is envs.make("brax/fast", max_steps=11, backend="spring")
    assert env is not envs.make("brax/fast", max_steps=11, backend="mjx")
    assert (env.env.reset_count, env.env.step_count) == (1, 0)
    assert env.max_steps == 11
    assert envs.make("brax/fast").max_steps == 1000
    check_types(env)
    assert env.spec.observation == Box((2,))
    assert env.spec.action == Box((1,), -1.0, 1.0)


def test_brax_fast_is_its_double_integrator():
    env = envs.make("brax/fast")
    state, observation = env.reset(env.params(), jax.random.key(0))
    np.testing.assert_array_equal(observation, [0, 0])
    position = velocity = 0.0
    for action in (1.0, 0.5, -1.0, 1.0):
        state, step = env.step(env.params(), state, jnp.full(1, action), jax.random.key(0))
        velocity += 0.02 * (action > 0)
        position += 0.02 * velocity
        np.testing.assert_allclose(step.observation, [position, velocity], rtol=1e-6)
        np.testing.assert_allclose(step.reward, position, rtol=1e-6)
        assert not step.terminated
        assert not step.truncated


def test_brax_inverted_pendulum_is_brax_until_it_falls():
    env = envs.make("brax/inverted_pendulum")
    from brax import envs as brax_envs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = brax_envs.get_environment("inverted_pendulum", backend="spring")

    # Both in one program, from the same state, so that XLA compiles the physics once.
    reset = jax.jit(lambda key: (env.reset(env.params(), key), original.reset(jax.random.clone(key))))
    step = jax.jit(
        lambda state, action: (env.step(env.params(), state, action, jax.random.key(0)), original.step(state, action))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Brax warns of while it is traced
        (state, first), expected = reset(jax.random.key(0))
        np.testing.assert_allclose(first, expected.obs, rtol=1e-6)
        for _ in range(25):
            (state, own), expected = step(state, jnp.ones(1))
            np.testing.assert_allclose(own.observation, expected.obs, rtol=1e-6)
            assert (own.reward, own.terminated, own.truncated) == (expected.reward, expected.done == 1, False)
            assert own.terminated == (abs(own.observation[1]) > 0.2)
            if own.terminated:
                break
    assert own.terminated
    check_types(env)


def test_brax_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"swimmer is not available: .*a_min"):
        envs.make("brax/swimmer")
    with pytest.raises(ValueError, match="no backend 'bullet'; expected one of spring, generalized, positional, mjx"):
        envs.make("brax/ant", backend="bullet")
    with pytest.raises(ValueError, match=r"observations of Fast are .*, expected one array"):
        envs.make("brax/fast", obs_mode="dict_state")
    with pytest.raises(ValueError, match="max_steps must be an integer of at least 1, got -1"):
        envs.make("brax/fast", max_steps=-1)
    with pytest.raises(ValueError, match=r"brax/inverted_pendulum: .*unexpected keyword argument 'colour'"):
        envs.make("brax/inverted_pendulum", colour="red")


def test_brax_names_are_brax_names_and_swimmer_still_fails():
    envs.make("brax/fast")
    from brax import envs as brax_envs

    assert {*envs.names("brax"), "brax/swimmer"} == {f"brax/{name}" for name in brax_envs._envs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        swimmer = brax_envs.get_environment("swimmer", backend="generalized")
        with pytest.raises(TypeError, match="a_min"):
            jax.eval_shape(lambda key: swimmer.step(swimmer.reset(key), jnp.zeros(2)), jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["spring", "generalized", "positional", "mjx"])
@pytest.mark.parametrize("name", envs.names("brax"))
def test_brax_types(name, backend):
    check_types(envs.make(name, backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("name", envs.names("brax"))
def test_brax_takes_actions_in_the_unit_box(name):
    """-1 and 1 reach the physics as the limits of the actuators."""
    env = envs.make(name)
    if name == "brax/fast":
        pytest.skip("has no actuators")

    class Reached(Exception):
        pass

    def pipeline_step(state, control):
        raise Reached(control)

    state, _ = jax.eval_shape(env.reset, env.params(), jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    original = copy.copy(env.env)
    original.pipeline_step = pipeline_step
    for action, limit in ((-1.0, 0), (1.0, 1)):
        with pytest.raises(Reached) as reached:
            original.step(state, jnp.full(env.spec.action.shape, action))
        np.testing.assert_allclose(reached.value.args[0], original.sys.actuator.ctrl_range[:, limit], rtol=1e-6)


# -------------------------------------------------------------------------------------- playground


@pytest.fixture
def suite():
    pytest.importorskip("warp")  # without the optional package, nothing of it is there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("mujoco_playground").dm_control_suite


def test_playground_pendulum_is_playgrounds(suite):
    env = envs.make("playground/PendulumSwingup")
    assert repr(env) == "Playground(PendulumSwingup, impl='jax', max_steps=1000)"
    check_types(env)
    assert env.spec == Spec(Box((3,)), Box((1,), -1.0, 1.0))
    original = suite.load("PendulumSwingup", config_overrides={"impl": "jax"})

    @jax.jit  # both in one program, from the same state, so that XLA compiles the physics once
    def rollouts(key):
        first, expected = env.reset(env.params(), key), original.reset(jax.random.clone(key))

        def body(states, action):
            state, own = env.step(env.params(), states[0], action, jax.random.key(0))
            expected = original.step(states[1], action)
            return (state, expected), (own, expected.obs, expected.reward)

        actions = jnp.linspace(-1, 1, 30)[:, None]
        return jax.lax.scan(body, (first[0], expected), actions)[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own, observation, reward = rollouts(jax.random.key(0))
    np.testing.assert_allclose(own.observation, observation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own.reward, reward, rtol=1e-6)
    assert not np.any(own.terminated | own.truncated)
    np.testing.assert_allclose(np.hypot(*np.asarray(own.observation).T[:2]), 1, rtol=1e-5)
    assert len(np.unique(own.observation[:, 0])) == 30


def test_playground_names_are_its_names_and_settings_are_checked(suite):
    assert set(envs.names("playground")) == {f"playground/{name}" for name in suite.ALL_ENVS}
    with pytest.raises(ValueError, match="no setting 'action_repeat', expected max_steps or one of ctrl_dt, impl"):
        envs.make("playground/PendulumSwingup", action_repeat=2)
    env = envs.make("playground/PendulumSwingup", ctrl_dt=0.04, max_steps=500)
    assert (env.env.n_substeps, env.max_steps) == (4, 500)
    assert repr(env) == "Playground(PendulumSwingup, impl='jax', ctrl_dt=0.04, max_steps=500)"


@pytest.mark.slow
@pytest.mark.parametrize("name", envs.names("playground"))
def test_playground_types_and_actions(suite, name):
    env = envs.make(name)
    check_types(env)
    assert np.all(env.env.mj_model.actuator_ctrlrange == [-1, 1])


# ------------------------------------------------------------------------------------------ gymnax


@pytest.mark.parametrize("name", envs.names("gymnax"))
def test_gymnax_types(name):
    pytest.importorskip("gymnax")
    env = envs.make(name)
    check_types(env)
    assert isinstance(env.max_steps, int)


def test_gymnax_names_are_gymnax_names():
    gymnax = pytest.importorskip("gymnax")
    assert {*envs.names("gymnax"), "gymnax/MNISTBandit-bsuite"} == {f"gymnax/{name}" for name in gymnax.registered_envs}
    with pytest.raises(ValueError, match="MNISTBandit-bsuite is not available: it downloads"):
        envs.make("gymnax/MNISTBandit-bsuite")


def test_gymnax_pendulum_is_ours():
    """Two implementations of one task; and the limit, which the parameters know too."""
    pytest.importorskip("gymnax")
    env, own = envs.make("gymnax/Pendulum-v1", max_steps=25), tiny.Pendulum()
    assert (env.max_steps, int(env.params().max_steps_in_episode)) == (25, 25)
    assert env.spec.action == own.spec.action
    state, first = env.reset(env.params(), jax.random.key(0))
    angle = jnp.arctan2(first[1], first[0])
    actions = jax.random.uniform(jax.random.key(1), (25, 1), minval=-2, maxval=2)

    def body(carry, action):
        state, own_state = carry
        state, step = env.step(env.params(), state, action, jax.random.key(0))
        own_state, own_step = own.step(own.params(), own_state, action, jax.random.key(0))
        return (state, own_state), (step, own_step)

    start = (state, tiny.PendulumState(angle=angle, speed=first[2]))
    step, own_step = jax.jit(lambda start, actions: jax.lax.scan(body, start, actions)[1])(start, actions)
    np.testing.assert_allclose(step.observation, own_step.observation, atol=1e-3)
    np.testing.assert_allclose(step.reward, own_step.reward, atol=1e-3)
    assert not np.any(step.terminated)
    np.testing.assert_array_equal(step.truncated, np.arange(1, 26) == 25)


def test_gymnax_cartpole_terminates_and_is_not_truncated():
    pytest.importorskip("gymnax")
    env = envs.make("gymnax/CartPole-v1")
    state, _ = env.reset(env.params(), jax.random.key(0))
    step = jax.lax.scan(
        lambda state, key: env.step(env.params(), state, jnp.int32(1), key),
        state,
        jax.random.split(jax.random.key(1), 15),
    )[1]
    end = int(np.argmax(step.terminated))
    assert 5 < end < 15
    assert np.all(step.terminated[end:]) and not np.any(step.truncated)
    np.testing.assert_array_equal(step.reward[: end + 1], 1)
    angle = np.asarray(step.observation[:, 2])  # pushed to the right it falls to the left
    assert np.all(np.abs(angle[:end]) <= np.deg2rad(12) + 1e-6) and angle[end] < -np.deg2rad(12)
    assert step.metrics == {}
    assert env.spec.action == Discrete(2)
    low, high = env.spec.observation.bounds()
    np.testing.assert_allclose(high, [4.8, np.inf, 2 * np.deg2rad(12), np.inf], rtol=1e-6)
    np.testing.assert_allclose(low, -high)


def test_gymnax_parameters_keep_their_types_under_vmap():
    pytest.importorskip("gymnax")
    env = envs.make("gymnax/DeepSea-bsuite", size=4)
    params = env.params()
    assert params.deterministic.dtype == bool
    assert jnp.issubdtype(params.max_steps_in_episode.dtype, jnp.integer)
    assert env.max_steps == 4
    env = envs.make("gymnax/Pendulum-v1")
    gravity = jnp.array([5.0, 15.0])
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), env.params()).replace(g=gravity)
    state, _ = jax.jit(env.reset)(env.params(), jax.random.key(0))
    step = jax.jit(jax.vmap(env.step, (0, None, None, None)))(params, state, jnp.zeros(1), jax.random.key(1))[1]
    speed = state.theta_dot + 1.5 * gravity * jnp.sin(state.theta) * 0.05
    np.testing.assert_allclose(step.observation[:, 2], speed, rtol=1e-5)


def test_gymnax_spaces():
    spaces = pytest.importorskip("gymnax.environments.spaces")
    huge = float(np.finfo(np.float32).max)
    convert = gymnax_suite.space
    assert convert(spaces.Discrete(3)) == Discrete(3)
    assert convert(spaces.Box(-1, 1, (2, 2))) == Box((2, 2), -1.0, 1.0)
    assert convert(spaces.Box(jnp.array([-1.0, -2.0]), jnp.array([3.0, 3.0]), (2,))) == Box((2,), (-1.0, -2.0), 3.0)
    assert convert(spaces.Box(jnp.array([-1.0, -huge]), huge, (2,))) == Box((2,), (-1.0, -np.inf), np.inf)
    assert convert(spaces.Box(jnp.array([[0.0], [-2.0]]), 1, (2, 1))) == Box((2, 1), -2.0, 1.0)
    assert convert(spaces.Box(1, 1, (1, 1))) == Box((1, 1))
    assert convert(spaces.Box(0, 1, (3,), jnp.int32)) == Box((3,), 0.0, 1.0, "int32")
    with pytest.raises(ValueError, match="the space is a Dict, expected a Box or a Discrete"):
        convert(spaces.Dict({"a": spaces.Discrete(2)}))


def test_gymnax_missing_or_old(monkeypatch):
    pytest.importorskip("gymnax")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.9")
    with pytest.raises(ImportError, match=r"gymnax 0.0.9 .* expected 1.0 or later: pip install -U 'jaxrl\[gymnax\]'"):
        envs.make("gymnax/CartPole-v1", max_steps=71)
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"need the package 'gymnax': pip install 'jaxrl\[gymnax\]'"):
        envs.make("gymnax/CartPole-v1", max_steps=72)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("brax/fast", "Brax(fast, backend=None, max_steps=1000)"),
        ("gymnax/CartPole-v1", "Gymnax(CartPole-v1, max_steps=500)"),
    ],
)
def test_environments_say_what_they_are(name, text):
    assert repr(envs.make(name)) == text
