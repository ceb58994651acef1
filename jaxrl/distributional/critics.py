"""How the outputs of a critic are read as the law of the return, what they regress on, and by which loss.

Four ways, one interface: a pytree with its number of outputs `size`, and three functions of outputs `[..., size]`,

    law(outputs) -> (atoms, probs)                             the law of the return, [..., N] each, for `jaxrl.risk`
    targets(outputs, rewards, discounts, costs) -> targets     r + d (Z' - c), from the outputs at the successor
    loss(outputs, targets) -> [...]                            least where the law is that of the targets

with `rewards`, `discounts` and `costs` `[...]`: r, d = discount (1 - terminated), and c = alpha log pi(a'|s') in a soft
critic (which is inside the discount, so that nothing of it is left at a termination). The targets are constants to
differentiation. `smallest` takes, of several critics, the one to trust.

>>> critic = Categorical(low=0.0, high=2.0, size=3)
>>> logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
>>> critic.targets(logits, 1.0, 0.5, 0.0)
Array([0.   , 0.625, 0.375], dtype=float32)
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.distributional import categorical, quantile
from jaxrl.risk import Mean, laws
from jaxrl.types import check_positive

static = struct.field(pytree_node=False)


class Critic(Protocol):
    """A way to read the outputs of a critic."""

    @property
    def size(self) -> int: ...

    def law(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]: ...

    def targets(self, outputs: jax.Array, rewards: ArrayLike, discounts: ArrayLike, costs: ArrayLike) -> jax.Array: ...

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array: ...


@laws.pytree
class Scalar:
    """The mean of the return alone: one output, half the squared error."""

    size = 1

    def law(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return outputs, jnp.ones_like(outputs)

    def targets(self, outputs: jax.Array, rewards: ArrayLike, discounts: ArrayLike, costs: ArrayLike) -> jax.Array:
        return jax.lax.stop_gradient(_moved(outputs, rewards, discounts, costs))

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum((targets - outputs) ** 2, axis=-1) / 2


@laws.pytree
class Categorical:
    """The law on `size` atoms from `low` to `high`: logits, and the cross-entropy to the projected target (C51).

    - `low`, `high`: the ends of the support, in units of the return, `low < high`. What leaves it is clipped.

    Source: Bellemare, Dabney and Munos 2017, "A Distributional Perspective on Reinforcement Learning", algorithm 1; as
    a soft critic, Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning".
    """

    low: ArrayLike
    high: ArrayLike
    size: int = struct.field(pytree_node=False, default=101)

    def __post_init__(self) -> None:
        _check_support("Categorical", self.low, self.high, self.size)

    def support(self, dtype: jnp.dtype) -> jax.Array:
        return jnp.linspace(self.low, self.high, self.size, dtype=dtype)

    def law(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.broadcast_to(self.support(outputs.dtype), outputs.shape), jax.nn.softmax(outputs)

    def targets(self, outputs: jax.Array, rewards: ArrayLike, discounts: ArrayLike, costs: ArrayLike) -> jax.Array:
        support, probs = self.support(outputs.dtype), jax.nn.softmax(outputs)
        return jax.lax.stop_gradient(categorical.bellman_target(rewards, discounts, probs, support, costs))

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return -jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1)


@laws.pytree
class HLGauss:
    """The mean of the return alone, by classification: the cross-entropy to a normal law around it, in bins.

    - `low`, `high`: the ends of the bins, in units of the return, `low < high`. What leaves them is clipped.
    - `width`: the standard deviation of the normal law, in bins; 0.5 to 2 work.

    It looks like a law of the return, and is none: its spread says nothing. Measures of risk see the mean.

    Source: Farebrother et al. 2024, "Stop Regressing: Training Value Functions via Classification".
    """

    low: ArrayLike
    high: ArrayLike
    size: int = struct.field(pytree_node=False, default=101)
    width: ArrayLike = 0.75

    def __post_init__(self) -> None:
        _check_support("HLGauss", self.low, self.high, self.size)

    def law(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        centres = categorical.bin_centres(self.low, self.high, self.size).astype(outputs.dtype)
        mean = categorical.mean(jax.nn.softmax(outputs), centres)[..., None]
        return mean, jnp.ones_like(mean)

    def targets(self, outputs: jax.Array, rewards: ArrayLike, discounts: ArrayLike, costs: ArrayLike) -> jax.Array:
        mean = _moved(self.law(outputs)[0], rewards, discounts, costs)[..., 0]
        sigma = jnp.asarray(self.width, mean.dtype) * (jnp.asarray(self.high, mean.dtype) - self.low) / self.size
        return jax.lax.stop_gradient(categorical.hl_gauss(mean, self.low, self.high, self.size, sigma))

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return -jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1)


@laws.pytree
class Quantile:
    """`size` quantiles of the return, at the midpoints, and the quantile Huber loss, averaged over them.

    - `kappa`: where the Huber loss turns from a square into a line, in units of the return.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression".
    """

    size: int = struct.field(pytree_node=False, default=25)
    kappa: ArrayLike = 1.0

    def __post_init__(self) -> None:
        check_positive("Quantile", size=self.size)

    def law(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return outputs, jnp.full(outputs.shape, 1 / self.size, outputs.dtype)

    def targets(self, outputs: jax.Array, rewards: ArrayLike, discounts: ArrayLike, costs: ArrayLike) -> jax.Array:
        return jax.lax.stop_gradient(_moved(outputs, rewards, discounts, costs))

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return quantile.mean_huber_loss(outputs, quantile.midpoints(self.size), targets, self.kappa)


def smallest(critic: Critic, outputs: jax.Array) -> jax.Array:
    """The outputs `[..., size]` of that of K critics, `[K, ..., size]`, whose mean is the smallest.

    Clipped double learning for laws: one whole law is chosen for each element of the batch, since a minimum taken atom
    by atom is the law of nothing. For `Scalar` it is the minimum.

    Source: Fujimoto, van Hoof and Meger 2018, "Addressing Function Approximation Error in Actor-Critic Methods", eq.
    (10), for the means.
    """
    index = jnp.argmin(Mean()(*critic.law(outputs)), axis=0)
    return jnp.take_along_axis(outputs, index[None, ..., None], axis=0)[0]


def check_risk(critic: object, risk: object) -> None:
    """Raises ValueError if a measure of risk is to be taken of a critic that knows the mean alone."""
    averse = callable(risk) and not isinstance(risk, Mean)  # JAX may have put something else there, for a while
    if averse and isinstance(critic, Scalar | HLGauss):
        raise ValueError(
            f"Config.risk = {risk} needs a critic that learns a law, such as Quantile(); Config.critic = {critic} "
            f"knows the mean alone"
        )


def _moved(atoms: jax.Array, rewards: ArrayLike, discounts: ArrayLike, costs: ArrayLike) -> jax.Array:
    """The atoms `[..., N]` as the Bellman operator moves them, r + d (z - c)."""
    rewards, discounts, costs = (jnp.asarray(x, atoms.dtype)[..., None] for x in (rewards, discounts, costs))
    return rewards + discounts * (atoms - costs)


def _check_support(owner: str, low: object, high: object, size: int) -> None:
    check_positive(owner, size=size)
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    if size < 2 or (numbers and not low < high):  # type: ignore[operator]
        raise ValueError(f"{owner} needs low < high and size >= 2, got low = {low}, high = {high} and size = {size}")
