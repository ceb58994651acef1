"""Distributional dynamic programming: the law of the return in a model that is known, for a policy or the best one.

Laws under a policy, in a representation (`Categorical`, `Quantile`, `Averages`): `evaluate`. The worst and the best
case of each state, and the safest of the optimal policies: `safe_and_risky`, `break_ties`. The best law of the whole
return among all policies, by stock augmentation: `stock`.
"""

from jaxrl.distributional.dynamic_programming import stock
from jaxrl.distributional.dynamic_programming.atomic import Split, break_ties, safe_and_risky
from jaxrl.distributional.dynamic_programming.evaluation import (
    Evaluation,
    action_laws,
    bellman,
    evaluate,
    init,
    initial_law,
    step,
)
from jaxrl.distributional.dynamic_programming.representations import (
    Averages,
    Categorical,
    Law,
    Quantile,
    Representation,
)

__all__ = [
    "Averages",
    "Categorical",
    "Evaluation",
    "Law",
    "Quantile",
    "Representation",
    "Split",
    "action_laws",
    "bellman",
    "break_ties",
    "evaluate",
    "init",
    "initial_law",
    "safe_and_risky",
    "step",
    "stock",
]
