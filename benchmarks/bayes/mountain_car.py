"""Bayesian actor-critic learns beside REINFORCE, at equal episodes: `python benchmarks/bayes/mountain_car.py`.

The mountain car of 34 parameters and the random walk of 20, five episodes an update. Every method has the same grid of
step sizes, and the one that is best over its seeds is drawn and kept. Takes minutes; writes mountain_car.json and a
figure of each task, mountain_car.png and random_walk.png, beside this file.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, evaluate, log, plot, stats, train
from jaxrl.agents import bac, reinforce
from jaxrl.types import Rollout, canonical

EPISODES = 5  # an update
EVALUATIONS = 64  # episodes with sampled actions, of each point of a curve


class Task(NamedTuple):
    """What is learned, for how long, and how good it can be."""

    name: str
    title: str
    max_steps: int
    updates: int
    points: int  # of a curve
    references: dict[str, float]  # steps to the end


class Method(NamedTuple):
    """An agent, its settings, and the step sizes to choose from."""

    agent: Any
    config: Any
    learning_rates: tuple[float, ...]


TASKS = (
    Task("mountain_car", "Mountain car: 5 episodes an update", 200, 100, 10, {}),
    Task("random_walk", "Random walk of ten states: 5 episodes an update", 400, 40, 10, {"the shortest way": 9.0}),
)
RATES = (0.01, 0.03, 0.1, 0.3)


def methods(task):
    """Who learns, with what, for this task."""
    data = Rollout(EPISODES, task.max_steps, restart=True)
    linear = reinforce.Config(discount=0.99, hidden_sizes=(), data=data)
    bayesian = bac.Config(discount=0.99, hidden_sizes=(), data=data)
    return {
        "REINFORCE, leave-one-out baseline": Method(reinforce, linear, RATES),
        "BAC": Method(bac, bayesian.replace(natural=False), RATES),
        "BAC, natural gradient": Method(bac, bayesian.replace(adam=False), RATES),
    }


def learn(task, method, seeds):
    """Steps to the end, in the mean over episodes, `[rates, seeds, points + 1]`; those cut off count as their limit."""
    env = envs.make(f"jaxrl/{task.name}", max_steps=task.max_steps)
    loop = train.loop(method.agent, env)

    def length(config, run, key):
        found = evaluate.evaluate(method.agent, config, run.agent, env, key, episodes=EVALUATIONS, greedy=False)
        return jnp.mean(found.lengths)

    def one(config, key):
        init_key, first_key, key = jax.random.split(key, 3)
        run = loop.init(config, init_key)
        first = length(config, run, first_key)

        def point(run, key):
            run, _ = train.scan(loop, config, run, task.updates // task.points)
            return run, length(config, run, key)

        lengths = jax.lax.scan(point, run, jax.random.split(key, task.points))[1]
        return jnp.append(first, lengths)

    rates = jnp.array(method.learning_rates)
    configs = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, rates.shape), canonical(method.config))
    configs = configs.replace(learning_rate=rates)
    over_seeds = jax.vmap(one, (None, 0))
    keys = jax.random.split(jax.random.key(0), seeds)
    return np.asarray(jax.jit(lambda configs: jax.lax.map(lambda c: over_seeds(c, keys), configs))(configs))


def main(seeds):
    here, record = Path(__file__).parent, {"command": "python benchmarks/bayes/mountain_car.py", "seeds": seeds}
    for task in TASKS:
        episodes = np.linspace(0, task.updates * EPISODES, task.points + 1)
        series, rows = {}, {}
        for label, method in methods(task).items():
            begin = time.perf_counter()
            lengths = learn(task, method, seeds)
            finals = np.mean(lengths, axis=(1, 2))  # the area below the curve chooses the step size
            best = int(np.argmin(np.where(np.isnan(finals), np.inf, finals)))
            series[label] = episodes, lengths[best]
            low, high = stats.bootstrap_interval(lengths[best][:, -1], stats.mean)
            rows[label] = {
                "config": log.describe(method.config),
                "learning_rates": method.learning_rates,
                "learning_rate": method.learning_rates[best],
                "mean_over_the_curve": [round(float(x), 1) for x in finals],
                "last": [round(float(x), 1) for x in (np.mean(lengths[best][:, -1]), low, high)],
                "lengths": np.round(lengths[best].astype(float), 1).tolist(),
                "seconds": round(time.perf_counter() - begin, 1),
            }
            print(task.name, label, rows[label]["learning_rate"], rows[label]["mean_over_the_curve"])
            print(
                np.round(np.mean(lengths[best], axis=0), 1),
                rows[label]["last"],
                rows[label]["seconds"],
                "s",
                flush=True,
            )
        steps = float(np.mean(lengths[:, :, 0]))  # every policy begins as the random one
        record[task.name] = {"episodes": episodes.tolist(), "random": round(steps, 1), "methods": rows}
        plot.curves(
            here / f"{task.name}.png",
            series,
            xlabel="episodes",
            ylabel="steps to the end",
            title=task.title,
            references={"random policy": steps} | task.references,
            statistic=stats.mean,
        )
    text = json.dumps(record, indent=1)
    (here / "mountain_car.json").write_text(re.sub(r"\s+(?=[^\[\]{}]*\])", " ", text) + "\n")  # a list is a line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    main(parser.parse_args().seeds)
