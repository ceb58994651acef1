"""Worst cases over sets of laws against linear and convex programs, dual bounds, and each other."""

from __future__ import annotations

import functools
import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings

from jaxrl import mdp, risk, robust
from jaxrl.robust.rows import threshold

R, N = 12, 6  # rows and states: one shape, so that each set compiles once
PLACES = np.random.default_rng(0).normal(size=(N, 2))
METRIC = np.linalg.norm(PLACES[:, None] - PLACES, axis=-1)
KINDS = {
    "l1": robust.L1,
    "total variation": robust.TotalVariation,
    "linf": robust.LInf,
    "l2": robust.L2,
    "chi-square": robust.ChiSquare,
    "kl": robust.KL,
    "burg": robust.Burg,
    "contamination": robust.Contamination,
    "wasserstein": lambda radius, **flags: robust.Wasserstein(radius, METRIC, **flags),
}
DOMINATED = ("chi-square", "kl", "cvar")  # these keep to the nominal support by themselves
BOTH = [(kind, support) for kind in KINDS for support in ("nominal", "all")]


@jax.jit
def slopes_of_measure(measure, nominal, values):
    return jax.grad(lambda *args: args[0](args[2], args[1]).sum(), (0, 2))(measure, nominal, values)


def exact(set, nominal, values, function=robust.worst_case):
    """What a set gives, in float64."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: np.asarray(x, np.float64), (set, nominal, values))
        return jax.tree.map(np.asarray, function(*double))


def rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Laws and values of every difficult sort: rare, tied, huge, skewed, without mass, certain."""
    rng = np.random.default_rng(seed)
    p, z = rng.dirichlet(np.ones(N), R), rng.normal(size=(R, N))
    p[1] = rng.dirichlet(np.full(N, 0.1))
    p[2, 3], p[3, 1] = 1e-12, 1e-9
    p[4, :2] = p[5, 4:] = p[6, 1:4] = 0
    p[7] = np.eye(N)[2]
    z[8] = rng.integers(0, 3, N)
    z[9] = 1e6 + z[9]
    z[6], z[10] = 1e6 * z[6], np.exp(8 * z[10])
    z[11] = 3
    z[3, 1] -= 2
    z[2, 4:] = z[2].min() - [1, 1 - 1e-7]
    return p / p.sum(-1, keepdims=True), z


