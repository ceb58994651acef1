"""`jaxrl eval`: the policies of a run, on whole episodes."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from jaxrl.cli import laws, options, resuming, runs, training
from jaxrl.cli.errors import UsageError, one_line

FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate the policies of a run on whole episodes, with the mode of the policy (greedy) and with samples."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # its directory
    episodes: int = 64  # of each seed, greedy, and as many with samples
    step: str = "newest"  # which checkpoint: newest, best, or a number of transitions
    seed: int = 1  # of starts and noise; the evaluations in training have 0
    environment: str | None = None  # another one to be tried in, with the same spaces; None: that of the run
    settings: tuple[str, ...] | None = None  # of the environment, as name=value; None: those of the run
    save: bool = True  # into the run, as evaluation.json, which its report shows


class Learned(NamedTuple):
    """What a run of the command line has learned."""

    agent: Any
    config: Any
    env: Any  # that it has learned in
    state: Any  # of the agent, with a leading axis of seeds
    step: int
    asked: Any  # the options of its training


def run(arguments: list[str]) -> None:
    """Evaluate, print, and keep the numbers in the run."""
    asked = options.parse(Evaluate, arguments, "eval")
    if asked.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {asked.episodes}")
    found = runs.find(asked.run)
    learned = load(found, asked.step)
    env = elsewhere(learned, asked.environment, asked.settings)
    greedy, sampled = _returns(learned, env, asked.seed, asked.episodes)
    print(f"{found.path} at {learned.step:,} steps on {env}: {asked.episodes} episodes of each seed, from {asked.seed}")
    print("\n".join(table({"greedy": greedy, "sampled": sampled})))
    if asked.save:
        law = laws.at_starts(learned.agent, learned.config, learned.state, env, asked.seed)
        about = {"steps": learned.step, "environment": repr(env), "seed": asked.seed}
        arrays = {"greedy": greedy.tolist(), "sampled": sampled.tolist(), "law": None if law is None else law.tolist()}
        runs.write_json(found.path / FILE, about | arrays)


def load(found: runs.Run, step: str) -> Learned:
    """What a run had learned at a checkpoint. Raises ValueError if there is none, or it is not that of this run."""
    name, asked = resuming.again(found)
    which: Any = None if step == "newest" else step if step == "best" else int(step) if step.isdecimal() else ""
    if which == "":
        raise UsageError(f"--step is newest, best or a number of transitions, got {step!r}")
    env = training.environment(asked)
    import jax

    from jaxrl import checkpoint, train

    agent = importlib.import_module(f"jaxrl.agents.{name}")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), asked.seeds))
    target = jax.eval_shape(jax.vmap(train.loop(agent, env).init, (None, 0)), asked.config, keys)
    made_with = {"agent": agent, "config": asked.config, "env": env, "seeds": asked.seeds}
    state = checkpoint.restore(found.path, target, step=which, **made_with)
    return Learned(agent, asked.config, env, state.agent, train.transitions(state), asked)


def elsewhere(learned: Learned, name: str | None, settings: tuple[str, ...] | None) -> Any:
    """The environment of the run, or another one of the same spec. Raises UsageError if its spec is another."""
    if name is None and settings is None:
        return learned.env
    same = name is None or name == learned.asked.environment
    kept = (learned.asked.settings if same else ()) if settings is None else settings
    changed = dataclasses.replace(learned.asked, environment=name or learned.asked.environment, settings=kept)
    env = training.environment(changed)
    if env.spec != learned.env.spec:
        raise UsageError(f"{env} has {env.spec}, and the run has learned with {learned.env.spec}")
    return env


def _returns(learned: Learned, env: Any, seed: int, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns [seeds, episodes] without and with sampling."""
    import jax
    import jax.numpy as jnp

    from jaxrl import evaluate

    @jax.jit
    def returns(config: Any, states: Any) -> jax.Array:
        def one(state: Any) -> jax.Array:
            greedy = jnp.arange(2 * episodes) < episodes
            key = jax.random.key(seed)
            return evaluate.evaluate(
                learned.agent, config, state, env, key, episodes=2 * episodes, greedy=greedy
            ).returns

        return jax.vmap(one)(states)

    from jaxrl.types import canonical

    both = np.asarray(returns(canonical(learned.config), learned.state))
    return both[:, :episodes], both[:, episodes:]


class Kept(NamedTuple):
    """The evaluation that `jaxrl eval` has left in a run."""

    steps: int
    environment: str
    seed: int
    returns: dict[str, np.ndarray]  # "greedy" and "sampled" [seeds, episodes]
    law: np.ndarray | None  # quantiles [seeds, laws.LEVELS] of the return that the critics see at the start


def read(found: runs.Run) -> Kept | None:
    """What `jaxrl eval` has left in a run, if it has. Raises ValueError if the file is damaged."""
    if not os.path.lexists(found.path / FILE):
        return None
    value = runs.read_json(found.path / FILE, runs.LARGEST * 64)
    try:
        returns = {name: np.array(value[name], dtype=float) for name in ("greedy", "sampled")}
        if any(each.ndim != 2 or not each.size for each in returns.values()):
            raise ValueError("its returns are no table")
        law = None if value.get("law") is None else np.array(value["law"], dtype=float)
        if law is not None and law.shape[1:] != laws.LEVELS.shape:
            raise ValueError("its law has other quantiles")
        return Kept(int(value["steps"]), str(value["environment"]), int(value["seed"]), returns, law)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{found.path / FILE} is damaged ({type(error).__name__}: {one_line(error)})") from None


def table(returns: dict[str, np.ndarray]) -> list[str]:
    """Mean and standard deviation of each seed over its episodes, and the mean over seeds with its interval."""
    lines = ["seed      " + "".join(f"{name:>26}" for name in returns)]
    for i in range(len(next(iter(returns.values())))):
        cells = (f"{values[i].mean():,.4g} ± {values[i].std():.3g}" for values in returns.values())
        lines.append(f"{i:<10}" + "".join(f"{cell:>26}" for cell in cells))
    return [*lines, f"{'iqm':<10}" + "".join(f"{summary(values):>26}" for values in returns.values())]


def summary(returns: np.ndarray) -> str:
    """The interquartile mean over seeds of their mean returns [seeds, episodes], with its 95 % bootstrap interval."""
    from jaxrl import stats

    means = returns.mean(-1)
    middle = f"{stats.interquartile_mean(means):,.4g}"
    if len(means) < 2:
        return middle
    low, high = stats.bootstrap_interval(means, stats.interquartile_mean)
    return f"{middle} [{low:,.4g}, {high:,.4g}]"
