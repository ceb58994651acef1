"""Gaussian process dynamic programming: decisions from a law of the dynamics, not from a model that was chosen.

A harvester has seen N pairs of what was left, s, and the stock that became of it, x'. A Gaussian process over them
gives the law of x' for any s, and it is widest where nothing was seen,

    x' | s, data ~ N(mean(s), variance(s) + noise),

so that the optimum for it does not bet on growth where there are no data. On L levels of the stock that is an MDP.

Source: Boettiger, Mangel and Munch 2015, "Avoiding tipping points in fisheries management through Gaussian process
dynamic programming", section 2; Deisenroth, Rasmussen and Peters 2009, "Gaussian process dynamic programming".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.bayes import gp
from jaxrl.mdp.harvest import harvest, normal_law
from jaxrl.mdp.iteration import policy_iteration
from jaxrl.mdp.model import MDP
from jaxrl.mdp.solution import Solution

AMPLITUDES = np.geomspace(0.005, 5, 12)  # times the mean square of the stock
LENGTHS = np.geomspace(0.04, 3, 14)  # times the largest stock that was left
NOISES = np.geomspace(1 / 3, 3, 5)  # times the variance of most evidence
RESTARTS = 4  # of the fit that finds it
BATCH = 64  # settings at once


def transition(process: gp.Mixture, levels: ArrayLike) -> jax.Array:
    """The law of the next stock on L ascending levels from 0, given the level that was left, `[L, L]`.

    What falls below the lowest level goes there, what exceeds the highest goes to that; what is 0 stays 0.
    """
    levels = jnp.asarray(levels, process.weights.dtype)

    def rows(weighted: tuple[gp.Posterior, jax.Array]) -> jax.Array:
        component, weight = weighted
        law = gp.predict(component, levels[:, None])
        laws = normal_law(levels, law.mean, jnp.sqrt(law.variance + component.settings.noise))
        return jnp.where(weight > 0, weight * laws, 0)  # one that is lost to rounding has no law

    law = jnp.sum(jax.lax.map(rows, process, batch_size=BATCH), axis=0)
    return law.at[0].set(jnp.eye(levels.size, dtype=law.dtype)[0])


def model(process: gp.Mixture, levels: ArrayLike, discount: ArrayLike) -> MDP:
    """The decision problem of the harvester: states are L levels of the stock, actions levels to leave at most."""
    return harvest(transition(process, levels), levels, discount)


def escapement(solution: Solution, levels: ArrayLike) -> jax.Array:
    """What the policy of a harvest leaves of each level of the stock, `[L]`, units of the stock."""
    levels = jnp.asarray(levels)
    return jnp.minimum(levels, levels[jnp.argmax(solution.policy, axis=1)])


def solve(left: ArrayLike, stock: ArrayLike, levels: ArrayLike, discount: ArrayLike, key: jax.Array) -> Solution:
    """The best harvest given what was seen: `learn`, `model`, `jaxrl.mdp.policy_iteration`.

    - `left`, `stock`, `key`: as in `learn`.
    - `levels`: `[L]`, ascending from 0, beyond the largest stock there can be.
    - `discount`: per step, in [0, 1).
    """
    return policy_iteration(model(learn(left, stock, key), levels, discount))


def learn(left: ArrayLike, stock: ArrayLike, key: jax.Array) -> gp.Mixture:
    """The process given N pairs and (0, 0), which is known, averaged over its settings.

    Amplitude and length have log-uniform priors around the size of the data, since a history that stays near one stock
    says little of them, and the settings of most evidence are far too sure of what they have not seen. The noise, which
    such a history does show, has a log-uniform prior within a factor of 3 of the best.

    - `left`: `[N]`, stock after the catch. `stock`: `[N]`, what became of it.

    Raises ValueError for data that are no pairs.
    """
    left, stock = jnp.asarray(left, float), jnp.asarray(stock, float)
    if left.ndim != 1 or left.shape != stock.shape:
        raise ValueError(f"left and stock have shapes {left.shape} and {stock.shape}, expected [N] both")
    inputs, targets = jnp.append(left, 0.0)[:, None], jnp.append(stock, 0.0)
    scale = jnp.ones_like(targets).at[-1].set(0)
    noise = gp.fit(inputs, targets, key, noise_scale=scale, restarts=RESTARTS).settings.noise
    axes = (jnp.mean(targets**2) * AMPLITUDES, jnp.max(left) * LENGTHS, noise * NOISES)
    grid = gp.Settings(*(x.ravel() for x in jnp.meshgrid(*axes, indexing="ij")))
    return gp.mixture(inputs, targets, grid, noise_scale=scale)
