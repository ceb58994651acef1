"""What an update of STAC costs beside one of SAC: CPU seconds, in turns on the same machine, and operations.

    python benchmarks/distributional/stac_cost.py

Networks of two hidden layers of 64 or 256, batches of 256, 17 observations and 6 actions. Each agent updates on a batch
that never changes, so that nothing but the update is measured; a chunk of each in turn, in CPU seconds of the process,
so that other work on the machine matters little. "dropout" draws the random numbers that STAC's dropout takes in an
update, one for two hidden units in five passes of two layers, and nothing else. The operations are what XLA counts in
the program. Writes stac_cost.json; --rounds changes how often.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl.agents import sac, stac
from jaxrl.types import Box, Replay, Spec, Transition, canonical

HERE = Path(__file__).parent
BATCH = 256
SPEC = Spec(Box((17,)), Box((6,), -1.0, 1.0))
UPDATES = {64: 200, 256: 25}  # of a chunk, by width


def chunk_of(name, width):
    """A function that does so many updates, and the operations of one."""
    update, state = dropout(width) if name == "dropout" else update_of({"sac": sac, "stac": stac}[name], width)
    key = jax.random.key(0)

    @jax.jit
    def chunk(state, key):
        return jax.lax.fori_loop(0, UPDATES[width], lambda i, state: update(state, jax.random.fold_in(key, i)), state)

    def run():
        jax.block_until_ready(chunk(state, key))

    run()
    return run, jax.jit(update).lower(state, key).cost_analysis()["flops"]


def update_of(agent, width):
    """`update(state, key) -> state` on one batch, and a state."""
    config = canonical(agent.Config(hidden_sizes=(width, width), data=Replay(batch_size=BATCH)))
    keys = iter(jax.random.split(jax.random.key(1), 4))

    def normal(*shape):
        return jax.random.normal(next(keys), (1, BATCH, *shape))

    never = jnp.zeros((1, BATCH), bool)
    data = Transition(normal(17), jnp.tanh(normal(6)), normal(), normal(17), never, never)
    state = jax.jit(agent.init, static_argnums=1)(config, SPEC, jax.random.key(0))
    return lambda state, key: agent.update(config, state, data, key)[0], state


def dropout(width):
    """The same for random numbers alone: one of 32 bits for two units."""

    def draw(total, key):
        return total + jnp.sum(jax.random.bits(key, (5, 2, BATCH, width // 2)))

    return draw, jnp.zeros((), jnp.uint32)


def main(rounds):
    record = {
        "command": f"python benchmarks/distributional/stac_cost.py --rounds {rounds}",
        "versions": {"jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "cases": {},
    }
    for width in UPDATES:
        chunks = {name: chunk_of(name, width) for name in ("sac", "stac", "dropout")}
        times = {name: [] for name in chunks}
        for _ in range(rounds):
            for name, (run, _) in chunks.items():
                begin = time.process_time()
                run()
                times[name].append(1e3 * (time.process_time() - begin) / UPDATES[width])
        ratios = [b / a for a, b in zip(times["sac"], times["stac"], strict=True)]
        found = {
            "milliseconds of CPU, median": {name: round(statistics.median(each), 3) for name, each in times.items()},
            "stac / sac, median": round(statistics.median(ratios), 2),
            "stac / sac, least and greatest": [round(min(ratios), 2), round(max(ratios), 2)],
            "million operations": {name: round(flops / 1e6, 1) for name, (_, flops) in chunks.items()},
        }
        record["cases"][f"{width} x {width}"] = found | {"milliseconds of CPU": times}
        print(width, found, flush=True)
        (HERE / "stac_cost.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    main(parser.parse_args().rounds)
