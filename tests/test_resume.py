"""A run that was stopped, by whatever, goes on as if it had not been: bit for bit, through its files."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import AGENTS, assert_same, small

from jaxrl import checkpoint, envs, log, train
from jaxrl.agents import ppo
from jaxrl.checkpoint import CheckpointError

ENV = envs.make("jaxrl/point_mass", max_steps=5)
CONFIG = small(ppo)
STEP = CONFIG.data.transitions
KINDS = {type(agent.Config().data).__name__: agent for agent in reversed(AGENTS)}  # an agent for each kind of data


@pytest.fixture(autouse=True)
def seeds_side_by_side() -> Iterator[None]:
    """JAX's check for keys that are used twice takes a vmap over a scan over keys for one."""
    with jax.debug_key_reuse(False):
        yield


def fit(run_dir: Path | None, steps: int, agent: Any = ppo, **settings: Any) -> train.Result:
    """`steps` loop steps of two seeds, with a point of the record every second one."""
    config = small(agent)
    step = config.data.transitions
    every = {"log_every": 2 * step, "evaluate_every": 6 * step, "save_every": 4 * step}
    defaults = {"config": config, "key": jax.random.key(0), "seeds": 2, "episodes": 2, "progress": False} | every
    return train.fit(agent, env=ENV, steps=steps * step, run_dir=run_dir, **(defaults | settings))


@functools.cache
def uninterrupted(steps: int, agent: Any = ppo) -> train.Result:
    return fit(None, steps, agent)


def says(*parts: str) -> str:
    """A pattern for a message that has all of `parts`, word for word and in this order."""
    return "(?s)" + ".*".join(map(re.escape, parts))


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The record, without the time it took."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record.pop("seconds") for record in records] == sorted(
        json.loads(line)["seconds"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    )
    return records


def assert_same_result(result: train.Result, expected: train.Result) -> None:
    assert_same(result.run, expected.run)
    for arrays, others in ((result.metrics, expected.metrics), (result.evaluations, expected.evaluations)):
        assert set(arrays) == set(others)
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, np.where(np.isfinite(others[name]), others[name], np.nan), name)


# ----------------------------------------------------------------------------------- in this process


