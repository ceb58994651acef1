"""Whether a set fits a model: checked with a message."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.mdp import Model, SparseMDP, probabilities
from jaxrl.risk import CPW, CVaR, Entropic, EVaR, Expectile, Mean, MeanCVaR, Pow, Wang
from jaxrl.robust.sets import Interval
from jaxrl.robust.state import SRectangular

MEASURES = (Mean, CVaR, Entropic, EVaR, Expectile, MeanCVaR, Wang, Pow, CPW)  # monotone: more is worth more


def check_set(set: Any, model: Model) -> None:
    """Raises ValueError unless `set` is one that fits the model."""
    if isinstance(set, type):
        raise ValueError(f"set is the class {set.__name__}, expected an instance, such as {set.__name__}(...)")
    if not isinstance(set, (*MEASURES, SRectangular)) and not hasattr(set, "worst"):
        raise ValueError(
            f"set is of type {type(set).__name__}, expected a set of jaxrl.robust, such as L1(0.1), or a monotone "
            f"measure of jaxrl.risk, such as CVaR(0.1)"
        )
    name = type(set).__name__
    if isinstance(model, SparseMDP) and getattr(set, "support", "nominal") == "all":
        raise ValueError(
            f"{name}.support is 'all', but a SparseMDP lists no other states than the nominal successors; expected "
            f"support='nominal', or the model as mdp.dense(model)"
        )
    _check_shapes(set, model)
    if isinstance(set, Interval):
        _check_possible(set, model)


def _check_shapes(set: Any, model: Model) -> None:
    shape = jnp.shape(probabilities(model))
    axes = "[S, A, S]" if len(shape) == 3 and shape[0] == shape[2] else "[S, A, K]"
    for path, leaf in jax.tree_util.tree_leaves_with_path(set):
        name = f"{type(set).__name__}{jax.tree_util.keystr(path)}"
        allowed: list[tuple[int, ...]]
        if name.endswith(".metric"):
            allowed, meaning = [(shape[0], shape[0])], f"[S, S] = {(shape[0],) * 2}"
        elif isinstance(set, SRectangular):
            allowed, meaning = [(), shape[:1]], f"a number or [S] = {shape[:1]}, a budget of all actions,"
        else:
            allowed = [(), shape[:1], shape[:2]] + ([shape] if isinstance(set, Interval) else [])
            meaning = f"a number, [S] = {shape[:1]}, [S, A] = {shape[:2]}"
            meaning += f" or {axes} = {shape}" if isinstance(set, Interval) else ""
        if jnp.shape(leaf) not in allowed:
            raise ValueError(f"{name} has shape {jnp.shape(leaf)}, expected {meaning} for this model")


def _check_possible(set: Interval, model: Model) -> None:
    """Raises ValueError if the bounds leave no law to a row, outside a trace."""
    leaves = (set.lower, set.upper, probabilities(model))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    probs = np.asarray(leaves[2])
    allowed = (probs > 0) | (set.support == "all")

    def total(bound: Any) -> np.ndarray:
        bound = np.asarray(bound)
        bound = bound.reshape(bound.shape + (1,) * (3 - bound.ndim)) if bound.ndim else bound
        return np.sum(np.where(allowed, np.clip(bound, 0, 1), 0), axis=-1)

    lower, upper = total(set.lower), total(set.upper)
    wrong = np.argwhere((lower > 1 + 1e-6) | (upper < 1 - 1e-6))
    if len(wrong):
        state, action = wrong[0]
        raise ValueError(
            f"Interval leaves no law for state {state}, action {action}: its lower bounds sum to "
            f"{lower[state, action]:.6g}, expected at most 1, and its upper ones to {upper[state, action]:.6g}, "
            f"expected at least 1"
        )
