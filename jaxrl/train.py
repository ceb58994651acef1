"""Training: a loop binds an agent to an environment, and is two pure functions; `fit` is the one host loop.

>>> from jaxrl import envs, train
>>> from jaxrl.agents import ppo
>>> loop = train.loop(ppo, envs.make("jaxrl/point_mass"))
>>> config = ppo.Config()
>>> run = loop.init(config, jax.random.key(0))  # everything that training is: one pytree
>>> run, metrics = loop.step(config, run)  # collect and update
>>> train.transitions(run)
2048
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrl import checkpoint, log, rollout
from jaxrl import evaluate as evaluation
from jaxrl import replay as replay  # registers Replay with rollout.begin and rollout.advance
from jaxrl.types import Environment, Metrics, PyTree, canonical, default_floats

Propose = Callable[[Any, Any, PyTree, jax.Array, jax.Array], PyTree]  # (config, state, params, observation, key)


@struct.dataclass
class RunState:
    """Everything that training is; checkpoint it and nothing is lost."""

    agent: Any  # the State of the agent
    experience: Any  # environments in mid-episode, and what is kept of the past
    key: jax.Array  # []
    steps: jax.Array  # [2] uint32: environment transitions so far, low and high word


class Loop(NamedTuple):
    """An agent bound to an environment: two pure functions of pytrees, compiled where they are called outside `jit`."""

    init: Callable[[Any, jax.Array], RunState]  # (config, key) -> run
    step: Callable[[Any, RunState], tuple[RunState, Metrics]]  # (config, run) -> (run, metrics)


class Result(NamedTuple):
    """What `fit` returns; `P` points in time, seeds apart."""

    run: RunState  # every leaf with a leading seed axis
    metrics: dict[str, np.ndarray]  # "steps" [P]; every other metric [seeds, P]
    evaluations: dict[str, np.ndarray]  # "steps" [P]; returns "greedy" and "sampled" [seeds, P, episodes]


def loop(agent: Any, env: Environment, propose: Propose | None = None) -> Loop:
    """Bind `agent` to `env`. The same arguments give the same loop, so that compiled programs are found again.

    `propose(config, state, params, observation, key) -> params` chooses the parameters of the environment, for any
    number of environments at once (the leading axis of `params`, those in use, and of `observation`): for each episode
    before it starts, or before each step where the agent's `Config.propose_at` is "step". None takes the agent's own,
    if it has one. The parameters used stand in `extras["env_params"]` of a batch.

    Raises ValueError if the agent lacks a part, or the environment breaks its protocol (nothing is compiled for this).
    """
    _check_agent(agent)
    if propose is not None and not callable(propose):
        raise ValueError(f"propose is {propose!r}, expected a function (config, state, params, observation, key)")
    return _loop(agent, env, getattr(agent, "propose", None) if propose is None else propose)


@functools.cache
def _loop(agent: Any, env: Environment, propose: Propose | None) -> Loop:
    _check_environment(env)

    def init(config: Any, key: jax.Array) -> RunState:
        _check_config(agent, config)
        agent_key, key = jax.random.split(key)
        state = default_floats(agent.init(config, env.spec, agent_key))
        experience = rollout.begin(config.data, env, propose is not None)
        return RunState(state, experience, key, jnp.zeros(2, jnp.uint32))

    def step(config: Any, run: RunState) -> tuple[RunState, Metrics]:
        key, step_key = jax.random.split(run.key)
        state, experience, metrics = rollout.advance(
            config.data, agent, env, config, run.agent, run.experience, step_key, propose
        )
        low = run.steps[0] + jnp.uint32(config.data.transitions)
        steps = jnp.stack([low, run.steps[1] + (low < run.steps[0])])
        return RunState(state, experience, key, steps), metrics

    return Loop(jax.jit(init), jax.jit(step))


def transitions(run: RunState) -> int:
    """Environment transitions that this run has seen, per seed; a Python integer that does not overflow."""
    low, high = np.asarray(run.steps).reshape(-1, 2)[0]
    return int(high) << 32 | int(low)


@functools.partial(jax.jit, static_argnums=(0, 3))
def scan(loop: Loop, config: Any, run: RunState, num_steps: int) -> tuple[RunState, Metrics]:
    """`num_steps` calls of `loop.step` in one compiled call; metrics are stacked, [num_steps]. Pure, vmappable."""
    return jax.lax.scan(lambda run, _: loop.step(config, run), run, length=num_steps)


def fit(
    agent: Any,
    config: Any,
    env: Environment,
    key: jax.Array,
    *,
    steps: float,
    seeds: int = 1,
    block: int | None = None,
    propose: Propose | None = None,
    initial: PyTree = None,
    run_dir: str | os.PathLike[str] | None = None,
    log_every: float | None = None,
    evaluate_every: float | None = None,
    episodes: int = 16,
    evaluate_key: jax.Array | None = None,
    save_every: float | None = None,
    keep: int = 2,
    resume: bool = False,
    progress: bool = True,
) -> Result:
    """Train `seeds` independent runs side by side: the host loop around `loop.init` and `loop.step`.

    Seed `i` starts from `split(key, seeds)[i]`. Where there are several devices and they divide the seeds, each takes
    its share. Ctrl-C stops after the chunk in progress, saves, and returns what there is.

    Args:
      steps: environment transitions per seed; rounded up to whole loop steps, and said so.
      block: how many seeds a device computes side by side, one block after the other; all of its share by default.
        With the same block, any number of devices from two on gives the same bits. It holds the run twice.
      propose: chooses parameters of the environment, see `loop`.
      initial: states of the agent [seeds, ...] to begin with, such as `result.run.agent` of another call, in place of
        fresh ones. They are copied. A run is resumed only with those that it began with.
      run_dir: a new directory for `config.json`, `metrics.jsonl` and checkpoints; None keeps nothing on disk.
      log_every: transitions between two points of the record, a hundredth of `steps` by default.
      evaluate_every: transitions between evaluations, also made before the first and after the last step; a tenth of
        `steps` by default, `math.inf` for none in between, 0 for none at all.
      episodes: of each evaluation without sampling, and as many with it.
      evaluate_key: all evaluations of all seeds use it; `jax.random.key(0)` by default, so that runs can be compared.
      save_every: transitions between checkpoints, each made at the next point of the record; a tenth of `steps` by
        default, `math.inf` for one at the end, 0 for none at all.
      keep: how many checkpoints stay, the newest; the best one stays besides.
      resume: go on with the run in `run_dir`, if it holds one, from its newest intact checkpoint: what comes of it is
        bit for bit what would have come without a stop. `steps` may be larger than before; a run that has seen as many
        is returned at once.
      progress: print a line of progress.

    Raises ValueError for a setting out of range, if `initial` is not like the agent's own states, if the run does not
    fit into memory, and if `run_dir` holds a run that is not to be resumed; of these a CheckpointError if it can't be
    resumed with these settings, or a checkpoint can't be written.
    """
    _check_config(agent, config)
    _check_settings(steps, seeds, block, episodes, keep, resume, run_dir)
    plan = _plan(config.data.transitions, steps, log_every, evaluate_every, save_every if run_dir is not None else 0)
    config = canonical(config)
    devices = devices_for(seeds // (block or 1))
    programs = _programs(loop(agent, env, propose), agent, env, plan.log, episodes, devices, block)
    evaluate_key = jax.random.key(0) if evaluate_key is None else evaluate_key
    keys = jax.random.split(key, seeds)
    target = _check_memory(programs, config, keys, devices)
    _check_initial(initial, target.agent)
    settings = _settings(agent, config, env, seeds, propose, episodes, initial, key=key, evaluate_key=evaluate_key)
    made_with = {"agent": agent, "config": config, "env": env, "seeds": seeds}
    start: int | None = None
    run: Any = None
    if run_dir is not None and resume:
        start, run = _resumed(run_dir, settings, target, devices, made_with)
    done = (start or 0) // plan.transitions
    size = replay.bytes_of(target)
    record = log.Record(run_dir, settings, total=plan.total, asked=steps, progress=progress, size=size, start=start)

    def evaluate(state: Any) -> list[float]:
        returns = np.asarray(programs.evaluate(config, state, evaluate_key).returns)
        record.evaluation(done * plan.transitions, {"greedy": returns[:, :episodes], "sampled": returns[:, episodes:]})
        return returns[:, :episodes].mean(-1).tolist()

    saving: contextlib.AbstractContextManager[Callable[..., None]] = contextlib.nullcontext(lambda *_: None)
    if run_dir is not None and plan.save:
        saving = checkpoint.writer(run_dir, keep=keep, **made_with)
    with record, log.interruptible() as interrupted, saving as save:
        if done < plan.iterations:
            with record.compiling():
                run = _begin(programs, config, keys, initial) if run is None else run
                run = _compile(programs, config, run, evaluate if plan.evaluate and not start else None)
        saved, last = done, done >= plan.iterations or interrupted()
        while not last:
            length = plan.next(done) - done
            run, history = programs.chunk(config, run, length)
            done += length
            record.chunk(done * plan.transitions, {name: np.asarray(x)[:, :length] for name, x in history.items()})
            scores = evaluate(run.agent) if plan.evaluates(done) else None
            last = done == plan.iterations or interrupted()
            if last or plan.saves(saved, done):
                record.sync()
                save(run, done * plan.transitions, scores)
                saved = done
    return Result(run, *record.arrays())


def _check_settings(
    steps: float, seeds: int, block: int | None, episodes: int, keep: int, resume: bool, run_dir: Any
) -> None:
    """Raises ValueError for a setting of `fit` that is out of range."""
    if steps <= 0 or seeds < 1 or episodes < 1:
        raise ValueError(f"steps, seeds and episodes must be positive, got {steps}, {seeds} and {episodes}")
    if block is not None and (block < 1 or seeds % block):
        raise ValueError(f"block must divide seeds = {seeds}, got {block}")
    if keep < 1 or (resume and run_dir is None):
        raise ValueError(f"keep must be at least 1, and resume needs a run_dir; got keep = {keep}, run_dir = {run_dir}")


def _settings(
    agent: Any, config: Any, env: Environment, seeds: int, propose: Any, episodes: int, initial: Any, **keys: jax.Array
) -> dict[str, Any]:
    """What makes a run what it is, as JSON; a run goes on only with the same."""
    settings = log.settings(agent, config, env, seeds) | {
        "episodes": episodes,
        "propose": None if propose is None else log.describe(propose),
        "initial": None if initial is None else _digest(initial),
    }
    return settings | {name: log.describe(jax.random.key_data(key)) for name, key in keys.items()}


def _check_memory(programs: _Programs, config: Any, keys: jax.Array, devices: tuple[jax.Device, ...]) -> RunState:
    """Shapes and types of the run with a leading seed axis. Raises ValueError if there is no room for it."""
    target: RunState = jax.eval_shape(programs.init, config, keys, None)
    shares = 1 if devices[0].platform == "cpu" else len(devices)  # devices of the host share its memory
    needed, available = replay.bytes_of(target) // shares, replay.memory()
    if available is not None and needed > available:
        seeds = len(keys) // shares
        raise ValueError(
            f"{seeds} seeds of {needed // seeds:,} bytes each need {needed:,} bytes, and there are {available:,} bytes "
            f"of memory; train fewer seeds at once, or choose a smaller Config.data = {config.data}"
        )
    return target


def _check_initial(initial: PyTree, target: PyTree) -> None:
    """Raises ValueError unless the states to begin with have structure, shapes and types of `target`."""
    if initial is None:
        return
    given, wanted = _shapes(jax.eval_shape(lambda tree: tree, initial)), _shapes(target)
    differing = [
        f"{path} is {given.get(path, 'not there')}, expected {wanted.get(path, 'nothing')}"
        for path in given | wanted
        if given.get(path) != wanted.get(path)
    ]
    if not differing and str(jax.tree.structure(initial)) != str(jax.tree.structure(target)):
        differing = [f"its structure is {jax.tree.structure(initial)}, expected {jax.tree.structure(target)}"]
    if differing:
        raise ValueError(
            f"initial is not like the states of this agent with these settings, in this environment, for so many "
            f"seeds: {'; '.join(differing[:5])}"
        )


def _digest(tree: PyTree) -> str:
    """SHA-256 of all leaves, with their paths, shapes and types."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _begin(programs: _Programs, config: Any, keys: jax.Array, initial: PyTree) -> RunState:
    """The run at its start, with a copy of the states `initial` if there are any: it is going to be donated."""
    run: RunState = programs.init(config, keys, None)
    if initial is None:
        return run
    places = jax.tree.map(lambda leaf: leaf.sharding, run.agent)
    return run.replace(agent=jax.device_put(_copy(initial), places))  # type: ignore[attr-defined]


