"""What measures share: how they are pytrees, and how they check a discrete law, sort it and read its quantiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.tree_util import GetAttrKey
from jax.typing import ArrayLike

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, struct.field))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree of its fields.

    All fields are leaves, but those declared by `flax.struct.field(pytree_node=False)`, which are part of the
    structure. `__post_init__` runs where the class is called, not where JAX builds an instance from leaves: gradients
    and tangents have its structure, and none of its limits.

    In place of `flax.struct.dataclass` because here one function is jitted for many classes with the same fields:
    the structures that `jax.tree_util.register_dataclass` makes compare equal whatever their class (jaxlib 0.10 and
    0.11), and `jit` then takes, now and then, what it compiled for another measure.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    traced = tuple(field.name for field in fields if field.metadata.get("pytree_node", True))
    static = tuple(field.name for field in fields if field.name not in traced)

    def flatten(node: T) -> tuple[tuple, tuple]:
        return tuple(getattr(node, name) for name in traced), tuple(getattr(node, name) for name in static)

    def flatten_with_keys(node: T) -> tuple[tuple, tuple]:
        leaves, structure = flatten(node)
        return tuple((GetAttrKey(name), leaf) for name, leaf in zip(traced, leaves, strict=True)), structure

    def unflatten(structure: tuple, leaves: Iterable) -> T:
        node = object.__new__(cls)
        for name, value in zip((*traced, *static), (*leaves, *structure), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def law(atoms: ArrayLike, probs: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Atoms and probabilities in their common float dtype and shape, `[..., N]`; 1/N each where `probs` is None.

    ValueError unless both have a last axis, of one size.
    """
    dtype = jnp.result_type(atoms, *([] if probs is None else [probs]), float)
    atoms = jnp.asarray(atoms, dtype)
    if atoms.ndim == 0 or atoms.shape[-1] == 0:
        raise ValueError(f"atoms has shape {atoms.shape}, expected [..., N], at least one atom")
    probs = jnp.full(atoms.shape, 1 / atoms.shape[-1], dtype) if probs is None else jnp.asarray(probs, dtype)
    if probs.shape[-1:] != atoms.shape[-1:]:
        raise ValueError(
            f"probs has shape {probs.shape}, expected the last axis of atoms, {atoms.shape}: a probability for each "
            f"atom; are the two arguments swapped, or the quantiles on another axis?"
        )
    atoms, probs = jnp.broadcast_arrays(atoms, probs)
    return atoms, probs


def ascending(atoms: jax.Array, probs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The law with its atoms in ascending order, and P(Z <= atom), which ends in exactly 1; each `[..., N]`."""
    atoms, probs = jax.lax.sort((atoms, probs), dimension=-1, num_keys=1)
    cumulative = jnp.cumsum(probs, axis=-1)
    return atoms, probs, cumulative / cumulative[..., -1:]


def quantile(atoms: jax.Array, probs: jax.Array, level: jax.Array) -> jax.Array:
    """The smallest atom with P(Z <= atom) >= level, `[...]`: the value at risk."""
    atoms, _, cumulative = ascending(atoms, probs)
    index = jnp.sum(cumulative < level[..., None], axis=-1, keepdims=True)
    return jnp.take_along_axis(atoms, jnp.minimum(index, atoms.shape[-1] - 1), axis=-1)[..., 0]


def unit(atoms: jax.Array, probs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Atoms as `low + size * y` with y in [0, 1] where there is mass: `y [..., N]`, `low` and `size` `[..., 1]`.

    `low` and `size` are constants to differentiation: what is equivariant to both may use them so.
    """
    massive = probs >= jnp.finfo(probs.dtype).tiny
    low = jnp.min(jnp.where(massive, atoms, jnp.inf), axis=-1, keepdims=True)
    size = jnp.max(jnp.where(massive, atoms, -jnp.inf), axis=-1, keepdims=True) - low
    low, size = jax.lax.stop_gradient((low, jnp.where(size > 0, size, 1)))
    return (atoms - low) / size, low, size


def setting(value: ArrayLike, like: jax.Array) -> jax.Array:
    """A setting `[]` or `[...]` in the dtype of `like` `[..., N]`, and broadcasting against it."""
    array = jnp.asarray(value, like.dtype)
    return array[..., None] if array.ndim else array


def level(value: ArrayLike, like: jax.Array) -> jax.Array:
    """A `setting` clipped to [0, 1], differentiable up to the ends."""
    array = setting(value, like)
    return jnp.where(array > 1, 1, jnp.where(array < 0, 0, array))


def check_unit(name: str, value: ArrayLike, expected: str) -> None:
    """Raise ValueError if `value` is a number outside [0, 1]; a traced value or an array goes unchecked."""
    if isinstance(value, (int, float, np.number)) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}: {expected}")
