"""The sets of laws near a nominal one from which nature chooses, for each state and action on its own.

In their formulas p0 is the nominal law and p that of nature; z are the values that nature weighs, and E is the mean
under p0. A radius is a number, `[S]`, or `[S, A]`; as settings of a batch of laws they have its axes (`row`).
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from jaxrl import mdp
from jaxrl.risk import laws
from jaxrl.robust import divergence, euclidean, polyhedral, signed, wasserstein
from jaxrl.robust.base import Support, check, check_least, known, row
from jaxrl.robust.rows import Row, Worst, mean


@laws.pytree
class Nominal:
    """The nominal law alone: nature has no choice."""

    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        value = mean(row.nominal, row.values)
        return Worst(value, row.nominal + jnp.zeros_like(row.values), row.values + jnp.zeros_like(row.nominal), ())


@laws.pytree
class L1:
    """`sum |p - p0| <= radius`; all of it at 2.

    Takes radius / 2 from the largest values and gives it to the least.

    Source: Strehl and Littman 2008, "An Analysis of Model-Based Interval Estimation for Markov Decision Processes";
    Petrik and Subramanian 2014, "RAAM: The Benefits of Robustness in Approximating Aggregated MDPs in Reinforcement
    Learning".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        worst = polyhedral.transfer(row, laws.setting(self.radius, row.values) / 2)
        return worst._replace(of_set=(worst.of_set[0] / 2,))


@laws.pytree
class TotalVariation:
    """`sum |p - p0| / 2 <= radius`: the share of the mass that nature may move, all of it at 1; `L1` of twice that."""

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return polyhedral.transfer(row, laws.setting(self.radius, row.values))


@laws.pytree
class LInf:
    """`max |p - p0| <= radius`: an `Interval` around each probability; all of it at 1.

    Source: Givan, Leach and Dean 2000, "Bounded-Parameter Markov Decision Processes"; Behzadian, Petrik and Ho 2021,
    "Fast Algorithms for L-infinity-Constrained S-Rectangular Robust MDPs".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return polyhedral.ball(row, laws.setting(self.radius, row.values))


@laws.pytree
class Interval:
    """`lower <= p <= upper`, for each probability.

        max_t t + lower . (z - t)^+ - upper . (t - z)^+

    - `lower`, `upper`: numbers, or in the layout of the probabilities, `[n]`, or `[S, A, n]` for a model.

    Starts at the lower bounds, and fills up in the order of the values. The nominal law has no part in it, but that
    support "nominal" keeps states without nominal mass at 0. NaN where no law is within the bounds.

    Source: Givan, Leach and Dean 2000, "Bounded-Parameter Markov Decision Processes".
    """

    lower: ArrayLike
    upper: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)
        for name in ("lower", "upper"):
            check_least(f"Interval.{name}", getattr(self, name), "it bounds a probability")
        lower, upper = known(self.lower), known(self.upper)
        if lower is not None and upper is not None and np.any(lower > upper):
            where = tuple(map(int, np.argwhere(np.atleast_1d(lower > upper))[0]))
            raise ValueError(f"Interval.lower is above Interval.upper at {where}, expected at most as large; swapped?")

    @classmethod
    def from_models(cls, lower: mdp.Model, upper: mdp.Model, **settings: Any) -> Interval:
        """The laws between the probabilities of two models; ValueError if they are not in one layout."""
        bounds = mdp.probabilities(lower), mdp.probabilities(upper)
        if type(lower) is not type(upper) or not np.array_equal(mdp.successors(lower), mdp.successors(upper)):
            raise ValueError(
                f"lower is a {type(lower).__name__} with probabilities {bounds[0].shape} and upper a "
                f"{type(upper).__name__} with {bounds[1].shape}, expected the same successors in the same slots"
            )
        return cls(*bounds, **settings)

    def worst(self, row: Row) -> Worst:
        return polyhedral.interval(row, jnp.asarray(self.lower), jnp.asarray(self.upper))


@laws.pytree
class Contamination:
    """`p = (1 - radius) p0 + radius q` with any law q; all of it at 1.

        (1 - radius) p0 . z + radius min z

    Source: Wang and Zou 2021, "Online Robust Reinforcement Learning with Model Uncertainty".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return polyhedral.contaminate(row, laws.setting(self.radius, row.values))


