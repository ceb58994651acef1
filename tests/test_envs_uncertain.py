"""Families of environments against the equations of motion, and whether what is offered does anything."""

from __future__ import annotations

import functools
import types

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

from jaxrl import envs, evaluate, rollout, train
from jaxrl.agents import reinforce
from jaxrl.envs import mechanics, physics, tiny
from jaxrl.envs.stock import StockAugmented
from jaxrl.envs.uncertainty import RRLS, offered
from jaxrl.types import Environment

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

RANGES = {"mass": (0.5, 2.5), "length": (0.5, 1.5)}
GRID = np.array([[0.0, 0.0], [0.25, 0.5], [1.0, 0.0], [0.3, 0.9]], np.float32)


def play(env, params, actions):
    """What is observed in an episode with these actions [T, A], whose parameters may change at each step, [T, ...]."""
    start = jax.tree.map(lambda leaf: leaf[0], params)
    state, first = env.reset(start, jax.random.key(0))

    def body(state, inputs):
        params, action = inputs
        return env.step(params, state, action, jax.random.key(1))

    return first, jax.lax.scan(body, state, (params, actions))[1]


def constant(params, length):
    return np.broadcast_to(np.asarray(params)[..., None, :], (*np.shape(params)[:-1], length, np.shape(params)[-1]))


# ------------------------------------------------------------------------------------- the unit box


def test_the_contract():
    env = envs.uncertain("jaxrl/pendulum", RANGES)
    assert isinstance(env, Environment)
    assert (env.names, env.low, env.high) == (("mass", "length"), (0.5, 0.5), (2.5, 1.5))
    assert env.spec == tiny.Pendulum().spec
    assert env.max_steps == 200
    assert (env.params().shape, env.params().dtype) == ((2,), "float32")
    assert_allclose(env.params(), [0.25, 0.5])
    assert_allclose(env.physical(env.params()), [1.0, 1.0])
    assert_allclose(
        env.physical(jnp.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]])), [[0.5, 0.5], [2.5, 1.5], [1.5, 0.75]]
    )
    same = envs.uncertain(envs.make("jaxrl/pendulum"), RANGES)
    assert env == same
    assert hash(env) == hash(same)
    assert env != envs.uncertain("jaxrl/pendulum", dict(reversed(RANGES.items())))
    assert "names=('mass', 'length')" in repr(env)


def test_normalised_takes_physical_units():
    env = envs.uncertain("jaxrl/pendulum", RANGES)
    assert_allclose(env.normalised(), env.params())
    assert_allclose(env.normalised(length=0.75), [0.25, 0.25])
    assert_allclose(env.normalised(mass=np.array([0.5, 2.5]), length=1.5), [[0, 1], [1, 1]])
    with pytest.raises(ValueError, match="'gravity' is not varied in this family, expected some of mass, length"):
        env.normalised(gravity=9.8)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 1))
def test_the_nominal_model_is_exact_wherever_it_lies(low, size, share):
    """Masses of 1 kg inside, below and above the range: params() is 1 kg to the last bit, and the ends are the ends."""
    env = envs.uncertain("jaxrl/pendulum", {"mass": (low, low + size)})
    assert env.physical(env.params()) == 1
    value = env.physical(jnp.array([share]))
    assert_allclose(value, low + share * size, rtol=1e-5, atol=1e-6 * (1 + low))
    assert np.float32(min(low, 1)) <= value <= np.float32(max(low + size, 1))


