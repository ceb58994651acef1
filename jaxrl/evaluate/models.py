"""One policy in many models of its environment: returns over a grid of parameters, from common random numbers."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.evaluate.episodes import evaluate
from jaxrl.risk import CVaR
from jaxrl.types import Environment, PyTree


@struct.dataclass
class Grid:
    """Returns in G models. Its properties take further leading axes, as `vmap` over policies makes them."""

    returns: jax.Array  # [G, episodes], undiscounted; the same random numbers in every model
    non_finite: jax.Array  # [G, episodes] bool; stopped because the simulation broke down
    fresh_returns: jax.Array  # [fresh_episodes], of the worst model, from other random numbers

    @property
    def means(self) -> jax.Array:
        """The mean return in each model, [G]."""
        return jnp.mean(self.returns, axis=-1)

    @property
    def worst_index(self) -> jax.Array:
        """The model of the smallest mean return, [] int."""
        return jnp.argmin(self.means, axis=-1)

    @property
    def worst_case(self) -> jax.Array:
        """The mean return in the worst model over fresh episodes, []: the least mean itself is biased downwards."""
        return jnp.mean(self.fresh_returns, axis=-1)

    @property
    def average(self) -> jax.Array:
        """The mean over models, []."""
        return jnp.mean(self.means, axis=-1)

    @property
    def worst_decile(self) -> jax.Array:
        """The mean over the worst tenth of the models, []: their CVaR at level 0.1."""
        return CVaR(0.1)(self.means)

    @property
    def profile(self) -> jax.Array:
        """The mean returns from the worst model to the best, [G]."""
        return jnp.sort(self.means, axis=-1)


def unit_grid(dims: int, points: int = 10, *, endpoint: bool = True) -> jax.Array:
    """A grid of the unit box, [points^dims, dims], whose last coordinate varies fastest.

    `endpoint=False` leaves its upper faces out, as RRLS does: 0, 0.1, ..., 0.9 for 10 points.

    Raises ValueError unless there are a dimension and a point.

    Source: Zouitine et al. 2024, "RRLS: Robust Reinforcement Learning Suite", in its released code.

    >>> print(unit_grid(2, 2))
    [[0. 0.]
     [0. 1.]
     [1. 0.]
     [1. 1.]]
    """
    if dims < 1 or points < 1:
        raise ValueError(f"dims and points must be at least 1, got {dims} and {points}")
    axis = jnp.linspace(0.0, 1.0, points, endpoint=endpoint)
    return jnp.stack(jnp.meshgrid(*[axis] * dims, indexing="ij"), axis=-1).reshape(-1, dims)


@functools.partial(jax.jit, static_argnames=("agent", "env", "episodes", "fresh_episodes", "greedy"))
def grid(
    agent: Any,
    config: Any,
    state: Any,
    env: Environment,
    params: PyTree,
    key: jax.Array,
    *,
    episodes: int = 10,
    fresh_episodes: int = 100,
    greedy: bool = True,
) -> Grid:
    r"""Run a policy for some episodes in each of G models, all side by side in one compiled call.

        worst case = min_g J(g),    J(g) the mean return in model g

    Episode e has the same random numbers in every model, so that models differ by nothing else. The least of G noisy
    means is below the mean return of its model, so the worst model is run again, for `fresh_episodes` from a key of
    their own; `Grid.worst_case` is what they give.

    - `params`: the parameters of the environment, each leaf [G, ...]: any pytree; for `envs.uncertain` an array [G, K],
      such as `unit_grid(K)`.
    - `greedy`: the mode of the policy instead of samples.

    Raises ValueError if the leaves of `params` are not those of the environment with one more axis in front.

    Source: the worst case and the average over a grid are those of Tanabe et al. 2022, "Max-Min Off-Policy Actor-Critic
    Method Focusing on Worst-Case Robustness to Model Misspecification".
    """
    _check_params(env, params)
    common, fresh = jax.random.split(key)

    def model(params: PyTree) -> tuple[jax.Array, jax.Array]:
        result = evaluate(agent, config, state, env, common, episodes=episodes, greedy=greedy, params=params)
        return result.returns, result.non_finite

    returns, non_finite = jax.vmap(model)(params)
    worst = jax.tree.map(lambda leaf: leaf[jnp.argmin(jnp.mean(returns, axis=-1))], params)
    again = evaluate(agent, config, state, env, fresh, episodes=fresh_episodes, greedy=greedy, params=worst)
    return Grid(returns, non_finite, again.returns)


def _check_params(env: Environment, params: PyTree) -> None:
    """Raises ValueError unless every leaf is [G, ...], with one G for all."""
    wanted = jax.tree.map(jnp.shape, env.params())
    shapes = jax.tree.map(jnp.shape, params)
    models = {shape[:1] for shape in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))}
    if len(models) == 1 and () not in models:
        (first,) = models
        if shapes == jax.tree.map(lambda leaf: (*first, *jnp.shape(leaf)), env.params()):
            return
    raise ValueError(
        f"params has shapes {shapes}, expected those of the environment's parameters, {wanted}, each with the same "
        f"axis of models in front; jax.vmap(lambda u: env.params().replace(mass=u))(masses) makes such"
    )
