"""Finitely many models, of which nature picks: anew at each step, or once and for all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from jaxrl.mdp import MDP, Model
from jaxrl.mdp.checks import check_laws
from jaxrl.risk import laws
from jaxrl.robust.base import Support, known
from jaxrl.robust.checks import check_set
from jaxrl.robust.rows import Row, Worst


@laws.pytree
class Laws:
    """The laws of a list, of which nature picks the worst: `min_k p_k . z`.

    - `laws`: `[K, n]`; or `[..., K, n]`, a list for each of a batch, as `[S, A, K, S]` for a model.

    The nominal law has no part in it. Where several are equally bad, the first is taken.

    >>> from jaxrl.robust import worst_case
    >>> value, probs = worst_case(Laws(jnp.array([[0.5, 0.5], [0.75, 0.25]])), jnp.ones(2) / 2, jnp.array([0.0, 4.0]))
    >>> print(value, probs)
    1.0 [0.75 0.25]
    """

    laws: ArrayLike
    optimistic: bool = struct.field(pytree_node=False, default=False)

    @property
    def support(self) -> Support:
        return "all"

    def worst(self, row: Row) -> Worst:
        listed = jnp.asarray(self.laws)
        z = jnp.broadcast_to(row.values, jnp.broadcast_shapes(row.values.shape, row.nominal.shape))
        means = jnp.sum(listed * z[..., None, :], axis=-1)
        picked = jax.nn.one_hot(jnp.argmin(means, axis=-1), means.shape[-1], dtype=z.dtype)[..., None]
        slopes = jnp.broadcast_to(picked * z[..., None, :], jnp.broadcast_shapes(listed.shape, picked.shape))
        return Worst(jnp.min(means, axis=-1), jnp.sum(picked * listed, axis=-2), jnp.zeros_like(z), (slopes,))


@laws.pytree
class Scenarios:
    """The models of a list, of which nature picks.

    - `transitions`: `[K, S, A, S]`.
    - `static`: False, and nature picks anew at each step, with the state and the action before its eyes, as a set for
      each state and action (`row`, `by_row`). That is more than to pick one model for good, `static=True`, for which
      there is no dynamic programming: `solve` refuses it, and `iwocs` bounds it.

    The kernel of the nominal model has no part in it, unless it is listed.

    Raises ValueError if the transitions are no laws, where they are known.
    """

    transitions: ArrayLike
    static: bool = struct.field(pytree_node=False, default=False)
    optimistic: bool = struct.field(pytree_node=False, default=False)

    def __post_init__(self) -> None:
        shape = jnp.shape(self.transitions)
        if len(shape) != 4 or shape[1] != shape[3] or 0 in shape:
            raise ValueError(f"Scenarios.transitions has shape {shape}, expected [K, S, A, S], a kernel for each model")
        if known(self.transitions) is not None:
            axes = ("scenario", "state", "action", "successor")
            check_laws("Scenarios.transitions", jnp.asarray(self.transitions), axes)

    @property
    def support(self) -> Support:
        return "all"

    def by_row(self) -> Laws:
        """The set of each state and action, with laws `[S, A, K, S]`. ValueError if the choice is `static`."""
        if self.static:
            raise ValueError(
                "Scenarios(static=True) lets nature pick one model for good, and so is no set for each state and "
                "action; expected static=False, where it picks anew at each step, or robust.iwocs for one model"
            )
        return Laws(jnp.moveaxis(jnp.asarray(self.transitions), 0, 2), self.optimistic)

    def row(self, state: ArrayLike, action: ArrayLike, successors: ArrayLike | None = None) -> Laws:
        """The set of one row of a model, for `worst_case`, with laws `[K, n]`; or of a batch of rows, `[..., K, n]`.

        - `state`, `action`: integers, `[]` or `[...]`.
        - `successors`: the states of the row's slots, `[..., n]`, all states by default. ValueError if they miss mass
          of a scenario, or list it twice, where that is known.
        """
        picked = jnp.asarray(self.by_row().laws)[state, action]
        if successors is None:
            return Laws(picked, self.optimistic)
        picked = jnp.take_along_axis(picked, jnp.asarray(successors)[..., None, :], axis=-1)
        numbers = known(picked)
        if numbers is not None and not np.all(np.abs(numbers.sum(-1) - 1) < 1e-5):
            raise ValueError(
                f"the slots of the row have {numbers.sum(-1).ravel().round(6)} of the mass of the scenarios, expected "
                f"all of it: list all successors once, or use mdp.dense(model)"
            )
        return Laws(picked, self.optimistic)

    def worst(self, row: Row) -> Worst:
        raise ValueError("Scenarios is a set of models, expected that of one row: set.row(state, action)")


def by_row(set: Any, model: Model) -> Any:
    """The set of each state and action; ValueError if it does not fit the model, or has none (`static`)."""
    if not isinstance(set, Scenarios):
        check_set(set, model)
        return set
    rows = set.by_row()
    shape = jnp.shape(set.transitions)[1:]
    if not isinstance(model, MDP):
        raise ValueError("Scenarios needs a model that lists all states, got a SparseMDP: use mdp.dense(model)")
    if shape != jnp.shape(model.transition):
        raise ValueError(f"Scenarios.transitions has models {shape}, expected [S, A, S] = {model.transition.shape}")
    return rows
