"""Robust agents beside SAC, STAC and domain randomisation, on uncertainty sets of RRLS, at equal samples.

    python benchmarks/robust_rl/suite.py inverted_pendulum-2              # one task, every method
    python benchmarks/robust_rl/suite.py inverted_pendulum-2 sac m2td3    # some of its methods
    python benchmarks/robust_rl/suite.py                                  # the tasks that two cores can carry

Every method has the same number of transitions and of seeds, networks of 64 x 64 units, and, if it learns from a
replay, the same batches and one update for each step of all environments. Each policy is then run in every model of a
grid over the set, without sampling. Writes suite-TASK.json (settings, versions, returns of every seed in every model;
after each method), suite-TASK.png (heat maps, or profiles where one parameter varies) and prints the table. Runs are
kept in runs/robust_rl, and what was interrupted goes on where it was.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # each core takes its share of the seeds

from heatmap import uniform  # noqa: E402

from jaxrl import envs, evaluate, incremental, log, stats, train  # noqa: E402
from jaxrl.agents import doraemon, iwocs, m2td3, rarl, sac, stac, tc_rmdp  # noqa: E402
from jaxrl.envs import memory  # noqa: E402
from jaxrl.randomisation import Widening  # noqa: E402
from jaxrl.types import Replay, Rollout, canonical  # noqa: E402

HERE = Path(__file__).parent
RUNS = Path("runs/robust_rl")
NUM_ENVS = 32
POINTS = 10  # of the grid for each parameter; RRLS leaves out the upper ends, this one does not


class Task(NamedTuple):
    """A family of models, and how long its policies learn."""

    environment: str
    dimensions: int  # of the uncertainty set of RRLS
    success_return: float  # DORAEMON's
    steps: int = 640_000  # transitions of each seed: 20,000 updates
    seeds: int = 6
    episodes: int = 4  # of each model in the grid
    backend: str = "generalized"
    discount: float = 0.99

    @property
    def family(self) -> Any:
        """The environment, whose parameters are a point of the unit box."""
        env = envs.make(f"brax/{self.environment}", backend=self.backend)
        return envs.uncertain(env, envs.rrls(self.environment, self.dimensions), inertia="fixed")


TASKS = {
    "inverted_pendulum-1": Task("inverted_pendulum", 1, success_return=500.0),
    "inverted_pendulum-2": Task("inverted_pendulum", 2, success_return=500.0),
    "hopper-2": Task("hopper", 2, success_return=500.0, episodes=2),
    # for an accelerator, at the length of the papers
    "halfcheetah-2": Task("halfcheetah", 2, success_return=2_000.0, steps=4_000_000, seeds=10),
    "walker2d-2": Task("walker2d", 2, success_return=1_000.0, steps=4_000_000, seeds=10),
    "ant-1": Task("ant", 1, success_return=1_000.0, steps=4_000_000, seeds=10),
}
HERE_AND_NOW = ("inverted_pendulum-1", "inverted_pendulum-2", "hopper-2")


class Method(NamedTuple):
    """Who learns, in which environment, from which models."""

    agent: Any
    config: Any
    env: Any
    propose: Any = None  # None: the agent's own, or the nominal model
    incremental: Any = None  # settings of incremental.search


class Policy(NamedTuple):
    """All of an agent that an evaluation needs."""

    act: Any


def methods(task: Task) -> dict[str, Method]:
    """Every method, by name."""
    family, d = task.family, task.dimensions
    updates = task.steps // NUM_ENVS
    data = Replay(num_envs=NUM_ENVS, capacity=200_000, warmup=3_200)
    common: dict[str, Any] = {"learning_rate": 1e-3, "discount": task.discount, "hidden_sizes": (64, 64), "data": data}
    soft, pair = sac.Config(**common), {"num_params": d, **common}
    on_policy = doraemon.Config(
        learning_rate=1e-3,
        discount=task.discount,
        entropy_coefficient=0.01,
        num_minibatches=8,
        widening=Widening(success_return=task.success_return, trust_region=0.1),
        num_params=d,
        data=Rollout(64, 100),
    )
    staged = iwocs.Config(num_models=3, **pair)
    looking = {"radii": (0.1, 0.3, 1.0), "episodes": 2, "fresh_episodes": 20, "evaluate_every": 0}
    shares = {"first_steps": 0.4 * task.steps, "steps": 0.2 * task.steps, **looking}  # as in the paper
    lattice, stacked = evaluate.Lattice(POINTS), memory.Stacked(family)
    return {
        "sac": Method(sac, soft, family),
        "stac": Method(stac, stac.Config(pessimism=0.5, **common), family),
        "sac, randomised": Method(sac, soft, family, uniform),
        "stac, randomised": Method(stac, stac.Config(pessimism=0.5, **common), family, uniform),
        "doraemon": Method(doraemon, on_policy, family),
        "rarl": Method(rarl, rarl.Config(**pair), family),
        "m2td3": Method(m2td3, m2td3.Config(noise_updates=updates, **pair), family),
        "soft m2td3": Method(m2td3, m2td3.Config(soft=True, noise_updates=updates, **pair), family),
        "tc-rarl": Method(tc_rmdp, tc_rmdp.Config(largest_move=0.001, **pair), family),
        "tc-rarl, stacked": Method(tc_rmdp, tc_rmdp.Config(largest_move=0.001, **pair), stacked),
        "iwocs, grid": Method(iwocs, staged, stacked, incremental={"method": lattice, **shares}),
        "iwocs, cma-es": Method(iwocs, staged, stacked, incremental={"method": evaluate.CMAES(6, 16), **shares}),
        "iwocs, parallel": Method(iwocs, staged, stacked, incremental={"method": lattice, "parallel": 3, **shares}),
    }


def learn(directory: Path, task: Task, method: Method) -> tuple[Any, float]:
    """The agents' states [seeds, ...], and the seconds of training, or of what was left of it."""
    started = time.perf_counter()
    settings = {"seeds": task.seeds, "run_dir": directory, "resume": True}
    key = jax.random.key(0)
    if method.incremental is not None:
        states = incremental.search(
            method.agent, method.config, method.env, key, **settings, **method.incremental
        ).state
    else:
        result = train.fit(
            method.agent,
            method.config,
            method.env,
            key,
            steps=task.steps,
            propose=method.propose,
            evaluate_every=math.inf,
            episodes=2,
            **settings,
        )
        states = result.run.agent
    return states, time.perf_counter() - started