def test_a_nominal_model_outside_its_range_widens_the_box_to_itself():
    env = envs.uncertain("jaxrl/pendulum", {"mass": (2.0, 4.0), "length": (0.25, 0.75)})
    assert_allclose(env.params(), [-0.5, 1.5])
    clipped = jax.jit(env.physical)(jnp.array([[-9.0, 9.0], [9.0, -9.0], [jnp.nan, 0.0]]))
    assert_allclose(clipped, [[1.0, 1.0], [4.0, 0.25], [jnp.nan, 0.25]], rtol=1e-6)
    env.physical(jnp.array([[-0.5, 1.5], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"params has 1.6 for length, expected a number in \[0, 1\], for 0.25 to 0.75"):
        env.physical(jnp.array([0.5, 1.6]))


def test_gradients_are_those_of_the_equations_and_finite_at_the_walls():
    env = envs.uncertain("jaxrl/pendulum", RANGES)
    slope = jax.vmap(jax.jacobian(env.physical))(jnp.asarray(GRID))
    assert np.all(np.isfinite(slope))
    assert_allclose(slope[3], np.diag([2.0, 1.0]), rtol=1e-6)

    def speed(params):
        state = tiny.PendulumState(angle=jnp.float32(1.0), speed=jnp.float32(0.0))
        return env.step(params, state, jnp.ones(1), jax.random.key(0))[1].observation[2]

    mass, length = 1.1, 1.4  # of GRID[3]
    slopes = [-3 / (mass**2 * length**2), -15 * np.sin(1) / length**2 - 6 / (mass * length**3)]
    assert_allclose(jax.jit(jax.grad(speed))(jnp.asarray(GRID[3])), 0.05 * np.array(slopes) * [2.0, 1.0], rtol=1e-5)


# -------------------------------------------------------------------------------- the tasks of ours


def test_a_pendulum_of_any_mass_and_length_swings_as_its_equations_say():
    env = envs.uncertain("jaxrl/pendulum", RANGES)
    actions = np.random.default_rng(0).uniform(-2, 2, (30, 1)).astype(np.float32)
    run = jax.jit(jax.vmap(functools.partial(play, env), (0, None)))
    first, steps = run(constant(GRID, 30), actions)
    nominal = jax.jit(functools.partial(play, tiny.Pendulum()))(
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, 30), tiny.Pendulum().params()), actions
    )[1]
    assert_allclose(steps.observation[1], nominal.observation, atol=1e-5)  # GRID[1] is the nominal model
    for row, (mass, length) in enumerate(env.physical(GRID)):
        angle, speed = np.arctan2(first[row, 1], first[row, 0]), float(first[row, 2])
        for action, observed in zip(actions[:, 0], steps.observation[row], strict=True):
            speed = np.clip(speed + 0.05 * (15 * np.sin(angle) / length + 3 * action / (mass * length**2)), -8, 8)
            angle += 0.05 * speed
            assert_allclose(observed, [np.cos(angle), np.sin(angle), speed], atol=2e-3)


def test_what_is_no_single_number_is_not_offered():
    assert list(offered(envs.make("jaxrl/point_mass"))) == ["mass", "dt", "control_cost"]  # and no goal [2]
    assert list(offered(envs.make("jaxrl/linear_quadratic"))) == ["noise"]
    with pytest.raises(ValueError, match="no uncertain parameter 'mass'; expected some of none: this environment"):
        envs.uncertain("jaxrl/probe_action", {"mass": (1, 2)})
    stock = StockAugmented(envs.make("jaxrl/pendulum"), 0.9)
    env = envs.uncertain(stock, {"env.mass": (0.5, 1.5), "stock": (-1.0, 1.0)})
    assert_allclose(env.params(), [0.5, 0.5])
    with pytest.raises(ValueError, match=r"the range of env.mass begins at 0.0, expected more than 0"):
        envs.uncertain(stock, {"env.mass": (0.0, 1.5)})


def test_double_precision():
    with jax.enable_x64(True):
        env = envs.uncertain("jaxrl/pendulum", RANGES)
        assert env.params().dtype == env.physical(env.params()).dtype == "float64"
        assert_allclose(env.physical(jnp.array([1 / 3, 0.1])), [0.5 + 2 / 3, 0.6], rtol=1e-15)
        state, _ = jax.eval_shape(env.reset, env.params(), jax.random.key(0))
        successor, step = jax.eval_shape(env.step, env.params(), state, jnp.zeros(1), jax.random.key(0))
        assert successor == state
        assert step.reward.dtype == "float64"


# ----------------------------------------------------------------------------------- lanes and loops


def test_a_lane_keeps_its_parameters_for_reset_and_steps_until_its_next_episode():
    env = envs.uncertain(tiny.Pendulum(max_steps=5), RANGES)

    def propose(params, observation, key):
        return jax.random.uniform(key, params.shape)

    def policy(observation, key):
        return jnp.ones((4, 1)), {}

    @jax.jit
    def collect(key):
        return rollout.collect(env, policy, rollout.lanes(env, 4, "fresh", True), key, 20, propose=propose)[1]

    batch = collect(jax.random.key(0))
    params = np.asarray(batch.extras["env_params"]).reshape(4, 5, 4, 2)  # episodes of 5 steps
    assert_array_equal(params, np.broadcast_to(params[:, :1], params.shape))
    assert len(np.unique(params[:, 0].reshape(-1, 2), axis=0)) == 16
    mass, length = np.moveaxis(np.asarray(env.physical(batch.extras["env_params"])), -1, 0)
    _, sin, speed = np.moveaxis(np.asarray(batch.observation), -1, 0)
    expected = np.clip(speed + 0.05 * (15 * sin / length + 3 / (mass * length**2)), -8, 8)
    assert_allclose(batch.next_observation[..., 2], expected, atol=1e-5)


