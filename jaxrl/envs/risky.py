"""Two tasks in which the best mean and the least risk are different ways: a point mass and a fork in the road."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.envs.tiny import float_name, going_on
from jaxrl.types import Box, Spec, Step, canonical, check_positive

# ------------------------------------------------------------------------------- risky point mass


@struct.dataclass
class RiskyPointMassParams:
    """The dynamics and the danger of `RiskyPointMass`; lengths are shares of the side of the square."""

    start: jax.Array  # [2], the middle of where episodes start
    goal: jax.Array  # [2]
    centre: jax.Array  # [2], of the danger
    radius: float | jax.Array = 0.3  # of the danger
    probability: float | jax.Array = 0.1  # of the penalty, at the centre
    penalty: float | jax.Array = 10.0
    speed: float | jax.Array = 0.1  # per step, along each axis
    slip: float | jax.Array = 0.02  # standard deviation, per step, along each axis
    step_cost: float | jax.Array = 0.1


@dataclasses.dataclass(frozen=True)
class RiskyPointMass:
    r"""Walk across a square to a goal, through a danger or around it.

        x' = clip(x + speed u + slip * standard normal, 0, 1),    u in [-1, 1]^2
        p(x') = probability exp(-4 |x' - centre|^2 / radius^2)
        reward = -(|x' - goal| + step_cost + penalty * Bernoulli(p(x')))

    The position is observed. An episode starts within 0.05 of `start` along each axis, and is over within 0.1 of the
    goal. The danger lies between them: straight through it is the best mean by a little, and costs a penalty of random
    size. The metric `danger` says whether x' is in the disc.

    Source: Ma, Jayaraman and Bastani 2021, "Conservative Offline Distributional Reinforcement Learning", with the
    smooth probability of Ozalp 2026, "Stochastic Actor-Critic". Here the penalty is that of the place which is
    reached, and there is slip.
    """

    max_steps: int = 100

    def __post_init__(self) -> None:
        check_positive("RiskyPointMass", max_steps=self.max_steps)

    @property
    def spec(self) -> Spec:
        return Spec(Box((2,), 0.0, 1.0, float_name()), action=Box((2,), -1.0, 1.0, float_name()))

    def params(self) -> RiskyPointMassParams:
        start, goal, centre = jnp.full(2, 0.95), jnp.full(2, 0.05), jnp.full(2, 0.5)
        return canonical(RiskyPointMassParams(start, goal, centre))

    def reset(self, params: RiskyPointMassParams, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jnp.clip(params.start + jax.random.uniform(key, (2,), minval=-0.05, maxval=0.05), 0, 1)
        return state, state

    def step(
        self, params: RiskyPointMassParams, state: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Step]:
        slip_key, danger_key = jax.random.split(key)
        slip = params.slip * jax.random.normal(slip_key, state.shape, state.dtype)
        state = jnp.clip(state + params.speed * action + slip, 0, 1)
        caught = jax.random.bernoulli(danger_key, self.hazard(params, state))
        distance = jnp.linalg.norm(state - params.goal)
        reward = -(distance + params.step_cost + params.penalty * caught)
        inside = jnp.sum((state - params.centre) ** 2) < params.radius**2
        metrics = {"danger": inside.astype(reward.dtype)}
        return state, dataclasses.replace(going_on(state, reward), terminated=distance < 0.1, metrics=metrics)

    def hazard(self, params: RiskyPointMassParams, position: jax.Array) -> jax.Array:
        """The probability of the penalty at a position `[..., 2]`, `[...]`."""
        squared = jnp.sum((position - params.centre) ** 2, axis=-1)
        return params.probability * jnp.exp(-4 * squared / params.radius**2)


# --------------------------------------------------------------------------------------- two paths


@struct.dataclass
class TwoPathsParams:
    """What lies at the end of the risky path of `TwoPaths`."""

    probability: float | jax.Array = 0.1  # of the penalty
    penalty: float | jax.Array = 20.0


@struct.dataclass
class TwoPathsState:
    """Where the walker is."""

    side: jax.Array  # [], -1 on the safe path, 1 on the risky one, 0 at the fork
    walked: jax.Array  # [], steps


@dataclasses.dataclass(frozen=True)
class TwoPaths:
    r"""A fork in the road: a long path that is safe, or a short one that may end badly.

        side = 1 if u > 0 else -1, at the fork, u in [-1, 1]; later actions do nothing
        reward = -1 each step, and -penalty * Bernoulli(probability) besides in the last one of the risky path

    The observation is the side (0 at the fork, -1 on the safe path, 1 on the risky one) and the share of the path that
    is behind. `laws` has the law of the return of each path. By default the risky path has the better mean, and the
    safe path the better CVaR at each level below a half.
    """

    safe_steps: int = 6
    risky_steps: int = 2
    max_steps: int = 20

    def __post_init__(self) -> None:
        check_positive("TwoPaths", safe_steps=self.safe_steps, risky_steps=self.risky_steps, max_steps=self.max_steps)
        if self.max_steps < max(self.safe_steps, self.risky_steps):
            raise ValueError(
                f"TwoPaths.max_steps = {self.max_steps} ends an episode before its path does, which has safe_steps = "
                f"{self.safe_steps} or risky_steps = {self.risky_steps}"
            )

    @property
    def spec(self) -> Spec:
        observation = Box((2,), (-1.0, 0.0), (1.0, 1.0), float_name())
        return Spec(observation, action=Box((1,), -1.0, 1.0, float_name()))

    def params(self) -> TwoPathsParams:
        return canonical(TwoPathsParams())

    def reset(self, params: TwoPathsParams, key: jax.Array) -> tuple[TwoPathsState, jax.Array]:
        state = TwoPathsState(side=jnp.zeros((), jnp.int32), walked=jnp.zeros((), jnp.int32))
        return state, self._observe(state)

    def step(
        self, params: TwoPathsParams, state: TwoPathsState, action: jax.Array, key: jax.Array
    ) -> tuple[TwoPathsState, Step]:
        chosen = jnp.where(action[0] > 0, 1, -1)
        state = TwoPathsState(side=jnp.where(state.side == 0, chosen, state.side), walked=state.walked + 1)
        arrived = state.walked == self._steps(state.side)
        caught = arrived & (state.side == 1) & jax.random.bernoulli(key, params.probability)
        reward = -1.0 - params.penalty * caught
        metrics = {"safe": (state.side == -1).astype(reward.dtype)}
        step = going_on(self._observe(state), reward)
        return state, dataclasses.replace(step, terminated=arrived, metrics=metrics)

    def laws(self, params: TwoPathsParams, discount: ArrayLike) -> tuple[jax.Array, jax.Array]:
        r"""The laws of the discounted return of the safe and of the risky path: atoms and probabilities, `[2, 2]` each.

            -(1 - discount^n) / (1 - discount) - discount^(n - 1) penalty * Bernoulli(probability)

        for a path of n steps. `discount` is in [0, 1]. What a measure of `jaxrl.risk` makes of them says which path is
        best.
        """
        powers = jnp.asarray(discount, float) ** jnp.arange(max(self.safe_steps, self.risky_steps))
        sure = -jnp.stack([jnp.sum(powers[: self.safe_steps]), jnp.sum(powers[: self.risky_steps])])
        worse = jnp.stack([sure[0], sure[1] - params.penalty * powers[self.risky_steps - 1]])
        probs = jnp.stack([1 - params.probability, params.probability])
        return jnp.stack([sure, worse], axis=1), jnp.stack([probs, probs])

    def _steps(self, side: jax.Array) -> jax.Array:
        """The length of the path, in steps."""
        return jnp.where(side == 1, self.risky_steps, self.safe_steps)

    def _observe(self, state: TwoPathsState) -> jax.Array:
        behind = state.walked.astype(float) / self._steps(state.side)
        return jnp.stack([state.side.astype(float), behind])
