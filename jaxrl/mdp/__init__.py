"""Finite Markov decision processes as arrays: models, solvers, problems, files.

>>> solution = policy_iteration(river_swim())
>>> print(solution.policy[:, 1], solution.converged)
[1. 1. 1. 1. 1. 1.] True
"""

from jaxrl.mdp.build import dense, from_counts, from_transitions, sparse
from jaxrl.mdp.checks import validate
from jaxrl.mdp.files import read, write
from jaxrl.mdp.fisheries import fishery
from jaxrl.mdp.iteration import (
    evaluate,
    finite_horizon,
    modified_policy_iteration,
    policy_iteration,
    value_iteration,
)
from jaxrl.mdp.model import (
    MDP,
    Model,
    SparseMDP,
    action_values,
    expectation,
    expected_reward,
    follow,
    probabilities,
    row,
    stack,
    successors,
    targets,
)
from jaxrl.mdp.problems import forest, garnet, grid_world, inventory, machine_replacement, river_swim
from jaxrl.mdp.solution import Solution
from jaxrl.mdp.toy_text import from_gymnasium

__all__ = [
    "MDP",
    "Model",
    "Solution",
    "SparseMDP",
    "action_values",
    "dense",
    "evaluate",
    "expectation",
    "expected_reward",
    "finite_horizon",
    "fishery",
    "follow",
    "forest",
    "from_counts",
    "from_gymnasium",
    "from_transitions",
    "garnet",
    "grid_world",
    "inventory",
    "machine_replacement",
    "modified_policy_iteration",
    "policy_iteration",
    "probabilities",
    "read",
    "river_swim",
    "row",
    "sparse",
    "stack",
    "successors",
    "targets",
    "validate",
    "value_iteration",
    "write",
]
