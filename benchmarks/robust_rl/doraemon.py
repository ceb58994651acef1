"""DORAEMON beside plain domain randomisation, over updates: `python benchmarks/robust_rl/doraemon.py`.

PPO on the inclined plane and on the cartpole swing-up, whose parameters are drawn for each episode: by DORAEMON, from a
law that it widens as long as half of the episodes succeed, or uniformly from the whole box. Both have the same settings
of PPO and the same number of steps. Writes doraemon.json and doraemon.png beside this file; `--figure` only draws.
`--task` and `--method` run one of each, and `--seeds` says how many.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from heatmap import uniform
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import optimize, stats

from jaxrl import envs, evaluate, log, plot, train
from jaxrl import stats as statistics
from jaxrl.agents import doraemon, ppo
from jaxrl.types import Rollout, canonical

HERE = Path(__file__).parent
EVERY = 10  # updates between evaluations over the box


class Task(NamedTuple):
    title: str
    name: str
    ranges: dict[str, tuple[float, float]]
    success_return: float
    trust_region: float
    reward_scale: float
    data: Rollout
    num_minibatches: int
    anneal_updates: float
    updates: int
    points: int  # of the grid over the box, for each parameter


TASKS = {
    "inclined_plane": Task(
        "Inclined plane: angle",
        "jaxrl/inclined_plane",
        {"angle": (-math.pi / 2, math.pi / 2)},
        success_return=-0.5,  # held: above -0.2; fallen: below -1
        trust_region=0.02,
        reward_scale=1.0,
        data=Rollout(256, 50, restart=True),
        num_minibatches=8,
        anneal_updates=math.inf,
        updates=150,
        points=64,
    ),
    "cartpole_swing_up": Task(
        "Cartpole swing-up: gravity, length of the pole",
        "jaxrl/cartpole_swing_up",
        {"gravity": (2.0, 20.0), "half_length": (0.1, 1.0)},
        success_return=3500.0,  # of 5,000; the released code has 4,200, for SAC
        trust_region=0.02,
        reward_scale=0.01,
        data=Rollout(64, 500, restart=True),
        num_minibatches=16,
        anneal_updates=150,
        updates=120,
        points=8,
    ),
}
METHODS = ("DORAEMON", "uniform")


def train_one(task: Task, method: str, seeds: int) -> dict[str, Any]:
    """Curves [seeds, points] of one method."""
    env = envs.uncertain(task.name, task.ranges)
    widening = doraemon.Widening(task.success_return, 0.5, task.trust_region)
    settings = {"data": task.data, "num_minibatches": task.num_minibatches, "reward_scale": task.reward_scale}
    settings["anneal_updates"] = task.anneal_updates
    if method == "DORAEMON":
        agent = doraemon
        config = doraemon.Config(widening, learning_rate=1e-3, num_params=len(task.ranges), **settings)
    else:
        agent, config = ppo, ppo.Config(learning_rate=1e-3, **settings)
    config = canonical(config)
    loop = train.loop(agent, env, None if method == "DORAEMON" else uniform)
    models = evaluate.unit_grid(len(task.ranges), task.points)

    @jax.jit
    def begin(key):
        return jax.vmap(loop.init, (None, 0))(config, jax.random.split(key, seeds))

    @jax.jit
    def chunk(run):
        return jax.vmap(lambda run: train.scan(loop, config, run, EVERY))(run)

    @jax.jit
    def over_the_box(states, key):
        def one(state):
            found = evaluate.grid(agent, config, state, env, models, key, episodes=4, fresh_episodes=64)
            return jnp.mean(found.returns >= task.success_return), found.average, found.worst_case

        return jax.vmap(one)(states)

    run = begin(jax.random.key(0))
    history, boxes = [], []
    started = time.time()
    for done in range(0, task.updates, EVERY):
        run, metrics = chunk(run)
        history.append(jax.tree.map(np.asarray, metrics))
        boxes.append(np.asarray(over_the_box(run.agent, jax.random.key(1))))
        print(method, done + EVERY, f"{time.time() - started:.0f} s", boxes[-1][0].round(2), flush=True)
    metrics = {name: np.concatenate([part[name] for part in history], 1) for name in history[0]}
    box = np.stack(boxes, -1)  # [3, seeds, points]
    names = ("law_entropy", "success_rate", "episode_return")
    kept = {name: metrics[name].round(3).tolist() for name in names if name in metrics}
    kept |= {name: box[i].round(3).tolist() for i, name in enumerate(("box_success", "box_average", "box_worst"))}
    if method == "DORAEMON":
        kept["law"] = {side: np.asarray(getattr(run.agent.law, side)).round(3).tolist() for side in "ab"}
    return kept | {"seconds": round(time.time() - started), "every": EVERY}


def most_entropy(share: float, half_width: float) -> float:
    """The largest entropy of a Beta law with so much of its mass within `half_width` of the middle of the box."""

    def mass(c):
        return stats.beta(c, c).cdf(0.5 + half_width) - stats.beta(c, c).cdf(0.5 - half_width)

    c = optimize.brentq(lambda c: mass(c) - share, 1, 200)
    return float(stats.beta(c, c).entropy())


def draw(results: dict[str, Any]) -> None:
    figure = Figure(figsize=(9, 7), dpi=150, layout="constrained")
    blue, orange = plot.COLOURS[:2]
    grid = figure.subplots(len(TASKS), 2, squeeze=False)
    for (left, right), (name, task) in zip(grid, TASKS.items(), strict=True):
        found = results[name]
        every = np.arange(1, task.updates + 1) * task.data.transitions
        line(left, every, found["DORAEMON"]["law_entropy"], blue, "DORAEMON")
        left.axhline(0.0, color=orange, linestyle="dashed", label="uniform, the most there is")
        if name == "inclined_plane":
            known = most_entropy(0.5, math.asin(3.0 / 9.81) / math.pi)
            left.axhline(known, color="0.4", linestyle=(0, (1, 2)), label="the most with half of it solvable")
        line(right, every, found["DORAEMON"]["success_rate"], blue, "DORAEMON, in its own law", "dotted")
        for method, colour in zip(METHODS, (blue, orange), strict=True):
            line(right, every[EVERY - 1 :: EVERY], found[method]["box_success"], colour, f"{method}, in the whole box")
        right.axhline(0.5, color="0.4", linestyle=(0, (1, 2)), label="success_rate")
        left.set(title=task.title, ylabel="entropy of the law, nats")
        right.set(ylabel="share of episodes that succeed", ylim=(0, 1))
        for axes in (left, right):
            axes.set_xlabel("steps")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            if axes is left or name == "inclined_plane":  # the curves on the right are the same for both
                axes.legend(frameon=False, fontsize=8)
            axes.grid(color="0.92")
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "doraemon.png", bbox_inches="tight")


def line(axes: Any, x: Any, values: Any, colour: str, label: str, dashes: str = "solid") -> None:
    """The mean over seeds, and its 95 % bootstrap interval."""
    values = np.asarray(values)
    axes.plot(x, values.mean(0), color=colour, linestyle=dashes, label=label)
    axes.fill_between(x, *statistics.bootstrap_interval(values, statistics.mean), color=colour, alpha=0.2, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default=None)
    parser.add_argument("--method", choices=METHODS, default=None)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--figure", action="store_true")
    options = parser.parse_args()
    path = HERE / "doraemon.json"
    for name in [options.task] if options.task else TASKS:
        for method in [options.method] if options.method else METHODS:
            if options.figure:
                continue
            found = train_one(TASKS[name], method, options.seeds)
            results = json.loads(path.read_text()) if path.exists() else {}
            results.setdefault(name, {})[method] = found | {"seeds": options.seeds}
            results["versions"] = log.versions()
            path.write_text(json.dumps(results, separators=(",", ":")))
    results = json.loads(path.read_text())
    if all(method in results.get(name, {}) for name in TASKS for method in METHODS):
        draw(results)


if __name__ == "__main__":
    main()