def test_loops_and_evaluation_take_families():
    env = envs.uncertain("jaxrl/pendulum", RANGES)

    def propose(config, state, params, observation, key):
        return jax.random.uniform(key, params.shape)

    config = reinforce.Config()
    loop = train.loop(reinforce, env, propose)
    assert loop is train.loop(reinforce, envs.uncertain("jaxrl/pendulum", RANGES), propose)
    run = jax.eval_shape(loop.init, config, jax.random.key(0))
    assert jax.tree.structure(jax.eval_shape(loop.step, config, run)[0]) == jax.tree.structure(run)

    agent = types.SimpleNamespace(act=lambda config, state, observation, key=None: (jnp.ones((3, 1)), {}))

    def returns(env, params):
        return evaluate.evaluate(agent, None, None, env, jax.random.key(0), episodes=3, params=params).returns

    short = tiny.Pendulum(max_steps=20)
    physical = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, len(GRID)), short.params())
    mass, length = envs.uncertain(short, RANGES).physical(GRID).T
    ours = jax.jit(jax.vmap(functools.partial(returns, envs.uncertain(short, RANGES))))(GRID)
    theirs = jax.jit(jax.vmap(functools.partial(returns, short)))(physical.replace(mass=mass, length=length))
    assert_allclose(ours, theirs, rtol=1e-5)
    assert len(np.unique(ours[:, 0])) == len(GRID)


# ------------------------------------------------------------------------------------ Brax: physics


@functools.cache
def pendulum(backend, inertia="scaled"):
    """Brax's inverted pendulum with all of its parameters, each of which goes so far that it shows."""
    env = envs.make("brax/inverted_pendulum", backend=backend)
    limits = {"slider_lower": -0.02, "hinge_lower": -0.05, "slider_upper": 0.02, "hinge_upper": 0.05}
    ranges = {
        name: tuple(sorted((parameter.nominal, limits.get(name, 1.5 * parameter.nominal))))
        for name, parameter in offered(env, inertia).items()
        if name not in ("damping", "gear", "gain")
    }
    return envs.uncertain(env, ranges, inertia=inertia)


T, LATE = 32, 6
PUSHES = 0.3 * np.where(np.arange(T) < 10, 1, -1).astype(np.float32)[:, None] * np.array([1, -1], np.float32)
PUSHES = PUSHES.T[..., None]  # [2, T, 1]: to the right and then to the left, and the other way round


@functools.cache
def everywhere(backend, inertia="scaled"):
    """Trajectories [..., 2, T, 4]: of the nominal model without the family (with its start, T + 1), and in it; of the
    models with one parameter at the other end of its range [K]; and of those in which it moves there at step LATE.
    """
    family = pendulum(backend, inertia)
    nominal = np.asarray(family.params())
    size = len(nominal)
    corners = np.where(np.eye(size, dtype=bool), 1 - np.round(nominal), nominal)
    params = constant(np.concatenate([nominal[None], corners, corners]), T).astype(np.float32)
    params[size + 1 :, :LATE] = nominal

    @jax.jit
    def run(params):
        def alone(actions):
            first, steps = play(family.env, {}, actions)
            return jnp.concatenate([first[None], steps.observation])

        def within(params, actions):
            return play(family, params, actions)[1].observation

        each = jax.vmap(jax.vmap(within, (None, 0)), (0, None))
        return jax.vmap(alone)(PUSHES), each(params, PUSHES)

    alone, observed = (np.asarray(values) for values in run(params))
    return alone, observed[0], observed[1 : 1 + size], observed[1 + size :]