def examine(agent: Any, config: Any, states: Any, env: Any, task: Task, greedy: bool = True) -> dict[str, Any]:
    """Returns in every model of the grid, seed by seed."""
    models = evaluate.unit_grid(task.dimensions, POINTS)

    def one(state: Any) -> evaluate.Grid:
        key, settings = jax.random.key(1), {"episodes": task.episodes, "fresh_episodes": 50, "greedy": greedy}
        return evaluate.grid(agent, config, state, env, models, key, **settings)

    found = jax.jit(jax.vmap(one))(states)
    return {
        "worst case": np.asarray(found.worst_case).round(1).tolist(),
        "average": np.asarray(found.average).round(1).tolist(),
        "worst model": np.asarray(task.family.physical(models[found.worst_index])).round(3).tolist(),
        "simulations that broke down": int(found.non_finite.sum()),
        "means": np.asarray(found.means).round(1).tolist(),  # [seeds, models]
    }


def random_policy(task: Task) -> dict[str, Any]:
    """The same of a policy that draws its actions from the action space."""
    family = task.family

    def act(config: Any, state: Any, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        return jax.vmap(family.spec.action.sample)(jax.random.split(key, len(observation))), {}

    return examine(Policy(act), None, jnp.zeros(task.seeds), family, task, greedy=False)


def main(name: str, chosen: list[str]) -> None:
    """Every method on one task; what there is already of the others stays."""
    task = TASKS[name]
    path = HERE / f"suite-{name}.json"
    done = json.loads(path.read_text())["methods"] if path.exists() else {}
    everyone = methods(task)
    if "random policy" not in done:
        done["random policy"] = random_policy(task)
    for label in chosen or everyone:
        method = everyone[label]
        states, seconds = learn(RUNS / name / label.replace(", ", "-").replace(" ", "-"), task, method)
        done[label] = {
            "config": log.describe(method.config),
            "incremental": log.describe(method.incremental),
            "seconds of training": round(seconds, 1),
            **examine(method.agent, canonical(method.config), states, method.env, task),
        }
        record = {
            "command": f"python benchmarks/robust_rl/suite.py {name}",
            "environment": repr(task.family),
            "task": task._asdict(),
            "versions": log.versions(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "methods": {each: done[each] for each in ["random policy", *everyone] if each in done},
        }
        path.write_text(json.dumps(record) + "\n")
        row(label, done[label])
        jax.clear_caches()
    print()
    for label, found in record["methods"].items():
        row(label, found)
    draw(name, task, record["methods"])


def row(label: str, found: dict[str, Any]) -> None:
    """Print means over seeds, with their intervals."""
    cells = []
    for what in ("worst case", "average"):
        numbers = np.asarray(found[what])[:, None]
        low, high = stats.bootstrap_interval(numbers[:, 0], stats.mean)
        cells.append(f"{what} {numbers.mean():7.1f} [{low:.1f}, {high:.1f}]")
    print(f"{label:<20} {'   '.join(cells)}   {found.get('seconds of training', 0):.0f} s", flush=True)


def draw(name: str, task: Task, found: dict[str, Any]) -> None:
    """The mean returns of each method over the set: maps over two parameters, curves of every seed over one."""
    axes_of = [np.linspace(low, high, POINTS) for low, high in zip(task.family.low, task.family.high, strict=True)]
    columns = min(5, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(1 + 1.9 * columns, 0.5 + 2.1 * rows), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    everything = np.concatenate([np.ravel(each["means"]) for each in found.values()])
    scale = {"vmin": min(0.0, everything.min()), "vmax": everything.max(), "cmap": "viridis"}
    for panel, (label, each) in zip(panels.flat, found.items(), strict=False):
        means = np.asarray(each["means"])
        panel.set_title(f"{label}\nworst {np.mean(each['worst case']):.0f}", fontsize=8)
        if task.dimensions == 1:
            panel.plot(axes_of[0], means.T, linewidth=0.8)
            continue
        values = means.mean(0).reshape(POINTS, POINTS).T
        image = panel.pcolormesh(*axes_of, values, **scale)
    for panel in panels.flat[max(0, len(found) - columns) : len(found)]:
        panel.tick_params(labelbottom=True)
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    units = [each.replace("_mass", ", kg").replace("_", " ") for each in task.family.names]
    figure.supxlabel(units[0], fontsize=9)
    figure.supylabel(units[1] if task.dimensions == 2 else "mean return", fontsize=9)
    if task.dimensions == 2:
        figure.colorbar(image, ax=panels, label=f"mean return, over {task.seeds} seeds", shrink=0.8)
    figure.savefig(HERE / f"suite-{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=TASKS, help=f"{', '.join(HERE_AND_NOW)} by default")
    parser.add_argument("methods", nargs="*", help="all by default")
    arguments = parser.parse_args()
    for each in [arguments.task] if arguments.task else HERE_AND_NOW:
        unknown = set(arguments.methods) - set(methods(TASKS[each]))
        if unknown:
            parser.error(
                f"there is no method {', '.join(sorted(unknown))}; there are {', '.join(methods(TASKS[each]))}"
            )
        main(each, arguments.methods)
