"""SAC or TQC as sbx 0.28.0 trains it: one seed after the other, its curves as one JSON file.

Run it with the peer's own interpreter, which `benchmarks/peers/setup sbx` makes (several GB: sbx needs PyTorch);
nothing of jaxrl is imported::

    JAX_PLATFORMS=cpu benchmarks/peers/.venv-sbx/bin/python benchmarks/peers/sbx_sac.py \
        --env Pendulum-v1 --seeds 8 --steps 10000 --evaluate-every 500 --episodes 16 \
        --out benchmarks/learning/peers/sbx-sac-pendulum.json \
        --settings '{"learning_rate": 1e-3, "buffer_size": 10000, "learning_starts": 1000, "batch_size": 256,
                     "tau": 0.005, "gamma": 0.99, "net_arch": [64, 64]}'

`--algorithm tqc` takes TQC, with two critics of 25 quantiles. `--env brax/inverted_pendulum` (with `--backend`) is
Brax's raw environment behind gymnasium's interface: it terminates where Brax says that it is done, and is truncated
after 1000 steps. One update is made for each step after the warm-up. An evaluation is the mean undiscounted return of
whole episodes of the sampling policy; sbx tells termination from truncation. The seconds in a record are wall clock on
a machine that did other work too: they are no speed figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from sbx import SAC, TQC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

warnings.filterwarnings("ignore")
PACKAGES = ("sbx-rl", "stable-baselines3", "gymnasium", "brax", "jax", "jaxlib", "flax", "optax", "torch", "numpy")


class Brax(gymnasium.Env):
    """A raw Brax environment behind gymnasium's interface."""

    def __init__(self, name: str, backend: str | None) -> None:
        from brax import envs

        env = envs.get_environment(name, backend=backend or "spring")
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)
        self.observation_space = spaces.Box(-np.inf, np.inf, (env.observation_size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = self._reset(jax.random.PRNGKey(self.np_random.integers(2**31)))
        return np.asarray(self._state.obs), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._state = self._step(self._state, action)
        return np.asarray(self._state.obs), float(self._state.reward), bool(self._state.done), False, {}


def make(args: argparse.Namespace) -> gymnasium.Env:
    """Build the environment, with its time limit."""
    if not args.env.startswith("brax/"):
        return gymnasium.make(args.env)
    return gymnasium.wrappers.TimeLimit(Brax(args.env.removeprefix("brax/"), args.backend), 1000)


class Evaluation(BaseCallback):
    """Whole episodes, side by side, before the first step and every `every` steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.every, self.episodes = args.evaluate_every, args.episodes
        self.env = DummyVecEnv([lambda: make(args)] * args.episodes)
        self.points: list[int] = []
        self.returns: list[float] = []

    def _on_training_start(self) -> None:
        self._evaluate()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        self.env.seed(len(self.points))
        observation, alive = self.env.reset(), np.ones(self.episodes, bool)
        total = np.zeros(self.episodes)
        while np.any(alive):
            action, _ = self.model.predict(observation, deterministic=False)
            observation, reward, done, _ = self.env.step(action)
            total += alive * reward
            alive &= ~done
        self.points.append(self.num_timesteps)
        self.returns.append(float(total.mean()))


def main() -> None:
    """Train every seed and write the curves."""
    parser = argparse.ArgumentParser(description="Train sbx's SAC or TQC and write its learning curves.")
    parser.add_argument("--algorithm", choices=("sac", "tqc"), default="sac")
    parser.add_argument("--env", required=True, help="Pendulum-v1, or brax/NAME")
    parser.add_argument("--backend", help="Brax physics backend, spring by default")
    parser.add_argument("--seeds", type=int, required=True, help="number of runs, one after the other, from seed 0")
    parser.add_argument("--steps", type=int, required=True, help="environment transitions per seed")
    parser.add_argument("--evaluate-every", type=int, required=True, help="transitions between evaluations")
    parser.add_argument("--episodes", type=int, required=True, help="episodes per evaluation")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON object with sbx's settings")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = dict(args.settings)
    policy = {"net_arch": settings.pop("net_arch")}
    algorithm = {"sac": SAC, "tqc": TQC}[args.algorithm]
    returns, start = [], time.perf_counter()
    for seed in range(args.seeds):
        evaluation = Evaluation(args)
        model = algorithm("MlpPolicy", make(args), seed=seed, policy_kwargs=policy, **settings)
        model.learn(args.steps, callback=evaluation)
        returns.append(evaluation.returns)
        print(f"seed {seed}: {evaluation.returns[-1]:.1f} after {time.perf_counter() - start:.0f} s", flush=True)
    record = {
        "library": "sbx",
        "algorithm": args.algorithm,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "env": args.env,
        "backend": args.backend,
        "settings": args.settings,
        "evaluation": f"mean undiscounted return of {args.episodes} episodes of the sampling policy",
        "steps": evaluation.points,
        "returns": np.round(returns, 3).tolist(),
        "train_seconds": round(time.perf_counter() - start, 2),  # compilation and evaluations included
    }
    args.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
