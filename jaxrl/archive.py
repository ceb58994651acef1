"""A directory that holds pytrees of arrays, whole or not at all, and knows when it has been damaged.

`<path>/<part>/` holds the arrays of one pytree, in Orbax's format; `config.json` says whose they are;
`manifest.json`, written last, has the shapes of the arrays and the size and SHA-256 of every file, since Orbax alone
returns wrong numbers for a flipped byte. The directory is written under another name, and renamed once all of it is on
disk. Nothing is pickled: what is read is data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.types import PyTree

FORMAT = 1  # of what is written; raise it when a reader of today would misread
MANIFEST, SETTINGS = "manifest.json", "config.json"

Json = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint can't be written, read, or used for what was asked; the message says why, and what to do."""


class DamagedError(CheckpointError):
    """The files are not those that were written."""


# ----------------------------------------------------------------------------------------------- write


def write(path: Path, parts: dict[str, PyTree], settings: Json, about: Json) -> None:
    """Write `parts` to the directory `path`, which must not exist; `settings` and `about` are JSON.

    When it returns, all is on disk. If it fails, or is killed, there is no `path`.

    Raises CheckpointError if it can't be written. One process at a time may write to a directory.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    with _quiet():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for stale in path.parent.glob(".*.tmp"):  # of a process that was killed
                shutil.rmtree(stale)
            _fill(unfinished, parts, settings, about)
            unfinished.rename(path)
        except BaseException as error:
            _discard(unfinished)
            if not isinstance(error, Exception):
                raise
            raise CheckpointError(  # Orbax raises of everything
                f"{path} could not be written: {_reason(error)}. Nothing of it is left, and what was there before is "
                f"as it was; if it is the disk, see that it has room and may be written to"
            ) from error
    _sync(path.parent)


def _fill(path: Path, parts: dict[str, PyTree], settings: Json, about: Json) -> None:
    path.mkdir()
    for part, tree in parts.items():
        _save(path / part, _stored(tree))
    (path / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    arrays = {part: layout(tree) for part, tree in parts.items()}
    files = {name: _entry(path / name) for name in _files(path)}
    manifest = {"format": FORMAT} | about | {"arrays": arrays, "files": files}
    (path / MANIFEST).write_text(json.dumps({"seal": _seal(manifest)} | manifest, indent=1) + "\n")
    for directory, _, names in os.walk(path):
        for name in (*names, "."):
            _sync(os.path.join(directory, name))


def remove(path: Path) -> None:
    """Remove the directory `path`, of which no half is ever seen under its name."""
    going = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def layout(tree: PyTree) -> dict[str, Json]:
    """Shape and type of each array of `tree`, by its path."""
    return {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in _leaves(tree).items()}


# ------------------------------------------------------------------------------------------------ read


def read_manifest(path: Path) -> Json:
    """What the directory `path` holds: `about`, `arrays` and `files`.

    Raises DamagedError if that is missing or not what was written, CheckpointError if it has another format.
    """
    try:
        manifest: Json = json.loads((path / MANIFEST).read_bytes())
        seal = manifest.pop("seal")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path, f"its {MANIFEST} can't be read ({_reason(error)})") from None
    if seal != _seal(manifest):
        raise _damaged(path, f"its {MANIFEST} is not what was written")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {manifest['format']}, expected {FORMAT}: use the jaxrl that wrote it")
    return manifest


def read_settings(path: Path, manifest: Json) -> Json:
    """The settings in the directory `path`, verified."""
    verify(path, manifest, SETTINGS)
    settings: Json = json.loads((path / SETTINGS).read_text())
    return settings


def verify(path: Path, manifest: Json, *parts: str) -> None:
    """Raises DamagedError unless the files of `parts` are those that were written, and there are no others."""
    if path.is_symlink():
        raise _damaged(path, "it is a symbolic link, not the directory that was written")
    written, found = manifest["files"], set(_files(path)) - {MANIFEST}
    for names, what in ((set(written) - found, "are missing"), (found - set(written), "were not written with it")):
        if names:
            raise _damaged(path, f"files that {what}: {', '.join(sorted(names)[:3])}")
    for name, expected in written.items():
        if name.partition("/")[0] not in parts:
            continue
        try:
            entry = _entry(path / name)
        except OSError as error:
            raise _damaged(path, f"{name} can't be read ({_reason(error)})") from None
        if entry["bytes"] != expected["bytes"]:
            raise _damaged(path, f"{name} has {entry['bytes']} bytes, expected {expected['bytes']}")
        if entry != expected:
            raise _damaged(path, f"the SHA-256 of {name} is not that of what was written")


def read_arrays(
    path: Path, manifest: Json, targets: dict[str, PyTree], sharding: jax.sharding.Sharding | None = None
) -> dict[str, PyTree]:
    """The arrays of some parts, each in the structure of its target (arrays, or their shapes). Verify them before.

    They go where `sharding` says, or else where those of the target are, or else where JAX puts any new array.

    Raises CheckpointError if a target has other arrays, and names them.
    """
    for part, target in targets.items():
        _compare(path, part, manifest["arrays"][part], layout(target))
    with _quiet():
        try:
            return {part: _read(path / part, target, sharding) for part, target in targets.items()}
        except Exception as error:  # Orbax raises of everything
            raise _damaged(
                path, f"its files are those that were written, but can't be read: {_reason(error)}"
            ) from error


def _compare(path: Path, part: str, saved: dict[str, Json], wanted: dict[str, Json]) -> None:
    def said(kind: Json | None) -> str:
        return "absent" if kind is None else f"{kind['dtype']} {tuple(kind['shape'])}"

    names = [name for name in wanted | saved if wanted.get(name) != saved.get(name)]
    if names:
        listed = [f"{part}/{name} ({said(saved.get(name))}, now {said(wanted.get(name))})" for name in names[:8]]
        raise CheckpointError(
            f"{path} holds other arrays than this run: {', '.join(listed)}{', ...' if len(names) > 8 else ''}. The "
            f"settings are the same: the code of the agent or of the environment has changed since, or jax_enable_x64"
        )


def _read(path: Path, target: PyTree, sharding: jax.sharding.Sharding | None) -> PyTree:
    leaves = _leaves(target)
    shapes = {name: _data_shape(leaf, sharding) for name, leaf in leaves.items()}
    arrays = _restore(path, {name: shape for name, shape in shapes.items() if shape.size})
    for name, shape in shapes.items():
        value = arrays.pop(name) if shape.size else np.zeros(shape.shape, shape.dtype)
        value = jnp.array(value) if shape.sharding is None else jax.device_put(value, shape.sharding)
        arrays[name] = jax.random.wrap_key_data(value, dtype=leaves[name].dtype) if is_key(leaves[name]) else value
    return jax.tree.unflatten(jax.tree.structure(target), [arrays[name] for name in shapes])


# ---------------------------------------------------------------------------------------------- arrays


def is_key(leaf: Any) -> bool:
    """Whether `leaf` holds typed random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by their path, in order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise CheckpointError("two arrays of the run have the same path; no key of a dict in it may contain '/'")
    return named


