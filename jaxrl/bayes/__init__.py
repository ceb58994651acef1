"""Bayesian policy gradients: what a batch of trajectories says of the gradient, with what certainty.

- `scores`: gradients of log-probabilities, written out or as products.
- `fisher`: the Fisher information that the prior is made of.
- `quadrature`: the posterior law of the gradient given the returns of whole trajectories.
"""

from jaxrl.bayes import fisher, quadrature, scores

__all__ = ["fisher", "quadrature", "scores"]
