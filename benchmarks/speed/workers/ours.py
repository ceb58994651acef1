"""What training with jaxrl and its parts alone share: agent, settings, seeds, and the program of `train.fit`."""

import importlib
import os
from typing import NamedTuple

PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "brax")


def devices(task):
    """Each core is a device, if there are seeds for it."""
    import jax

    jax.config.update("jax_num_cpu_devices", min(task["seeds"], os.cpu_count()))


def configured(task):
    """The agent, and its settings."""
    from jaxrl.types import Replay, Rollout, canonical

    agent = importlib.import_module(f"jaxrl.agents.{task['algorithm']}")
    own = {
        "learning_rate": task["learning_rate"],
        "normalise_observations": task["normalise"],
        "hidden_sizes": tuple(task["hidden"]),
    }
    if task["algorithm"] == "ppo":
        own |= {"num_epochs": task["epochs"], "num_minibatches": task["minibatches"]}
        own |= {"entropy_coefficient": task["entropy"]}
        own["data"] = Rollout(num_envs=task["num_envs"], length=task["length"])
    else:
        own["data"] = Replay(
            num_envs=1, capacity=task["capacity"], warmup=task["warmup"], updates_per_step=task["updates"]
        )
    if task["algorithm"] == "tqc":  # with as many critics as sbx has, of the same size
        own |= {"num_critics": 2, "critic_hidden_sizes": tuple(task["hidden"])}
    return agent, canonical(agent.Config(**own))


class Program(NamedTuple):
    """What `fit` compiles, for the seeds of a task."""

    env: object
    agent: object
    config: object
    init: object  # (config, keys, None) -> run
    chunk: object  # (config, run, n) -> run, metrics


def program(task):
    from jaxrl import envs, train

    agent, config = configured(task)
    env = envs.make(task["env"])
    programs = train._programs(train.loop(agent, env), agent, env, 1_000, 1, train.devices_for(task["seeds"]))
    return Program(env, agent, config, programs.init, programs.chunk)


def keys(task):
    import jax

    return jax.random.split(jax.random.key(task.get("seed", 0)), task["seeds"])
