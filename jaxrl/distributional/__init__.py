"""Laws of the return: how critics represent them, what they regress on, and how far two of them are apart."""

from jaxrl.distributional import categorical, critics, gaussian, particles, quantile

__all__ = ["categorical", "critics", "gaussian", "particles", "quantile"]
