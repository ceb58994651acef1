"""Checkpoints: the same bits come back, whatever is damaged is noticed, and nothing is ever half there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import operator
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from helpers import AGENTS, jax_settings, small
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import archive, checkpoint, envs, log, risk, train
from jaxrl.agents import ppo, sac
from jaxrl.checkpoint import CheckpointError
from jaxrl.distributional import critics
from jaxrl.types import Box, Discrete, Rollout, Spec, canonical

ENV = envs.make("jaxrl/point_mass")
CONFIG = small(ppo)
MADE_WITH = {"agent": ppo, "config": CONFIG, "env": ENV, "seeds": 2}


def says(*parts: str) -> str:
    """A pattern for a message that has all of `parts`, word for word and in this order."""
    return "(?s)" + ".*".join(map(re.escape, parts))


def random_bits(shapes: Any, seed: int = 0) -> Any:
    """Arrays of these shapes and types, with any bits that the type has: NaNs of all kinds, -0, subnormals."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.random.wrap_key_data(jnp.asarray(draw(data)), dtype=leaf.dtype)
        if leaf.dtype == bool:
            return rng.integers(0, 2, leaf.shape).astype(bool)
        return np.frombuffer(rng.bytes(math.prod(leaf.shape) * leaf.dtype.itemsize), leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(draw, shapes)


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def check(path: Any, x: Any, y: Any) -> None:
        assert x.dtype == y.dtype and x.shape == y.shape, jax.tree_util.keystr(path)
        x, y = (jax.random.key_data(leaf) if archive.is_key(leaf) else leaf for leaf in (x, y))
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)

    jax.tree.map_with_path(check, a, b)