@pytest.mark.parametrize("agent", KINDS.values(), ids=KINDS.keys())
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, agent: Any) -> None:
    total = 12 if agent is ppo else 24  # until a replay of 64 transitions has wrapped around
    expected = fit(tmp_path / "whole", total, agent)
    assert_same(expected.run, uninterrupted(total, agent).run)  # saving changes nothing
    fit(tmp_path / "parts", total // 2, agent)
    assert_same_result(fit(tmp_path / "parts", total, agent, resume=True), expected)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    fit(tmp_path / "odd", total // 2 - 1, agent)  # its end is no point of the other records
    assert_same(fit(tmp_path / "odd", total, agent, resume=True).run, expected.run)


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"

    def interrupt() -> None:
        while not (run_dir / "metrics.jsonl").exists() or len(log.read(run_dir).get("steps", ())) < 4:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    result = fit(run_dir, 10**6, save_every=float("inf"), evaluate_every=0)
    done = train.transitions(result.run)
    assert 0 < done < 10**6 * STEP and checkpoint.steps(run_dir) == [done]
    total = done // STEP + 4
    result = fit(run_dir, total, resume=True, evaluate_every=0)
    assert_same_result(result, fit(tmp_path / "whole", total, evaluate_every=0))
    assert lines(run_dir) == lines(tmp_path / "whole")


def test_a_run_that_has_all_its_steps_is_returned_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(tmp_path / "run", 12)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    monkeypatch.setattr(train, "_compile", lambda *_: pytest.fail("it was compiled"))
    for steps in (12, 6):
        assert_same_result(fit(tmp_path / "run", steps, resume=True), expected)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 12 * STEP


def test_what_was_compiled_before_is_not_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path / "run", 6)
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(0)
        assert "jit(<lambda>)" in caplog.text
        fit(tmp_path / "run", 12, resume=True)
    assert "jit(chunk)" not in caplog.text and "jit(evaluate)" not in caplog.text


def test_where_there_is_no_run_resume_begins_one(tmp_path: Path) -> None:
    assert_same_result(fit(tmp_path / "new", 12, resume=True), uninterrupted(12))
    with pytest.raises(ValueError, match="resume needs a run_dir; got keep = 2, run_dir = None"):
        fit(None, 12, resume=True)


def test_what_was_recorded_after_the_checkpoint_is_recorded_again(tmp_path: Path) -> None:
    fit(tmp_path / "whole", 12)
    fit(tmp_path / "run", 12)
    for step in (s for s in checkpoint.steps(tmp_path / "run") if s > 8 * STEP):
        (tmp_path / "run" / f"checkpoints/{step:012d}").rename(tmp_path / str(step))
    assert checkpoint.steps(tmp_path / "run")[-1] == 8 * STEP
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "steps": 9')  # where the kill came
    result = fit(tmp_path / "run", 12, resume=True)
    assert_same_result(result, uninterrupted(12))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    fit(tmp_path / "run", 6, save_every=0)
    assert checkpoint.steps(tmp_path / "run") == []
    result = fit(tmp_path / "run", 12, resume=True)
    assert_same_result(result, uninterrupted(12))
    assert len(lines(tmp_path / "run")) == 2 * (6 + 3)
    (tmp_path / "early").mkdir()
    (tmp_path / "run" / "config.json").rename(tmp_path / "early" / "config.json")  # killed before it had a record
    assert_same_result(fit(tmp_path / "early", 12, resume=True), uninterrupted(12))


def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(tmp_path: Path) -> None:
    fit(tmp_path / "run", 12, keep=5)
    assert checkpoint.steps(tmp_path / "run") == [4 * STEP, 8 * STEP, 12 * STEP]
    (tmp_path / f"run/checkpoints/{12 * STEP:012d}/manifest.json").write_text("{")
    with pytest.warns(UserWarning, match=says(f"{12 * STEP:012d} is damaged", f"Used that of step {8 * STEP} instead")):
        result = fit(tmp_path / "run", 12, resume=True, keep=5)
    assert_same_result(result, uninterrupted(12))
    assert_same_result(fit(tmp_path / "run", 12, resume=True), uninterrupted(12))  # the damaged one has been replaced


def test_checkpoints_are_made_when_they_were_asked_for(tmp_path: Path) -> None:
    for name, every, steps in [
        ("default", None, [2, 4, 6, 8, 10, 12]),  # a tenth is 1.2 steps: one at each point of the record
        ("odd", 5 * STEP, [6, 10, 12]),  # at the point of the record after 5 and 10, and at the end
        ("end", float("inf"), [12]),
        ("none", 0, []),
    ]:
        fit(tmp_path / name, 12, save_every=every, keep=99, evaluate_every=0)
        assert checkpoint.steps(tmp_path / name) == [step * STEP for step in steps], name
        assert (tmp_path / name / "checkpoints").exists() == bool(steps)


def test_the_best_is_by_evaluation_and_is_the_policy_of_the_result(tmp_path: Path) -> None:
    result = fit(tmp_path / "run", 12, keep=1, evaluate_every=4 * STEP)
    returns = result.evaluations["greedy"].mean((0, 2))[1:]  # none is saved before the first step
    best = int(result.evaluations["steps"][1 + returns.argmax()])
    assert checkpoint.steps(tmp_path / "run") == sorted({best, 12 * STEP})
    seed = int(result.evaluations["greedy"][:, -1].mean(-1).argmax())
    observation = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    state = jax.tree.map(lambda leaf: leaf[seed], result.run.agent)
    expected = jax.jit(ppo.act)(CONFIG, state, observation)[0]
    np.testing.assert_array_equal(checkpoint.load_policy(tmp_path / "run", seed="best")(observation), expected)
    checkpoint.load_policy(tmp_path / "run", step="best")(observation)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": CONFIG.replace(learning_rate=0.5)}, "config.learning_rate (was 0.01, is 0.5)"),
        ({"key": jax.random.key(1)}, "key (was [0, 0], is [0, 1])"),
        ({"seeds": 3}, "seeds (was 2, is 3)"),
        ({"episodes": 3}, "episodes (was 2, is 3)"),
        ({"evaluate_key": jax.random.key(1)}, "evaluate_key (was [0, 0], is [0, 1])"),
        ({"env": envs.make("jaxrl/point_mass", max_steps=6)}, "environment (was 'PointMass(max_steps=5)'"),
    ],
)
@pytest.mark.parametrize("save_every", [0, None])
def test_a_run_with_other_settings_is_refused_and_kept(
    tmp_path: Path, changes: dict[str, Any], message: str, save_every: float | None
) -> None:
    fit(tmp_path / "run", 2, save_every=save_every, evaluate_every=0)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    arguments: dict[str, Any] = {"agent": ppo, "config": CONFIG, "env": ENV, "key": jax.random.key(0)}
    arguments |= {"seeds": 2, "episodes": 2} | changes
    with pytest.raises(CheckpointError, match=says("config.json was made with other settings:", message)):
        train.fit(**arguments, steps=STEP, run_dir=tmp_path / "run", resume=True, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_damaged_description_and_a_directory_without_one_are_refused(tmp_path: Path) -> None:
    fit(tmp_path / "run", 2, evaluate_every=0)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text()[:-9])
    with pytest.raises(CheckpointError, match=says("config.json is damaged", "begin anew in another run_dir")):
        fit(tmp_path / "run", 2, resume=True)
    config.unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    for resume in (False, True):
        with pytest.raises(ValueError, match=says("holds a run already")):
            fit(tmp_path / "run", 2, resume=resume)