def mild(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Laws and values of order one, some of them without mass or tied, for programs solved to a tolerance."""
    rng = np.random.default_rng(seed)
    p, z = rng.dirichlet(np.ones(N), R), rng.normal(size=(R, N))
    p[:4, :2] = 0
    z[3:6] = rng.integers(0, 3, (3, N))
    p[6] = np.eye(N)[2]
    return p / p.sum(-1, keepdims=True), z


def support_of(kind: str, support: str, p0: np.ndarray) -> np.ndarray:
    return p0 > 0 if support == "nominal" or kind in DOMINATED else np.ones_like(p0, bool)


# -------------------------------------------------------------------------- against linear programs


def program(kind: str, allowed: np.ndarray, p0: np.ndarray, z: np.ndarray, radius: float) -> float:
    """The least mean over a set as it is defined, by linear programming."""
    caps = np.where(allowed, 1.0, 0.0)
    unit, plus, minus = np.ones(N), np.eye(N), -np.eye(N)
    if kind in ("l1", "total variation"):  # variables p and |p - p0|
        most = radius if kind == "l1" else 2 * radius
        rows_ = np.block([[plus, minus], [minus, minus], [np.zeros(N), unit]])
        limits = np.concatenate([p0, -p0, [most]])
        bounds = [*zip(np.zeros(N), caps, strict=True), *[(0, None)] * N]
        return _solve(np.append(z, np.zeros(N)), np.append(unit, np.zeros(N)), rows_, limits, bounds)
    if kind == "wasserstein":  # variables: the mass that goes from i to j
        to = np.tile(np.eye(N), (1, N))
        out = np.kron(np.eye(N), unit)
        bounds = [(0, cap) for _ in range(N) for cap in caps]
        result = scipy.optimize.linprog(
            z @ to, A_eq=out, b_eq=p0, A_ub=[METRIC.ravel()], b_ub=[radius], bounds=bounds, method="highs"
        )
        assert result.success
        return result.fun
    lower, upper = {
        "linf": (p0 - radius, p0 + radius),
        "cvar": (0 * p0, (1 + radius) * p0),
        "contamination": ((1 - min(radius, 1)) * p0, np.ones(N)),
    }[kind]
    return _solve(z, unit, None, None, list(zip(np.maximum(lower, 0), np.minimum(upper, caps), strict=True)))


def _solve(z, total, rows_, limits, bounds):
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    result = scipy.optimize.linprog(
        z, A_eq=[total], b_eq=[1], A_ub=rows_, b_ub=limits, bounds=bounds, method="highs", options=options
    )
    assert result.success
    return result.fun


@pytest.mark.parametrize("support", ["nominal", "all"])
@pytest.mark.parametrize("kind", ["l1", "total variation", "linf", "contamination", "wasserstein", "cvar"])
def test_linear_programs(kind, support):
    p, z = mild(1)
    for radius in (0.0, 1e-6, 0.05, 0.3, 0.8, 3.0):
        set = risk.CVaR(1 / (1 + radius)) if kind == "cvar" else KINDS[kind](radius * np.ones(R), support=support)
        ours = exact(set, p, z)[0]
        expected = [program(kind, support_of(kind, support, p0), p0, z0, radius) for p0, z0 in zip(p, z, strict=True)]
        np.testing.assert_allclose(ours, expected, atol=1e-8)


@pytest.mark.parametrize("support", ["nominal", "all"])
def test_intervals_are_linear_programs(support):
    p, z = mild(2)
    rng = np.random.default_rng(3)
    lower, upper = rng.uniform(0, 1, (R, N)) * p, p + rng.uniform(0, 0.5, (R, N))
    ours, probs = exact(robust.Interval(lower, upper, support=support), p, z)
    for i in range(R):
        on = p[i] > 0 if support == "nominal" else np.ones(N, bool)
        bounds = list(zip(np.where(on, lower[i], 0), np.where(on, np.minimum(upper[i], 1), 0), strict=True))
        assert ours[i] == pytest.approx(_solve(z[i], np.ones(N), None, None, bounds), abs=1e-8)
        assert (probs[i] >= np.array(bounds)[:, 0] - 1e-15).all()
        assert (probs[i] <= np.array(bounds)[:, 1] + 1e-15).all()
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-14)


def test_an_empty_interval_is_worth_nothing():
    p, z = mild(2)
    lower, upper = np.where(np.arange(R)[:, None] == 1, 0.4, 0.0), np.where(np.arange(R)[:, None] == 2, 0.1, 0.5)
    lower, upper = lower + np.zeros((R, N)), upper + np.zeros((R, N))
    value, probs = exact(robust.Interval(lower, upper, support="all"), p, z)
    assert np.isnan(value).tolist() == np.isnan(probs).all(-1).tolist() == [i in (1, 2) for i in range(R)]


# -------------------------------------------------------------------------- against convex programs


def divergence(kind: str, p0: np.ndarray, p: np.ndarray) -> float:
    """How far p is from p0, as the set defines it."""
    on = p0 > 0
    return {
        "l1": lambda: np.abs(p - p0).sum(),
        "total variation": lambda: np.abs(p - p0).sum() / 2,
        "linf": lambda: np.abs(p - p0).max(),
        "l2": lambda: np.sqrt(((p - p0) ** 2).sum()),
        "chi-square": lambda: ((p - p0)[on] ** 2 / p0[on]).sum(),
        "kl": lambda: scipy.special.rel_entr(p, p0)[p > 0].sum(),
        "burg": lambda: scipy.special.rel_entr(p0, p).sum(),
        "contamination": lambda: 1 - (p[on] / p0[on]).min(),
        "wasserstein": lambda: transport(p0, p),
    }[kind]()


def transport(p0: np.ndarray, p: np.ndarray) -> float:
    """The least mean cost of moving mass so that p0 becomes p, by linear programming."""
    sources, targets = np.kron(np.eye(N), np.ones(N)), np.tile(np.eye(N), (1, N))
    result = scipy.optimize.linprog(
        METRIC.ravel(), A_eq=np.vstack([sources, targets])[:-1], b_eq=np.append(p0, p)[:-1], method="highs"
    )
    assert result.success
    return result.fun


@pytest.mark.parametrize("kind", ["l2", "chi-square", "kl", "burg"])
def test_convex_programs(kind):
    """A solver of general programs, which knows nothing but the definition."""
    p, z = mild(4)
    p = 0.9 * p + 0.1 / N
    for radius in (0.01, 0.2, 0.9):
        ours, probs = exact(KINDS[kind](np.full(R, radius)), p, z)
        for i in (0, 4, 8, 10):
            assert ours[i] == pytest.approx(convex_program(kind, p[i], z[i], radius), abs=1e-8)
            assert ours[i] == pytest.approx(probs[i] @ z[i], abs=1e-12)


def convex_program(kind: str, p0: np.ndarray, z: np.ndarray, radius: float) -> float:
    distance, slope, most = {
        "l2": (lambda p: ((p - p0) ** 2).sum(), lambda p: 2 * (p - p0), radius**2),
        "chi-square": (lambda p: ((p - p0) ** 2 / p0).sum(), lambda p: 2 * (p - p0) / p0, radius),
        "kl": (lambda p: (p * np.log(p / p0)).sum(), lambda p: np.log(p / p0) + 1, radius),
        "burg": (lambda p: (p0 * np.log(p0 / p)).sum(), lambda p: -p0 / p, radius),
    }[kind]
    inside = {"type": "ineq", "fun": lambda p: most - distance(p), "jac": lambda p: -slope(p)}
    law = {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(N)}
    result = scipy.optimize.minimize(
        lambda p: p @ z,
        p0,
        jac=lambda p: z,
        method="SLSQP",
        bounds=[(1e-3 * x if kind == "burg" else 1e-12, 1) for x in p0],
        constraints=[law, inside],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return result.fun


# ------------------------------------------------------------------------------ against dual bounds


def highest(function, low: float, high: float) -> np.ndarray:
    """The maximum over x of a function that rises and then falls, for each row, by zooming in."""
    low, high = np.full(R, low), np.full(R, high)
    best = np.full(R, -np.inf)
    for _ in range(16):
        x = np.linspace(low, high, 41, axis=-1)
        y = function(x[..., None])
        at = np.nanargmax(y, axis=-1)[:, None]
        best = np.maximum(best, np.take_along_axis(y, at, -1)[:, 0])
        low = np.take_along_axis(x, np.maximum(at - 1, 0), -1)[:, 0]
        high = np.take_along_axis(x, np.minimum(at + 1, 40), -1)[:, 0]
    return best


def dual_bound(kind: str, support: str, p: np.ndarray, z: np.ndarray, r: float) -> np.ndarray:
    """A lower bound on the mean under every law of the set, by weak duality with the best multipliers, `[R]`."""
    allowed = support_of(kind, support, p)
    low = np.where(allowed, z, np.inf).min(-1)
    size = np.where(allowed, z, -np.inf).max(-1) - low
    size = np.where(size > 0, size, 1)
    y = np.where(allowed, (z - low[:, None]) / size[:, None], 1)  # in [0, 1]
    return low + size * DUALS[kind](p, y, allowed, r)


def at_values(bound, y):
    """The maximum of what is piecewise linear between the values."""
    return np.max([bound(y[:, [k]]) for k in range(N)], axis=0)


def transfer_dual(p, y, allowed, r):
    return at_values(lambda t: (p * np.minimum(y, t)).sum(-1) - r * t[:, 0], y)


def linf_dual(p, y, allowed, r):
    lower, upper = np.maximum(p - r, 0), np.where(allowed, np.minimum(p + r, 1), 0)
    return at_values(
        lambda t: t[:, 0] + (lower * np.maximum(y - t, 0)).sum(-1) - (upper * np.maximum(t - y, 0)).sum(-1), y
    )


def kl_dual(p, y, allowed, r):
    p, y = p[:, None], y[:, None]

    def bound(x):  # -(log E exp(-y e^x) + r) / e^x
        excess, mass = (p * np.expm1(-np.exp(x) * y)).sum(-1), (p * np.exp(-np.exp(x) * y)).sum(-1)
        log_mass = np.where(excess > -0.5, np.log1p(np.maximum(excess, -0.5)), np.log(mass))
        return -(log_mass + r) / np.exp(x[..., 0])

    return np.maximum(highest(bound, -25, 40), 0)


def chi_square_dual(p, y, allowed, r):
    mean = (p * y).sum(-1)[:, None]
    variance = (p * (y - mean) ** 2).sum(-1)[:, None]

    def bound(x):  # t - sqrt((1 + r) E((t - y)^+)^2), t = e^x; where t is above all y, without cancellation
        t = np.exp(x[..., 0])
        square = (1 + r) * (p[:, None] * np.maximum(np.exp(x) - y[:, None], 0) ** 2).sum(-1)
        gap = np.where(t < 1, t**2 - square, mean * (2 * t - mean) - variance - r * ((t - mean) ** 2 + variance))
        return gap / (t + np.sqrt(square))

    return np.maximum(highest(bound, -40, 25), 0)


def burg_dual(p, y, allowed, r):
    def bound(x):  # nu + exp(E log(y - nu) - r), nu = -e^x
        return np.exp(x[..., 0]) * np.expm1((p[:, None] * np.log1p(y[:, None] * np.exp(-x))).sum(-1) - r)

    with np.errstate(divide="ignore"):
        at_zero = np.exp(np.where(p > 0, p * np.log(np.where(p > 0, y, 1)), 0).sum(-1) - r)
    return np.maximum(highest(bound, -60, 25), at_zero)


def l2_dual(p, y, allowed, r):
    p, y = p[:, None], y[:, None]

    def bound(x):  # min over the simplex of q . y + (|q - p|^2 - r^2) e^x / 2, a projection, by sorting
        price = np.exp(x)
        target = np.where(allowed[:, None], p - y / price, -np.inf)
        ordered = -np.sort(-target, axis=-1)
        excess = np.cumsum(np.where(np.isfinite(ordered), ordered, 0), axis=-1) - 1
        last = (np.isfinite(ordered) & (ordered - excess / np.arange(1, N + 1) > 0)).sum(-1, keepdims=True)
        q = np.maximum(target - np.take_along_axis(excess, last - 1, -1) / last, 0)
        return (q * y).sum(-1) + price[..., 0] / 2 * (((q - p) ** 2).sum(-1) - r**2)

    return np.maximum(highest(bound, -25, 25), 0)


def wasserstein_dual(p, y, allowed, r):
    reach = np.where(allowed, y, np.inf)[:, None, None]

    def bound(x):  # sum_i p_i min_j (y_j + e^x metric_ij) - r e^x
        return (p[:, None] * (reach + np.exp(x)[..., None] * METRIC).min(-1)).sum(-1) - np.exp(x[..., 0]) * r

    return np.maximum(highest(bound, -40, 20), 0)


DUALS = {
    "l1": lambda p, y, allowed, r: transfer_dual(p, y, allowed, r / 2),
    "total variation": transfer_dual,
    "linf": linf_dual,
    "l2": l2_dual,
    "chi-square": chi_square_dual,
    "kl": kl_dual,
    "burg": burg_dual,
    "contamination": lambda p, y, allowed, r: (1 - min(r, 1)) * (p * y).sum(-1),
    "wasserstein": wasserstein_dual,
}


@pytest.mark.parametrize(("kind", "support"), BOTH)
def test_no_law_is_worse_and_this_one_is_in_the_set(kind, support):
    """The value is the mean under a law of the set, and a lower bound on the means of all: so it is the least."""
    for seed, radius in itertools.product(range(3), (0.0, 1e-14, 3e-10, 1e-9, 1e-5, 0.02, 0.3, 1.0, 1.9, 6.0, 60.0)):
        p, z = rows(seed)
        value, probs = exact(KINDS[kind](np.full(R, radius), support=support), p, z)
        allowed = support_of(kind, support, p)
        rounding = 2e-11 * np.where(allowed, z - z.mean(-1, keepdims=True), 0).std(-1) + 1e-14 * np.abs(z).max(-1)
        np.testing.assert_array_less(np.abs(value - dual_bound(kind, support, p, z, radius)), rounding + 1e-30)
        np.testing.assert_array_less(np.abs(value - (probs * z).sum(-1)), rounding + 1e-30)
        assert probs.min() >= 0
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-14)
        assert (probs[~allowed] == 0).all()
        if kind != "wasserstein" or seed == 0:
            distances = [divergence(kind, *laws) for laws in zip(p, probs, strict=True)]
            assert max(distances) <= radius * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_signed_measures(order):
    """For any c, the mean is at least p0 . z - radius |z - c|_q; and the measure that is given attains the best."""
    p, z = rows(5)
    allowed = p > 0
    low = np.where(allowed, z, np.inf).min(-1, keepdims=True)
    size = np.where(allowed, z, -np.inf).max(-1, keepdims=True) - low
    y = (z - low) / np.where(size > 0, size, 1)
    for radius in (0.0, 0.1, 2.0):
        value, probs = exact(robust.SignedLp(np.full(R, radius), order), p, z)

        def bound(c, radius=radius):
            far = np.where(allowed[:, None], np.abs(y[:, None] - c), 0)
            return -radius * np.linalg.norm(far, {1: math.inf, 2: 2, math.inf: 1}[order], axis=-1)

        best = (p * z).sum(-1) + np.where(size > 0, size, 1)[:, 0] * highest(bound, 0.0, 1.0)
        rounding = 1e-12 * (size[:, 0] + 1) + 1e-14 * np.abs(z).max(-1)
        np.testing.assert_array_less(np.abs(value - best), rounding)
        np.testing.assert_array_less(np.abs(value - (probs * z).sum(-1)), rounding)
        assert (np.linalg.norm(probs - p, order, axis=-1) <= radius + 1e-12).all()
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-12)
        assert (probs[~allowed] == 0).all()


# --------------------------------------------------------------------------- sets that are each other


def test_sets_that_are_the_same():
    p, z = rows(6)
    for r in (0.0, 0.1, 0.7, 3.0):
        full, discrete = np.full(R, r), 1.0 - np.eye(N)
        pairs = [
            (robust.TotalVariation(full), robust.L1(2 * full)),
            (robust.TotalVariation(full), robust.Wasserstein(full, discrete)),
            (robust.TotalVariation(full, support="all"), robust.Wasserstein(full, discrete, support="all")),
            (robust.LInf(full), robust.Interval(np.maximum(p - r, 0), p + r)),
            (risk.CVaR(1 / (1 + full)), robust.Interval(np.zeros((R, N)), (1 + r) * p)),
            (risk.EVaR(np.exp(-full)), robust.KL(full)),
            (robust.KL(full), robust.KL(full, support="all")),
            (robust.Contamination(full), robust.Interval(max(1 - r, 0) * p, np.ones((R, N)))),
            (robust.Nominal(), robust.Burg(0 * full)),
            (robust.SignedLp(full / 50, 2), robust.L2(full / 50)),  # where no probability reaches 0
        ]
        scale = 1e-12 * (1 + np.abs(z).max(-1))
        for one, other in pairs[: -1 if r > 0.1 else None]:
            calm = (p.min(-1) > r / 50) if isinstance(one, robust.SignedLp) else np.ones(R, bool)
            difference = np.abs(exact(one, p, z)[0] - exact(other, p, z)[0])
            assert (difference <= scale)[calm].all(), (one, other)


def test_sets_that_hold_each_other():
    p, z = rows(7)
    slack = 1e-12 * (1 + np.abs(z).max(-1))
    for r in (0.01, 0.2, 0.9):
        full = np.full(R, r)
        inner_and_outer = [
            (robust.ChiSquare(full), robust.KL(full)),  # KL <= log(1 + chi-square)
            (robust.KL(full), robust.L1(np.sqrt(2 * full))),  # Pinsker
            (robust.Burg(full), robust.L1(np.sqrt(2 * full))),
            (robust.L1(np.sqrt(full) / 1.0), robust.L2(np.sqrt(full))),
            (robust.L2(full), robust.LInf(full)),
            (robust.Contamination(full), robust.TotalVariation(full)),
            (robust.Contamination(full), robust.Contamination(full, support="all")),
            (robust.L1(full), robust.L1(full, support="all")),
            (robust.Burg(full), robust.Burg(full, support="all")),
            (robust.L2(full), robust.SignedLp(full, 2)),
        ]
        for inner, outer in inner_and_outer:
            assert (exact(outer, p, z)[0] <= exact(inner, p, z)[0] + slack).all(), (inner, outer)


MEASURES = [
    risk.CVaR(0.0),
    risk.CVaR(0.3),
    risk.CVaR(1.0),
    risk.EVaR(0.0),
    risk.EVaR(0.3),
    risk.EVaR(1.0),
    risk.Entropic(1.7),
    risk.Entropic(-0.4),
    risk.Expectile(0.2),
    risk.MeanCVaR(0.3, 0.6),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_measures_of_risk_are_sets(measure):
    """The value is the measure's own, on laws without symmetry; the law is one, and of the dual set."""
    assert (robust.CVaR, robust.EVaR, robust.Entropic) == (risk.CVaR, risk.EVaR, risk.Entropic)
    p, z = mild(8)
    value, probs = exact(measure, p, z)
    measured = exact(measure, p, z, lambda measure, p, z: measure(z, p))
    np.testing.assert_allclose(value, measured, atol=1e-9)
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-12)
    assert (probs[p == 0] == 0).all()
    entropy = scipy.special.rel_entr(probs, p).sum(-1)
    penalty = entropy / measure.beta if isinstance(measure, risk.Entropic) else 0
    np.testing.assert_allclose((probs * z).sum(-1) + penalty, value, atol=1e-9)
    if isinstance(measure, risk.CVaR):
        assert (measure.level * probs <= p + 1e-12).all()
    if isinstance(measure, risk.EVaR) and measure.level > 0:
        assert (entropy <= -math.log(measure.level) + 1e-12).all()
    slopes = exact(measure, p, z, jax.grad(lambda *args: robust.worst_case(*args)[0].sum(), (0, 2)))
    expected = exact(measure, p, z, slopes_of_measure)
    np.testing.assert_allclose(slopes[1], probs, atol=1e-9)
    np.testing.assert_allclose(jax.tree.leaves(slopes[0]), jax.tree.leaves(expected[0]), atol=1e-6)


