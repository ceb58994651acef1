"""Sets with one budget for all actions of a state, and the worst laws in them.

Nature gives each action a share of the budget, and the agent, who knows the set and not the laws, mixes actions:

    max_policy min {sum_a policy_a p_a . z_a : sum_a d(p_a, p0_a) <= radius}
        = min {max_a f_a(k_a) : sum_a k_a <= radius},

where f_a(k), convex and falling, is the worst case of action a alone with the budget k. So at the value t each action
that nature cares about has the budget g_a(t), the inverse of f_a, and the budgets sum to the radius. That sum is convex
in t, as each g_a is, so Newton's method from below never passes the solution: on t, and for each t on the budgets. The
agent is indifferent between these actions, and mixes them so that nature is: policy_a ~ -1 / f_a'(k_a). For a policy
that is given, see `jaxrl.robust.allocation`.

Source: Wiesemann, Kuhn and Rustem 2013, "Robust Markov Decision Processes"; Ho, Petrik and Wiesemann 2021, "Partial
Policy Iteration for L1-Robust Markov Decision Processes", Section 4, whose bisection this follows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.mdp.checks import check_laws
from jaxrl.risk import laws
from jaxrl.robust.allocation import allocate
from jaxrl.robust.base import Support, known
from jaxrl.robust.worst import worst_case

STEPS = 64  # of Newton's method at most; some four are taken


@laws.pytree
class SRectangular:
    """One budget for all actions of a state: the sum over actions of the distances is at most the radius of `set`.

    - `set`: any with a radius, such as `L1(0.5)`; a number, or `[S]`. For `SignedLp` of order q the budget is on the
      joint norm of all actions, `(sum_a |p_a - p0_a|_q^q)^(1/q) <= radius`, as in its sources.

    For `solve`, `evaluate` and `average`, as any other set. The best policy is a random one as a rule: it keeps nature
    from spending all on one action. If nature is optimistic, the two agree, and one action gets the whole budget.

    >>> from jaxrl.robust import L1
    >>> nominal, values = jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> value, policy, probs = worst_case_state(SRectangular(L1(0.3, support="all")), nominal, values)
    >>> with jnp.printoptions(precision=3):
    ...     print(f"{value:.3f}", policy, *probs)
    0.900 [0.333 0.667] [0.45 0.55] [0.1 0.9]
    """

    set: Any

    def __post_init__(self) -> None:
        if not hasattr(self.set, "radius"):
            raise ValueError(
                f"SRectangular.set must be a set with a radius, which the actions of a state share, such as L1(0.5); "
                f"got {self.set!r}"
            )

    @property
    def support(self) -> Support:
        return self.set.support

    @property
    def optimistic(self) -> bool:
        return self.set.optimistic


def worst_case_state(
    set: SRectangular, nominal: ArrayLike, values: ArrayLike, policy: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The value of a state whose actions share a budget, a best policy, and the worst laws.

        max_policy min {sum_a policy_a p_a . z_a : sum_a d(p_a, p0_a) <= radius}

    - `set`: its radius is a number, or has the leading axes.
    - `nominal`: p0, `[..., A, n]`.
    - `values`: z, `[..., A, n]`, with the rewards of the actions in them.
    - `policy`: `[..., A]`, to have its value and the laws that are the worst for it; None for a best one.

    Returns the value `[...]`, the policy `[..., A]` and p `[..., A, n]`. With a best policy they are a saddle point:
    neither the agent nor nature can do better on its own, up to rounding. Policies that attain the value are not
    unique, and mostly random.

    The value has derivatives, of the first order only, in all arguments (Danskin's theorem); the laws and a best policy
    are constants to differentiation. At kinks it is one of the subgradients.

    ValueError if `set` is no `SRectangular`, the shapes do not fit, or `policy` has no laws. In a trace, a negative
    radius gives NaN.

    Source: Ho, Petrik and Wiesemann 2021 (`L1`); Behzadian, Petrik and Ho 2021, "Fast Algorithms for
    L-infinity-Constrained S-Rectangular Robust MDPs"; Derman, Geist and Mannor 2021, "Twice Regularized MDPs and the
    Equivalence between Robustness and Regularization", and Kumar et al. 2023, "Policy Gradient for Rectangular Robust
    Markov Decision Processes" (`SignedLp`).
    """
    nominal, values = _check(set, nominal, values)
    ball = jax.tree.map(lambda leaf: jnp.asarray(leaf, values.dtype), set.set)
    shape = jnp.shape(ball.radius)
    if len(shape) > nominal.ndim - 2:
        raise ValueError(
            f"radius has shape {shape}, expected a number or the leading axes of nominal, {nominal.shape[:-2]}: the "
            f"actions of a state share it"
        )
    if policy is not None:
        return _of_policy(ball, nominal, values, _check_policy(policy, nominal))
    return _best_case(ball, nominal, values) if ball.optimistic else _worst_case(ball, nominal, values)


