"""The record of a run: JSON lines on disk, and a line of progress for whoever watches."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxrl import __version__, files
from jaxrl.types import Environment, canonical

Arrays = dict[str, np.ndarray]


class Record:
    """Takes what a run reports, writes it down, and shows where the run stands.

    `config.json` has the settings. `metrics.jsonl` has one line for each seed and point in time, `{"kind": "train" or
    "evaluation", "steps": ..., "seed": ..., "seconds": ..., ...}`; what is not a finite number is null there. A run
    that fails before its first point leaves nothing behind.

    `size` is that of everything that training is, in bytes. `start` is where a run goes on that `run_dir` holds: what
    it has of later steps is cut off (0: of all steps); None for a new run.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        *,
        total: int,
        asked: float,
        progress: bool,
        size: int | None = None,
        start: int | None = None,
    ) -> None:
        self.seeds, self.total, self.progress = settings["seeds"], total, progress
        self.path = Path(run_dir) if run_dir is not None else None
        self.start = self.steps = start or 0
        seconds = 0.0
        if self.path is not None:
            seconds = _open(self.path, settings | {"steps": max(total, self.start)}, start)
        self.history, self.evaluations = (_points(self.path, kind, self.start) for kind in ("train", "evaluation"))
        self.compile_seconds = 0.0
        self.trained = time.monotonic()
        self.began = self.trained - seconds
        self.said = -math.inf
        self.terminal = sys.stdout.isatty()
        rounded = f" (rounded up from {asked:,.0f})" if total != asked else ""
        seeds = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"
        begun = f", from {self.start:,} steps on" if self.start else ""
        held = f", {size / 1e6:,.1f} MB" if size is not None else ""
        self._say(f"{settings['agent']} on {settings['environment']}: {seeds} of {total:,} steps{rounded}{begun}{held}")

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None and self.path is not None and not (self.history or self.evaluations or self.start):
            _discard(self.path)
        if kind is None and self.steps < self.total:
            self._say(f"stopped at {self.steps:,} of {self.total:,} steps")

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Times what happens inside, and calls it compilation."""
        self._say("compiling ...")
        begin = time.monotonic()
        done = threading.Event()

        def still() -> None:
            while not done.wait(10):
                self._say(f"compiling ... {time.monotonic() - begin:.0f} s")

        threading.Thread(target=still, daemon=True).start()
        try:
            yield
        finally:
            done.set()
        self.trained = time.monotonic()
        self.compile_seconds = self.trained - begin
        self._say(f"compiled in {self.compile_seconds:.1f} s")

    def chunk(self, steps: int, history: Arrays) -> None:
        """Metrics [seeds, n] of the n loop steps of a chunk that ends at `steps`."""
        arrays = {"steps": np.asarray(steps)} | reduce(history)
        self.steps = steps
        self.history.append(arrays)
        self._write("train", steps, arrays)
        self._line(arrays)

    def evaluation(self, steps: int, returns: dict[str, Any]) -> None:
        """Returns [seeds, episodes] by name."""
        arrays = {"steps": np.asarray(steps)} | {name: np.asarray(value) for name, value in returns.items()}
        self.evaluations.append(arrays)
        self._write("evaluation", steps, arrays)
        means = ", ".join(f"{name} {spread(value.mean(-1))}" for name, value in arrays.items() if name != "steps")
        self._say(f"evaluation at {steps:,} steps: {means}")

    def sync(self) -> None:
        """Returns when all that was written is on disk."""
        if self.path is not None:
            with open(self.path / "metrics.jsonl", "a") as file:
                os.fsync(file.fileno())

    def arrays(self) -> tuple[Arrays, Arrays]:
        """All metrics and all evaluations: "steps" [P], the others [seeds, P, ...]."""
        return _stack(self.history), _stack(self.evaluations)

    def _write(self, kind: str, steps: int, arrays: Arrays) -> None:
        if self.path is None:
            return
        seconds = round(time.monotonic() - self.began, 3)
        with open(self.path / "metrics.jsonl", "a") as file:
            for seed in range(self.seeds):
                values = {name: _json(value[seed]) for name, value in arrays.items() if name != "steps"}
                line = {"kind": kind, "steps": steps, "seed": seed, "seconds": seconds} | values
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def _line(self, arrays: Arrays) -> None:
        """Where the run stands, in one line: rewritten in place on a terminal, now and then elsewhere."""
        now = time.monotonic()
        if not (self.terminal or now - self.said > 5 or self.steps == self.total):
            return
        self.said = now
        elapsed = max(now - self.trained, 1e-9)
        here = self.steps - self.start
        left = elapsed / here * (self.total - self.steps)
        width = len(f"{self.total:,}")
        broken = arrays["non_finite"].sum()
        self._say(
            f"{self.steps:>{width},} / {self.total:,} steps  {self.seeds * here / elapsed:,.0f} steps/s  "
            f"return {spread(arrays['episode_return'])}  {_clock(left)} left"
            + (f"  {broken:.0f} {'episode' if broken == 1 else 'episodes'} broke down" if broken else ""),
            end="\r" if self.terminal and self.steps < self.total else "\n",
        )

    def _say(self, text: str, end: str = "\n") -> None:
        if end == "\r":  # a line that wraps can't be rewritten
            text = text[: shutil.get_terminal_size().columns - 1]
        if self.progress:
            print(("\033[K" if self.terminal else "") + text, end=end, flush=True)


def reduce(history: Arrays) -> Arrays:
    """Metrics [seeds, n] of n loop steps as one number for each seed [seeds].

    `episodes` and `non_finite` are added up, means over episodes are weighted by `episodes`, all others are averaged.
    """
    episodes = history["episodes"]
    count = episodes.sum(-1)
    reduced: Arrays = {}
    for name, values in history.items():
        if name in ("episodes", "non_finite"):
            reduced[name] = values.sum(-1)
        elif name in ("episode_return", "episode_length"):
            total = np.where(episodes > 0, values * episodes, 0).sum(-1)
            reduced[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        else:
            reduced[name] = values.mean(-1)
    return reduced


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over the seeds [seeds] that have a number, as text."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "(no episode has ended)"
    return _number(values.mean()) + (f" ± {_number(values.std())}" if values.size > 1 else "")


def settings(agent: Any, config: Any, env: Environment, seeds: int | None) -> dict[str, Any]:
    """What makes a run what it is, as JSON."""
    return {
        "agent": agent.__name__,
        "environment": re.sub(r" at 0x[0-9a-f]+", "", repr(env)),
        "spec": describe(env.spec),
        "config": describe(canonical(config)),
        "seeds": seeds,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }


def versions() -> dict[str, str]:
    """The versions of what numbers depend on."""
    others = ("jax", "jaxlib", "flax", "optax", "brax")
    return {"jaxrl": __version__} | {name: importlib.metadata.version(name) for name in others}


def describe(value: Any) -> Any:
    """A configuration as JSON: dataclasses by field, arrays as lists, functions by name, anything else by its repr.

    Numbers have the shortest digits that give them back (0.0003 as float32 is 0.0003); those that are not finite are
    text, "inf", "-inf" or "nan", which `float` reads.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__qualname__} | fields
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, (np.ndarray, jax.Array)) and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        array = np.asarray(value)
        return describe(array[()]) if array.ndim == 0 else [describe(item) for item in array]
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def read(run_dir: str | os.PathLike[str], kind: Literal["train", "evaluation"] = "train") -> Arrays:
    """The record of a run: "steps" [P], every other value [seeds, P, ...]; numbers that were not finite are NaN.

    A last point that was not written for all seeds, because the run was killed, is left out; without any point the
    result is empty. Raises ValueError if the directory holds no record, or one with a broken line (which it names).
    """
    if kind not in ("train", "evaluation"):
        raise ValueError(f"kind must be 'train' or 'evaluation', got {kind!r}")
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {run_dir} is not the directory of a run")
    points: dict[tuple[int, int], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            if record.pop("kind") == kind:
                points[record.pop("steps"), record.pop("seed")] = record
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a record of a run ({type(error).__name__}: {error}): {line[:80]!r}; "
                f"delete it if the run was killed while it wrote"
            ) from None
    if not points:
        return {}
    steps, seeds = (sorted(set(axis)) for axis in zip(*points, strict=True))
    steps = [step for step in steps if all((step, seed) in points for seed in seeds)]
    names = sorted({name for point in points.values() for name in point})
    table = {name: [[points[step, seed].get(name) for step in steps] for seed in seeds] for name in names}
    return {"steps": np.array(steps)} | {name: np.array(rows, dtype=float) for name, rows in table.items()}


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only makes the given function true; a second one interrupts as usual."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return

    def stop(number: int, frame: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)
        print("\nstopping after this chunk; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _open(path: Path, settings: dict[str, Any], start: int | None) -> float:
    """Make `path` the directory of a run that goes on at `start`; returns how many seconds it has taken so far."""
    held = (found for name in ("config.json", "metrics.jsonl", "checkpoints/[0-9]*") for found in path.glob(name))
    if start is None and any(held):
        raise ValueError(f"run_dir {path} holds a run already; name another one, move it away, or go on: resume=True")
    try:
        path.mkdir(parents=True, exist_ok=True)
        kept = _until(path / "metrics.jsonl", start) if start else []
        with files.whole(path / "config.json") as file:
            file.write_text(json.dumps(settings, indent=2) + "\n")
        with files.whole(path / "metrics.jsonl") as file:
            file.write_text("".join(line + "\n" for line in kept))
    except OSError as error:
        raise ValueError(f"run_dir {path} can't be written: {error}") from None
    return float(json.loads(kept[-1])["seconds"]) if kept else 0.0


def _until(path: Path, steps: int) -> list[str]:
    """The lines of a record up to `steps`; one that was cut short is not among them."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            if json.loads(line)["steps"] <= steps:
                kept.append(line)
    return kept


def _points(path: Path | None, kind: Literal["train", "evaluation"], start: int) -> list[Arrays]:
    """What the record of a run that goes on holds, point by point."""
    arrays = read(path, kind) if path is not None and start else {}
    if arrays:
        del arrays["seconds"]
    return [
        {name: values[i] if name == "steps" else values[:, i] for name, values in arrays.items()}
        for i in range(len(arrays.get("steps", ())))
    ]


def _discard(path: Path) -> None:
    """Remove the directory of a run that wrote nothing down, so that its name is free; other files in it stay."""
    for name in ("metrics.jsonl", "config.json"):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def _stack(points: list[Arrays]) -> Arrays:
    """Points in time with leaves [seeds, ...] as arrays [seeds, P, ...], and "steps" as [P]."""
    if not points:
        return {}
    names = [name for name in points[0] if all(name in point for point in points)]
    return {name: np.stack([point[name] for point in points], axis=0 if name == "steps" else 1) for name in names}


def _json(value: Any) -> Any:
    """The nearest that JSON has: numbers that are not finite become null."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [_json(item) for item in value]
    number = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
