"""Parameters of environments as vectors of numbers, for agents that choose them (`propose`) and learn what they do.

    params = put(params, chosen)                   # what `propose` returns: the first d numbers are those chosen
    psi = used(batch, d)                           # and what stands in a batch, step by step

The numbers of a pytree are its leaves, flattened, one after the other. In a family of `jaxrl.envs.uncertain` they are
those of its unit box, and nothing else.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxrl.types import PyTree, Transition


def numbers(params: PyTree, count: int, leading: tuple[int, ...]) -> jax.Array:
    """Return the first `count` numbers [*leading, count] of parameters, whose leaves are [*leading, ...].

    Raises ValueError if there are fewer.

    >>> numbers({"length": jnp.ones(2), "mass": jnp.zeros(2)}, 2, (2,))
    Array([[1., 0.],
           [1., 0.]], dtype=float32)
    """
    leaves = [jnp.reshape(leaf, (*leading, -1)) for leaf in jax.tree.leaves(params)]
    there = sum(leaf.shape[-1] for leaf in leaves)
    if there < count:
        raise ValueError(f"the environment has {there} parameters, and Config.num_params is {count}")
    return jnp.concatenate(leaves, axis=-1)[..., :count]


def put(params: PyTree, chosen: jax.Array) -> PyTree:
    """Return the parameters [N, ...] with `chosen` [N, d] for the first d of their numbers; they keep their types.

    Raises ValueError if there are fewer than d.
    """
    numbers(params, chosen.shape[1], chosen.shape[:1])  # are there so many?

    def one(params: PyTree, chosen: jax.Array) -> PyTree:
        flat, unravel = ravel_pytree(params)
        return unravel(flat.at[: chosen.size].set(chosen.astype(flat.dtype)))

    return jax.vmap(one)(params, chosen)


def used(batch: Transition, count: int) -> jax.Array:
    """Return the first `count` numbers [T, N, count] of the parameters that each step of a batch [T, N] was taken with.

    Raises ValueError if the batch does not have them, or the environment fewer.
    """
    if "env_params" not in batch.extras:
        raise ValueError(
            'batch.extras has no "env_params", expected the parameters that each step was taken with; collect with the '
            "agent's `propose`, as train.loop does"
        )
    return numbers(batch.extras["env_params"], count, batch.reward.shape)