def _compile(programs: _Programs, config: Any, run: RunState, evaluate: Callable[[Any], Any] | None) -> RunState:
    """The run as it is, evaluated, and with its programs compiled: all of them at once."""
    run = jax.block_until_ready(run)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(evaluate, jax.block_until_ready(_copy(run.agent))) if evaluate is not None else None
        run, _ = jax.block_until_ready(programs.chunk(config, run, 0))  # no step, and the run is donated
        if first is not None:
            first.result()
    return run


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _resumed(
    run_dir: str | os.PathLike[str],
    settings: dict[str, Any],
    target: RunState,
    devices: tuple[jax.Device, ...],
    made_with: dict[str, Any],
) -> tuple[int | None, Any]:
    """How far the run in `run_dir` has got, and the run: 0 and None if it saved nothing, None and None without one."""
    path = Path(run_dir) / "config.json"
    if not path.exists():
        return None, None
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise checkpoint.CheckpointError(f"{path} is damaged ({error}); begin anew in another run_dir") from None
    wanted = {name: value for name, value in settings.items() if name not in ("versions", "device")}
    checkpoint.compare(saved, wanted, str(path))
    if not checkpoint.steps(run_dir):
        return 0, None
    sharding = sharing(devices) if len(devices) > 1 else None
    run = checkpoint.restore(run_dir, target, sharding=sharding, fallback=True, **made_with)
    return transitions(run), run


