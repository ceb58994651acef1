"""The suite of jaxrl's own environments, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxrl.envs import bandit, control, fishery, probes, randomised, risky, tiny
from jaxrl.types import Environment

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "linear_quadratic": tiny.LinearQuadratic,
    "pendulum": tiny.Pendulum,
    "point_mass": tiny.PointMass,
    "gaussian_bandit": bandit.GaussianBandit,
    "mountain_car": control.MountainCar,
    "random_walk": control.RandomWalk,
    "fishery": fishery.Fishery,
    "cartpole_swing_up": randomised.CartPoleSwingUp,
    "inclined_plane": randomised.InclinedPlane,
    "risky_point_mass": risky.RiskyPointMass,
    "two_paths": risky.TwoPaths,
    "probe_constant": probes.Constant,
    "probe_observation": probes.Observation,
    "probe_discount": probes.Discount,
    "probe_action": probes.Action,
    "probe_context": probes.Context,
    "probe_truncation": probes.Truncation,
    "probe_termination": probes.Termination,
}
NAMES = tuple(ENVIRONMENTS)
REFUSED: dict[str, str] = {"tabular": "it needs a model: jaxrl.envs.tiny.Tabular(model)"}
BACKENDS: tuple[str, ...] = ()


def make(name: str, backend: str | None, **settings: Any) -> Environment:
    """The environment called `name`; `settings` are its fields, among them `max_steps`."""
    return ENVIRONMENTS[name](**settings)
