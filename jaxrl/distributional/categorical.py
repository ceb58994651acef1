"""Laws of the return on a fixed support: the projection, the targets and the mean of categorical critics.

A law is a support `[N]`, ascending and at least two atoms, and probabilities `[..., N]` on it. Everything is
differentiable in every argument, nothing stops a gradient, and the ends of the support may be traced:

    support = jnp.linspace(low, high, 101)                              # z_i
    atoms = bellman_atoms(reward, discount, support)                    # r + discount z_j
    target = project(atoms, jax.nn.softmax(target_logits), support)     # m
    loss = optax.softmax_cross_entropy(logits, jax.lax.stop_gradient(target))
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

KERNEL_LIMIT = 200  # atoms: above, the [M, N] kernel costs more than a scatter on every device


def project(atoms: ArrayLike, probs: ArrayLike, support: ArrayLike) -> jax.Array:
    """The law on `support` nearest to a discrete law in the Cramer distance, `[..., N]`.

        m_i = sum_j p_j h_i(clip(x_j, z_1, z_N)),    h_i the tent that is 1 at z_i and 0 at the other atoms,

    which is `h_i(x) = max(0, 1 - |x - z_i| / dz)` on a uniform support. Each atom is split between its two
    neighbours in proportion to nearness; total mass is kept, and so is the mean of the clipped atoms. An atom on
    the support is kept whole, exactly, in float32 as well.

    - `atoms`: x, where the mass lies, `[..., M]`, in any order, repeats allowed.
    - `probs`: p, their probabilities, `[..., M]`.
    - `support`: z, ascending, `[N]`; need not be uniform, may be traced.

    ValueError if the last axes of `atoms` and `probs` differ, or the support has fewer than two atoms.

    Source: Bellemare, Dabney, Munos 2017, "A Distributional Perspective on Reinforcement Learning", eq. (7); that it is
    the Cramer projection: Rowland et al. 2018, "An Analysis of Categorical Distributional Reinforcement Learning".

    The kernel is a matrix product, the scatter is chosen where it is faster: on CPU, and above 200 atoms.

    >>> project(jnp.array([0.5, 9.0]), jnp.array([0.4, 0.6]), jnp.array([0.0, 1.0, 2.0]))
    Array([0.2, 0.2, 0.6], dtype=float32)
    """
    atoms, probs, support = _inexact(atoms, probs, support)
    if atoms.shape[-1:] != probs.shape[-1:] or atoms.ndim == 0:
        raise ValueError(
            f"atoms has shape {atoms.shape} and probs {probs.shape}, expected the same last axis: a probability an atom"
        )
    if support.ndim == 0 or support.shape[-1] < 2:
        raise ValueError(f"support has shape {support.shape}, expected [N] with N >= 2: from low to high")
    atoms = jnp.clip(atoms, support[..., :1], support[..., -1:])
    if support.shape[-1] > KERNEL_LIMIT:
        return _by_scatter(atoms, probs, support)
    return jax.lax.platform_dependent(atoms, probs, support, cpu=_by_scatter, default=_by_kernel)


def bellman_atoms(
    rewards: ArrayLike, discounts: ArrayLike, support: ArrayLike, entropy_costs: ArrayLike = 0.0
) -> jax.Array:
    """Where the Bellman operator moves the support, `[..., N]`.

        x_j = r + d (z_j - c),    d = discount (1 - terminated),    c = alpha log pi(a'|s')  (0: the hard target).

    The entropy is inside the discount, so that nothing of it is left where the episode terminates.

    - `rewards`: r, `[...]`.
    - `discounts`: d, `[...]`; discount^n (1 - terminated) for an n-step target.
    - `support`: z, `[N]`.
    - `entropy_costs`: c, `[...]`, in the units of the reward.

    Source: Bellemare, Dabney, Munos 2017, Alg. 1; with entropy, as in SimbaV2 (Lee et al. 2025) and XQC
    (Palenicek et al. 2025).
    """
    rewards, discounts, support, entropy_costs = _inexact(rewards, discounts, support, entropy_costs)
    return rewards[..., None] + discounts[..., None] * (support - entropy_costs[..., None])


def bellman_target(
    rewards: ArrayLike, discounts: ArrayLike, probs: ArrayLike, support: ArrayLike, entropy_costs: ArrayLike = 0.0
) -> jax.Array:
    """The projected Bellman target, `[..., N]`: the law `probs` `[..., N]` of the successor, moved and projected.

    `project(bellman_atoms(rewards, discounts, support, entropy_costs), probs, support)`. With several critics,
    `probs` is the whole law of one of them: see `least_mean`.
    """
    return project(bellman_atoms(rewards, discounts, support, entropy_costs), probs, support)


def clipped_share(atoms: ArrayLike, probs: ArrayLike, support: ArrayLike) -> jax.Array:
    """The share of the mass that lies outside the support, which `project` moves to its ends, `[...]`.

    A metric to watch: clipping biases the mean, silently.

    >>> clipped_share(jnp.array([0.5, 9.0]), jnp.array([0.4, 0.6]), jnp.array([0.0, 1.0, 2.0]))
    Array(0.6, dtype=float32)
    """
    atoms, probs, support = _inexact(atoms, probs, support)
    outside = (atoms < support[..., :1]) | (atoms > support[..., -1:])
    return jnp.sum(jnp.where(outside, probs, 0), axis=-1)


def mean(probs: ArrayLike, support: ArrayLike) -> jax.Array:
    """The mean `sum_i p_i z_i` of the law `probs` `[..., N]` on `support` `[N]`, `[...]`."""
    probs, support = _inexact(probs, support)
    return jnp.sum(probs * support, axis=-1)


def least_mean(probs: ArrayLike, support: ArrayLike) -> jax.Array:
    """The whole law of the critic with the smallest mean, `[..., N]`, of the laws `probs` `[K, ..., N]` of K critics.

    Clipped double learning for laws: chosen for each element of the batch. (An atom-wise minimum is not a law.)
    """
    probs, support = _inexact(probs, support)
    index = jnp.argmin(mean(probs, support), axis=0)
    return jnp.take_along_axis(probs, index[None, ..., None], axis=0)[0]


def two_hot(target: ArrayLike, support: ArrayLike) -> jax.Array:
    """A number as a law on the two atoms next to it, `[..., N]`, with mean `clip(target, low, high)`.

    - `target`: `[...]`.
    - `support`: ascending, `[N]`.

    Source: Schrittwieser et al. 2020, "MuZero", appendix F; it is `project` of one atom.

    >>> two_hot(0.25, jnp.array([0.0, 1.0, 2.0]))
    Array([0.75, 0.25, 0.  ], dtype=float32)
    """
    target, support = _inexact(target, support)
    return project(target[..., None], jnp.ones_like(target)[..., None], support)


def bin_centres(low: ArrayLike, high: ArrayLike, num_bins: int) -> jax.Array:
    """The support of `hl_gauss`, `[num_bins]`: the middles of equal bins that fill [low, high]."""
    edges = _edges(low, high, num_bins)
    return (edges[1:] + edges[:-1]) / 2


def hl_gauss(
    target: ArrayLike, low: ArrayLike, high: ArrayLike, num_bins: int, sigma: ArrayLike | None = None
) -> jax.Array:
    """A number as a normal law, truncated to [low, high] and binned, `[..., num_bins]`.

        p_i = [Phi((e_{i+1} - y)/sigma) - Phi((e_i - y)/sigma)] / [Phi((high - y)/sigma) - Phi((low - y)/sigma)],

    e the edges of equal bins, y the target clipped to [low, high]: outside, the normaliser would underflow.
    Its value is `mean(p, bin_centres(low, high, num_bins))`, which cannot leave [low + w/2, high - w/2], w a bin's
    width, and is drawn inwards within a few sigma of the ends.

    - `target`: y, `[...]`.
    - `low`: the lowest edge.
    - `high`: the highest edge.
    - `num_bins`: static.
    - `sigma`: standard deviation, above 0, **in the units of the target, not of bins**; by default 0.75 w.
      Below about 0.3 w it degenerates to one bin; 0.5 w to 2 w work.

    ValueError if `num_bins` is below 1.

    Source: Imani and White 2018, "Improving Regression Performance with Distributional Losses", section 3;
    Farebrother et al. 2024, "Stop Regressing: Training Value Functions via Classification".

    >>> hl_gauss(0.0, -1.0, 1.0, num_bins=2)
    Array([0.5, 0.5], dtype=float32)
    """
    target, low, high = _inexact(target, low, high)
    edges = _edges(low, high, num_bins)
    sigma = 0.75 * (high - low) / num_bins if sigma is None else jnp.asarray(sigma, target.dtype)
    target = jnp.clip(target, low, high)
    cumulative = jax.scipy.special.ndtr((edges - target[..., None]) / sigma)
    mass = jnp.diff(cumulative, axis=-1)
    return mass / jnp.sum(mass, axis=-1, keepdims=True)


def _by_kernel(atoms: jax.Array, probs: jax.Array, support: jax.Array) -> jax.Array:
    """`project` as a product with the tents, `[..., M, N]`; atoms inside the support."""
    gaps = jnp.diff(support, axis=-1)
    left = jnp.concatenate([gaps[..., :1], gaps], axis=-1)[..., None, :]  # its first element is never used,
    right = jnp.concatenate([gaps, gaps[..., -1:]], axis=-1)[..., None, :]  # nor is its last
    offsets = atoms[..., :, None] - support[..., None, :]
    distances = offsets / jnp.where(offsets < 0, -left, right)  # in gaps, of the side that the atom lies on
    tents = jnp.maximum(1 - distances, 0)
    return jnp.einsum("...m,...mn->...n", probs, tents, precision="highest")  # in full: TF32 would lose mass


def _by_scatter(atoms: jax.Array, probs: jax.Array, support: jax.Array) -> jax.Array:
    """`project` by two additions an atom; atoms inside the support."""

    def one(atoms: jax.Array, probs: jax.Array, support: jax.Array) -> jax.Array:
        below = jnp.clip(jnp.searchsorted(support, atoms, side="right") - 1, 0, support.shape[0] - 2)
        rise = (atoms - support[below]) / (support[below + 1] - support[below])  # the share that goes to the upper one
        return jnp.zeros_like(support).at[below].add(probs * (1 - rise)).at[below + 1].add(probs * rise)

    return jnp.vectorize(one, signature="(m),(m),(n)->(n)")(atoms, probs, support)


def _edges(low: ArrayLike, high: ArrayLike, num_bins: int) -> jax.Array:
    """The edges of `num_bins` equal bins that fill [low, high], `[num_bins + 1]`."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    return jnp.linspace(low, high, num_bins + 1, dtype=jnp.result_type(low, high, float))


def _inexact(*arrays: ArrayLike) -> list[jax.Array]:
    """The arrays in their common float dtype."""
    dtype = jnp.result_type(*arrays, float)
    return [jnp.asarray(array, dtype) for array in arrays]
