"""Sets from data: how far the true laws may be from what has been seen."""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.robust.base import known
from jaxrl.robust.sets import L1
from jaxrl.types import check_positive


def from_counts(
    counts: ArrayLike,
    confidence: ArrayLike,
    kind: Literal["weissman", "bayes"] = "weissman",
    *,
    jointly: bool = True,
    prior: ArrayLike = 1.0,
    draws: int = 1000,
    key: jax.Array | None = None,
) -> tuple[jax.Array, L1]:
    """A kernel and an `L1` set around it that holds the true kernel with the given confidence.

    - `counts`: n(s, a, s'), `[S, A, S]`.
    - `confidence`: 1 - delta in (0, 1), `[]`: of all rows at once if `jointly`, else of each row on its own. A robust
      value over the set is a lower bound on the true value with that probability, if it is of all rows.
    - `kind`: "weissman", which holds whatever the true kernel is, around the frequencies:

          radius(s, a) = sqrt(2 / n (log(2^S - 2) - log delta)),    n = sum n(s, a, s'),

      at most 2; rows that were never seen are uniform, with radius 2, which is everything. Jointly, delta is divided by
      the number of rows. For counts that were fixed in advance; data whose amount depends on what was seen needs a
      further union over n.

      "bayes", which holds under the posterior, Dirichlet(counts + prior) for each row: around its mean, the smallest
      radius with that much mass, up to the error of the draws. Jointly, each row holds confidence^(1 / rows), as rows
      are independent. Much smaller, if the prior is right.
    - `prior`, `draws`, `key`: for "bayes": a number above 0, or `[S, A, S]`; the number of draws of each law, of which
      there should be many times 1 / (1 - the confidence of a row); a random key.

    Returns the kernel `[S, A, S]`, and `L1` with a radius `[S, A]` and support "all": what was never seen may happen.

    Raises ValueError for counts below 0, a confidence outside (0, 1), and a missing or superfluous key.

    Source: Weissman et al. 2003, "Inequalities for the L1 Deviation of the Empirical Distribution"; Petrik and Russel
    2019, "Beyond Confidence Regions: Tight Bayesian Ambiguity Sets for Robust MDPs".

    >>> transition, set = from_counts(jnp.array([[[60, 40]], [[0, 0]]]), 0.9)
    >>> with jnp.printoptions(precision=2):
    ...     print(transition[:, 0], set.radius[:, 0])
    [[0.6 0.4]
     [0.5 0.5]] [0.27 2.  ]
    """
    _check(counts, confidence, kind, prior, key)
    check_positive("from_counts", draws=draws)
    dtype = jnp.result_type(counts, confidence, float)
    counts, confidence = jnp.asarray(counts, dtype), jnp.asarray(confidence, dtype)
    rows = counts[..., 0].size if jointly else 1
    if kind == "weissman" or key is None:
        transition, radius = _weissman(counts, (1 - confidence) / rows)
    else:
        transition, radius = _bayes(counts + prior, confidence ** (1 / rows), draws, key)
    return transition, L1(radius, support="all")


@jax.jit
def _weissman(counts: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    states = counts.shape[-1]
    visits = jnp.sum(counts, axis=-1)
    seen = visits > 0
    some = jnp.where(seen, visits, 1)
    events = states * math.log(2) + math.log1p(-(2.0 ** (1 - states))) if states > 1 else -math.inf  # log(2^S - 2)
    radius = jnp.sqrt(2 / some * jnp.maximum(events - jnp.log(delta), 0))
    transition = jnp.where(seen[..., None], counts / some[..., None], 1 / states)
    return transition, jnp.where(seen, jnp.minimum(radius, 2), 2)


@functools.partial(jax.jit, static_argnames="draws")
def _bayes(weights: jax.Array, level: jax.Array, draws: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean = weights / jnp.sum(weights, axis=-1, keepdims=True)

    def distance(key: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(jax.random.dirichlet(key, weights) - mean), axis=-1)

    distances = jnp.sort(jax.lax.map(distance, jax.random.split(key, draws)), axis=0)
    return mean, distances[jnp.clip(jnp.ceil(level * draws).astype(int) - 1, 0, draws - 1)]


def _check(counts: ArrayLike, confidence: ArrayLike, kind: str, prior: ArrayLike, key: jax.Array | None) -> None:
    shape = jnp.shape(counts)
    if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(f"counts has shape {shape}, expected [S, A, S], the successor last")
    numbers, level, weight = known(counts), known(confidence), known(prior)
    if numbers is not None and not numbers.min() >= 0:
        raise ValueError(f"counts has the entry {numbers.min()}, expected none below 0")
    if level is not None and not (level.ndim == 0 and 0 < level < 1):
        raise ValueError(f"confidence must be a number in (0, 1), got {confidence}; 0.95 is 95 %")
    if kind not in ("weissman", "bayes"):
        raise ValueError(f"kind must be 'weissman' or 'bayes', got {kind!r}")
    if kind == "bayes" and key is None:
        raise ValueError("kind='bayes' draws from the posterior, expected a key, such as jax.random.key(0)")
    if kind == "weissman" and key is not None:
        raise ValueError("kind='weissman' draws nothing, expected no key; was kind='bayes' meant?")
    if kind == "bayes" and weight is not None and not weight.min() > 0:
        raise ValueError(f"prior must be above 0, got {weight.min()}: 1 is uniform")
