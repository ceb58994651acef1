"""What goes wrong, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Arguments of the command line that can't be used."""


def one_line(error: BaseException) -> str:
    """The message of an error in one line; errors that no one wrote for people have their type before it."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, ImportError)) and text:
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def unknown(what: str, name: str, known: Iterable[str], see: str = "") -> str:
    """There is no `what` called `name`, and which ones are near it; `see` shows all of them."""
    names = {plain(each): each for each in known}
    near = [names[each] for each in difflib.get_close_matches(plain(name), names, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"there is no {what} {name!r}{hint}" + (f" {see} shows all" if see else "")


def plain(name: str) -> str:
    """A name without what people write in different ways."""
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
