"""Two policies in 100 models of the pendulum: `python benchmarks/robust_rl/heatmap.py`.

PPO learns on the nominal pendulum, and again with mass and length drawn uniformly for each episode. Each policy is then
run for 10 episodes in 100 models, in one compiled call, which is timed; and three searches look for its worst model.
Writes heatmap.json, heatmap.png (the nominal policy) and profile.png (both) beside this file.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, evaluate, log, plot, train
from jaxrl.agents import ppo
from jaxrl.types import Rollout, canonical

HERE = Path(__file__).parent
RANGES = {"mass": (0.5, 1.5), "length": (0.5, 1.5)}
ENV = envs.uncertain("jaxrl/pendulum", RANGES)
DATA = Rollout(64, 50)
CONFIG = ppo.Config(learning_rate=1e-3, discount=0.95, reward_scale=0.1, num_epochs=8, num_minibatches=8, data=DATA)
POINTS, EPISODES = 10, 10
SEARCHES = {
    "grid, 100 points": evaluate.Lattice(POINTS),
    "CMA-ES, 12 x 16": evaluate.CMAES(generations=12, population=16, std=0.3),
    "gradient, 4 starts x 15": evaluate.Gradient(steps=15, starts=4, size=0.1),
}


def uniform(config: Any, state: Any, params: jax.Array, observation: jax.Array, key: jax.Array) -> jax.Array:
    """Domain randomisation: a point of the whole box for each episode."""
    return jax.random.uniform(key, params.shape)


def learn(propose: Any, steps: int, seeds: int) -> Any:
    """The agent states after so many steps, [seeds, ...]."""
    loop, config = train.loop(ppo, ENV, propose), canonical(CONFIG)
    runs = jax.vmap(loop.init, (None, 0))(config, jax.random.split(jax.random.key(0), seeds))
    updates = steps // DATA.transitions
    return jax.jit(jax.vmap(lambda run: train.scan(loop, config, run, updates)[0]))(runs).agent


def timed(function: Any) -> tuple[Any, float, float]:
    """What a function returns, and the seconds of its first and its second call."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - started)
    return result, *seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=640_000)
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    config, models = canonical(CONFIG), evaluate.unit_grid(2, POINTS)
    record: dict[str, Any] = {"steps": options.steps, "seeds": options.seeds, "policies": {}, "searches": {}}
    policies = {
        name: learn(propose, options.steps, options.seeds)
        for name, propose in (("nominal", None), ("domain randomisation", uniform))
    }
    key, means = jax.random.key(1), {}
    for name, states in policies.items():
        found = jax.jit(
            jax.vmap(lambda s: evaluate.grid(ppo, config, s, ENV, models, key, episodes=EPISODES, fresh_episodes=100))
        )(states)
        means[name] = np.asarray(found.means)
        summary = {
            "average": found.average,
            "worst decile": found.worst_decile,
            "worst case, fresh": found.worst_case,
            "worst case, of the search": found.means.min(-1),
        }
        record["policies"][name] = {k: np.asarray(v).round(1).tolist() for k, v in summary.items()}
        print(name, {k: np.mean(v).round(1) for k, v in summary.items()}, flush=True)

    state = jax.tree.map(lambda leaf: leaf[0], policies["nominal"])
    one, first, second = timed(lambda: evaluate.grid(ppo, config, state, ENV, models, key, episodes=EPISODES))
    record["one call"] = {"models": len(models), "episodes": EPISODES, "first, s": first, "second, s": second}
    print(record["one call"], flush=True)
    for name, search in SEARCHES.items():
        found, first, second = timed(
            lambda s=search: evaluate.worst_params(ppo, config, state, ENV, key, s, episodes=10)
        )
        record["searches"][name] = {
            "physical": np.asarray(ENV.physical(found.point)).round(3).tolist(),
            "of the search": round(float(jnp.nanmin(found.values)), 1),
            "fresh": round(float(found.worst_case), 1),
            "evaluations": len(found.values),
            "first, s": round(first, 2),
            "second, s": round(second, 2),
        }
        print(name, record["searches"][name], flush=True)
    record |= {"versions": log.versions(), "means": one.means.round(2).tolist()}
    (HERE / "heatmap.json").write_text(json.dumps(record, indent=1, default=float) + "\n")

    axes = [np.linspace(low, high, POINTS) for low, high in RANGES.values()]
    worst = record["searches"]["grid, 100 points"]["physical"]
    plot.heat_map(
        HERE / "heatmap.png",
        *axes,
        np.asarray(one.means).reshape(POINTS, POINTS),
        xlabel="mass, kg",
        ylabel="length, m",
        label=f"mean return over {EPISODES} episodes",
        title="A nominal policy in 100 pendulums",
        marks={"nominal": (1.0, 1.0), "worst": tuple(worst)},
    )
    plot.profiles(HERE / "profile.png", means, ylabel="mean return", title="100 pendulums, mass and length")


if __name__ == "__main__":
    main()