class _Plan(NamedTuple):
    """When what happens, in loop steps."""

    transitions: int  # per loop step and seed
    iterations: int
    log: int  # loop steps between two points of the record
    evaluate: int  # loop steps between evaluations, 0 for none
    save: int  # loop steps between checkpoints, 0 for none

    @property
    def total(self) -> int:
        return self.iterations * self.transitions

    def next(self, done: int) -> int:
        """Where the chunk that begins at `done` ends."""
        ends = [(done // every + 1) * every for every in (self.log, self.evaluate) if every]
        return min(*ends, self.iterations)

    def evaluates(self, done: int) -> bool:
        return self.evaluate > 0 and (done % self.evaluate == 0 or done == self.iterations)

    def saves(self, saved: int, done: int) -> bool:
        return self.save > 0 and done // self.save > saved // self.save


def _plan(
    transitions: int,
    steps: float,
    log_every: float | None,
    evaluate_every: float | None,
    save_every: float | None,
) -> _Plan:
    iterations = math.ceil(steps / transitions)

    def every(name: str, interval: float | None, share: int) -> int:
        if interval is None:
            return math.ceil(iterations / share)
        if not interval >= 0:
            raise ValueError(f"{name} must not be negative, got {interval}")
        return min(iterations, math.ceil(interval / transitions)) if interval < math.inf else iterations

    log_steps = max(1, every("log_every", log_every, 100))
    evaluate_steps, save_steps = every("evaluate_every", evaluate_every, 10), every("save_every", save_every, 10)
    return _Plan(transitions, iterations, log_steps, evaluate_steps, save_steps)


class _Programs(NamedTuple):
    init: Any  # (config, keys, None) -> run
    chunk: Any  # (config, run, length) -> (run, metrics [seeds, capacity]); the run is donated
    evaluate: Any  # (config, agent state, key) -> Evaluation [seeds, 2 episodes], greedy ones first


@functools.cache
def _programs(
    bound: Loop,
    agent: Any,
    env: Environment,
    capacity: int,
    episodes: int,
    devices: tuple[jax.Device, ...],
    block: int | None = None,
) -> _Programs:
    """The compiled functions of `fit`, over a leading seed axis."""
    greedy = jnp.arange(2 * episodes) < episodes

    def init(config: Any, key: jax.Array, _: None) -> RunState:
        return bound.init(config, key)

    def chunk(config: Any, run: RunState, length: jax.Array) -> tuple[RunState, Metrics]:
        shapes = jax.eval_shape(bound.step, config, run)[1]
        history = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

        def body(i: jax.Array, carry: tuple[RunState, Metrics]) -> tuple[RunState, Metrics]:
            run, history = carry
            run, metrics = bound.step(config, run)
            return run, jax.tree.map(lambda all_, one: all_.at[i].set(one), history, metrics)

        return jax.lax.fori_loop(0, length, body, (run, history))

    def evaluate(config: Any, state: Any, key: jax.Array) -> evaluation.Evaluation:
        return evaluation.evaluate(agent, config, state, env, key, episodes=2 * episodes, greedy=greedy)

    def over_seeds(function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Any:
        function = _in_blocks(jax.vmap(function, in_axes=(None, 0, None)), block)
        if len(devices) > 1:
            lanes = sharing(devices)
            specs = PartitionSpec(), lanes.spec, PartitionSpec()
            function = jax.shard_map(function, mesh=lanes.mesh, in_specs=specs, out_specs=lanes.spec, check_vma=False)
        return jax.jit(function, donate_argnums=donate)

    return _Programs(over_seeds(init), over_seeds(chunk, donate=(1,)), over_seeds(evaluate))


def _in_blocks(function: Callable[..., Any], block: int | None) -> Callable[..., Any]:
    """`function` of seeds [n, ...], computed for `block` of them at a time, by one program whatever n is."""
    if block is None:
        return function

    def blocks(config: Any, seeds: PyTree, argument: Any) -> PyTree:
        seeds = jax.tree.map(lambda leaf: leaf.reshape(-1, block, *leaf.shape[1:]), seeds)
        count = len(jax.tree.leaves(seeds)[0])
        shapes = jax.eval_shape(function, config, jax.tree.map(lambda leaf: leaf[0], seeds), argument)
        results = jax.tree.map(lambda leaf: rollout.zeros((count, *leaf.shape), leaf.dtype), shapes)

        def body(i: jax.Array, results: PyTree) -> PyTree:
            part = function(config, jax.tree.map(lambda leaf: leaf[i], seeds), argument)
            return jax.tree.map(lambda all_, one: all_.at[i].set(one), results, part)

        # XLA would compile a loop that is known to have one turn as another program, which rounds otherwise.
        turns = jax.lax.optimization_barrier(jnp.int32(count))
        results = jax.lax.fori_loop(0, turns, body, results)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

    return blocks


def devices_for(lanes: int) -> tuple[jax.Device, ...]:
    """As many local devices as divide the lanes: seeds, blocks of seeds, or settings times seeds."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if lanes % n == 0)
    return tuple(devices[:count])


def sharing(devices: tuple[jax.Device, ...]) -> NamedSharding:
    """Each device takes its share of the lanes, the leading axis."""
    mesh = jax.sharding.Mesh(np.array(devices), ("lane",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("lane"))


def _check_agent(agent: Any) -> None:
    missing = [name for name in ("Config", "init", "act", "update") if not hasattr(agent, name)]
    if missing:
        raise ValueError(
            f"agent {getattr(agent, '__name__', agent)!r} lacks {', '.join(missing)}: an agent is a module with "
            f"Config, init, act and update, such as jaxrl.agents.ppo"
        )
    if not isinstance(agent, Hashable):  # its programs are found again by it
        raise ValueError(f"agent is a {type(agent).__name__}, expected a module, or another object that can be hashed")


def _check_config(agent: Any, config: Any) -> None:
    if not isinstance(config, agent.Config):
        raise ValueError(f"config is {config!r}, expected an instance of {agent.__name__}.Config")


def _check_environment(env: Environment) -> None:
    """Raises ValueError unless the shapes and types of `env` are those of its spec, and stay the same at each step."""
    missing = [name for name in ("spec", "max_steps", "params", "reset", "step") if not hasattr(env, name)]
    if missing:
        raise ValueError(f"environment {env!r} lacks {', '.join(missing)}; see jaxrl.types.Environment")
    if env.max_steps < 1:
        raise ValueError(f"environment {env!r} has max_steps = {env.max_steps}, expected at least 1")
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.eval_shape(env.spec.action.zeros)
    params = env.params()
    state, observation = jax.eval_shape(lambda key: env.reset(params, key), key)
    next_state, step = jax.eval_shape(lambda *arguments: env.step(params, *arguments), state, action, key)
    wanted = env.spec.observation.shape, np.dtype(env.spec.observation.dtype)
    for name, got in (("reset", observation), ("step", step.observation)):
        if (got.shape, got.dtype) != wanted:
            raise ValueError(
                f"environment {env!r}: {name} gives an observation of shape {got.shape} and type {got.dtype}, its spec "
                f"says {wanted[0]} and {wanted[1]}"
            )
    for name in ("reward", "terminated", "truncated"):
        got = getattr(step, name)
        kind = np.floating if name == "reward" else np.bool_
        if got.shape != () or not jnp.issubdtype(got.dtype, kind):
            raise ValueError(
                f"environment {env!r}: step gives {name} of shape {got.shape} and type {got.dtype}, expected a scalar "
                f"{'float' if name == 'reward' else 'bool'}"
            )
    before, after = _shapes(state), _shapes(next_state)
    if before != after:
        changes = {path: (before.get(path), after.get(path)) for path in before | after}
        changes = {path: change for path, change in changes.items() if change[0] != change[1]}
        raise ValueError(f"environment {env!r}: step changes shape or type in its state, from and to: {changes}")


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype)) for path, leaf in leaves}
