"""`jaxrl resume`: go on with a run of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrl.cli import options, runs, training
from jaxrl.cli.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped or killed, from its newest intact checkpoint, bit for bit."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # its directory
    steps: float | None = None  # transitions of each seed in all; None: as many as before
    quiet: bool = False  # no line of progress


def run(arguments: list[str]) -> int:
    """Go on with a run."""
    asked = options.parse(Resume, arguments, "resume")
    found = runs.find(asked.run)
    name, settings = again(found)
    steps = asked.steps or max(settings.steps, found.settings["steps"])
    settings = dataclasses.replace(settings, steps=steps, quiet=asked.quiet)
    return training.fit(name, settings, found.path, [], resume=True)


def again(found: runs.Run) -> tuple[str, Any]:
    """The agent of a run by its name, and the options that it was begun with. Raises ValueError if it has none."""
    if found.command is None:
        raise ValueError(
            f"{found.path} was not begun by jaxrl train (it has no {runs.COMMAND}): use train.fit(..., resume=True) "
            f"and jaxrl.checkpoint.load_policy in Python"
        )
    try:
        return found.command[1], training.parse(found.command[1], found.command[2:])
    except UsageError as error:
        raise ValueError(f"{found.path / runs.COMMAND} can't be used: {error}") from None
    except SystemExit:  # of a --help in it
        raise ValueError(f"{found.path / runs.COMMAND} is damaged: it asks for help") from None
