"""Wrappers that make any environment random: its actions, observations, rewards and parameters, or an adversary.

Each wrapper is an environment again, so that they compose, the last one outermost:

    env = stochastic.noisy_observations(stochastic.sticky_actions(env, 0.25), 0.1)

Its parameters are `StochasticParams(env, strength)`: those of the environment within, and its own strength, a traced
number to be varied with `vmap`, whose default is given here. At strength 0 an environment is what it was.

Source: Barsainyan, Lim and Liu 2025, "STORI: A Benchmark and Taxonomy for Stochastic Environments", for the kinds;
Machado et al. 2018, "Revisiting the Arcade Learning Environment", for sticky actions; Tessler, Efroni and Mannor 2019,
"Action Robust Reinforcement Learning", for the adversary.

>>> from jaxrl import envs
>>> from jaxrl.envs import stochastic
>>> env = stochastic.sticky_actions(envs.make("jaxrl/pendulum"), 0.25)
>>> env.params().strength
Array(0.25, dtype=float32)
"""

from jaxrl.envs.stochastic.adversary import MixedActions, MixedParams
from jaxrl.envs.stochastic.drift import Drifting, between_episodes
from jaxrl.envs.stochastic.wrappers import (
    Kind,
    Stochastic,
    StochasticParams,
    StochasticState,
    corrupted_actions,
    masked_observations,
    noisy_observations,
    random_rewards,
    sticky_actions,
)

__all__ = [
    "Drifting",
    "Kind",
    "MixedActions",
    "MixedParams",
    "Stochastic",
    "StochasticParams",
    "StochasticState",
    "between_episodes",
    "corrupted_actions",
    "masked_observations",
    "noisy_observations",
    "random_rewards",
    "sticky_actions",
]
