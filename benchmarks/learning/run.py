"""Learning curves, beside the random policy and peers where there are any.

    python benchmarks/learning/run.py ppo-cartpole      # one task
    python benchmarks/learning/run.py                   # all of them, one after the other

writes NAME.json (settings, versions, raw returns of every seed) and NAME.png beside this file. Runs are kept in
runs/learning, and what was interrupted goes on where it was. Returns are those of evaluations: whole episodes with
sampled actions, as the peers evaluate; the greedy ones are kept too. The peers' numbers are in peers/, with their
settings; benchmarks/peers has the scripts that made them.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # each core takes its share of the seeds

from jaxrl import envs, evaluate, log, plot, stats, train  # noqa: E402
from jaxrl.agents import lktd, ppo, sac  # noqa: E402
from jaxrl.types import Replay, Rollout  # noqa: E402

HERE = Path(__file__).parent
RUNS = Path("runs/learning")
Series = dict[str, tuple[np.ndarray, np.ndarray]]  # steps [points] and returns [seeds, points] by label


class Task(NamedTuple):
    """What is learned, how, and beside whom."""

    agent: Any
    environment: str
    config: Any
    seeds: int
    steps: int
    title: str
    peers: dict[str, str]  # a file in peers/ by label
    episodes: int = 16  # of each evaluation; all seeds have the same starts


SAC = sac.Config(learning_rate=1e-3, hidden_sizes=(64, 64))
BALANCE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "entropy_coefficient": 0.01,
    "num_minibatches": 8,
    "data": Rollout(num_envs=64, length=32),
}
TASKS = {
    "ppo-cartpole": Task(
        agent=ppo,
        environment="gymnax/CartPole-v1",
        config=ppo.Config(
            learning_rate=2.5e-4,
            anneal_updates=500_000 / 512,
            entropy_coefficient=0.01,
            normalise_observations=False,
            data=Rollout(num_envs=4, length=128),
        ),
        seeds=16,
        steps=500_000,
        peers={"rejax 0.1.3, PPO": "rejax-ppo-cartpole.json"},
        title="CartPole-v1: PPO, 4 environments x 128 steps",
    ),
    "ppo-inverted-pendulum": Task(
        agent=ppo,
        environment="brax/inverted_pendulum",
        config=ppo.Config(**BALANCE),
        seeds=8,
        steps=409_600,
        peers={"rejax 0.1.3, PPO, tuned": "rejax-ppo-inverted-pendulum-tuned.json"},
        title="Brax inverted pendulum (spring): PPO, 64 environments x 32 steps",
    ),
    "lktd-inverted-pendulum": Task(
        agent=lktd,
        environment="brax/inverted_pendulum",
        config=lktd.Config(**BALANCE),
        seeds=8,
        steps=409_600,
        peers={
            "jaxrl, PPO": "../ppo-inverted-pendulum.json",
            "rejax 0.1.3, PPO, tuned": "rejax-ppo-inverted-pendulum-tuned.json",
        },
        title="Brax inverted pendulum (spring): LKTD, 64 environments x 32 steps",
    ),
    "sac-pendulum": Task(
        agent=sac,
        environment="jaxrl/pendulum",
        config=SAC.replace(data=Replay(num_envs=1, capacity=10_000, warmup=1_000)),
        seeds=24,
        steps=10_000,
        title="Pendulum: SAC, one update per step",
        peers={"rejax 0.1.3, SAC": "rejax-sac-pendulum.json", "sbx 0.28.0, SAC": "sbx-sac-pendulum.json"},
        episodes=128,
    ),
    "sac-inverted-pendulum": Task(
        agent=sac,
        environment="brax/inverted_pendulum",
        config=SAC.replace(data=Replay(num_envs=1, capacity=20_000, warmup=1_000)),
        seeds=8,
        steps=20_000,
        title="Brax inverted pendulum (spring): SAC, one update per step",
        peers={
            "rejax 0.1.3, SAC": "rejax-sac-inverted-pendulum.json",
            "sbx 0.28.0, SAC": "sbx-sac-inverted-pendulum.json",
        },
    ),
    "sac-inverted-pendulum-5-step": Task(
        agent=sac,
        environment="brax/inverted_pendulum",
        config=SAC.replace(data=Replay(num_envs=1, capacity=20_000, warmup=1_000, n_step=5)),
        seeds=8,
        steps=20_000,
        title="Brax inverted pendulum (spring): SAC, 5-step targets, one update per step",
        peers={},
    ),
    "sac-reacher": Task(
        agent=sac,
        environment="brax/reacher",
        config=SAC.replace(data=Replay(num_envs=1, capacity=50_000, warmup=1_000)),
        seeds=4,
        steps=20_000,
        title="Brax reacher (spring): SAC, one update per step",
        peers={},
    ),
    "sac-cartpole-swingup": Task(
        agent=sac,
        environment="playground/CartpoleSwingup",
        config=SAC.replace(data=Replay(num_envs=1, capacity=50_000, warmup=1_000)),
        seeds=4,
        steps=40_000,
        title="Playground CartpoleSwingup: SAC, one update per step",
        peers={},
    ),
}


def main(name: str) -> None:
    task = TASKS[name]
    env = envs.make(task.environment)
    random = random_policy(env)
    learned = learn(RUNS / name, task.agent, task.config, env, task.steps, task.seeds, task.episodes)
    record = {
        "command": f"python benchmarks/learning/run.py {name}",
        "environment": repr(env),
        "config": log.describe(task.config),
        **made_with(),
        "random policy": random,
        **learned,
    }
    (HERE / f"{name}.json").write_text(json.dumps(record) + "\n")
    label = f"jaxrl, {task.agent.__name__.rpartition('.')[2].upper()}"
    series = {label: curve(learned)} | {label: peer(file) for label, file in task.peers.items()}
    draw(name, series, task.title, random)
    table(series)


def learn(directory: Path, agent: Any, config: Any, env: Any, steps: int, seeds: int, episodes: int) -> dict[str, Any]:
    """Train, or go on where it was: returns of evaluations, means over their episodes, `[seeds, points]`."""
    result = train.fit(
        agent,
        config,
        env,
        jax.random.key(0),
        steps=steps,
        seeds=seeds,
        evaluate_every=steps / 20,
        episodes=episodes,
        run_dir=directory,
        resume=True,
    )
    return {
        "seconds, compilation and evaluations included": round(float(log.read(directory)["seconds"].max()), 1),
        "steps": result.evaluations["steps"].tolist(),
        "returns, actions sampled": result.evaluations["sampled"].mean(-1).tolist(),
        "returns, greedy": result.evaluations["greedy"].mean(-1).tolist(),
    }


def random_policy(env: Any) -> float:
    """The mean return of 256 episodes."""
    returns = jax.jit(lambda key: evaluate.random_returns(env, key, episodes=256))(jax.random.key(1))
    return float(np.asarray(returns).mean())


def made_with() -> dict[str, Any]:
    """Versions and device."""
    return {"versions": {"jax": jax.__version__}, "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}


def curve(learned: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[points]` and returns `[seeds, points]`, actions sampled, of what `learn` gave."""
    return np.array(learned["steps"]), np.array(learned["returns, actions sampled"])


