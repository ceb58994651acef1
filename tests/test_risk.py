"""Measures of risk against their definitions, their duals (linear and convex programs) and enumeration."""

from __future__ import annotations

import functools
import itertools
import math

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from hypothesis import given, settings

from jaxrl import risk
from jaxrl.distributional import quantile
from jaxrl.risk import scoring

N = 6  # atoms: one shape, so that each measure compiles once
DISTORTIONS = [risk.CVaR(0.3), risk.Wang(-0.8), risk.Wang(0.5), risk.Pow(-2.0), risk.Pow(1.5), risk.CPW(0.71)]
MEASURES = [
    risk.Mean(),
    risk.Entropic(0.7),
    risk.Entropic(-0.7),
    risk.EVaR(0.3),
    risk.Expectile(0.2),
    risk.Expectile(0.8),
    risk.MeanStd(0.5),
    risk.MeanCVaR(0.3, 0.6),
    *DISTORTIONS,
]


@functools.partial(jax.jit, static_argnums=0)
def _call(name, measure, *args):
    return getattr(measure, name)(*args)


@jax.jit
def _slopes(measure, atoms, probs):
    return jax.value_and_grad(lambda m, a, p: m(a, p), (0, 1, 2))(measure, atoms, probs)


def exact(measure, *args, name="__call__") -> np.ndarray:
    """What a measure gives, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_call(name, jax.tree.map(jnp.float64, measure), *args))


def exact_all(measures, atoms, probs) -> np.ndarray:
    return np.array([exact(measure, atoms, probs) for measure in measures])


def exact_slopes(measure, atoms, probs):
    """The gradients in the measure, the atoms and the probabilities, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _slopes(jax.tree.map(jnp.float64, measure), atoms, probs)[1])


def single(tree):
    return jax.tree.map(jnp.float32, tree)


def some_law(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=N), rng.dirichlet(np.ones(N))


atoms_ = hnp.arrays(np.float64, N, elements=st.floats(-20, 20).map(lambda x: round(x, 3)))
probs_ = hnp.arrays(np.float64, N, elements=st.sampled_from([0.0, 0.1, 1.0, 3.0])).map(
    lambda w: (w + (w.sum() == 0)) / (w + (w.sum() == 0)).sum()
)
units = st.floats(0.01, 1.0).map(lambda x: round(x, 3))

# ------------------------------------------------------------------------------- against definitions


def smallest_under(probs, bound, atoms):
    """min {q . z : 0 <= q <= bound, sum q = 1}, by linear programming."""
    program = scipy.optimize.linprog(atoms, A_eq=[np.ones(N)], b_eq=[1], bounds=list(zip([0] * N, bound, strict=True)))
    assert program.success
    return program.fun, program.x