TARGET = jax.eval_shape(
    jax.vmap(train.loop(ppo, ENV).init, (None, 0)), canonical(CONFIG), jax.random.split(jax.random.key(0), 2)
)
RUN = random_bits(TARGET)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with two checkpoints; copy it before you break it."""
    run_dir = tmp_path_factory.mktemp("runs") / "saved"
    for step in (32, 64):
        checkpoint.save(run_dir, random_bits(TARGET, step), step=step, scores=[1.0, 2.0], **MADE_WITH)
    return run_dir


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def tree(path: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# --------------------------------------------------------------------------------------- the same bits


def test_a_run_comes_back_bit_for_bit(run_dir: Path) -> None:
    for step in (32, 64):
        run = checkpoint.restore(run_dir, TARGET, step=step, **MADE_WITH)
        assert_same_bits(run, random_bits(TARGET, step))
    assert_same_bits(checkpoint.restore(run_dir, RUN, **MADE_WITH), run)  # the newest; arrays will do as a target
    assert run.agent.spec == ENV.spec and run.agent.updates.dtype == jnp.int32 and run.steps.dtype == jnp.uint32


class Pair(NamedTuple):
    first: Any
    second: Any


def test_everything_that_a_state_may_hold_comes_back(tmp_path: Path) -> None:
    params = {"params": {"Dense_0": {"kernel": jnp.ones((3, 2)), "a.b c": jnp.ones(2, jnp.bfloat16)}}}
    held = {
        "optimiser": optax.chain(optax.adam(1e-3), optax.masked(optax.sgd(0.1, 0.9), {"params": False})).init(params),
        "keys": Pair(jax.random.split(jax.random.key(1), (2, 3)), jax.random.key(2, impl="rbg")),
        "nothing": None,
        "empty": [jnp.zeros((0, 3)), (), {}, jnp.zeros((2, 0), jnp.int8), jax.random.split(jax.random.key(0), 0)],
        "scalars": [jnp.uint32(7), jnp.array(True), jnp.float16(1.5), jnp.uint8(255), jnp.complex64(1j)],
        "large": jnp.arange(300_000),
    }
    run = train.RunState(random_bits(held), random_bits(held, 1), jax.random.key(0), jnp.zeros(2, jnp.uint32))
    made_with = MADE_WITH | {"seeds": None}
    checkpoint.save(tmp_path, run, step=0, **made_with)
    shapes = jax.eval_shape(lambda: run)
    assert_same_bits(checkpoint.restore(tmp_path, shapes, **made_with), run)


@pytest.mark.parametrize("backend", ["spring", "mjx"])
def test_the_state_of_a_physics_engine_comes_back(tmp_path: Path, backend: str) -> None:
    env = envs.make("brax/inverted_pendulum", backend=backend)
    shapes = jax.eval_shape(lambda key: env.reset(env.params(), key), jax.random.key(0))
    target = TARGET.replace(experience=shapes)
    run = random_bits(target)
    made_with = MADE_WITH | {"env": env}
    checkpoint.save(tmp_path, run, step=0, **made_with)
    assert_same_bits(checkpoint.restore(tmp_path, target, **made_with), run)


DTYPES = st.sampled_from(["float32", "bfloat16", "float16", "int8", "int32", "uint32", "bool", "uint8"])
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
LEAVES = st.builds(jax.ShapeDtypeStruct, SHAPES, DTYPES.map(jnp.dtype)) | st.none()
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=4)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@settings(max_examples=15, deadline=None)
@given(TREES, st.integers(0, 99))
def test_any_tree_of_arrays_comes_back(shapes: Any, seed: int) -> None:
    values = random_bits(shapes, seed)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "archive"
        archive.write(path, {"part": values}, {}, {})
        manifest = archive.read_manifest(path)
        archive.verify(path, manifest, "part")
        assert_same_bits(archive.read_arrays(path, manifest, {"part": shapes})["part"], values)


def test_the_rest_of_the_run_does_not_notice() -> None:
    run = jax.tree.map(jnp.array, random_bits(TARGET))
    copy = checkpoint.snapshot(run)
    for leaf in jax.tree.leaves(run):
        leaf.delete()  # as donation does
    assert_same_bits(copy, RUN)


NOBODYS: Any = {"agent": types.SimpleNamespace(__name__="toys.none"), "config": {}, "seeds": 8}
NOBODYS["env"] = types.SimpleNamespace(spec=None)


def run_of_eight() -> train.RunState:
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    return train.RunState(values, None, jax.random.split(jax.random.key(0), 8), np.ones((8, 2), np.uint32))


def on_four_devices(path: Path) -> None:
    """Save in `path / "four"`, and restore that and what is in `path / "one"`; for a process with four devices."""
    mesh = jax.make_mesh((4,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed"))
    run = jax.device_put(run_of_eight(), sharding)
    checkpoint.save(path / "four", run, step=0, **NOBODYS)
    for name in ("one", "four"):
        for target, place in ((run, None), (run_of_eight(), sharding)):
            restored = checkpoint.restore(path / name, target, sharding=place, **NOBODYS)
            assert restored.agent.sharding == restored.key.sharding == sharding
            assert len(restored.agent.addressable_shards) == 4
            assert_same_bits(restored, run)


def test_a_run_moves_between_four_devices_and_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one", run_of_eight(), step=0, **NOBODYS)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import pathlib, test_checkpoint as t; t.on_four_devices(pathlib.Path({str(tmp_path)!r}))",
        ],
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    restored = checkpoint.restore(tmp_path / "four", jax.eval_shape(run_of_eight), **NOBODYS)
    assert len(restored.agent.devices()) == len(restored.key.devices()) == 1
    assert_same_bits(restored, run_of_eight())


def test_a_run_saved_in_the_background_is_the_one_that_was_given(tmp_path: Path) -> None:
    with checkpoint.writer(tmp_path, keep=3, **MADE_WITH) as write:
        for step in (1, 2, 3):
            run = jax.tree.map(np.array, random_bits(TARGET.agent.params, step))
            write(RUN.replace(agent=RUN.agent.replace(params=run)), step, None)
            for leaf in jax.tree.leaves(run):
                leaf.fill(0)
    for step in (1, 2, 3):
        params = checkpoint.restore(tmp_path, TARGET, step=step, **MADE_WITH).agent.params
        assert_same_bits(params, random_bits(TARGET.agent.params, step))


def test_an_error_in_the_background_comes_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = functools.partial(checkpoint.writer, tmp_path / "file", **MADE_WITH)
    with pytest.raises(CheckpointError, match="Not a directory"), writer() as write:
        write(RUN, 1, None)
    with pytest.raises(CheckpointError, match="Not a directory"), writer() as write:
        write(RUN, 1, None)
        write(RUN, 2, None)
        pytest.fail("the first error was lost")


# --------------------------------------------------------------------------------------- what is kept


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    run = RUN.replace(agent=jnp.zeros(1), experience=None)
    rng = np.random.default_rng(0)
    scores: dict[int, float] = {}
    for number in range(12):
        step = 10 * number
        score = None if number % 5 == 3 else [float(x) for x in rng.normal(size=2)]
        if score is not None:
            scores[step] = sum(score) / 2
        checkpoint.save(tmp_path, run, step=step, scores=score, keep=2, **MADE_WITH)
        best = max(scores, key=lambda step: scores[step])
        assert checkpoint.steps(tmp_path) == sorted({best, max(0, step - 10), step})
        scores = {step: x for step, x in scores.items() if step in checkpoint.steps(tmp_path)}
    assert checkpoint._find(tmp_path, "best")[0].name == f"{best:012d}"
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_checkpoints_of_later_steps_stay(run_dir: Path) -> None:
    """Training that went on from an earlier checkpoint does not remove what came of it before."""
    checkpoint.save(run_dir, RUN, step=48, keep=1, **MADE_WITH)
    assert checkpoint.steps(run_dir) == [32, 48, 64]  # 32 is the best up to then


def test_a_score_that_is_not_a_number_is_not_the_best(tmp_path: Path) -> None:
    run = RUN.replace(agent=jnp.zeros(1), experience=None)
    for step, scores in enumerate([[-5.0, -6.0], [math.nan, 9.0], [-7.0, -7.0], None]):
        checkpoint.save(tmp_path, run, step=step, scores=scores, keep=1, **MADE_WITH)
    assert checkpoint.steps(tmp_path) == [0, 3]


def test_a_step_is_not_saved_twice(run_dir: Path) -> None:
    before = tree(run_dir)
    with pytest.raises(
        CheckpointError, match=says("000000000064 holds this step already; delete it, or save to another")
    ):
        checkpoint.save(run_dir, RUN, step=64, **MADE_WITH)
    assert tree(run_dir) == before
    (run_dir / "checkpoints/000000000064/manifest.json").unlink()
    checkpoint.save(run_dir, RUN, step=64, **MADE_WITH)  # what is damaged is replaced
    assert_same_bits(checkpoint.restore(run_dir, TARGET, **MADE_WITH), RUN)


def test_senseless_arguments_are_refused(tmp_path: Path) -> None:
    for arguments in ({"keep": 0, "step": 1}, {"step": -1}):
        with pytest.raises(ValueError, match="keep must be at least 1 and step at least 0"):
            checkpoint.save(tmp_path, RUN, **arguments, **MADE_WITH)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- damage


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array may be read."""
    monkeypatch.setattr(archive, "_restore", lambda *_: pytest.fail("an array of a damaged checkpoint was read"))


