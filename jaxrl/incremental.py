r"""A robust policy from a sequence of ordinary problems: train, look for the worst model, train there, and so on.

    psi_{i+1} = argmin_psi V_psi(pi_i),    pi_{i+1}: what the agent makes of the solutions in psi_1, ..., psi_{i+1}.

The agent is one whose state holds a sequence of stages, `jaxrl.agents.iwocs`; each stage is one `train.fit`, and the
worst model is looked for by `evaluate.worst_params`.

Source: Zouitine, Geist and Rachelson 2024, "Solving Robust MDPs as a Sequence of Static RL Problems". Several worst
models at once are an addition.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import checkpoint, evaluate, log, rollout, train
from jaxrl.types import Environment, canonical, check_positive

SEARCH, RADII = evaluate.CMAES(), tuple(k / 10 for k in range(1, 11))  # of the paper


class Result(NamedTuple):
    """What `search` has found. Policy i = 0, ..., R is the one after i rounds; NaN where none was needed."""

    state: Any  # of the agent, leaves [seeds, ...]: the last policy is `agent.act` without a key
    best: Any  # the same of the policy that attained the most, for each seed
    models: np.ndarray  # [seeds, R, k, d], in the unit box: those that a round learned in
    radii: np.ndarray  # [seeds, R]: rho of the stages of a round
    worst: np.ndarray  # [seeds, R + 1, d]: the worst model of policy i, as far as the search found it
    attained: np.ndarray  # [seeds, R + 1]: the mean discounted return of policy i there, over fresh episodes
    promised: np.ndarray  # [seeds, R + 1]: what policy i expected of the same starts
    converged: np.ndarray  # [seeds] bool: the last promise is kept, up to the tolerance


class _Found(NamedTuple):
    """What became of one policy; leaves [seeds, ...]."""

    models: jax.Array  # [k, d]: those to learn in next, the worst first
    radius: jax.Array  # []
    attained: jax.Array  # []
    promised: jax.Array  # []


def search(
    agent: Any,
    config: Any,
    env: Environment,
    key: jax.Array,
    *,
    steps: float,
    first_steps: float | None = None,
    seeds: int = 1,
    parallel: int = 1,
    method: evaluate.Search = SEARCH,
    radii: tuple[float, ...] = RADII,
    distance: float = 0.1,
    tolerance: float = 0.0,
    episodes: int = 10,
    fresh_episodes: int = 100,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **settings: Any,
) -> Result:
    r"""Train in the worst model of the policy so far, until what it promises there is what it attains.

    Stage 0 is the default policy, over all models. Each of `config.num_models / parallel` rounds then learns in
    `parallel` models side by side, each with experience of its own, and ends with the search for the worst model of
    the policy that comes of all stages so far. Returns are discounted. A seed is done once

        |attained - promised| <= tolerance.

    That is a promise kept in the worst model that was found: no proof that there is no worse one, nor that no policy
    is better; and it need not come about. The last policy may be worse than an earlier one; `Result.best` is the best.

    - `env`: a family whose parameters are a point of the unit box, `[d]`, as of `envs.uncertain`, in the wrapper that
      the agent asks for.
    - `steps`: environment transitions of each later stage; `first_steps` of stage 0, as many by default.
    - `parallel`: k, how many models a round learns in. They are the worst of those that the search tried, each at least
      `distance` away from those before it, in the Euclidean norm of the unit box.
    - `method`: how to look for the worst model: `evaluate.CMAES()` by default; `evaluate.Lattice()` is IWOCS*.
    - `radii`: candidates for the rho of the stages of a round. The whole search is made under each, and the one with
      the best worst case is taken.
    - `episodes`: for each model that the search tries; `fresh_episodes` for `attained` and `promised`.
    - `run_dir`: a new directory; stage i is a run in its `stage-i`, and `checkpoints` has the policy after each stage,
      with `attained` as its score: `checkpoint.load_policy(run_dir, step="best")`.
    - `resume`: go on in `run_dir`. Stages that are there are not trained again, searches are made again.
    - `settings`: others of `train.fit`, for every stage.

    Ctrl-C saves the stage, and returns the policy after the last one that is complete.

    Raises ValueError for an agent without stages, for an environment with other parameters, and as `train.fit` does.
    """
    _check(agent, config, env, parallel, radii)
    config, rounds = canonical(config), config.num_models // parallel
    looking = {"method": method, "episodes": episodes, "fresh_episodes": fresh_episodes, "parallel": parallel}
    result, models, done = _nothing(seeds, rounds, parallel, config.num_params), None, 0
    for stage, stage_key in enumerate(jax.random.split(key, 1 + rounds)):
        fit_key, begin_key, search_key = jax.random.split(stage_key, 3)
        lanes = seeds * (parallel if stage else 1)
        asked = first_steps if stage == 0 and first_steps is not None else steps
        run = train.fit(
            agent,
            config,
            env,
            fit_key,
            steps=asked,
            seeds=lanes,
            initial=_begin(agent, config, result.state, models, jax.random.split(begin_key, lanes)) if stage else None,
            run_dir=None if run_dir is None else Path(run_dir) / f"stage-{stage}",
            resume=resume,
            **settings,
        ).run
        if train.transitions(run) < asked:  # Ctrl-C
            return result if stage else result._replace(state=run.agent, best=run.agent)
        candidates = jnp.asarray(radii if stage else radii[:1], float)
        state = _gather(agent, config, run.agent, seeds)
        state, found = _look(
            agent, config, state, env, candidates, distance, jax.random.split(search_key, seeds), **looking
        )
        result, models = _noted(result, stage, state, models, found, tolerance), found.models
        done += train.transitions(run)
        if settings.get("progress", True):
            attained, promised = (log.spread(values[:, stage]) for values in (result.attained, result.promised))
            print(f"stage {stage}: attains {attained} in the worst model found, and promised {promised}", flush=True)
        if run_dir is not None:
            _save(run_dir, result, run, {"step": done, "agent": agent, "config": config, "env": env})
        if np.all(result.converged):
            break
    return result


def apart(points: jax.Array, values: jax.Array, count: int, distance: float | jax.Array) -> jax.Array:
    """The worst of some points, and then, again and again, the worst of those far from all that were taken.

    - `points`: [M, d]; `values`: [M], of which the least is the worst, and NaN the best.
    - `count`: how many to take.
    - `distance`: Euclidean, at least so far. Where no point is, the one farthest away is taken.

    Returns [count, d], in the order in which they were taken.

    >>> apart(jnp.array([[0.0], [0.1], [0.5], [1.0]]), jnp.array([0.0, 1.0, 3.0, 2.0]), 3, 0.2)[:, 0]
    Array([0. , 1. , 0.5], dtype=float32)
    """
    values = jnp.nan_to_num(values, nan=jnp.finfo(values.dtype).max)

    def take(nearest: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        far = nearest >= distance
        index = jnp.where(jnp.any(far), jnp.argmin(jnp.where(far, values, jnp.inf)), jnp.argmax(nearest))
        there = jnp.linalg.norm(points - points[index], axis=-1)
        return jnp.minimum(nearest, there), points[index]

    return jax.lax.scan(take, jnp.full(len(points), jnp.inf, points.dtype), length=count)[1]


# ------------------------------------------------------------------------------------------ one stage


@functools.partial(jax.jit, static_argnums=0)
def _begin(agent: Any, config: Any, state: Any, models: jax.Array, keys: jax.Array) -> Any:
    """A state [seeds * k, ...] for each model [seeds, k, d], from the states [seeds, ...]."""
    seeds, count, _ = models.shape
    lanes = jax.vmap(agent.begin, (None, None, 0, 0))
    states = jax.vmap(lanes, (None, 0, 0, 0))(config, state, models, keys.reshape(seeds, count))
    return jax.tree.map(lambda leaf: leaf.reshape(seeds * count, *leaf.shape[2:]), states)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _gather(agent: Any, config: Any, lanes: Any, seeds: int) -> Any:
    """The states [seeds, ...] that hold what the lanes [seeds * k, ...] of a stage have learned."""
    lanes = jax.tree.map(lambda leaf: leaf.reshape(seeds, -1, *leaf.shape[1:]), lanes)
    solutions = jax.vmap(jax.vmap(agent.solution, (None, 0)), (None, 0))(config, lanes)
    return jax.vmap(agent.gather)(jax.tree.map(lambda leaf: leaf[:, 0], lanes), solutions)


@functools.partial(jax.jit, static_argnames=("agent", "env", "method", "parallel", "episodes", "fresh_episodes"))
def _look(
    agent: Any,
    config: Any,
    states: Any,
    env: Environment,
    radii: jax.Array,
    distance: jax.Array,
    keys: jax.Array,
    *,
    method: evaluate.Search,
    parallel: int,
    episodes: int,
    fresh_episodes: int,
) -> tuple[Any, _Found]:
    """Each of the states [seeds, ...] with the best of the radii for its last k stages, and its worst models then."""

    def one(state: Any, key: jax.Array) -> tuple[Any, _Found]:
        search_key, final_key = jax.random.split(key)

        def under(radius: jax.Array) -> tuple[jax.Array, jax.Array]:
            tried = agent.with_radius(state, radius, parallel)
            settings: dict[str, Any] = {"episodes": episodes, "fresh_episodes": 1, "discount": config.discount}
            found = evaluate.worst_params(agent, config, tried, env, search_key, method, **settings)
            return found.points, found.values

        points, values = jax.vmap(under)(radii)
        best = jnp.argmax(jnp.nanmin(values, axis=1))
        state = agent.with_radius(state, radii[best], parallel)
        models = apart(points[best], values[best], parallel, distance)
        final: dict[str, Any] = {"episodes": fresh_episodes, "params": models[0]}
        _, starts, _ = evaluate.starts(env, jax.random.clone(final_key), **final)
        run = evaluate.evaluate(agent, config, state, env, final_key, discount=config.discount, **final)
        promised = agent.promise(config, state, starts)
        return state, _Found(models, radii[best], jnp.mean(run.returns), jnp.mean(promised))

    return jax.vmap(one)(states, keys)


# ------------------------------------------------------------------------------------------ the record


def _nothing(seeds: int, rounds: int, parallel: int, dims: int) -> Result:
    """No policy yet."""

    def empty(*shape: int) -> np.ndarray:
        return np.full((seeds, *shape), np.nan)

    return Result(
        state=None,
        best=None,
        models=empty(rounds, parallel, dims),
        radii=empty(rounds),
        worst=empty(1 + rounds, dims),
        attained=empty(1 + rounds),
        promised=empty(1 + rounds),
        converged=np.zeros(seeds, bool),
    )


def _noted(result: Result, stage: int, state: Any, models: jax.Array | None, found: _Found, tolerance: float) -> Result:
    """The result with the policies after this stage, of those seeds that were not done before."""
    going, attained, best = ~result.converged, np.asarray(found.attained), state
    if stage:
        better = going & ~(attained <= np.nanmax(result.attained, axis=1))
        best = rollout.where(jnp.asarray(better), state, result.best)
        state = rollout.where(jnp.asarray(going), state, result.state)
        result.models[going, stage - 1] = np.asarray(models)[going]
        result.radii[going, stage - 1] = np.asarray(found.radius)[going]
    result.worst[going, stage] = np.asarray(found.models)[going, 0]
    result.attained[going, stage] = attained[going]
    result.promised[going, stage] = np.asarray(found.promised)[going]
    kept = np.abs(result.attained[:, stage] - result.promised[:, stage]) <= tolerance  # False for NaN
    return result._replace(state=state, best=best, converged=result.converged | kept)


def _save(run_dir: str | os.PathLike[str], result: Result, run: train.RunState, made_with: dict[str, Any]) -> None:
    """Write the policies after a stage, unless an earlier call has done so; each seed's score is what it attains."""
    if made_with["step"] not in checkpoint.steps(run_dir):
        scores = [row[np.isfinite(row)][-1] for row in result.attained]
        policies = dataclasses.replace(run, agent=result.state, experience=None)
        keep = result.attained.shape[1]
        checkpoint.save(run_dir, policies, seeds=len(scores), scores=scores, keep=keep, **made_with)


# --------------------------------------------------------------------------------------------- checks


def _check(agent: Any, config: Any, env: Environment, parallel: int, radii: tuple[float, ...]) -> None:
    """Raises ValueError for what can't be searched."""
    needed = ("check_start", "solution", "gather", "with_radius", "begin", "promise")
    missing = [name for name in needed if not hasattr(agent, name)]
    if missing:
        raise ValueError(
            f"agent {getattr(agent, '__name__', agent)!r} lacks {', '.join(missing)}: its state must hold a sequence "
            f"of stages, as that of jaxrl.agents.iwocs does"
        )
    check_positive("search", parallel=parallel)
    if config.num_models % parallel:
        raise ValueError(f"Config.num_models = {config.num_models} is not divisible by parallel = {parallel}")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(env.params())]
    if shapes != [(config.num_params,)]:
        raise ValueError(
            f"the parameters of the environment have shapes {shapes}, expected one array of Config.num_params = "
            f"{config.num_params} numbers in the unit box, as of jaxrl.envs.uncertain"
        )
    agent.check_start(env.spec, jax.jit(env.reset)(env.params(), jax.random.key(0))[1])
    if not radii or min(radii) < 0:
        raise ValueError(f"radii is {radii}, expected at least one number, and none below 0")