def test_a_checkpoint_that_can_not_be_written_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=says("could not be written", "File exists")):
        fit(tmp_path / "run", 12)
    assert len(log.read(tmp_path / "run")["steps"])  # the record stays


# ---------------------------------------------------------------------------------- other processes


RUN = """
    import importlib, sys
    import jax
    from helpers import small
    from jaxrl import envs, train
    agent, run_dir, steps, seeds = importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    config, env = small(agent), envs.make("jaxrl/point_mass", max_steps=5)
    step = config.data.transitions
    train.fit(agent, config, env, jax.random.key(0), steps=steps * step, seeds=seeds, run_dir=run_dir, resume=True,
              log_every=2 * step, evaluate_every=6 * step, save_every=4 * step, episodes=2)
"""


def start(agent: Any, run_dir: Path, steps: int, seeds: int = 2, devices: int = 1) -> subprocess.Popen[str]:
    """A fresh process that runs or resumes `steps` loop steps."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), agent.__name__, str(run_dir), str(steps), str(seeds)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])}
        | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_DEBUG_KEY_REUSE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> None:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"it hung: {output}")
    assert process.returncode == 0, output


def recorded(run_dir: Path) -> int:
    """How far a record has got."""
    try:
        last = (run_dir / "metrics.jsonl").read_text().splitlines()[-1]
        return int(json.loads(last)["steps"])
    except (OSError, ValueError, IndexError):
        return 0


def kill_within(process: subprocess.Popen[str], run_dir: Path, steps: int, seconds: float) -> bool:
    """SIGKILL after the record has grown by `steps`, and some seconds; whether it came before the end."""
    target, began = recorded(run_dir) + steps, time.monotonic()
    while recorded(run_dir) < target and process.poll() is None and time.monotonic() < began + 300:
        time.sleep(0.002)
    time.sleep(seconds)
    killed = process.poll() is None
    process.kill()
    output, _ = process.communicate(timeout=60)
    assert killed or process.returncode == 0, output
    return killed


def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    process = start(ppo, tmp_path / "run", 100_000)
    assert kill_within(process, tmp_path / "run", 10 * STEP, 0.02)
    total = recorded(tmp_path / "run") // STEP + 6
    result = fit(tmp_path / "run", total, resume=True)
    assert_same_result(result, fit(tmp_path / "whole", total))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("agent", KINDS.values(), ids=KINDS.keys())
def test_a_run_that_was_killed_twenty_times_goes_on_bit_for_bit(tmp_path: Path, agent: Any) -> None:
    """At any time: while it starts, trains, evaluates, writes or removes a checkpoint."""
    rng, step, run_dir = random.Random(0), small(agent).data.transitions, tmp_path / "run"
    total, kills = 400, 0
    while kills < 20:
        grown, seconds = (
            (0, rng.uniform(0, 8)) if kills % 5 == 4 else (rng.randrange(1, 12) * step, rng.uniform(0, 0.2))
        )
        kills += kill_within(start(agent, run_dir, total), run_dir, grown, seconds)
        assert recorded(run_dir) < total * step, "it came to its end before it had been killed often enough"
    finish(start(agent, run_dir, total))
    result = fit(run_dir, total, agent, resume=True)
    assert_same_result(result, fit(tmp_path / "whole", total, agent))
    assert lines(run_dir) == lines(tmp_path / "whole")
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {
        f"{s:012d}" for s in checkpoint.steps(run_dir)
    }


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path: Path) -> None:
    """From the same bits; what comes of them then is rounded otherwise, as it is without a stop."""
    expected = jax.tree.leaves(fit(None, 12, seeds=8).run.agent)  # here there is one
    finish(start(ppo, tmp_path / "fewer", 6, seeds=8, devices=4))
    fit(tmp_path / "more", 6, seeds=8)
    finish(start(ppo, tmp_path / "more", 12, seeds=8, devices=4))
    for name in ("fewer", "more"):
        result = fit(tmp_path / name, 12, seeds=8, resume=True)
        for got, wanted in zip(jax.tree.leaves(result.run.agent), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