@pytest.mark.parametrize("level", [1e-9, 0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_cvar_is_its_linear_program_and_its_definition(level, seed):
    atoms, probs = some_law(seed)
    ours = exact(risk.CVaR(level), atoms, probs)
    value, worst = smallest_under(probs, probs / level, atoms)
    assert ours == pytest.approx(value, rel=1e-9)
    assert ours == pytest.approx(max(v - probs @ np.maximum(v - atoms, 0) / level for v in atoms), rel=1e-9)
    np.testing.assert_allclose(exact_slopes(risk.CVaR(level), atoms, probs)[1], worst, atol=1e-9)


def test_cvar_splits_the_atom_on_the_border():
    atoms, probs = np.array([5.0, -1.0, 2.0, 9.0, 7.0, 8.0]), np.array([0.25, 0.25, 0.25, 0.25, 0.0, 0.0])
    assert exact(risk.CVaR(0.25), atoms, probs) == -1
    assert exact(risk.CVaR(0.375), atoms, probs) == pytest.approx((0.25 * -1 + 0.125 * 2) / 0.375)
    assert exact(risk.CVaR(0.5), atoms, probs) == pytest.approx(0.5)
    assert exact(risk.CVaR(0.0), atoms, probs) == -1
    assert exact(risk.CVaR(0.0), atoms + 1, 1 - np.eye(N)[1]) == 3  # an atom without mass is none


def test_truncated_targets_have_the_mean_of_cvar():
    targets = np.sort(some_law(3)[0])
    for keep in (1, 2.5, 4, 6):
        weights = np.asarray(quantile.truncated_weights(N, keep))
        assert weights @ targets == pytest.approx(exact(risk.CVaR(keep / N), targets, None), rel=1e-5)


@pytest.mark.parametrize("beta", [-40.0, -1.0, -1e-3, -1e-7, 0.0, 1e-9, 1e-5, 3e-4, 0.1, 2.0, 300.0])
def test_entropic_is_its_definition(beta):
    atoms, probs = some_law(4)
    if abs(beta) < 1e-2:  # the series of cumulants, the fifth is too small to see
        third, fourth = (probs @ (atoms - probs @ atoms) ** k for k in (3, 4))
        variance = probs @ atoms**2 - (probs @ atoms) ** 2
        expected = probs @ atoms - beta / 2 * variance + beta**2 / 6 * third - beta**3 / 24 * (fourth - 3 * variance**2)
    else:
        expected = -scipy.special.logsumexp(-beta * atoms, b=probs) / beta
    assert exact(risk.Entropic(beta), atoms, probs) == pytest.approx(expected, abs=1e-9 if abs(beta) > 1e-4 else 1e-13)


def test_entropic_of_huge_exponents_in_float32():
    atoms, probs = jnp.array([-50.0, 0.0, 400.0, 1000.0, -900.0, 3000.0]), jnp.array([0.1, 0.4, 0.4, 0.1, 0.0, 0.0])
    betas = jnp.array([5.0, 1e3, -5.0, -1e3])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda beta: risk.Entropic(beta)(atoms, probs))))(betas)
    edges = np.where(betas > 0, -50.0, 1000.0)
    np.testing.assert_allclose(values, edges - math.log(0.1) / betas, rtol=1e-6)
    chex.assert_tree_all_finite(slopes)


def test_entropic_sees_a_rare_disaster_in_float32():
    atoms, probs = single([np.array([0.0, 50.0, 60.0, 70.0, 80.0, 90.0]), np.array([1e-6, 0.2, 0.2, 0.2, 0.2, 0.2])])
    assert _slopes(single(risk.Entropic(1.0)), atoms, probs)[0] == pytest.approx(math.log(1e6), rel=1e-6)


