"""Fisher information of a trajectory, the matrix that a Bayesian policy gradient lives on.

    G = E[u u^T] = E sum_t F(x_t),    F(x) = E_a[grad log mu(a | x) grad log mu(a | x)^T]

The cross terms between steps vanish in expectation, so G is an average over visited states of the action Fisher F(x),
which is known in closed form: `state_analytic`. Where the visits are known too, it is `exact`.

The gain of a Bayesian policy gradient over Monte Carlo comes from knowing G *better than the batch does*. The outer
product of the scores of the same batch, `same_batch`, gains nothing at all: with it the posterior mean is Monte Carlo
times M / (M + noise_variance).

A policy is given by the parameters of its law, `policy(params, observation)` for one observation, and by the law:
`normal`, whose parameters are (mean, log_std), or `categorical`, whose parameters are logits. A law squashed by a fixed
map, as by tanh, has the Fisher of the law inside.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxrl.bayes.regression import full_precision
from jaxrl.bayes.scores import Operator, linearise, without_padding
from jaxrl.mdp.model import MDP
from jaxrl.types import PyTree

Policy = Callable[[PyTree, PyTree], PyTree]  # (params, observation) -> parameters of the law of the action
Law = Callable[[PyTree, PyTree], PyTree]  # (parameters, tangent) -> R tangent, where R^T R is the Fisher of the law


# -------------------------------------------------------------------------------------------- laws


def normal(
    parameters: tuple[ArrayLike, ArrayLike], tangent: tuple[ArrayLike, ArrayLike]
) -> tuple[jax.Array, jax.Array]:
    """Independent normals with parameters (mean, log_std), each `[..., A]`: `R = diag(1 / std, sqrt 2)`."""
    _, log_std = jnp.broadcast_arrays(*parameters)
    mean_tangent, log_std_tangent = jnp.broadcast_arrays(*tangent)
    return jnp.exp(-log_std) * mean_tangent, jnp.sqrt(2.0).astype(log_std.dtype) * log_std_tangent


def categorical(logits: ArrayLike, tangent: ArrayLike) -> jax.Array:
    """The law over 0, ..., A - 1 with logits `[..., A]`: `R = diag(sqrt p) (I - 1 p^T)`."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    mean = jnp.sum(jnp.exp(log_probs) * tangent, axis=-1, keepdims=True)
    return jnp.exp(log_probs / 2) * (tangent - mean)


# ---------------------------------------------------------------------------------------- matrices


def state_analytic(
    law: Law,
    policy: Policy,
    params: PyTree,
    observations: PyTree,
    mask: ArrayLike | None = None,
    *,
    discount: ArrayLike = 1.0,
) -> jax.Array:
    """The Fisher information of M trajectories from the states that they visit, `[n, n]`.

        G = (1/M) sum_i sum_t mask[t, i] discount^t F(x_ti)

    Unbiased, and without the noise of the actions. Leave `discount` at 1 for scores of whole trajectories; a policy
    gradient over the discounted occupancy, as in Bayesian actor-critic, needs its own discount here.

    - `law`: `normal`, `categorical`, or another `(parameters, tangent) -> R tangent` with R^T R its Fisher.
    - `policy`: (params, observation) -> parameters of the law, for one observation.
    - `observations`: leaves `[T, M, ...]`.
    - `mask`: `[T, M]`, None: no padding; M counts the trajectories with a real step.

    Raises ValueError for leaves that do not share their first two axes, and a mask of another shape.

    Source: Bagnell and Schneider 2003, "Covariant Policy Search": the metric of path distributions is such an average.

    >>> policy = lambda params, x: (params[:1] * x, params[1:])  # mean theta_0 x, log_std theta_1
    >>> print(state_analytic(normal, policy, jnp.zeros(2), jnp.array([1.0, 3.0]).reshape(1, 2, 1)).round(3))
    [[5. 0.]
     [0. 2.]]
    """
    observations, mask = without_padding(observations, mask)
    weights = _visits(mask, discount)
    states = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), observations)
    return exact(law, policy, params, states, weights.ravel())


@full_precision
def exact(law: Law, policy: Policy, params: PyTree, observations: PyTree, visits: ArrayLike) -> jax.Array:
    """The Fisher information where the expected visits to each state are known, `[n, n]`.

        G = sum_x visits(x) F(x)

    - `observations`: leaves `[S, ...]`, one of each state.
    - `visits`: `[S]`, from `expected_visits`, or the weights of a quadrature rule. 0 where no action is taken.

    Raises ValueError unless each state has its number of visits.
    """
    theta, unravel = ravel_pytree(params)
    states = jax.tree.leaves(observations)[0].shape[:1]
    if jnp.shape(visits) != states:
        raise ValueError(f"visits has shape {jnp.shape(visits)}, expected {states}, a number for each observation")

    def rows(observation: PyTree) -> jax.Array:  # R J, [k, n]
        parameters = policy(params, observation)
        return jax.jacrev(lambda t: ravel_pytree(law(parameters, policy(unravel(t), observation)))[0])(theta)

    roots = jax.vmap(rows)(observations)
    return jnp.einsum("skn,s,skm->nm", roots, jnp.asarray(visits, theta.dtype), roots)


