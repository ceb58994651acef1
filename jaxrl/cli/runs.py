"""Run directories as the commands find them: read with care, written whole or not at all.

Beside what `train.fit` writes, a run of the command line has `command.json`, its arguments, by which `resume`, `eval`
and `render` build the same agent and environment again. A directory may come from anywhere: nothing in it is run, no
link in it is followed, and what is in it ends up escaped on a page.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrl import files
from jaxrl.cli.errors import UsageError, one_line, unknown

COMMAND = "command.json"
LARGEST = 2**20  # bytes of a description; those of agents have some thousands
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "agent": str,
    "environment": str,
    "config": dict,
    "seeds": int,
    "steps": int,
    "versions": dict,
    "device": str,
}


class Run(NamedTuple):
    """What the directory of a run says about it."""

    path: Path
    settings: dict[str, Any]  # config.json
    command: list[str] | None  # arguments of `jaxrl`; None for a run that was begun in Python


def find(path: Path) -> Run:
    """The run in a directory. Raises ValueError if there is none, or its description can't be trusted."""
    if not path.is_dir():
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
        raise UsageError(unknown(f"run in {path.parent} called", path.name, beside, f"ls {path.parent}"))
    if not os.path.lexists(path / "config.json"):
        raise ValueError(f"{path} holds no config.json: it is not the directory of a run")
    settings = read_json(path / "config.json")
    for name, kind in SETTINGS.items():
        value = settings.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path / 'config.json'} is damaged: {name!r} is {str(value)[:40]!r}")
    for name in ("metrics.jsonl", "checkpoints", "figures"):
        if (path / name).is_symlink():
            raise ValueError(f"{path / name} is a symbolic link, expected what a run has written; it is not followed")
    return Run(path, settings, _command(path))


def _command(path: Path) -> list[str] | None:
    if not os.path.lexists(path / COMMAND):
        return None
    arguments = read_json(path / COMMAND).get("arguments")
    if not isinstance(arguments, list) or not all(isinstance(each, str) for each in arguments):
        raise ValueError(f"{path / COMMAND} is damaged: its 'arguments' are {str(arguments)[:40]!r}, expected texts")
    if len(arguments) < 3 or arguments[0] != "train":
        raise ValueError(f"{path / COMMAND} is damaged: its command is {' '.join(arguments)[:60]!r}, no training")
    return arguments


def read_json(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """A JSON file with an object in it. Raises ValueError for anything else, a link, and more bytes than `largest`."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is no plain file, expected the description of a run")
    if path.stat().st_size > largest:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected the description of a run")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds {type(value).__name__}, expected an object")
    return value


def record(run: Run, kind: Literal["train", "evaluation"] = "train") -> dict[str, np.ndarray]:
    """`log.read` of a run; ValueError for whatever is wrong with the file."""
    from jaxrl import log

    path = run.path / "metrics.jsonl"
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path} is no plain file, expected the record of a run")
    try:
        arrays = log.read(run.path, kind)
        steps = arrays.get("steps", np.zeros(0))
        if steps.ndim != 1 or not np.issubdtype(steps.dtype, np.number):
            raise ValueError("its steps are no numbers")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        text = one_line(error)
        raise ValueError(text if str(path) in text else f"{path} is damaged ({text})") from None
    return arrays


def evaluations(run: Run) -> dict[str, np.ndarray]:
    """The evaluations of a run: "steps" [P]; "greedy" and "sampled" [seeds, P, episodes]."""
    arrays = record(run, "evaluation")
    for name in ("greedy", "sampled"):
        if arrays and (name not in arrays or arrays[name].ndim != 3):
            raise ValueError(f"{run.path / 'metrics.jsonl'} is damaged: {name!r} of an evaluation is no list")
    return arrays


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """`files.whole`, in a directory that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as file:
        yield file


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    with whole(path) as file:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