class Shares(NamedTuple):
    """How nature divides its budget, and how the agent answers."""

    budgets: jax.Array  # k, [..., A]
    policy: jax.Array  # [..., A]
    price: jax.Array  # [...], what a unit of budget takes from the value


class Spending(NamedTuple):
    """The budgets at which all actions are worth t."""

    budgets: jax.Array  # [..., A]
    cost: jax.Array  # [..., 1], of them all
    weights: jax.Array  # [..., A], the slopes of the cost in t
    short: jax.Array  # [..., 1], how far t is too small


@jax.jit
def _worst_case(ball: Any, nominal: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    shares = _divide(*jax.lax.stop_gradient((ball, nominal, values)))
    worst, probs = worst_case(_with(ball, shares.budgets), nominal, values)
    return jnp.sum(shares.policy * worst, axis=-1) - shares.price * _more(ball), shares.policy, probs


@jax.jit
def _of_policy(
    ball: Any, nominal: jax.Array, values: jax.Array, policy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    sign = -1 if ball.optimistic else 1
    ball = dataclasses.replace(ball, optimistic=False)
    budgets, price = _answer(*jax.lax.stop_gradient((ball, nominal, sign * values, policy)))
    worst, probs = worst_case(_with(ball, budgets), nominal, sign * values)
    return sign * (jnp.sum(policy * worst, axis=-1) - price * _more(ball)), policy, probs


@jax.jit
def _best_case(ball: Any, nominal: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    radius = jnp.broadcast_to(ball.radius[..., None], nominal.shape[:-1])
    q, probs = worst_case(_with(ball, radius), nominal, values)
    policy = jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1], dtype=q.dtype)
    return jnp.sum(policy * q, axis=-1), policy, jnp.where(policy[..., None] > 0, probs, nominal)


def _answer(ball: Any, nominal: jax.Array, values: jax.Array, policy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The budgets that harm a policy most, and the price of a unit of the radius."""
    y, size = _unit(ball, nominal, values)
    order, radius, curve = getattr(ball, "order", 1), _radius(ball, y), functools.partial(_curve, ball, nominal, y)
    if order == 1:
        budgets, price = allocate(curve, policy, radius, _tolerance(y))
        return budgets, price * size[..., 0]
    slope = policy * curve(jnp.broadcast_to(radius, policy.shape))[1]  # of signed measures, at any budget
    if order == math.inf:
        return jnp.broadcast_to(radius, slope.shape), jnp.sum(slope * size, axis=-1)
    price = jnp.sqrt(jnp.sum(slope**2, axis=-1, keepdims=True))
    return radius * slope / jnp.where(price > 0, price, 1), (price * size)[..., 0]


def _divide(ball: Any, nominal: jax.Array, values: jax.Array) -> Shares:
    """The budgets that leave the agent no better action than another, by Newton's method from below."""
    y, size = _unit(ball, nominal, values)
    order, radius, tolerance = getattr(ball, "order", 1), _radius(ball, y), _tolerance(y)
    whole, curve = jnp.broadcast_to(radius, y.shape[:-1]), functools.partial(_curve, ball, nominal, y)
    (free, least), (_, slope) = jax.vmap(curve)(jnp.stack([jnp.zeros_like(whole), whole]))
    best = jax.nn.one_hot(jnp.argmax(least, axis=-1), least.shape[-1], dtype=least.dtype)
    alone = Shares(whole, best, (size * jnp.sum(best * slope, axis=-1, keepdims=True))[..., 0])
    if order == math.inf:  # a joint budget is one for each
        return alone

    def spend(t: jax.Array, start: jax.Array) -> tuple[Spending, jax.Array]:
        budgets, slope = _inverse(curve, t, start, free > t + tolerance, tolerance)
        cost = jnp.sum(budgets**order, axis=-1, keepdims=True) ** (1 / order)
        weights = jnp.where(budgets > 0, (budgets / jnp.where(cost > 0, cost, 1)) ** (order - 1) / slope, 0)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        return Spending(budgets, cost, weights, (cost - radius) / jnp.where(total > 0, total, 1)), slope

    def raise_value(state: tuple) -> tuple:
        count, t, start, enough, _ = state
        spent, slope = spend(t, start)
        rise = jnp.where(spent.short > tolerance, spent.short, 0)
        enough = jnp.where(count == 0, spent.cost <= radius, enough)
        return count + 1, t + rise, spent.budgets - rise / slope, enough, spent

    def going(state: tuple) -> jax.Array:
        return (state[0] < STEPS) & jnp.any(state[-1].short > tolerance)

    t = jnp.max(least, axis=-1, keepdims=True) + 2 * tolerance  # above it all, no budget is without effect
    start = whole + (least - t) / jnp.where(slope > 0, slope, tolerance)
    # enough: one action holds the value against the whole budget, and the rest is cheap
    first = 0, t, start, jnp.zeros_like(t, bool), Spending(whole, t, whole, jnp.full_like(t, jnp.inf))
    _, _, _, enough, spent = jax.lax.while_loop(going, raise_value, first)
    budgets, cost, weights, _ = spent
    left = (radius - cost) / y.shape[-2] ** (1 / order)
    budgets = jnp.where(left > 0, budgets + left, budgets * (radius / jnp.where(cost > 0, cost, 1)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    some = total > 0
    mixed = Shares(budgets, weights / jnp.where(some, total, 1), (size / jnp.where(some, total, 1))[..., 0])
    return Shares(
        budgets=budgets,
        policy=jnp.where(enough, alone.policy, mixed.policy),
        price=jnp.where(enough[..., 0], alone.price, mixed.price),
    )


def _inverse(
    curve: Any, t: jax.Array, start: jax.Array, needed: jax.Array, tolerance: float
) -> tuple[jax.Array, jax.Array]:
    """The budgets k with f(k) = t, 0 where none is `needed`, and -f'(k), each `[..., A]`.

    Newton's method: f is convex, so all but the first step come from the side where f is above t.
    """
    tiny = jnp.finfo(t.dtype).tiny ** 0.25
    begin = jnp.where(needed, jnp.maximum(start, tiny), 0)

    def step(state: tuple) -> tuple:
        count, k, slope, done = state
        height, steep = curve(k)
        moved = jnp.where(steep > 0, k + (height - t) / jnp.where(steep > 0, steep, 1), k / 2)
        moved = jnp.maximum(moved, k / 1024)
        there = jnp.abs(height - t) <= tolerance
        there |= jnp.abs(moved - k) <= 2 * jnp.finfo(k.dtype).eps * k
        slope = jnp.where(done | (steep <= 0), slope, steep)
        return count + 1, jnp.where(done | (there & (steep <= 0)), k, moved), slope, done | there

    def going(state: tuple) -> jax.Array:
        return (state[0] < STEPS) & ~jnp.all(state[-1])

    state = jax.lax.while_loop(going, step, (0, begin, jnp.ones_like(begin), ~needed))
    return state[1], state[2]


def _unit(ball: Any, nominal: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values in units of their range where mass may be, `[..., A, n]`, and that range, `[..., 1]`."""
    allowed = (nominal > 0) | (ball.support == "all")
    low = jnp.min(jnp.where(allowed, values, jnp.inf), axis=(-2, -1), keepdims=True)
    size = jnp.max(jnp.where(allowed, values, -jnp.inf), axis=(-2, -1), keepdims=True) - low
    size = jnp.where(size > 0, size, 1)
    return jnp.clip((values - low) / size, 0, 1), size[..., 0]


def _curve(ball: Any, nominal: jax.Array, y: jax.Array, budgets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The worst cases f(k), and -f'(k), each `[..., A]`."""
    worst, slope = jax.jvp(lambda k: worst_case(_with(ball, k), nominal, y)[0], (budgets,), (jnp.ones_like(budgets),))
    return worst, -slope


def _radius(ball: Any, y: jax.Array) -> jax.Array:
    """The radius of each state, `[..., 1]`."""
    return jnp.broadcast_to(ball.radius, y.shape[:-2])[..., None]


def _tolerance(y: jax.Array) -> float:
    """What rounding leaves of f, in units of the range of the values."""
    return (8 + y.shape[-1] ** 0.5) * float(jnp.finfo(y.dtype).eps)


def _more(ball: Any) -> jax.Array:
    """0, with the slope of the radius."""
    return ball.radius - jax.lax.stop_gradient(ball.radius)


def _with(ball: Any, radius: jax.Array) -> Any:
    return dataclasses.replace(ball, radius=radius)


def _check(set: Any, nominal: ArrayLike, values: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both as arrays of their common float type and shape."""
    if not isinstance(set, SRectangular):
        raise ValueError(f"set is {set!r}, expected an SRectangular, such as SRectangular(L1(0.5))")
    dtype = jnp.result_type(nominal, values, float)
    nominal, values = jnp.asarray(nominal, dtype), jnp.asarray(values, dtype)
    if min(nominal.ndim, values.ndim) < 2 or nominal.shape[-2:] != values.shape[-2:] or 0 in nominal.shape[-2:]:
        raise ValueError(
            f"nominal has shape {nominal.shape} and values {values.shape}, expected both [..., A, n]: for each action "
            f"the probabilities of the states, and what they are worth"
        )
    nominal, values = jnp.broadcast_arrays(nominal, values)
    return nominal, values


def _check_policy(policy: ArrayLike, nominal: jax.Array) -> jax.Array:
    """The policy, `[..., A]`, in the type of the law; ValueError unless it has a law for each state."""
    policy = jnp.asarray(policy, nominal.dtype)
    if policy.shape[-1:] != nominal.shape[-2:-1] or policy.ndim > nominal.ndim - 1:
        raise ValueError(f"policy has shape {policy.shape}, expected [..., A] = {nominal.shape[:-1]}")
    if known(policy) is not None:
        check_laws("policy", policy, (*(f"axis {i}:" for i in range(policy.ndim - 1)), "action"))
    return jnp.broadcast_to(policy, nominal.shape[:-1])
