"""Time of Storm's robust value iteration on interval models: `python benchmarks/robust/storm.py` writes storm.json.

Garnet models as in speed.py, with the mean reward of each action, which is all that Storm's format has. Storm knows no
discount: with probability 1 - discount, fixed, each action leads to a state where all ends. Needs stormpy.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import stormpy
from speed import DISCOUNT, RESIDUAL, TOLERANCE, clock, garnet

from jaxrl import mdp, robust
from jaxrl.robust.solve import solve


def write(model, path):
    """The model in Storm's explicit format, with intervals of half to one and a half times each probability."""
    successors, probs, reward = (np.asarray(x) for x in (model.successors, model.probabilities, model.reward))
    states, actions, _ = probs.shape
    lines = ["@type: MDP", "@value_type: double-interval", "@parameters", "", "@reward_models", "gain"]
    lines += ["@nr_states", str(states + 1), "@nr_choices", str(states * actions + 1), "@model"]
    for s in range(states):
        lines.append(f"state {s}" + (" init" if s == 0 else ""))
        for a in range(actions):
            lines.append(f"\taction {a} [{reward[s, a]:.17g}]")
            for k in np.argsort(successors[s, a]):
                p = DISCOUNT * probs[s, a, k]
                lines.append(f"\t\t{successors[s, a, k]} : [{0.5 * p:.17g}, {min(1.5 * p, 1):.17g}]")
            lines.append(f"\t\t{states} : [{1 - DISCOUNT:.17g}, {1 - DISCOUNT:.17g}]")
    lines += [f"state {states} done", "\taction 0 [0]", f"\t\t{states} : [1, 1]"]
    path.write_text("\n".join(lines) + "\n")


def measure(states):
    model = garnet(states, 10, states // 10)
    reward = mdp.expected_reward(model)
    model = model.replace(reward=reward - reward.min())  # Storm wants no negative ones
    probs = model.probabilities
    ours, found = clock(lambda: solve(model, robust.Interval(0.5 * probs, 1.5 * probs), tolerance=TOLERANCE))
    path = Path(tempfile.mkdtemp()) / "model.drn"
    start = time.process_time()
    write(model, path)
    wrote, start = time.process_time() - start, time.process_time()
    built = stormpy.build_model_from_drn[stormpy.Interval](str(path))
    parsed = time.process_time() - start
    formula = stormpy.parse_property('R{"gain"}max=? [F "done"]')
    environment = stormpy.Environment()
    solver = environment.solver().min_max()
    solver.method = stormpy.environments.MinMaxMethod.VALUE_ITERATION
    solver.precision, solver.relative_termination_criterion = stormpy.Rational(RESIDUAL), False
    start = time.process_time()
    result = stormpy.model_checking(
        built,
        formula,
        uncertainty_resolution_mode=stormpy.UncertaintyResolutionMode.ROBUST,
        environment=environment,
    )
    took = time.process_time() - start
    values = np.array([result.get_value(state) for state in range(states)])
    return {
        "states": states,
        "storm_cpu_seconds": took,
        "storm_cpu_seconds_writing": wrote,
        "storm_cpu_seconds_reading": parsed,
        "jaxrl_cpu_seconds": ours["cpu_seconds"],
        "largest_difference": float(np.abs(values - np.asarray(found.value)).max()),
        "load": os.getloadavg()[0],
        "stormpy": stormpy.__version__,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=int, nargs="+", default=[100, 1000])
    results = []
    with jax.enable_x64(True):
        assert jnp.zeros(()).dtype == np.float64
        for states in parser.parse_args().states:
            results.append(measure(states))
            print(results[-1], flush=True)
    Path(__file__).with_name("storm.json").write_text(json.dumps(results, indent=1) + "\n")
