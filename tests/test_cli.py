"""The command line: each command for real, on good arguments and on bad ones; runs that are hostile or cut short."""

from __future__ import annotations

import dataclasses
import html.parser
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import jax_settings
from PIL import Image

from jaxrl import checkpoint, envs, log, risk, train
from jaxrl.agents import ppo, sac
from jaxrl.cli import evaluation, laws, listing, main, options, render, report, runs, training
from jaxrl.distributional import critics
from jaxrl.networks import Plain, SimbaV2
from jaxrl.types import Replay

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment", "seeds_side_by_side")

STEP = 32  # transitions of a loop step
SMALL = ["--config.hidden-sizes", "8", "--config.data.num-envs", "4", "--config.data.length", "8"]
TRAIN = ["ppo", "jaxrl/point_mass", "--settings", "max_steps=5", "--seeds", "2", "--episodes", "2", *SMALL]


@pytest.fixture(scope="module")
def seeds_side_by_side() -> Iterator[None]:
    """JAX's check for keys that are used twice takes a vmap over a scan over keys for one."""
    with jax_settings(jax_debug_key_reuse=False):
        yield


class Said(tuple[int, str, str]):
    """Exit status, stdout, stderr."""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: Any) -> Said:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        return Said((status, *capsys.readouterr()))

    return run


def refused(said: Said, *parts: str, status: int | None = None) -> None:
    """It ended with one line that has all of `parts`, in this order."""
    code, out, error = said
    assert code in ((1, 2) if status is None else (status,)), said
    assert error.startswith("jaxrl: ") and error.count("\n") == 1 and "Traceback" not in error + out, said
    place = 0
    for part in parts:
        assert part in error[place:], (part, error)
        place = error.index(part, place) + len(part)


@pytest.fixture(scope="module")
def trained(compiled_in_a_moment: None, seeds_side_by_side: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds and 12 loop steps; copy it before you change it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    steps = ["--steps", str(12 * STEP), "--log-every", str(2 * STEP), "--evaluate-every", str(6 * STEP)]
    assert main(["train", *TRAIN, *steps, "--run-dir", str(path), "--quiet"]) == 0
    return path


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


# -------------------------------------------------------------------------------------- what there is


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"jax", "numpy", "tyro", "brax", "gymnax"}),
        (["list", "agents"], {"jax", "numpy", "tyro", "brax", "gymnax"}),
        (["list"], {"brax", "gymnax", "gymnasium", "mujoco", "orbax", "matplotlib", "distrax"}),
    ],
)
def test_what_needs_no_simulator_loads_none(arguments: list[str], absent: set[str]) -> None:
    program = f"import sys; from jaxrl.cli import main; main({arguments}); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stderr.splitlines()[-1]))
    assert done.stdout and not loaded & absent


def test_the_lists_have_everything(say: Callable[..., Said]) -> None:
    status, out, _ = say("list")
    assert status == 0
    for name in envs.names():
        assert f" {name.partition('/')[2]}" in out
    for name in (*listing.agents(), "L1(radius)", "Wasserstein(radius, metric)", "CVaR(level)", "river_swim"):
        assert f"  {name} " in out
    assert say("list", "sets")[1].startswith("sets\n")
    assert say("list", "--help")[0] == 0
    assert listing.agents()["ppo"] == "Proximal policy optimisation (PPO)."


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], []])
def test_help_is_no_failure(say: Callable[..., Said], arguments: list[str]) -> None:
    status, out, error = say(*arguments)
    assert status == 0 and "jaxrl" in out and not error


@pytest.mark.parametrize("command", ["resume", "eval", "plot", "render", "report", "solve"])
def test_each_command_has_help(say: Callable[..., Said], command: str) -> None:
    status, out, _ = say(command, "--help")
    assert status == 0 and f"usage: jaxrl {command}" in out and "fixed" not in out


# --------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", listing.agents())
def test_every_setting_of_every_agent_is_an_option(say: Callable[..., Said], name: str) -> None:
    agent = importlib.import_module(f"jaxrl.agents.{name}")
    assert training.parse(name, ["some/name"]).config == agent.Config()
    status, out, _ = say("train", name, "--help")
    assert status == 0 and "fixed" not in out
    for field in dataclasses.fields(agent.Config):
        assert f"--config.{field.name.replace('_', '-').rstrip('-')}" in out