@pytest.mark.parametrize("level", [1e-4, 0.02, 0.3, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("seed", range(2))
def test_evar_is_its_definition_and_a_feasible_law_attains_it(level, seed):
    """The definition bounds it from below, any law within the budget from above."""
    atoms, probs = some_law(seed)
    ours = exact(risk.EVaR(level), atoms, probs)

    def minus_bound(log_beta):
        beta = math.exp(log_beta)
        return (scipy.special.logsumexp(-beta * atoms, b=probs) - math.log(level)) / beta

    grid = np.linspace(-15, 30, 600)
    start = grid[np.argmin([minus_bound(b) for b in grid])]
    best = scipy.optimize.minimize_scalar(minus_bound, bounds=(start - 0.1, start + 0.1), method="bounded")
    assert ours == pytest.approx(-best.fun, abs=1e-6)

    worst = exact_slopes(risk.EVaR(level), atoms, probs)[1]
    assert worst.min() >= 0
    assert worst.sum() == pytest.approx(1, abs=1e-9)
    assert scipy.special.rel_entr(worst, probs).sum() <= -math.log(level) + 1e-7
    assert worst @ atoms == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5, 0.63, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_expectile_balances_gains_and_losses(tau, seed):
    atoms, probs = some_law(seed)
    ours = exact(risk.Expectile(tau), atoms, probs)
    if tau in (0.0, 1.0):
        assert ours == (atoms.min() if tau == 0 else atoms.max())
        return

    def balance(e):
        return tau * probs @ np.maximum(atoms - e, 0) - (1 - tau) * probs @ np.maximum(e - atoms, 0)

    assert ours == pytest.approx(scipy.optimize.brentq(balance, atoms.min(), atoms.max(), xtol=1e-13), abs=1e-11)


@pytest.mark.parametrize("measure", DISTORTIONS, ids=str)
def test_distorting_measures_are_the_mean_over_distorted_fractions(measure):
    """Quantiles read at distorted fractions, as IQN does: the two maps of a measure are inverse to each other."""
    atoms, probs = some_law(5)
    taus = (np.arange(200_000) + 0.5) / 200_000
    fractions = exact(measure, taus, name="distort_fraction")
    order = np.argsort(atoms)
    read = atoms[order][np.searchsorted(np.cumsum(probs[order]), fractions)]
    assert exact(measure, atoms, probs) == pytest.approx(read.mean(), abs=2e-4)
    back = exact(measure, fractions[::1000], name="distort_probability")
    np.testing.assert_allclose(back, taus[::1000], atol=1e-9)


def test_wang_is_the_choquet_integral_and_shifts_a_normal_law():
    atoms, probs = some_law(6)
    for eta in (-1.5, 0.0, 0.7):
        order = np.argsort(atoms)
        weights = np.diff(scipy.stats.norm.cdf(scipy.stats.norm.ppf(np.append(0, np.cumsum(probs[order]))) - eta))
        weights[-1] = 1 - weights[:-1].sum()
        assert exact(risk.Wang(eta), atoms, probs) == pytest.approx(weights @ atoms[order], abs=1e-12)
    normal = 2 + 3 * scipy.stats.norm.ppf((np.arange(20000) + 0.5) / 20000)
    assert exact(risk.Wang(-0.75), normal, None) == pytest.approx(2 - 0.75 * 3, abs=0.01)  # averse


@pytest.mark.parametrize("draws", [2, 3])
def test_pow_is_the_mean_of_the_smallest_or_largest_of_several_draws(draws):
    atoms, probs = some_law(7)
    picks = list(itertools.product(range(N), repeat=draws))
    chance = [math.prod(probs[list(pick)]) for pick in picks]
    least, most = (sum(c * f(atoms[list(pick)]) for c, pick in zip(chance, picks, strict=True)) for f in (min, max))
    assert exact(risk.Pow(1.0 - draws), atoms, probs) == pytest.approx(least, abs=1e-12)
    assert exact(risk.Pow(draws - 1.0), atoms, probs) == pytest.approx(most, abs=1e-12)


def test_cpw_on_fractions_is_not_cpw_on_probabilities():
    def curve(x, eta=0.71):
        return x**eta / (x**eta + (1 - x) ** eta) ** (1 / eta)

    taus = np.array([0.01, 0.2, 0.5, 0.9])
    np.testing.assert_allclose(exact(risk.CPW(), taus, name="distort_fraction"), curve(taus), rtol=1e-12)
    inverse = [scipy.optimize.brentq(lambda t, c=c: curve(t) - c, 1e-15, 1 - 1e-15, xtol=1e-15) for c in taus]
    np.testing.assert_allclose(exact(risk.CPW(), taus, name="distort_probability"), inverse, atol=1e-12)

    atoms, probs = np.array([-10.0, 0.0, 1.0, 2.0, 3.0, 4.0]), np.full(N, 1 / 6)
    with jax.enable_x64(True):
        on_probabilities = float(jax.jit(lambda: risk.choquet(atoms, probs, risk.CPW(0.71).distort_fraction))())
    expected = np.diff(curve(np.arange(7) / 6)) @ atoms
    assert on_probabilities == pytest.approx(expected, abs=1e-12)
    assert abs(on_probabilities - exact(risk.CPW(), atoms, probs)) > 0.1


def test_mean_with_a_penalty():
    atoms, probs = some_law(8)
    mean, std = probs @ atoms, math.sqrt(probs @ atoms**2 - (probs @ atoms) ** 2)
    assert exact(risk.MeanStd(0.7), atoms, probs) == pytest.approx(mean - 0.7 * std, abs=1e-12)
    cvar = smallest_under(probs, probs / 0.2, atoms)[0]
    assert exact(risk.MeanCVaR(0.2, 0.25), atoms, probs) == pytest.approx(0.75 * mean + 0.25 * cvar, abs=1e-9)


# -------------------------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=15)
@given(atoms_, probs_, st.floats(-50, 50), st.floats(0.1, 5), hnp.arrays(np.float64, N, elements=st.floats(0, 5)))
def test_measures_move_with_the_law(atoms, probs, shift, scale, increase):
    order = np.random.default_rng(0).permutation(N)
    massive = atoms[probs > 0]
    hidden = np.where(probs > 0, atoms, -1e4)  # atoms without mass may be anything
    values, shifted, permuted, elsewhere, scaled, increased = (
        exact_all(MEASURES, *law)
        for law in (
            (atoms, probs),
            (atoms + shift, probs),
            (atoms[order], probs[order]),
            (hidden, probs),
            (scale * atoms, probs),
            (atoms + increase, probs),
        )
    )
    homogeneous = np.array([not isinstance(measure, risk.Entropic) for measure in MEASURES])
    monotone = np.array([not isinstance(measure, risk.MeanStd) for measure in MEASURES])
    np.testing.assert_allclose(shifted, values + shift, atol=1e-8)
    np.testing.assert_allclose(permuted, values, atol=1e-8)
    np.testing.assert_allclose(elsewhere, values, atol=1e-8)
    np.testing.assert_allclose(scaled[homogeneous], scale * values[homogeneous], atol=1e-8)
    assert (increased >= values - 1e-8)[monotone].all()
    assert (values >= massive.min() - 1e-8)[monotone].all()
    assert (values <= massive.max() + 1e-8)[monotone].all()


@settings(deadline=None, max_examples=15)
@given(atoms_, probs_, units, units)
def test_order_of_measures_and_of_levels(atoms, probs, a, b):
    low, high = min(a, b), max(a, b)
    kinds = {
        "evar": (risk.EVaR(low), risk.EVaR(high)),
        "cvar": (risk.CVaR(low), risk.CVaR(high)),
        "entropic": (risk.Entropic(high), risk.Entropic(low)),
        "wang": (risk.Wang(-high), risk.Wang(-low)),
        "pow": (risk.Pow(-high), risk.Pow(-low)),
        "expectile": (risk.Expectile(low / 2), risk.Expectile(high / 2)),
    }
    values = exact_all(itertools.chain(*kinds.values()), atoms, probs)
    for kind, (averse, less) in zip(kinds, values.reshape(-1, 2), strict=True):
        assert (np.diff([atoms[probs > 0].min(), averse, less, probs @ atoms]) >= -1e-8).all(), kind
    assert values[0] <= values[2] + 1e-8  # EVaR is at most CVaR
    assert values[1] <= values[3] + 1e-8


@settings(deadline=None, max_examples=10)
@given(atoms_, probs_)
def test_measures_that_are_the_mean(atoms, probs):
    neutral = [
        risk.CVaR(1.0),
        risk.EVaR(1.0),
        risk.Entropic(0.0),
        risk.Expectile(0.5),
        risk.Wang(0.0),
        risk.Pow(0.0),
        risk.CPW(1.0),
        risk.MeanStd(0.0),
        risk.MeanCVaR(1.0, 0.5),
    ]
    least = [risk.CVaR(0.0), risk.EVaR(0.0), risk.Expectile(0.0)]
    values = exact_all(neutral + least, atoms, probs)
    np.testing.assert_allclose(values[: len(neutral)], probs @ atoms, atol=1e-9)
    np.testing.assert_allclose(values[len(neutral) :], atoms[probs > 0].min(), atol=1e-9)


# --------------------------------------------------------------------------------------- gradients

LAWS = {
    "generic": some_law(9),
    "sure": (np.full(N, 2.0), np.full(N, 1 / N)),
    "ties": (np.array([1.0, 1.0, -2.0, -2.0, 3.0, 3.0]), np.full(N, 1 / N)),
    "one atom": (np.arange(6.0), np.eye(N)[2]),
}
BORDERS = [
    *(risk.CVaR(x) for x in (0.0, 1e-30, 1 / 3, 0.5, 1.0)),
    *(risk.EVaR(x) for x in (0.0, 1e-30, 1 / 3, 0.5, 1.0)),
    *(risk.Entropic(x) for x in (-1e6, -1e-12, 0.0, 1e-12, 1e-3, 1e6)),
    *(risk.Expectile(x) for x in (0.0, 0.5, 1.0)),
    *(risk.Wang(x) for x in (-6.0, 0.0, 6.0)),
    *(risk.Pow(x) for x in (-30.0, 0.0, 30.0)),
    *(risk.CPW(x) for x in (0.4, 1.0)),
    *(risk.MeanStd(x) for x in (0.0, 1.0)),
    risk.MeanCVaR(0.0, 1.0),
]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_gradients_are_finite_at_every_border(law):
    atoms, probs = (jnp.asarray(x, jnp.float32) for x in law)
    for measure in BORDERS:
        value, gradients = _slopes(single(measure), atoms, probs)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradients))), (measure, value, gradients)
        assert gradients[1].sum() == pytest.approx(1, abs=1e-4), measure  # it moves with the law


