"""Checkpoints of a run, each whole or not at all: `<run_dir>/checkpoints/<step>/`, written by `jaxrl.archive`.

A checkpoint holds the whole `train.RunState` and the settings that it was made with, which are compared before any
array is read. Nothing is pickled, and no code is run or imported because a file says so, save `jaxrl.agents.<name>`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import archive, log
from jaxrl.archive import CheckpointError, DamagedError
from jaxrl.types import Box, Discrete, Environment, Space, Spec, canonical, default_floats

__all__ = [
    "CheckpointError",
    "DamagedError",
    "compare",
    "load_policy",
    "restore",
    "save",
    "snapshot",
    "steps",
    "writer",
]

AGENT, REST = "agent", "rest"  # the parts of a run, apart so that a policy is read without a replay buffer

Policy = Callable[..., jax.Array]  # (observation, key=None) -> action
StrPath = str | os.PathLike[str]


# ------------------------------------------------------------------------------------------------ save


def save(
    run_dir: StrPath,
    run: Any,
    *,
    step: int,
    agent: Any,
    config: Any,
    env: Environment,
    seeds: int | None = None,
    scores: Sequence[float] | None = None,
    keep: int = 2,
) -> Path:
    """Write all of `run`, and return the directory that holds it.

    Of the checkpoints up to this one, the newest `keep` stay, and the one with the highest mean of `scores`. A damaged
    checkpoint of the same step is replaced.

    Args:
      run: a `train.RunState`; of several seeds with a leading axis, whose size is `seeds`.
      step: environment transitions so far, which name the checkpoint.
      agent, config, env: what the run was made with; whoever restores it has to name the same.
      scores: how good each seed is, if that is known; larger is better.

    Raises CheckpointError if it can't be written, or an intact checkpoint of this step exists; nothing of the new one
    is left then, and no earlier one is touched.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"keep must be at least 1 and step at least 0, got {keep} and {step}")
    about = {
        "step": step,
        "scores": None if scores is None else [x if x == x else -math.inf for x in map(float, scores)],
    }
    settings = log.settings(agent, config, env, seeds)
    path = _path(run_dir, step)
    with _usable(run_dir):
        if path.exists():
            if _is_intact(path):
                raise CheckpointError(f"{path} holds this step already; delete it, or save to another run_dir")
            archive.remove(path)
        archive.write(path, {AGENT: run.agent, REST: run.replace(agent=None)}, settings, about)
        earlier = [other for other in steps(run_dir) if other <= step]
        best = _best(run_dir, earlier)
        for other in earlier[:-keep]:
            if other != best:
                archive.remove(_path(run_dir, other))
    return path


