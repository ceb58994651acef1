"""Risk: measures of a law as pytrees with traced levels, distortions, and losses whose minimisers are risk measures.

A measure is called as `measure(atoms, probs)` on the law of a **reward**, where larger is better, and gives the sure
reward that it is worth; without `probs` the atoms weigh the same, as quantiles at the midpoints do.

>>> import jax.numpy as jnp
>>> atoms, probs = jnp.array([-4.0, 2.0]), jnp.array([0.25, 0.75])
>>> [float(measure(atoms, probs)) for measure in (Mean(), CVaR(0.5), CVaR(0.25))]
[0.5, -1.0, -4.0]
"""

from jaxrl.risk import scoring
from jaxrl.risk.distortion import CPW, CVaR, Pow, Wang, choquet
from jaxrl.risk.measures import Entropic, EVaR, Expectile, Mean, MeanCVaR, MeanStd, Measure
from jaxrl.risk.scoring import itakura_saito

__all__ = [
    "CPW",
    "CVaR",
    "EVaR",
    "Entropic",
    "Expectile",
    "Mean",
    "MeanCVaR",
    "MeanStd",
    "Measure",
    "Pow",
    "Wang",
    "choquet",
    "itakura_saito",
    "scoring",
]