# -------------------------------------------------------------------------------------- properties

laws_ = hnp.arrays(np.float64, (R, N), elements=st.sampled_from([0.0, 1e-12, 0.1, 1.0, 3.0])).map(
    lambda w: (w + (w.sum(-1, keepdims=True) == 0)) / (w + (w.sum(-1, keepdims=True) == 0)).sum(-1, keepdims=True)
)
values_ = hnp.arrays(np.float64, (R, N), elements=st.floats(-20, 20).map(lambda x: round(x, 3)))
radii_ = hnp.arrays(np.float64, R, elements=st.sampled_from([0.0, 1e-6, 0.01, 0.2, 0.5, 1.0, 2.5, 100.0]))


@settings(deadline=None, max_examples=12)
@given(laws_, values_, radii_, st.floats(-50, 50), st.floats(0.1, 5), st.sampled_from(["nominal", "all"]))
def test_worst_cases_move_with_the_values(p, z, radii, shift, scale, support):
    order = np.random.default_rng(0).permutation(N)
    for kind in KINDS.values():
        worst = functools.partial(exact, kind(radii, support=support))
        value, probs = worst(p, z)
        close = functools.partial(np.testing.assert_allclose, atol=1e-9)
        close(worst(p, z + shift)[0], value + shift)
        close(worst(p, scale * z)[0], scale * value)
        if kind is not KINDS["wasserstein"]:
            close(worst(p[:, order], z[:, order])[0], value)
        assert (value <= (p * z).sum(-1) + 1e-9).all()  # no better than nominal
        assert (value <= exact(kind(radii / 2, support=support), p, z)[0] + 1e-9).all()  # the worse, the larger
        higher = worst(p, z + np.linspace(0, 2, N))[0]
        assert (higher >= value - 1e-9).all()
        if kind in (robust.L1, robust.KL):
            hopeful = kind(radii, support=support, optimistic=True)
            close(exact(hopeful, p, z)[0], -worst(p, -z)[0])
        assert probs.min() >= 0
        assert (np.abs(probs.sum(-1) - 1) <= 1e-13).all()