def check_alive(backend):
    family = pendulum(backend)
    alone, nominal, moved, late = everywhere(backend)
    assert np.all(np.isfinite(nominal))
    assert_allclose(nominal, alone[:, 1:], rtol=1e-6)
    for name, one, other in zip(family.names, moved, late, strict=True):
        assert np.nanmax(np.abs(one - nominal)) > 0.05, name
        if not name.endswith(("_lower", "_upper")):  # which are far behind by then
            assert_array_equal(other[:, :LATE], nominal[:, :LATE])
            assert np.nanmax(np.abs(other - nominal)) > 0.01, f"{name}, later"
    return family


def test_every_parameter_of_the_spring_engine_does_something():
    family = check_alive("spring")
    bodies = ["cart_mass", "pole_mass", "slider_lower", "hinge_lower", "slider_upper", "hinge_upper"]
    assert family.names == (*bodies, "slide_gear", "slide_gain", "gravity")


def test_every_parameter_of_the_generalized_engine_does_something():
    assert {"slider_damping", "hinge_damping"} < set(check_alive("generalized").names)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["positional", "mjx"])
def test_every_parameter_of_the_other_engines_does_something(backend):
    assert ("hinge_damping" in check_alive(backend).names) == (backend == "mjx")


# The pole is a capsule from (0, 0) to (0.001, 0.6) m of radius 0.049 m: a cylinder and two halves of a ball.
LENGTH, RADIUS, REACH, TILT = np.hypot(0.001, 0.6), 0.049, np.hypot(0.001, 0.6) / 2, np.arctan2(0.001, 0.6)
CYLINDER = LENGTH / (LENGTH + 4 / 3 * RADIUS)  # its share of the mass
POLE_INERTIA = 5.0186 * (
    CYLINDER * (RADIUS**2 / 4 + LENGTH**2 / 12)
    + (1 - CYLINDER) * (2 / 5 * RADIUS**2 + LENGTH**2 / 4 + 3 / 8 * LENGTH * RADIUS)
)


def cartpole(start, pushes, *, cart, pole, inertia, damping, gravity, dt=0.02, frames=2):
    """The equations of a cart with a pole, by Newton and Euler, in half-implicit steps: positions and speeds [T, 4]."""
    position, speed = start[:2].astype(float), start[2:].astype(float)
    reach, tilt = REACH, TILT
    trajectory = []
    for push in pushes:
        for _ in range(frames):
            sin, cos = np.sin(position[1] + tilt), np.cos(position[1] + tilt)
            mass = np.array([[cart + pole, pole * reach * cos], [pole * reach * cos, inertia + pole * reach**2]])
            force = np.array([push + pole * reach * sin * speed[1] ** 2, pole * gravity * reach * sin])
            speed = speed + dt * np.linalg.solve(mass, force - damping * speed)
            position = position + dt * speed
        trajectory.append([*position, *speed])
    return np.array(trajectory)


@pytest.mark.parametrize("inertia", ["scaled", pytest.param("fixed", marks=pytest.mark.slow)])
def test_a_heavier_pole_swings_as_the_equations_say(inertia):
    """Brax's engine in generalized coordinates, against equations of motion that were not made from its model."""
    family = pendulum("generalized", inertia)
    alone, nominal, moved, _ = everywhere("generalized", inertia)
    known = {"cart": 10.472, "pole": 5.0186, "gravity": 9.81, "gear": 100.0}
    changes = {"cart_mass": "cart", "pole_mass": "pole", "gravity": "gravity", "slide_gear": "gear"}
    rows = {name: moved[family.names.index(name)] for name in changes} | {"nominal": nominal}
    for name, observed in rows.items():
        now = dict(known)
        if name in changes:
            now[changes[name]] *= 1.5
            assert np.max(np.abs(observed[:, :8] - nominal[:, :8])) > 0.05, name
        gear, heavier = now.pop("gear"), now["pole"] / known["pole"]
        inert = POLE_INERTIA * (heavier if inertia == "scaled" else 1)
        for side in (0, 1):
            expected = cartpole(alone[side, 0], 3 * gear * PUSHES[side, :8, 0], inertia=inert, damping=1.0, **now)
            assert_allclose(observed[side, :8], expected, atol=5e-5, err_msg=name)


