"""How good a policy is: over whole episodes, over models of the environment, and in the worst of them."""

from jaxrl.evaluate.episodes import Evaluation, evaluate, random_returns, starts
from jaxrl.evaluate.models import Grid, grid, unit_grid
from jaxrl.evaluate.worst import CMAES, Gradient, Lattice, Search, Worst, worst_params

__all__ = [
    "CMAES",
    "Evaluation",
    "Gradient",
    "Grid",
    "Lattice",
    "Search",
    "Worst",
    "evaluate",
    "grid",
    "random_returns",
    "starts",
    "unit_grid",
    "worst_params",
]