def _stored(tree: PyTree) -> dict[str, np.ndarray]:
    """What Orbax gets: keys as their data, and no empty arrays, which it refuses."""
    leaves = {name: jax.random.key_data(leaf) if is_key(leaf) else leaf for name, leaf in _leaves(tree).items()}
    return {name: np.asarray(leaf) for name, leaf in leaves.items() if leaf.size}


def _data_shape(leaf: Any, sharding: jax.sharding.Sharding | None) -> jax.ShapeDtypeStruct:
    """The shape of what Orbax has for `leaf`, and where it goes, if that has been said."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    sharding = sharding or getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    if arrays:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(arrays))


def _restore(path: Path, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    if not shapes:
        return {}
    plain = ocp.RestoreArgs(restore_type=np.ndarray)
    where = {n: ocp.ArrayRestoreArgs(sharding=x.sharding) if x.sharding else plain for n, x in shapes.items()}
    arguments = ocp.args.PyTreeRestore(shapes, restore_args=where)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        arrays: dict[str, Any] = checkpointer.restore(path.absolute(), args=arguments)
    return arrays


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from users what Orbax logs of each of its threads when one fails; the error that it raises says it all."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def nothing(record: logging.LogRecord) -> bool:
        return False

    def unless_late(unraisable: Any) -> None:  # a write that ends when nobody waits for it any more
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logger.addFilter(nothing)
    sys.unraisablehook = unless_late
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(nothing)


def _discard(path: Path) -> None:
    """Remove a directory in which Orbax may still be writing: after a first error it waits for no other write."""
    for _ in range(5):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
    shutil.rmtree(path, ignore_errors=True)


# ----------------------------------------------------------------------------------------------- files


def _files(path: Path) -> list[str]:
    """All files below `path`, by their path in it.

    Raises DamagedError if anything but files and directories is there.
    """
    names = []
    for directory, directories, files in os.walk(path):
        for name in directories + files:
            mode = os.lstat(os.path.join(directory, name)).st_mode
            if stat.S_ISREG(mode):
                names.append(Path(directory, name).relative_to(path).as_posix())
            elif not stat.S_ISDIR(mode):
                raise _damaged(path, f"{Path(directory, name)} is neither a file nor a directory")
    return sorted(names)


def _entry(path: Path) -> Json:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _seal(body: Json) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync(path: str | Path) -> None:
    """Returns when a file, or the entries of a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {what}; restore another checkpoint of the run, by its step")


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
