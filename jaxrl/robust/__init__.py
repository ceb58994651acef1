"""Robust decisions: sets of laws near a nominal one, and what values are worth when nature chooses from them.

A set is a small pytree: its radius is a leaf, so it can be traced, differentiated and swept with `vmap`; `support` and
`optimistic` are part of its structure. `worst_case` gives the least mean of the values over a set, and the law that
attains it, for one law or for a batch of them.

>>> import jax.numpy as jnp
>>> nominal, values = jnp.array([0.25, 0.25, 0.5]), jnp.array([0.0, 1.0, 2.0])
>>> for set in (L1(0.5), KL(0.1), CVaR(0.5)):
...     value, probs = worst_case(set, nominal, values)
...     print(value, probs.round(2))
0.75 [0.5  0.25 0.25]
0.8707045 [0.44 0.26 0.31]
0.5 [0.5 0.5 0. ]
"""

from jaxrl.risk import CVaR, Entropic, EVaR
from jaxrl.robust.average import average
from jaxrl.robust.base import Set, row
from jaxrl.robust.counts import from_counts
from jaxrl.robust.iwocs import iwocs
from jaxrl.robust.scenarios import Scenarios
from jaxrl.robust.sets import (
    KL,
    L1,
    L2,
    Burg,
    ChiSquare,
    Contamination,
    Interval,
    LInf,
    Nominal,
    SignedLp,
    TotalVariation,
    Wasserstein,
)
from jaxrl.robust.solve import Solution, evaluate, init, solve, step
from jaxrl.robust.state import SRectangular, worst_case_state
from jaxrl.robust.worst import worst_case

__all__ = [
    "KL",
    "L1",
    "L2",
    "Burg",
    "CVaR",
    "ChiSquare",
    "Contamination",
    "EVaR",
    "Entropic",
    "Interval",
    "LInf",
    "Nominal",
    "SRectangular",
    "Scenarios",
    "Set",
    "SignedLp",
    "Solution",
    "TotalVariation",
    "Wasserstein",
    "average",
    "evaluate",
    "from_counts",
    "init",
    "iwocs",
    "row",
    "solve",
    "step",
    "worst_case",
    "worst_case_state",
]
