r"""Randomising parameters: independent Beta laws on the unit box, and how far they may widen.

A law of parameters is widened as long as episodes succeed: among the laws near the one in use, the one of most entropy
under which enough episodes are expected to succeed,

    max_new H(new)   such that   E_new[success] >= level   and   KL(new || old) <= trust_region.

Nothing here is a difference of large numbers, so float32 is enough. A Beta law is an exponential family, with the
log-normaliser A = log B(a, b), the statistics (log x, log(1 - x)) and the Fisher information F, the Hessian of A. Along
the line from the old (a, b) to the new, with delta = new - old,

    A(new) - A(old)  = int_0^1 grad A . delta dt
    KL(new || old)   = int_0^1 t delta^T F delta dt
    H(new) - H(old)  = - int_0^1 (a - 1, b - 1)^T F delta dt,

which Gauss and Legendre's rule gives to float precision for laws that are near, as they are in a trust region.

Source: Tiboni et al. 2024, "Domain Randomization via Entropy Maximization", eqs. (3) to (6), and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import betaln, digamma, polygamma

from jaxrl.types import check_between

NODES, WEIGHTS = (np.array([[1.0], [0.0]]) + np.polynomial.legendre.leggauss(24)) / 2  # on [0, 1]
LOWEST = 0.8  # of a and b: below 1 the density has poles at both ends of the box
ITERATIONS = 25  # of Newton's method, for each of the two problems


@struct.dataclass
class Beta:
    """Independent Beta laws, one for each of d parameters in [0, 1]."""

    a: jax.Array  # [d]
    b: jax.Array  # [d]


UNIFORM = Beta(1.0, 1.0)  # type: ignore[arg-type]


@struct.dataclass
class Widening:
    """How a law of parameters widens. Floats are traced."""

    success_return: float | jax.Array = 0.0  # an episode succeeds if its return is at least this, a number of your task
    success_rate: float | jax.Array = 0.5  # alpha: share of episodes that have to succeed, in [0, 1]
    trust_region: float | jax.Array = 0.05  # epsilon, nats: how far a step may go; 0.001 to 0.1 in the paper
    concentration: float | jax.Array = 100.0  # a and b of the law at the beginning, at the centre of the box; > 1

    def __post_init__(self) -> None:
        check_between("Widening", 0, 1, success_rate=self.success_rate)
        check_between("Widening", 0, math.inf, trust_region=self.trust_region)
        check_between("Widening", 1, math.inf, concentration=self.concentration)


@struct.dataclass
class Step:
    """What a step of `widen` came to; each []."""

    success_rate: jax.Array  # of the episodes, under the law that they were drawn from
    expected_rate: jax.Array  # as it is expected under the new law, from the same episodes
    divergence: jax.Array  # KL(new || old), nats
    feasible: jax.Array  # bool: some law in the trust region is expected to succeed often enough


# ----------------------------------------------------------------------------------------- the laws


def centred(size: int, concentration: float | jax.Array) -> Beta:
    """`size` laws with a = b = concentration; concentration 1 is uniform."""
    ones = jnp.ones(size)
    return Beta(concentration * ones, concentration * ones)


def sample(law: Beta, key: jax.Array, count: int) -> jax.Array:
    """Draw `count` points of the open unit box, [count, d]."""
    return _inside(jax.random.beta(key, law.a, law.b, (count, *law.a.shape)))


def entropy(law: Beta) -> jax.Array:
    """The entropy H, nats, []: at most 0, which is that of the uniform law.

        H = A(a, b) - (a - 1) psi(a) - (b - 1) psi(b) + (a + b - 2) psi(a + b),    summed over parameters

    >>> round(float(entropy(centred(1, 2.0))), 3)
    -0.125
    """
    a, b = law.a, law.b
    terms = (a - 1) * (digamma(a) - digamma(a + b)) + (b - 1) * (digamma(b) - digamma(a + b))
    return jnp.sum(betaln(a, b) - terms)


@jax.custom_jvp
def divergence(new: Beta, old: Beta) -> jax.Array:
    """KL(new || old), nats, []; exact for laws that are near, and to 0.3 % between concentrations 1 and 100."""
    return _along(old, new, lambda at, t, delta: t * _fisher(at, delta, delta))


@divergence.defjvp
def _(laws: tuple[Beta, Beta], tangents: tuple[Beta, Beta]) -> tuple[jax.Array, jax.Array]:
    (new, old), (to_new, to_old) = laws, tangents
    slope = _fisher(new, _minus(new, old), to_new) + _mean(old, to_old) - _mean(new, to_old)
    return divergence(new, old), jnp.sum(slope)


@jax.custom_jvp
def entropy_gain(new: Beta, old: Beta) -> jax.Array:
    """H(new) - H(old), nats, [], where the difference of two entropies would be lost in rounding."""
    return _along(old, new, lambda at, _, delta: -_fisher(at, _minus(at, UNIFORM), delta))


@entropy_gain.defjvp
def _(laws: tuple[Beta, Beta], tangents: tuple[Beta, Beta]) -> tuple[jax.Array, jax.Array]:
    (new, old), (to_new, to_old) = laws, tangents
    slope = _fisher(old, _minus(old, UNIFORM), to_old) - _fisher(new, _minus(new, UNIFORM), to_new)
    return entropy_gain(new, old), jnp.sum(slope)


@jax.custom_jvp
def normaliser_gain(new: Beta, old: Beta) -> jax.Array:
    """A(new) - A(old), []."""
    return _along(old, new, lambda at, _, delta: _mean(at, delta))


@normaliser_gain.defjvp
def _(laws: tuple[Beta, Beta], tangents: tuple[Beta, Beta]) -> tuple[jax.Array, jax.Array]:
    (new, old), (to_new, to_old) = laws, tangents
    return normaliser_gain(new, old), jnp.sum(_mean(new, to_new) - _mean(old, to_old))


def log_ratio(new: Beta, old: Beta, points: jax.Array) -> jax.Array:
    """The log of the ratio of densities, new to old, [...], at points [..., d] of the unit box."""
    points, delta = _inside(points), _minus(new, old)
    exponents = delta.a * jnp.log(points) + delta.b * jnp.log1p(-points)
    return jnp.sum(exponents, axis=-1) - normaliser_gain(new, old)


def _along(old: Beta, new: Beta, slope: Callable[[Beta, jax.Array, Beta], jax.Array]) -> jax.Array:
    """The integral of `slope(law, t, delta)`, [d], along the line from `old` to `new`, summed over parameters."""
    delta = _minus(new, old)
    nodes, weights = jnp.asarray(NODES, old.a.dtype), jnp.asarray(WEIGHTS, old.a.dtype)
    slopes = jax.vmap(lambda t: slope(Beta(old.a + t * delta.a, old.b + t * delta.b), t, delta))(nodes)
    return jnp.sum(weights @ slopes)


def _minus(new: Beta, old: Beta) -> Beta:
    return Beta(new.a - old.a, new.b - old.b)


def _fisher(law: Beta, left: Beta, right: Beta) -> jax.Array:
    """left^T F right, [d]."""
    common = polygamma(1, law.a + law.b)
    both = polygamma(1, law.a) * left.a * right.a + polygamma(1, law.b) * left.b * right.b
    return both - common * (left.a + left.b) * (right.a + right.b)


def _mean(law: Beta, delta: Beta) -> jax.Array:
    """E[log x] delta_a + E[log(1 - x)] delta_b = grad A . delta, [d]."""
    total = digamma(law.a + law.b)
    return (digamma(law.a) - total) * delta.a + (digamma(law.b) - total) * delta.b


def _inside(points: jax.Array) -> jax.Array:
    """The points, off the faces of the box, where a density may be 0 or infinite."""
    return jnp.clip(points, 1e-6, 1 - 1e-6)


# ----------------------------------------------------------------------------------- how they widen


def widen(law: Beta, points: jax.Array, success: jax.Array, widening: Widening) -> tuple[Beta, Step]:
    """The law of most entropy within the trust region under which enough episodes are expected to succeed.

        max_new H(new)   such that   mean_i r_i success_i >= success_rate   and   KL(new || law) <= trust_region,
        r_i = new(x_i) / law(x_i)

    If the law itself does not succeed often enough, the search begins at the law of largest success within the trust
    region; if that one does not either, it is the result.

    - `points`: [n, d], one for each episode, drawn from `law`.
    - `success`: [n], 0 or 1.

    Both problems are solved by Newton's method on a logarithmic barrier, over the logits of a and b between 0.8 and 1.1
    times the initial concentration: a fixed number of iterations, each with the best of several step sizes, so that
    neither constraint is ever violated.
    """
    if points.shape != (*success.shape, *law.a.shape) or success.ndim != 1:
        raise ValueError(
            f"points has shape {points.shape} and success {success.shape}, expected [n, d] and [n] for a law of d = "
            f"{law.a.size} parameters: one point and one success for each episode"
        )
    success = success.astype(law.a.dtype)
    highest = 1.1 * widening.concentration
    rate = jnp.mean(success)

    def place(free: jax.Array) -> Beta:
        return Beta(*(LOWEST + (highest - LOWEST) * jax.nn.sigmoid(free)))

    def expected_rate(new: Beta) -> jax.Array:
        return jnp.mean(jnp.exp(log_ratio(new, law, points)) * success)

    def barrier(free: jax.Array, weight: jax.Array, widens: jax.Array) -> jax.Array:
        new = place(free)
        room = _log(1 - divergence(new, law) / widening.trust_region)
        reached = expected_rate(new)
        wider = entropy_gain(new, law) + weight * (room + _log(reached - widening.success_rate))
        return jnp.where(widens, wider, reached + weight * room)

    def iterate(free: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        weight, widens, first = now
        start = jnp.where(first & (rate > widening.success_rate), here, free)  # no need to look for a better one
        climbed = _newton(lambda free: barrier(free, weight, widens), start)
        return jnp.where(widens & (expected_rate(place(start)) <= widening.success_rate), free, climbed), free

    share = jnp.clip((jnp.stack([law.a, law.b]) - LOWEST) / (highest - LOWEST), 1e-4, 1 - 1e-3)
    here = jnp.log(share) - jnp.log1p(-share)
    weights = jnp.sqrt(widening.trust_region) * jnp.geomspace(0.3, 1e-3, ITERATIONS)
    turn = jnp.arange(2 * ITERATIONS)
    turns = jnp.tile(weights, 2).astype(law.a.dtype), turn >= ITERATIONS, turn == ITERATIONS
    free, _ = jax.lax.scan(iterate, here, turns)
    new = _select(jnp.asarray(widening.trust_region) > 0, place(free), law)
    reached = expected_rate(new)
    return new, Step(rate, reached, divergence(new, law), reached > widening.success_rate)


def _newton(value: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    """One step of Newton's method up a hill that may be bent either way, as long as is best of several lengths."""
    slope, curvature = jax.grad(value)(start).ravel(), jax.hessian(value)(start).reshape(start.size, start.size)
    usable = jnp.all(jnp.isfinite(curvature)) & jnp.all(jnp.isfinite(slope))
    bends, axes = jnp.linalg.eigh(jnp.where(usable, curvature, jnp.eye(start.size, dtype=start.dtype)))
    bends = jnp.maximum(jnp.abs(bends), 1e-5 * jnp.max(jnp.abs(bends)) + jnp.finfo(start.dtype).tiny)
    step = jnp.clip(axes @ ((axes.T @ jnp.where(usable, slope, 0)) / bends), -2, 2).reshape(start.shape)
    lengths = jnp.append(2.0 ** jnp.arange(2, -14, -1), 0).astype(start.dtype)
    trials = start + lengths[:, None, None] * step
    heights = jax.vmap(value)(trials)
    return trials[jnp.argmax(jnp.where(jnp.isfinite(heights), heights, -jnp.inf))]


def _log(x: jax.Array) -> jax.Array:
    """The logarithm, minus infinity where it has none, with finite slopes."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


def _select(condition: jax.Array, true: Beta, false: Beta) -> Beta:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), true, false)
