"""The record of a run: what is written, read back, refused and printed."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import log
from jaxrl.agents import ppo
from jaxrl.types import Rollout, canonical

nan, inf = math.nan, math.inf
AGENT = types.SimpleNamespace(__name__="toys.agent")


def says(*parts: str) -> str:
    """A pattern for a message that has all of `parts`, word for word and in this order."""
    return "(?s)" + ".*".join(map(re.escape, parts))


class Env:
    spec = None

    def __repr__(self) -> str:
        return "'env'"


def record(run_dir: Path | None = None, seeds: int = 2, **arguments: Any) -> log.Record:
    settings = log.settings(AGENT, {"learning_rate": 0.1}, Env(), seeds)
    return log.Record(run_dir, settings, **({"total": 1000, "asked": 1000, "progress": False} | arguments))


def history(**metrics: Any) -> dict[str, np.ndarray]:
    """Metrics of two seeds and two loop steps; in the second seed no episode ends."""
    columns = {
        "episodes": [[1, 2], [0, 0]],
        "episode_return": [[10.0, 40.0], [nan, nan]],
        "episode_length": [[5.0, 8.0], [nan, nan]],
        "non_finite": [[0, 0], [0, 0]],
        "loss": [[1.0, 3.0], [0.5, nan]],
    }
    return {name: np.asarray(values) for name, values in (columns | metrics).items()}


REDUCED: dict[str, Any] = {
    "episodes": [3, 0],
    "episode_return": [30.0, nan],  # (1 * 10 + 2 * 40) / 3
    "episode_length": [7.0, nan],
    "non_finite": [0, 0],
    "loss": [2.0, nan],
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """The time that the record sees, in seconds; set `clock.now`."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(log, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    yield clock


# ------------------------------------------------------------------------------------------------ reduce


def test_reduce_is_the_loop_over_episodes() -> None:
    rng = np.random.default_rng(0)
    episodes = rng.integers(0, 3, (4, 20)) * (np.arange(4) > 0)[:, None]  # the first seed ends none
    means = np.where(episodes > 0, rng.normal(size=(4, 20)), nan)
    lengths = np.where(episodes > 0, rng.integers(1, 99, (4, 20)).astype(float), nan)
    loss, broken = rng.normal(size=(4, 20)), rng.integers(0, 2, (4, 20))
    got = log.reduce(
        {"loss": loss, "episodes": episodes, "episode_return": means, "episode_length": lengths, "non_finite": broken}
    )
    for seed in range(4):
        columns = [i for i in range(20) for _ in range(episodes[seed, i])]  # one for each episode
        for name, values in (("episode_return", means), ("episode_length", lengths)):
            expected = np.mean(values[seed, columns]) if columns else nan
            np.testing.assert_allclose(got[name][seed], expected)
        assert got["episodes"][seed] == len(columns) and got["non_finite"][seed] == sum(broken[seed])
        np.testing.assert_allclose(got["loss"][seed], sum(loss[seed]) / 20)
    assert math.isnan(got["episode_return"][0]) and len(got) == 5


def test_a_metric_that_is_not_finite_is_not_hidden() -> None:
    got = log.reduce(history())
    for name, expected in REDUCED.items():
        np.testing.assert_allclose(got[name], expected)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0, nan], "2 ± 1"),
        ([12345.678], "12,346"),
        ([-12000.0, -14000.0], "-13,000 ± 1,000"),
        ([0.0012345678, 0.0], "0.0006173 ± 0.0006173"),
        ([1e30], "1e+30"),
        ([nan, 7.25], "7.25"),
        ([nan, inf], "(no episode has ended)"),
    ],
)
def test_spread_is_over_the_seeds_that_have_a_number(values: list[float], text: str) -> None:
    assert log.spread(np.array(values)) == text


# ---------------------------------------------------------------------------------------------- describe


