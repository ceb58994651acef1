"""Gaussian process temporal difference learning: the posterior law of a value function given rewards.

- `posterior`, `value`: with any kernel, from the Gram matrix of all points.
- `weight_posterior`: with m features, where a batch of P steps takes O(P m^2) operations.
- `points`: the states of whole episodes, and where each one was left.
- `sparse`: the online form, which keeps a dictionary of few points.
"""

from jaxrl.bayes.gptd import sparse
from jaxrl.bayes.gptd.batch import Posterior, Weights, posterior, value, weight_posterior
from jaxrl.bayes.gptd.episodes import Noise, points

__all__ = ["Noise", "Posterior", "Weights", "points", "posterior", "sparse", "value", "weight_posterior"]