def test_the_inertia_of_a_body_is_scaled_with_its_mass_or_fixed():
    """In spring, which takes masses to the power of 0.7 and inertias to that of 0.2 in this model, in proportion."""
    env = envs.make("brax/halfcheetah")
    sys = env.env.sys
    for inertia, factor in (("scaled", 2.0), ("fixed", 1.0)):
        family = envs.uncertain(env, {"torso_mass": (0.1, 20.0), "bthigh_mass": (0.1, 3.0)}, inertia=inertia)
        leaves = family._inner(family.normalised(torso_mass=2 * 6.2502))
        new = sys.tree_replace(leaves)
        mass = new.link.inertia.mass ** (1 - new.spring_mass_scale)
        assert_allclose(mass / sys.link.inertia.mass ** (1 - sys.spring_mass_scale), [2.0] + [1.0] * 6, rtol=1e-4)
        moments, before = (
            jax.vmap(jnp.diagonal)(each.link.inertia.i) ** (1 - each.spring_inertia_scale) for each in (new, sys)
        )
        assert_allclose(moments / before, np.array([[factor]] + [[1.0]] * 6) * np.ones(3), rtol=1e-4)


def test_groups_move_in_proportion_and_friction_has_the_number_of_the_ground():
    hopper = envs.make("brax/hopper")
    family = envs.uncertain(hopper, {"friction": (0.1, 3.0), "torso_mass": (0.1, 3.0), "gear": (100, 300)})
    assert_allclose(family.physical(family.params()), [1.0, 3.6652, 200.0], rtol=1e-4)
    assert family.params()[1] > 1  # Hopper's torso is heavier than all that RRLS puts in its place
    leaves = family._inner(family.normalised(friction=0.5, gear=100.0))
    assert_allclose(leaves["geom_friction"][:, 0], [0.5, 0.45, 0.45, 0.45, 1.0], rtol=1e-5)
    assert_array_equal(leaves["geom_friction"][:, 1:], hopper.env.sys.geom_friction[:, 1:])
    assert_allclose(leaves["actuator.gear"], [100.0] * 3, rtol=1e-5)
    scales = {"spring_mass_scale", "spring_inertia_scale"}
    assert set(leaves) == {"geom_friction", "actuator.gear", mechanics.MASSES, mechanics.INERTIAS} | scales


# ------------------------------------------------------------------------------------------ refusals

PENDULUM = "brax/inverted_pendulum"


@pytest.mark.parametrize(
    ("env", "ranges", "message"),
    [
        ("jaxrl/pendulum", {}, "ranges is empty, expected some of gravity, mass, length"),
        (
            "jaxrl/pendulum",
            {"weight": (1, 2)},
            "no uncertain parameter 'weight'; expected some of gravity, mass, length",
        ),
        ("jaxrl/pendulum", {"mass": (2, 1)}, r"range of mass is \(2.0, 1.0\), expected finite .* with low < high"),
        ("jaxrl/pendulum", {"mass": 2.0}, r"the range of mass is 2.0, expected \(low, high\)"),
        ("jaxrl/pendulum", {"mass": (1, 1)}, "expected finite .* with low < high"),
        ("jaxrl/pendulum", {"gravity": (1, np.inf)}, "expected finite .* with low < high"),
        ("jaxrl/pendulum", {"mass": (-1, 1)}, "range of mass begins at -1.0, expected more than 0"),
        ("jaxrl/pendulum", {"gravity": (-1, 1)}, "range of gravity begins at -1.0, expected at least 0"),
        ("brax/fast", {"mass": (1, 2)}, "no uncertain parameter 'mass'; expected some of none"),
        (PENDULUM, {"pole_mass": (0.0, 1)}, "range of pole_mass begins at 0.0, expected more than 0"),
        (PENDULUM, {"body_mass": (1, 2)}, "'body_mass'; expected some of cart_mass, pole_mass, slider_lower"),
        (
            PENDULUM,
            {"hinge_damping": (1, 2)},
            "'spring' does not read damping, generalized and mjx do; expected some of",
        ),
        (PENDULUM, {"damping": (1, 2)}, "the engine 'spring' does not read damping"),
        (PENDULUM, {"friction": (1, 2)}, "'friction', since nothing in it touches with friction; expected some"),
        (PENDULUM, {"gear": (1, 2), "slide_gear": (1, 2)}, "gear and slide_gear stand for the same number"),
        (PENDULUM, {"hinge_lower": (-1, 1.6)}, "hinge_lower may be 1.6 while hinge_upper is 1.57"),
        (PENDULUM, {"hinge_upper": (-1.6, 1.5)}, "hinge_lower may be -1.57.* while hinge_upper is -1.6"),
        (PENDULUM, {"slider_lower": (-1, 0.5), "slider_upper": (0.5, 1)}, "slider_lower may be 0.5 while .* is 0.5"),
    ],
)
def test_what_cannot_be_is_refused(env, ranges, message):
    with pytest.raises(ValueError, match=message):
        envs.uncertain(env, ranges)