NEWEST = "checkpoints/000000000064"


def is_refused(run_dir: Path, *reasons: str) -> None:
    with pytest.raises(CheckpointError, match=says(NEWEST, "is damaged", *reasons)) as error:
        checkpoint.restore(run_dir, TARGET, **MADE_WITH)
    assert "fallback=True" in str(error.value)


def test_a_flipped_bit_in_any_file_is_noticed(run_dir: Path, unread: None) -> None:
    files = sorted(path for path in (run_dir / NEWEST).rglob("*") if path.is_file())
    assert len(files) > 10
    rng = np.random.default_rng(0)
    for file in files:
        content = file.read_bytes()
        for position in {0, len(content) - 1, *rng.integers(0, len(content), 3).tolist()}:
            flipped = bytearray(content)
            flipped[position] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            is_refused(run_dir)
        file.write_bytes(content)


@pytest.mark.parametrize("length", [0, 1, -2])
def test_a_truncated_file_is_noticed(run_dir: Path, unread: None, length: int) -> None:
    for file in sorted(path for path in (run_dir / NEWEST).rglob("*") if path.is_file()):
        content = file.read_bytes()
        for other in (content[:length], content + b"?"):
            file.write_bytes(other)
            is_refused(run_dir)
        file.write_bytes(content)


def test_a_missing_file_is_noticed(run_dir: Path, unread: None) -> None:
    for file in sorted(path for path in (run_dir / NEWEST).rglob("*") if path.is_file()):
        moved = file.rename(run_dir / "moved")
        is_refused(run_dir, file.name)
        moved.rename(file)
    shutil.rmtree(run_dir / NEWEST / "agent")
    is_refused(run_dir, "files that are missing: agent/")


def test_a_file_too_many_is_noticed(run_dir: Path, unread: None) -> None:
    (run_dir / NEWEST / "agent" / "extra").write_text("?")
    is_refused(run_dir, "files that were not written with it: agent/extra")


def test_links_and_other_things_that_are_no_files_are_refused(run_dir: Path, unread: None) -> None:
    newest = run_dir / NEWEST
    file = newest / "agent" / "manifest.ocdbt"
    elsewhere = file.rename(run_dir / "elsewhere")
    file.symlink_to(elsewhere)  # the same bytes, but they may be anybody's
    is_refused(run_dir, "manifest.ocdbt is neither a file nor a directory")
    file.unlink()
    os.mkfifo(file)  # reading it would never end
    is_refused(run_dir, "manifest.ocdbt is neither a file nor a directory")
    file.unlink()
    elsewhere.rename(file)
    (newest / "agent").rename(run_dir / "agent")
    (newest / "agent").symlink_to(run_dir / "agent")
    is_refused(run_dir, "agent is neither a file nor a directory")
    (newest / "agent").unlink()
    (run_dir / "agent").rename(newest / "agent")
    newest.rename(run_dir / "whole")
    newest.symlink_to(run_dir / "whole")
    is_refused(run_dir, "it is a symbolic link")


