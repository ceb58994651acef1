"""PPO and SAC as rejax 0.1.3 trains them: seeds under `vmap`, one compiled call, their curves as one JSON file.

Run it with the peer's own interpreter, which `benchmarks/peers/setup rejax` makes; nothing of jaxrl is imported::

    JAX_PLATFORMS=cpu benchmarks/peers/.venv-rejax/bin/python benchmarks/peers/rejax_train.py \
        --algorithm ppo --env CartPole-v1 --seeds 16 --steps 500000 --evaluate-every 25000 --episodes 16 \
        --out benchmarks/learning/peers/rejax-ppo-cartpole.json \
        --settings '{"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 2.5e-4,
                     "gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5, "ent_coef": 0.01,
                     "max_grad_norm": 0.5, "hidden_layer_sizes": [64, 64], "activation": "tanh",
                     "normalize_observations": false}'

The other records in `benchmarks/learning/peers` hold their settings and were made the same way, with `--env
brax/inverted_pendulum --backend spring --seeds 8 --steps 400000 --evaluate-every 20000 --episodes 16`:

- `...-published.json` (`--seed 0`) takes what rejax publishes for halfcheetah, walker2d and humanoidstandup (it has no
  file for this environment), with 64 environments x 16 steps for its 32 x 32;
- `...-tuned.json` (`--seed 1`) is the best of six settings tried for 200k steps on two seeds of `--seed 0` (two of the
  six with rejax's `normalize_rewards`): 64 x 32, 4 epochs, 8 minibatches, learning rate 1e-3, lambda 0.95,
  by the final mean return.

Neither comes to the task's limit of 1000 in these steps.

The seconds in a record are wall clock on a machine that did other work too: they are no speed figures.

The peer is run as it is, so these figures hold what it does (read in its source):

- an evaluation acts by sampling from the policy, not by its mode; each episode starts from a fresh reset and ends at
  the first termination or at the time limit; its key is the one that training goes on with, so it is used twice;
- a time limit is treated as a termination: no bootstrap through it;
- a Brax environment is reset twice: Brax's wrapper restores the first state of the lane at an episode's end, and
  gymnax's `step` replaces that by a fresh reset, which it computes in every step;
- `max_grad_norm` clips each gradient element to [-max_grad_norm, max_grad_norm], not the global norm;
- SAC's replay holds, as the successor of an episode's last step, the first observation of the next episode; its warm-up
  acts with the untrained policy; its target is updated in the warm-up too; `polyak` is what stays of the target;
- there is no learning-rate schedule; the very first observation of a lane is not normalised;
- the value loss is the larger of the clipped and unclipped squared errors, halved, before `vf_coef`; values are clipped
  by `clip_eps` too, in units of the reward;
- each evaluation waits for `ceil(evaluate_every / (num_envs * num_steps))` whole iterations, and there are
  `ceil(steps / evaluate_every)` of them: `steps` in the output are the transitions per seed that were really made.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rejax import PPO, SAC
from rejax.evaluate import evaluate

ALGORITHMS = {"ppo": PPO, "sac": SAC}
NETWORK = ("hidden_layer_sizes", "activation")
SETTINGS = {
    "ppo": (
        "num_envs", "num_steps", "num_epochs", "num_minibatches", "learning_rate", "gamma", "gae_lambda", "clip_eps",
        "vf_coef", "ent_coef", "max_grad_norm", "normalize_observations", *NETWORK,
    ),
    "sac": (
        "num_envs", "num_epochs", "buffer_size", "fill_buffer", "batch_size", "learning_rate", "gamma", "polyak",
        "max_grad_norm", "normalize_observations", *NETWORK,
    ),
}  # fmt: skip
EVALUATION = "mean undiscounted return of {} episodes of the sampling policy, each from a fresh reset"
PACKAGES = ("rejax", "gymnax", "brax", "jax", "jaxlib", "flax", "optax", "distrax", "numpy")


def arguments() -> argparse.Namespace:
    """Parse the command line; the settings must name every key of `SETTINGS` and no other."""
    parser = argparse.ArgumentParser(
        description="Train rejax's PPO or SAC on vmapped seeds and write its learning curves."
    )
    parser.add_argument("--algorithm", required=True, choices=ALGORITHMS)
    parser.add_argument("--env", required=True, help="such as CartPole-v1 (gymnax) or brax/inverted_pendulum")
    parser.add_argument("--backend", help="Brax physics backend (Brax environments only), such as spring")
    parser.add_argument("--seeds", type=int, required=True, help="number of independent runs, trained together")
    parser.add_argument("--seed", type=int, default=0, help="key from which the runs' keys are split")
    parser.add_argument("--steps", type=int, required=True, help="environment transitions per seed")
    parser.add_argument("--evaluate-every", type=int, required=True, help="transitions per seed between evaluations")
    parser.add_argument("--episodes", type=int, required=True, help="episodes per evaluation")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON object with rejax's settings")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    differing = set(args.settings) ^ set(SETTINGS[args.algorithm])
    if differing:
        parser.error(f"--settings differs from the expected names in {sorted(differing)}")
    if args.backend and not args.env.startswith("brax/"):
        parser.error(f"--backend is for Brax environments, got --env {args.env}")
    return args


def create(args: argparse.Namespace) -> PPO | SAC:
    """Build rejax's algorithm with its own evaluation at `episodes` episodes instead of 128."""
    network = {name: args.settings[name] for name in NETWORK}
    own = {name: value for name, value in args.settings.items() if name not in NETWORK}
    if args.algorithm == "sac":  # which takes the sizes beside the network's settings
        own["hidden_layer_sizes"] = network.pop("hidden_layer_sizes")
    algorithm = ALGORITHMS[args.algorithm].create(
        env=args.env,
        env_params={"backend": args.backend} if args.backend else {},
        agent_kwargs=network,
        total_timesteps=args.steps,
        eval_freq=args.evaluate_every,
        **own,
    )

    def episode_returns(algorithm: PPO | SAC, state: Any, key: jax.Array) -> jax.Array:
        act, params = algorithm.make_act(state), algorithm.env_params
        return evaluate(act, key, algorithm.env, params, args.episodes, params.max_steps_in_episode)[1]

    return algorithm.replace(eval_callback=episode_returns)