@pytest.mark.parametrize(("kind", "support"), BOTH)
def test_no_choice_and_no_care_leave_the_nominal_law(kind, support):
    p, z = rows(9)
    value, probs = exact(KINDS[kind](np.zeros(R), support=support), p, z)
    nominal = exact(robust.Nominal(), p, z)
    np.testing.assert_array_equal(probs, p)
    np.testing.assert_array_equal(nominal[1], p)
    np.testing.assert_allclose(value, nominal[0], rtol=1e-14)
    value, probs = exact(KINDS[kind](np.full(R, 0.7), support=support), p, np.full((R, N), 0.1))
    np.testing.assert_array_equal(probs, p)
    np.testing.assert_allclose(value, 0.1, rtol=1e-15)


def test_no_care_leaves_the_nominal_law_of_an_interval_that_holds_it():
    p = rows(9)[0]
    probs = exact(robust.Interval(p / 2, np.minimum(2 * p, 1)), p, np.full((R, N), 0.1))[1]
    np.testing.assert_array_equal(probs, p)
    probs = exact(robust.Interval(np.zeros((R, N)), np.full((R, N), 0.3), support="all"), p, np.full((R, N), 0.1))[1]
    assert probs.max() <= 0.3
    np.testing.assert_allclose(probs.sum(-1), 1)


