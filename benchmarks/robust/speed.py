"""Time of the robust solvers beside scalar code: `python benchmarks/robust/speed.py` writes speed.json.

Garnet models (S states, 10 actions, S / 10 successors, the reward that of the transition), discount 0.95, float64,
until the residual is 1e-6. `--only one|shared|batch|large` runs a part, `--sets KL` its rows of one set. Needs numba,
which jaxrl does not. XLA_FLAGS=--xla_force_host_platform_device_count=2 lets `batch` use two cores.
"""

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import compiled
import jax
import jax.numpy as jnp
import numba
import numpy as np

from jaxrl import mdp, robust
from jaxrl.robust.solve import solve

DISCOUNT, RESIDUAL = 0.95, 1e-6
TOLERANCE = RESIDUAL / (1 - DISCOUNT)  # of the value: a residual of 1e-6 bounds the error by that
REPEATS = 5


def clock(function):
    """The least CPU and wall seconds of a call, after one that compiles; and what it gave."""
    found = jax.block_until_ready(function())
    cpu, wall = [], []
    for _ in range(REPEATS):
        start = time.process_time(), time.perf_counter()
        jax.block_until_ready(function())
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {"cpu_seconds": min(cpu), "wall_seconds": min(wall)}, found


def garnet(states, actions, successors, seed=0):
    model = mdp.garnet(states, actions, successors, DISCOUNT, jax.random.key(seed))
    probs = jnp.asarray(model.probabilities, float)
    probs = probs / probs.sum(-1, keepdims=True)
    initial = jnp.full(states, 1 / states)
    return model.replace(
        probabilities=probs, reward=jnp.asarray(model.reward, float), discount=jnp.float64(DISCOUNT), initial=initial
    )


def sets(model):
    probs = mdp.probabilities(model)
    return {
        "L1": (robust.L1(0.3), compiled.L1, 0.3),
        "Interval": (robust.Interval(0.5 * probs, 1.5 * probs), compiled.INTERVAL, 0.5),
        "KL": (robust.KL(0.1), compiled.KL, 0.1),
        "ChiSquare": (robust.ChiSquare(0.1), compiled.CHI_SQUARE, 0.1),
    }


def arrays(model):
    return tuple(np.asarray(x) for x in (model.successors, model.probabilities, model.reward))


def one(chosen):
    """Single models; the floor is a pass over the probabilities and the values of their successors."""
    rows = []
    for states in (100, 1000):
        model = garnet(states, 10, states // 10)
        value = jnp.ones(states)
        floor = clock(lambda model=model, value=value: jax.jit(mdp.action_values)(model, value))[0]
        for name, (set, kind, setting) in sets(model).items():
            if chosen not in (None, name):
                continue
            theirs, (values, _, sweeps, rejections) = clock(
                lambda kind=kind, setting=setting, model=model: compiled.solve(
                    kind, setting, *arrays(model), DISCOUNT, RESIDUAL
                )
            )
            rows.append(
                {"solver": "numba", "states": states, "set": name, "sweeps": sweeps, "rejections": rejections} | theirs
            )
            print(rows[-1], flush=True)
            for form, method in (
                ("sparse", "policy_iteration"),
                ("sparse", "modified_policy_iteration"),
                ("dense", "policy_iteration"),
            ):
                given = model if form == "sparse" else mdp.dense(model)
                ball = set if form == "sparse" else sets(given)[name][0]
                ours, found = clock(
                    lambda given=given, ball=ball, method=method: solve(given, ball, method=method, tolerance=TOLERANCE)
                )
                assert found.converged and np.abs(found.value - values).max() <= 2 * TOLERANCE
                counts = {"sweeps": int(found.iterations) + 1, "rejections": int(found.rejections)}
                rows.append({"solver": f"jaxrl {form} {method}", "states": states, "set": name} | counts | ours)
                rows[-1]["residual"] = float(found.residual)
                rows[-1]["floor_cpu_seconds_a_pass"] = floor["cpu_seconds"]
                print(rows[-1], flush=True)
    return rows


def shared(chosen):
    """Single models where the actions of a state share a budget."""
    rows = []
    for states in (100, 1000):
        model = garnet(states, 10, states // 10)
        for name, ball in (("L1", robust.L1(0.3)), ("KL", robust.KL(0.1))):
            if chosen not in (None, name) or (states, name) == (1000, "KL"):
                continue
            set = robust.SRectangular(ball)
            ours, found = clock(lambda model=model, set=set: solve(model, set, tolerance=TOLERANCE))
            assert found.converged
            rows.append({"solver": "jaxrl sparse auto", "states": states, "set": name} | ours)
            rows[-1] |= {"sweeps": int(found.iterations) + 1, "rejections": int(found.rejections)}
            rows[-1]["random_states"] = int(np.sum(np.max(found.policy, axis=1) < 0.999))
            print(rows[-1], flush=True)
    return rows


def on_all_devices(function):
    """A function of stacked models, with a share of them for each device."""
    mesh = jax.make_mesh((jax.device_count(),), ("lane",), axis_types=(jax.sharding.AxisType.Auto,))
    lanes = jax.sharding.PartitionSpec("lane")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=lanes, out_specs=lanes, check_vma=False))


