"""The law of the return that the critics of an agent see at the start of an episode, for agents that have one."""

from __future__ import annotations

from typing import Any

import numpy as np

LEVELS = np.arange(1, 100) / 100  # of the quantiles that are kept
STARTS = 64


def at_starts(agent: Any, config: Any, states: Any, env: Any, seed: int) -> np.ndarray | None:
    """Quantiles [seeds, LEVELS] of the discounted return, over starts and critics; None if the agent has no law of it.

    `states` have a leading axis of seeds. The return is the one that the critics learn: of scaled rewards, and with the
    entropy for a soft agent.
    """
    import jax

    from jaxrl import normalise, policies

    law = _law(agent, config)
    if law is None:
        return None

    def one(state: Any, key: jax.Array) -> Any:
        params = env.params()
        _, observation = jax.vmap(env.reset, (None, 0))(params, jax.random.split(key, STARTS))
        action = policies.to_unit(agent.act(config, state, observation)[0], state.spec.action)
        return law(state.params["critics"], normalise.apply(state.normaliser, observation), action)

    atoms, probs = jax.jit(jax.vmap(one, (0, None)))(states, jax.random.key(seed))
    rows = zip(np.asarray(atoms), np.broadcast_to(probs, atoms.shape), strict=True)
    return np.stack([quantiles(atoms.ravel(), probs.ravel()) for atoms, probs in rows])


def _law(agent: Any, config: Any) -> Any:
    """Parameters of the critics, observations and actions -> atoms and their weights, for an agent that has a law."""
    import jax.numpy as jnp

    from jaxrl.agents import sac
    from jaxrl.distributional import critics

    name = agent.__name__.rpartition(".")[2]
    kind = getattr(config, "critic", None)
    if name in ("sac", "td3", "fasttd3") and isinstance(kind, critics.Categorical | critics.Quantile):
        return lambda params, observation, action: kind.law(sac.critics(config, params, observation, action))
    if name == "tqc":
        return lambda *inputs: (agent.critics(config, *inputs), jnp.ones(()))
    return None


def quantiles(atoms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The quantiles at LEVELS of a law with these atoms [n] and weights [n], which need not sum to 1.

    >>> quantiles(np.array([3.0, 1.0]), np.array([1.0, 1.0]))[[0, 48, 50, 98]]
    array([1., 1., 3., 3.])
    """
    order = np.argsort(atoms)
    cumulative = np.cumsum(weights[order], dtype=float)
    places = np.searchsorted(cumulative / cumulative[-1], LEVELS - 1e-9)
    return np.asarray(atoms[order][np.minimum(places, len(atoms) - 1)], float)
