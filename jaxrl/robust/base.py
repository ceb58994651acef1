"""What sets have in common: their protocol, the set of one row of a model, and the checks of their settings."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.robust.rows import Row, Worst

Support = Literal["nominal", "all"]


class Set(Protocol):
    """A set of laws around a nominal one: a pytree of its settings, with two that are part of its structure.

    - `support`: "nominal", and nature gives mass to none but the states that have some under p0; "all", and it may to
      any.
    - `optimistic`: nature helps, and takes the largest mean in place of the least.
    """

    @property
    def support(self) -> Support: ...

    @property
    def optimistic(self) -> bool: ...

    def worst(self, row: Row) -> Worst: ...


def row(set: Any, state: ArrayLike, action: ArrayLike, successors: ArrayLike | None = None) -> Any:
    """The set of one row of a model, for `worst_case`; of a set or of a measure of risk.

    Settings `[S]`, `[S, A]` and `[S, A, n]` are read at the state and the action; numbers stay as they are.

    - `state`, `action`: integers, `[]`; or `[...]`, for a batch of rows.
    - `successors`: in a sparse model the states of the row's slots, `[..., n]`; a metric is read at them.

    >>> from jaxrl.robust import L1
    >>> row(L1(jnp.array([0.1, 0.5])), state=1, action=0)
    L1(radius=Array(0.5, dtype=float32), support='nominal', optimistic=False)
    """

    def pick(leaf: ArrayLike) -> ArrayLike:
        axes = jnp.ndim(leaf)
        return leaf if axes == 0 else jnp.asarray(leaf)[state] if axes == 1 else jnp.asarray(leaf)[state, action]

    if not hasattr(set, "metric"):
        return jax.tree.map(pick, set)
    metric = jnp.asarray(set.metric)
    if successors is not None:
        places = jnp.asarray(successors)
        metric = metric[places[..., :, None], places[..., None, :]]
    return jax.tree.unflatten(jax.tree.structure(set), (pick(set.radius), metric))


def check(set: Any) -> None:
    """Raise ValueError for a flag that is none, and for a radius that is negative or NaN, where it is known."""
    name = type(set).__name__
    if set.support not in ("nominal", "all"):
        raise ValueError(f"{name}.support must be 'nominal' or 'all', got {set.support!r}")
    if not isinstance(set.optimistic, bool):
        raise ValueError(f"{name}.optimistic must be True or False, got {set.optimistic!r}")
    if hasattr(set, "radius"):
        check_least(f"{name}.radius", set.radius, "0 leaves the nominal law alone, and any larger one is taken")


def check_least(name: str, value: Any, hint: str) -> None:
    """Raise ValueError if an element of `value` is known and not at least 0."""
    numbers = known(value)
    if numbers is not None and not np.all(numbers >= 0):
        raise ValueError(f"{name} must be at least 0, got {np.extract(~(numbers >= 0), numbers)[0]}: {hint}")


def known(value: Any) -> np.ndarray | None:
    """A number or an array, unless it is traced or a placeholder."""
    numbers = isinstance(value, (int, float, np.number, np.ndarray, jax.Array))
    return np.asarray(value) if numbers and not isinstance(value, jax.core.Tracer) else None