def test_comments_are_the_help(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = say("train", "ppo", "--help")[1]
    for text in (
        "Adam's step size (default: 0.0003)",
        "environment transitions of each seed",
        "one rollout per update",
    ):
        assert text in out
    assert "Proximal policy optimisation" in out


@pytest.mark.parametrize(
    ("agent", "arguments", "changes"),
    [
        ("ppo", ["--config.learning-rate", "1e-2"], {"learning_rate": 0.01}),
        ("ppo", ["--config.anneal-updates", "5"], {"anneal_updates": 5.0}),
        ("ppo", ["--config.anneal-updates", "inf"], {"anneal_updates": math.inf}),
        ("ppo", ["--config.target-kl", "0.5", "--config.clip-value", "None"], {"target_kl": 0.5, "clip_value": None}),
        ("ppo", ["--config.no-normalise-observations"], {"normalise_observations": False}),
        ("ppo", ["--config.hidden-sizes"], {"hidden_sizes": ()}),
        ("ppo", ["--config.hidden-sizes", "3", "4"], {"hidden_sizes": (3, 4)}),
        ("ppo", ["--config.activation", "swish"], {"activation": jax.nn.swish}),
        ("sac", ["--config.critic-hidden-sizes", "7", "7"], {"critic_hidden_sizes": (7, 7)}),
        ("sac", ["--config.critic", "quantile(5)"], {"critic": critics.Quantile(5)}),
        (
            "sac",
            ["--config.critic", "Categorical(-1, high=1.5, size=11)", "--config.risk", "CVaR(0.25)"],
            {"critic": critics.Categorical(-1, 1.5, 11), "risk": risk.CVaR(0.25)},
        ),
        ("sac", ["--config.network", "Plain(layer_norm=True)"], {"network": Plain(layer_norm=True)}),
        ("sac", ["--config.network", "simba-v2"], {"network": SimbaV2()}),
        ("bpg", ["--config.kernel", "quadratic"], {"kernel": "quadratic"}),
    ],
)
def test_settings_arrive(agent: str, arguments: list[str], changes: dict[str, Any]) -> None:
    default = importlib.import_module(f"jaxrl.agents.{agent}").Config()
    config = training.parse(agent, ["some/name", *arguments]).config
    assert config == default.replace(**changes)
    assert all(type(getattr(config, name)) is type(value) for name, value in changes.items())


def test_nested_settings_arrive() -> None:
    arguments = ["x/y", "--config.data.capacity", "64", "--config.data.batch-size", "8", "--config.data.warmup", "0"]
    asked = training.parse("sac", [*arguments, "--steps", "1e3", "--seeds", "4", "--save-every", "inf"])
    assert asked.config == sac.Config(data=dataclasses.replace(sac.Config().data, capacity=64, batch_size=8, warmup=0))
    assert isinstance(asked.config.data, Replay)
    assert (asked.environment, asked.steps, asked.seeds, asked.save_every) == ("x/y", 1000.0, 4, math.inf)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pair(1, 2)", (1, 2)),
        ("PAIR(-1.5, b=(1, 'x'))", (-1.5, (1, "x"))),
        ("pair(pair(1, 2), inf)", ((1, 2), math.inf)),
        ("a-pair(1,2)", "refused"),
        ("pair(1)", "refused"),
        ("pair(1, 2).real", "refused"),
        ("pair(__import__('os'), 1)", "refused"),
        ("pair(1, 2) if 1 else 0", "refused"),
        ("pair(*[1, 2])", "refused"),
        ("pair(1, 2, **{'a': 1})", "refused"),
        ("(" * 10_000, "refused"),
        ("pair(1, \0)", "refused"),
        ("", "refused"),
    ],
)
def test_a_value_is_a_call_and_nothing_else(text: str, value: Any) -> None:
    def pair(a: Any, b: Any) -> Any:
        return a, b

    if value == "refused":
        with pytest.raises(ValueError):
            options.call(text, {"pair": pair}, "thing")
    else:
        assert options.call(text, {"pair": pair}, "thing") == value


