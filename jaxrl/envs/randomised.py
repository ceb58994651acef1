"""Two tasks whose physical parameters decide how hard they are: a box on an inclined plane, and a pole to swing up."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.envs.tiny import float_name, going_on
from jaxrl.types import Box, Spec, Step, canonical, check_positive

# ---------------------------------------------------------------------------------- inclined plane


@struct.dataclass
class InclinedPlaneParams:
    """The dynamics of `InclinedPlane`."""

    angle: float | jax.Array = 0.0  # rad, in [-pi/2, pi/2]; the plane rises to the right where it is positive
    mass: float | jax.Array = 1.0  # kg
    max_force: float | jax.Array = 3.0  # N
    gravity: float | jax.Array = 9.81  # m/s^2
    dt: float | jax.Array = 0.05  # s


@struct.dataclass
class InclinedPlaneState:
    """Where the box is."""

    position: jax.Array  # [], m along the plane, from its centre
    velocity: jax.Array  # [], m/s


@dataclasses.dataclass(frozen=True)
class InclinedPlane:
    r"""Hold a box at the centre of an inclined plane without friction: it falls off 0.5 m from there.

        velocity' = velocity + (max_force u / mass - gravity sin angle) dt
        position' = position + velocity' dt
        reward    = -position'^2, and -1 more for the fall, which terminates

    The action is u in [-1, 1], the observation (position, velocity). It starts at rest within 5 cm of the centre. Where
    |sin angle| > max_force / (mass gravity), about 18 degrees by default, no policy can hold it.

    Source: Tiboni et al. 2024, "Domain Randomization via Entropy Maximization", in its released code.
    """

    max_steps: int = 50

    def __post_init__(self) -> None:
        check_positive("InclinedPlane", max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        dtype = float_name()
        return Spec(Box((2,), dtype=dtype), action=Box((1,), -1.0, 1.0, dtype))

    def params(self) -> InclinedPlaneParams:
        return canonical(InclinedPlaneParams())

    def reset(self, params: InclinedPlaneParams, key: jax.Array) -> tuple[InclinedPlaneState, jax.Array]:
        position = jax.random.uniform(key, minval=-0.05, maxval=0.05)
        state = InclinedPlaneState(position, jnp.zeros_like(position))
        return state, self._observe(state)

    def step(
        self, params: InclinedPlaneParams, state: InclinedPlaneState, action: jax.Array, key: jax.Array
    ) -> tuple[InclinedPlaneState, Step]:
        acceleration = params.max_force * action[0] / params.mass - params.gravity * jnp.sin(params.angle)
        velocity = state.velocity + acceleration * params.dt
        position = state.position + velocity * params.dt
        fallen = jnp.abs(position) > 0.5
        state = InclinedPlaneState(position, velocity)
        step = going_on(self._observe(state), -(position**2) - fallen)
        return state, dataclasses.replace(step, terminated=fallen)

    def _observe(self, state: InclinedPlaneState) -> jax.Array:
        return jnp.stack([state.position, state.velocity])


# --------------------------------------------------------------------------------- cartpole swing-up


@struct.dataclass
class CartPoleSwingUpParams:
    """The dynamics of `CartPoleSwingUp`."""

    gravity: float | jax.Array = 9.8  # m/s^2
    cart_mass: float | jax.Array = 1.0  # kg
    pole_mass: float | jax.Array = 0.1  # kg
    half_length: float | jax.Array = 0.5  # m, from the joint to the centre of the pole
    max_force: float | jax.Array = 10.0  # N
    dt: float | jax.Array = 0.02  # s


@struct.dataclass
class CartPoleSwingUpState:
    """Where cart and pole are."""

    position: jax.Array  # [], m
    velocity: jax.Array  # [], m/s
    angle: jax.Array  # [], rad from upright, not wrapped
    speed: jax.Array  # [], rad/s


@dataclasses.dataclass(frozen=True)
class CartPoleSwingUp:
    r"""Swing a pole up on a cart, and hold it there: the dynamics of Gymnasium's CartPole-v1, with a continuous force.

        push          = (max_force u + m l speed^2 sin angle) / M,    M = cart_mass + m,  l = half_length
        angle''       = (gravity sin angle - push cos angle) / (l (4/3 - m cos^2 angle / M))
        position''    = push - m l angle'' cos angle / M
        reward        = 10 - (wrap(angle')^2 + speed'^2 / 10 + angle''^2 / 1000)

    integrated by Euler's method. The action is u in [-1, 1], the observation (position, velocity, cos angle, sin angle,
    speed). It starts with the pole down and every number within 0.05 of rest; it terminates, without the 10, where the
    cart leaves the track, 2.4 m from its centre.

    Source: Tiboni et al. 2024, "Domain Randomization via Entropy Maximization", in its released code; the dynamics are
    those of Barto, Sutton and Anderson 1983, "Neuronlike Adaptive Elements That Can Solve Difficult Learning Control
    Problems".
    """

    max_steps: int = 500

    def __post_init__(self) -> None:
        check_positive("CartPoleSwingUp", max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        inf, dtype = float("inf"), float_name()
        observation = Box((5,), (-inf, -inf, -1.0, -1.0, -inf), (inf, inf, 1.0, 1.0, inf), dtype)
        return Spec(observation, action=Box((1,), -1.0, 1.0, dtype))

    def params(self) -> CartPoleSwingUpParams:
        return canonical(CartPoleSwingUpParams())

    def reset(self, params: CartPoleSwingUpParams, key: jax.Array) -> tuple[CartPoleSwingUpState, jax.Array]:
        position, velocity, angle, speed = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        state = CartPoleSwingUpState(position, velocity, angle - jnp.pi, speed)
        return state, self._observe(state)

    def step(
        self, params: CartPoleSwingUpParams, state: CartPoleSwingUpState, action: jax.Array, key: jax.Array
    ) -> tuple[CartPoleSwingUpState, Step]:
        sin, cos = jnp.sin(state.angle), jnp.cos(state.angle)
        total = params.cart_mass + params.pole_mass
        moment = params.pole_mass * params.half_length
        push = (params.max_force * action[0] + moment * state.speed**2 * sin) / total
        inertia = params.half_length * (4 / 3 - params.pole_mass * cos**2 / total)
        angular = (params.gravity * sin - push * cos) / inertia
        state = CartPoleSwingUpState(
            position=state.position + params.dt * state.velocity,
            velocity=state.velocity + params.dt * (push - moment * angular * cos / total),
            angle=state.angle + params.dt * state.speed,
            speed=state.speed + params.dt * angular,
        )
        wrapped = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        gone = jnp.abs(state.position) > 2.4
        reward = 10.0 * ~gone - (wrapped**2 + 0.1 * state.speed**2 + 0.001 * angular**2)
        return state, dataclasses.replace(going_on(self._observe(state), reward), terminated=gone)

    def _observe(self, state: CartPoleSwingUpState) -> jax.Array:
        angle = jnp.cos(state.angle), jnp.sin(state.angle)
        return jnp.stack([state.position, state.velocity, *angle, state.speed])