def test_wrong_params_and_choices_are_refused():
    with pytest.raises(ValueError, match="inertia is 'both', expected 'scaled' or 'fixed'"):
        envs.uncertain("jaxrl/pendulum", RANGES, inertia="both")
    env = envs.uncertain("jaxrl/pendulum", RANGES)
    with pytest.raises(
        ValueError, match=r"params has shape \(3,\), expected \[..., 2\], a number in \[0, 1\] for each"
    ):
        env.reset(jnp.zeros(3), jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"params has -0.5 for mass, .*; env.normalised\(mass=...\) takes physical units"
    ):
        env.reset(jnp.array([-0.5, 0.5]), jax.random.key(0))


# -------------------------------------------------------------------------------------------- RRLS

# The nominal values of RRLS. Its numbers for the pendulum's two bodies are exchanged, as the model shows; the frictions
# of Hopper and Walker are those of the floor in Gymnasium's models.
NOMINAL = {
    "ant": {"torso_mass": 0.32724923 + 4 * 0.03915775},
    "halfcheetah": {"friction": 0.4, "torso_mass": 6.2502092, "bthigh_mass": 1.5435146},
    "hopper": {"friction": 1.0, "torso_mass": 3.6651914, "thigh_mass": 4.0578905},
    "humanoidstandup": {"torso_mass": 8.9074624},
    "inverted_pendulum": {"pole_mass": 5.0185916, "cart_mass": 10.4719755},
    "walker2d": {"friction": 0.7, "torso_mass": 3.6651914, "thigh_mass": 4.0578905},
}


@pytest.mark.parametrize("name", ["hopper", *(pytest.param(name, marks=pytest.mark.slow) for name in RRLS)])
def test_the_sets_of_rrls_are_families_of_brax(name):
    base = envs.make(f"brax/{name}")
    for dimensions in range(1, len(RRLS[name]) + 1):
        env = envs.uncertain(base, envs.rrls(name, dimensions), inertia="fixed")
        assert len(env.names) == dimensions
        assert_allclose(env.physical(env.params()), [NOMINAL[name][each] for each in env.names], rtol=2e-4)


def test_rrls_refuses_what_brax_has_not():
    ranges = envs.rrls("walker2d", 3)
    assert ranges == {"friction": (0.1, 4.0), "torso_mass": (0.1, 5.0), "thigh_mass": (0.1, 6.0)}
    ranges.clear()
    assert envs.rrls("walker2d", 3)
    low, high = envs.rrls("ant", 1)["torso_mass"]
    assert_allclose([low, high], [0.25663, 3.15663], rtol=1e-5)
    for name, dimensions, message in (
        ("swimmer", 1, "no uncertainty set for 'swimmer', expected one of ant, halfcheetah"),
        ("ant", 2, "no set of 2 parameters for ant, expected 1; the first part of a leg, .* is fused with the torso"),
        ("humanoidstandup", 3, "expected 1; the foot, .* is fused with the shin in Brax"),
        ("hopper", 4, "no set of 4 parameters for hopper, expected 1 or 2 or 3$"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.rrls(name, dimensions)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [("hopper", "generalized"), ("halfcheetah", "mjx")])
def test_the_sets_of_rrls_change_what_brax_does(name, backend):
    """Each parameter, at both ends; and the corners of the set stay finite for some time."""
    dimensions = len(RRLS[name])
    env = envs.uncertain(envs.make(f"brax/{name}", backend=backend), envs.rrls(name, dimensions), inertia="fixed")
    nominal = np.asarray(env.params())
    ends = [np.where(np.arange(dimensions) == k, end, nominal) for k in range(dimensions) for end in (0, 1)]
    corners = np.stack(np.meshgrid(*[[0, 1]] * dimensions), -1).reshape(-1, dimensions)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, *env.spec.action.shape)).astype(np.float32)
    params = constant(np.stack([nominal, *ends, *corners]), 40).astype(np.float32)
    observed = np.asarray(jax.jit(jax.vmap(functools.partial(play, env), (0, None)))(params, actions)[1].observation)
    assert np.all(np.isfinite(observed))
    for row in observed[1 : 1 + len(ends)]:
        assert np.max(np.abs(row - observed[0])) > 0.01


