"""Networks shared by the agents, as flax.linen modules; leading axes of the input are batch axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
            if dropout is not None:
                kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - jnp.asarray(dropout, x.dtype), x.shape)
                x = jnp.where(kept, x / (1 - jnp.asarray(dropout, x.dtype)), 0)
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


class Torso(nn.Module):
    """The usual features of an observation: an MLP of a vector [..., F], or of convolutions of an image [..., H, W, C].

    Raises ValueError for observations of other shapes.
    """

    observation_shape: tuple[int, ...]
    hidden_sizes: Sequence[int]
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if len(self.observation_shape) not in (1, 3):
            raise ValueError(
                f"observations have shape {self.observation_shape}, expected a vector (F,) or an image (height, width, "
                f"channels); encode others in a wrapper of the environment"
            )
        if len(self.observation_shape) == 3:
            x = Convolutions()(x)
        return MLP(self.hidden_sizes, self.activation)(x)