@laws.pytree
class L2:
    """`|p - p0|_2 <= radius`; all of it at sqrt 2.

        p = (p0 - theta (z - nu))^+

    Source: of the algorithm, Michelot 1986, "A Finite Algorithm for Finding the Projection of a Point onto the
    Canonical Simplex of R^n".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return euclidean.ball(row, laws.setting(self.radius, row.values))


@laws.pytree
class ChiSquare:
    """`sum (p - p0)^2 / p0 <= radius`, Pearson's divergence; it keeps nature on the nominal support.

        p = p0 (1 - theta (z - nu))^+,    max_t t - sqrt((1 + radius) E((t - z)^+)^2)

    Where no probability reaches 0, that is the mean less sqrt(radius Var z). The slope in the radius is infinite at 0,
    and given as 0.

    Source: Iyengar 2005, "Robust Dynamic Programming"; Duchi and Namkoong 2021, "Learning Models with Uniform
    Performance via Distributionally Robust Optimization".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return divergence.chi_square(row, laws.setting(self.radius, row.values))


@laws.pytree
class KL:
    """`sum p log(p / p0) <= radius`, in nats; it keeps nature on the nominal support.

        max_theta -(log E exp(-theta z) + radius) / theta,    p ~ p0 exp(-theta z)

    The slope in the radius is infinite at 0, and given as 0.

    Source: Iyengar 2005, "Robust Dynamic Programming"; Nilim and El Ghaoui 2005, "Robust Control of Markov Decision
    Processes with Uncertain Transition Matrices"; Hu and Hong 2013, "Kullback-Leibler Divergence Constrained
    Distributionally Robust Optimization".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return divergence.kl(row, laws.setting(self.radius, row.values))


@laws.pytree
class Burg:
    """`sum p0 log(p0 / p) <= radius`, in nats: p as an explanation of data from p0, by its likelihood.

        p = c p0 / (z - nu),    nu <= min z

    Under support "all", states without nominal mass cost nothing. The slope in the radius is infinite at 0, and given
    as 0.

    Source: Nilim and El Ghaoui 2005 (their likelihood models); Ben-Tal et al. 2013, "Robust Solutions of Optimization
    Problems Affected by Uncertain Probabilities".
    """

    radius: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)

    def worst(self, row: Row) -> Worst:
        return divergence.burg(row, laws.setting(self.radius, row.values))


@laws.pytree
class Wasserstein:
    """The laws that p0 becomes by moving mass at a mean cost of at most the radius: a Wasserstein ball of order 1.

        max_{price >= 0} sum_i p0_i min_j (z_j + price metric_ij) - price radius

    - `metric`: what it costs to move a unit of mass from i to j, `[S, S]`: 0 for i = j, else above 0. `row` reads it at
      the successors of a sparse model.

    Time grows as n^2 for each law, memory as n.

    Source: Mohajerin Esfahani and Kuhn 2018, "Data-Driven Distributionally Robust Optimization Using the Wasserstein
    Metric"; Yang 2017, "A Convex Optimization Approach to Distributionally Robust Markov Decision Processes with
    Wasserstein Distance".
    """

    radius: ArrayLike
    metric: ArrayLike
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)
        metric = known(self.metric)
        if metric is None:
            return
        if metric.ndim < 2 or metric.shape[-1] != metric.shape[-2]:
            raise ValueError(f"Wasserstein.metric has shape {metric.shape}, expected [S, S], a distance for each pair")
        own = np.eye(metric.shape[-1], dtype=bool)
        far = metric[..., ~own]
        if not (np.all(metric[..., own] == 0) and np.all((far > 0) & (far < np.inf))):
            raise ValueError("Wasserstein.metric must be 0 from a state to itself, and between two above 0 and finite")

    def worst(self, row: Row) -> Worst:
        radius, metric = (jnp.asarray(x, row.values.dtype) for x in (self.radius, self.metric))
        return wasserstein.transport(row, radius, metric)


@laws.pytree
class SignedLp:
    """`p0 + u` with `sum u = 0` and `|u|_order <= radius`: no law, for it may have negative mass.

        p0 . z - radius kappa(z),    kappa(z) = min_c |z - c|_q,    1 / order + 1 / q = 1

    - `order`: 1, 2 or infinity, static.

    The cheapest of all sets, and a lower bound on the value over the laws in it, equal to it as long as p is one. Not
    monotone in z: an operator with a large radius need not contract.

    Source: Derman, Geist and Mannor 2021, "Twice Regularized MDPs and the Equivalence between Robustness and
    Regularization"; Kumar et al. 2023, "Policy Gradient for Rectangular Robust Markov Decision Processes".
    """

    radius: ArrayLike
    order: float = struct.field(pytree_node=False, default=2)
    support: Support = struct.field(pytree_node=False, default="nominal")
    optimistic: bool = struct.field(pytree_node=False, default=False)
    row = row

    def __post_init__(self) -> None:
        check(self)
        if self.order not in (1, 2, math.inf):
            raise ValueError(f"SignedLp.order must be 1, 2 or math.inf, got {self.order!r}")

    def worst(self, row: Row) -> Worst:
        return signed.shift(row, laws.setting(self.radius, row.values), self.order)