@full_precision
def expected_visits(model: MDP, probs: ArrayLike, discount: ArrayLike = 1.0, horizon: int | None = None) -> jax.Array:
    """How often a policy visits each state of a model, `[S]`.

        visits(s) = sum_{t < horizon} discount^t Pr(x_t = s)

    Not normalised: it sums to `horizon` without a discount, to 1 / (1 - discount) without a horizon. An episode that
    ends is a model that stays in a last state, whose visits you set to 0.

    - `probs`: `[S, A]`, the policy.
    - `discount`: per step; below 1 where `horizon` is None, and the sum infinite.
    - `horizon`: the number of steps.

    Raises ValueError for an infinite sum.
    """
    if horizon is None and isinstance(discount, (int, float)) and discount >= 1:
        raise ValueError(f"expected visits are infinite for discount = {discount} without a horizon; pass either")
    kernel = jnp.einsum("sa,sat->st", jnp.asarray(probs), jnp.asarray(model.transition))
    initial = jnp.asarray(model.initial, kernel.dtype)
    if horizon is None:
        return jnp.linalg.solve(jnp.eye(len(initial), dtype=kernel.dtype) - discount * kernel.T, initial)

    def step(law: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(discount, law.dtype) * (law @ kernel), law

    return jnp.sum(jax.lax.scan(step, initial, length=horizon)[1], axis=0)


def running(average: jax.Array, fisher: jax.Array, rate: ArrayLike) -> jax.Array:
    """A running average over batches, `average + rate (fisher - average)`, `[n, n]`.

    `rate = 1 / k` at the k-th batch is the mean of k batches; a constant rate forgets, as a policy that moves asks for.
    Of outer products (`same_batch`), its gain is only that of the earlier batches.

    Source: Ghavamzadeh, Engel and Valko 2016, "Bayesian Policy Gradient and Actor-Critic Algorithms", section 4.
    """
    return average + rate * (fisher - average)


@full_precision
def same_batch(scores: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """The outer product of the scores of a batch, `(1/M) sum_i u_i u_i^T`, `[n, n]`: for comparison only.

    Used for the very batch it comes from, it makes the Bayesian policy gradient a no-op:

        mean = M / (M + noise_variance) (1/M) sum_i R_i u_i,

    Monte Carlo but shorter, whatever the returns. Use `state_analytic`. Singular where M < n.

    - `scores`: `[M, n]`.
    - `mask`: `[M]`, None: no padding.
    """
    scores = jnp.asarray(scores)
    real = jnp.ones(scores.shape[:1], bool) if mask is None else jnp.asarray(mask).astype(bool)
    scores = jnp.where(real[:, None], scores, 0)
    return scores.T @ scores / jnp.maximum(jnp.sum(real), 1)


def damped(fisher: jax.Array, damping: ArrayLike) -> jax.Array:
    """`G + damping I`: part of the model from then on, in the prior as in the natural gradient."""
    return fisher + jnp.asarray(damping, fisher.dtype) * jnp.eye(len(fisher), dtype=fisher.dtype)


# --------------------------------------------------------------------------------------- operators


@full_precision
def root(
    law: Law,
    policy: Policy,
    params: PyTree,
    observations: PyTree,
    mask: ArrayLike | None = None,
    *,
    discount: ArrayLike = 1.0,
) -> Operator:
    """A root A of the state-analytic Fisher information, `G = A^T A`, as an `Operator`.

    It has one row for each visited state and parameter of the law: products with G cost one forward and one backward
    pass of the network, and `A^T epsilon` with standard normal epsilon has the covariance G. Arguments and errors as
    in `state_analytic`.
    """
    observations, mask = without_padding(observations, mask)
    scale = jnp.sqrt(_visits(mask, discount))
    laws = jax.vmap(jax.vmap(policy, (None, 0)), (None, 0))
    parameters = laws(params, observations)

    def whitened(params: PyTree) -> PyTree:
        rows = jax.vmap(jax.vmap(law))(parameters, laws(params, observations))
        return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype)[..., *[None] * (leaf.ndim - 2)], rows)

    return linearise(whitened, params)


def product(root: Operator, damping: ArrayLike = 0.0) -> Callable[[PyTree], PyTree]:
    """The product `v -> A^T A v + damping v` of a root, on pytrees like the parameters."""

    def multiply(v: PyTree) -> PyTree:
        return jax.tree.map(lambda g, leaf: g + jnp.asarray(damping, g.dtype) * leaf, root.rmatvec(root.matvec(v)), v)

    return multiply


def _visits(mask: jax.Array, discount: ArrayLike) -> jax.Array:
    """The weight of each visited state, `mask[t, i] discount^t / M`, `[T, M]`."""
    dtype = jnp.result_type(discount, float)
    powers = jnp.asarray(discount, dtype) ** jnp.arange(mask.shape[0])
    count = jnp.maximum(jnp.sum(jnp.any(mask, axis=0)), 1)
    return jnp.where(mask, powers[:, None], 0) / count
