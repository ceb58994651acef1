r"""SimbaV2: weights and features on unit spheres, so that neither grows in training, whatever the size of the network.

    h_0     = unit( s * W unit([x, 3]) ),                                   the input x with a constant appended
    h_{l+1} = unit( h_l + a_l * (z_l - h_l) ),                              l = 0, ..., L - 1
    z_l     = unit( W_l'' (relu(s_l * W_l' h_l) + 1e-8) ),                  4 times as wide inside
    output  = W_o'' (s_o * W_o' h_L) + b,

with unit(x) = x / ||x||, products * by element, features h of size d. Every W has, for each of its outputs, a vector of
weights of norm 1: from the start, and again after each step of the optimiser, by `project`. What sets the scale are the
learned vectors s and a. Each is start / scale times a parameter that starts at `scale`, so that it starts at `start`,
and `scale` says how large it is beside the steps of Adam:

    s: start = scale = sqrt(2 / d),    s_l: start = scale = sqrt(2 / (4 d)),    s_o: start = scale = 1,
    a_l: start = 1 / (L + 1), scale = 1 / sqrt(d).

    network = SimbaV2().features((128, 128), nn.relu)       # L = 2 blocks of d = 128
    params = project(optax.apply_updates(params, step))     # after each step of the optimiser

Source: Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning", and its released code.
Differs from them: weights start in independent uniform directions, where theirs start orthogonal (see `weights`); the
norm that x is divided by is bounded below by nothing, where theirs is by 1e-8; dropout, which they do not have, comes
after each scaled product but that of the output, where a rate is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.networks.mlp import Activation, drop
from jaxrl.types import PyTree

SHIFT = 3.0  # what is appended to the input
EXPANSION = 4  # how many times wider a block is inside
NAME = "directions"  # of every parameter that `project` puts back


@dataclasses.dataclass(frozen=True)
class SimbaV2:
    """The architecture of SimbaV2: `hidden_sizes` has the width d once for each block, `(512, 512)` for two.

    Its policies have standard deviations from e^-10 to e^2, `log_std = -10 + 6 (1 + tanh(output))`. The paper has one
    block of 128 in the actor and two of 512 in the critics, with ReLU.

    Raises ValueError for widths that differ, or none, when parameters are made.
    """

    def features(self, hidden_sizes: Sequence[int], activation: Activation) -> nn.Module:
        return Encoder(hidden_sizes, activation)

    def heads(self, features: jax.Array, size: int, count: int = 1) -> Sequence[jax.Array]:
        return [Head(size)(features) for _ in range(count)]

    def log_std(self, output: jax.Array) -> jax.Array:
        return -10 + 6 * (1 + jnp.tanh(output))


def project(params: PyTree) -> PyTree:
    """Put the weights of each output of SimbaV2's layers back on the unit sphere; all other leaves stay as they are.

        w <- w / ||w||,    w each column of a matrix [..., inputs, outputs], with any axes of ensembles and seeds before

    To be called after each step of an optimiser. Parameters of other networks are returned as they are.

    Source: Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning".

    >>> project({"Product_0": {"directions": jnp.array([[3.0], [4.0]])}, "bias": jnp.array([7.0])})
    {'Product_0': {'directions': Array([[0.6],
           [0.8]], dtype=float32)}, 'bias': Array([7.], dtype=float32)}
    """

    def put_back(path: Any, leaf: jax.Array) -> jax.Array:
        return unit(leaf, axis=-2) if getattr(path[-1], "key", None) == NAME else leaf

    return jax.tree.map_with_path(put_back, params)


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """`x / ||x||` along an axis, for vectors of any finite size; 0 for 0, where its derivative is taken for 1."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis, keepdims=True))  # the result does not depend on it
    x = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(x**2, axis, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))


class Product(nn.Module):
    """[..., F] -> [..., size]: products with vectors of norm 1, without a bias."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return unit(jax.random.normal(key, shape, jnp.float32), axis=-2)

        return x @ self.param(NAME, uniform, (x.shape[-1], self.size))


class Scale(nn.Module):
    """[..., F] -> [..., F]: times a learned vector, `start / scale` times a parameter that starts at `scale`."""

    start: float
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factors = self.param("factors", nn.initializers.constant(self.scale), (x.shape[-1],), jnp.float32)
        return x * (self.start / self.scale * factors)


class Block(nn.Module):
    """Features h [..., d] of norm 1 -> the same: part of the way to those of a network with one hidden layer."""

    step: float  # how much of the way at first
    activation: Activation

    @nn.compact
    def __call__(self, h: jax.Array, dropout: ArrayLike | None = None) -> jax.Array:
        width = h.shape[-1]
        size = math.sqrt(2 / (EXPANSION * width))
        inside = drop(self, Scale(size, size)(Product(EXPANSION * width)(h)), dropout)
        z = unit(Product(width)(self.activation(inside) + 1e-8))  # never 0
        return unit(h + Scale(self.step, 1 / math.sqrt(width))(z - h))


class Encoder(nn.Module):
    """Inputs [..., F] -> features [..., d] of norm 1."""

    hidden_sizes: Sequence[int]  # d, once for each block
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, dropout: ArrayLike | None = None) -> jax.Array:
        if len(set(self.hidden_sizes)) != 1:
            raise ValueError(
                f"SimbaV2 got hidden_sizes = {tuple(self.hidden_sizes)}, expected one width, as often as there are "
                f"blocks, such as (512, 512)"
            )
        width, blocks = self.hidden_sizes[0], len(self.hidden_sizes)
        size = math.sqrt(2 / width)
        x = unit(jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), SHIFT, x.dtype)], axis=-1))
        h = unit(drop(self, Scale(size, size)(Product(width)(x)), dropout))
        for _ in range(blocks):
            h = Block(1 / (blocks + 1), self.activation)(h, dropout)
        return h


class Head(nn.Module):
    """Features [..., d] -> [..., size], of any scale."""

    size: int

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = Scale(1.0, 1.0)(Product(h.shape[-1])(h))
        return Product(self.size)(h) + self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)
