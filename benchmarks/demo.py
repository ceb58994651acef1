"""Trains PPO on Brax's inverted pendulum, 8 seeds side by side on all cores, and draws what came of it.

Run by `make demo`; about three minutes on two cores. The same in fifteen lines is in the README.
"""

import os
import shutil
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # each core takes its share of the seeds

from jaxrl import envs, evaluate, plot, train  # noqa: E402
from jaxrl.agents import ppo  # noqa: E402
from jaxrl.types import Rollout  # noqa: E402

SEEDS, STEPS = 8, 600_000
RUN = Path("runs/demo")

env = envs.make("brax/inverted_pendulum")
config = ppo.Config(
    learning_rate=1e-3,
    discount=0.995,
    anneal_updates=STEPS / 1024,
    data=Rollout(num_envs=32, length=32),
)
shutil.rmtree(RUN, ignore_errors=True)
result = train.fit(ppo, config, env, jax.random.key(0), steps=STEPS, seeds=SEEDS, run_dir=RUN)

random = jax.jit(lambda key: evaluate.random_returns(env, key, episodes=64))(jax.random.key(1)).mean()
final = result.evaluations["greedy"][:, -1].mean()
plot.curves(
    RUN / "curve.png",
    {"PPO": (result.metrics["steps"], result.metrics["episode_return"])},
    xlabel="environment steps (per seed)",
    ylabel="return of an episode (at most 1000)",
    title="Brax inverted pendulum",
    references={f"random policy: {random:.0f}": float(random)},
)
print(f"Return of the learned policy: {final:.0f} (random policy: {random:.0f}, best possible: 1000).")
print(f"Figure:  {RUN / 'curve.png'}\nRecord:  {RUN / 'metrics.jsonl'}, settings in {RUN / 'config.json'}")
