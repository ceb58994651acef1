"""Models on disk: lists of transitions as CSV, arrays as npz."""

from __future__ import annotations

import array
import contextlib
import csv
import dataclasses
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl import files
from jaxrl.mdp.build import from_transitions
from jaxrl.mdp.checks import validate
from jaxrl.mdp.model import MDP, Model, SparseMDP, probabilities, successors

COLUMNS = ["idstatefrom", "idaction", "idstateto", "probability", "reward"]
ROUNDED = 1e-6  # how far the sum of decimals may be from 1


def write(path: str | os.PathLike, model: Model) -> None:
    """Write a model to a file, all of it or nothing.

    - `path`: `.npz` keeps everything. `.csv` is the list of transitions that CRAAM reads, a line each of
      `idstatefrom,idaction,idstateto,probability,reward`, without those of probability 0; it has no place for the
      discount and for `initial`.

    Raises ValueError for another suffix, or if `model` is none.
    """
    path = Path(path)
    _check_suffix(path)
    validate(model)
    if path.suffix == ".npz":
        with files.whole(path) as file:
            arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in vars(model).items()}
            np.savez(file, **arrays)
        return
    probs, reward = np.asarray(probabilities(model)), np.asarray(model.reward)
    places = np.argwhere(probs > 0)
    index = tuple(places.T)
    to = np.asarray(successors(model))[index]
    paid = reward[index] if reward.ndim == 3 else reward[index[:2]]
    columns = (places[:, 0], places[:, 1], to, probs[index].astype(float), paid.astype(float))
    with files.whole(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))


def read(path: str | os.PathLike, *, discount: ArrayLike | None = None, initial: ArrayLike | None = None) -> Model:
    """Read the model that `write`, or CRAAM, has written.

    - `path`: `.npz`, or `.csv` with a header of `idstatefrom,idaction,idstateto,probability,reward` in any order. The
      result of a CSV file is sparse. There, as in CRAAM, a state that no line starts from is terminal: it stays where
      it is, for nothing. Where it has fewer actions than others, the last of them is there again under the numbers
      that are missing, which changes no value. Laws that miss 1 by at most 1e-6, as decimals do, are scaled.
    - `discount`: of the result; needed with a CSV file, which has none.
    - `initial`: `[S]`, of the result; by default the file's, and uniform for a CSV file.

    Raises ValueError, with the line, if the file holds anything else, and if that is no model.
    """
    path = Path(path)
    _check_suffix(path)
    model: Model
    if path.suffix == ".npz":
        model = _read_arrays(path)
        given = {"discount": discount, "initial": initial}
        leaves: dict[str, Any] = {name: jnp.asarray(leaf, float) for name, leaf in given.items() if leaf is not None}
        model = dataclasses.replace(model, **leaves)
    else:
        if discount is None:
            raise ValueError(f"{path} holds no discount, as no CSV file does: pass discount=..., a number in [0, 1)")
        columns = _read_transitions(path)
        with _named(path):
            states, actions, to, probs, rewards = _complete(columns)
            probs = _scaled(states, actions, probs)
            model = from_transitions(states, actions, to, probs, rewards, discount, initial=initial)
    with _named(path):
        validate(model)
    return model


# --------------------------------------------------------------------------------------------------- CSV


def _read_transitions(path: Path) -> list[np.ndarray]:
    """The five columns of `COLUMNS`."""
    numbers = array.array("d")
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(lines, [])]
            if sorted(header) != sorted(COLUMNS):
                raise ValueError(f"the header is {','.join(header)!r}, expected {','.join(COLUMNS)!r}")
            order = [header.index(name) for name in COLUMNS]
            for line in lines:
                if line:
                    numbers.extend(_numbers(line, order))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {max(lines.line_num, 1)}: {error}") from None
    if not numbers:
        raise ValueError(f"{path} has no line but its header, expected transitions")
    table = np.frombuffer(numbers).reshape(-1, len(COLUMNS))
    return [*table[:, :3].astype(np.int64).T, *table[:, 3:].T]


def _numbers(line: list[str], order: list[int]) -> list[float]:
    """One line, in the order of `COLUMNS`."""
    if len(line) != len(order):
        raise ValueError(f"it has {len(line)} fields, expected {len(order)}")
    numbers = []
    for name, place in zip(COLUMNS, order, strict=True):
        try:
            number = float(line[place])
        except ValueError:
            number = math.nan
        whole = name.startswith("id")
        if not math.isfinite(number) or (whole and not (number.is_integer() and 0 <= number < 2**31)):
            expected = "an integer from 0" if whole else "a finite number"
            raise ValueError(f"{name} is {line[place]!r}, expected {expected}")
        if name == "probability" and not 0 <= number <= 1 + ROUNDED:
            raise ValueError(f"{name} is {line[place]!r}, expected a number in [0, 1]")
        numbers.append(number)
    return numbers


def _complete(columns: list[np.ndarray]) -> list[np.ndarray]:
    """The transitions, with those of terminal states and of actions that some states lack."""
    states, actions, to = columns[:3]
    ids = np.unique(np.concatenate([states, to]))
    gap = np.flatnonzero(ids != np.arange(len(ids)))
    if len(gap):
        raise ValueError(f"state {gap[0]} is nowhere, expected states to be numbered from 0 to {ids[-1]} without gaps")
    pairs = np.unique(np.stack([states, actions], axis=1), axis=0)
    count = np.bincount(pairs[:, 0], minlength=len(ids))  # of actions of each state
    expected = np.arange(len(pairs)) - np.repeat(np.cumsum(count) - count, count)
    gap = np.flatnonzero(pairs[:, 1] != expected)
    if len(gap):
        raise ValueError(
            f"state {pairs[gap[0], 0]} has action {pairs[gap[0], 1]} but no action {expected[gap[0]]}, expected the "
            f"actions of a state to be numbered from 0 without gaps"
        )
    terminal = np.flatnonzero(count == 0)
    extra = [[terminal, np.zeros_like(terminal), terminal, np.ones(len(terminal)), np.zeros(len(terminal))]]
    columns = [np.concatenate(parts) for parts in zip(columns, *extra, strict=True)]
    count = np.maximum(count, 1)
    last = columns[1] == count[columns[0]] - 1
    for action in range(count.max()):
        again = last & (count[columns[0]] <= action)
        copies = [column[again] for column in columns]
        copies[1] = np.full_like(copies[1], action)
        extra.append(copies)
    return [np.concatenate(parts) for parts in zip(columns, *extra[1:], strict=True)]


def _scaled(states: np.ndarray, actions: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """The probabilities, with each law that is nearly one divided by its sum."""
    row = states * (actions.max() + 1) + actions
    total = np.bincount(row, probs)[row]
    return np.where(np.abs(total - 1) <= ROUNDED, probs / np.where(total > 0, total, 1), probs)


# ------------------------------------------------------------------------------------------------- arrays


def _read_arrays(path: Path) -> Model:
    """The model of an npz file, unchecked."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: jnp.asarray(archive[name]) for name in archive.files}
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, ValueError, TypeError, AttributeError, OSError, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} can't be read, is it an npz file that jaxrl.mdp.write wrote? {error}") from error
    for form in (MDP, SparseMDP):
        if set(arrays) == {field.name for field in dataclasses.fields(form)}:
            return form(**arrays)
    raise ValueError(f"{path} holds the arrays {sorted(arrays)}, expected those of an MDP or a SparseMDP")


# ------------------------------------------------------------------------------------------------ helpers


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".npz"):
        raise ValueError(f"{path} has the suffix {path.suffix!r}, expected '.csv' or '.npz'")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors say which file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