@pytest.mark.parametrize(("kind", "support"), BOTH)
def test_large_radii_leave_the_least_value(kind, support):
    p, z = rows(10)
    allowed = support_of(kind, support, p)
    p, z = p[[0, 1, 4, 5, 6, 7, 8]], z[[0, 1, 4, 5, 6, 7, 8]]
    p, z, allowed = (np.resize(x, (R, N)) for x in (p, z, allowed[[0, 1, 4, 5, 6, 7, 8]]))
    for radius in (1e15, 1e30, math.inf):
        value, probs = exact(KINDS[kind](np.full(R, radius), support=support), p, z)
        np.testing.assert_allclose(value, np.where(allowed, z, np.inf).min(-1), rtol=1e-12, atol=1e-200)
        assert np.isfinite(probs).all()
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-14)


def test_padded_slots_have_no_part():
    """A row with slots of no probability is as the row without, whatever their values."""
    p, z = mild(11)
    p[:, 4:] = 0
    p = (p + 0.01 * (np.arange(N) < 4)) / (p + 0.01 * (np.arange(N) < 4)).sum(-1, keepdims=True)
    sets = [kind(np.full(R, 0.3)) for kind in KINDS.values()] + [robust.SignedLp(np.full(R, 0.3), k) for k in (1, 2)]
    sets += [robust.SignedLp(np.full(R, 0.3), math.inf), risk.CVaR(0.3), risk.EVaR(0.3), risk.Entropic(2.0)]
    for set in [*sets, robust.Interval(np.zeros((R, N)), np.full((R, N), 0.7))]:
        wild = np.where(np.arange(N) < 4, z, [[-1e9], [1e9], [0.0]] * 4)
        for ours, other in zip(exact(set, p, z), exact(set, p, wild), strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-12, err_msg=str(set))


