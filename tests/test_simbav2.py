"""SimbaV2: the network against NumPy, its spheres in the agents that take it, and what they learn on them."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, small, window
from jax.tree_util import tree_leaves_with_path

from jaxrl import envs, networks, train
from jaxrl.agents import fasttd3, sac, stac
from jaxrl.distributional import critics
from jaxrl.networks import SimbaV2, project
from jaxrl.networks.simbav2 import Encoder, unit
from jaxrl.types import Replay

ENV = envs.make("jaxrl/point_mass", max_steps=5)
AGENTS = (sac, stac, fasttd3)
pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")


class Whole(nn.Module):
    """Features, and three outputs twice."""

    sizes: tuple[int, ...] = (6, 6)

    @nn.compact
    def __call__(self, x, dropout=None):
        features = SimbaV2().features(self.sizes, nn.relu)(x, dropout)
        return features, SimbaV2().heads(features, 3, 2)


@pytest.fixture(scope="module")
def params():
    """As they are after some training: directions of norm 1, all else anything."""
    fresh = jax.jit(Whole().init)(jax.random.key(0), jnp.ones(4))
    rng = np.random.default_rng(0)
    return project(jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), fresh))


apply = jax.jit(Whole().apply)
slopes = jax.jit(jax.grad(lambda p, x: Whole().apply(p, x)[0][..., 0].sum() + Whole().apply(p, x)[1][0].sum(), (0, 1)))


def directions(tree):
    """Every matrix of weights that is to have columns of norm 1, [..., inputs, outputs], by its path."""
    return {str(path): leaf for path, leaf in tree_leaves_with_path(tree) if path[-1].key == "directions"}


def columns(tree):
    return {path: np.linalg.norm(np.asarray(leaf, np.float64), axis=-2) for path, leaf in directions(tree).items()}


# ----------------------------------------------------------------------------------------------- the network


def norm(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def forward(params, x):
    """Written from the equations, in double precision: features, and two outputs."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    encoder, d = params["Encoder_0"], 6

    def scaled(layers, index, start, scale):
        return start / scale * layers[f"Scale_{index}"]["factors"]

    x = norm(np.concatenate([x, np.full((*x.shape[:-1], 1), 3.0)], axis=-1))
    h = norm(scaled(encoder, 0, math.sqrt(2 / d), math.sqrt(2 / d)) * (x @ encoder["Product_0"]["directions"]))
    for block in (encoder["Block_0"], encoder["Block_1"]):
        s = scaled(block, 0, math.sqrt(2 / d) / 2, math.sqrt(2 / d) / 2)
        inside = np.maximum(s * (h @ block["Product_0"]["directions"]), 0) + 1e-8
        z = norm(inside @ block["Product_1"]["directions"])
        h = norm(h + scaled(block, 1, 1 / 3, 1 / math.sqrt(d)) * (z - h))
    outputs = []
    for head in (params["Head_0"], params["Head_1"]):
        inside = scaled(head, 0, 1.0, 1.0) * (h @ head["Product_0"]["directions"])
        outputs.append(inside @ head["Product_1"]["directions"] + head["bias"])
    return h, outputs


def test_the_network_is_that_of_the_equations(params):
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    features, outputs = apply(params, x)
    expected, heads = forward(params, x)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs, heads, rtol=1e-4, atol=1e-5)
    assert params["params"]["Encoder_0"]["Block_0"]["Product_0"]["directions"].shape == (6, 24)


def test_it_starts_on_the_spheres_with_the_scales_of_the_paper():
    fresh = jax.jit(Whole((50, 50)).init)(jax.random.key(0), jnp.ones(4))
    for path, norms in columns(fresh).items():
        np.testing.assert_allclose(norms, 1, atol=1e-6, err_msg=path)
    encoder, head = fresh["params"]["Encoder_0"], fresh["params"]["Head_1"]
    np.testing.assert_allclose(encoder["Scale_0"]["factors"], 0.2, rtol=1e-6)  # sqrt(2 / 50)
    np.testing.assert_allclose(encoder["Block_1"]["Scale_0"]["factors"], 0.1, rtol=1e-6)  # sqrt(2 / 200)
    np.testing.assert_allclose(encoder["Block_1"]["Scale_1"]["factors"], 1 / math.sqrt(50), rtol=1e-6)
    np.testing.assert_array_equal(head["Scale_0"]["factors"], np.ones(50))
    np.testing.assert_array_equal(head["bias"], np.zeros(3))
    wide = encoder["Block_0"]["Product_0"]["directions"]  # uniform: what remains of one direction in another is noise
    np.testing.assert_allclose(np.std(wide.T @ wide - np.eye(200)), 1 / math.sqrt(50), rtol=0.05)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e4, 1e30, 3e38])