def test_gradients_are_slopes():
    atoms, probs = some_law(10)
    direction = np.random.default_rng(11).normal(size=N)
    change = direction - direction.mean()  # of the probabilities, whose sum stays 1
    h = 1e-6
    measures = MEASURES[1:]

    def slope(f):
        return (f(h) - f(-h)) / (2 * h)

    def shifted(t, i):
        """Every measure with t added to its i-th setting."""
        leaves = [jax.tree.flatten(m) for m in measures]
        return [tree.unflatten([x + t * (i == j) for j, x in enumerate(xs)]) for xs, tree in leaves]

    of_measures, of_atoms, of_probs = zip(*(exact_slopes(m, atoms, probs) for m in measures), strict=True)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(np.array(of_atoms) @ direction, slope(lambda t: exact_all(measures, atoms + t * direction, probs)))
    close(np.array(of_probs) @ change, slope(lambda t: exact_all(measures, atoms, probs + t * change)))
    for i in range(2):
        close(
            [(*jax.tree.leaves(m), 0.0)[i] for m in of_measures],
            slope(lambda t, i=i: exact_all(shifted(t, i), atoms, probs)),
        )


def test_slopes_at_the_borders_are_one_sided_limits():
    atoms, probs = some_law(12)
    mean, variance = probs @ atoms, probs @ atoms**2 - (probs @ atoms) ** 2
    measures = [*(risk.Entropic(beta) for beta in (0.0, 1e-10, -1e-6)), risk.CVaR(1.0), risk.CVaR(0.0), risk.EVaR(1.0)]
    of_measures, of_atoms, _ = zip(*(exact_slopes(m, atoms, probs) for m in measures), strict=True)
    for i in range(3):
        assert of_measures[i].beta == pytest.approx(-variance / 2, rel=1e-4)
    assert of_measures[3].level == pytest.approx(atoms.max() - mean, rel=1e-9)
    assert of_measures[4].level == 0
    np.testing.assert_allclose(of_atoms[5], probs, atol=1e-12)
    for beta in (0.0, 1e-6, 1e-4, 1e-3):  # and float32 sees the same
        gradients = _slopes(single(risk.Entropic(beta)), *single([atoms, probs]))[1]
        assert gradients[0].beta == pytest.approx(-variance / 2, rel=0.01)
    atoms, probs = np.array([-10.0, 0, 0, 0, 0, 0]), np.array([0.1, 0.18, 0.18, 0.18, 0.18, 0.18])
    for beta in (1e-3, -1.8e-3, 2e-3, -3e-3):  # on both sides of where the series of cumulants (9, -72, 414) takes over
        gradients = _slopes(single(risk.Entropic(beta)), *single([atoms, probs]))[1]
        assert gradients[0].beta == pytest.approx(-9 / 2 - 72 * beta / 3 - 414 * beta**2 / 8, rel=2e-4)