# ------------------------------------------------------------------------------------------- faces


@pytest.mark.parametrize("n", [1, 2, 6, 50])
def test_threshold_is_its_definition(n):
    """Also with ties, states without capacity and budgets of 0, of all and of more; each row apart, and together."""
    rng = np.random.default_rng(n)
    capacity = rng.integers(0, 4, (R, n)) / 8
    capacity[:, 0] += 0.125
    values = np.round(rng.normal(size=n), 1)
    budget = rng.choice([0.0, 0.125, 1.0, 1.5, capacity[0].sum(), 1e3], (R, 1))
    with jax.enable_x64(True):
        together = np.asarray(jax.jit(threshold)(values, capacity, budget))
        apart = np.asarray(jax.jit(threshold)(np.tile(values, (R, 1)), capacity, budget))
    for i in range(R):
        passed = [t for t in np.unique(values) if capacity[i, values <= t].sum() > budget[i]]
        expected = min(passed) if passed else values[capacity[i] > 0].max()
        assert together[i] == apart[i] == expected


def test_values_that_all_rows_share_are_weighed_in_one_order():
    rng = np.random.default_rng(12)
    p, z = rng.dirichlet(np.ones(50), (3, 4)), np.round(rng.normal(size=50), 1)
    p[0] *= rng.random((4, 50)) < 0.6
    p /= p.sum(-1, keepdims=True)
    for set in [robust.L1(np.linspace(0, 2.2, 3)[:, None]), robust.KL(0.2)]:
        together, apart = exact(set, p, z), exact(set, p, np.broadcast_to(z, p.shape))
        for one, other in zip(together, apart, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-13)


