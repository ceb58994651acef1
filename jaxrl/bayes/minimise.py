"""Minimise a smooth function of a few numbers, from many starts at once and inside a compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl.types import PyTree


def lbfgs(loss: Callable[[PyTree], jax.Array], starts: PyTree, steps: int) -> tuple[PyTree, jax.Array]:
    """Points `[K, ...]` that L-BFGS reaches from starts `[K, ...]` in at most so many steps, and their losses `[K]`.

    A start stops where the largest slope is below the square root of the precision: beyond it, the line search would
    look for less than rounding. No derivative goes through it.
    """

    def climb(start: PyTree) -> tuple[PyTree, jax.Array]:
        solver = optax.lbfgs()
        slope = optax.value_and_grad_from_state(loss)
        dtype = jax.eval_shape(loss, start).dtype
        flat = jnp.finfo(dtype).eps ** 0.5

        def step(carry: Any) -> Any:
            point, state, count, _ = carry
            value, gradient = slope(point, state=state)
            move, state = solver.update(gradient, state, point, value=value, grad=gradient, value_fn=loss)
            return optax.apply_updates(point, move), state, count + 1, optax.tree.norm(gradient, ord=jnp.inf)

        carry = (start, solver.init(start), jnp.zeros((), jnp.int32), jnp.array(jnp.inf, dtype))
        point = jax.lax.while_loop(lambda carry: (carry[2] < steps) & (carry[3] > flat), step, carry)[0]
        return point, loss(point)

    return jax.vmap(climb)(starts)