# -------------------------------------------------------------------------------------- Playground


def test_what_a_model_switches_off_or_cannot_move_is_not_offered():
    mujoco = pytest.importorskip("mujoco")
    xml = """
    <mujoco><compiler angle="radian"/><option><flag {flags}/></option><worldbody>
      <geom type="plane" size="1 1 1" friction="0.8"/>
      <body name="stand"><geom size="0.1"/></body>
      <body name="box" pos="0 0 1"><joint name="hinge" axis="0 1 0" range="-1 1" limited="true" damping="2"/>
        <geom size="0.1" friction="0.3"/>
        <body name="lid"><geom size="0.1" pos="0 0 1"/></body></body>
    </worldbody><actuator><motor name="motor" joint="hinge"/></actuator></mujoco>"""

    def names(flags):
        mj = mujoco.MjModel.from_xml_string(xml.format(flags=flags))
        return mechanics.parameters(mechanics.Model(mj, mj, "mjx"), "fixed")

    everything = names("")
    assert {name: parameter.nominal for name, parameter in everything.items() if "_mass" not in name} == {
        "friction": np.float32(0.8), "hinge_damping": 2, "damping": 2, "hinge_lower": -1, "hinge_upper": 1,
        "motor_gear": 1, "gear": 1, "motor_gain": 1, "gain": 1, "gravity": np.float32(9.81),
    }  # fmt: skip
    assert {"box_mass", "lid_mass"} == {name for name in everything if "_mass" in name}  # the stand does not move
    for flags, gone in (
        ('contact="disable"', {"friction"}),
        ('gravity="disable"', {"gravity"}),
        ('limit="disable"', {"hinge_lower", "hinge_upper"}),
        ('constraint="disable"', {"friction", "hinge_lower", "hinge_upper"}),
        ('actuation="disable"', {"motor_gear", "gear", "motor_gain", "gain"}),
        ('damper="disable"', {"hinge_damping", "damping"}),
    ):
        assert set(everything) - set(names(flags)) == gone


def test_methods_that_an_environment_keeps_see_the_new_model():
    class Model:
        def __init__(self, size):
            self.size = size

        def tree_replace(self, leaves):
            return Model(**leaves)

    class Env:
        def __init__(self):
            self._mjx_model, self.action_size = Model(1.0), 1
            self._observe = self._size

        def _size(self):
            return jnp.full(1, self._mjx_model.size)

        def reset(self, key):
            return types.SimpleNamespace(obs=self._observe())

    env = Env()
    assert physics._with(env, {"size": 3.0}).reset(None).obs == 3
    assert physics._with(env, {}) is env
    assert env.reset(None).obs == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PendulumSwingup", "CheetahRun"])
def test_playground(name):
    """Each parameter of its models does something, and a subtree weighs what its bodies do."""
    pytest.importorskip("warp")
    base = envs.make(f"playground/{name}")
    ranges = {
        each: (parameter.nominal / 2, 2 * parameter.nominal) if parameter.nominal > 0 else (0.0, 1.0)
        for each, parameter in offered(base).items()
        if not each.endswith(("_lower", "_upper")) and each not in ("damping", "gear", "gain")
    }
    env = envs.uncertain(base, ranges)
    nominal = np.asarray(env.params())
    size = len(nominal)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, *env.spec.action.shape)).astype(np.float32)
    params = constant(np.concatenate([nominal[None], np.where(np.eye(size), 1, nominal)]), 20).astype(np.float32)
    observed = np.asarray(jax.jit(jax.vmap(functools.partial(play, env), (0, None)))(params, actions)[1].observation)
    assert np.all(np.isfinite(observed))
    for each, row in zip(env.names, observed[1:], strict=True):
        assert np.max(np.abs(row - observed[0])) > 1e-4, each
    leaves = env._inner(env.params())
    assert_allclose(leaves["body_mass"], base.env.mj_model.body_mass, rtol=1e-6)
    assert_allclose(leaves["body_subtreemass"], base.env.mj_model.body_subtreemass, rtol=1e-5)