# ---------------------------------------------------------------------- losses and scoring functions


@jax.jit
@jax.value_and_grad
def mean_loss(value, atoms, probs, beta):
    return probs @ risk.itakura_saito(value, atoms, beta)


itakura_saito = jax.jit(risk.itakura_saito)
slopes_of_itakura_saito = jax.jit(jax.vmap(jax.grad(risk.itakura_saito, (0, 1, 2))))


@pytest.mark.parametrize("beta", [-3.0, -0.2, 0.0, 1e-5, 0.4, 5.0])
def test_itakura_saito_is_least_at_the_entropic_value(beta):
    atoms, probs = some_law(13)
    worth = exact(risk.Entropic(beta), atoms, probs)
    with jax.enable_x64(True):
        best = scipy.optimize.minimize_scalar(
            lambda v: float(mean_loss(v, atoms, probs, beta)[0]), bounds=(-9, 9), options={"xatol": 1e-9}
        )
        slope = float(mean_loss(worth, atoms, probs, beta)[1])
    assert best.x == pytest.approx(worth, abs=1e-5)
    assert slope == pytest.approx(0, abs=1e-9)


def test_itakura_saito_is_its_formula_and_half_the_squared_error_at_zero():
    v, y = np.array([1.0, -2.0, 0.3]), np.array([0.5, 1.5, 0.3])
    with jax.enable_x64(True):
        for beta in (2.0, -0.5):
            x = beta * (v - y)
            np.testing.assert_allclose(itakura_saito(v, y, beta), (np.exp(x) - x - 1) / beta**2, rtol=1e-12)
        np.testing.assert_allclose(itakura_saito(v, y, 0.0), (v - y) ** 2 / 2, rtol=1e-14)
        for x in (1e-4, -1e-4, 1e-3, 0.1):  # on both sides of where the series takes over
            expected = 100.0 * sum(x**k / math.factorial(k + 2) for k in range(12))
            assert float(itakura_saito(10.0, 0.0, x / 10.0)) == pytest.approx(expected, rel=1e-11)
    betas = jnp.array([0.0, 1e-7, 1e-4, -1e-3])
    of_value, _, of_beta = slopes_of_itakura_saito(jnp.full(4, 2.0), jnp.full(4, 0.5), betas)
    np.testing.assert_allclose(of_value, 1.5, rtol=2e-3)
    np.testing.assert_allclose(of_beta, 1.5**3 / 6, rtol=2e-3)


