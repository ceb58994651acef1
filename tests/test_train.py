"""The loop and `fit`: what is the same to the last bit, what is refused, and what is left behind."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import assert_same, jax_settings, small

from jaxrl import checkpoint, envs, log, replay, train
from jaxrl.agents import ppo, sac
from jaxrl.types import Box, Spec, Step, canonical

CONFIG = small(ppo)
STEP = CONFIG.data.transitions
ENV = envs.make("jaxrl/point_mass", max_steps=5)
fit = functools.partial(train.fit, ppo, CONFIG, ENV, episodes=3, progress=False)


@pytest.fixture(autouse=True)
def seeds_side_by_side():
    """JAX's check for keys that are used twice takes a vmap over a scan over keys for one; single runs are checked."""
    before = jax.config.jax_debug_key_reuse
    jax.config.update("jax_debug_key_reuse", False)
    yield
    jax.config.update("jax_debug_key_reuse", before)


def test_the_same_arguments_give_the_same_loop():
    assert train.loop(ppo, ENV) is train.loop(ppo, ENV)


def test_fit_is_a_vmapped_scan_bit_for_bit():
    result = fit(jax.random.key(0), steps=5 * STEP, seeds=2, log_every=2 * STEP, evaluate_every=0)
    loop, config = train.loop(ppo, ENV), canonical(CONFIG)
    runs = jax.jit(jax.vmap(loop.init, (None, 0)))(config, jax.random.split(jax.random.key(0), 2))
    runs, metrics = jax.vmap(lambda run: train.scan(loop, config, run, 5))(runs)
    assert_same(result.run, runs)
    for seed in range(2):
        np.testing.assert_allclose(
            result.metrics["value_loss"][seed],
            [metrics["value_loss"][seed, i : i + 2].mean() for i in (0, 2, 4)],
            rtol=1e-6,
        )


def test_neither_points_of_the_record_nor_evaluations_change_a_run():
    few = fit(jax.random.key(0), steps=6 * STEP, seeds=2, evaluate_every=0)
    many = fit(jax.random.key(0), steps=6 * STEP, seeds=2, log_every=4 * STEP, evaluate_every=3 * STEP)
    assert_same(few.run, many.run)
    np.testing.assert_array_equal(many.metrics["steps"], np.array([3, 4, 6]) * STEP)
    np.testing.assert_array_equal(many.evaluations["steps"], np.array([0, 3, 6]) * STEP)
    assert many.evaluations["greedy"].shape == many.evaluations["sampled"].shape == (2, 3, 3)
    assert not few.evaluations


def test_steps_are_rounded_up_to_whole_loop_steps_and_that_is_said(capsys):
    result = train.fit(ppo, CONFIG, ENV, jax.random.key(0), steps=STEP + 1, evaluate_every=0)
    assert train.transitions(result.run) == 2 * STEP
    assert f"1 seed of {2 * STEP} steps (rounded up from {STEP + 1})" in capsys.readouterr().out


def test_evaluations_of_all_seeds_and_times_are_on_the_same_starts():
    still = CONFIG.replace(learning_rate=0.0)
    result = train.fit(ppo, still, ENV, jax.random.key(0), steps=2 * STEP, seeds=2, episodes=3, progress=False)
    greedy = result.evaluations["greedy"]
    for again in range(greedy.shape[1]):
        np.testing.assert_allclose(greedy[:, again], greedy[:, 0], rtol=0.3)  # the normaliser moves on
    assert len(np.unique(greedy[0, 0])) == 3


@pytest.mark.parametrize("agent", [ppo, sac], ids=lambda a: a.__name__)
def test_with_64_bits_every_float_has_them(agent, tmp_path):
    with jax_settings(jax_enable_x64=True, jax_disable_most_optimizations=True):
        env = envs.make("jaxrl/point_mass", max_steps=6)
        settings = {"steps": 100, "episodes": 2, "progress": False, "run_dir": tmp_path / "run"}
        result = train.fit(agent, small(agent), env, jax.random.key(0), **settings)
        action = checkpoint.load_policy(tmp_path / "run")(env.spec.observation.zeros())
    leaves = [*jax.tree.leaves(result.run), action]
    assert {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)} == {np.dtype("float64")}


