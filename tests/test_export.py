"""Exported policies: in another process, in a gymnasium environment, and as arrays."""

import json
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import safetensors
from helpers import jax_settings, small

from jaxrl import checkpoint, envs, export, train
from jaxrl.agents import ppo, sac

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")


def trained(directory, agent, name):
    with jax_settings(jax_debug_key_reuse=False):
        train.fit(
            agent, small(agent, normalise_observations=True), envs.make(name), jax.random.key(0),
            steps=100, seeds=2, evaluate_every=0, progress=False, run_dir=directory,
        )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cartpole") / "run", ppo, "gymnax/CartPole-v1")


@pytest.fixture(scope="module")
def point_mass(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("point_mass") / "run", sac, "jaxrl/point_mass")


@pytest.mark.parametrize("run", ["cartpole", "point_mass"])
def test_an_exported_policy_is_the_policy(run, request, tmp_path):
    run = request.getfixturevalue(run)
    file = export.policy(run, tmp_path / "new" / "policy.stablehlo", seed=1)
    policy = jax.export.deserialize(file.read_bytes())
    for batch in (1, 3):
        observation = np.random.default_rng(0).normal(size=(batch, 4)).astype("float32")
        np.testing.assert_allclose(
            policy.call(observation), checkpoint.load_policy(run, seed=1)(observation), rtol=1e-5
        )
    assert policy.platforms == ("cpu", "cuda", "tpu")
    assert [path.name for path in file.parent.iterdir()] == ["policy.stablehlo"]


def test_a_process_without_jaxrl_drives_a_gymnasium_environment(cartpole, tmp_path):
    file = export.policy(cartpole, tmp_path / "policy.stablehlo")
    script = f"""
        import json, sys
        from pathlib import Path
        import gymnasium, jax, jax.export, numpy as np
        policy = jax.export.deserialize(Path({str(file)!r}).read_bytes())
        env = gymnasium.make("CartPole-v1")
        observation, _ = env.reset(seed=0)
        seen, actions = [], []
        for _ in range(5):
            seen.append(observation.tolist())
            actions.append(int(policy.call(observation[None])[0]))
            observation, *_ = env.step(actions[-1])
        assert not [name for name in sys.modules if name.partition(".")[0] in ("jaxrl", "flax", "distrax")]
        print(json.dumps([seen, actions]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    seen, actions = json.loads(done.stdout)
    np.testing.assert_array_equal(actions, checkpoint.load_policy(cartpole)(np.array(seen, "float32")))


def test_weights_are_those_of_the_state(cartpole, tmp_path):
    file = export.weights(cartpole, tmp_path / "weights.safetensors", seed=1)
    learned = checkpoint.load(cartpole, seed=1)
    with safetensors.safe_open(file, "numpy") as arrays:
        names, metadata = list(arrays.keys()), arrays.metadata()
        kernel = arrays.get_tensor("params.params.actor.MLP_0.Dense_0.kernel")
        mean = arrays.get_tensor("normaliser.mean")
    np.testing.assert_array_equal(kernel, learned.state.params["params"]["actor"]["MLP_0"]["Dense_0"]["kernel"])
    np.testing.assert_array_equal(mean, learned.state.normaliser.mean)
    assert len(names) == len(jax.tree.leaves(learned.state))
    assert metadata["agent"] == "jaxrl.agents.ppo"
    assert json.loads(metadata["config"])["hidden_sizes"] == [8, 8]


@pytest.mark.parametrize("function", [export.policy, export.weights])
def test_what_is_no_run_is_refused_and_nothing_is_written(function, tmp_path):
    with pytest.raises(checkpoint.CheckpointError):
        function(tmp_path, tmp_path / "out" / "file")
    assert not (tmp_path / "out").exists()