def test_a_link_in_place_of_all_checkpoints_is_refused_and_what_it_leads_to_is_kept(run_dir: Path) -> None:
    other = (run_dir / "checkpoints").rename(run_dir / "other")
    before = tree(other)
    (run_dir / "checkpoints").symlink_to(other)
    for use in (checkpoint.restore, checkpoint.save):
        with pytest.raises(CheckpointError, match=says("checkpoints is a symbolic link, expected a directory")):
            use(run_dir, RUN, step=96, **MADE_WITH)
    assert tree(other) == before


def rewrite(path: Path, **changes: Any) -> None:
    """Change a manifest as somebody would who knows how it is sealed."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["seal"]
    for name, change in changes.items():
        manifest[name] = change(manifest[name])
    (path / "manifest.json").write_text(json.dumps({"seal": archive._seal(manifest)} | manifest))


@pytest.mark.parametrize("name", ["../../../secret", "/etc/hostname", "agent/../../../../secret"])
def test_a_manifest_reaches_nothing_outside_of_its_directory(run_dir: Path, unread: None, name: str) -> None:
    (run_dir / "secret").write_text("secret")
    entry = archive._entry(run_dir / "secret")
    rewrite(run_dir / NEWEST, files=lambda files: files | {name: entry})
    is_refused(run_dir, f"files that are missing: {name}")


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "null", '{"seal": 1}', "not JSON", "\xff", "[" * 10_000])
def test_a_manifest_that_is_none_is_refused(run_dir: Path, unread: None, text: str) -> None:
    (run_dir / NEWEST / "manifest.json").write_bytes(text.encode("latin-1"))
    is_refused(run_dir, "manifest.json")


@pytest.mark.parametrize(("old", "new"), [('"step": 64', '"step": 65'), ("2.0", "9.0"), ("float32", "float16")])
def test_a_manifest_that_says_something_else_is_refused(run_dir: Path, unread: None, old: str, new: str) -> None:
    manifest = run_dir / NEWEST / "manifest.json"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new, 1))
    is_refused(run_dir, "its manifest.json is not what was written")


def test_another_format_is_refused(run_dir: Path, unread: None) -> None:
    rewrite(run_dir / NEWEST, format=lambda _: 2)
    with pytest.raises(CheckpointError, match=says(NEWEST, "has format 2, expected 1: use the jaxrl that wrote it")):
        checkpoint.restore(run_dir, TARGET, fallback=True, **MADE_WITH)


def test_what_orbax_can_not_read_is_said_in_one_error(run_dir: Path) -> None:
    file = run_dir / NEWEST / "agent" / "_METADATA"
    file.write_text("{}")
    entry = archive._entry(file)
    rewrite(run_dir / NEWEST, files=lambda files: files | {"agent/_METADATA": entry})
    is_refused(run_dir, "its files are those that were written, but can't be read")


def test_the_newest_intact_checkpoint_is_used_where_asked(run_dir: Path) -> None:
    checkpoint.save(run_dir, random_bits(TARGET, 96), step=96, keep=3, **MADE_WITH)
    for step, file in ((96, "agent/manifest.ocdbt"), (64, "manifest.json")):
        path = run_dir / f"checkpoints/{step:012d}" / file
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(
        UserWarning, match=says("000000000096 is damaged", "has", "bytes", "Used that of step 32 instead")
    ):
        run = checkpoint.restore(run_dir, TARGET, fallback=True, **MADE_WITH)
    assert_same_bits(run, random_bits(TARGET, 32))
    (run_dir / "checkpoints/000000000032/config.json").unlink()
    with pytest.raises(
        CheckpointError, match=says("000000000096 is damaged", "None before it is intact", "begin anew")
    ):
        checkpoint.restore(run_dir, TARGET, fallback=True, **MADE_WITH)


def test_no_checkpoint_and_a_wrong_step_are_said(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=says("nowhere/checkpoints holds no checkpoint; is", "the directory of a run")
    ):
        checkpoint.restore(tmp_path / "nowhere", TARGET, **MADE_WITH)
    with pytest.raises(CheckpointError, match=says("holds checkpoints of the steps [32, 64]; not of step 33")):
        checkpoint.restore(run_dir, TARGET, step=33, **MADE_WITH)
    for name in ("12", "notes", "000000000001x"):
        (run_dir / "checkpoints" / name).mkdir()
    assert checkpoint.steps(run_dir) == [32, 64]


def test_nothing_is_unpickled_and_nothing_is_imported(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("something was unpickled"))
    checkpoint.restore(run_dir, TARGET, **MADE_WITH)
    for name in ("os", "jaxrl.train", "jaxrl.agents.ppo.os", "jaxrl.agents.", "jaxrl.agents.nothing"):
        with pytest.raises(CheckpointError, match="the agent of this checkpoint"):
            checkpoint._agent(name)


# ------------------------------------------------------------------------------------- other settings


@struct.dataclass
class ToyConfig:
    """Of an agent outside of jaxrl.agents."""

    gain: Any = 1.0
    limits: Any = struct.field(default_factory=lambda: {"low": -1.0})
    activation: Any = struct.field(pytree_node=False, default=jnp.tanh)
    data: Rollout = struct.field(pytree_node=False, default=Rollout(num_envs=4, length=8))


@struct.dataclass
class ToyState:
    weights: jax.Array
    normaliser: None
    spec: Spec = struct.field(pytree_node=False)


def toy_init(config: Any, spec: Spec, key: jax.Array) -> ToyState:
    return ToyState(jax.random.normal(key, (*spec.observation.shape, *spec.action.shape)), None, spec)


def toy_act(config: Any, state: ToyState, observation: jax.Array, key: Any = None) -> tuple[jax.Array, dict[str, Any]]:
    return config.activation(config.gain * observation @ state.weights), {}


TOY = types.SimpleNamespace(__name__="toys.linear", Config=ToyConfig, init=toy_init, act=toy_act, update=None)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"agent": TOY, "config": ToyConfig()}, ["agent (was 'jaxrl.agents.ppo', is 'toys.linear')"]),
        ({"config": CONFIG.replace(learning_rate=0.5)}, ["config.learning_rate (was 0.01, is 0.5)"]),
        ({"config": CONFIG.replace(clip_value=0.1)}, ["config.clip_value (was None, is 0.1)"]),
        ({"config": CONFIG.replace(activation=nn.relu)}, ["config.activation (was 'jax.numpy.tanh', is 'jax._src.nn"]),
        (
            {"config": CONFIG.replace(hidden_sizes=(8,), discount=0.5, data=Rollout(8, 4))},
            [
                "config.discount (was 0.99, is 0.5)",
                "config.hidden_sizes (was [8, 8], is [8])",
                "config.data.num_envs (was 4",
            ],
        ),
        ({"env": envs.make("jaxrl/point_mass", max_steps=7)}, ["environment (was 'PointMass(max_steps=100)'"]),
        ({"env": envs.make("jaxrl/pendulum")}, ["environment", "spec.observation.shape (was [4], is [3])"]),
        ({"seeds": 3}, ["seeds (was 2, is 3)"]),
        ({"seeds": None}, ["seeds (was 2, is None)"]),
    ],
)
def test_other_settings_are_refused_by_name(run_dir: Path, unread: None, changes: Any, names: list[str]) -> None:
    for fallback in (False, True):  # an earlier checkpoint has the same settings
        with pytest.raises(CheckpointError, match=says(NEWEST, "was made with other settings:", *names)):
            checkpoint.restore(run_dir, TARGET, fallback=fallback, **(MADE_WITH | changes))


def test_other_arrays_are_refused_by_name(run_dir: Path, unread: None) -> None:
    agent = TARGET.agent
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype), agent.params)
    for target, names in [
        (TARGET.replace(agent=agent.replace(normaliser=None)), ["agent/normaliser/count (float32 (2,), now absent)"]),
        (
            TARGET.replace(agent=agent.replace(updates=agent.params)),
            ["agent/updates/params/actor", "(absent, now float32"],
        ),
        (
            TARGET.replace(agent=agent.replace(params=wide)),
            ["(2, 4, 8), now float32 (2, 4, 8, 2))", ", ...", "the code of"],
        ),
        (TARGET.replace(key=TARGET.steps), ["rest/key (key<fry> (2,), now uint32 (2, 2))"]),
    ]:
        with pytest.raises(CheckpointError, match=says(NEWEST, "holds other arrays than this run:", *names)):
            checkpoint.restore(run_dir, target, **MADE_WITH)


def test_other_versions_are_a_warning(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "versions", lambda: {"jax": "9.9", "jaxlib": jax.__version__})
    with pytest.warns(UserWarning, match=says("comes from elsewhere: versions.jax (was", "is '9.9')", "last bits")):
        run = checkpoint.restore(run_dir, TARGET, **MADE_WITH)
    assert_same_bits(run, random_bits(TARGET, 64))


def test_a_python_number_and_its_array_are_the_same_setting(run_dir: Path) -> None:
    checkpoint.restore(run_dir, TARGET, **(MADE_WITH | {"config": canonical(CONFIG)}))


def test_an_environment_without_a_text_of_its_own_is_the_same_in_another_process() -> None:
    class Bare:
        spec = ENV.spec

    assert log.settings(ppo, CONFIG, Bare(), 1)["environment"] == log.settings(ppo, CONFIG, Bare(), 1)["environment"]


# ------------------------------------------------------------------------------- what can't be written


def assert_nothing_changed(run_dir: Path, before: dict[str, bytes]) -> None:
    assert tree(run_dir) == before
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"000000000032", "000000000064"}
    assert_same_bits(checkpoint.restore(run_dir, TARGET, **MADE_WITH), random_bits(TARGET, 64))


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails half-way, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_half_way_leaves_nothing(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = tree(run_dir)
    large = RUN.replace(agent=random_bits(jax.ShapeDtypeStruct((200_000,), jnp.uint8)))
    with (
        files_of_at_most(50_000),
        pytest.raises(CheckpointError, match=says("000000000096 could not be written", "File too")),
    ):
        checkpoint.save(run_dir, large, step=96, **MADE_WITH)
    assert_nothing_changed(run_dir, before)
    assert "Traceback" not in capfd.readouterr().err
    checkpoint.save(run_dir, large, step=96, **MADE_WITH)


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (Path, "mkdir", 1),
        (Path, "write_text", 0),
        (Path, "write_text", 1),
        (os, "fsync", 0),
        (os, "fsync", 9),
        (Path, "rename", 0),
    ],
)
def test_a_failure_at_any_point_leaves_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int
) -> None:
    before = tree(run_dir)
    original, count = getattr(owner, name), iter(range(1000))

    def fail(*arguments: Any, **options: Any) -> Any:
        if next(count) == calls:
            raise OSError(28, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(
        CheckpointError, match=says("000000000096 could not be written", "No space left", "Nothing of it is")
    ):
        checkpoint.save(run_dir, RUN, step=96, **MADE_WITH)
    assert next(count) > calls
    monkeypatch.undo()
    assert_nothing_changed(run_dir, before)


def test_what_a_kill_left_is_not_seen_and_then_removed(run_dir: Path) -> None:
    unfinished = shutil.copytree(run_dir / NEWEST, run_dir / "checkpoints" / ".000000000096.tmp")
    (unfinished / "manifest.json").unlink()
    assert checkpoint.steps(run_dir) == [32, 64]
    assert_same_bits(checkpoint.restore(run_dir, TARGET, **MADE_WITH), random_bits(TARGET, 64))
    checkpoint.save(run_dir, RUN, step=128, keep=3, **MADE_WITH)
    assert not unfinished.exists() and checkpoint.steps(run_dir) == [32, 64, 128]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, which ignores the mode of files."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_directory_that_may_only_be_read_is_read(saved: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        run_dir = Path(shutil.copytree(saved, Path(directory) / "run"))
        before = tree(run_dir)
        assert_nothing_changed(run_dir, before)  # what JAX compiles for it, nobody may not cache
        paths = [run_dir, *run_dir.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with as_nobody():
                with pytest.raises(
                    CheckpointError, match=says("000000000096 could not be written", "Permission denied")
                ):
                    checkpoint.save(run_dir, RUN, step=96, **MADE_WITH)
                assert_nothing_changed(run_dir, before)
            (run_dir / NEWEST / "agent" / "manifest.ocdbt").chmod(0)
            with as_nobody():
                is_refused(run_dir, "manifest.ocdbt can't be read", "Permission denied")
            (run_dir / "checkpoints").chmod(0)
            with as_nobody():
                for use in (checkpoint.restore, checkpoint.save):
                    with pytest.raises(CheckpointError, match=says("can't be used", "Permission denied")):
                        use(run_dir, RUN, step=96, **MADE_WITH)
        finally:
            for path in paths:
                path.chmod(0o755)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=30, check=False).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=30)


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    for step in (32, 64):
        checkpoint.save(run_dir, random_bits(TARGET, step), step=step, **MADE_WITH)
    before, room = tree(run_dir), 0
    while True:  # the disk is full at the first file, then at the next, and so on
        free = shutil.disk_usage(small_disk).free
        (small_disk / "ballast").write_bytes(bytes(free - room))
        try:
            checkpoint.save(run_dir, RUN, step=96, **MADE_WITH)
            break
        except CheckpointError as error:
            assert re.search(says("000000000096 could not be written", "No space left on device"), str(error))
        (small_disk / "ballast").unlink()
        assert_nothing_changed(run_dir, before)
        assert shutil.disk_usage(small_disk).free == free
        room += 3 * 4096
    assert room > 10 * 4096
    assert_same_bits(checkpoint.restore(run_dir, TARGET, **MADE_WITH), RUN)


# ------------------------------------------------------------------------------------------ policies


def positive(shapes: Any) -> Any:
    """A state in which every number does something."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        integral = not jnp.issubdtype(leaf.dtype, jnp.floating)
        return np.asarray(rng.integers(1, 9, leaf.shape) if integral else rng.uniform(0.1, 1.0, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


def test_settings_of_another_kind_than_the_default_come_back(tmp_path: Path) -> None:
    """Dataclasses inside of a configuration, by their names: those of jaxrl that stand beside the default."""
    config = canonical(small(sac, critic=critics.Categorical(-2.0, 3.0, 7), risk=risk.CVaR(0.25)))
    state = jax.vmap(lambda key: sac.init(config, ENV.spec, key))(jax.random.split(jax.random.key(0), 1))
    run = train.RunState(state, jnp.zeros(1), jax.random.split(jax.random.key(1), 1), jnp.zeros((1, 2), jnp.uint32))
    checkpoint.save(tmp_path, run, step=5, agent=sac, config=config, env=ENV, seeds=1)
    observation = np.ones(ENV.spec.observation.shape, np.float32)
    one = jax.tree.map(operator.itemgetter(0), state)
    assert_same_bits(checkpoint.load_policy(tmp_path)(observation), jax.jit(sac.act)(config, one, observation)[0])
    text = next(tmp_path.rglob("config.json"))
    text.write_text(text.read_text().replace('"Categorical"', '"Popen"'))
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load_policy(tmp_path)


@pytest.mark.parametrize(
    "agent",
    [pytest.param(agent, marks=[] if agent in (ppo, sac) else pytest.mark.slow) for agent in AGENTS],
    ids=lambda agent: agent.__name__,
)
@jax_settings(jax_disable_most_optimizations=True)
def test_a_policy_acts_as_the_agent_does(tmp_path: Path, agent: Any) -> None:
    config, spec, keys = canonical(small(agent)), ENV.spec, jax.random.split(jax.random.key(0), 3)
    state = positive(jax.eval_shape(jax.vmap(lambda key: agent.init(config, spec, key)), keys))
    run = train.RunState(state, jnp.zeros(3), keys, jnp.zeros((3, 2), jnp.uint32))
    made_with = {"agent": agent, "config": config, "env": ENV, "seeds": 3}
    path = checkpoint.save(tmp_path, run, step=5, scores=[1.0, 3.0, 2.0], **made_with)
    next((path / "rest").rglob("manifest.ocdbt")).write_bytes(b"damaged")  # which is not for the policy to read

    observation = np.random.default_rng(0).normal(size=(7, *spec.observation.shape)).astype(np.float32)
    act, actions = jax.jit(agent.act), set()
    for where, seed, index in ((tmp_path, "best", 1), (path, 0, 0), (path, 2, 2)):
        policy = checkpoint.load_policy(where, seed=seed)
        one = jax.tree.map(operator.itemgetter(index), state)
        assert_same_bits(policy(observation), act(config, one, observation)[0])
        sample = act(config, one, observation, jax.random.key(3))[0]
        assert_same_bits(policy(observation, jax.random.key(3)), sample)
        actions.add(np.asarray(policy(observation)).tobytes())
    assert len(actions) == 3
    assert policy(observation[0]).shape == spec.action.shape


def toy_run(run_dir: Path, config: Any, scores: Any = None, step: int = 0) -> ToyState:
    state = toy_init(config, ENV.spec, jax.random.key(step))
    run = train.RunState(state, None, jax.random.key(0), jnp.zeros(2, jnp.uint32))
    checkpoint.save(run_dir, run, step=step, agent=TOY, config=config, env=ENV, scores=scores, keep=9)
    return state


def test_a_policy_of_one_run_and_of_somebodys_agent(tmp_path: Path) -> None:
    observation = jnp.ones(4)
    states = {
        step: toy_run(tmp_path, ToyConfig(gain=0.3), [score], step) for step, score in ((1, 5.0), (2, 7.0), (3, 6.0))
    }
    for step, used in ((None, 3), (1, 1), ("best", 2)):
        expected = toy_act(ToyConfig(gain=0.3), states[used], observation)[0]
        np.testing.assert_allclose(
            checkpoint.load_policy(tmp_path, step=step, agent=TOY)(observation), expected, rtol=1e-6
        )
    with pytest.raises(CheckpointError, match=says("is toys.linear, outside of jaxrl.agents: give it as agent=")):
        checkpoint.load_policy(tmp_path)
    with pytest.raises(
        CheckpointError, match=says("made with other settings: agent (was 'toys.linear', is 'jaxrl.agents.ppo')")
    ):
        checkpoint.load_policy(tmp_path, agent=ppo, config=ppo.Config())
    with pytest.raises(CheckpointError, match=says("config.gain (was 0.3, is 0.5)")):
        checkpoint.load_policy(tmp_path, agent=TOY, config=ToyConfig(gain=0.5))
    with pytest.raises(CheckpointError, match=says("no axis of seeds, and no seed 1")):
        checkpoint.load_policy(tmp_path, agent=TOY, seed=1)


def activation(x: jax.Array) -> jax.Array:
    return x


@pytest.mark.parametrize("function", [activation, lambda x: x], ids=["module", "lambda"])
def test_a_configuration_with_a_function_of_ones_own_is_given(tmp_path: Path, function: Any) -> None:
    config = ToyConfig(activation=function)
    state = toy_run(tmp_path, config)
    with pytest.raises(
        CheckpointError, match=says("can't be had back from its text, give it as config=", "neither of jaxrl")
    ):
        checkpoint.load_policy(tmp_path, agent=TOY)
    policy = checkpoint.load_policy(tmp_path, agent=TOY, config=config)
    np.testing.assert_allclose(policy(jnp.ones(4)), jnp.ones(4) @ state.weights, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class OtherData:
    num_envs: int = 4
    length: int = 8
    resets: str = "pool"


@pytest.mark.parametrize("changes", [{"data": OtherData()}, {"gain": {"type": "Rollout"}}, {"gain": "os"}])
def test_a_text_that_gives_something_else_back_is_refused(changes: Any) -> None:
    text = log.describe(ToyConfig().replace(**changes))
    with pytest.raises(CheckpointError, match="can't be had back from its text"):
        checkpoint._config(TOY, text)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_the_configuration_of_every_agent_comes_back_from_its_text(agent: Any) -> None:
    inf = math.inf
    for config in (agent.Config(), small(agent), small(agent, activation=nn.silu, learning_rate=inf)):
        config = canonical(config)
        text = json.loads(json.dumps(log.describe(config)))
        assert_same_bits(checkpoint._config(agent, text), config)


def test_a_configuration_with_arrays_comes_back_from_its_text() -> None:
    config = canonical(ToyConfig(gain=jnp.array([0.1, math.inf]), limits={"low": -0.5, "high": 1e-12}))
    assert_same_bits(checkpoint._config(TOY, log.describe(config)), config)


@pytest.mark.parametrize(
    "spec",
    [
        ENV.spec,
        Spec(Box((2,), (-1.0, -math.inf), (1.5, math.inf)), Discrete(3)),
        Spec(Box((8, 8, 3), 0, 255, "uint8"), Box((), 0.0, 1.0, "float64")),
        Spec(Discrete(5, "int8"), Discrete(2)),
    ],
)
def test_a_spec_comes_back_from_its_text(spec: Spec) -> None:
    text = json.loads(json.dumps(log.describe(spec)))
    assert checkpoint._spec(text) == spec


def test_a_seed_or_a_best_that_is_not_there_is_said(run_dir: Path, tmp_path: Path) -> None:
    for seed in (2, -1, 1.5, "worst"):
        with pytest.raises(CheckpointError, match=says(f"seeds 0 to 1, and no seed {seed!r}")):
            checkpoint.load_policy(run_dir, seed=seed)  # type: ignore[arg-type]
    checkpoint.save(tmp_path / "other", RUN, step=0, **MADE_WITH)
    with pytest.raises(CheckpointError, match=says("has no scores, and no seed is the best")):
        checkpoint.load_policy(tmp_path / "other", seed="best")
    with pytest.raises(CheckpointError, match=says("the steps [0]; none of them has a score")):
        checkpoint.load_policy(tmp_path / "other", step="best")


def test_a_damaged_policy_is_refused(run_dir: Path, unread: None) -> None:
    file = next((run_dir / NEWEST / "agent").rglob("manifest.ocdbt"))
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(
        CheckpointError, match=says(NEWEST, "is damaged", "restore another checkpoint of the run, by its step")
    ):
        checkpoint.load_policy(run_dir)


def test_orbax_is_imported_only_where_it_is_used() -> None:
    code = "import sys, jaxrl.train, jaxrl.checkpoint; sys.exit('orbax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
