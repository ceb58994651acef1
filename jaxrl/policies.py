"""Action distributions: distrax, behind the few functions that agents need.

Every distribution here has `sample(seed=key)`, `sample_and_log_prob(seed=key)`, `log_prob(action)`, `mode()` and
(where it is known in closed form) `entropy()`; batch axes lead, the action's axis is the event.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import networks
from jaxrl.types import Box, Discrete, Space


class Distribution(Protocol):
    """What agents ask of the distribution of an action."""

    def sample(self, *, seed: jax.Array) -> jax.Array: ...

    def sample_and_log_prob(self, *, seed: jax.Array) -> tuple[jax.Array, jax.Array]: ...

    def log_prob(self, value: jax.Array) -> jax.Array: ...

    def mode(self) -> jax.Array: ...

    def entropy(self) -> jax.Array: ...


def categorical(logits: jax.Array) -> Distribution:
    """The law over 0, ..., n - 1 with unnormalised log-probabilities `logits` [..., n]."""
    return _distrax().Categorical(logits=logits, dtype=jnp.int32)


def normal(mean: jax.Array, log_std: jax.Array, box: Box) -> Distribution:
    r"""Independent normals, in units of the box: `a = centre + scale * (mean + exp(log_std) * epsilon)`.

    `mean` [..., A]; `log_std` broadcasts to it. `centre` and `scale` are the middle and half the width of a bounded
    axis, 0 and 1 of an unbounded one. Samples may leave the box: the rollout gives the environment the nearest action
    inside, the agent keeps the one whose density it knows.

    Raises ValueError for a box that is not a vector, or a `mean` of another size.
    """
    distrax = _distrax()
    centre, scale = _units(mean, box)
    log_std = jnp.broadcast_to(log_std, mean.shape)
    return distrax.Independent(distrax.Normal(centre + scale * mean, scale * jnp.exp(log_std)), 1)


def tanh_normal(mean: jax.Array, log_std: jax.Array, box: Box) -> Distribution:
    r"""Independent normals squashed into a bounded box: `a = centre + scale * tanh(u)`, `u ~ N(mean, exp(log_std)^2)`.

    `mean` [..., A]; `log_std` broadcasts to it. `sample_and_log_prob` takes the density from the pre-tanh value,

        log p(a) = log N(u) - sum_i [ log(scale_i) + 2 (log 2 - u_i - softplus(-2 u_i)) ],

    so it is exact at the borders. `log_prob(a)` has to invert tanh: at the border itself, where float32 has lost `u`,
    it answers for the last value before it. `mode()` is the squashed mean, and `entropy()` has no closed form.

    Raises ValueError for a box that lacks a bound or is not a vector, or a `mean` of another size.
    Source: Haarnoja et al. 2018, "Soft Actor-Critic", appendix C.
    """
    if not np.all(np.isfinite(box.bounds())):
        raise ValueError(f"tanh_normal needs finite bounds, got low = {box.low} and high = {box.high}; use normal")
    distrax = _distrax()
    centre, scale = _units(mean, box)
    base = distrax.Independent(distrax.Normal(mean, jnp.exp(jnp.broadcast_to(log_std, mean.shape))), 1)
    return _TanhNormal(base, jnp.asarray(centre), jnp.asarray(scale))


@struct.dataclass
class _TanhNormal:
    base: Any  # the law of u
    centre: jax.Array  # [A]
    scale: jax.Array  # [A]

    def sample(self, *, seed: jax.Array) -> jax.Array:
        return self._squash(self.base.sample(seed=seed))

    def sample_and_log_prob(self, *, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, log_prob = self.base.sample_and_log_prob(seed=seed)
        return self._squash(u), log_prob - self._log_slope(u)

    def log_prob(self, value: jax.Array) -> jax.Array:
        border = 1 - jnp.finfo(value.dtype).epsneg
        u = jnp.arctanh(jnp.clip((value - self.centre) / self.scale, -border, border))
        return self.base.log_prob(u) - self._log_slope(u)

    def mode(self) -> jax.Array:
        return self._squash(self.base.mode())

    def entropy(self) -> jax.Array:
        raise NotImplementedError("the entropy of tanh_normal has no closed form; average -log_prob over samples")

    def _squash(self, u: jax.Array) -> jax.Array:
        return self.centre + self.scale * jnp.tanh(u)

    def _log_slope(self, u: jax.Array) -> jax.Array:
        return jnp.sum(jnp.log(self.scale) + 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u)), axis=-1)


def unit_box(box: Space) -> Box:
    """The box [-1, 1]^A that `from_unit` maps to a bounded `box`.

    Raises ValueError for a space that is no box, or one that lacks a bound or is not a vector.
    """
    if not isinstance(box, Box):
        raise ValueError(f"expected an action space Box((A,)), got {box}; ppo takes both kinds")
    size = vector_size(box)
    if not np.all(np.isfinite(box.bounds())):
        raise ValueError(f"expected an action space with finite bounds, got low = {box.low} and high = {box.high}")
    return Box((size,), -1.0, 1.0, box.dtype)


def from_unit(action: jax.Array, box: Space) -> jax.Array:
    """An action in [-1, 1]^A, in units of the bounded `box`: `centre + scale * action`, [..., A]."""
    centre, scale = _units(action, box, "action")
    return centre + scale * action


def to_unit(action: jax.Array, box: Space) -> jax.Array:
    """An action of the bounded `box`, in [-1, 1]^A: `(action - centre) / scale`, [..., A]."""
    centre, scale = _units(action, box, "action")
    return (action - centre) / scale


@functools.cache
def _distrax() -> Any:
    """distrax, imported when it is first used (it takes a second), without its dependencies' deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import distrax
    return distrax


def _units(mean: jax.Array, box: Space, name: str = "mean") -> tuple[np.ndarray, np.ndarray]:
    """Middle and half width of each axis [A]; 0 and 1 where it is not bounded."""
    size = vector_size(box)
    if mean.shape[-1:] != (size,):
        raise ValueError(f"{name} has shape {mean.shape}, expected (..., {size}), as many as {box} has elements")
    assert isinstance(box, Box)
    low, high = box.bounds()
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return ((low + high) / 2).astype(box.dtype), ((high - low) / 2).astype(box.dtype)


class Head(nn.Module):
    """Features [..., F] -> the distribution of an action: categorical, or normal with a standard deviation of its own.

    The last layer starts near zero, so that the first policy is uniform, or centred with unit deviation.
    Raises ValueError for a Box that is not a vector.
    """

    action: Space

    @nn.compact
    def __call__(self, features: jax.Array) -> Distribution:
        small = networks.weights(1e-4)
        if isinstance(self.action, Discrete):
            return categorical(nn.Dense(self.action.n, kernel_init=small)(features))
        size = vector_size(self.action)
        log_std = self.param("log_std", nn.initializers.zeros, (size,), jnp.float32)
        mean = nn.Dense(size, kernel_init=small)(features)
        return normal(mean, log_std.astype(mean.dtype), self.action)


def vector_size(action: Space) -> int:
    """The number of elements A of an action that is a vector; ValueError for any other."""
    if not isinstance(action, Box) or len(action.shape) != 1:
        raise ValueError(
            f"expected an action space Box((A,)), got {action}; convert it in a wrapper of the environment"
        )
    return action.shape[0]
