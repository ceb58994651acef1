"""The iteration of the robust solvers: one sweep of the robust Bellman operator T, and a guess at where to sweep next.

From a proposal v, w = T v gives the actions of the agent and the laws of nature, and so a Markov chain P:

    value iteration              v <- w
    policy iteration             v <- v + (I - discount P)^-1 (w - v), Newton's step: the value of that chain
    modified policy iteration    the same up to a small share of w - v, by sweeps over the chain alone

each up to a constant, which is chosen so that the residual max|T v - v| is the least (see `jaxrl.mdp.iteration`).

Two players who improve at the same time may run in circles. So a proposal is taken only if its residual is no larger
than value iteration is sure to reach, discount times the last; or else w is. So every method needs at most twice the
sweeps of value iteration, whatever the set; in practice it needs some six.

Source: Filar and Tolwinski 1991, "On the Algorithm of Pollatschek and Avi-Itzhak"; Ho, Petrik and Wiesemann 2021,
"Partial Policy Iteration for L1-Robust Markov Decision Processes"; Kaufman and Schaefer 2013, "Robust Modified Policy
Iteration".
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.mdp import Model, linear
from jaxrl.mdp.solution import Scale
from jaxrl.robust.operator import Rows, backup, in_blocks, play, rows, taken, worst_laws
from jaxrl.robust.state import SRectangular

DIRECT = 256  # states, up to which the equations of a chain are factorised
SHARE = 0.01  # of the residual, which modified policy iteration leaves of the equations of a chain
SWEEPS = 200  # over a chain at most


@struct.dataclass
class State:
    """Where an iteration is. `value` is certified, by the `residual` that it was found with."""

    value: jax.Array  # [S], T of the last proposal that was taken, and a constant
    q: jax.Array  # [S, A], its worst-case values
    residual: jax.Array  # [], of that proposal
    proposal: jax.Array  # [S], where the next sweep starts
    limit: jax.Array  # [], the residual up to which the proposal is taken
    iterations: jax.Array  # [], integer: sweeps
    rejections: jax.Array  # [], integer: proposals that were not taken


class Chain(NamedTuple):
    """The law of the next state when the agent and nature do as they want."""

    laws: jax.Array  # [S, M]
    successors: jax.Array | None  # [S, M]; None if the slots are the states


def start(model: Model) -> State:
    """The state before the first sweep, at value 0."""
    states, actions = jnp.shape(model.reward)[:2]
    dtype = jnp.result_type(model.reward)
    zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
    none = jnp.zeros((), jnp.int32)
    value = jnp.zeros(states, dtype)
    return State(value, jnp.zeros((states, actions), dtype), infinite, value + zero, infinite, none, none)


def sweep(
    model: Model, set: Any, known: Scale, rho: jax.Array, state: State, policy: jax.Array | None, method: str
) -> tuple[State, jax.Array]:
    """One sweep from the proposal, and the next; and the residual of the proposal, taken or not.

    - `rho`: `[]`, the rounding of a sweep.
    - `policy`: `[S, A]`, to evaluate; None for the best.
    """
    v = state.proposal
    if method == "value_iteration":
        w, q = backup(model, set, v, policy)
    else:
        w, q, chain = follow(model, set, v, policy)
    low, high = jnp.min(w - v), jnp.max(w - v)
    shift = model.discount * (low + high) / 2 / (1 - model.discount)
    residual = (high - low) / 2
    taken = ~(residual > state.limit)
    if method == "value_iteration":
        proposal = w + shift
    else:
        proposal = v + (newton if method == "policy_iteration" else partial)(model, chain, w - v, known)
    following = State(
        value=w + shift,
        q=q + shift,
        residual=residual,
        proposal=proposal,
        limit=jnp.minimum(known.modulus, 1) * residual + 2 * rho,
        iterations=state.iterations,
        rejections=state.rejections,
    )
    back = dataclasses.replace(
        state, proposal=state.value, limit=jnp.full_like(state.limit, jnp.inf), rejections=state.rejections + 1
    )
    following = jax.tree.map(lambda new, old: jnp.where(taken, new, old), following, back)
    return dataclasses.replace(following, iterations=state.iterations + 1), residual


def follow(model: Model, set: Any, value: jax.Array, policy: jax.Array | None) -> tuple[jax.Array, jax.Array, Chain]:
    """T value `[S]`, q `[S, A]`, and the chain of the best actions, or of a policy, and of the worst laws."""
    every = rows(model, set)
    if policy is None and not isinstance(set, SRectangular):
        worth, q = backup(model, set, value)
        chosen = taken(every, jnp.argmax(q, axis=1))
        laws = in_blocks(lambda part: worst_laws(model, set, value, part)[1], chosen)
        return worth, q, Chain(laws, chosen.successors)

    def mixed(part: tuple[Rows, jax.Array | None]) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = play(model, set, value, *part)
        return found.value, found.q, mix(found.policy, found.laws, part[0].successors)

    worth, q, laws = in_blocks(mixed, (every, policy))
    return worth, q, chain_of(laws, every.successors)


def mix(policy: jax.Array, laws: jax.Array, successors: jax.Array | None) -> jax.Array:
    """The law of the next state under a policy, `[b, M]`, of the laws of the actions, `[b, A, N]`."""
    laws = policy[..., None] * laws
    return jnp.sum(laws, axis=1) if successors is None else laws.reshape(len(laws), -1)


def chain_of(laws: jax.Array, successors: jax.Array | None) -> Chain:
    """The chain with laws `[S, M]`, on the successors `[S, A, N]` of all actions."""
    return Chain(laws, None if successors is None else successors.reshape(laws.shape))


def matrix(chain: Chain) -> jax.Array:
    """The chain as a matrix, `[S, S]`."""
    if chain.successors is None:
        return chain.laws
    states = len(chain.laws)
    empty = jnp.zeros((states, states), chain.laws.dtype)
    return empty.at[jnp.arange(states)[:, None], chain.successors].add(chain.laws)


def expect(chain: Chain, values: jax.Array) -> jax.Array:
    """The mean over the next state, `[S]`."""
    if chain.successors is None:
        return jnp.matmul(chain.laws, values, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(chain.laws * values[chain.successors], axis=-1)


def newton(model: Model, chain: Chain, b: jax.Array, known: Scale) -> jax.Array:
    """The solution of x = b + discount P x, up to rounding, `[S]`."""
    states = len(b)
    if states > DIRECT:
        return linear.solve(lambda x: model.discount * expect(chain, x), b, known.modulus)
    return jnp.linalg.solve(jnp.eye(states, dtype=b.dtype) - model.discount * matrix(chain), b)


def partial(model: Model, chain: Chain, b: jax.Array, known: Scale) -> jax.Array:
    """The same up to a share of b and a constant, `[S]`: sum_k (discount P)^k b, as far as needed."""

    def spread(rest: jax.Array) -> jax.Array:
        return jnp.max(rest) - jnp.min(rest)

    def step(state: tuple) -> tuple:
        x, rest, count = state
        rest = model.discount * expect(chain, rest)
        return x + rest, rest, count + 1

    def going(state: tuple) -> jax.Array:
        return (spread(state[1]) > SHARE * spread(b)) & (state[2] < SWEEPS)

    x, rest, _ = jax.lax.while_loop(going, step, (b, b, 0))
    middle = (jnp.min(rest) + jnp.max(rest)) / 2
    return x + model.discount * middle / (1 - model.discount)
