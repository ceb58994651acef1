"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write, of the same suffix, which takes the place of `path` at the end; no link is followed.

    It is on disk before. After an error `path` is as it was, and nothing else is left. Raises OSError where the
    directory of `path` is not there or can't be written to.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as unfinished:
        file = Path(unfinished) / f"file{path.suffix}"
        yield file
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        os.replace(file, path)
