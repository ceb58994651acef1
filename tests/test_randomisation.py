"""Beta laws against SciPy, in float32 where the textbook formulas fail, and their widening against SLSQP."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special as sp
import scipy.stats
from jax.test_util import check_grads

from jaxrl import randomisation
from jaxrl.randomisation import Beta, Widening


def law(a, b, dtype=jnp.float32):
    return Beta(jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def divergence(new, old):
    """KL(new || old) of laws (a, b), by the textbook formula in float64."""
    (a, b), (c, d) = np.asarray(new, float), np.asarray(old, float)
    ends = sp.betaln(c, d) - sp.betaln(a, b)
    return np.sum(ends + (a - c) * sp.digamma(a) + (b - d) * sp.digamma(b) + (c - a + d - b) * sp.digamma(a + b))


NEAR = [
    ((99.0, 99.0), (100.0, 100.0)),
    ((100.0, 100.0), (99.9, 99.9)),
    ((80.0, 90.0), (100.0, 100.0)),
    ((1.2, 1.1), (1.0, 1.0)),
    ((2.0, 30.0), (5.0, 20.0)),
    ((0.8, 3.0), (1.0, 2.5)),
]


@functools.cache
def measures():
    def all_of(new, old, points):
        gain = randomisation.entropy_gain(new, old)
        return randomisation.divergence(new, old), gain, randomisation.log_ratio(new, old, points)

    return jax.jit(all_of)


@pytest.mark.parametrize(("new", "old"), NEAR, ids=str)
def test_measures_of_near_laws_in_float32(new, old):
    points = np.float32([[0.03], [0.5], [0.52], [0.999]])
    ours = measures()(law(*np.reshape(new, (2, 1))), law(*np.reshape(old, (2, 1))), points)
    a, b = scipy.stats.beta(*new), scipy.stats.beta(*old)
    np.testing.assert_allclose(ours[0], divergence(new, old), rtol=1e-4)
    np.testing.assert_allclose(ours[1], a.entropy() - b.entropy(), rtol=1e-4)
    expected = (a.logpdf(points.astype(float)) - b.logpdf(points.astype(float)))[:, 0]
    np.testing.assert_allclose(ours[2], expected, rtol=1e-4, atol=1e-5)


def test_the_textbook_formula_fails_where_ours_does_not():
    """What the module is for: KL of two narrow laws, which its differences of large numbers lose."""
    new, old = np.float32([99.9, 99.9]), np.float32([100.0, 100.0])
    (a, b), (c, d) = new, old
    digamma, betaln = (lambda x: np.float32(sp.digamma(x))), (lambda x, y: np.float32(sp.betaln(x, y)))
    textbook = betaln(c, d) - betaln(a, b) + (a - c) * digamma(a) + (b - d) * digamma(b)
    textbook = np.float32(textbook + (c - a + d - b) * digamma(a + b))
    exact = divergence(new, old)
    assert abs(textbook / exact - 1) > 1
    ours = measures()(law(*new.reshape(2, 1)), law(*old.reshape(2, 1)), np.float32([[0.5]]))[0]
    assert ours == pytest.approx(exact, rel=2e-3)


def test_far_laws():
    for new, old in (((1.0, 1.0), (100.0, 100.0)), ((100.0, 100.0), (1.0, 1.0))):
        ours = measures()(law(*np.reshape(new, (2, 1))), law(*np.reshape(old, (2, 1))), np.float32([[0.5]]))
        assert ours[0] == pytest.approx(divergence(new, old), rel=3e-3)
    laws = law([1.0, 3.0, 100.0], [1.0, 0.8, 90.0])
    expected = [scipy.stats.beta(a, b).entropy() for a, b in zip(laws.a, laws.b, strict=True)]
    assert randomisation.entropy(laws) == pytest.approx(sum(expected), abs=3e-4)
    assert randomisation.entropy(randomisation.centred(3, 1.0)) == pytest.approx(0, abs=1e-5)


def test_slopes_are_those_of_differences():
    with jax.enable_x64(True):
        new, old = law([3.0, 20.0], [2.0, 30.0], float), law([4.0, 18.0], [2.5, 25.0], float)
        points = jnp.array([0.3, 0.6])
        for function in (randomisation.divergence, randomisation.entropy_gain):
            check_grads(function, (new, old), order=2, rtol=1e-5, atol=1e-7)
        check_grads(lambda new, old: randomisation.log_ratio(new, old, points), (new, old), order=2, rtol=1e-5)


def test_samples_are_of_the_law():
    laws = law([2.0, 100.0], [5.0, 100.0])
    drawn = np.asarray(randomisation.sample(laws, jax.random.key(0), 4000))
    for i in range(2):
        assert scipy.stats.kstest(drawn[:, i], scipy.stats.beta(laws.a[i], laws.b[i]).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / np.sqrt(4000)


# ---------------------------------------------------------------------------------------- widening


def best(old, points, success, widening):
    """The solution by SLSQP: the law [2 d], its expected success, and how much entropy it gains."""
    d = points.shape[1]
    bounds = [(randomisation.LOWEST, 1.1 * widening.concentration)] * (2 * d)
    here = np.concatenate(old)

    def laws(p):
        return scipy.stats.beta(p[:d], p[d:])

    def rate(p):
        ratios = np.exp(np.sum(laws(p).logpdf(points) - laws(here).logpdf(points), axis=1))
        return np.mean(ratios * success)

    def gain(p):
        return np.sum(laws(p).entropy() - laws(here).entropy())

    def within(p):
        return (widening.trust_region - divergence((p[:d], p[d:]), old)) / widening.trust_region

    def solve(objective, start, *constraints):
        options = {"maxiter": 500, "ftol": 1e-12}
        constraints = [{"type": "ineq", "fun": c} for c in (within, *constraints)]
        return scipy.optimize.minimize(
            lambda p: -objective(p), start, method="SLSQP", bounds=bounds, constraints=constraints, options=options
        ).x

    start = here if rate(here) > widening.success_rate else solve(rate, here)
    if rate(start) > widening.success_rate:
        start = solve(gain, start, lambda p: rate(p) - widening.success_rate)
    return start, rate(start), gain(start)


@functools.cache
def widen():
    return jax.jit(randomisation.widen)


PROBLEMS = {  # (a, b), trust_region, success_rate, radius of success
    "only the trust region binds": (([10.0, 10.0], [10.0, 10.0]), 0.05, 0.5, 0.2),
    "a narrow law": (([100.0, 90.0], [100.0, 105.0]), 0.01, 0.5, 0.4),
    "only success binds": (([3.0, 3.0], [3.0, 3.0]), 0.1, 0.5, 0.275),
    "both bind": (([10.0, 14.0], [8.0, 10.0]), 0.05, 0.75, 0.2),
    "feasible elsewhere": (([4.0, 4.0], [4.0, 4.0]), 0.1, 0.5, 0.22),
    "feasible nowhere": (([10.0, 14.0], [8.0, 10.0]), 0.02, 0.95, 0.2),
    "nearly uniform": (([1.1, 1.2], [1.3, 1.1]), 0.05, 0.2, 0.4),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_widened_law_is_that_of_slsqp(name):
    old, trust_region, success_rate, radius = PROBLEMS[name]
    rng = np.random.default_rng(0)
    points = np.clip(rng.beta(*old, (256, 2)), 1e-6, 1 - 1e-6)
    success = np.linalg.norm(points - 0.53, axis=1) < radius
    widening = Widening(*map(jnp.float32, (0.0, success_rate, trust_region, 100.0)))
    new, step = widen()(law(*old), jnp.float32(points), success, widening)
    expected, rate, gain = best(old, points, success, Widening(0.0, success_rate, trust_region, 100.0))
    assert bool(step.feasible) == (name != "feasible nowhere")
    assert step.success_rate == pytest.approx(success.mean())
    assert step.divergence <= trust_region  # never violated
    np.testing.assert_allclose(np.concatenate([new.a, new.b]), expected, rtol=0.02)
    gained = sum(scipy.stats.beta(new.a, new.b).entropy() - scipy.stats.beta(*old).entropy())
    if step.feasible:
        assert step.expected_rate >= success_rate
        assert gained == pytest.approx(gain, abs=0.005 * np.sqrt(trust_region) + 0.01 * abs(gain))
    else:
        assert step.expected_rate == pytest.approx(rate, abs=0.002)


def test_a_narrow_law_really_widens_in_float32():
    """From concentration 100 to the whole box in steps of 0.01 nats; each gains entropy until there is no more."""
    widening = Widening(*map(jnp.float32, (0.0, 0.5, 0.01, 100.0)))

    end, entropies = law([100.0, 100.0], [100.0, 100.0]), []
    for key in jax.random.split(jax.random.key(0), 60):
        end, _ = widen()(end, randomisation.sample(end, key, 256), np.ones(256, bool), widening)
        entropies.append(scipy.stats.beta(end.a, end.b).entropy().sum())
    assert -3.9 < entropies[0] < -3.6
    assert np.all(np.diff(entropies[:20]) > 0.03)
    assert entropies[-1] > -1e-3
    np.testing.assert_allclose(np.concatenate([end.a, end.b]), 1, atol=0.02)


def test_without_success_the_law_stays():
    old, points = law([10.0, 14.0], [8.0, 10.0]), jnp.full((256, 2), 0.5, jnp.float32)
    new, step = widen()(old, points, np.zeros(256, bool), Widening(*map(jnp.float32, (0.0, 0.5, 0.05, 100.0))))
    assert not step.feasible
    np.testing.assert_allclose(np.concatenate([new.a, new.b]), np.concatenate([old.a, old.b]), rtol=1e-3)
    new, step = widen()(old, points, np.ones(256, bool), Widening(*map(jnp.float32, (0.0, 0.5, 0.0, 100.0))))
    np.testing.assert_array_equal(np.concatenate([new.a, new.b]), np.concatenate([old.a, old.b]))  # no room at all


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"Widening.success_rate must be in \[0, 1\], got 1.5"):
        Widening(success_rate=1.5)
    with pytest.raises(ValueError, match=r"Widening.trust_region must be in \[0, inf\], got -1"):
        Widening(trust_region=-1)
    with pytest.raises(ValueError, match=r"points has shape \(5, 3\) and success \(5,\), expected \[n, d\] and \[n\]"):
        randomisation.widen(law([1.0, 1.0], [1.0, 1.0]), jnp.zeros((5, 3)), jnp.zeros(5), Widening())
