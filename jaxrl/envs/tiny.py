"""Small tasks in plain JAX, which compile in a second: to try things out, and to learn where the answer is known."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl.mdp import Model, row, validate
from jaxrl.types import Box, Discrete, Spec, Step, canonical, check_positive

Matrix = tuple[tuple[float, ...], ...]


# ---------------------------------------------------------------------------------------- pendulum


@struct.dataclass
class PendulumParams:
    """The dynamics of `Pendulum`."""

    gravity: float | jax.Array = 10.0  # m/s^2
    mass: float | jax.Array = 1.0  # kg
    length: float | jax.Array = 1.0  # m
    max_speed: float | jax.Array = 8.0  # rad/s
    max_torque: float | jax.Array = 2.0  # N m
    dt: float | jax.Array = 0.05  # s


@struct.dataclass
class PendulumState:
    """Where the pendulum is."""

    angle: jax.Array  # [], rad from upright, not wrapped
    speed: jax.Array  # [], rad/s


@dataclasses.dataclass(frozen=True)
class Pendulum:
    r"""Swing a rod up and hold it there: the dynamics of Gymnasium's Pendulum-v1.

        speed' = clip(speed + (3 g / (2 l) sin(angle) + 3 / (m l^2) u) dt, -max_speed, max_speed)
        angle' = angle + speed' dt
        reward = -(wrap(angle)^2 + speed^2 / 10 + u^2 / 1000)

    The action u is the torque in N m, cut off at `max_torque`; the observation is (cos angle, sin angle, speed). It
    starts at any angle with a speed in [-1, 1], and never terminates.
    """

    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive("Pendulum", max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        inf, dtype = float("inf"), float_name()
        observation = Box((3,), (-1.0, -1.0, -inf), (1.0, 1.0, inf), dtype)
        return Spec(observation, action=Box((1,), -2.0, 2.0, dtype))

    def params(self) -> PendulumParams:
        return canonical(PendulumParams())

    def reset(self, params: PendulumParams, key: jax.Array) -> tuple[PendulumState, jax.Array]:
        angle_key, speed_key = jax.random.split(key)
        state = PendulumState(
            angle=jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi),
            speed=jax.random.uniform(speed_key, minval=-1.0, maxval=1.0),
        )
        return state, self._observe(state)

    def step(
        self, params: PendulumParams, state: PendulumState, action: jax.Array, key: jax.Array
    ) -> tuple[PendulumState, Step]:
        torque = jnp.clip(action[0], -params.max_torque, params.max_torque)
        wrapped = (state.angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        reward = -(wrapped**2 + 0.1 * state.speed**2 + 0.001 * torque**2)
        gravity = 1.5 * params.gravity / params.length * jnp.sin(state.angle)
        acceleration = gravity + 3 / (params.mass * params.length**2) * torque
        speed = jnp.clip(state.speed + acceleration * params.dt, -params.max_speed, params.max_speed)
        state = PendulumState(angle=state.angle + speed * params.dt, speed=speed)
        return state, going_on(self._observe(state), reward)

    def _observe(self, state: PendulumState) -> jax.Array:
        return jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.speed])


# -------------------------------------------------------------------------------------- point mass


@struct.dataclass
class PointMassParams:
    """The dynamics of `PointMass`."""

    goal: jax.Array  # [2], m
    mass: float | jax.Array = 1.0  # kg
    dt: float | jax.Array = 0.1  # s
    control_cost: float | jax.Array = 0.01  # per N^2


@struct.dataclass
class PointMassState:
    """Where the mass is."""

    position: jax.Array  # [2], m
    velocity: jax.Array  # [2], m/s


@dataclasses.dataclass(frozen=True)
class PointMass:
    r"""Push a mass on a plane to a goal: a double integrator, exact for a force u in [-1, 1]^2 that is held for `dt`.

        position' = position + velocity dt + u / m dt^2 / 2
        velocity' = velocity + u / m dt
        reward    = -(|position - goal|^2 + control_cost |u|^2)

    The observation is (goal - position, velocity). It starts at rest in [-1, 1]^2, and never terminates.
    """

    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive("PointMass", max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        return Spec(observation=Box((4,), dtype=float_name()), action=Box((2,), -1.0, 1.0, float_name()))

    def params(self) -> PointMassParams:
        return canonical(PointMassParams(goal=jnp.zeros(2)))

    def reset(self, params: PointMassParams, key: jax.Array) -> tuple[PointMassState, jax.Array]:
        position = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        state = PointMassState(position=position, velocity=jnp.zeros_like(position))
        return state, self._observe(params, state)

    def step(
        self, params: PointMassParams, state: PointMassState, action: jax.Array, key: jax.Array
    ) -> tuple[PointMassState, Step]:
        distance = jnp.sum((state.position - params.goal) ** 2)
        reward = -(distance + params.control_cost * jnp.sum(action**2))
        acceleration = action / params.mass
        state = PointMassState(
            position=state.position + state.velocity * params.dt + acceleration * params.dt**2 / 2,
            velocity=state.velocity + acceleration * params.dt,
        )
        return state, going_on(self._observe(params, state), reward)

    def _observe(self, params: PointMassParams, state: PointMassState) -> jax.Array:
        return jnp.concatenate([params.goal - state.position, state.velocity])


# -------------------------------------------------------------------------------- linear-quadratic


@struct.dataclass
class LinearQuadraticParams:
    """The dynamics and the costs of `LinearQuadratic`, with N numbers in a state and M in an action."""

    A: jax.Array  # [N, N]
    B: jax.Array  # [N, M]
    Q: jax.Array  # [N, N], positive semidefinite
    R: jax.Array  # [M, M], positive definite
    noise: jax.Array  # [], standard deviation


class Regulator(NamedTuple):
    """The optimum of `LinearQuadratic`: u = -gain x, of value -(x^T value x + offset)."""

    gain: jax.Array  # [M, N]
    value: jax.Array  # [N, N]
    offset: jax.Array  # []


@dataclasses.dataclass(frozen=True)
class LinearQuadratic:
    r"""A linear system with quadratic costs, whose optimum is known.

        x' = A x + B u + noise * standard normal,    reward = -(x^T Q x + u^T R u)

    The state x is observed; it starts uniformly in [-1, 1]^N, and never terminates. Actions are bounded by
    `max_action`, for agents that need bounds; the optimum of the default system takes about half of it.
    """

    A: Matrix = ((1.0, 0.1), (0.0, 1.0))
    B: Matrix = ((0.005,), (0.1,))
    Q: Matrix = ((1.0, 0.0), (0.0, 1.0))
    R: Matrix = ((1.0,),)
    noise: float = 0.01
    max_action: float = 5.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_positive("LinearQuadratic", max_steps=self.max_steps)
        states, actions = len(self.A), len(self.R)
        shapes = {"A": (states, states), "B": (states, actions), "Q": (states, states), "R": (actions, actions)}
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"LinearQuadratic.{name} has shape {np.shape(getattr(self, name))}, expected {shape}, "
                    f"since A has {states} rows and R has {actions}"
                )

    @property
    def spec(self) -> Spec:
        observation = Box((len(self.A),), dtype=float_name())
        return Spec(observation, action=Box((len(self.R),), -self.max_action, self.max_action, float_name()))

    def params(self) -> LinearQuadraticParams:
        A, B, Q, R, noise = (jnp.asarray(leaf, float) for leaf in (self.A, self.B, self.Q, self.R, self.noise))
        return LinearQuadraticParams(A=A, B=B, Q=Q, R=R, noise=noise)

    def reset(self, params: LinearQuadraticParams, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jax.random.uniform(key, (len(self.A),), minval=-1.0, maxval=1.0)
        return state, state

    def step(
        self, params: LinearQuadraticParams, state: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Step]:
        reward = -(state @ params.Q @ state + action @ params.R @ action)
        noise = params.noise * jax.random.normal(key, state.shape, state.dtype)
        state = params.A @ state + params.B @ action + noise
        return state, going_on(state, reward)

    @staticmethod
    def optimal(params: LinearQuadraticParams, discount: float | jax.Array) -> Regulator:
        r"""The optimum for a `discount` in [0, 1), over unbounded actions and infinite time, by the Riccati equation.

            P = Q + A_^T P A_ - A_^T P B_ gain,    A_ = sqrt(discount) A,    B_ = sqrt(discount) B,
            gain = (R + B_^T P B_)^-1 B_^T P A_,   offset = discount / (1 - discount) noise^2 trace(P)

        Iterates from P = 0 by doubling: 24 steps are 2^24 of the Riccati iteration (Anderson 1978, "Second-order
        convergent algorithms for the steady-state Riccati equation"). (A_, B_) must be stabilisable and (Q, A_)
        detectable, or it may return infinities or NaN.
        """
        A, B = jnp.sqrt(discount) * params.A, jnp.sqrt(discount) * params.B
        identity = jnp.eye(A.shape[0], dtype=A.dtype)

        def double(_: int, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            A, G, P = carry
            half = jnp.linalg.solve(identity + G @ P, A)
            return A @ half, G + A @ jnp.linalg.solve(identity + G @ P, G @ A.T), P + A.T @ P @ half

        start = (A, B @ jnp.linalg.solve(params.R, B.T), params.Q)
        value = jax.lax.fori_loop(0, 24, double, start)[2]
        gain = jnp.linalg.solve(params.R + B.T @ value @ B, B.T @ value @ A)
        offset = discount / (1 - discount) * params.noise**2 * jnp.trace(value)
        return Regulator(gain, value, offset)


# ----------------------------------------------------------------------------------------- tabular


@dataclasses.dataclass(frozen=True, eq=False)
class Tabular:
    """A finite MDP, dense or sparse, as an environment: the state is observed as a one-hot vector.

    Its parameters are the model, so that `vmap` over models varies them. It never terminates, and leaves the discount
    to the agent. Two environments are equal only if they are the same object, as arrays have no hash.
    """

    model: Model
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive("Tabular", max_steps=self.max_steps)
        validate(self.model)

    @property
    def spec(self) -> Spec:
        observation = Box((self.model.num_states,), 0.0, 1.0, float_name())
        return Spec(observation, action=Discrete(self.model.num_actions))

    def params(self) -> Model:
        return jax.tree.map(jnp.asarray, self.model)

    def reset(self, params: Model, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jax.random.choice(key, params.num_states, p=params.initial)
        return state, jax.nn.one_hot(state, params.num_states, dtype=float)

    def step(self, params: Model, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        successors, probs, rewards = row(params, state, action)
        slot = jax.random.choice(key, len(probs), p=probs)
        observation = jax.nn.one_hot(successors[slot], params.num_states, dtype=float)
        return successors[slot], going_on(observation, jnp.asarray(rewards[slot], float))


# ----------------------------------------------------------------------------------------- helpers


def going_on(observation: jax.Array, reward: jax.Array) -> Step:
    """A step after which the episode goes on."""
    no = jnp.zeros((), bool)
    return Step(observation=observation, reward=reward, terminated=no, truncated=no)


def float_name() -> str:
    """The name of the default float type."""
    return jnp.result_type(float).name