def test_the_record_on_disk_is_the_result(tmp_path):
    result = fit(jax.random.key(0), steps=4 * STEP, seeds=2, log_every=2 * STEP, run_dir=tmp_path / "run")
    for kind, arrays in (("train", result.metrics), ("evaluation", result.evaluations)):
        record = log.read(tmp_path / "run", kind)
        np.testing.assert_array_equal(record["steps"], arrays["steps"])
        for name in arrays:
            np.testing.assert_allclose(record[name], arrays[name], rtol=1e-6)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["agent"] == "jaxrl.agents.ppo" and config["seeds"] == 2
    assert config["config"]["learning_rate"] == pytest.approx(CONFIG.learning_rate)


def test_transitions_are_counted_beyond_32_bits():
    loop = train.loop(ppo, ENV)
    run = jax.jit(loop.init)(CONFIG, jax.random.key(0))
    run = run.replace(steps=jnp.array([2**32 - STEP - 1, 0], jnp.uint32))
    step = jax.jit(loop.step)
    for expected in (2**32 - 1, 2**32 + STEP - 1, 2**32 + 2 * STEP - 1):
        run, _ = step(CONFIG, run)
        assert train.transitions(run) == expected


def test_a_new_float_compiles_nothing():
    fit(jax.random.key(0), steps=STEP, evaluate_every=0)
    compiled = []
    with log_compiles(compiled):
        train.fit(
            ppo, CONFIG.replace(learning_rate=0.5, discount=0.5), ENV, jax.random.key(1), steps=STEP, evaluate_every=0,
            episodes=3, progress=False,
        )  # fmt: skip
    assert not [name for name in compiled if name in ("init", "chunk", "evaluate")], compiled


class log_compiles:
    """Collects the names of the functions that JAX compiles inside."""

    def __init__(self, names):
        self.names = names

    def __enter__(self):
        import logging

        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.names.extend(
            [word.removeprefix("jit(").rstrip(")") for word in record.getMessage().split() if word.startswith("jit(")]
        )
        self.logger = logging.getLogger("jax._src.interpreters.pxla")
        self.level = self.logger.level
        self.logger.addHandler(self.handler)
        self.logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *exception):
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(self.level)


def run_python(code, **environment):
    """What a fresh process prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__), "JAX_DEBUG_KEY_REUSE": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


TRAIN = """
    import json, sys, jax, numpy as np
    from jaxrl import envs, train
    from jaxrl.agents import ppo, sac
    from helpers import small
    agents = {"ppo": ppo, "sac": sac}
    for name, block in json.loads('RUNS'):
        agent = agents[name]
        config = small(agent)
        result = train.fit(agent, config, envs.make("jaxrl/point_mass", max_steps=5), jax.random.key(0),
                           steps=8 * config.data.transitions, seeds=8, block=block, episodes=2, progress=False)
        run = result.run.replace(key=jax.random.key_data(result.run.key))
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(run)]
        leaves += [np.asarray(leaf) for leaf in jax.tree.leaves((result.metrics, result.evaluations))]
        values = np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])
        print(jax.device_count(), *map(float.hex, values))
"""


def on_devices(devices, runs):
    """Each run in `runs`, (agent, block), on so many devices: everything that it leaves behind as one array."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    lines = run_python(TRAIN.replace("RUNS", json.dumps(runs)), XLA_FLAGS=flags).splitlines()
    assert all(line.split()[0] == str(devices) for line in lines)
    return [np.array([float.fromhex(word) for word in line.split()[1:]]) for line in lines]


