"""The robust Bellman operator: in each state and action, nature picks the worst law of a set.

    z(s, a, s') = r(s, a, s') + discount value(s'),    q(s, a) = min {p . z(s, a) : p in set(s, a)}

and `(T value)(s) = max_a q(s, a)`. Or in each state, if its actions share a budget (`SRectangular`):

    (T value)(s) = max_policy min {sum_a policy_a p_a . z(s, a) : (p_a)_a in set(s)}

A measure of risk stands for its set, and for a penalty on p. T is monotone, and `T (value + c) = T value + discount c`,
since laws sum to one; so it contracts by the discount, whatever the set.

Source: Iyengar 2005, "Robust Dynamic Programming"; Nilim and El Ghaoui 2005, "Robust Control of Markov Decision
Processes with Uncertain Transition Matrices"; Wiesemann, Kuhn and Rustem 2013, "Robust Markov Decision Processes";
Ruszczynski 2010, "Risk-Averse Dynamic Programming for Markov Decision Processes".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.mdp import MDP, Model, probabilities
from jaxrl.robust.sets import Wasserstein
from jaxrl.robust.state import SRectangular, worst_case_state
from jaxrl.robust.worst import worst_case

BLOCK = 2**20  # probabilities that are treated at once, which bounds the memory for what lies between


class Rows(NamedTuple):
    """Rows of a model, with what belongs to each of them: the axes `[b, A]`, or `[b]` for one action each."""

    nominal: jax.Array  # [b, A, N]
    reward: jax.Array  # [b, A], or [b, A, N]
    successors: jax.Array | None  # [b, A, N]; None if the slots are the states
    settings: tuple[jax.Array | None, ...]  # of the leaves of the set, those that differ: [b, A], [b, A, N], or [b, 1]


class Play(NamedTuple):
    """What the agent and nature do in some states, and what it is worth."""

    value: jax.Array  # [b], T of a value there
    q: jax.Array  # [b, A], what the actions are worth against the laws of nature, and its penalty
    policy: jax.Array  # [b, A]
    laws: jax.Array  # [b, A, N]


def rows(model: Model, set: Any) -> Rows:
    """All rows of a model."""
    return Rows(
        nominal=probabilities(model),
        reward=model.reward,
        successors=None if isinstance(model, MDP) else model.successors,
        settings=tuple(_setting(leaf) if own else None for leaf, own in zip(*_leaves(set), strict=True)),
    )


def taken(rows: Rows, actions: jax.Array) -> Rows:
    """The rows of one action in each state, `[S]`; settings that belong to the states stay as they are."""

    def pick(leaf: jax.Array) -> jax.Array:
        index = actions.reshape(-1, *(1,) * (leaf.ndim - 1))
        return leaf[:, 0] if leaf.shape[1] == 1 else jnp.take_along_axis(leaf, index, axis=1)[:, 0]

    return jax.tree.map(pick, rows)


def worst_laws(model: Model, set: Any, value: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """The worst-case values of rows `[...]`, and the laws that attain them, `[..., N]`, each row on its own."""
    z = _follows(model, value, rows)
    # the reward of a transition moves with it, that of an action does not
    moves = rows.reward.ndim == rows.nominal.ndim
    worst, laws = worst_case(_of_rows(set, rows), rows.nominal, rows.reward + z if moves else z)
    return worst if moves else rows.reward + worst, laws


def play(model: Model, set: Any, value: jax.Array, rows: Rows, policy: jax.Array | None = None) -> Play:
    """The worst laws of rows `[b, A]` for a policy `[b, A]`, or with a best one.

    Of an `SRectangular` set, q is constant to differentiation: it depends on how nature divides its budget.
    """
    if isinstance(set, SRectangular):
        reward = rows.reward if rows.reward.ndim == rows.nominal.ndim else rows.reward[..., None]
        z = reward + _follows(model, value, rows)
        worth, policy, laws = worst_case_state(_of_rows(set, rows), rows.nominal, z, policy)
        return Play(worth, jax.lax.stop_gradient(jnp.sum(laws * z, axis=-1)), policy, laws)
    q, laws = worst_laws(model, set, value, rows)
    policy = jax.nn.one_hot(jnp.argmax(q, axis=1), q.shape[1], dtype=q.dtype) if policy is None else policy
    return Play(jnp.sum(policy * q, axis=1), q, policy, laws)


def backup(model: Model, set: Any, value: jax.Array, policy: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """T value, `[S]`, for the best actions or those of a policy `[S, A]`; and q, `[S, A]`."""
    return in_blocks(lambda part: play(model, set, value, *part)[:2], (rows(model, set), policy))


def in_blocks(function: Callable[[Any], Any], parts: Any) -> Any:
    """A function of parts of a model, all with the axis of the states first, applied block by block.

    Nothing of the size of the model lies in between, and what there is stays in a cache.
    """
    leaves = jax.tree.leaves(parts)
    states = leaves[0].shape[0]
    size = max(1, BLOCK * states // max(leaf.size for leaf in leaves))
    blocks = -(-states // size)
    if blocks == 1:
        return function(parts)
    size = -(-states // blocks)
    whole = states // size

    def split(leaf: jax.Array) -> jax.Array:
        return leaf[: whole * size].reshape(whole, size, *leaf.shape[1:])

    def join(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(whole * size, *leaf.shape[2:])

    done = jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, parts)))
    if whole * size == states:
        return done
    rest = function(jax.tree.map(lambda leaf: leaf[whole * size :], parts))
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces), done, rest)


def _follows(model: Model, value: jax.Array, rows: Rows) -> jax.Array:
    """What the successors are worth, `[..., N]`; or `[S]`, if the slots are the states."""
    # Ties of z have to stay ties wherever XLA computes it anew: the maximum keeps product and sum from being fused.
    follows = jnp.maximum(model.discount * value, jnp.finfo(value.dtype).min)
    return follows if rows.successors is None else follows[rows.successors]


# ------------------------------------------------------------------------------------- settings of the set


def ball(set: Any) -> Any:
    """The set around each law: that whose radius the actions share, if they do."""
    return set.set if isinstance(set, SRectangular) else set


def _leaves(set: Any) -> tuple[list[Any], list[bool]]:
    """The settings of a set, and whether they differ between the rows; a metric is between states."""
    leaves, metric = jax.tree.leaves(set), isinstance(ball(set), Wasserstein)
    return leaves, [jnp.ndim(leaf) > 0 and not (metric and i == 1) for i, leaf in enumerate(leaves)]


def _setting(leaf: jax.Array) -> jax.Array:
    return leaf[:, None] if leaf.ndim == 1 else leaf


def _of_rows(set: Any, rows: Rows) -> Any:
    """The set with the settings of the rows, for `worst_case`; or of the states, for `worst_case_state`."""
    leaves = [leaf if own is None else own for leaf, own in zip(jax.tree.leaves(set), rows.settings, strict=True)]
    if isinstance(set, SRectangular) and leaves[0].ndim:
        leaves[0] = leaves[0][:, 0]
    if isinstance(ball(set), Wasserstein) and rows.successors is not None:
        leaves[1] = leaves[1][rows.successors[..., :, None], rows.successors[..., None, :]]
    return jax.tree.unflatten(jax.tree.structure(set), leaves)