def test_features_have_norm_one_whatever_the_input(params, size):
    x = jnp.array([[1.0, -1.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0]]) * size
    features, outputs = apply(params, x)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-5)
    assert np.all(np.isfinite(jnp.stack(outputs)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes(params, x)))


def test_unit_and_its_gradient():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(2).normal(size=5))
        jacobian = jax.jacobian(unit)(x)
        length = np.linalg.norm(x)
        np.testing.assert_allclose(jacobian, (np.eye(5) - np.outer(x, x) / length**2) / length, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(unit(1e200 * x), x / length, rtol=1e-12)
        np.testing.assert_array_equal(unit(jnp.zeros(5)), np.zeros(5))
        np.testing.assert_array_equal(jax.jacobian(unit)(jnp.zeros(5)), np.eye(5))


def test_a_block_whose_hidden_units_are_all_off_stays_on_the_sphere(params):
    off = jax.tree.map(jnp.copy, params)
    for block in ("Block_0", "Block_1"):
        off["params"]["Encoder_0"][block]["Scale_0"]["factors"] = jnp.zeros(24)
    x = np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(apply(off, x)[0], forward(off, x)[0], rtol=1e-4, atol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes(off, x)))


def test_dropout_is_there_where_it_is_asked_for(params):
    x = jnp.ones((2, 4))
    none = apply(params, x)[0]
    np.testing.assert_array_equal(apply(params, x, 0.0, rngs={"dropout": jax.random.key(0)})[0], none)
    one, two = (apply(params, x, 0.5, rngs={"dropout": jax.random.key(i)})[0] for i in (1, 2))
    assert np.any(one != two) and np.any(one[0] != one[1])
    np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(True):
        x = jnp.ones((2, 4), dtype)
        fresh = jax.eval_shape(Whole().init, jax.random.key(0), x)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(fresh)} == {"float32"}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(Whole().apply, fresh, x))} == {dtype}


def test_the_policy_has_deviations_between_its_limits():
    np.testing.assert_allclose(SimbaV2().log_std(jnp.array([-50.0, 0.0, 50.0])), [-10, -4, 2])
    np.testing.assert_allclose(SimbaV2().log_std(jnp.array([0.3])), -10 + 12 / (1 + np.exp(-0.6)), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(), (8, 4)])
def test_widths_that_differ_are_refused(sizes):
    with pytest.raises(ValueError, match=r"SimbaV2 got hidden_sizes = \(.*\), expected one width, as often"):
        Encoder(sizes).init(jax.random.key(0), jnp.ones(3))


# ------------------------------------------------------------------------------------------------- projection


def test_project_divides_each_column_by_its_norm(params):
    rng = np.random.default_rng(4)
    moved = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=(3, 2, *leaf.shape)), leaf.dtype), params)
    once = project(moved)  # with axes of seeds and of an ensemble before those of the network
    assert len(directions(once)) == 9
    for path, leaf in directions(moved).items():
        leaf = np.asarray(leaf, np.float64)
        expected = leaf / np.sqrt((leaf**2).sum(-2, keepdims=True))
        np.testing.assert_allclose(directions(once)[path], expected, rtol=1e-5, atol=1e-6)
    for (path, old), (_, new) in zip(tree_leaves_with_path(moved), tree_leaves_with_path(once), strict=True):
        assert path[-1].key == "directions" or old is new
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), project(once), once)
    vmapped = jax.vmap(jax.vmap(project))(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), vmapped, once)


def test_other_networks_are_left_alone():
    other = networks.Torso((10, 10, 4), (5,)).init(jax.random.key(0), jnp.ones((10, 10, 4)))
    assert all(a is b for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(project(other)), strict=True))


# ------------------------------------------------------------------------------------------------- the agents


def settings(agent, **others):
    sizes = {"hidden_sizes": (8,), "critic_hidden_sizes": (4,)}
    chosen = {} if agent is stac else {"critic": critics.Categorical(-5.0, 5.0, 11)}
    return small(agent, network=SimbaV2(), normalise_rewards=True, **(sizes | chosen | others))


