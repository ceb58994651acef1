"""`jaxrl train`: `train.fit` with the settings of an agent as options."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrl.cli import listing, options, runs
from jaxrl.cli.errors import UsageError, unknown

HELP = """usage: jaxrl train AGENT ENVIRONMENT [options]

Train an agent on an environment, into a new run directory.
jaxrl train AGENT --help has the options, with the settings of that agent.

agents"""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an agent on an environment, into a new run directory. Ctrl-C stops and saves; `jaxrl resume` goes on."""

    environment: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="ENVIRONMENT")
    ]  # suite/name, see jaxrl list environments
    settings: tuple[str, ...] = ()  # of the environment, as name=value: max_steps=200 backend=generalized
    steps: float = 1e6  # environment transitions of each seed
    seeds: int = 1  # how many independent runs, side by side
    seed: int = 0  # of the random numbers of all of them
    run_dir: Path | None = None  # a new directory; by default runs/AGENT-ENVIRONMENT, with a number if that is taken
    log_every: float | None = None  # transitions between points of the record; None: a hundredth of steps
    evaluate_every: float | None = None  # transitions between evaluations; None: a tenth of steps; 0: never
    save_every: float | None = None  # transitions between checkpoints; None: a tenth of steps; inf: at the end only
    episodes: int = 16  # of each evaluation
    keep: int = 2  # checkpoints that stay, beside the best
    block: int | None = None  # seeds that a device computes side by side; None: all of them
    quiet: bool = False  # no line of progress


def run(arguments: list[str]) -> int:
    """Train."""
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        print(HELP)
        listing.run(["agents"])
        return 0
    asked = parse(name, rest)
    path = asked.run_dir or _free(Path("runs") / re.sub(r"[^\w.-]+", "-", f"{name}-{asked.environment}"))
    return fit(name, asked, path, ["train", *arguments])


def parse(name: str, arguments: list[str]) -> Any:
    """The options of training the agent of this name: `Train`, and its `config`. Raises UsageError."""
    known = listing.agents()
    if name not in known:
        if not name or name.startswith("-"):
            raise UsageError("train needs an agent and an environment: jaxrl train AGENT ENVIRONMENT; see jaxrl list")
        raise UsageError(unknown("agent", name, known, "jaxrl list agents"))
    agent = importlib.import_module(f"jaxrl.agents.{name}")
    form = dataclasses.make_dataclass(
        "Train", [("config", agent.Config, agent.Config())], bases=(Train,), frozen=True, namespace=_about(name, known)
    )
    return options.parse(form, arguments, f"train {name}", calls())


def _about(name: str, known: dict[str, str]) -> dict[str, Any]:
    return {"__doc__": f"{known[name]}\n\n{Train.__doc__}", "__module__": __name__}


def calls() -> dict[Any, dict[str, Any]]:
    """The types of settings that are written as calls, and what may be called: functions, laws, measures, networks."""
    import flax.linen as nn

    from jaxrl import networks, risk
    from jaxrl.distributional import critics

    functions = ("celu", "elu", "gelu", "leaky_relu", "relu", "selu", "sigmoid", "silu", "softplus", "swish", "tanh")
    laws = (critics.Scalar, critics.Categorical, critics.HLGauss, critics.Quantile)
    architectures = (networks.Plain, networks.SimbaV2)
    return {
        networks.Activation: {name: getattr(nn, name) for name in functions},
        networks.Network: {kind.__name__: kind for kind in architectures},
        critics.Critic: {kind.__name__: kind for kind in laws},
        risk.Measure: listing.measures(),
    }


def environment(asked: Train) -> Any:
    """The environment that was asked for."""
    from jaxrl import envs

    try:
        return envs.make(asked.environment, **options.settings(asked.settings))
    except ValueError as error:
        raise UsageError(str(error).replace("jaxrl.envs.names()", "jaxrl list environments")) from error


def fit(name: str, asked: Any, path: Path, command: list[str], *, resume: bool = False) -> int:
    """Train, or go on, in the directory `path`; returns the exit status."""
    import jax

    from jaxrl import train

    env = environment(asked)
    if not resume:
        _claim(path, command)
    try:
        result = train.fit(
            importlib.import_module(f"jaxrl.agents.{name}"),
            asked.config,
            env,
            jax.random.key(asked.seed),
            steps=asked.steps,
            seeds=asked.seeds,
            block=asked.block,
            run_dir=path,
            log_every=asked.log_every,
            evaluate_every=asked.evaluate_every,
            episodes=asked.episodes,
            save_every=asked.save_every,
            keep=asked.keep,
            resume=resume,
            progress=not asked.quiet,
        )
    finally:
        if not resume and not (path / "config.json").exists():  # it never began
            (path / runs.COMMAND).unlink(missing_ok=True)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    done = train.transitions(result.run)
    if done < asked.steps:
        print(f"{path} has {done:,} of {asked.steps:,.0f} steps: jaxrl resume {path}")
        return 130
    print(f"{path} is complete: jaxrl report {path}")
    return 0


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _claim(path: Path, command: list[str]) -> None:
    """Make the directory of a new run, and write down how it came about."""
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is there already; name another --run-dir, or go on with it: jaxrl resume {path}")
    runs.write_json(path / runs.COMMAND, {"arguments": command})
