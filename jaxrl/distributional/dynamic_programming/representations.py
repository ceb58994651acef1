"""Families of laws that projected Bellman operators stay in, as pytrees: `Categorical`, `Quantile`, `Averages`."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.distributional import categorical, quantile
from jaxrl.risk import laws


@struct.dataclass
class Law:
    """Discrete laws, one for each index of the leading axes; atoms without leading axes are those of all of them.

    What a measure of risk takes: `measure(law.atoms, law.probs)`.
    """

    atoms: jax.Array  # [N] or [..., N], in any order
    probs: jax.Array  # [..., N]


class Representation(Protocol):
    """A family of laws in which an evaluation stays."""

    def project(self, law: Law) -> Law:
        """The law of the family that is nearest to a discrete one, `[..., M]` atoms to `[..., N]`."""
        ...

    def distance(self, a: Law, b: Law) -> jax.Array:
        """A distance of two laws of the family, `[...]`, which no projection increases."""
        ...

    def modulus(self, discount: jax.Array) -> jax.Array:
        """By what factor the projected operator shrinks the largest distance over states."""
        ...


@laws.pytree
class Categorical:
    """Laws on a fixed `support`, ascending, `[N]`, nearest in the Cramer distance: `categorical.project`.

    Means are exact while the support holds every return. Distances are Cramer's, the root of the integral of the
    squared difference of distribution functions, and shrink by sqrt(discount).

    Source: Rowland et al. 2018, "An Analysis of Categorical Distributional Reinforcement Learning".
    """

    support: jax.Array

    def project(self, law: Law) -> Law:
        probs = categorical.project(law.atoms, law.probs, self.support)
        return Law(jnp.asarray(self.support, probs.dtype), probs)

    def distance(self, a: Law, b: Law) -> jax.Array:
        gaps = jnp.diff(a.atoms)
        difference = jnp.cumsum(a.probs - b.probs, axis=-1)[..., :-1]
        return jnp.sqrt(jnp.sum(gaps * difference**2, axis=-1))

    def modulus(self, discount: jax.Array) -> jax.Array:
        return jnp.sqrt(discount)


@laws.pytree
class Quantile:
    """N atoms of mass 1/N each at the quantiles of the fractions `taus`, `[N]`: `quantile.midpoints(N)`.

        theta_i = (min {x : P(X <= x) >= tau_i} + min {x : P(X <= x) > tau_i}) / 2,

    the middle where a fraction has many quantiles. At the midpoints they are a nearest such law in Wasserstein-1. Means
    are not kept: expect a bias of the order of the gap between quantiles. Distances are Wasserstein-infinity's, the
    largest difference of two quantiles, and shrink by the discount.

    Source: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", Proposition 2; for
    the middle, Rowland et al. 2024, "An Analysis of Quantile Temporal-Difference Learning".
    """

    taus: jax.Array

    def project(self, law: Law) -> Law:
        dtype = law.probs.dtype
        taus, rounding = jnp.asarray(self.taus, dtype), 32 * jnp.finfo(dtype).eps
        ends = quantile.project(law.atoms, law.probs, jnp.concatenate([taus - rounding, taus + rounding]))
        atoms = (ends[..., : len(taus)] + ends[..., len(taus) :]) / 2
        return Law(atoms, jnp.full(atoms.shape, 1 / atoms.shape[-1], dtype))

    def distance(self, a: Law, b: Law) -> jax.Array:
        return jnp.max(jnp.abs(a.atoms - b.atoms), axis=-1)

    def modulus(self, discount: jax.Array) -> jax.Array:
        return discount


@laws.pytree
class Averages:
    """N atoms of fixed mass, `weights` `[N]` of sum 1, each the mean of its share of the law, the lowest share first.

        z_i = 1/w_i int_{w_1 + ... + w_{i-1}}^{w_1 + ... + w_i} F^{-1}(tau) dtau

    The nearest such law in Wasserstein-2. Means are exact, and z_1 is the CVaR at level w_1. Distances are
    Wasserstein-infinity's and shrink by the discount. The weights (level, 1 - level) are the worst and the best case
    of the atomic operators: see `safe_and_risky`.

    Source: Achab and Neu 2021, "Robustness and Risk Management via Distributional Dynamic Programming".
    """

    weights: jax.Array

    def project(self, law: Law) -> Law:
        weights = jnp.asarray(self.weights, law.probs.dtype)
        atoms, _, upper = laws.ascending(*jnp.broadcast_arrays(law.atoms, law.probs))
        ends = jnp.append(jnp.cumsum(weights)[:-1], 1.0)
        lower, starts = _shifted(upper)[..., None, :], _shifted(ends)[:, None]
        overlaps = jnp.minimum(ends[:, None], upper[..., None, :]) - jnp.maximum(starts, lower)
        shares = jnp.maximum(overlaps, 0)  # [..., N, M]
        means = jnp.sum(shares * atoms[..., None, :], axis=-1) / jnp.sum(shares, axis=-1)
        return Law(means, jnp.broadcast_to(weights, means.shape))

    def distance(self, a: Law, b: Law) -> jax.Array:
        return jnp.max(jnp.abs(a.atoms - b.atoms), axis=-1)

    def modulus(self, discount: jax.Array) -> jax.Array:
        return discount


def _shifted(ends: jax.Array) -> jax.Array:
    """Where the parts of [0, 1] begin that end in `ends`, `[..., N]`."""
    return jnp.concatenate([jnp.zeros_like(ends[..., :1]), ends[..., :-1]], axis=-1)
