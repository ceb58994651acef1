"""One model out of a list, picked by nature for good: bounds from a sequence of ordinary decision problems."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.mdp import MDP, Model, evaluate, policy_iteration


@struct.dataclass
class Incremental:
    """What the search found, and what that proves. Values are means over the first state.

    Fields `[K]` are in the order of the iterations; -1 and NaN where none was needed.

    `lower` and `upper` are differentiable, once, in the leaves of the models but the successors: at the policy and the
    model that attain them, by the implicit function theorem. Where two do, that is one of the subgradients. The other
    fields are constants.
    """

    policy: jax.Array  # [S, A], the best of the policies, by what it attains
    lower: jax.Array  # [], the value of `policy` in the worst of all models
    upper: jax.Array  # [], the least optimal value of a model that was solved
    worst: jax.Array  # [], integer, the worst model for `policy`
    q: jax.Array  # [S, A], the last q
    models: jax.Array  # [K], integers, the models in the order in which they were solved
    promised: jax.Array  # [K], the value of the policy of an iteration, according to its q
    attained: jax.Array  # [K], its value in its worst model
    iterations: jax.Array  # [], integer, how many models were solved
    converged: jax.Array  # [], bool, whether the last promise is kept, up to the tolerance


class _State(NamedTuple):
    model: jax.Array  # [], integer, the one to solve
    found: Incremental
    hardest: jax.Array  # [], integer, of the models that were solved the one with the least optimal value
    going: jax.Array  # [] bool


def iwocs(models: Model, *, first: ArrayLike = 0, tolerance: ArrayLike | None = None) -> Incremental:
    """Incremental worst-case search: a policy for the worst of K models, by solving a few of them.

        q_i = min {optimal q of model j : j = j_0, ..., j_i},    policy_i = greedy in q_i,
        j_{i+1} = argmin_j {value of policy_i in model j},

    until that value is the one that q_i promises, the mean of max_a q_i(s, a) over the first state s; or until the
    worst model is one that was solved before. The bounds hold in any case:

        lower <= max_policy min_j value in model j <= upper.

    If nature may pick anew at each step (`Scenarios`), the robust value is at most that maximum, and at most each
    promise, for q_i is at least the robust q. So where the robust value equals `upper`, both natures do the same harm;
    and where `lower` does, too, `policy` is a best one against one model for good. None of that need come about, since
    the search mixes no models.

    - `models`: K models as one, `[K, ...]`: from `mdp.stack`, or from `jax.vmap` over the parameter of a family.
    - `first`: `[]`, integer, the model to begin with, such as the nominal one.
    - `tolerance`: `[]`, in units of the value; None is max|reward| / (1 - discount) times the root of the precision.

    Raises ValueError if the models are not stacked.

    Source: Zouitine, Geist and Rachelson 2024, "Solving Robust MDPs as a Sequence of Static RL Problems", with each
    step exact. The bounds, and that the best policy of the sequence is returned, are additions.
    """
    name = "transition" if isinstance(models, MDP) else "successors"
    kernel = getattr(models, name)
    if jnp.ndim(kernel) != 4 or jnp.ndim(models.discount) != 1:
        raise ValueError(f"{name} has shape {jnp.shape(kernel)}, expected [K, ...], one of each model: use mdp.stack")
    if tolerance is None:
        size = jnp.max(jnp.abs(models.reward)) / (1 - jnp.max(models.discount))
        tolerance = size * jnp.finfo(jnp.result_type(size, float)).eps ** 0.5
    return _search(models, jnp.asarray(first), jnp.asarray(tolerance, float))


@jax.jit
def _search(models: Model, first: jax.Array, tolerance: jax.Array) -> Incremental:
    given, (models, tolerance) = models, jax.lax.stop_gradient((models, tolerance))
    count, states, actions = jnp.shape(models.reward)[:3]
    dtype = jnp.result_type(models.reward, float)

    def pick(index: jax.Array, of: Model = models) -> Model:
        return jax.tree.map(lambda leaf: leaf[index], of)

    infinite, none = jnp.asarray(jnp.inf, dtype), jnp.full(count, jnp.nan, dtype)

    def step(state: _State) -> _State:
        index, found, hardest, _ = state
        model = pick(index)
        optimum = policy_iteration(model)
        q = jnp.minimum(found.q, optimum.q)
        policy = jax.nn.one_hot(jnp.argmax(q, axis=1), actions, dtype=dtype)
        values = jnp.sum(models.initial * jax.vmap(evaluate, (0, None))(models, policy), axis=1)
        worst = jnp.argmin(values).astype(jnp.int32)
        attained, promised = values[worst], jnp.sum(model.initial * jnp.max(q, axis=1))
        optimal = jnp.sum(model.initial * optimum.value)
        hardest = jnp.where(optimal < found.upper, index, hardest)
        better, i = attained > found.lower, found.iterations
        listed = found.models.at[i].set(index)
        kept = promised - attained <= tolerance
        following = Incremental(
            policy=jnp.where(better, policy, found.policy),
            lower=jnp.where(better, attained, found.lower),
            upper=jnp.minimum(found.upper, optimal),
            worst=jnp.where(better, worst, found.worst),
            q=q,
            models=listed,
            promised=found.promised.at[i].set(promised),
            attained=found.attained.at[i].set(attained),
            iterations=i + 1,
            converged=kept,
        )
        return _State(worst, following, hardest, ~kept & ~jnp.any(listed == worst))

    zero = jnp.zeros((), jnp.int32)
    begin = Incremental(
        policy=jnp.full((states, actions), jnp.nan, dtype),
        lower=-infinite,
        upper=infinite,
        worst=zero - 1,
        q=jnp.full((states, actions), jnp.inf, dtype),
        models=jnp.full(count, -1, jnp.int32),
        promised=none,
        attained=none,
        iterations=zero,
        converged=jnp.array(False),
    )
    state = _State(first.astype(jnp.int32), begin, zero, jnp.array(True))
    state = jax.lax.while_loop(lambda state: state.going, step, state)
    worst, hardest = pick(state.found.worst, given), pick(state.hardest, given)
    return dataclasses.replace(  # the same numbers again, with their slopes
        state.found,
        lower=jnp.sum(worst.initial * evaluate(worst, state.found.policy)),
        upper=jnp.sum(hardest.initial * policy_iteration(hardest).value),
    )