def test_itakura_saito_has_finite_gradients_towards_the_target():
    beta, exponent = (x.ravel() for x in np.meshgrid([0.5, -0.5, 5.0], [-1e4, -80.0, -50.0, 50.0, 80.0, 1e4]))
    error = exponent / beta
    slopes = slopes_of_itakura_saito(*(jnp.asarray(x, jnp.float32) for x in (error + 3, np.full(18, 3.0), beta)))
    chex.assert_tree_all_finite((slopes, jax.tree.map(np.square, slopes)))  # also squared, as in Adam
    np.testing.assert_array_equal(np.sign(slopes[0]), np.sign(error))


SCORES = {
    "variance": (scoring.Variance(), lambda z, p: p @ z**2 - (p @ z) ** 2),
    "shortfall": (scoring.ExpectedShortfall(0.3), lambda z, p: -exact(risk.CVaR(0.3), z, p)),
    "evar": (scoring.EntropicShortfall(0.3), lambda z, p: -exact(risk.EVaR(0.3), z, p)),
    "mean-variance": (
        scoring.MeanRisk(scoring.Variance(), 0.4),
        lambda z, p: 0.4 * (p @ z**2 - (p @ z) ** 2) - p @ z,
    ),
    "mean-shortfall": (
        scoring.MeanRisk(scoring.ExpectedShortfall(0.3), 2.0),
        lambda z, p: -2 * exact(risk.CVaR(0.3), z, p) - p @ z,
    ),
}


@jax.jit
def minimiser_and_risk(score, atoms, probs):
    return score.minimiser(atoms, probs), scoring.risk(score, atoms, probs)


@pytest.mark.parametrize(("score", "expected"), SCORES.values(), ids=SCORES)
def test_scores_are_convex_and_their_least_mean_is_the_risk(score, expected):
    atoms, probs = some_law(14)
    rng = np.random.default_rng(15)
    with jax.enable_x64(True):
        mean_score = jax.jit(jax.vmap(lambda v: probs @ score(jnp.asarray(atoms), v[None, :])))
        best, risk_ = map(np.asarray, minimiser_and_risk(score, atoms, probs))
        least = float(mean_score(best[None])[0])
        tries = best + np.append([0.0], 10.0 ** rng.uniform(-4, 0, 399))[:, None] * rng.normal(size=(400, len(best)))
        tries[:, 1:] = np.maximum(tries[:, 1:], 0.05)  # the second one, t, is above 0
        scores = np.asarray(mean_score(tries))
        middle = np.asarray(mean_score((tries[::2] + tries[1::2]) / 2))
    assert risk_ == pytest.approx(least, abs=1e-12)
    assert least == pytest.approx(expected(atoms, probs), abs=1e-9)
    assert scores.min() >= least - 1e-12  # near and far, nothing is better
    assert (middle <= (scores[::2] + scores[1::2]) / 2 + 1e-9).all()


def test_entropic_shortfall_has_finite_gradients_and_the_auxiliaries_it_says():
    atoms, probs = some_law(16)
    with jax.enable_x64(True):
        x, t = np.asarray(minimiser_and_risk(scoring.EntropicShortfall(0.4), atoms, probs)[0])
    assert x == pytest.approx(-exact(risk.Entropic(1 / t), atoms, probs), abs=1e-9)
    gradient = jax.jit(jax.grad(scoring.EntropicShortfall(0.4), 1))(jnp.float32(-500.0), jnp.array([0.0, 0.1]))
    chex.assert_tree_all_finite((gradient, gradient**2))