def test_batches_are_rows():
    p, z = mild(13)
    radii = np.linspace(0, 1, R)
    for kind in (robust.L1, robust.KL):
        value, probs = exact(kind(radii), p, z)
        with jax.enable_x64(True):
            lanes = jax.vmap(lambda r, p, z, kind=kind: robust.worst_case(kind(r), p, z))(radii, p, z)
        np.testing.assert_allclose(lanes[0], value, atol=1e-13)
        np.testing.assert_allclose(lanes[1], probs, atol=1e-13)
    some = np.broadcast_to(p[5], p.shape), np.broadcast_to(z[5], z.shape)
    of_radii = exact(robust.L1(radii), *some)
    for axes in ((p[5], z[5]), (some[0], z[5]), (p[5], some[1])):  # what the rows share need not be repeated
        for one, other in zip(exact(robust.L1(radii), *axes), of_radii, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-13)


def test_float32_agrees_with_float64():
    """To some units of rounding of the range; more for small radii, whose effect is the square root of a difference."""
    p, z = mild(14)
    p, z = p.astype(np.float32), z.astype(np.float32)
    for kind, radius in itertools.product(KINDS.values(), (0.0, 1e-5, 1e-3, 0.05, 0.5, 5.0)):
        value, probs = robust.worst_case(kind(jnp.full(R, radius, jnp.float32)), p, z)
        assert value.dtype == probs.dtype == jnp.float32
        expected = exact(kind(np.full(R, np.float32(radius))), p, z)
        np.testing.assert_allclose(value, expected[0], atol=2e-5)
        np.testing.assert_allclose(probs, expected[1], atol=2e-5)
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)


def test_dtype_is_that_of_law_and_values():
    with jax.enable_x64(True):
        single = np.full(N, 1 / N, np.float32)
        for kind in KINDS.values():
            value, probs = jax.eval_shape(robust.worst_case, kind(np.float64(0.1)), single, single)
            assert value.dtype == probs.dtype == np.float32
            assert jax.eval_shape(robust.worst_case, kind(1), single, single)[0].dtype == np.float32
            assert (
                jax.eval_shape(robust.worst_case, kind(0.1), single, single.astype(np.float64))[0].dtype == np.float64
            )


def test_the_set_of_a_row_of_a_model():
    states, actions = 3, 2
    assert robust.L1(0.3).row(1, 0) == robust.L1(0.3)
    assert robust.L1(np.arange(3.0)).row(2, 0).radius == 2
    by_action = np.arange(6.0).reshape(states, actions)
    assert robust.KL(by_action, support="all", optimistic=True).row(2, 1) == robust.KL(5.0, "all", True)
    assert robust.row(risk.CVaR(by_action / 6), 1, 1).level == 0.5
    bounds = np.arange(18.0).reshape(states, actions, 3)
    np.testing.assert_array_equal(robust.Interval(0.0, bounds).row(1, 0).upper, [6, 7, 8])
    np.testing.assert_allclose(robust.Wasserstein(0.1, METRIC).row(1, 0).metric, METRIC, rtol=1e-6)
    slots = np.array([4, 0, 0])  # the last one is padding
    sparse = robust.Wasserstein(by_action, METRIC).row(1, 0, slots)
    assert sparse.radius == 2
    np.testing.assert_allclose(sparse.metric, METRIC[slots][:, slots], rtol=1e-6)
    batch = robust.L2(by_action).row(np.arange(3)[:, None], np.arange(2))
    np.testing.assert_array_equal(batch.radius, by_action)
    traced = jax.jit(jax.vmap(lambda s: robust.L1(jnp.arange(3.0)).row(s, 0).radius))(jnp.arange(3))
    np.testing.assert_array_equal(traced, np.arange(3))


