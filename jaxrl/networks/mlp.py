"""The usual networks: dense layers, convolutions, linear outputs, ensembles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrl.types import check_positive

Activation = Callable[[jax.Array], jax.Array]


def weights(gain: float) -> nn.initializers.Initializer:
    """Truncated normal weights of variance gain / F, F the number of inputs.

    Orthogonal weights, which many PPO codes use, would need a QR factorisation: slow to compile, and batched over seeds
    it was seen to hang in jaxlib 0.10 on a machine of few cores.
    """
    return nn.initializers.variance_scaling(gain, "fan_in", "truncated_normal")


def drop(module: nn.Module, x: jax.Array, rate: ArrayLike | None) -> jax.Array:
    """Dropout with the module's random numbers "dropout", at a `rate` in [0, 1), which may be traced; none for None."""
    if rate is None:
        return x
    words = jax.random.bits(module.make_rng("dropout"), ((x.size + 1) // 2,))  # two units share one: half the time
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
    rate = jnp.asarray(rate, x.dtype)
    return jnp.where(bits >= rate * 2**16, x / (1 - rate), 0)


class MLP(nn.Module):
    """[..., F] -> [..., hidden_sizes[-1]]: dense layers, each followed by layer norm (if asked for) and activation.

    Weights start at variance 2 / F, biases at zero. Given a `dropout` rate in [0, 1), which may be traced, each dense
    layer is followed by it first, with random numbers from the stream "dropout".
    """

    hidden_sizes: Sequence[int]
    activation: Activation = nn.tanh
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, dropout: ArrayLike | None = None) -> jax.Array:
        for size in self.hidden_sizes:
            x = nn.Dense(size, kernel_init=weights(2.0))(x)
            x = drop(self, x, dropout)
            x = self.activation(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


class Convolutions(nn.Module):
    """Small images [..., H, W, C], channels last -> features [..., F]: 3 x 3 convolutions, then flattened.

    Made for the 10 x 10 boards of MinAtar; integers are taken as they are, so scale bytes to [0, 1] before.
    Raises ValueError for an input with fewer than three axes.
    """

    channels: Sequence[int] = (16,)
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim < 3:
            raise ValueError(f"Convolutions got an input of shape {x.shape}, expected [..., height, width, channels]")
        batch = x.shape[:-3]
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
        for channels in self.channels:
            x = self.activation(nn.Conv(channels, (3, 3), kernel_init=weights(2.0))(x))
        return x.reshape(*batch, math.prod(x.shape[-3:]))


class Scalar(nn.Module):
    """[..., F] -> [...]: one linear output, with weights of variance 1 / F."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1, kernel_init=weights(1.0))(x).squeeze(-1)


def ensemble(module: type[nn.Module], size: int) -> type[nn.Module]:
    """The module class whose instances are `size` independent copies of `module`, with outputs stacked, [size, ...].

    Every copy sees the same inputs, and has parameters and random numbers of its own.
    Raises ValueError for a size below 1.

    >>> critics = ensemble(Scalar, 2)()
    >>> critics.init_with_output(jax.random.key(0), jnp.ones((5, 3)))[0].shape
    (2, 5)
    """
    check_positive("ensemble", size=size)
    return nn.vmap(
        module,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=None,
        out_axes=0,
        axis_size=size,
    )


class Network(Protocol):
    """An architecture, as a static setting of an agent: what is below the outputs of a network, and the outputs."""

    def features(self, hidden_sizes: Sequence[int], activation: Activation) -> nn.Module:
        """The module from inputs `[..., F]`, and a rate of dropout or None, to features `[..., hidden_sizes[-1]]`."""
        ...

    def heads(self, features: jax.Array, size: int, count: int = 1) -> Sequence[jax.Array]:
        """`count` outputs `[..., size]` of features `[..., F]`; for a compact method, whose parameters they add to."""
        ...

    def log_std(self, output: jax.Array) -> jax.Array:
        """The logarithm of a standard deviation from an output `[...]`."""
        ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """An `MLP`, with layer norm if asked for, and linear outputs of weights of variance 1 / F."""

    layer_norm: bool = False

    def features(self, hidden_sizes: Sequence[int], activation: Activation) -> nn.Module:
        return MLP(hidden_sizes, activation, self.layer_norm)

    def heads(self, features: jax.Array, size: int, count: int = 1) -> Sequence[jax.Array]:
        return jnp.split(nn.Dense(count * size, kernel_init=weights(1.0))(features), count, axis=-1)

    def log_std(self, output: jax.Array) -> jax.Array:
        return jnp.clip(output, -20, 2)


class Torso(nn.Module):
    """Features of an observation: a network, an MLP by default, of a vector [..., F], or of convolutions of an image.

    Raises ValueError for observations of other shapes than (F,) and (height, width, channels).
    """

    observation_shape: tuple[int, ...]
    hidden_sizes: Sequence[int]
    activation: Activation = nn.tanh
    network: Network = Plain()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if len(self.observation_shape) not in (1, 3):
            raise ValueError(
                f"observations have shape {self.observation_shape}, expected a vector (F,) or an image (height, width, "
                f"channels); encode others in a wrapper of the environment"
            )
        if len(self.observation_shape) == 3:
            x = Convolutions()(x)
        return self.network.features(self.hidden_sizes, self.activation)(x)
