"""The record of a run for other tools. They read `metrics.jsonl`; nothing in training knows of them.

    sinks.console("runs/pendulum")                           # a table; plain text where there is no terminal
    sinks.tensorboard("runs/pendulum")                       # then: tensorboard --logdir runs/pendulum/tensorboard
    sinks.wandb("runs/pendulum", project="pendulum")         # mode="offline" keeps it on this machine

Each seed is a run of its own, or with `together=True` all of them are one: `NAME` is then the interquartile mean over
the seeds, `NAME/low` and `NAME/high` the ends of its 95 % bootstrap interval. Evaluations are means over episodes, as
`evaluation/greedy` and `evaluation/sampled`. What was not a finite number is left out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from jaxrl import log, stats

StrPath = str | os.PathLike[str]
Point = tuple[int, dict[str, float]]  # environment steps, value by name


def points(run_dir: StrPath, *, together: bool = False) -> Iterator[tuple[str, list[Point]]]:
    """The record of each seed, "seed_0" and so on, or of all of them as "seeds": its points in the order of steps.

    Raises ValueError as `log.read` does.
    """
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # steps [P], values [seeds, P]
    for kind, prefix in (("train", ""), ("evaluation", "evaluation/")):
        record = log.read(run_dir, kind)  # type: ignore[arg-type]
        for name in record.keys() - {"steps"}:
            values = record[name].reshape(*record[name].shape[:2], -1).mean(-1)
            tables[prefix + name] = record["steps"], values
    if together:
        tables = {part: table for name, table in tables.items() for part, table in _band(name, *table)}
    seeds = max((len(values) for _, values in tables.values()), default=0)
    for seed in range(seeds):
        rows: dict[int, dict[str, float]] = {}
        for name, (steps, values) in sorted(tables.items()):
            for step, value in zip(steps.tolist(), values[seed].tolist(), strict=True):
                if np.isfinite(value):
                    rows.setdefault(step, {})[name] = value
        yield "seeds" if together else f"seed_{seed}", sorted(rows.items())


def console(
    run_dir: StrPath,
    metrics: Sequence[str] | None = None,
    *,
    together: bool = True,
    last: int = 10,
    file: IO[str] | None = None,
) -> None:
    """Print the last points of a record: a table on a terminal, and elsewhere plain lines of columns apart by tabs.

    - `metrics`: their names; the return of episodes and of evaluations by default.
    - `together`: all seeds with their band, or each by itself.
    - `last`: how many points in time.
    - `file`: standard output by default.

    Raises ValueError as `log.read` does, and for metrics of which the record has none, naming those it has.
    """
    from rich.console import Console
    from rich.table import Column, Table

    lanes = list(points(run_dir, together=together))
    there = sorted({name for _, rows in lanes for _, values in rows for name in values})
    asked = ["episode_return", "evaluation/greedy"] if metrics is None else list(metrics)
    unknown = [name for name in asked if name not in there]
    if unknown and metrics is not None:
        raise ValueError(f"{run_dir} has no metric {', '.join(unknown)}; it has {', '.join(there)}")
    names = [part for name in asked for part in (name, f"{name}/low", f"{name}/high") if part in there]
    lines = [
        [lane, f"{step:,}", *(f"{values[name]:.5g}" if name in values else "" for name in names)]
        for lane, rows in lanes
        for step, values in [row for row in rows if any(name in row[1] for name in names)][-last:]
    ]
    out = Console(file=file)
    if not out.is_terminal:
        for line in [["seeds", "steps", *names], *lines]:
            print("\t".join(line), file=file)
        return
    table = Table("seeds", *(Column(name, justify="right") for name in ("steps", *names)), title=str(run_dir))
    for line in lines:
        table.add_row(*line)
    out.print(table)


def tensorboard(run_dir: StrPath, into: StrPath | None = None, *, together: bool = False) -> Path:
    """Write event files for TensorBoard, `into/seed_0` and so on, and return where; those that are there are replaced.

    `into` is `run_dir/tensorboard` by default. Raises ValueError as `log.read` does, before anything is written, and if
    `into` holds something else. Needs `tensorboardX`.
    """
    from tensorboardX import SummaryWriter

    into = Path(run_dir) / "tensorboard" if into is None else Path(into)
    lanes = list(points(run_dir, together=together))
    strangers = [path.name for path in into.glob("*") if not (path.is_dir() and path.name.startswith("seed"))]
    if strangers:
        raise ValueError(f"{into} holds {', '.join(sorted(strangers)[:3])}: name a directory for these files alone")
    for old in into.glob("seed*"):
        shutil.rmtree(old)
    for lane, rows in lanes:
        with SummaryWriter(str(into / lane)) as writer:
            for step, values in rows:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
    return into


def wandb(
    run_dir: StrPath,
    *,
    project: str,
    together: bool = False,
    mode: Literal["online", "offline"] = "online",
    into: StrPath | None = None,
) -> None:
    """Send the record to Weights & Biases, a run for each seed in one group, with what `config.json` says.

    - `mode`: "offline" writes to `into`, for `wandb sync` later.
    - `into`: where W&B keeps its files, `run_dir` by default.

    Raises ValueError as `log.read` does, before anything is sent. Needs `wandb`, and for "online" its login.
    """
    import wandb as client

    lanes = list(points(run_dir, together=together))
    config: dict[str, Any] = json.loads((Path(run_dir) / "config.json").read_text())
    directory = Path(run_dir) if into is None else Path(into)
    directory.mkdir(parents=True, exist_ok=True)
    name = Path(run_dir).resolve().name
    for lane, rows in lanes:
        with client.init(
            project=project,
            group=name,
            name=f"{name}/{lane}",
            config=config,
            mode=mode,
            dir=str(directory),
            reinit="finish_previous",
        ) as run:
            for step, values in rows:
                run.log(values, step=step)


def _band(name: str, steps: np.ndarray, values: np.ndarray) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """The interquartile mean over seeds and the ends of its interval, each [1, P]."""
    low, high = stats.bootstrap_interval(values, stats.interquartile_mean)
    for part, line in (("", stats.interquartile_mean(values)), ("/low", low), ("/high", high)):
        yield name + part, (steps, np.asarray(line)[None])