@pytest.mark.slow  # three processes, each of which compiles everything
def test_seeds_are_shared_among_devices_and_in_blocks_their_number_does_not_change_a_bit():
    """With more lanes side by side XLA rounds otherwise, and for one device it compiles in another way than for two."""
    runs = [("ppo", None), ("ppo", 2), ("sac", 1)]
    one, two, four = (on_devices(devices, runs) for devices in (1, 2, 4))
    assert [len(run) for run in one] == [len(run) for run in four]
    finite = np.isfinite(one[0])
    for run in (one[1], two[0], two[1], four[0]):
        np.testing.assert_allclose(one[0][finite], run[finite], rtol=1e-2, atol=1e-3)
    for a, b in zip(two[1:], four[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_ctrl_c_stops_after_the_chunk_and_returns_what_there_is(tmp_path, capsys):
    def interrupt():
        record = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (record.exists() and record.stat().st_size):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    result = train.fit(
        ppo, CONFIG, ENV, jax.random.key(0), steps=10**7, log_every=50 * STEP, evaluate_every=0,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    done = train.transitions(result.run)
    assert 0 < done < 10**7
    assert result.metrics["steps"][-1] == log.read(tmp_path / "run")["steps"][-1] == done
    assert f"stopped at {done:,}" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("part", ["Config", "init", "act", "update"])
def test_a_module_that_lacks_a_part_is_refused(part):
    parts = {name: getattr(ppo, name) for name in ("Config", "init", "act", "update") if name != part}
    with pytest.raises(ValueError, match=f"agent 'half' lacks {part}: an agent is a module with Config, init, act"):
        train.loop(types.SimpleNamespace(__name__="half", **parts), ENV)


class Broken:
    """An environment that breaks its protocol in one way."""

    spec = Spec(Box((2,)), Box((1,), -1.0, 1.0))
    max_steps = 3

    def __init__(self, **step):
        self.changes = step

    def __repr__(self):
        return "broken"

    def params(self):
        return {}

    def reset(self, params, key):
        return jnp.zeros(2), jnp.zeros(self.changes.get("observation", 2))

    def step(self, params, state, action, key):
        step = Step(
            jnp.zeros(self.changes.get("next_observation", 2)),
            self.changes.get("reward", jnp.zeros(())),
            self.changes.get("terminated", jnp.array(False)),
            jnp.array(False),
        )
        return self.changes.get("state", state), step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": 3}, r"reset gives an observation of shape \(3,\) .* its spec says \(2,\)"),
        ({"next_observation": 3}, r"step gives an observation of shape \(3,\) .* its spec says \(2,\)"),
        ({"reward": jnp.zeros(1)}, r"step gives reward of shape \(1,\) .* expected a scalar float"),
        ({"reward": jnp.zeros((), int)}, r"step gives reward of shape \(\) and type int32, expected a scalar float"),
        ({"terminated": jnp.zeros(())}, r"step gives terminated of .* type float32, expected a scalar bool"),
        ({"state": jnp.zeros(3)}, r"step changes .* its state"),
    ],
)
def test_an_environment_that_breaks_its_protocol_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        train.loop(ppo, Broken(**changes))
    with pytest.raises(ValueError, match="lacks spec, max_steps, params, reset, step"):
        train.loop(ppo, object())


def randomise(config, state, params, observation, key):
    """Every episode has a mass of its own."""
    return params.replace(mass=jax.random.uniform(key, params.mass.shape, minval=0.5, maxval=2.0))


def shrink(config, state, params, observation, key):
    return params.replace(mass=0.9 * params.mass)


def with_parts(agent, **parts):
    """The agent with other parts."""
    other = types.ModuleType("other")
    vars(other).update({name: getattr(agent, name) for name in ("Config", "init", "act", "update")} | parts)
    return other


@pytest.mark.parametrize("agent", [ppo, sac])
def test_parameters_that_are_proposed_reach_the_agent(agent):
    """Through `loop`, through `fit`, and as the agent's own."""
    seen = []

    def update(config, state, batch, key):
        jax.debug.callback(lambda mass: seen.append(np.asarray(mass)), batch.extras["env_params"].mass)
        return agent.update(config, state, batch, key)

    config = small(agent)
    for watching, propose in [
        (with_parts(agent, update=update), randomise),
        (with_parts(agent, update=update, propose=randomise), None),
    ]:
        seen.clear()
        loop = train.loop(watching, ENV, propose)
        run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 12)
        jax.block_until_ready(run)
        masses = np.concatenate([np.ravel(mass) for mass in seen])
        assert np.all((masses > 0.5) & (masses < 2)) and len(np.unique(masses)) > 3
    with pytest.raises(ValueError, match="propose is 3, expected a function"):
        train.loop(agent, ENV, 3)


