"""Arguments as dataclasses, by tyro; and values that are written as calls, such as `CVaR(0.25)`."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from jaxrl.cli.errors import UsageError, one_line, plain, unknown

T = TypeVar("T")
Calls = Mapping[Any, Mapping[str, Any]]  # what may be called, by name, for each type that is written as a call


def parse(form: type[T], arguments: Sequence[str], name: str, calls: Calls | None = None) -> T:
    """`arguments` as the dataclass `form`, whose docstring and comments are the help of the command `name`.

    A field whose type is in `calls` is written as a call of one of the things there, by `call`.

    Raises UsageError in one line, and SystemExit for `--help`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(form, args=list(arguments), prog=f"jaxrl {name}", registry=_registry(calls or {}))
    except SystemExit as end:
        if not end.code:
            raise
    raise UsageError(_reduced(said.getvalue(), f"jaxrl {name} --help"))


def _reduced(said: str, see: str) -> str:
    """What tyro says in a box, in one line: a title, the message and, further down, options that are near."""
    text = re.sub(r"(?<!\S)(─+|-{3,})(?!\S)", "\0", re.sub("[│╭╮╰╯]", " ", said))
    blocks = [[line.strip() for line in block.splitlines() if line.strip()] for block in text.split("\0")]
    blocks = [block for block in blocks if block]
    if len(blocks) < 2:
        return " ".join(said.split())
    _, message, *listed = blocks
    listed = [block for block in listed if not block[0].startswith(("Argument helptext", "For full helptext"))]
    near = [line.split()[0] for block in listed for line in block if line.startswith("--")]
    line = " ".join(message).rstrip(".")
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else "" if line.endswith("?") else "."
    return f"{line}{hint} {see} shows all"


def _registry(calls: Calls) -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def numbers(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        array = getattr(sys.modules.get("jax"), "Array", None)  # an agent has imported JAX, other commands need not
        if not {float, array} <= set(typing.get_args(info.type)):
            return None  # neither `float | jax.Array` nor `ArrayLike`
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda texts: float(texts[0]),
            is_instance=lambda value: isinstance(value, float),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def called(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        made = next((made for kind, made in calls.items() if info.type == kind), None)
        if made is None:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="|".join(made),
            instance_from_str=lambda texts: call(texts[0], made, "value"),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [_text(value)],
        )

    return registry


def _text(value: Any) -> str:
    """What `call` reads as `value`."""
    return str(getattr(value, "__name__", None) or repr(value))


def call(text: str, makers: Mapping[str, Any], what: str, see: str = "") -> Any:
    """What a text stands for: a name in `makers`, or a call of it with numbers, texts, tuples or further calls.

    Classes are called even without parentheses, functions are not; letters, `-` and `_` in a name count as in `plain`.
    Nothing else is evaluated.

    >>> call("pair(1, second=(2, 3))", {"pair": lambda first, second: [first, second]}, "thing")
    [1, (2, 3)]
    """
    names = {plain(name): maker for name, maker in makers.items()}

    def found(name: str) -> Any:
        if plain(name) not in names:
            raise UsageError(unknown(what, name, makers, see))
        return names[plain(name)]

    def made(maker: Callable[..., Any], arguments: list[Any], named: dict[str, Any]) -> Any:
        try:
            return maker(*arguments, **named)
        except TypeError as error:
            raise UsageError(f"{text}: {re.sub(r'^.*?__init__', maker.__name__, one_line(error))}") from None

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and all(each.arg for each in node.keywords):
            named = {str(keyword.arg): value(keyword.value) for keyword in node.keywords}
            return made(found(node.func.id), [value(argument) for argument in node.args], named)
        if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
            return getattr(math, node.id)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise UsageError(f"{text!r} can't be read at {ast.unparse(node)!r}, expected such as Name(1.0)") from None

    if re.fullmatch(r"[\w\-]+", text):
        maker = found(text)
        return made(maker, [], {}) if isinstance(maker, type) else maker
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UsageError(f"{text!r} can't be read, expected a name, or such as Name(1.0, other=2)") from None
    return value(tree)


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` each: Python's numbers, flags and tuples, and anything else as text.

    >>> settings(["max_steps=200", "backend=mjx", "pair=(1,2)"])
    {'max_steps': 200, 'backend': 'mjx', 'pair': (1, 2)}
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise UsageError(f"--settings are name=value, such as max_steps=200, got {text!r}")
        values[name] = value
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[name] = ast.literal_eval(value)
    return values
