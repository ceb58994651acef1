"""Evaluation of a policy: the law of its return as the fixed point of a projected Bellman operator.

    eta(s) <- Pi sum_a pi(a|s) sum_s' P(s'|s, a) law of r(s, a, s') + discount G(s'),    G(s') ~ eta(s')

The operator multiplies the number of atoms in every step, so a projection Pi keeps laws in a family: that of a
representation, which is a pytree with three methods (`Categorical`, `Quantile`, `Averages`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.distributional.dynamic_programming.representations import Law, Representation
from jaxrl.mdp import MDP, Model, expectation, probabilities, validate
from jaxrl.mdp.checks import check_policy
from jaxrl.mdp.solution import attainable, error_bound, rounding, scale

# -------------------------------------------------------------------------------------- operators


def init(model: Model, representation: Representation) -> Law:
    """The law of a return of 0 in every state, `[S, N]`, from which an evaluation starts."""
    nothing = jnp.zeros((model.num_states, 1), jnp.result_type(probabilities(model), float))
    return representation.project(Law(nothing, jnp.ones_like(nothing)))


def action_laws(model: Model, law: Law) -> Law:
    """The laws of the return after each action, not projected, `[S, A, M]`.

        sum_s' P(s'|s, a) law of r(s, a, s') + discount G(s'),    G(s') ~ law of s'

    M is N for each slot of a successor; N in all where atoms are shared and the reward is `[S, A]`. The value of the
    successor in the place of its law gives the one-step law of Achab and Neu, which knows the randomness of one step
    only: `Law(value[:, None], ones)`.

    - `model`: dense or sparse, with any form of reward.
    - `law`: atoms `[N]` or `[S, N]`, probs `[S, N]`.

    Source: Bellemare, Dabney, Munos 2017, "A Distributional Perspective on Reinforcement Learning", eq. (5).
    """
    dtype = jnp.result_type(probabilities(model), model.reward, law.atoms, law.probs, float)
    kernel, reward, discount, atoms, probs = (
        jnp.asarray(x, dtype) for x in (probabilities(model), model.reward, model.discount, law.atoms, law.probs)
    )
    if atoms.ndim == 1 and reward.ndim == 2:
        mixed = jax.vmap(expectation, (None, 1), 2)(model, probs)
        return Law(reward[..., None] + discount * atoms, mixed)
    if not isinstance(model, MDP):
        probs = probs[model.successors]
        atoms = atoms[model.successors] if atoms.ndim == 2 else atoms
    reward = reward if reward.ndim == 3 else reward[..., None]
    probs = kernel[..., None] * probs  # [S, A, slots, N]
    atoms = jnp.broadcast_to(reward[..., None] + discount * atoms, probs.shape)
    return Law(atoms.reshape(*atoms.shape[:2], -1), probs.reshape(*probs.shape[:2], -1))


def bellman(model: Model, policy: ArrayLike, law: Law) -> Law:
    """The distributional Bellman operator of a policy, not projected, `[S, A M]`.

        sum_a pi(a|s) [law of the return after a],    of `action_laws`

    It shrinks the largest Wasserstein-p distance over states by the discount, for every p.

    - `policy`: `[S, A]`.
    - `law`: atoms `[N]` or `[S, N]`, probs `[S, N]`.
    """
    after = action_laws(model, law)
    probs = jnp.asarray(policy, after.probs.dtype)[..., None] * after.probs
    return Law(*(x.reshape(x.shape[0], -1) for x in (after.atoms, probs)))


def step(model: Model, policy: ArrayLike, representation: Representation, law: Law) -> Law:
    """One sweep of the projected operator, `[S, N]`: `representation.project(bellman(model, policy, law))`."""
    return representation.project(bellman(model, policy, law))


def initial_law(model: Model, law: Law) -> Law:
    """The law of the return from the initial state, a mixture, not projected, `[N]` or `[S N]`.

    - `law`: atoms `[N]` or `[S, N]`, probs `[S, N]`.
    """
    initial = jnp.asarray(model.initial, law.probs.dtype)
    if law.atoms.ndim == 1:
        return Law(law.atoms, jnp.matmul(initial, law.probs, precision="highest"))
    return Law(law.atoms.reshape(-1), (initial[:, None] * law.probs).reshape(-1))


# ------------------------------------------------------------------------------------- fixed point


@struct.dataclass
class Evaluation:
    """A fixed point and how near it is."""

    law: Law  # of the return from each state, [S, N]
    residual: jax.Array  # [], the largest distance over states that the last sweep moved
    error_bound: jax.Array  # [], on the largest distance to the fixed point, with rounding
    iterations: jax.Array  # [], sweeps
    converged: jax.Array  # [] bool: error_bound <= tolerance


def evaluate(
    model: Model,
    policy: ArrayLike,
    representation: Representation,
    *,
    tolerance: ArrayLike | None = None,
    max_iterations: ArrayLike = 100_000,
) -> Evaluation:
    """The law of the return of a policy from each state, in a representation.

    Repeats `step` from `init` until the bound, in the distance of the representation,

        error_bound = (modulus residual + rounding) / (1 - modulus)

    is at most `tolerance`. It bounds the distance to the fixed point of the projected operator; how far that is from
    the law of the return is a matter of the representation. (The rounding is that of atoms: by that of probabilities, a
    quantile may pass to the next atom.) Time grows as S A S N a sweep, as S A K N if sparse. Works under `jit` and
    `vmap`, over models, discounts, policies and supports; differentiable forwards, but not backwards.

    - `model`: dense or sparse, with any form of reward.
    - `policy`: `[S, A]`, rows of sum 1.
    - `representation`: `Categorical(support)`, `Quantile(taus)` or `Averages(weights)`.
    - `tolerance`: in the unit of the distance (of the return, its root for Cramer's); by default 1e-6, or in single
      precision what is attainable, if that is more.

    Raises ValueError for what is no model or no policy; a model that is none gives NaN and `converged=False` where it
    could not be refused.

    Source: Bellemare, Dabney, Rowland 2023, "Distributional Reinforcement Learning", chapter 5.

    >>> from jaxrl.distributional.dynamic_programming import Quantile
    >>> from jaxrl.distributional.quantile import midpoints
    >>> coin = MDP(jnp.full((2, 1, 2), 0.5), jnp.array([[[0.0, 1.0]]] * 2), jnp.float32(0.5), jnp.array([1.0, 0.0]))
    >>> law = evaluate(coin, jnp.ones((2, 1)), Quantile(midpoints(4))).law  # uniform on [0, 2]
    >>> [f"{float(z):.3f}" for z in law.atoms[0]]
    ['0.250', '0.750', '1.250', '1.750']
    """
    validate(model)
    check_policy(model, jnp.asarray(policy))
    return _evaluate(model, policy, representation, tolerance, max_iterations)


@jax.jit
def _evaluate(
    model: Model,
    policy: jax.Array,
    representation: Representation,
    tolerance: jax.Array | None,
    max_iterations: jax.Array,
) -> Evaluation:
    def sweep(law: Law) -> Law:
        return step(model, policy, representation, law)

    return fixed_point(model, sweep, representation, tolerance, max_iterations)


def fixed_point(
    model: Model,
    sweep: Callable[[Law], Law],
    representation: Representation,
    tolerance: ArrayLike | None,
    max_iterations: ArrayLike,
) -> Evaluation:
    """Repeats `sweep`, which shrinks distances by the modulus of the representation, from `init`; see `evaluate`."""
    start = init(model, representation)
    dtype = start.probs.dtype
    known = scale(model)
    known = known._replace(modulus=representation.modulus(known.modulus))

    def advance(law: Law, iterations: jax.Array) -> Evaluation:
        following = sweep(law)
        residual = jnp.max(representation.distance(*jax.lax.stop_gradient((following, law))))
        rho = rounding(known, following.atoms)
        bound = error_bound(known, residual, rho)
        converged = bound <= (attainable(known, rho) if tolerance is None else jnp.asarray(tolerance, dtype))
        return Evaluation(following, residual, bound, iterations + 1, converged)

    def going_on(state: Evaluation) -> jax.Array:
        return ~state.converged & jnp.isfinite(state.error_bound) & (state.iterations < max_iterations)

    first = advance(start, jnp.zeros((), jnp.int32))
    last = jax.lax.while_loop(going_on, lambda state: advance(state.law, state.iterations), first)
    return dataclasses.replace(
        last, law=jax.tree.map(lambda x: jnp.where(jnp.isnan(known.modulus), jnp.nan, x), last.law)
    )
