"""MuJoCo Playground's environments of the DeepMind control suite.

Adapts the raw environments of https://github.com/google-deepmind/mujoco_playground (`dm_control_suite`), without its
wrappers. They terminate only where the simulation breaks down, which the rollout ends as a truncation, and actions are
in [-1, 1]. The physics is MJX in JAX (`impl="jax"`), which runs on CPU, GPU and TPU; Playground's own default, Warp,
needs an NVIDIA GPU. Its locomotion and manipulation environments download their models when they are first made, and
mostly observe several arrays: wrap one that observes a single array as
`jaxrl.envs.physics.Physics(mujoco_playground.registry.load(...))`.
"""

from __future__ import annotations

from typing import Any

from jaxrl.envs._shared import optional
from jaxrl.envs.physics import Physics, label, quiet
from jaxrl.types import Environment

NAMES = (
    "AcrobotSwingup",
    "AcrobotSwingupSparse",
    "BallInCup",
    "CartpoleBalance",
    "CartpoleBalanceSparse",
    "CartpoleSwingup",
    "CartpoleSwingupSparse",
    "CheetahRun",
    "FingerSpin",
    "FingerTurnEasy",
    "FingerTurnHard",
    "FishSwim",
    "HopperHop",
    "HopperStand",
    "HumanoidRun",
    "HumanoidStand",
    "HumanoidWalk",
    "PendulumSwingup",
    "PointMass",
    "ReacherEasy",
    "ReacherHard",
    "SwimmerSwimmer6",
    "WalkerRun",
    "WalkerStand",
    "WalkerWalk",
)
REFUSED: dict[str, str] = {}
BACKENDS: tuple[str, ...] = ()


def make(name: str, backend: str | None, *, max_steps: int = 1000, impl: str = "jax", **settings: Any) -> Environment:
    """The environment that Playground calls `name`; `settings`, such as `ctrl_dt`, override its configuration."""
    with optional("mujoco_playground", "pip install 'jaxrl[playground]'"), quiet():
        from mujoco_playground import dm_control_suite

        known = set(dm_control_suite.get_default_config(name)) - {"action_repeat", "episode_length"}  # of its wrappers
        unknown = [setting for setting in settings if setting not in known]
        if unknown:
            raise ValueError(
                f"playground/{name} has no setting {unknown[0]!r}, expected max_steps or one of "
                f"{', '.join(sorted(known))}"
            )
        env = dm_control_suite.load(name, config_overrides={"impl": impl, **settings})
    return Physics(env, max_steps, label("Playground", name, {"impl": impl, **settings, "max_steps": max_steps}))