def test_an_agent_chooses_parameters_at_each_step_if_its_configuration_says_so():
    @struct.dataclass
    class Config(ppo.Config):
        propose_at: str = struct.field(pytree_node=False, default="reset")

    agent = with_parts(ppo, Config=Config, propose=shrink, update=lambda config, state, batch, key: (
        state, {"last": batch.extras["env_params"].mass[4, 0], "first": batch.extras["env_params"].mass[0, 0]}
    ))  # fmt: skip
    loop = train.loop(agent, ENV)
    for at, first, last in [("reset", 0.9, 0.9), ("step", 0.9, 0.9**5)]:
        config = Config(data=CONFIG.data, num_minibatches=CONFIG.num_minibatches, propose_at=at)
        _, metrics = loop.step(config, loop.init(config, jax.random.key(0)))
        np.testing.assert_allclose((metrics["first"], metrics["last"]), (first, last), rtol=1e-6)


def test_a_run_with_proposals_says_so_and_goes_on_only_with_them(tmp_path):
    fit(jax.random.key(0), steps=STEP, propose=randomise, run_dir=tmp_path / "run", evaluate_every=0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["propose"].endswith("randomise")
    for propose in (None, shrink):
        with pytest.raises(checkpoint.CheckpointError, match="propose"):
            fit(jax.random.key(0), steps=2 * STEP, propose=propose, run_dir=tmp_path / "run", resume=True)
    more = fit(
        jax.random.key(0), steps=2 * STEP, propose=randomise, run_dir=tmp_path / "run", resume=True, evaluate_every=0
    )
    whole = fit(jax.random.key(0), steps=2 * STEP, propose=randomise, evaluate_every=0)
    assert_same(more.run, whole.run)


@pytest.fixture(scope="module")
def learned():
    """States of two seeds that have learned a little."""
    with jax.debug_key_reuse(False):
        return fit(jax.random.key(7), steps=2 * STEP, seeds=2, evaluate_every=0).run.agent


def test_fit_begins_with_given_states_and_leaves_them_as_they_are(learned):
    before = jax.tree.map(np.array, learned)
    settings = {"steps": 5 * STEP, "seeds": 2, "log_every": 2 * STEP, "evaluate_every": 0}
    result = fit(jax.random.key(0), initial=learned, **settings)
    assert_same(jax.tree.map(np.array, learned), before)  # they were not donated
    loop, config = train.loop(ppo, ENV), canonical(CONFIG)
    runs = jax.jit(jax.vmap(loop.init, (None, 0)))(config, jax.random.split(jax.random.key(0), 2))
    runs, _ = jax.vmap(lambda run: train.scan(loop, config, run, 5))(runs.replace(agent=learned))
    assert_same(result.run, runs)
    assert_same(fit(jax.random.key(0), initial=before, **settings).run, runs)  # of NumPy


def test_a_run_from_given_states_goes_on_only_with_them(tmp_path, learned):
    settings = {"seeds": 2, "evaluate_every": 0, "initial": learned}
    whole = fit(jax.random.key(0), steps=4 * STEP, **settings)
    fit(jax.random.key(0), steps=2 * STEP, run_dir=tmp_path / "run", **settings)
    assert len(json.loads((tmp_path / "run" / "config.json").read_text())["initial"]) == 64
    again = settings | {"steps": 4 * STEP, "run_dir": tmp_path / "run", "resume": True}
    for initial in (None, jax.tree.map(lambda leaf: leaf[::-1], learned)):
        with pytest.raises(checkpoint.CheckpointError, match="made with other settings: initial"):
            fit(jax.random.key(0), **again | {"initial": initial})
    more = fit(jax.random.key(0), **again)
    assert_same(more.run, whole.run)


def test_states_that_are_not_those_of_the_agent_are_refused(tmp_path, learned):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16) if leaf.dtype == jnp.float32 else leaf, learned)
    settings = {"steps": STEP, "seeds": 2, "run_dir": tmp_path / "run"}
    for initial, message in [
        (jax.tree.map(lambda leaf: leaf[0], learned), r"initial is not like the states .* is \(\(.*expected \(\(2, "),
        (half, r"float16'\), expected .*float32"),
        (learned.replace(optimiser=None), "is not there, expected"),
        ({"params": learned.params}, "is not there, expected|expected nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(jax.random.key(0), initial=initial, **settings)
    wider = fit(jax.random.key(0), steps=STEP, seeds=2, evaluate_every=0, initial=learned)
    with pytest.raises(ValueError, match="expected"):
        train.fit(ppo, CONFIG.replace(hidden_sizes=(9, 9)), ENV, jax.random.key(0), initial=wider.run.agent, **settings)
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_into_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "memory", lambda: 500_000)
    config = small(sac)
    with pytest.raises(ValueError, match=r"64 seeds of [\d,]+ bytes each need [\d,]+ bytes, and there are 500,000"):
        train.fit(sac, config, ENV, jax.random.key(0), steps=1, seeds=64, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_size_of_a_run_is_said_before_it_is_made(capsys):
    big = CONFIG.replace(hidden_sizes=(300, 300))
    result = train.fit(ppo, big, ENV, jax.random.key(0), steps=STEP, seeds=2, evaluate_every=0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(result.run))
    assert size > 1e6 and f"2 seeds of {STEP} steps, {size / 1e6:,.1f} MB" in capsys.readouterr().out


def test_bad_settings_of_fit_are_refused_and_leave_nothing_behind(tmp_path):
    for settings, message in [
        ({"steps": STEP, "seeds": 4, "block": 3}, "block must divide seeds = 4, got 3"),
        ({"steps": 0}, "steps, seeds and episodes must be positive, got 0"),
        ({"steps": STEP, "seeds": 0}, "must be positive"),
        ({"steps": STEP, "log_every": -1}, "log_every must not be negative, got -1"),
        ({"steps": STEP, "evaluate_every": float("nan")}, "evaluate_every must not be negative, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(jax.random.key(0), **settings, run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"config is Fake.*, expected an instance of jaxrl.agents.ppo.Config"):
        train.fit(ppo, dataclasses.make_dataclass("Fake", ["data"])(CONFIG.data), ENV, jax.random.key(0), steps=1)


def test_sizes_that_do_not_divide_are_refused_with_the_arithmetic():
    with pytest.raises(ValueError, match=r"num_envs \* length = 4 \* 8 = 32 is not divisible by num_minibatches = 5"):
        CONFIG.replace(num_minibatches=5)


def test_a_directory_that_holds_a_run_is_refused_and_kept(tmp_path):
    fit(jax.random.key(0), steps=STEP, run_dir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="holds a run already"):
        fit(jax.random.key(0), steps=STEP, run_dir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_nan_from_the_environment_is_counted_said_and_kept_from_the_parameters(capsys):
    @dataclasses.dataclass(frozen=True)
    class Breaks(type(ENV)):
        def step(self, params, state, action, key):
            state, step = super().step(params, state, action, key)
            return state, step.replace(observation=jnp.where(step.observation[0] > 0, jnp.nan, step.observation))

    result = train.fit(ppo, CONFIG, Breaks(max_steps=5), jax.random.key(0), steps=4 * STEP, evaluate_every=0)
    assert result.metrics["non_finite"].sum() > 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.run.agent))
    assert "episodes broke down" in capsys.readouterr().out