def snapshot(run: Any) -> Any:
    """A copy of `run` in the memory of the host, which no donation takes away."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if archive.is_key(leaf) else np.array(leaf), run)


@contextlib.contextmanager
def writer(run_dir: StrPath, **settings: Any) -> Iterator[Callable[[Any, int, Sequence[float] | None], None]]:
    """Inside, the given function `(run, step, scores)` saves in the background; `settings` are the others of `save`.

    It returns as soon as the run has been copied; one checkpoint is written at a time. At the end the last one is
    waited for. A CheckpointError comes out at the next call, or at the end.
    """
    pending: concurrent.futures.Future[Path] | None = None
    with concurrent.futures.ThreadPoolExecutor(1) as thread:

        def write(run: Any, step: int, scores: Sequence[float] | None) -> None:
            nonlocal pending
            if pending is not None:
                pending.result()
            pending = thread.submit(save, run_dir, snapshot(run), step=step, scores=scores, **settings)

        yield write
        if pending is not None:
            pending.result()


# --------------------------------------------------------------------------------------------- restore


def steps(run_dir: StrPath) -> list[int]:
    """The steps of which `run_dir` holds a checkpoint, ascending; nothing is verified."""
    with _usable(run_dir):
        root = _root(run_dir)
        names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and name == _path(run_dir, int(name)).name)


def restore(
    run_dir: StrPath,
    target: Any,
    *,
    agent: Any,
    config: Any,
    env: Environment,
    seeds: int | None = None,
    step: int | Literal["best"] | None = None,
    sharding: jax.sharding.Sharding | None = None,
    fallback: bool = False,
) -> Any:
    """The run that was saved, bit for bit.

    Args:
      target: a run of the same structure, of arrays or of their shapes: `jax.eval_shape(loop.init, config, key)`, and
        for several seeds `jax.eval_shape(jax.vmap(loop.init, (None, 0)), config, keys)`.
      agent, config, env, seeds: as in `save`; compared before any array is read.
      step: which checkpoint; the newest by default, "best" for the one with the highest mean score.
      sharding: where its arrays go; by default where those of `target` are, or else where JAX puts any new array.
      fallback: where that checkpoint is damaged, use the newest before it that is not, and warn.

    Raises CheckpointError if there is none, if it was made with other settings (which it names), or if it is damaged:
    every file is compared with its SHA-256 first. Warns if versions or the kind of device have changed since.
    """
    wanted = log.settings(agent, config, env, seeds)

    def read(path: Path) -> Any:
        manifest = archive.read_manifest(path)
        compare(archive.read_settings(path, manifest), wanted, str(path))
        archive.verify(path, manifest, AGENT, REST)
        targets = {AGENT: target.agent, REST: target.replace(agent=None)}
        parts = archive.read_arrays(path, manifest, targets, sharding)
        return parts[REST].replace(agent=parts[AGENT])

    first, *earlier = _find(run_dir, step)
    try:
        return read(first)
    except DamagedError as damage:
        if not fallback:
            raise CheckpointError(f"{damage}; fallback=True uses the newest before it that is intact") from None
        for path in earlier:
            with contextlib.suppress(DamagedError):
                run = read(path)
                warnings.warn(f"{damage}. Used that of step {int(path.name)} instead", stacklevel=2)
                return run
        raise CheckpointError(f"{damage}. None before it is intact; if there is none later, begin anew") from None


class Learned(NamedTuple):
    """An agent as it was at a checkpoint."""

    agent: Any  # its module
    config: Any
    state: Any  # its State
    spec: Spec  # of the environment


def load(
    path: StrPath,
    *,
    step: int | Literal["best"] | None = None,
    seed: int | Literal["best"] = 0,
    agent: Any = None,
    config: Any = None,
) -> Learned:
    """What the agent of a run had learned, for one seed: all that `agent.act` takes.

    Only the agent's part of the checkpoint is verified and read.

    Args:
      path: the directory of a run, or of one checkpoint.
      step: which checkpoint of the run; the newest by default, "best" for the one with the highest mean score.
      seed: which of several seeds; "best" for the one with the highest score in this checkpoint.
      agent: only needed for an agent outside `jaxrl.agents`.
      config: only needed if its functions can't be found by name.

    Raises CheckpointError, as `restore` does, and if there is no such seed.
    """
    path = Path(path) if (Path(path) / archive.MANIFEST).exists() else _find(path, step)[0]
    manifest = archive.read_manifest(path)
    archive.verify(path, manifest, AGENT)
    saved = archive.read_settings(path, manifest)
    agent = _agent(saved["agent"]) if agent is None else agent
    config = _config(agent, saved["config"]) if config is None else canonical(config)
    compare(saved, {"agent": agent.__name__, "config": log.describe(config), "versions": log.versions()}, str(path))
    spec, seeds = _spec(saved["spec"]), saved["seeds"]
    index = _index(seed, seeds, manifest["scores"])

    def init(key: jax.Array) -> Any:
        return default_floats(agent.init(config, spec, key))

    keys = jax.random.split(jax.random.key(0), seeds or 1)
    target = jax.eval_shape(jax.vmap(init), keys) if seeds else jax.eval_shape(init, keys[0])
    learned = archive.read_arrays(path, manifest, {AGENT: target})[AGENT]
    state = jax.tree.map(lambda x: x[index] if archive.is_key(x) else jnp.asarray(np.asarray(x)[index]), learned)
    return Learned(agent, config, state, spec)


def load_policy(
    path: StrPath,
    *,
    step: int | Literal["best"] | None = None,
    seed: int | Literal["best"] = 0,
    agent: Any = None,
    config: Any = None,
) -> Policy:
    """The policy of a run, `(observation [..., *observation], key=None) -> action [..., *action]`; no key: the mode.

    It is `agent.act` with what the run had learned by then, normaliser included, compiled. Arguments and errors are
    those of `load`.
    """
    learned = load(path, step=step, seed=seed, agent=agent, config=config)
    act = jax.jit(learned.agent.act)

    def policy(observation: Any, key: jax.Array | None = None) -> jax.Array:
        action: jax.Array = act(learned.config, learned.state, observation, key)[0]
        return action

    return policy


# ------------------------------------------------------------------------------------ which checkpoint


@contextlib.contextmanager
def _usable(run_dir: StrPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints of {run_dir} can't be used: {error}; see who may read and write there"
        ) from None


def _root(run_dir: StrPath) -> Path:
    root = Path(run_dir) / "checkpoints"
    if root.is_symlink():
        raise CheckpointError(f"{root} is a symbolic link, expected a directory; link to the whole run_dir instead")
    return root


def _path(run_dir: StrPath, step: int) -> Path:
    return _root(run_dir) / f"{step:012d}"


def _find(run_dir: StrPath, step: int | str | None) -> list[Path]:
    """The checkpoint of `step`, and then those before it, newest first."""
    known = steps(run_dir)
    if not known:
        raise CheckpointError(
            f"{_root(run_dir)} holds no checkpoint; is {run_dir} the directory of a run that saved one?"
        )
    which = _best(run_dir, known) if step == "best" else known[-1] if step is None else step
    if which not in known:
        reason = "none of them has a score" if step == "best" else f"not of step {step}"
        raise CheckpointError(f"{_root(run_dir)} holds checkpoints of the steps {known}; {reason}")
    return [_path(run_dir, other) for other in reversed(known) if other <= int(which)]


def _best(run_dir: StrPath, known: list[int]) -> int | None:
    """The step of the highest mean score among those that have one."""
    means = {}
    for step in known:
        with contextlib.suppress(CheckpointError):
            scores = archive.read_manifest(_path(run_dir, step))["scores"]
            if scores is not None:
                means[step] = np.mean(scores)
    return max(means, key=lambda step: means[step], default=None)


def _is_intact(path: Path) -> bool:
    try:
        archive.verify(path, archive.read_manifest(path), AGENT, REST, archive.SETTINGS)
    except DamagedError:
        return False
    return True


def _index(seed: int | str, seeds: int | None, scores: list[float] | None) -> Any:
    """What to take of leaves that have a leading axis of `seeds`."""
    if seeds is None:
        if seed != 0:
            raise CheckpointError(f"this run has no axis of seeds, and no seed {seed!r}; leave out the argument")
        return ...
    if seed == "best":
        if scores is None:
            raise CheckpointError("this checkpoint has no scores, and no seed is the best; name a number")
        return int(np.argmax(scores))
    if seed not in range(seeds):
        raise CheckpointError(f"this run has seeds 0 to {seeds - 1}, and no seed {seed!r}")
    return seed


# -------------------------------------------------------------------------------------------- settings


def compare(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Compare settings, as of `log.settings`: those in `wanted` with those that were saved in `where`.

    Raises CheckpointError that names all that differ. Versions and the kind of device may, with a warning.
    """
    before, now = _flat({name: saved.get(name) for name in wanted}), _flat(wanted)
    names = [name for name in now | before if now.get(name, "absent") != before.get(name, "absent")]
    said = {name: f"{name} (was {before.get(name, 'absent')!r}, is {now.get(name, 'absent')!r})" for name in names}
    versions = [said.pop(name) for name in names if name.partition(".")[0] in ("versions", "device")]
    if said:
        raise CheckpointError(
            f"{where} was made with other settings: {', '.join(said.values())}; use those, or another run_dir"
        )
    if versions:
        warnings.warn(
            f"{where} comes from elsewhere: {', '.join(versions)}; the last bits may differ now", stacklevel=3
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dots between their keys."""
    if not isinstance(value, dict):
        return {name: value}
    return {path: x for key, item in value.items() for path, x in _flat(item, f"{name}.{key}" if name else key).items()}


def _agent(name: str) -> Any:
    package, _, short = name.rpartition(".")
    if package != "jaxrl.agents" or not short.isidentifier():
        raise CheckpointError(f"the agent of this checkpoint is {name}, outside of jaxrl.agents: give it as agent=...")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(f"the agent of this checkpoint, {name}, can't be imported: {error}") from None


def _config(agent: Any, text: dict[str, Any]) -> Any:
    """The configuration that `log.describe` gave as `text`."""
    try:
        config = canonical(_like(agent.Config(), text))
        if log.describe(config) != text:
            raise ValueError(f"it would be {log.describe(config)}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the configuration of this checkpoint can't be had back from its text, give it as config=... "
            f"({type(error).__name__}: {error})"
        ) from None
    return config


def _like(example: Any, text: Any) -> Any:
    """The value that has this text, guided by another value of its kind."""
    if dataclasses.is_dataclass(example) and not isinstance(example, type):
        kind = type(example)
        if isinstance(text, dict) and text["type"] != kind.__qualname__:
            kind = _neighbour(kind, text["type"])
        defaults = {field.name: _default(example, field) for field in dataclasses.fields(kind)}
        return kind(**{name: _like(default, text[name]) for name, default in defaults.items()})
    if isinstance(text, dict):
        if not isinstance(example, dict):
            raise ValueError(f"a {text.get('type', 'dict')} where {example!r} is the default")
        return {name: _like(example.get(name), item) for name, item in text.items()}
    if callable(example):
        module, _, name = text.rpartition(".")
        if module.partition(".")[0] not in ("flax", "jax", "jaxrl"):
            raise ValueError(f"{text} is neither of jaxrl nor of jax or flax")
        return getattr(sys.modules[module], name)
    if isinstance(text, list):
        items = [_like(None, item) for item in text]
        return tuple(items) if isinstance(example, tuple) else jnp.asarray(items)
    if isinstance(text, str) and not isinstance(example, str):
        if text not in ("inf", "-inf", "nan"):
            raise ValueError(f"{text!r} where {example!r} is the default")
        return float(text)
    return text


def _default(example: Any, field: dataclasses.Field[Any]) -> Any:
    """The value of this field in the example, if it has one; static ones that are None may be tuples elsewhere."""
    default = getattr(example, field.name, None)
    return () if default is None and not field.metadata.get("pytree_node", True) else default


def _neighbour(kind: type, name: str) -> Any:
    """The dataclass of this name beside another one: in its module or, like measures of risk, in its package."""
    package = kind.__module__.rpartition(".")[0]
    for module in (kind.__module__, package):
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise ValueError(f"a {name} where {kind.__qualname__} is the default, and {kind.__module__} has none of that name")


def _spec(text: dict[str, Any]) -> Spec:
    """The spec that `log.describe` gave as `text`."""

    def space(text: dict[str, Any]) -> Space:
        if text["type"] == "Discrete":
            return Discrete(text["n"], text["dtype"])
        low, high = (tuple(map(float, x)) if isinstance(x, list) else float(x) for x in (text["low"], text["high"]))
        return Box(tuple(text["shape"]), low, high, text["dtype"])

    return Spec(space(text["observation"]), space(text["action"]))
