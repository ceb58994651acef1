"""Cholesky factors and triangular systems that can be batched.

Up to `LARGEST` rows they are blocks of plain JAX, which `vmap` turns into batched products, no slower than LAPACK's
batched calls. Those, in jaxlib 0.10, share out their batch to a pool of threads and wait for it from inside the pool,
so that two in one program can wait for each other forever; jaxlib 0.11 has left that out. LAPACK factors the larger.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 32
LARGEST = 1024
LARGEST_LOSS = 0.01  # of a factor to rounding: two digits are left


def cholesky(matrix: jax.Array) -> jax.Array:
    """The lower Cholesky factor `[n, n]`, without jitter; NaN where rounding leaves less than two digits of it.

    The ratio of a diagonal element and its pivot, what is left of it when the rows above have been taken out, times the
    precision of the type is the relative error of that pivot, whatever the units of each row.
    """
    n = len(matrix)
    factor = jnp.linalg.cholesky(matrix) if n > LARGEST else _blocks(matrix)
    loss = jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diagonal(matrix) / jnp.diagonal(factor) ** 2)
    return jnp.where(loss < LARGEST_LOSS, factor, jnp.nan)


def solve(factor: jax.Array, right: jax.Array) -> jax.Array:
    """`L^-1 right` for a lower factor L `[n, n]` and `right` `[n, k]`."""
    n = len(factor)
    if n > LARGEST:
        return jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    if n <= BLOCK:
        return _solve_rows(factor, right)
    factor, right = _pad(factor, -n % BLOCK), jnp.pad(right, ((0, -n % BLOCK), (0, 0)))

    def block(i: jax.Array, x: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(factor, i * BLOCK, BLOCK)
        pivot = lax.dynamic_slice_in_dim(rows, i * BLOCK, BLOCK, axis=1)
        left = lax.dynamic_slice_in_dim(right, i * BLOCK, BLOCK) - rows @ x
        return lax.dynamic_update_slice_in_dim(x, _solve_rows(pivot, left), i * BLOCK, axis=0)

    return lax.fori_loop(0, len(factor) // BLOCK, block, jnp.zeros_like(right))[:n]


def solve_transposed(factor: jax.Array, right: jax.Array) -> jax.Array:
    """`L^-T right` for a lower factor L `[n, n]` and `right` `[n, k]`."""
    return solve(factor.T[::-1, ::-1], right[::-1])[::-1]


def _blocks(matrix: jax.Array) -> jax.Array:
    """The factor, a block of columns after the other."""
    n = len(matrix)
    if n <= BLOCK:
        return _factor_columns(matrix)
    matrix = _pad(matrix, -n % BLOCK)
    index = jnp.arange(len(matrix))

    def block(i: jax.Array, factor: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(factor, i * BLOCK, BLOCK)
        left = lax.dynamic_slice_in_dim(matrix, i * BLOCK, BLOCK, axis=1) - factor @ rows.T
        pivot = _factor_columns(lax.dynamic_slice_in_dim(left, i * BLOCK, BLOCK))
        columns = jnp.where(index[:, None] < i * BLOCK, 0, _solve_rows(pivot, left.T).T)
        columns = lax.dynamic_update_slice_in_dim(columns, pivot, i * BLOCK, axis=0)
        return lax.dynamic_update_slice_in_dim(factor, columns, i * BLOCK, axis=1)

    return lax.fori_loop(0, len(matrix) // BLOCK, block, jnp.zeros_like(matrix))[:n, :n]


def _factor_columns(matrix: jax.Array) -> jax.Array:
    def column(j: jax.Array, factor: jax.Array) -> jax.Array:
        left = matrix[:, j] - factor @ factor[j]
        return factor.at[:, j].set(jnp.where(jnp.arange(len(matrix)) < j, 0, left / jnp.sqrt(left[j])))

    return lax.fori_loop(0, len(matrix), column, jnp.zeros_like(matrix))


def _solve_rows(factor: jax.Array, right: jax.Array) -> jax.Array:
    def row(i: jax.Array, x: jax.Array) -> jax.Array:
        return x.at[i].set((right[i] - factor[i] @ x) / factor[i, i])

    return lax.fori_loop(0, len(factor), row, jnp.zeros_like(right))


def _pad(matrix: jax.Array, count: int) -> jax.Array:
    """The matrix with `count` more rows and columns, those of the identity."""
    n = len(matrix)
    return jnp.pad(matrix, (0, count)) + jnp.diag(jnp.where(jnp.arange(n + count) < n, 0, 1).astype(matrix.dtype))