@functools.cache
def two_seeds(agent):
    """Configuration, and two fresh states side by side."""
    config = settings(agent, learning_rate=0.1)
    init = jax.jit(jax.vmap(lambda key: agent.init(config, ENV.spec, key)))
    return config, init(jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("agent", AGENTS, ids=lambda a: a.__name__)
def test_weights_have_norm_one_after_every_update(agent):
    """The step of the optimiser itself would leave the spheres."""
    config, states = two_seeds(agent)
    update = jax.jit(jax.vmap(agent.update, (None, 0, None, None)))
    layers = len(columns(states.params))
    assert layers == (3 + (2 if agent is fasttd3 else 4)) + (3 + 2)  # of encoder and heads, in actor and critics
    for count in range(4):
        before = states.params
        states, metrics = update(config, states, window(ENV, 1), jax.random.key(count))
        assert len(columns(states.params)) == layers
        for path, norms in columns(states.params).items():
            np.testing.assert_allclose(norms, 1, atol=1e-6, err_msg=path)
        moved = {path: np.any(leaf != directions(before)[path]) for path, leaf in directions(states.params).items()}
        assert all(moved[path] for path in moved if "actor" not in path)
        assert agent is fasttd3 or all(moved.values())  # whose actor waits
        assert all(np.all(np.isfinite(metric)) for metric in metrics.values())
    target = columns(states.target)
    assert max(norms.max() for norms in target.values()) < 1 + 1e-6  # averages of what is on a sphere: inside, or on it
    assert min(norms.min() for norms in target.values()) < 1 - 1e-6


@pytest.mark.parametrize(
    "agent",
    [sac, *(pytest.param(agent, marks=pytest.mark.slow) for agent in (stac, fasttd3))],
    ids=lambda a: a.__name__,
)
def test_training_is_bitwise_the_same_in_any_chunks_and_knows_its_returns(agent):
    config = settings(agent)
    loop = train.loop(agent, ENV)
    run = loop.init(config, jax.random.key(0))
    with jax.debug_key_reuse(False):  # the same run is continued twice
        whole, _ = train.scan(loop, config, run, 6)
        part, _ = train.scan(loop, config, run, 3)
        part, _ = train.scan(loop, config, part, 3)
    assert_same(whole, part)
    returns = whole.agent.normaliser.returns
    assert returns.moments.count == 6 * 4 and returns.largest > 0
    assert returns.running.shape == (4,) and np.all(returns.running != 0)  # one step after the end at five


@pytest.mark.parametrize("agent", AGENTS, ids=lambda a: a.__name__)
def test_targets_are_made_of_scaled_rewards(agent):
    """Where it terminates the target is the scaled reward: of a law its mean, between the ends of the support."""
    config, states = two_seeds(agent)
    config, state = config.replace(reward_scale=2.0), jax.tree.map(lambda leaf: leaf[0], states)
    target = jax.jit(agent.target)
    returns = state.normaliser.returns
    moments = returns.moments.replace(count=jnp.float32(10), m2=jnp.float32(10 * 9.0))  # a deviation of 3
    batch = window(ENV, 1)
    for largest, bounded in ((6.0, 3.0), (40.0, 8.0)):  # 6 / 5 < 3 < 40 / 5
        known = state.normaliser.replace(returns=returns.replace(moments=moments, largest=jnp.float32(largest)))
        targets = target(config, state.replace(normaliser=known), batch, jax.random.key(1))
        got = targets[1] if agent is stac else targets[1] @ np.linspace(-5, 5, 11)
        size = 3.0 if agent is stac else bounded  # which has no support to stay in
        np.testing.assert_allclose(got, 2 * batch.reward[0, 1] / size, rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_the_same(tmp_path):
    config = settings(sac)

    def fit(steps, **where):
        every = {"log_every": 8, "evaluate_every": 0, "save_every": 8, "progress": False}
        return train.fit(sac, config, ENV, jax.random.key(0), steps=steps, seeds=2, **every, **where).run

    with jax.debug_key_reuse(False):
        whole = fit(32)
        fit(16, run_dir=tmp_path / "run")
        resumed = fit(32, run_dir=tmp_path / "run", resume=True)
    assert_same(whole, resumed)
    assert whole.agent.normaliser.returns.running.shape == (2, 4)  # of each seed's environments


@pytest.mark.slow
def test_values_of_a_probe():
    """In units of the scaled reward, those behind a cut too, which are larger than any sum of rewards before one."""
    env, discount = envs.make("jaxrl/probe_truncation", continuous=True), 0.8
    config = sac.Config(
        learning_rate=3e-3,
        discount=discount,
        initial_temperature=1e-4,
        target_entropy=-100.0,
        target_rate=0.05,
        critic=critics.Categorical(-10.0, 10.0, 41),
        normalise_rewards=True,
        network=SimbaV2(),
        hidden_sizes=(16,),
        critic_hidden_sizes=(32, 32),
        data=Replay(num_envs=4, capacity=512, batch_size=32, warmup=64),
    )
    loop = train.loop(sac, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 1500)
    known = env.values(discount)
    action, _ = sac.act(config, run.agent, known.observation)
    outputs = sac.critics(config, run.agent.params["critics"], known.observation, action)
    values = sac.values(config, outputs) / sac.rewards(config, run.agent, jnp.ones(()))
    np.testing.assert_allclose(values, np.tile(known.value, (2, 1)), rtol=0.05, atol=0.05)