def main() -> None:
    """Compile, train and write the curves."""
    args = arguments()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    algorithm = create(args)
    keys = jax.random.split(jax.random.key(args.seed), args.seeds)

    start = time.perf_counter()
    train = jax.jit(jax.vmap(algorithm.train)).lower(keys).compile()
    compiled = time.perf_counter()
    state, returns = jax.block_until_ready(train(keys))  # returns [seeds, points, episodes]
    trained = time.perf_counter()

    iteration = args.settings["num_envs"] * args.settings.get("num_steps", 1)
    between = math.ceil(args.evaluate_every / iteration) * iteration
    points = [between * i for i in range(returns.shape[1])]
    assert np.all(np.asarray(state.global_step) == points[-1]), (state.global_step, points[-1])

    record = {
        "library": "rejax",
        "algorithm": args.algorithm,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "env": args.env,
        "backend": args.backend,
        "seed": args.seed,
        "settings": args.settings,
        "evaluation": EVALUATION.format(args.episodes),
        "steps": points,
        "returns": np.asarray(returns, np.float64).mean(-1).round(3).tolist(),
        "compile_seconds": round(compiled - start, 2),
        "train_seconds": round(trained - compiled, 2),  # evaluations included
    }
    args.out.write_text(json.dumps(record) + "\n")
    final = np.asarray(record["returns"])[:, -1]
    print(f"{args.out}: final return {final.mean():.1f} [{final.min():.1f}..{final.max():.1f}], {args.seeds} seeds")
    print(f"compile {record['compile_seconds']} s, train {record['train_seconds']} s")


if __name__ == "__main__":
    main()