def test_intervals_between_two_models():
    transition = np.random.default_rng(16).dirichlet(np.ones(3), (3, 2))
    model = mdp.MDP(transition, np.zeros((3, 2)), 0.9, np.ones(3) / 3)
    low, high = (model.replace(transition=c * transition) for c in (0.5, 2.0))
    set = robust.Interval.from_models(low, high, support="all")
    np.testing.assert_array_equal(set.lower, low.transition)
    np.testing.assert_array_equal(set.upper, high.transition)
    assert set.support == "all"
    slots = mdp.SparseMDP(np.zeros((3, 2, 1), int), np.ones((3, 2, 1)), np.zeros((3, 2)), 0.9, np.ones(3) / 3)
    for other in (slots, slots.replace(successors=np.ones((3, 2, 1), int))):
        with pytest.raises(ValueError, match="same successors"):
            robust.Interval.from_models(model if other is slots else slots, other)


def test_structures_tell_sets_apart():
    """`jit` takes the program of another class of the same structure else, now and then."""
    sets = [kind(0.5, **flags) for kind in KINDS.values() for flags in ({}, {"support": "all"}, {"optimistic": True})]
    sets += [robust.SignedLp(0.5, order) for order in (1, 2)] + [robust.Nominal(), robust.Interval(0.5, 0.5)]
    assert all(jax.tree.structure(a) != jax.tree.structure(b) for a, b in itertools.combinations(sets, 2))
    assert jax.tree.leaves(robust.L1(0.5, support="all")) == [0.5]
    with_keys = jax.tree_util.tree_flatten_with_path(robust.Interval(0.1, 0.2))[0]
    assert [jax.tree_util.keystr(path) for path, _ in with_keys] == [".lower", ".upper"]


def test_wrong_arguments_are_refused():
    for kind, wrong in itertools.product(KINDS.values(), (-0.1, math.nan, np.float32(-1), np.array([0.1, -2.0]))):
        with pytest.raises(ValueError, match=r"radius must be at least 0, got (-|nan)"):
            kind(wrong)
    with pytest.raises(ValueError, match="radius must be at least 0"):
        robust.L1(jnp.array([0.1, -0.1]))
    for flags in ({"support": "some"}, {"optimistic": 1}):
        with pytest.raises(ValueError, match=next(iter(flags))):
            robust.KL(0.1, **flags)
    with pytest.raises(ValueError, match="order must be"):
        robust.SignedLp(0.1, 3)
    with pytest.raises(ValueError, match=r"lower is above Interval.upper at \(1,\)"):
        robust.Interval(np.array([0.1, 0.5]), np.array([0.2, 0.4]))
    with pytest.raises(ValueError, match="lower must be at least 0"):
        robust.Interval(-0.1, 0.4)
    for wrong in (np.ones((3, 3)), np.ones((3, 2)), np.zeros((2, 2)), np.where(np.eye(2), 0, np.inf)):
        with pytest.raises(ValueError, match="metric"):
            robust.Wasserstein(0.1, wrong)
    for wrong in (0.1, robust.L1):
        with pytest.raises(ValueError, match="expected a set"):
            robust.worst_case(wrong, jnp.ones(3) / 3, jnp.zeros(3))
    with pytest.raises(ValueError, match="nominal has shape"):
        robust.worst_case(robust.L1(0.1), jnp.ones(3) / 3, jnp.zeros(2))
    with pytest.raises(ValueError, match="nominal has shape"):
        robust.worst_case(robust.L1(0.1), 1.0, jnp.zeros(2))


def test_what_is_not_a_number_stays_so():
    p, z = mild(15)
    broken = np.where(np.arange(R)[:, None] == 8, np.nan, z)
    for kind in KINDS.values():
        value = exact(kind(np.full(R, 0.2)), p, broken)[0]
        assert np.isnan(value).tolist() == [i == 8 for i in range(R)]
        negative = jax.tree.unflatten(jax.tree.structure(kind(0.2)), jax.tree.leaves(kind(np.full(R, 0.2))))
        leaves, tree = jax.tree.flatten(negative)
        for wrong in (-0.2, np.nan):
            radius = np.where(np.arange(R) == 3, wrong, 0.2)
            value = exact(tree.unflatten([radius, *leaves[1:]]), p, z)[0]
            assert np.isnan(value).tolist() == [i == 3 for i in range(R)]
