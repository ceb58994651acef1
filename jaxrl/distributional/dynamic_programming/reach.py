"""All that can be reached in a model within a horizon: the grids on which stock-augmented control is exact."""

from __future__ import annotations

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.mdp import Model, probabilities, successors
from jaxrl.mdp.checks import check
from jaxrl.types import check_positive

LIMIT = 100_000  # numbers, at most


def reachable(model: Model, horizon: int, stock: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All stocks and returns that can occur within a horizon: with them `solve` is exact. On the host, in NumPy.

    Their number grows as that of the trajectories, or as that of the sums of rewards where these coincide.

    - `model`: concrete; dense or sparse, with any form of reward.
    - `horizon`: H, in steps.
    - `stock`: initial stocks, `[]` or `[K]`; by default minus each return that is possible from an initial state,
      which is where `cvar` has to search.

    Returns the stocks before each of the H decisions `[M]` and the returns over at most H steps `[N]`, both ascending.

    Raises ValueError if there are more than 100000 of either.

    >>> from jaxrl.mdp import MDP
    >>> coin = MDP(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), 1.0, np.ones(1))
    >>> reachable(coin, 2, stock=0.0)
    (array([0., 1.], dtype=float32), array([0., 1., 2.], dtype=float32))
    """
    check_positive("reachable", horizon=horizon)
    check(model, undiscounted=True)
    discount = float(model.discount)
    possible, places = np.asarray(probabilities(model)) > 0, np.asarray(successors(model))
    reward = np.asarray(model.reward, np.float64)
    reward = np.broadcast_to(reward if reward.ndim == 3 else reward[..., None], possible.shape)
    states = range(model.num_states)
    steps = [
        (s, t, np.unique(reward[s][possible[s] & (places[s] == t)]))
        for s in states
        for t in np.unique(places[s][possible[s]])
    ]

    returns = [np.zeros(1) for _ in states]
    seen = list(returns)
    for _ in range(horizon):
        returns = [_distinct(np.add.outer(r, discount * returns[t]) for u, t, r in steps if u == s) for s in states]
        seen = [_distinct(pair) for pair in zip(seen, returns, strict=True)]

    first = -_distinct(z for z, p in zip(returns, np.asarray(model.initial), strict=True) if p > 0)
    first = np.atleast_1d(np.asarray(first if stock is None else stock, np.float64))
    stocks = [first if p > 0 else np.zeros(0) for p in np.asarray(model.initial)]
    met = list(stocks)
    for _ in range(horizon - 1 if discount > 0 else 0):
        stocks = [_distinct(np.add.outer(r, stocks[u]) / discount for u, t, r in steps if t == s) for s in states]
        met = [_distinct(pair) for pair in zip(met, stocks, strict=True)]
    dtype = jnp.result_type(float)
    return _distinct(met).astype(dtype), _distinct(seen).astype(dtype)


def _distinct(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The numbers in `parts`, ascending, those that differ by rounding once."""
    numbers = np.sort(np.concatenate([np.zeros(0), *(part.ravel() for part in parts)]))
    rounding = 64 * float(jnp.finfo(jnp.result_type(float)).eps) * np.max(np.abs(numbers), initial=0)
    numbers = numbers[np.diff(numbers, prepend=-np.inf) > rounding]
    if len(numbers) > LIMIT:
        raise ValueError(
            f"more than {LIMIT} returns or stocks can be reached; take a grid instead, jnp.linspace(low, high, size)"
        )
    return numbers
