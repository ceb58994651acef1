"""Linear equations of a contraction, without a matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import bicgstab

Map = Callable[[jax.Array], jax.Array]

ROUNDING = 4  # units of rounding of x and b, below which a residual means nothing
ACCEPTED = 1000  # such units, above which it is no solution: sums of many terms round by more than one
KRYLOV_STEPS = 100  # for a correction: where BiCGSTAB needs more, plain iteration is as good
PLAIN_STEPS = 1_000_000  # for a correction


def solve(contraction: Map, b: jax.Array, modulus: jax.Array) -> jax.Array:
    """The solution x of `x = b + contraction(x)` up to rounding, `[S]`; NaN where there is none to be found.

    BiCGSTAB, or where that breaks down plain iteration x <- b + contraction(x), which always converges; started again
    on what is left, as long as that shrinks. In both, the mean of what is left is taken care of by itself, since that
    is what a chain forgets last: (I - modulus P)^-1 is approximated by I + modulus / (1 - modulus) 11^T / S, its value
    for a P whose rows are all uniform. Differentiable in both directions: the transposed equations are solved in the
    same way.

    - `contraction`: `[S]` to `[S]`, x -> modulus P x, P a matrix whose rows are laws.
    - `modulus`: `[]`, in [0, 1).

    Source: van der Vorst 1992, "Bi-CGSTAB: A Fast and Smoothly Converging Variant of Bi-CG for the Solution of
    Nonsymmetric Linear Systems".
    """
    greatest, total = (functools.partial(jnp.linalg.norm, ord=order) for order in (jnp.inf, 1))
    return jax.lax.custom_linear_solve(
        lambda x: x - contraction(x),
        b,
        solve=lambda matvec, b: _solve(matvec, b, greatest, modulus),
        transpose_solve=lambda vecmat, b: _solve(vecmat, b, total, modulus),
    )


def _solve(matvec: Map, b: jax.Array, norm: Map, modulus: jax.Array) -> jax.Array:
    """The x with matvec(x) = b; what is left of b is measured in `norm`.

    Corrections are solved for one after the other, each to the precision of its own size: so what is left in the end
    is the rounding of the residual, not that of a long iteration.
    """
    precision = jnp.finfo(b.dtype).eps
    State = tuple[jax.Array, jax.Array, jax.Array]  # x, b - matvec(x), whether to go on

    def approximate(rest: jax.Array) -> jax.Array:
        return rest + modulus / (1 - modulus) * jnp.mean(rest)

    def plain(rest: jax.Array, needed: jax.Array) -> jax.Array:
        """A correction of some digits by x <- x + approximate(what is left), if it is needed."""

        def step(state: tuple) -> tuple:
            x, left, _, best, idle, steps = state
            x = x + approximate(left)
            left = rest - matvec(x)
            size = norm(left)
            idle = jnp.where(size < (1 + modulus) / 2 * best, 0, idle + 1)
            shrinking = idle * (1 - modulus) < 1  # in as many steps it shrinks by more, up to rounding
            going = shrinking & (size > precision**0.5 * norm(rest)) & (steps < PLAIN_STEPS)
            return x, left, going, jnp.minimum(size, best), idle, steps + 1

        none = jnp.zeros((), jnp.int32)
        state = (jnp.zeros_like(rest), rest, needed, norm(rest), none, none)
        return jax.lax.while_loop(lambda state: state[2], step, state)[0]

    def correct(state: State) -> State:
        x, rest, _ = state
        correction = bicgstab(matvec, rest, maxiter=KRYLOV_STEPS, M=approximate)[0]
        fails = ~(norm(rest - matvec(correction)) < norm(rest) / 2)
        correction = jnp.where(fails, plain(rest, fails), correction)
        remaining = b - matvec(x + correction)
        better = norm(remaining) < norm(rest)
        x, remaining = jnp.where(better, x + correction, x), jnp.where(better, remaining, rest)
        rounding = ROUNDING * precision * (norm(b) + norm(x))
        return x, remaining, (norm(remaining) < norm(rest) / 2) & (norm(remaining) > rounding)

    state = (jnp.zeros_like(b), b, norm(b) > 0)
    x, rest, _ = jax.lax.while_loop(lambda state: state[2], correct, state)
    solved = norm(rest) <= ACCEPTED * precision * (norm(b) + norm(x))
    return jnp.where(solved, x, jnp.nan)
