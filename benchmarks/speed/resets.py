"""Two ways to reset, side by side: `python benchmarks/speed/resets.py brax/inverted_pendulum`.

Times rollouts of random actions with prepared resets ("pool") and with a reset computed at every step ("fresh"):
seconds of compilation, and steps per second over pairs A B A B, as median and range of the ratio. Writes resets.json.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import envs, rollout


def program(env, num_envs, length, resets):
    """A compiled rollout that hands on its lanes, and the lanes before the first; and the seconds to compile it."""

    def policy(observation, key):
        return jax.vmap(env.spec.action.sample)(jax.random.split(key, num_envs)), {}

    def collect(lanes, key):
        lanes, batch = rollout.collect(env, policy, lanes, key, length)
        return lanes, jax.tree.map(jnp.sum, rollout.summary(batch))

    lanes = rollout.lanes(env, num_envs, resets)
    begin = time.perf_counter()
    compiled = jax.jit(collect).lower(lanes, jax.random.key(0)).compile()
    return compiled, lanes, time.perf_counter() - begin


def main(name, num_envs, length, pairs):
    env = envs.make(name)
    runs, rates, compile_seconds = {}, {"pool": [], "fresh": []}, {}
    for resets in rates:
        compiled, lanes, compile_seconds[resets] = program(env, num_envs, length, resets)
        runs[resets] = [compiled, jax.block_until_ready(compiled(lanes, jax.random.key(1)))[0]]
    for pair in range(pairs):
        for resets, (compiled, lanes) in runs.items():
            begin = time.perf_counter()
            for i in range(5):
                lanes, _ = compiled(lanes, jax.random.fold_in(jax.random.key(2), 5 * pair + i))
            jax.block_until_ready(lanes)
            rates[resets].append(5 * num_envs * length / (time.perf_counter() - begin))
            runs[resets][1] = lanes
    ratio = np.array(rates["pool"]) / np.array(rates["fresh"])
    row = {
        "environment": repr(env),
        "num_envs": num_envs,
        "length": length,
        "compile seconds": {key: round(value, 1) for key, value in compile_seconds.items()},
        "steps per second, median": {key: round(float(np.median(value))) for key, value in rates.items()},
        "pool / fresh, median and range of pairs": [round(float(f(ratio)), 2) for f in (np.median, np.min, np.max)],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    print(json.dumps(row, indent=2))
    path = Path(__file__).with_suffix(".json")
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if (old["environment"], old["num_envs"]) != (row["environment"], num_envs)]
    path.write_text(json.dumps([*rows, row], indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment")
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    main(arguments.environment, arguments.num_envs, arguments.length, arguments.pairs)
