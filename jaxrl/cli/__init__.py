"""The command line: `jaxrl COMMAND ...`, or `python -m jaxrl.cli COMMAND ...`.

Each command is a module with `run(arguments)`, imported when it is asked for, so that `jaxrl --help` loads neither JAX
nor an environment. What goes wrong is one line on stderr and an exit status other than 0: 2 for arguments that can't
be used, 1 for anything else, 130 after Ctrl-C. `jaxrl --trace COMMAND ...` shows the trace as well.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from jaxrl import __version__
from jaxrl.cli.errors import UsageError, one_line, unknown

COMMANDS = {
    "train": ("training", "train AGENT ENVIRONMENT", "train, into a run directory"),
    "resume": ("resuming", "resume RUN", "go on with a run that was stopped or killed"),
    "eval": ("evaluation", "eval RUN", "evaluate the policies of a run"),
    "plot": ("curves", "plot RUN...", "draw learning curves of one or more runs"),
    "render": ("render", "render RUN", "show an episode: a page for Brax, a GIF for others"),
    "report": ("report", "report RUN", "make one HTML page of a run"),
    "solve": ("solve", "solve MODEL --set SET", "solve a finite MDP, robustly and with a certificate"),
    "list": ("listing", "list [WHAT]", "agents, environments, models, sets, measures"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status; `arguments` are those of the process by default."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    trace = arguments[:1] == ["--trace"]
    try:
        status = _command(arguments[trace:])
        sys.stdout.flush()
        return status
    except SystemExit as end:  # of --help
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        print("jaxrl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `jaxrl list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 1
    except Exception as error:  # whatever a simulator, a driver or a disk comes up with
        if trace:
            raise
        print(f"jaxrl: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _command(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
    elif name in ("-V", "--version"):
        print(f"jaxrl {__version__}")
    elif name not in COMMANDS:
        raise UsageError(unknown("command", name, COMMANDS, "jaxrl --help"))
    else:
        return int(importlib.import_module(f"jaxrl.cli.{COMMANDS[name][0]}").run(rest) or 0)
    return 0


def _help() -> str:
    width = max(len(usage) for _, usage, _ in COMMANDS.values())
    lines = [f"  jaxrl {usage:<{width}}  {about}" for _, usage, about in COMMANDS.values()]
    return "\n".join(
        [
            "usage: jaxrl [--trace] COMMAND ...",
            "",
            *lines,
            "",
            "jaxrl COMMAND --help has the options of a command, and jaxrl train AGENT --help the settings of an agent.",
            "--trace shows where a failure comes from; --version says which jaxrl this is.",
        ]
    )
