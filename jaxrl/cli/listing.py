"""`jaxrl list`: what there is, with a line each."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jaxrl
from jaxrl.cli.errors import UsageError, unknown

HELP = """usage: jaxrl list [agents | environments | models | sets | measures]

What there is, with a line each; all of it by default."""


def run(arguments: list[str]) -> None:
    """Print what there is."""
    if any(each in ("-h", "--help") for each in arguments):
        print(HELP)
        return
    for name in arguments:
        if name not in SECTIONS:
            raise UsageError(unknown("list of", name, SECTIONS, "jaxrl list --help"))
    for name in arguments or SECTIONS:
        print(f"{name}\n" + "\n".join(SECTIONS[name]()) + "\n")


def agents() -> dict[str, str]:
    """The agents and what each is, without importing any: the folder is the list."""
    paths = sorted((Path(jaxrl.__file__).parent / "agents").glob("[!_]*.py"))
    return {path.stem: first_line(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))) for path in paths}


def sets() -> dict[str, Any]:
    """The ambiguity sets, and the measures of risk that stand for one."""
    from jaxrl import robust

    found = {name: getattr(robust, name) for name in robust.__all__}
    kinds = {name: kind for name, kind in found.items() if isinstance(kind, type)}
    return {name: kind for name, kind in kinds.items() if name not in ("Set", "Solution")}


def measures() -> dict[str, Any]:
    """The measures of risk."""
    from jaxrl import risk

    found = {name: getattr(risk, name) for name in risk.__all__}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and name != "Measure"}


def models() -> dict[str, Any]:
    """The named finite MDPs."""
    from jaxrl.mdp import fishery, problems

    names = ("forest", "grid_world", "inventory", "machine_replacement", "river_swim")
    return {name: getattr(problems, name) for name in names} | {"fishery": fishery}


def first_line(text: str | None) -> str:
    """The first line of a docstring, or of the class of an environment."""
    return (text or "").strip().partition("\n")[0].replace("`", "")


def _environments() -> Iterable[str]:
    from jaxrl import envs

    for suite in envs.SUITES:
        names = [name.partition("/")[2] for name in envs.names(suite)]
        backends = envs.SUITES[suite].BACKENDS
        yield f"  {suite}/" + (f"  (--settings backend={'|'.join(backends)})" if backends else "")
        yield from _wrapped(names)


def _wrapped(names: list[str]) -> Iterable[str]:
    line = "   "
    for name in names:
        if len(line) + len(name) > 100:
            yield line
            line = "   "
        line += f" {name}"
    yield line


def _models() -> Iterable[str]:
    yield from _table({name: first_line(function.__doc__) for name, function in models().items()})
    yield "  FrozenLake-v1, Taxi-v4, CliffWalking-v1: tables of Gymnasium; model.csv, model.npz: files"


def _kinds(kinds: dict[str, Any]) -> Iterable[str]:
    def usage(name: str, kind: Any) -> str:
        fields = [each for each in inspect.signature(kind).parameters if each not in ("support", "optimistic")]
        return f"{name}({', '.join(fields)})"

    return _table({usage(name, kind): first_line(kind.__doc__) for name, kind in kinds.items()})


def _table(rows: dict[str, str]) -> Iterable[str]:
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {about}" for name, about in rows.items()]


SECTIONS: dict[str, Callable[[], Iterable[str]]] = {
    "agents": lambda: _table(agents()),
    "environments": _environments,
    "models": _models,
    "sets": lambda: _kinds(sets()),
    "measures": lambda: _kinds(measures()),
}
