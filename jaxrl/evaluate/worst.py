"""Where a policy does worst: a search of the unit box of parameters, by a grid, by CMA-ES or along the gradient."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.evaluate.episodes import evaluate
from jaxrl.evaluate.models import unit_grid
from jaxrl.types import Environment, PyTree, check_positive

Value = Callable[[jax.Array], jax.Array]  # a point [K] of the unit box -> the mean return there, []


class Search(Protocol):
    """A way to look for the least value: (value, K, key) -> points that were tried [M, K], their values [M]."""

    def __call__(self, value: Value, dims: int, key: jax.Array) -> tuple[jax.Array, jax.Array]: ...


@struct.dataclass
class Worst:
    """The worst model that a search has found."""

    params: PyTree  # of the environment
    point: jax.Array  # [K], in the unit box
    fresh_returns: jax.Array  # [fresh_episodes], from random numbers that the search has not seen
    points: jax.Array  # [M, K], all that were tried
    values: jax.Array  # [M], the mean returns of the search there

    @property
    def worst_case(self) -> jax.Array:
        """The mean return there over fresh episodes, []: that of the search is biased downwards."""
        return jnp.mean(self.fresh_returns, axis=-1)


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Every point of `unit_grid(K, points, endpoint=endpoint)`."""

    points: int = 10
    endpoint: bool = True

    def __call__(self, value: Value, dims: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        points = unit_grid(dims, self.points, endpoint=self.endpoint)
        return points, jax.vmap(value)(points)


@dataclasses.dataclass(frozen=True)
class CMAES:
    """Covariance matrix adaptation, from a normal law about the centre of the box; needs evosax.

    Points outside the box are valued as the nearest one inside, and for ranking pay the squared distance to it, in
    units of the standard deviation of the values of their generation.

    Source: Hansen and Ostermeier 2001, "Completely Derandomized Self-Adaptation in Evolution Strategies"; the default
    numbers are those of Zouitine, Geist and Rachelson 2024, "Solving Robust MDPs as a Sequence of Static RL Problems".
    """

    generations: int = 6
    population: int = 100
    std: float = 0.5  # at the beginning, in units of the box

    def __post_init__(self) -> None:
        check_positive("CMAES", generations=self.generations, population=self.population)

    def __call__(self, value: Value, dims: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        try:
            from evosax.algorithms import CMA_ES
        except ImportError as error:
            raise ImportError("CMAES needs evosax: pip install 'jaxrl[search]'") from error

        centre = jnp.full(dims, 0.5)
        with jax.ensure_compile_time_eval():  # it keeps arrays of its own, which must not be traced
            strategy = CMA_ES(self.population, jnp.zeros(dims))
            settings = strategy.default_params.replace(std_init=jnp.asarray(self.std))
        begin_key, key = jax.random.split(key)

        def generation(state: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            ask_key, tell_key = jax.random.split(key)
            drawn, state = strategy.ask(ask_key, state, settings)
            inside = jnp.clip(drawn, 0, 1)
            values = jax.vmap(value)(inside)
            penalty = (jnp.std(values) + 1e-6) * jnp.sum((drawn - inside) ** 2, axis=-1)
            state, _ = strategy.tell(tell_key, drawn, values + penalty, state, settings)
            return state, (inside, values)

        begin = strategy.init(begin_key, centre, settings)
        _, (points, values) = jax.lax.scan(generation, begin, jax.random.split(key, self.generations))
        return points.reshape(-1, dims), values.ravel()


@dataclasses.dataclass(frozen=True)
class Gradient:
    """Descent along the gradient of the return, for simulators that have one, from several points at once.

        u <- clip(u - size_t g / |g|, 0, 1),    size_t = size (1 - t / steps)

    The centre and uniform points are the starts; g leaves out what would lead out of the box. Derivatives are taken in
    forward mode, K at a time, through the whole episode: those of long or chaotic ones say nothing, and a policy with
    discrete actions hides most of what a parameter does.
    """

    steps: int = 30
    starts: int = 8
    size: float = 0.2  # of the first step, in units of the box

    def __post_init__(self) -> None:
        check_positive("Gradient", steps=self.steps, starts=self.starts)

    def __call__(self, value: Value, dims: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        uniform = jax.random.uniform(key, (self.starts - 1, dims))
        starts = jnp.concatenate([jnp.full((1, dims), 0.5), uniform])
        slopes = jax.vmap(jax.jacfwd(lambda point: (value(point),) * 2, has_aux=True))

        def step(points: jax.Array, size: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            slope, values = slopes(points)
            out = ((points <= 0) & (slope > 0)) | ((points >= 1) & (slope < 0))
            slope = jnp.where(out | ~jnp.isfinite(slope), 0, slope)
            length = jnp.linalg.norm(slope, axis=-1, keepdims=True)
            down = slope / jnp.where(length > 0, length, 1)
            return jnp.clip(points - size * down, 0, 1), (points, values)

        sizes = self.size * (1 - jnp.arange(self.steps) / self.steps)
        _, (points, values) = jax.lax.scan(step, starts, sizes)
        return points.reshape(-1, dims), values.ravel()


@functools.partial(
    jax.jit, static_argnames=("agent", "env", "search", "place", "dims", "episodes", "fresh_episodes", "greedy")
)
def worst_params(
    agent: Any,
    config: Any,
    state: Any,
    env: Environment,
    key: jax.Array,
    search: Search = Lattice(),
    *,
    place: Callable[[jax.Array], PyTree] | None = None,
    dims: int | None = None,
    episodes: int = 10,
    fresh_episodes: int = 100,
    greedy: bool = True,
    discount: float | jax.Array = 1.0,
) -> Worst:
    r"""The parameters in the unit box under which a policy has the smallest mean return, as far as `search` finds them.

        min_{u in [0, 1]^K} J(place(u)),    J the mean return of `episodes` whole episodes

    J has the same random numbers everywhere, so it is a function, and the search has no noise to fight; its minimum
    is biased downwards all the same, and `Worst.worst_case` is from `fresh_episodes` others.

    - `search`: `Lattice(points)`, `CMAES(generations, population, std)`, `Gradient(steps, starts, size)`, or any
      function that can be hashed, as in `Search`.
    - `place`: a point of the unit box -> parameters of the environment, for environments whose parameters are not a
      point of the unit box themselves, as those of `envs.uncertain` are; it is called with [K] where `dims` says K.
    - `discount`: per step, of the returns, 1 by default.

    Raises ValueError without `dims` where the parameters of the environment are not [K].
    """
    if dims is None:
        shape = getattr(env.params(), "shape", None)
        if shape is None or len(shape) != 1 or place is not None:
            raise ValueError(
                "dims is needed: the parameters of the environment are not one array [K]; give place, which makes them "
                "of a point [dims], or an environment of jaxrl.envs.uncertain"
            )
        (dims,) = shape
    common, fresh, search_key = jax.random.split(key, 3)
    to_params = (lambda point: point) if place is None else place

    def run(key: jax.Array, episodes: int, params: PyTree) -> jax.Array:
        settings = {"episodes": episodes, "greedy": greedy, "params": params, "discount": discount}
        return evaluate(agent, config, state, env, key, **settings).returns

    def value(point: jax.Array) -> jax.Array:
        again = jax.random.clone(common)  # the same numbers everywhere, on purpose
        return jnp.mean(run(again, episodes, to_params(point)))

    points, values = search(value, dims, search_key)
    point = points[jnp.nanargmin(values)]
    params = to_params(point)
    return Worst(params, point, run(fresh, fresh_episodes, params), points, values)
