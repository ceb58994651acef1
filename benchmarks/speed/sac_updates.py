"""Gradient updates of SAC per second: jaxrl beside rejax and sbx, in turns, on the same machine and problem.

    python benchmarks/speed/sac_updates.py

Each library runs in a process and an environment of its own (`benchmarks/peers/setup rejax`, `... sbx`): it compiles,
and is then asked in turns, five times, for a chunk of training. Everybody trains on the pendulum with a batch of 256
and two critics; `step` is one environment step, one batch from the replay and one update; `update` is batch and update
alone, 50 of them to each environment step (sbx: `train(50)`). Writes sac_updates.json: updates per second of wall clock
and per second of all cores together, medians of five.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent / "peers"
WORKERS = {
    "jaxrl": sys.executable,
    "rejax": str(PEERS / ".venv-rejax/bin/python"),
    "sbx": str(PEERS / ".venv-sbx/bin/python"),
}
ROUNDS = 5


def jaxrl(sizes, seeds, updates):
    import jax

    from jaxrl import envs, train
    from jaxrl.agents import sac
    from jaxrl.types import Replay, canonical

    data = Replay(num_envs=1, capacity=100_000, batch_size=256, warmup=1_000, updates_per_step=updates)
    config = canonical(sac.Config(hidden_sizes=sizes, data=data))
    loop = train.loop(sac, envs.make("jaxrl/pendulum"))
    run = jax.jit(jax.vmap(loop.init, (None, 0)))(config, jax.random.split(jax.random.key(0), seeds))
    chunk = jax.jit(
        jax.vmap(lambda config, run, n: jax.lax.fori_loop(0, n, lambda _, run: loop.step(config, run)[0], run),
                 (None, 0, None)),
        donate_argnums=1,
    )  # fmt: skip

    def advance(steps):
        nonlocal run
        run = jax.block_until_ready(chunk(config, run, steps))

    advance(1_000)
    return advance


def rejax(sizes, seeds, updates):
    import jax
    from rejax import SAC

    algorithm = SAC.create(
        env="Pendulum-v1", num_envs=1, num_epochs=updates, buffer_size=100_000, fill_buffer=1_000, batch_size=256,
        hidden_layer_sizes=sizes, agent_kwargs={"activation": "relu"},
    )  # fmt: skip
    state = jax.jit(jax.vmap(algorithm.init_state))(jax.random.split(jax.random.key(0), seeds))
    chunk = jax.jit(
        jax.vmap(lambda state, n: jax.lax.fori_loop(0, n, lambda _, state: algorithm.train_iteration(state), state),
                 (0, None)),
        donate_argnums=0,
    )  # fmt: skip

    def advance(steps):
        nonlocal state
        state = jax.block_until_ready(chunk(state, steps))

    advance(1_002)
    return advance


def sbx(sizes, seeds, updates):
    import warnings

    warnings.filterwarnings("ignore")
    from sbx import SAC

    assert seeds == 1
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=100_000, learning_starts=1_000, batch_size=256, seed=0,
                gradient_steps=updates, policy_kwargs={"net_arch": list(sizes)})  # fmt: skip
    model.learn(1_010)

    def advance(steps):
        model.learn(steps, reset_num_timesteps=False)

    return advance


CASES = {  # name: network, seeds side by side, updates for each environment step, steps in a chunk, libraries
    "64 x 64, step": ((64, 64), 1, 1, 1000, ("jaxrl", "rejax", "sbx")),
    "64 x 64, step, 8 seeds": ((64, 64), 8, 1, 300, ("jaxrl", "rejax")),
    "64 x 64, update": ((64, 64), 1, 50, 20, ("jaxrl", "rejax", "sbx")),
    "256 x 256, step": ((256, 256), 1, 1, 200, ("jaxrl", "rejax", "sbx")),
    "256 x 256, update": ((256, 256), 1, 50, 4, ("jaxrl", "rejax", "sbx")),
}


def work(library, case):
    """Compile, say so, and then do a chunk for each line that comes in."""
    sizes, seeds, updates, steps, _ = CASES[case]
    advance = globals()[library](sizes, seeds, updates)
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        advance(steps)
        total = steps * seeds * updates
        print(total / (time.perf_counter() - wall), total / (time.process_time() - cpu), flush=True)


def main():
    record = {
        "command": "python benchmarks/speed/sac_updates.py",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "updates per second": {},
    }
    for case, (*_, libraries) in CASES.items():
        workers = {
            name: subprocess.Popen(
                [WORKERS[name], __file__, "--worker", name, case],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            for name in libraries
        }
        for name, worker in workers.items():
            if worker.stdout.readline() != "ready\n":
                raise SystemExit(f"{name} did not start; benchmarks/peers/setup {name} installs it")
        times = {name: [] for name in libraries}
        for _ in range(ROUNDS):
            for name, worker in workers.items():
                print("go", file=worker.stdin, flush=True)
                times[name].append([float(word) for word in worker.stdout.readline().split()])
        for worker in workers.values():
            worker.communicate()
        median = {
            name: [sorted(each)[ROUNDS // 2] for each in zip(*values, strict=True)] for name, values in times.items()
        }
        record["updates per second"][case] = {
            name: {"wall clock": round(wall), "cpu": round(cpu), "all": times[name]}
            for name, (wall, cpu) in median.items()
        }
        print(case, {name: [round(value) for value in values] for name, values in median.items()}, flush=True)
    (HERE / "sac_updates.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("LIBRARY", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work(*arguments.worker) if arguments.worker else main()