def peer(file: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of a file in peers/."""
    record = json.loads((HERE / "peers" / file).read_text())
    return (
        curve(record)
        if "returns, actions sampled" in record
        else (np.array(record["steps"]), np.array(record["returns"]))
    )


def draw(name: str, series: Series, title: str, random: float) -> None:
    """The figure NAME.png."""
    plot.curves(
        HERE / f"{name}.png",
        series,
        xlabel="environment steps (per seed)",
        ylabel="return of an episode, actions sampled",
        title=title,
        references={f"random policy ({random:.0f})": random},
    )


def table(series: Series, statistic: stats.Statistic = stats.mean) -> None:
    """Print where each curve is after a quarter, a half and all of its steps."""
    for label, (at, returns) in series.items():
        for share in (0.25, 0.5, 1.0):
            point = int(np.argmin(np.abs(at - share * at[-1])))
            low, high = stats.bootstrap_interval(returns[:, point], statistic)
            middle = float(statistic(returns[:, point]))
            print(f"{label:<26} {at[point]:>9,} steps: {statistic.__name__} {middle:6.1f}  [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TASKS)}; all by default")
    names = parser.parse_args().names
    unknown = set(names) - set(TASKS)
    if unknown:
        parser.error(f"there is no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    for name in names or TASKS:
        main(name)
