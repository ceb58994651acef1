"""Reinforcement learning as pure functions over pytrees.

from jaxrl import envs, train
from jaxrl.agents import ppo
"""

__version__ = "0.1.0"