# ------------------------------------------------------------------------------------------- faces


def test_quantiles_batches_and_levels_by_row():
    rng = np.random.default_rng(17)
    quantiles = rng.normal(size=(3, N))
    np.testing.assert_allclose(
        exact(risk.CVaR(0.4), quantiles, None), exact(risk.CVaR(0.4), quantiles, np.full((3, N), 1 / N)), rtol=1e-12
    )
    support, probs = np.arange(6.0), rng.dirichlet(np.ones(N), 3)
    by_row = np.array([0.1, 0.5, 0.9])
    kinds = (risk.CVaR, risk.EVaR, risk.Entropic, risk.Wang, risk.Expectile, risk.MeanStd)
    for kind in kinds:
        rows = exact(kind(by_row), support, probs)
        np.testing.assert_allclose(rows, [exact(kind(x), support, p) for x, p in zip(by_row, probs, strict=True)])
    lanes = jax.jit(jax.vmap(lambda x, p: risk.CVaR(x)(support, p)))(by_row, probs)
    np.testing.assert_allclose(lanes, exact(risk.CVaR(by_row), support, probs), rtol=1e-5)


def test_float32_agrees_with_float64_far_from_zero():
    atoms, probs = some_law(18)
    atoms = 1000 + atoms
    ours = [_slopes(single(measure), *single([atoms, probs]))[0] for measure in MEASURES]
    assert all(value.dtype == jnp.float32 for value in ours)
    np.testing.assert_allclose(ours, exact_all(MEASURES, atoms, probs), atol=2e-3)  # an ulp of 1000 is 6e-5


def test_dtype_is_that_of_the_law():
    with jax.enable_x64(True):
        x = np.full(N, 1 / N, np.float32)
        for measure in MEASURES:
            strong = jax.tree.map(np.float64, measure)
            assert jax.eval_shape(strong, x, x).dtype == np.float32
        assert jax.eval_shape(risk.itakura_saito, x, x, np.float64(1.0)).dtype == np.float32


def test_what_is_not_a_number_stays_so():
    atoms, probs = jnp.arange(6.0), jnp.full(N, 1 / N, jnp.float32)
    for measure in map(single, MEASURES[1:]):
        assert np.isnan(_slopes(jax.tree.map(lambda x: x * jnp.nan, measure), atoms, probs)[0])
        assert np.isnan(_slopes(measure, atoms, probs * jnp.nan)[0])
        assert np.isnan(_slopes(measure, atoms.at[2].set(jnp.nan), probs)[0])


def test_structures_tell_classes_apart():
    """`jit` takes the program of another class of the same structure else, now and then."""
    structures = [jax.tree.structure(jax.tree.map(lambda _: 0, measure)) for measure in DISTORTIONS[::2]]
    structures += [jax.tree.structure(kind(0.5)) for kind in (risk.EVaR, risk.Entropic, risk.Expectile, risk.MeanStd)]
    structures += [jax.tree.structure(kind(0.5)) for kind in (scoring.ExpectedShortfall, scoring.EntropicShortfall)]
    structures += [jax.tree.structure(kind()) for kind in (risk.Mean, scoring.Variance)]
    assert all(a != b for a, b in itertools.combinations(structures, 2))
    with_keys = jax.tree_util.tree_flatten_with_path(risk.MeanCVaR(0.1, 0.2))[0]
    assert [jax.tree_util.keystr(path) for path, _ in with_keys] == [".level", ".weight"]


def test_wrong_arguments_are_refused():
    for wrong in (-0.1, 1.5, 20, np.float32(2)):
        for kind in (risk.CVaR, risk.EVaR, risk.Expectile, scoring.ExpectedShortfall, scoring.EntropicShortfall):
            with pytest.raises(ValueError, match=kind.__name__):
                kind(wrong)
        with pytest.raises(ValueError, match="MeanCVaR"):
            risk.MeanCVaR(wrong, 0.5)
    with pytest.raises(ValueError, match="probs has shape"):
        risk.CVaR(0.5)(jnp.zeros(3), jnp.ones(2) / 2)
    with pytest.raises(ValueError, match="at least one atom"):
        risk.Mean()(1.0)
    assert jax.tree.structure(risk.CVaR(0.5)) == jax.tree.structure(jax.tree.map(lambda _: object(), risk.CVaR(0.5)))