def batch(chosen):
    """Models of 100 states, solved together."""
    rows = []
    models = mdp.stack([garnet(100, 10, 10, seed) for seed in range(256)])
    for name, make, kind, setting in (
        ("L1", robust.L1, compiled.L1, 0.3),
        ("KL", robust.KL, compiled.KL, 0.1),
    ):
        if chosen not in (None, name):
            continue

        def one(model, make=make, setting=setting):
            return solve(model, make(setting), tolerance=TOLERANCE).value

        many, each = jax.jit(jax.vmap(one)), jax.jit(lambda models, one=one: jax.lax.map(one, models))
        spread = on_all_devices(lambda models, one=one: jax.lax.map(one, models))
        for size in (1, 4, 16, 64, 256):
            part = jax.tree.map(lambda leaf, size=size: leaf[:size], models)
            ours, values = clock(lambda part=part, many=many: many(part))
            in_turn, again = clock(lambda part=part, each=each: each(part))
            theirs, others = clock(
                lambda part=part, kind=kind, setting=setting: compiled.solve_many(
                    kind, setting, *arrays(part), DISCOUNT, RESIDUAL
                )
            )
            assert max(np.abs(values - others).max(), np.abs(again - others).max()) <= 2 * TOLERANCE
            timed = [("jaxrl vmap", ours), ("jaxrl lax.map", in_turn), ("numba, all cores", theirs)]
            if jax.device_count() > 1 and size % jax.device_count() == 0:
                placed = jax.block_until_ready(spread(part))
                assert np.abs(placed - others).max() <= 2 * TOLERANCE
                timed.append(("jaxrl lax.map, all devices", clock(lambda part=part, spread=spread: spread(part))[0]))
            for solver, times in timed:
                rows.append({"solver": solver, "set": name, "batch": size} | times)
                rows[-1]["solves_per_cpu_second"] = size / times["cpu_seconds"]
                rows[-1]["solves_per_wall_second"] = size / times["wall_seconds"]
                print(rows[-1], flush=True)
    return rows


def large(chosen):
    """One large sparse model, and the memory that it takes: run alone, in a process of its own."""
    model = garnet(100_000, 5, 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = []
    for method in ("modified_policy_iteration", "policy_iteration"):
        start = time.process_time()
        found = jax.block_until_ready(solve(model, robust.L1(0.3), method=method, tolerance=TOLERANCE))
        first = time.process_time() - start
        start = time.process_time(), time.perf_counter()
        found = jax.block_until_ready(solve(model, robust.L1(0.3), method=method, tolerance=TOLERANCE))
        assert found.converged
        rows.append(
            {
                "solver": f"jaxrl {method}",
                "states": 100_000,
                "set": "L1",
                "cpu_seconds": time.process_time() - start[0],
                "wall_seconds": time.perf_counter() - start[1],
                "cpu_seconds_with_compilation": first,
                "sweeps": int(found.iterations) + 1,
                "rejections": int(found.rejections),
                "peak_gigabytes_so_far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
                "gigabytes_before": before / 1e6,
            }
        )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("one", "shared", "batch", "large"))
    parser.add_argument("--sets")
    chosen = parser.parse_args()
    path = Path(__file__).with_name("speed.json")
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in (large, one, shared, batch):  # the large one first, while the memory is its own
        if chosen.only in (None, part.__name__):
            others = [row for row in results.get(part.__name__, []) if chosen.sets not in (None, row["set"])]
            with jax.enable_x64(True):
                new = part(chosen.sets)
            for row in new:
                row["load"] = round(os.getloadavg()[0], 1)
            results[part.__name__] = others + new
            results["machine"] = {
                "cores": os.cpu_count(),
                "processor": platform.processor() or platform.machine(),
                "load": os.getloadavg()[0],
                "versions": {"jax": jax.__version__, "numba": numba.__version__, "numpy": np.__version__},
            }
            path.write_text(json.dumps(results, indent=1) + "\n")
