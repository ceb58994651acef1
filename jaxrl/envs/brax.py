"""Brax's environments: rigid bodies on four physics engines.

Adapts Brax's raw environments (https://github.com/google/brax, `brax.envs`), without its wrappers, so that the end of
an episode is told apart from its time limit. Brax expects actions in [-1, 1] everywhere: its pendulum, pusher and
humanoids stretch them to the limits of their actuators, the actuators of the others have these limits.
"""

from __future__ import annotations

from typing import Any

from jaxrl.envs._shared import optional
from jaxrl.envs.physics import Physics, label, quiet
from jaxrl.types import Environment

NAMES = (
    "ant",
    "fast",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
)
REFUSED = {
    "swimmer": "Brax's model of fluids calls jax.numpy.clip with a_min, which JAX has removed, and no other part "
    "of Brax simulates fluids"
}
BACKENDS = ("spring", "generalized", "positional", "mjx")


def make(name: str, backend: str | None, *, max_steps: int = 1000, **settings: Any) -> Environment:
    """The environment that Brax calls `name`; `settings` go to its constructor."""
    with optional("brax", "pip install brax"), quiet():
        from brax import envs

        env = envs.get_environment(name, backend=backend, **settings)
    backend = getattr(env, "_backend", None)  # Brax's own `fast` has none
    return Physics(env, max_steps, label("Brax", name, {"backend": backend, **settings, "max_steps": max_steps}))
