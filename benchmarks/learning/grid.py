"""Learning curves of the actor-critics with laws of the return, all on one task, beside SAC, TD3 and peers.

    python benchmarks/learning/grid.py pendulum            # one task, every agent
    python benchmarks/learning/grid.py pendulum stac tqc   # some of its agents
    python benchmarks/learning/grid.py                     # all tasks, one after the other

writes grid-TASK.json (settings, versions, raw returns of every seed; after each agent) and grid-TASK.png beside this
file. Runs are kept in runs/learning, and what was interrupted goes on where it was. One update for each step of the
environment, and the same networks, batch, step size and replay for all; what else an agent has is its default, among it
the dropout of STAC's critic. Returns are those of evaluations with sampled actions; the greedy ones are kept too.
"""

import argparse
import json
from typing import Any, NamedTuple

import run

from jaxrl import envs, log, stats
from jaxrl.agents import bpo, dsac, ppo, sac, stac, td3, tqc
from jaxrl.distributional import critics
from jaxrl.types import Replay, Rollout


class Grid(NamedTuple):
    """What is learned, by whom, and beside whom."""

    environment: str
    agents: dict[str, tuple[Any, Any]]  # agent and configuration by name
    seeds: int
    steps: int
    title: str
    peers: dict[str, str]  # a file in peers/ by label
    episodes: int = 16  # of each evaluation, of each kind; all seeds have the same starts


def actor_critics(low: float, high: float, capacity: int) -> dict[str, tuple[Any, Any]]:
    """Every off-policy agent; `low` and `high` are the ends of the returns that a categorical critic can tell apart."""
    data = Replay(num_envs=1, capacity=capacity, warmup=1_000)
    common = {"learning_rate": 1e-3, "hidden_sizes": (64, 64), "data": data}
    soft = sac.Config(**common)
    return {
        "sac": (sac, soft),
        "sac-categorical": (sac, soft.replace(critic=critics.Categorical(low, high))),
        "sac-hl-gauss": (sac, soft.replace(critic=critics.HLGauss(low, high))),
        "sac-quantile": (sac, soft.replace(critic=critics.Quantile())),
        "td3": (td3, td3.Config(**common)),
        "tqc": (tqc, tqc.Config(num_critics=2, critic_hidden_sizes=(64, 64), **common)),  # two, as sbx has
        "dsac": (dsac, dsac.Config(**common)),
        "stac": (stac, stac.Config(**common)),
    }


ON_POLICY = {
    "learning_rate": 1e-3,
    "entropy_coefficient": 0.01,
    "num_epochs": 4,
    "num_minibatches": 8,
    "hidden_sizes": (64, 64),
    "data": Rollout(num_envs=64, length=32),
}
GRIDS = {
    "pendulum": Grid(
        environment="jaxrl/pendulum",
        agents=actor_critics(low=-1_200.0, high=100.0, capacity=10_000),
        seeds=8,
        steps=10_000,
        title="Pendulum: one update per step",
        peers={"sbx 0.28.0, SAC": "sbx-sac-pendulum.json", "sbx 0.28.0, TQC": "sbx-tqc-pendulum.json"},
        episodes=64,
    ),
    "inverted-pendulum": Grid(
        environment="brax/inverted_pendulum",
        agents=actor_critics(low=-10.0, high=110.0, capacity=20_000),
        seeds=4,
        steps=20_000,
        title="Brax inverted pendulum (spring): one update per step",
        peers={"sbx 0.28.0, SAC": "sbx-sac-inverted-pendulum.json"},
    ),
    "reacher": Grid(
        environment="brax/reacher",
        agents=actor_critics(low=-120.0, high=20.0, capacity=20_000),
        seeds=2,
        steps=10_000,
        title="Brax reacher (spring): one update per step",
        peers={},
        episodes=8,
    ),
    "bpo-point-mass": Grid(
        environment="jaxrl/point_mass",
        agents={
            "ppo": (ppo, ppo.Config(**ON_POLICY)),
            "ppo-scaled": (ppo, ppo.Config(reward_scale=0.01, **ON_POLICY)),
            "bpo": (bpo, bpo.Config(**ON_POLICY)),  # whose advantages are not normalised
            "bpo-scaled": (bpo, bpo.Config(reward_scale=0.01, **ON_POLICY)),
        },
        seeds=8,
        steps=102_400,
        title="Point mass: 64 environments x 32 steps",
        peers={},
    ),
    "bpo-inverted-pendulum": Grid(
        environment="brax/inverted_pendulum",
        agents={"ppo": (ppo, ppo.Config(**ON_POLICY)), "bpo": (bpo, bpo.Config(**ON_POLICY))},
        seeds=8,
        steps=204_800,
        title="Brax inverted pendulum (spring): 64 environments x 32 steps",
        peers={},
    ),
}


def main(name: str, agents: list[str]) -> None:
    """Every agent on one task; what there is already of the others stays."""
    grid = GRIDS[name]
    env = envs.make(grid.environment)
    path = run.HERE / f"grid-{name}.json"
    done = json.loads(path.read_text())["agents"] if path.exists() else {}
    random = run.random_policy(env)
    for agent in agents or grid.agents:
        module, config = grid.agents[agent]
        learned = run.learn(
            run.RUNS / f"grid-{name}" / agent, module, config, env, grid.steps, grid.seeds, grid.episodes
        )
        done[agent] = {"config": log.describe(config)} | learned
        record = {
            "command": f"python benchmarks/learning/grid.py {name}",
            "environment": repr(env),
            **run.made_with(),
            "random policy": random,
            "agents": {each: done[each] for each in grid.agents if each in done},
        }
        path.write_text(json.dumps(record) + "\n")
    series = {f"jaxrl, {each}": run.curve(done[each]) for each in grid.agents if each in done}
    series |= {label: run.peer(file) for label, file in grid.peers.items()}
    run.draw(f"grid-{name}", series, grid.title, random)
    run.table(series, stats.interquartile_mean)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=GRIDS, help="all by default")
    parser.add_argument("agents", nargs="*", help="all by default")
    arguments = parser.parse_args()
    for each in [arguments.task] if arguments.task else GRIDS:
        unknown = set(arguments.agents) - set(GRIDS[each].agents)
        if unknown:
            parser.error(f"there is no agent {', '.join(sorted(unknown))}; there are {', '.join(GRIDS[each].agents)}")
        main(each, arguments.agents)
