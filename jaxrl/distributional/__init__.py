"""Laws of the return: how critics represent them, what they regress on, and how far two of them are apart."""

from jaxrl.distributional import categorical, gaussian, particles, quantile

__all__ = ["categorical", "gaussian", "particles", "quantile"]