# --------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ["no command 'trian'; did you mean train?"]),
        (["train"], ["train needs an agent and an environment"]),
        (["train", "--seeds", "3"], ["train needs an agent"]),
        (["train", "pop", "jaxrl/pendulum"], ["no agent 'pop'; did you mean ppo", "jaxrl list agents"]),
        (["train", "ppo"], ["ENVIRONMENT"]),
        (["train", "ppo", "jaxrl/pendulun"], ["no environment 'jaxrl/pendulun'; did you mean jaxrl/pendulum"]),
        (["train", "ppo", "brax/swimmer"], ["brax/swimmer is not available"]),
        (["train", "ppo", "jaxrl/pendulum", "--seed", "x"], ["--seed", "'x'"]),
        (["train", "ppo", "jaxrl/pendulum", "--sedes", "2"], ["--sedes", "did you mean", "--seed"]),
        (["train", "ppo", "jaxrl/pendulum", "--config.discont", "1"], ["did you mean --config.discount"]),
        (["train", "ppo", "jaxrl/pendulum", "--config.discount", "2"], ["Config.discount must be in [0, 1), got 2"]),
        (["train", "ppo", "jaxrl/pendulum", "--config.num-epochs", "1.5"], ["--config.num-epochs", "1.5"]),
        (["train", "ppo", "jaxrl/pendulum", "--config.activation", "relo"], ["'relo'; did you mean", "relu"]),
        (["train", "sac", "jaxrl/pendulum", "--config.risk", "CVR(0.1)"], ["'CVR'; did you mean CVaR"]),
        (["train", "sac", "jaxrl/pendulum", "--config.risk", "CVaR(3)"], ["CVaR.level must be in [0, 1]"]),
        (["train", "sac", "jaxrl/pendulum", "--config.risk", "CVaR()"], ["CVaR", "missing", "'level'"]),
        (["train", "ppo", "jaxrl/pendulum", "--settings", "max_steps"], ["--settings are name=value"]),
        (["train", "ppo", "jaxrl/pendulum", "--settings", "length=3"], ["unexpected keyword argument 'length'"]),
        (["train", "ppo", "jaxrl/pendulum", "--steps", "0"], ["steps, seeds and episodes must be positive"]),
        (["list", "agnets"], ["'agnets'; did you mean agents"]),
        (["resume"], ["RUN"]),
        (["plot"], ["RUN"]),
        (["solve", "river_swin"], ["no model 'river_swin'; did you mean river_swim"]),
        (["solve", "nothing.csv"], ["nothing.csv: No such file"]),
        (["solve", "nothing.txt"], ["expected .csv or .npz"]),
        (["solve", "FrozenLake-v9"], ["FrozenLake"]),
        (["solve", "CartPole-v1"], ["no table of transitions"]),
        (["solve", "river_swim(stats=3)"], ["unexpected keyword argument 'stats'"]),
        (["solve", "river_swim", "--set", "l3", "--radius", "1"], ["no set 'l3'; did you mean"]),
        (["solve", "river_swim", "--set", "l1"], ["--set l1 needs its radius: give --radius"]),
        (["solve", "river_swim", "--set", "L1(0.1)", "--radius", "1"], ["--radius goes with a set"]),
        (["solve", "river_swim", "--radius", "1"], ["--radius goes with a set"]),
        (["solve", "river_swim", "--set", "l1", "--radius", "-1"], ["L1.radius must be at least 0, got -1"]),
        (["solve", "river_swim", "--set", "wasserstein", "--radius", "1"], ["missing", "'metric'"]),
        (["solve", "river_swim", "--out", "x.csv"], ["--out x.csv has the suffix '.csv', expected .npz"]),
        (["solve", "river_swim", "--figure", "x.png"], ["--figure needs a set with a radius"]),
        (["solve", "river_swim", "--settings", "a=1"], ["--settings go with a table of Gymnasium"]),
    ],
    ids=" ".join,
)
def test_bad_arguments_are_one_line(
    say: Callable[..., Said], arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(say(*arguments), *parts)
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


def test_a_trace_is_there_for_the_asking(say: Callable[..., Said]) -> None:
    with pytest.raises(ValueError, match="no command 'x'"):
        say("--trace", "x")


def test_failures_that_nobody_foresaw_are_one_line(
    say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("first\n  second")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "fit", fails)
    refused(say("train", *TRAIN), "RuntimeError: first second", status=1)
    monkeypatch.setattr(train, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    refused(say("train", *TRAIN), "interrupted", status=130)
    assert not list((tmp_path / "runs").iterdir())


# ---------------------------------------------------------------------------------- train and resume


def test_a_run_is_what_fit_gives_for_the_same_settings(trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == [
        "checkpoints",
        "command.json",
        "config.json",
        "metrics.jsonl",
    ]
    config = ppo.Config(hidden_sizes=(8,), data=dataclasses.replace(ppo.Config().data, num_envs=4, length=8))
    env = envs.make("jaxrl/point_mass", max_steps=5)
    every = {"log_every": 2 * STEP, "evaluate_every": 6 * STEP}
    key = jax.random.key(0)
    result = train.fit(ppo, config, env, key, steps=12 * STEP, seeds=2, episodes=2, progress=False, **every)
    for kind, expected in (("train", result.metrics), ("evaluation", result.evaluations)):
        arrays = log.read(trained, kind)  # type: ignore[arg-type]
        for name, values in expected.items():
            np.testing.assert_array_equal(arrays[name], np.where(np.isfinite(values), values, np.nan), name)


def test_runs_get_names_of_their_own(say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def fit(*_: Any, run_dir: Path, **__: Any) -> train.Result:
        (run_dir / "config.json").touch()
        return train.Result(None, {}, {})  # type: ignore[arg-type]

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "transitions", lambda run: 10**9)
    for name in ("ppo-jaxrl-point_mass", "ppo-jaxrl-point_mass-2"):
        assert say("train", *TRAIN)[1] == f"runs/{name} is complete: jaxrl report runs/{name}\n"
    refused(
        say("train", *TRAIN, "--run-dir", "runs/ppo-jaxrl-point_mass"), "is there already", "jaxrl resume", status=2
    )


def test_a_run_goes_on(say: Callable[..., Said], copy: Path) -> None:
    before = log.read(copy)
    status, out, _ = say("resume", copy, "--quiet")
    assert status == 0 and "is complete" in out
    np.testing.assert_array_equal(log.read(copy)["steps"], before["steps"])
    status, out, _ = say("resume", copy, "--steps", 16 * STEP)
    assert status == 0 and "from 384 steps on" in out
    after = log.read(copy)
    np.testing.assert_array_equal(after["steps"], np.arange(2, 17, 2) * STEP)
    np.testing.assert_array_equal(after["episode_return"][:, :6], before["episode_return"])
    assert say("resume", copy)[0] == 0  # as many steps as it has been given last, not as at first
    assert json.loads((copy / "config.json").read_text())["steps"] == 16 * STEP


def test_a_run_of_python_is_not_resumed(say: Callable[..., Said], copy: Path) -> None:
    (copy / "command.json").unlink()
    for command in ("resume", "eval", "render"):
        refused(say(command, copy), "was not begun by jaxrl train", "Python", status=1)
    assert say("report", copy)[0] == 0 and say("plot", copy)[0] == 0


def test_ctrl_c_leaves_a_run_that_goes_on(say: Callable[..., Said], tmp_path: Path) -> None:
    """Another process, which gets the signal of a terminal: it saves, and says how to go on; and the run goes on."""
    run = tmp_path / "run"
    arguments = [*TRAIN, "--steps", "1e9", "--log-every", str(STEP), "--evaluate-every", "0", "--run-dir", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxrl.cli", "train", *arguments],
        env=os.environ | {"JAX_DEBUG_KEY_REUSE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        limit = time.monotonic() + 200
        while time.monotonic() < limit and process.poll() is None and _points(run) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, (out, error)
    assert out.endswith(f"steps: jaxrl resume {run}\n") and "Traceback" not in error
    done = checkpoint.steps(run)[-1]
    assert 3 * STEP <= done < 10**9 and _points(run) * STEP == done
    assert say("resume", run, "--steps", done + 2 * STEP, "--quiet")[0] == 0
    np.testing.assert_array_equal(log.read(run)["steps"], np.arange(1, done // STEP + 3) * STEP)


def _points(run: Path) -> int:
    try:
        return len(log.read(run).get("steps", ()))
    except ValueError:
        return 0


# ------------------------------------------------------------------------------------- eval and plot


def test_eval_is_the_policy_in_its_environment(say: Callable[..., Said], copy: Path) -> None:
    status, out, _ = say("eval", copy, "--episodes", 3, "--seed", 5)
    assert status == 0 and "PointMass(max_steps=5): 3 episodes of each seed" in out
    kept = json.loads((copy / "evaluation.json").read_text())
    assert (kept["steps"], kept["seed"]) == (12 * STEP, 5)
    env = envs.make("jaxrl/point_mass", max_steps=5)
    starts = jax.random.split(jax.random.split(jax.random.key(5))[0], 6)[:3]  # the first half is greedy
    for seed in range(2):
        policy = checkpoint.load_policy(copy, seed=seed)
        for i, start in enumerate(starts):
            state, observation = env.reset(env.params(), start)
            total = 0.0
            for _ in range(5):
                action = env.spec.action.clip(policy(observation))
                state, step = env.step(env.params(), state, action, start)
                observation, total = step.observation, total + float(step.reward)
            np.testing.assert_allclose(kept["greedy"][seed][i], total, rtol=1e-5)
    assert f"{np.mean(kept['greedy'][1]):,.4g} ± " in out


def test_eval_elsewhere_and_of_another_checkpoint(say: Callable[..., Said], copy: Path) -> None:
    status, out, _ = say("eval", copy, "--episodes", 2, "--settings", "max_steps=3", "--step", "best", "--no-save")
    assert status == 0 and "PointMass(max_steps=3)" in out and not (copy / "evaluation.json").exists()
    refused(say("eval", copy, "--environment", "jaxrl/pendulum"), "Pendulum", "has learned with")
    refused(say("eval", copy, "--step", "7"), "not of step 7", status=1)
    refused(say("eval", copy, "--step", "last"), "--step is newest, best or a number", status=2)
    refused(say("eval", copy, "--episodes", "0"), "--episodes must be at least 1", status=2)


def test_plot(say: Callable[..., Said], copy: Path, tmp_path: Path) -> None:
    status, out, _ = say("plot", copy)
    assert status == 0 and out == f"wrote {copy}/figures/episode_return.png\n"
    shutil.copytree(copy, tmp_path / "other")
    path = tmp_path / "figure.svg"
    assert say("plot", copy, tmp_path / "other", "--metric", "greedy", "--out", path)[0] == 0
    assert ">other<" in path.read_text() or "other" in path.read_text()
    refused(say("plot", copy, copy), "named twice")
    refused(say("plot", copy, "--metric", "greed"), "no metric 'greed'; did you mean greedy", "value_loss")
    refused(say("plot", copy, "--out", tmp_path / "figure.exe"), "suffix '.exe'")
    refused(say("plot", tmp_path / "rum"), f"no run in {tmp_path} called 'rum'; did you mean run?")


# --------------------------------------------------------------------------------------------- solve


def test_solve_writes_a_solution_that_proves_itself(say: Callable[..., Said], tmp_path: Path) -> None:
    """Checked with NumPy alone: the laws are within the radius, and the value is theirs and no worse by any action."""
    out, figure, model = tmp_path / "solution.npz", tmp_path / "value.png", tmp_path / "model.csv"
    rows = ["0,0,0,0.5,1", "0,0,1,0.5,1", "0,1,1,1,1.4", "1,0,0,0.3,0", "1,0,1,0.7,0"]
    model.write_text("\n".join(["idstatefrom,idaction,idstateto,probability,reward", *rows]) + "\n")
    arguments = ["solve", model, "--set", "l1", "--radius", "0.2", "--discount", "0.9", "--out", out]
    status, text, _ = say(*arguments, "--figure", figure)
    assert status == 0 and "2 states, 2 actions, discount 0.9" in text and "wrote" in text
    with np.load(out) as arrays:
        solution = {name: arrays[name] for name in arrays.files}
    assert solution["value"].dtype == np.float64 and solution["converged"] and solution["error_bound"] < 1e-6
    nominal = np.array([[[0.5, 0.5], [0.0, 1.0]], [[0.3, 0.7], [0.3, 0.7]]])
    reward = np.array([[1, 1.4], [0, 0]])
    value, q = np.zeros(2), np.zeros((2, 2))
    for _ in range(400):  # two states: nature moves 0.1 from the better to the worse, if there is some on both
        for s, a in np.ndindex(2, 2):
            law = nominal[s, a].copy()
            moved = min(0.1, law[value.argmax()]) if law.min() > 0 and value[0] != value[1] else 0.0
            law[value.argmax()] -= moved
            law[value.argmin()] += moved
            q[s, a] = reward[s, a] + 0.9 * law @ value
        value = q.max(1)
    np.testing.assert_allclose(solution["value"], value, atol=2e-6)
    np.testing.assert_allclose(solution["q"], q, atol=2e-6)
    said = re.search(r"value (\S+) at the start, within (\S+) in every state", text)
    assert said is not None and abs(float(said[1]) - value.mean()) < 2e-6 and float(said[2]) < 1e-6
    with Image.open(figure) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["machine_replacement"], "10 states, 2 actions, discount 0.8"),
        (["machine_replacement", "--set", "CVaR(0.5)", "--discount", "0.5"], "discount 0.5"),
        (["FrozenLake-v1", "--settings", "is_slippery=False", "--discount", "0.9"], "value 0.59049 at the start"),
    ],
)
def test_models_by_name(say: Callable[..., Said], arguments: list[str], text: str) -> None:
    status, out, error = say("solve", *arguments)
    assert status == 0 and text in out, error


def test_what_does_not_converge_fails(say: Callable[..., Said]) -> None:
    refused(say("solve", "machine_replacement", "--tolerance", "1e-300"), "did not converge", status=1)


# -------------------------------------------------------------------------------------------- report


class Page(html.parser.HTMLParser):
    """What is on a page: its text, its tags, and whether they are nested as they should be."""

    EMPTY = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_report_has_everything(say: Callable[..., Said], copy: Path) -> None:
    assert say("eval", copy, "--episodes", 2)[0] == 0
    Image.new("RGB", (2, 2)).save(copy / "render.gif")
    status, out, _ = say("report", copy)
    assert status == 0 and out == f"wrote {copy}/report.html\n"
    page = Page((copy / "report.html").read_text())
    greedy = log.read(copy, "evaluation")["greedy"][:, -1]
    kept = json.loads((copy / "evaluation.json").read_text())["greedy"]
    for text in (
        "ppo on PointMass(max_steps=5)",
        "384 of 384 environment steps of each of 2 seeds",
        f"jaxrl train {' '.join(TRAIN)} --steps 384",
        f"{greedy[0].mean():,.4g} ± {greedy[0].std():.3g}",
        f"{np.mean(kept[1]):,.4g} ±",
        "clip_ratio0.2",
        "data.num_envs464",  # setting, value, default
        "jaxlib" + importlib.import_module("jaxlib").__version__,
    ):
        assert text in page.said, text
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert [image.partition(",")[0] for image in images] == [
        "data:image/png;base64",
        "data:image/png;base64",
        "data:image/gif;base64",
        "data:image/png;base64",
    ]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}


def test_the_law_that_critics_see_is_on_the_page(say: Callable[..., Said], tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = ["--config.hidden-sizes", "8", "--config.data.capacity", "64", "--config.data.warmup", "8"]
    arguments = ["sac", "jaxrl/point_mass", "--settings", "max_steps=5", *sizes, "--config.critic", "Quantile(3)"]
    assert say("train", *arguments, "--steps", "12", "--evaluate-every", "0", "--run-dir", run)[0] == 0
    assert say("eval", run, "--episodes", 2)[0] == 0
    law = np.array(json.loads((run / "evaluation.json").read_text())["law"])
    learned = evaluation.load(runs.find(run), "newest")
    starts = jax.random.split(jax.random.key(1), laws.STARTS)
    observations = np.stack([learned.env.reset(learned.env.params(), start)[1] for start in starts])
    actions = checkpoint.load_policy(run)(observations)  # in [-1, 1], as the critics take them
    params = jax.tree.map(lambda leaf: leaf[0], learned.state.params["critics"])
    atoms = sac.critics(learned.config, params, observations, actions)
    expected = np.quantile(np.ravel(atoms), laws.LEVELS, method="inverted_cdf")
    np.testing.assert_allclose(law, expected[None], rtol=1e-5, atol=1e-6)
    assert say("report", run)[0] == 0
    assert "law of the return that the critics see" in (run / "report.html").read_text()


def test_the_report_of_a_run_that_has_hardly_begun(say: Callable[..., Said], copy: Path) -> None:
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:2]))  # the first evaluation
    assert say("report", copy)[0] == 0
    (copy / "metrics.jsonl").write_text("")
    assert say("report", copy)[0] == 0
    said = Page((copy / "report.html").read_text()).said
    assert "0 of 384 environment steps" in said and "No episode has ended yet" in said
    refused(say("plot", copy), "no point in its record yet", status=1)
    refused(say("plot", copy, "--metric", "greedy"), "no evaluation yet", status=1)


def test_the_report_says_how_a_longer_run_came_about(say: Callable[..., Said], copy: Path) -> None:
    assert say("resume", copy, "--steps", 13 * STEP, "--quiet")[0] == 0
    assert f"jaxrl resume {copy} --steps {13 * STEP}" in report.page(runs.find(copy), copy)
    (copy / "command.json").write_text(json.dumps({"arguments": ["train", "gone", "x"]}))
    assert "jaxrl train gone x" in report.page(runs.find(copy), copy)


# ---------------------------------------------------------------------------------------- hostile runs

EVIL = "<script>alert(1)</script>"


def test_what_a_run_says_is_text_on_its_page(say: Callable[..., Said], copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"agent": EVIL, "environment": EVIL, "device": EVIL, EVIL: EVIL}
    config["config"] |= {EVIL: EVIL}
    config["versions"] |= {EVIL: EVIL}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "command.json").write_text(json.dumps({"arguments": ["train", EVIL, "'$(rm x)'"]}))
    about = {"steps": 1, "environment": EVIL, "seed": 0, "greedy": [[1.0]], "sampled": [[1.0]]}
    (copy / "evaluation.json").write_text(json.dumps(about))
    (copy / "render.html").write_text(EVIL)
    record = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines = (json.dumps(line | ({EVIL: 1.0, "$x^{": 2.0} if line["kind"] == "train" else {})) for line in record)
    (copy / "metrics.jsonl").write_text("\n".join(lines))
    assert say("report", copy)[0] == 0
    page = Page((copy / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags} and page.said.count(EVIL) >= 7
    assert [attributes["sandbox"] for tag, attributes in page.tags if tag == "iframe"] == ["allow-scripts"]
    refused(say("resume", copy), "command.json can't be used: there is no agent", status=1)


def _json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        value = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(value | changes))

    return change


