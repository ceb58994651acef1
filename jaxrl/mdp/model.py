"""A finite Markov decision process as a pytree of arrays, dense or sparse, and what the two have in common.

`N` is the number of slots for the successors of a state and an action: S in an `MDP`, K in a `SparseMDP`. What is
written in terms of `probabilities`, `successors`, `targets` and `expectation` serves both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike


@struct.dataclass
class MDP:
    """A Markov decision process with `S` states and `A` actions, as dense arrays.

    `transition[s, a, s']` is the probability of the successor s' when action a is taken in state s; the reward
    belongs to (s, a), or to (s, a, s'). Nothing is checked here, so that a model can be built inside a trace:
    `validate` does.

    >>> import numpy as np
    >>> model = MDP(transition=np.eye(2)[[[0, 1], [1, 0]]], reward=np.eye(2), discount=0.9, initial=np.array([1., 0.]))
    >>> model.num_states, model.num_actions
    (2, 2)
    """

    transition: jax.Array  # [S, A, S], each row a law
    reward: jax.Array  # [S, A] or [S, A, S]
    discount: jax.Array  # [], per step, in [0, 1)
    initial: jax.Array  # [S], the law of the first state

    @property
    def num_states(self) -> int:
        """The number of states, S."""
        return int(self.transition.shape[-1])

    @property
    def num_actions(self) -> int:
        """The number of actions, A."""
        return int(self.transition.shape[-2])


@struct.dataclass
class SparseMDP:
    """A Markov decision process whose actions have at most `K` successors each, which are listed.

    `probabilities[s, a, k]` is the probability of the successor `successors[s, a, k]`; the reward belongs to (s, a), or
    to (s, a, k). A slot that is not needed is padded: its probability is 0, its successor any state, its reward any
    finite number, and nothing that is computed depends on it. The other successors of a row differ. `from_transitions`
    builds one from a list; `validate` checks it.
    """

    successors: jax.Array  # [S, A, K], integers in 0, ..., S - 1
    probabilities: jax.Array  # [S, A, K], each row a law, 0 in a padded slot
    reward: jax.Array  # [S, A] or [S, A, K]
    discount: jax.Array  # [], per step, in [0, 1)
    initial: jax.Array  # [S], the law of the first state

    @property
    def num_states(self) -> int:
        """The number of states, S."""
        return int(self.successors.shape[-3])

    @property
    def num_actions(self) -> int:
        """The number of actions, A."""
        return int(self.successors.shape[-2])


Model = MDP | SparseMDP
M = TypeVar("M", bound=Model)

# ------------------------------------------------------------------------------- what both forms share


def probabilities(model: Model) -> jax.Array:
    """The probability of each slot, `[S, A, N]`; 0 in a padded one."""
    return model.transition if isinstance(model, MDP) else model.probabilities


def successors(model: Model) -> jax.Array:
    """The state that each slot leads to, `[S, A, N]`, integers."""
    if isinstance(model, MDP):
        return jnp.broadcast_to(jnp.arange(model.num_states), jnp.shape(model.transition))
    return model.successors


def targets(model: Model, value: ArrayLike) -> jax.Array:
    """What follows if a slot comes true, z[s, a, k] = r(s, a, k) + discount value[s'_k], `[S, A, N]`.

    The mean of `targets` under `probabilities` is `action_values`; a robust or risk-averse backup takes another
    functional of the two. The target of a padded slot is finite and means nothing: mask by `probabilities > 0`.

    - `value`: `[S]`.

    >>> chain = MDP(jnp.eye(2)[:, None], jnp.array([[1.0], [2.0]]), jnp.float32(0.5), jnp.ones(2) / 2)
    >>> targets(chain, jnp.array([10.0, 20.0]))[:, 0]
    Array([[ 6., 11.],
           [ 7., 12.]], dtype=float32)
    """
    value, reward = jnp.asarray(value), jnp.asarray(model.reward)
    reward = reward if reward.ndim == 3 else reward[..., None]
    return reward + model.discount * (value if isinstance(model, MDP) else value[model.successors])


def expectation(model: Model, values: ArrayLike) -> jax.Array:
    """The mean over the successors, E[values[s'] | s, a], `[S, A]`.

    - `values`: `[S]`, a number for each successor.
    """
    values = jnp.asarray(values)
    if isinstance(model, MDP):  # at full precision: accelerators multiply float32 with fewer bits otherwise
        return jnp.matmul(model.transition, values, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(model.probabilities * values[model.successors], axis=-1)


def expected_reward(model: Model) -> jax.Array:
    """The mean reward of an action, r(s, a) = E[r(s, a, s') | s, a], `[S, A]`."""
    reward = jnp.asarray(model.reward)
    return reward if reward.ndim == 2 else jnp.sum(probabilities(model) * reward, axis=-1)


def action_values(model: Model, value: ArrayLike) -> jax.Array:
    """The Bellman backup, q(s, a) = r(s, a) + discount E[value[s'] | s, a], `[S, A]`.

    - `value`: `[S]`.
    """
    return expected_reward(model) + model.discount * expectation(model, value)


# ----------------------------------------------------------------------------------- from form to form


def row(model: Model, state: ArrayLike, action: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What may follow an action: successors, their probabilities and their rewards, each `[N]`."""
    probs = jnp.asarray(probabilities(model))[state, action]
    places = jnp.arange(len(probs)) if isinstance(model, MDP) else jnp.asarray(model.successors)[state, action]
    return places, probs, jnp.broadcast_to(jnp.asarray(model.reward)[state, action], probs.shape)


def follow(model: M, policy: ArrayLike) -> M:
    """The model with the one action of doing as `policy` says: a Markov chain with rewards.

    - `policy`: `[S, A]`, the probability of each action; or `[S]`, integers, the action itself, which keeps N as it is.

    The result has S states and one action; a stochastic policy makes A K slots of the K of a `SparseMDP`.
    """
    policy = jnp.asarray(policy)
    reward = expected_reward(model)
    if jnp.issubdtype(policy.dtype, jnp.integer):
        taken = policy[:, None]
        leaves: dict[str, Any] = {"reward": jnp.take_along_axis(reward, taken, axis=1)}
        for name in ("transition",) if isinstance(model, MDP) else ("successors", "probabilities"):
            leaves[name] = jnp.take_along_axis(getattr(model, name), taken[..., None], axis=1)
        return dataclasses.replace(model, **leaves)
    reward = jnp.sum(policy * reward, axis=1, keepdims=True)
    if isinstance(model, MDP):
        mixed = jnp.einsum("sa,san->sn", policy, model.transition, precision=jax.lax.Precision.HIGHEST)
        return dataclasses.replace(model, transition=mixed[:, None], reward=reward)
    one_action = (model.num_states, 1, -1)
    return dataclasses.replace(
        model,
        successors=jnp.reshape(model.successors, one_action),
        probabilities=jnp.reshape(policy[..., None] * model.probabilities, one_action),
        reward=reward,
    )


def stack(models: Sequence[M]) -> M:
    """Models of the same form and shapes as one whose leaves have a leading axis, for `vmap`.

    `jax.vmap(value_iteration)(stack(models))` solves them together, in one program.

    Raises ValueError if there is none, or if their forms or shapes differ.
    """
    if not models:
        raise ValueError("models is empty, expected at least one")
    shapes = [{name: jnp.shape(leaf) for name, leaf in vars(model).items()} for model in models]
    for index, model in enumerate(models):
        if type(model) is not type(models[0]) or shapes[index] != shapes[0]:
            raise ValueError(
                f"models[{index}] is of type {type(model).__name__} with shapes {shapes[index]}, expected "
                f"{type(models[0]).__name__} with {shapes[0]} as models[0]: one program has one shape"
            )
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *models)