@dataclasses.dataclass(frozen=True)
class Inner:
    radius: Any = 0.1


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Any = dataclasses.field(default_factory=Inner)
    sizes: Any = (64, [32, None])
    flag: bool = True
    table: Any = dataclasses.field(default_factory=lambda: {"a": Inner(2), 3: "text"})


def test_describe_goes_through_everything_that_holds_something() -> None:
    assert log.describe(Outer()) == {
        "type": "Outer",
        "inner": {"type": "Inner", "radius": 0.1},
        "sizes": [64, [32, None]],
        "flag": True,
        "table": {"a": {"type": "Inner", "radius": 2}, "3": "text"},
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (jnp.float32(3e-4), 3e-4),  # and not 0.0003000000142492354
        (np.array([[0.1, 1e-12], [inf, nan]], np.float32), [[0.1, 1e-12], ["inf", "nan"]]),
        (np.float64(1 / 3), 1 / 3),
        (jnp.bfloat16(1.5), 1.5),
        (np.int64(3), 3),
        (jnp.arange(3), [0, 1, 2]),
        (np.array([True]), [True]),
        (-inf, "-inf"),
        (nn.tanh, "jax.numpy.tanh"),
        (nn.relu, "jax._src.nn.functions.relu"),
        (jnp.float32, "jax.numpy.float32"),
        (Inner, f"{__name__}.Inner"),
    ],
)
def test_describe_has_the_nearest_that_json_has(value: Any, expected: Any) -> None:
    assert log.describe(value) == expected
    assert json.loads(json.dumps(log.describe(value), allow_nan=False)) == expected


@pytest.mark.parametrize("value", [functools.partial(nn.leaky_relu, negative_slope=0.1), np.dtype("int8"), {1}, 1j])
def test_describe_shows_anything_else_as_python_does(value: Any) -> None:
    assert log.describe(value) == repr(value)


def test_describe_takes_a_key() -> None:
    assert "key" in log.describe(jax.random.key(0))


@pytest.mark.parametrize("prepare", [lambda config: config, canonical])
def test_the_configuration_of_an_agent_makes_the_round_trip(prepare: Any) -> None:
    config = ppo.Config(data=Rollout(4, 8), clip_value=0.2)
    text = json.loads(json.dumps(log.describe(prepare(config)), allow_nan=False))
    data = text.pop("data")
    assert data.pop("type") == "Rollout" and Rollout(**data) == config.data
    assert text.pop("type") == "Config" and text.pop("activation") == "jax.numpy.tanh"
    read: dict[str, Any] = {
        name: float(x) if x == "inf" else tuple(x) if isinstance(x, list) else x for name, x in text.items()
    }
    assert ppo.Config(**read, data=config.data) == config


# ------------------------------------------------------------------------------------- written and read