def _text(name: str, text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).write_text(text)

    return change


def _link(name: str, target: str = "../secret") -> Callable[[Path], None]:
    def change(run: Path) -> None:
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)

    return change


def _directory(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda run: (run / "config.json").unlink(), ["holds no config.json: it is not the directory of a run"]),
        (_text("config.json", "{"), ["config.json is damaged"]),
        (_text("config.json", "[1]"), ["config.json is damaged: it holds list"]),
        (_text("config.json", "[" * 100_000), ["config.json is damaged"]),
        (_text("config.json", '"' + "x" * 2**20 + '"'), ["config.json has 1,048,578 bytes"]),
        (_json("config.json", seeds="2"), ["config.json is damaged: 'seeds' is '2'"]),
        (_json("config.json", agent=None), ["config.json is damaged: 'agent' is 'None'"]),
        (_link("config.json"), ["config.json is no plain file"]),
        (_directory("config.json"), ["config.json is no plain file"]),
        (_link("metrics.jsonl"), ["metrics.jsonl is a symbolic link"]),
        (_link("checkpoints", ".."), ["checkpoints is a symbolic link"]),
        (_link("figures", "../elsewhere"), ["figures is a symbolic link"]),
        (_link("command.json"), ["command.json is no plain file"]),
        (_text("command.json", "{}"), ["command.json is damaged: its 'arguments' are 'None'"]),
        (_text("command.json", '{"arguments": ["train", 1, 2]}'), ["command.json is damaged"]),
        (_text("command.json", '{"arguments": ["solve", "x", "y"]}'), ["command.json is damaged", "no training"]),
    ],
)
def test_hostile_runs_are_refused(
    say: Callable[..., Said], copy: Path, change: Callable[[Path], None], parts: list[str]
) -> None:
    (copy.parent / "secret").write_text("secret")
    (copy.parent / "elsewhere").mkdir()
    change(copy)
    for command in ("report", "resume", "plot"):
        refused(say(command, copy), *parts, status=1)
    assert not list((copy.parent / "elsewhere").iterdir()) and (copy.parent / "secret").read_text() == "secret"


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        '{"kind": "train", "steps": "x", "seed": 0, "loss": 1}',
        '{"kind": "train", "steps": 1, "seed": 0, "loss": "x"}',
        '{"kind": "train", "steps": 1, "seed": 0, "loss": {"a": 1}}',
        '{"kind": "train", "steps": [1], "seed": 0}',
        '{"kind": "train", "steps": 1, "seed": 0}\n{"kind": "train", "steps": "1", "seed": 0}',
        '{"kind": "evaluation", "steps": 1, "seed": 0, "greedy": 3, "sampled": 3}',
        '{"kind": "evaluation", "steps": 1, "seed": 0, "greedy": [3]}',
        "[" * 100_000,
    ],
)
def test_a_broken_record_is_refused(say: Callable[..., Said], copy: Path, text: str) -> None:
    (copy / "metrics.jsonl").write_text(text + "\n")
    refused(say("report", copy), "metrics.jsonl", status=1)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"steps": 1, "environment": "", "seed": 0, "greedy": [[1], [1, 2]], "sampled": [[1]]}']
)
def test_a_broken_evaluation_is_refused(say: Callable[..., Said], copy: Path, text: str) -> None:
    (copy / "evaluation.json").write_text(text)
    refused(say("report", copy), "evaluation.json", status=1)


