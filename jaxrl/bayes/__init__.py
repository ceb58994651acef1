"""Bayesian policy gradients: what a batch of trajectories says of the gradient, with what certainty.

- `scores`: gradients of log-probabilities, written out or as products.
- `fisher`: the Fisher information that the prior is made of.
- `quadrature`: the posterior law of the gradient given the returns of whole trajectories.
- `gptd`: the posterior law of a value function given rewards, from kernels or features, in batches or online.
- `actor_critic`: the posterior law of the gradient given such a critic.
- `kalman`: the law of a critic's parameters, updated by each transition; draws of it for deep critics.
- `gp`: Gaussian process regression with learned settings; `gpdp`: decisions from it.
- `kernels`: kernels of states, and features that give them.
- `features`: random Fourier features, and noise that samples share through features.
- `scaling`: steps that trust each direction as far as it is known.
"""

from jaxrl.bayes import actor_critic, features, fisher, gp, gpdp, gptd, kalman, kernels, quadrature, scaling, scores

__all__ = [
    "actor_critic",
    "features",
    "fisher",
    "gp",
    "gpdp",
    "gptd",
    "kalman",
    "kernels",
    "quadrature",
    "scaling",
    "scores",
]