def test_what_is_written_is_what_is_read(tmp_path: Path, clock: types.SimpleNamespace) -> None:
    returns = np.arange(8.0).reshape(2, 4)
    with record(tmp_path / "runs" / "one") as run:
        run.evaluation(0, {"greedy": jnp.asarray(returns)})
        clock.now = 102.5
        run.chunk(500, history())
        run.chunk(1000, {name: x[:, :1] for name, x in history(loss=[[4.0, 9.0], [-inf, 9.0]]).items()})
    metrics, evaluations = run.arrays()
    np.testing.assert_array_equal(metrics["steps"], [500, 1000])
    for name, expected in REDUCED.items():
        np.testing.assert_allclose(metrics[name][:, 0], expected)
    np.testing.assert_allclose(metrics["loss"][:, 1], [4.0, -inf])
    np.testing.assert_allclose(metrics["episode_return"][:, 1], [10.0, nan])
    np.testing.assert_array_equal(evaluations["greedy"][:, 0], returns)

    lines = [json.loads(line) for line in (tmp_path / "runs/one/metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"kind": "evaluation", "steps": 0, "seed": 0, "seconds": 0.0, "greedy": [0.0, 1.0, 2.0, 3.0]}
    assert lines[3] == {
        **{"kind": "train", "steps": 500, "seed": 1, "seconds": 2.5, "loss": None},
        **{"episodes": 0, "non_finite": 0, "episode_return": None, "episode_length": None},
    }
    assert [line["seed"] for line in lines] == [0, 1] * 3

    read = log.read(tmp_path / "runs" / "one")
    np.testing.assert_allclose(read.pop("seconds"), [[2.5, 2.5]] * 2)
    assert set(read) == set(metrics)
    for name, values in metrics.items():
        np.testing.assert_array_equal(read[name], np.where(np.isfinite(values), values, nan))
    read = log.read(str(tmp_path / "runs" / "one"), "evaluation")
    np.testing.assert_array_equal(read["greedy"], evaluations["greedy"])
    assert set(read) == {"steps", "greedy", "seconds"} and read["greedy"].shape == (2, 1, 4)


def test_the_settings_are_kept(tmp_path: Path) -> None:
    with record(tmp_path / "run"):
        pass
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["agent"] == "toys.agent" and settings["environment"] == "'env'"
    assert settings["config"] == {"learning_rate": 0.1} and (settings["seeds"], settings["steps"]) == (2, 1000)
    assert settings["versions"]["jax"] == jax.__version__ and settings["device"] == jax.devices()[0].device_kind


def test_a_run_can_be_read_while_it_goes_on(tmp_path: Path) -> None:
    with record(tmp_path / "run") as run:
        assert log.read(tmp_path / "run") == {}
        for steps in (500, 1000):
            run.chunk(steps, history())
            assert log.read(tmp_path / "run")["steps"][-1] == steps


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with record() as run:
        run.chunk(500, history())
        run.evaluation(500, {"greedy": jnp.ones((2, 4))})
    assert not list(tmp_path.iterdir())
    assert [len(arrays["steps"]) for arrays in run.arrays()] == [1, 1]


def test_without_a_point_there_are_no_arrays(tmp_path: Path) -> None:
    with record(tmp_path / "run") as run:
        pass
    assert run.arrays() == ({}, {}) and log.read(tmp_path / "run") == {}


# -------------------------------------------------------------------------------------- runs that broke


def test_the_last_point_before_a_kill_counts_if_all_seeds_have_it(tmp_path: Path) -> None:
    with record(tmp_path / "run") as run:
        for steps in (250, 500):
            run.chunk(steps, history())
            run.evaluation(steps, {"greedy": jnp.ones((2, 4))})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # seed 1 of the last evaluation
    assert log.read(tmp_path / "run", "evaluation")["greedy"].shape == (2, 1, 4)
    np.testing.assert_array_equal(log.read(tmp_path / "run")["steps"], [250, 500])


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"kind": "train", "steps": 10, "se', "JSONDecodeError"),
        ('{"kind": "train", "steps": 10}', "KeyError: 'seed'"),
        ("3", "AttributeError"),
        ("", "JSONDecodeError"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, cause: str) -> None:
    good = '{"kind": "train", "steps": 10, "seed": 0, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(good * 2 + line + "\n")
    with pytest.raises(ValueError, match=says(f"{tmp_path}/metrics.jsonl, line 3", cause, repr(line), "delete it")):
        log.read(tmp_path)


def test_a_directory_without_a_run_and_a_kind_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says("metrics.jsonl does not exist", f"{tmp_path} is not the directory of a")):
        log.read(tmp_path)
    with pytest.raises(ValueError, match=says("kind must be 'train' or 'evaluation', got 'eval'")):
        log.read(tmp_path, "eval")  # type: ignore[arg-type]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    with record(tmp_path / "run") as run:
        run.chunk(1000, history())
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=says(f"run_dir {tmp_path}/run holds a run already", "name another")):
        record(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    record(tmp_path / "other")  # a directory with other things will do


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=says(f"run_dir {path} can't be written", "Errno")):
            record(path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_before_its_first_point_leaves_its_name_free(tmp_path: Path, error: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for name in ("run", "mine"):
        with pytest.raises(error), record(tmp_path / name):
            raise error
        record(tmp_path / name)
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_run_that_fails_later_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), record(tmp_path / "run", progress=True) as run:
        run.chunk(500, history())
        raise RuntimeError
    np.testing.assert_array_equal(log.read(tmp_path / "run")["steps"], [500])
    assert "stopped" not in capsys.readouterr().out  # the error says so


# --------------------------------------------------------------------------------------------- interrupts


@pytest.fixture(autouse=True)
def usual_interrupts() -> Iterator[None]:
    """Python's own handler: a process that was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_asks_and_the_second_one_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with log.interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        assert "stopping after this chunk; Ctrl-C again stops at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_handler_from_before_comes_back(error: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with log.interruptible():
            assert signal.getsignal(signal.SIGINT) is not before
            if error is not None:
                raise error
    except RuntimeError:
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_there_is_nothing_to_handle() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with log.interruptible() as interrupted:
            seen.extend([interrupted(), signal.getsignal(signal.SIGINT) is before])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False, True]


# ------------------------------------------------------------------------------------------ what is shown


def test_the_text_of_a_run(clock: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    both = history(episodes=[[1, 2], [1, 1]], episode_return=[[10.0, 40.0], [20.0, 20.0]])
    with record(progress=True, total=1_000_000, asked=999_999.0) as run:
        with run.compiling():
            clock.now += 3.14
            run.evaluation(0, {"greedy": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "sampled": jnp.ones((2, 2))})
        for steps in (100_000, 200_000, 900_000, 1_000_000):
            clock.now += 3
            run.chunk(steps, history() if steps == 100_000 else both)
        run.evaluation(1_000_000, {"greedy": jnp.array([[100.0, 200.0], [300.0, 400.0]])})
    assert capsys.readouterr().out.splitlines() == [
        "toys.agent on 'env': 2 seeds of 1,000,000 steps (rounded up from 999,999)",
        "compiling ...",
        "evaluation at 0 steps: greedy 2.5 ± 1, sampled 1 ± 0",
        "compiled in 3.1 s",
        "  100,000 / 1,000,000 steps  66,667 steps/s  return 30  0:27 left",
        "  900,000 / 1,000,000 steps  200,000 steps/s  return 25 ± 5  0:01 left",  # the one between came too soon
        "1,000,000 / 1,000,000 steps  166,667 steps/s  return 25 ± 5  0:00 left",
        "evaluation at 1,000,000 steps: greedy 250 ± 100",
    ]


def test_broken_episodes_and_an_early_stop_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with record(progress=True, seeds=1) as run:
        run.chunk(500, history(non_finite=[[0, 1], [2, 0]]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toys.agent on 'env': 1 seed of 1,000 steps"
    assert lines[-2].endswith("left  3 episodes broke down")
    assert lines[-1] == "stopped at 500 of 1,000 steps"


def test_without_progress_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with record() as run, run.compiling():
        run.chunk(500, history())
        run.evaluation(500, {"greedy": jnp.ones((2, 4))})
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_one_line_that_is_rewritten_and_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    with record(progress=True) as run:
        capsys.readouterr()
        for steps in (250, 500, 1000):
            run.chunk(steps, history())
    first, second, last = capsys.readouterr().out.split("\033[K")[1:]
    for line, steps in ((first, "250"), (second, "500")):
        assert line.startswith(f"  {steps} / 1,000 steps") and line.endswith("\r") and len(line) == 40
    assert last.startswith("1,000 / 1,000 steps") and last.endswith("left\n")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (7384, "2:03:04")])
def test_the_time_that_is_left(seconds: float, text: str) -> None:
    assert log._clock(seconds) == text