def test_a_command_in_a_run_can_not_lead_elsewhere(say: Callable[..., Said], copy: Path, tmp_path: Path) -> None:
    """Its directory is the one that it was found in; it runs nothing, and asks for no help."""
    command = json.loads((copy / "command.json").read_text())["arguments"]
    escape = [*command[: command.index("--run-dir")], "--run-dir", str(tmp_path / "elsewhere")]
    (copy / "command.json").write_text(json.dumps({"arguments": [*escape, "--steps", str(13 * STEP)]}))
    assert say("resume", copy)[0] == 0
    assert not (tmp_path / "elsewhere").exists() and checkpoint.steps(copy)[-1] == 13 * STEP
    for arguments, part in (
        ([*command, "--help"], "asks for help"),
        (["train", "os.path", *command[2:]], "no agent 'os.path'"),
        (["train", "../ppo", *command[2:]], "no agent '../ppo'"),
        ([*command, "--config.activation", "__import__('os')"], "can't be used"),
    ):
        (copy / "command.json").write_text(json.dumps({"arguments": arguments}))
        refused(say("resume", copy), "command.json", part, status=1)
    (copy / "command.json").write_text(json.dumps({"arguments": [*command, "--config.discount", "0.5"]}))
    refused(say("resume", copy), "made with other settings", "config.discount (was 0.99, is 0.5)", status=1)


