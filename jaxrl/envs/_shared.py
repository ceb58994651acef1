"""What the adapters share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxrl.types import PyTree


@contextlib.contextmanager
def optional(package: str, install: str) -> Iterator[None]:
    """Turns a missing `package` into an ImportError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(f"the {package} environments need the package {package!r}: {install}") from error


def strong(tree: PyTree) -> PyTree:
    """`tree` with arrays for Python numbers, and no weakly typed leaf."""
    return like(tree, tree)


def like(tree: PyTree, example: PyTree) -> PyTree:
    """`tree` with the types of the leaves of `example`, so that a scan can carry it."""

    def cast(leaf: jax.Array, target: jax.Array) -> jax.Array:
        dtype = jnp.result_type(target)
        return leaf if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, tree, example)


def scalars(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The scalars of `metrics`, as floats."""
    return {name: jnp.asarray(value, float) for name, value in metrics.items() if jnp.shape(value) == ()}
