"""Finite Markov decision processes as arrays."""

from jaxrl.mdp.model import MDP, validate

__all__ = ["MDP", "validate"]