@pytest.mark.parametrize("name", ["report.html", "figures/returns.png", "evaluation.json"])
def test_nothing_is_written_through_a_link(say: Callable[..., Said], copy: Path, name: str) -> None:
    target = copy.parent / "secret"
    target.write_text("secret")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).symlink_to(target)
    assert say(*(("eval", copy, "--episodes", 2) if "json" in name else ("report", copy)))[0] == 0
    assert target.read_text() == "secret" and not (copy / name).is_symlink()
    assert not [path for path in copy.rglob(".*")]


def test_an_episode_that_is_a_link_is_refused(say: Callable[..., Said], copy: Path) -> None:
    (copy / "render.gif").symlink_to("../secret")
    refused(say("report", copy), "render.gif is a symbolic link", status=1)


# -------------------------------------------------------------------------------------------- render


def test_what_has_no_picture_is_refused(say: Callable[..., Said], copy: Path) -> None:
    refused(say("render", copy), "jaxrl's own environments have no picture", status=1)
    for suite, name, part in (("brax", "fast", "no bodies"), ("gymnax", "DeepSea-bsuite", "does not draw DeepSea")):
        with pytest.raises(ValueError, match=part):
            render._suffix(suite, name)
    assert {f"gymnax/{name}" for name in render.DRAWN + render.SHOWN} <= set(envs.names("gymnax"))


