r"""Running mean and variance of observations, merged batch by batch; and the scale of rewards.

    moments = update(moments, batch)               # count, mean and squared deviations of all that was seen
    network(apply(moments, observation))           # (observation - mean) / std
    state = refresh(config, state, transitions)    # what the loop does, for whatever `state.normaliser` is

Batches are merged by the parallel formula, from deviations about their own mean, so that float32 stands a mean far
larger than the deviation. For n new observations, with a their mean less the running mean and N the sum of both counts,

    mean' = mean + a n / N,    m2' = m2 + m2_new + a^2 count n / N.

Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. (1.5).

Two departures from a plain average, for long runs and for broken simulations:

* A batch never weighs less than 2^-20 of the whole, for float32 would lose smaller additions: in `update` the older
  count is capped at 2^20 times the size of the batch. Beyond that many batches the moments are an exponential average.
* An observation with an element that is not finite, or of magnitude 1e12 and more (sums of squares would overflow), is
  left out as a whole and not counted, so that the moments stay finite whatever comes. `apply` does not hide it.

Rewards are scaled by what they add up to. With G_t the discounted sum of the rewards so far in an episode,

    G_t = r_t + discount G_{t-1},    G = 0 before its first reward,
    r -> r / max( sqrt(var G + 1e-8), max |G| / bound ),

G is spread by about 1 and stays within `bound`, the end of a critic's support. Returns, which add up rewards to come
in the place of those so far, do so nearly: up to a cut, they are at worst 1 + 2 discount times as large. A replay has
rewards as they came; they are scaled where they are used, the older ones too.

Source: Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning". In its released code,
an end (termination or truncation) sets G to 0 before its own reward is added, which then counts for the next episode;
here it does so after. As long as every reward was 0, the code divides by 1e-4; here by 1.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.types import Box, Space, Transition

MEMORY = 2.0**20  # batches
LARGEST = 1e12  # magnitude of an observation's element


@struct.dataclass
class Moments:
    """What is known of the observations so far."""

    count: jax.Array  # observations, [] float
    mean: jax.Array  # [*observation]
    m2: jax.Array  # sum of squared deviations from the mean, [*observation]


@struct.dataclass
class Returns:
    """What is known of the discounted returns G of N environments so far."""

    moments: Moments  # of G after every step
    largest: jax.Array  # of |G|, [] float
    running: jax.Array  # G after the last step, 0 where that was an end, [N]


@struct.dataclass
class Normaliser:
    """The normaliser of an agent that scales its rewards."""

    observations: Moments | None  # if it standardises them too
    returns: Returns


def init(space: Space) -> Moments:
    """Moments of no observation at all, in float32, or float64 where the observations have it.

    Raises ValueError for a Discrete space: integers that name things have no mean.
    """
    if not isinstance(space, Box):
        raise ValueError(
            f"normalise.init expects a Box of observations, got {space}; "
            f"set the agent's normaliser to None, and let the network embed or one-hot encode the integers"
        )
    zeros = jnp.zeros(space.shape, jnp.promote_types(jax.dtypes.canonicalize_dtype(space.dtype), jnp.float32))
    return Moments(jnp.zeros((), zeros.dtype), zeros, zeros)


def update(moments: Moments, batch: jax.Array) -> Moments:
    """Moments of what was seen before and of a batch `[..., *observation]`, with any leading axes.

    Raises ValueError where the last axes of the batch are not those of the moments.

    >>> moments = update(init(Box((2,))), jnp.array([[1.0, 10.0], [3.0, 10.0], [jnp.nan, 0.0]]))
    >>> moments.count, moments.mean, variance(moments)
    (Array(2., dtype=float32), Array([ 2., 10.], dtype=float32), Array([1., 0.], dtype=float32))
    """
    _check("batch", batch, moments)
    batch = jnp.reshape(batch, (-1, *moments.mean.shape)).astype(moments.mean.dtype)
    elements = tuple(range(1, batch.ndim))
    usable = jnp.all(jnp.abs(batch) < LARGEST, axis=elements, keepdims=True)  # False for NaN
    new = _moments(jnp.where(usable, batch, 0), usable.astype(batch.dtype))

    kept = jnp.minimum(moments.count, MEMORY * max(len(batch), 1))
    scale = kept / jnp.maximum(moments.count, 1)
    return merge(Moments(kept, moments.mean, scale * moments.m2), new)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the observations behind either of two disjoint sets, as from two devices."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    difference = b.mean - a.mean
    return Moments(count, a.mean + difference * share, a.m2 + b.m2 + difference**2 * a.count * share)


def variance(moments: Moments) -> jax.Array:
    """Return the population variance of each element, `[*observation]`; 0 before any observation."""
    return moments.m2 / jnp.maximum(moments.count, 1)


def apply(moments: Moments | Normaliser | None, observation: jax.Array, clip: float = 10.0) -> jax.Array:
    """Standardised observation `[..., *observation]`, clipped to `clip` standard deviations, in its float dtype.

    An element that has not varied beyond rounding (8 eps of its size) is centred and not scaled. Without moments
    (None), or before any observation, the result is the observation itself. Raises ValueError where the last axes of
    the observation are not those of the moments.
    """
    if isinstance(moments, Normaliser):
        moments = moments.observations
    if moments is None:
        return observation
    _check("observation", observation, moments)
    observation = jnp.asarray(observation)
    std = jnp.sqrt(variance(moments))
    rounding = 8 * jnp.finfo(std.dtype).eps * (1 + jnp.abs(moments.mean))
    standardised = (observation - moments.mean) / jnp.where(std > rounding, std, 1)
    result = jnp.where(moments.count > 0, jnp.clip(standardised, -clip, clip), observation)
    return result.astype(observation.dtype) if jnp.issubdtype(observation.dtype, jnp.floating) else result


def init_returns(num_envs: int) -> Returns:
    """Returns of N environments before their first step, in the default float type."""
    zero = jnp.zeros(())
    return Returns(Moments(zero, zero, zero), zero, jnp.zeros(num_envs))


def update_returns(returns: Returns, batch: Transition, discount: ArrayLike) -> Returns:
    """Returns after a batch `[T, N]` more, the steps that follow on the last.

    Raises ValueError if the batch is not of so many environments.
    """
    num_envs = returns.running.shape[0]
    if jnp.ndim(batch.reward) != 2 or jnp.shape(batch.reward)[1] != num_envs:
        raise ValueError(
            f"batch.reward has shape {jnp.shape(batch.reward)}, expected (T, {num_envs}): the steps, in order, of the "
            f"{num_envs} environments that normalise.init_returns was given"
        )

    def step(running: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, ended = now
        total = (reward + discount * running).astype(running.dtype)
        return jnp.where(ended, 0, total), total

    running, totals = jax.lax.scan(step, returns.running, (batch.reward, batch.terminated | batch.truncated))
    magnitude = jnp.abs(totals)
    largest = jnp.max(jnp.where(magnitude < LARGEST, magnitude, 0), initial=0)
    return Returns(update(returns.moments, totals), jnp.maximum(returns.largest, largest), running)


def scale(normaliser: Moments | Normaliser | None, rewards: jax.Array, bound: ArrayLike = math.inf) -> jax.Array:
    """Rewards, or sums of them, `[...]`, in units in which G is spread by about 1 and at most `bound`.

        r / max( sqrt(var G + 1e-8), max |G| / bound )

    As they are, if the normaliser knows no returns, or none but 0.
    """
    if not isinstance(normaliser, Normaliser):
        return rewards
    returns = normaliser.returns
    spread = jnp.sqrt(variance(returns.moments) + 1e-8)
    size = jnp.where(returns.largest > 0, jnp.maximum(spread, returns.largest / bound), 1)
    return rewards / size.astype(rewards.dtype)


def refresh(config: Any, state: Any, batch: Transition) -> Any:
    """The agent's state, with what its normaliser learns from a batch `[T, N]` of `config.data.num_envs` environments.

    The loop calls it once for all that it collects, in order and after the update.
    """
    match state.normaliser:
        case None:
            return state
        case Normaliser(observations, returns):
            observations = None if observations is None else update(observations, batch.observation)
            new: Any = Normaliser(observations, update_returns(returns, batch, config.discount))
        case moments:
            new = update(moments, batch.observation)
    return state.replace(normaliser=new)


def _moments(batch: jax.Array, weights: jax.Array) -> Moments:
    """Moments of the rows `[B, *observation]` whose weight is 1 and not 0."""
    count = jnp.sum(weights)
    mean = jnp.sum(weights * batch, axis=0) / jnp.maximum(count, 1)
    return Moments(count, mean, jnp.sum(weights * (batch - mean) ** 2, axis=0))


def _check(name: str, value: jax.Array, moments: Moments) -> None:
    """Raise ValueError unless `value` is `[..., *observation]`."""
    shape, expected = jnp.shape(value), moments.mean.shape
    if len(shape) < len(expected) or shape[len(shape) - len(expected) :] != expected:
        raise ValueError(
            f"{name} has shape {shape}, expected (..., {', '.join(map(str, expected))}), the shape of the observations "
            f"that normalise.init was given; was it made for another environment?"
        )
