"""Models from lists of transitions, from counts, and from one another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.mdp.checks import validate
from jaxrl.mdp.model import MDP, SparseMDP


def from_transitions(
    states: ArrayLike,
    actions: ArrayLike,
    successors: ArrayLike,
    probabilities: ArrayLike,
    rewards: ArrayLike,
    discount: ArrayLike,
    *,
    initial: ArrayLike | None = None,
) -> SparseMDP:
    """A sparse model from a list of its transitions, in any order.

    A transition that is listed more than once has the sum of the probabilities, and the mean of the rewards that they
    weigh; those of probability 0 are left out. The reward becomes `[S, A]` if it does not depend on the successor.

    - `states`, `actions`, `successors`: `[n]`, integers from 0; the largest ones say how many there are.
    - `probabilities`, `rewards`: `[n]`.
    - `initial`: `[S]`, uniform by default.

    Raises ValueError if these are no model: every action of every state needs its law.

    >>> model = from_transitions([0, 0, 1], [0, 0, 0], [0, 1, 1], [0.25, 0.75, 1.0], [0.0, 4.0, 0.0], discount=0.9)
    >>> print(model.successors[:, 0], model.probabilities[:, 0])
    [[0 1]
     [1 1]] [[0.25 0.75]
     [1.   0.  ]]
    """
    places = [np.asarray(x) for x in (states, actions, successors)]
    numbers = [np.asarray(x, np.float64) for x in (probabilities, rewards)]
    names = ("states", "actions", "successors", "probabilities", "rewards")
    for name, column in zip(names, places + numbers, strict=True):
        if column.ndim != 1 or len(column) != len(places[0]) or not len(column):
            raise ValueError(f"{name} has shape {column.shape}, expected {places[0].shape}: one entry a transition")
    for name, column in zip(names[:3], places, strict=True):
        if not np.issubdtype(column.dtype, np.integer) or column.min() < 0:
            raise ValueError(f"{name} must be integers from 0, got {column[np.argmin(column)]} of type {column.dtype}")
    num_states, num_actions = int(max(places[0].max(), places[2].max())) + 1, int(places[1].max()) + 1
    slots, laws, reward = _slots(places, numbers, num_states, num_actions)
    initial = np.full(num_states, 1 / num_states) if initial is None else initial
    model = SparseMDP(slots, laws, reward, jnp.asarray(discount, float), jnp.asarray(initial, float))
    validate(model)
    return model


def _slots(places: list, numbers: list, num_states: int, num_actions: int) -> tuple[jax.Array, ...]:
    """Successors, probabilities and rewards in slots, `[S, A, K]`; the reward `[S, A]` where that says it all."""
    probs, rewards = numbers
    row = places[0].astype(np.int64) * num_actions + places[1]
    listed, index = np.unique(row * num_states + places[2], return_inverse=True)
    total = np.bincount(index, probs)
    kept = total != 0  # what is negative or NaN stays, to be refused
    mean = np.bincount(index, probs * rewards) / np.where(kept, total, 1)
    lone = np.bincount(index) == 1  # exactly as it was given
    mean[index[lone[index]]] = rewards[lone[index]]
    listed, total, mean = listed[kept], total[kept], mean[kept]
    row, successor = np.divmod(listed, num_states)
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    size = (num_states * num_actions, int(slot.max(initial=0)) + 1)
    successors = np.broadcast_to(np.arange(size[0])[:, None] // num_actions, size).copy()
    probabilities, reward = np.zeros(size), np.zeros(size)
    successors[row, slot], probabilities[row, slot], reward[row, slot] = successor, total, mean
    if np.all((reward == reward[:, :1]) | (probabilities == 0)):
        reward = reward[:, 0]
    arrays = ((successors, np.int32), (probabilities, float), (reward, float))
    rows = (num_states, num_actions)
    return tuple(jnp.asarray(x.reshape(*rows, *x.shape[1:]), dtype) for x, dtype in arrays)


def from_counts(
    counts: ArrayLike,
    reward: ArrayLike,
    discount: ArrayLike,
    *,
    initial: ArrayLike | None = None,
    prior: ArrayLike = 0.0,
) -> MDP:
    """A dense model from how often each transition has been seen.

        P(s' | s, a) = (n(s, a, s') + prior) / sum_j (n(s, a, j) + prior)

    That is the mean of the posterior of a Dirichlet prior; with `prior=0` the maximum likelihood, and the uniform law
    where nothing has been seen.

    - `counts`: `[S, A, S]`, not negative; they may be weights.
    - `reward`: `[S, A]` or `[S, A, S]`.
    - `initial`: `[S]`, uniform by default.
    - `prior`: a number for each transition, or an array that broadcasts to `[S, A, S]`.

    Raises ValueError if counts are negative, or if the result is no model.

    >>> print(from_counts(jnp.array([[[3, 1]], [[0, 0]]]), jnp.zeros((2, 1)), discount=0.9).transition[:, 0])
    [[0.75 0.25]
     [0.5  0.5 ]]
    """
    dtype = jnp.result_type(counts, prior, float)
    weights = jnp.asarray(counts, dtype) + jnp.asarray(prior, dtype)
    if not isinstance(weights, jax.core.Tracer) and not np.min(weights, initial=0) >= 0:
        raise ValueError(f"counts + prior has the entry {np.min(weights)}, expected none below 0")
    total = jnp.sum(weights, axis=-1, keepdims=True)
    seen = total > 0
    uniform = 1 / weights.shape[-1]
    model = MDP(
        transition=jnp.where(seen, weights / jnp.where(seen, total, 1), uniform),
        reward=jnp.asarray(reward),
        discount=jnp.asarray(discount, float),
        initial=jnp.full(weights.shape[-1], uniform, dtype) if initial is None else jnp.asarray(initial),
    )
    validate(model)
    return model


def dense(model: SparseMDP) -> MDP:
    """The same model as dense arrays; a reward for each slot becomes `[S, A, S]`, 0 where there is no slot.

    Of use where nature may move mass to any state, or on an accelerator for few states.
    """
    states, actions = jnp.arange(model.num_states)[:, None, None], jnp.arange(model.num_actions)[:, None]
    shape = (model.num_states, model.num_actions, model.num_states)
    probs, reward = jnp.asarray(model.probabilities), jnp.asarray(model.reward)
    at = (states, actions, model.successors)
    if reward.ndim == 3:
        reward = jnp.zeros(shape, reward.dtype).at[at].add(jnp.where(probs > 0, reward, 0))
    return MDP(jnp.zeros(shape, probs.dtype).at[at].add(probs), reward, model.discount, model.initial)


def sparse(model: MDP) -> SparseMDP:
    """The same model with slots for what has a probability above 0; K is the largest number of them in a row."""
    probs, reward = np.asarray(model.transition), np.asarray(model.reward)
    branching = int((probs > 0).sum(-1).max())
    successors = np.argsort(probs <= 0, axis=-1, kind="stable")[..., :branching]
    probabilities = np.take_along_axis(probs, successors, axis=-1)
    if reward.ndim == 3:
        reward = np.where(probabilities > 0, np.take_along_axis(reward, successors, axis=-1), 0)
    slots = jnp.asarray(successors.astype(np.int32))
    return SparseMDP(slots, jnp.asarray(probabilities), jnp.asarray(reward), model.discount, model.initial)
