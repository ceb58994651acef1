"""Normal laws as critics: the one-step law of STAC, and the law of the return of DSAC-T.

The two mean different things by their sigma, and are not to be mixed:

- **STAC** regresses on a number, `y = r + d (mu' - pessimism sigma' - alpha log pi')`, by maximum likelihood. Its sigma
  is the spread of that number over one step (of the reward, the successor and the next action). It is **one-step
  uncertainty, not the spread of the return**, and 0 where dynamics and policy are deterministic.
- **DSAC-T** regresses on a draw from the successor's law, `y_z = r + d (z' - alpha log pi')`. Its sigma is the spread
  of the whole return.

Nothing stops a gradient but where it says so; pass targets through `jax.lax.stop_gradient`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def std(raw: ArrayLike, floor: ArrayLike = -5.0) -> jax.Array:
    """A standard deviation from an output of a network, `softplus(max(raw, floor))`, `[...]`.

    At the default it is at least 0.0067. Below the floor the gradient is 0.

    Source: Ozalp 2026, "Stochastic Actor-Critic" (STAC), the released code.
    """
    raw = jnp.asarray(raw, jnp.result_type(raw, float))
    return jax.nn.softplus(jnp.maximum(raw, jnp.asarray(floor, raw.dtype)))


def pessimistic_value(mean: ArrayLike, std: ArrayLike, pessimism: ArrayLike) -> jax.Array:
    """The mean less `pessimism` standard deviations, `mu - beta sigma`, `[...]`.

    In STAC both the target and the actor's loss use it: in the actor alone, the critic still overestimates.
    """
    mean, std = _same_float(mean, std)
    return mean - jnp.asarray(pessimism, mean.dtype) * std


def one_step_target(
    rewards: ArrayLike,
    discounts: ArrayLike,
    next_means: ArrayLike,
    next_stds: ArrayLike,
    pessimism: ArrayLike,
    entropy_costs: ArrayLike = 0.0,
) -> jax.Array:
    """The number that STAC regresses on, `[...]`.

        y = r + d (mu' - beta sigma' - alpha log pi'),    d = discount (1 - terminated)

    - `rewards`, `discounts`: r and d, `[...]`.
    - `next_means`, `next_stds`: mu' and sigma' of the target critic at the successor and the next action, `[...]`.
    - `pessimism`: beta, 0 or above; the paper's range is 0 to 0.5.
    - `entropy_costs`: alpha log pi(a'|s'), `[...]`, in the units of the reward.

    Source: Ozalp 2026, "Stochastic Actor-Critic: Mitigating Overestimation via Temporal Aleatoric Uncertainty".
    """
    value = pessimistic_value(next_means, next_stds, pessimism)
    rewards, discounts, value, entropy_costs = _same_float(rewards, discounts, value, entropy_costs)
    return rewards + discounts * (value - entropy_costs)


def negative_log_likelihood(mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> jax.Array:
    """What STAC's critic minimises, without the constant log(2 pi)/2, `[...]`.

        log sigma + (y - mu)^2 / (2 sigma^2)

    Over the law of y given (s, a) it is least at that law's mean and standard deviation: see `moments`. `std` is sigma,
    not the variance, and above 0.

    >>> negative_log_likelihood(1.0, 2.0, 3.0)
    Array(1.1931472, dtype=float32)
    """
    mean, std, targets = _same_float(mean, std, targets)
    return jnp.log(std) + ((targets - mean) / std) ** 2 / 2


def moments(atoms: ArrayLike, probs: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of a discrete law, `[...]` each, from atoms and probabilities `[..., N]`.

    The normal law nearest to it in likelihood: what a Gaussian critic converges to, when the atoms are the values that
    its target takes. Where the variance is 0, the gradient of the standard deviation is 0.
    """
    atoms, probs = _same_float(atoms, probs)
    mean = jnp.sum(probs * atoms, axis=-1)
    variance = jnp.sum(probs * (atoms - mean[..., None]) ** 2, axis=-1)
    none = variance <= jnp.finfo(variance.dtype).tiny
    return mean, jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, variance)))


def refined_loss(
    mean: ArrayLike,
    std: ArrayLike,
    mean_targets: ArrayLike,
    law_targets: ArrayLike,
    scale: ArrayLike,
    *,
    exact: bool = True,
    huber: ArrayLike = 50.0,
    bias: ArrayLike = 0.1,
) -> jax.Array:
    """A loss whose gradients are the refined ones of DSAC-T, `[...]`; its value means nothing.

        d/d mu    = -w H'(y_q - mu),    w = clip(b^2 / (sigma^2 + bias), 0.1, 10),
        d/d sigma =  w (sigma^2 - 2 H(y - mu)) / (sigma + bias),    y = mu + clip(y_z - mu, -3 b, 3 b),

    with H the Huber function, `H(u) = u^2 / 2` up to `huber`; so sigma goes to the root mean square of y - mu. The
    released code has H in the place of 2 H, and its sigma goes to 1/sqrt 2 of that: `exact=False`. Gradients stop in
    the targets, in `scale` and in the weight.

    - `mean`, `std`: mu and sigma, `[...]`.
    - `mean_targets`: y_q, `r + d (mu' - alpha log pi')`, `[...]`.
    - `law_targets`: y_z, `r + d (z' - alpha log pi')` with z' drawn from the successor's law, `[...]`.
    - `scale`: b, a running mean of sigma over batches, `[]`; see `running_scale`.

    Source: Duan et al. 2023, "DSAC-T: Distributional Soft Actor-Critic with Three Refinements", and its released code,
    from which `huber` and `bias` are.
    """
    mean, std, mean_targets, law_targets, scale = _same_float(mean, std, mean_targets, law_targets, scale)
    huber, bias = jnp.asarray(huber, mean.dtype), jnp.asarray(bias, mean.dtype)
    mean_now, std_now, mean_targets, law_targets, scale = jax.lax.stop_gradient(
        (mean, std, mean_targets, law_targets, scale)
    )
    weight = jnp.clip(scale**2 / (std_now**2 + bias), 0.1, 10.0)
    error = jnp.clip(law_targets - mean_now, -3 * scale, 3 * scale)
    square = (2 if exact else 1) * _huber(error, huber)
    of_std = (std_now**2 - square) / (std_now + bias)
    return weight * (_huber(mean_targets - mean, huber) + std * of_std)


def running_scale(scale: ArrayLike, std: ArrayLike, rate: ArrayLike) -> jax.Array:
    """The running mean of sigma over batches, `(1 - rate) scale + rate mean(std)`, `[]`; no gradient.

    Start it with the mean of the first batch. DSAC-T takes the rate of its target networks, 0.005.
    """
    scale, std = _same_float(scale, std)
    return jax.lax.stop_gradient(scale + jnp.asarray(rate, scale.dtype) * (jnp.mean(std) - scale))


def _huber(errors: jax.Array, limit: jax.Array) -> jax.Array:
    """`u^2 / 2` up to the limit, and a line of the same slope beyond."""
    size = jnp.abs(errors)
    inside = jnp.minimum(size, limit)
    return inside * (size - inside / 2)


def _same_float(*arrays: ArrayLike) -> list[jax.Array]:
    """The arrays in the float dtype that they have in common."""
    dtype = jnp.result_type(*arrays, float)
    return [jnp.asarray(array, dtype) for array in arrays]