def test_an_episode_is_that_of_the_policy(copy: Path) -> None:
    env = envs.make("jaxrl/point_mass", max_steps=5)
    policy = checkpoint.load_policy(copy, seed="best")
    states, rewards = render.episode(env, policy, render.Render(copy, steps=9, seed=3))
    state, observation = env.reset(env.params(), jax.random.split(jax.random.key(3))[0])
    for i, reward in enumerate(rewards):
        np.testing.assert_allclose(jax.tree.leaves(states)[0][i], jax.tree.leaves(state)[0], rtol=1e-5, atol=1e-6)
        state, step = env.step(env.params(), state, env.spec.action.clip(policy(observation)), jax.random.key(0))
        observation = step.observation
        np.testing.assert_allclose(reward, step.reward, rtol=1e-5)
    assert len(rewards) == 5


def test_without_opengl_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw:
        dt = 0.02

        def render(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("an OpenGL platform library has not been loaded")

    env = type("Env", (), {"env": Raw()})()
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(ValueError, match=r"MuJoCo can't draw here .* needs OpenGL, MUJOCO_GL=egl may"):
        render._physics(tmp_path / "x.gif", env, {"x": np.zeros((3, 1))}, np.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("brax/inverted_pendulum", "render.html"), ("gymnax/PointRobot-misc", "render.gif")],
)
def test_episodes_are_shown(say: Callable[..., Said], tmp_path: Path, name: str, file: str) -> None:
    run = tmp_path / "run"
    arguments = ["ppo", name, "--settings", "max_steps=10", "--episodes", "2", *SMALL, "--run-dir", run]
    assert say("train", *arguments, "--steps", STEP, "--evaluate-every", "0")[0] == 0
    assert say("render", run, "--steps", "5")[0] == 0
    if file.endswith("gif"):
        with Image.open(run / file) as image:
            assert image.n_frames == 6
    else:
        text = (run / file).read_text()
        assert "brax-viewer" in text and len(text) > 2000
    assert say("report", run)[0] == 0
    page = Page((run / "report.html").read_text())
    assert ("render.html" in str(page.tags)) == file.endswith("html")


def test_damaged_evaluations_have_a_type_of_their_own(copy: Path) -> None:
    assert evaluation.read(runs.find(copy)) is None
    with pytest.raises(ValueError, match="returns are no table"):
        runs.write_json(
            copy / evaluation.FILE, {"steps": 1, "environment": "", "seed": 0, "greedy": [1.0], "sampled": [[1.0]]}
        )
        evaluation.read(runs.find(copy))
