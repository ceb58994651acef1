"""Gaussian process regression against explicit conditioning in NumPy, SciPy's density, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl.bayes import gp

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

RNG = np.random.default_rng(0)
INPUTS = RNG.uniform(-3, 3, (17, 2))
TARGETS = RNG.normal(size=17) + 1
POINTS = RNG.uniform(-4, 4, (5, 2))
SCALE = RNG.uniform(0, 2, 17)
SETTINGS = gp.Settings(2.5, np.array([0.7, 1.9]), 0.3)


def exact(function, *args, **kwargs):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **kwargs))


def covariance(a, b, settings=SETTINGS):
    """The kernel, a pair at a time."""
    return np.array([[settings[0] * np.exp(-0.5 * np.sum(((x - y) / settings[1]) ** 2)) for y in b] for x in a])


def joint(scale):
    return covariance(INPUTS, INPUTS) + np.diag(SETTINGS.noise * np.broadcast_to(scale, 17))


@pytest.mark.parametrize("scale", [1.0, SCALE], ids=["same noise", "each its own"])
def test_prediction_is_that_of_the_joint_normal(scale):
    def both():
        posterior = gp.condition(INPUTS, TARGETS, SETTINGS, noise_scale=scale)
        return gp.predict(posterior, POINTS), posterior.log_evidence

    law, evidence = exact(both)
    gain = covariance(POINTS, INPUTS) @ np.linalg.inv(joint(scale))
    np.testing.assert_allclose(law.mean, gain @ TARGETS, rtol=1e-10)
    left = covariance(POINTS, POINTS) - gain @ covariance(INPUTS, POINTS)
    np.testing.assert_allclose(law.variance, np.diag(left), rtol=1e-10)
    density = scipy.stats.multivariate_normal(cov=joint(scale)).logpdf(TARGETS)
    np.testing.assert_allclose(evidence, density, rtol=1e-12)
    np.testing.assert_allclose(
        exact(gp.log_evidence, INPUTS, TARGETS, SETTINGS, noise_scale=scale), density, rtol=1e-12
    )


def test_a_target_without_noise_is_met():
    scale = np.ones(17)
    scale[3] = 0
    law = exact(lambda: gp.predict(gp.condition(INPUTS, TARGETS, SETTINGS, noise_scale=scale), INPUTS[2:4]))
    assert abs(law.mean[0] - TARGETS[2]) > 1e-3 and law.variance[0] > 1e-2
    np.testing.assert_allclose(law.mean[1], TARGETS[3], rtol=1e-9)
    assert law.variance[1] < 1e-9


def test_the_slope_of_the_evidence_is_that_of_differences():
    def evidence(amplitude, first, second, noise, target):
        settings = gp.Settings(amplitude, np.array([first, second]), noise)
        targets = TARGETS.copy()
        targets[4] = target
        k = covariance(INPUTS, INPUTS, settings) + noise * np.diag(SCALE)
        return scipy.stats.multivariate_normal(cov=k).logpdf(targets)

    point = np.array([2.5, 0.7, 1.9, 0.3, TARGETS[4]])
    steps = 1e-5 * np.eye(5)
    expected = [(evidence(*(point + step)) - evidence(*(point - step))) / 2e-5 for step in steps]

    def function(x):
        targets = jnp.asarray(TARGETS).at[4].set(x[4])
        return gp.log_evidence(INPUTS, targets, gp.Settings(x[0], x[1:3], x[3]), noise_scale=SCALE)

    np.testing.assert_allclose(exact(jax.grad(function), point), expected, rtol=1e-6)
    np.testing.assert_allclose(exact(jax.jacfwd(function), point), expected, rtol=1e-6)


def test_float32_is_that_of_float64():
    def law(dtype):
        posterior = gp.condition(INPUTS.astype(dtype), TARGETS.astype(dtype), SETTINGS)
        return gp.predict(posterior, POINTS.astype(dtype)), posterior.log_evidence

    single, double = law(np.float32), exact(law, np.float64)
    assert single[1].dtype == jnp.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), single, double)


def test_what_rounding_would_lose_is_refused_and_in_a_trace_nan():
    close = np.zeros((3, 1), np.float32)
    settings = gp.Settings(1.0, 1.0, 1e-12)
    with pytest.raises(ValueError, match=r"covariance of the targets is singular.*raise noise"):
        gp.condition(close, np.ones(3, np.float32), settings)
    posterior = jax.jit(gp.condition)(close, np.ones(3, np.float32), settings)
    assert np.isnan(posterior.log_evidence)
    evidence, slope = jax.jit(jax.value_and_grad(lambda s: gp.log_evidence(close, np.ones(3, np.float32), s)))(settings)
    assert evidence == -np.inf and slope.noise == 0


@pytest.fixture(scope="module")
def drawn():
    """Functions drawn from known settings with noise: inputs [60, 1], targets [8, 60]."""
    inputs = RNG.uniform(0, 15, (60, 1))
    k = covariance(inputs, inputs, (4.0, 1.5)) + 0.09 * np.eye(60)
    return inputs, RNG.multivariate_normal(np.zeros(60), k, 8)


@pytest.fixture(scope="module")
def fits(drawn):
    inputs, targets = drawn
    strengths = np.repeat([0.0, 1e4], [8, 1])  # the last with a prior
    targets, keys = np.concatenate([targets, targets[:1]]), jax.random.split(jax.random.key(0), 9)

    def fit(data):
        y, key, strength = data
        prior = lambda s: -strength * jnp.sum((jnp.log(s.length) - jnp.log(0.4)) ** 2)  # noqa: E731
        return gp.fit(inputs, y, key, log_prior=prior, restarts=2, steps=40)

    return exact(lambda: jax.jit(lambda *data: jax.lax.map(fit, data))(jnp.asarray(targets), keys, strengths))


def test_settings_of_drawn_functions_are_found(drawn, fits):
    """The mean of the logarithms, within three standard errors or so."""
    for name, true in (("amplitude", 4.0), ("length", 1.5), ("noise", 0.09)):
        logs = np.log(np.ravel(getattr(fits.settings, name)[:8]))
        assert abs(logs.mean() - np.log(true)) < 3.5 * logs.std(ddof=1) / np.sqrt(8) + 0.03, (name, np.exp(logs))
        assert logs.std() < 0.8


def test_the_fit_is_a_maximum_and_better_than_the_truth(drawn, fits):
    inputs, targets = drawn
    found = gp.Settings(*(x[0] for x in fits.settings))
    truth = gp.Settings(4.0, np.array([1.5]), 0.09)
    value, slope = exact(jax.jit(jax.value_and_grad(lambda s: gp.log_evidence(inputs, targets[0], s))), found)
    assert value >= exact(gp.log_evidence, inputs, targets[0], truth)
    np.testing.assert_allclose(value, fits.objective[0], rtol=1e-9)
    for name in found._fields:  # slopes in logarithms
        assert abs(np.sum(getattr(slope, name) * getattr(found, name))) < 1e-2, name
    assert np.all(fits.objective == fits.objectives.max(axis=1))


def test_a_prior_moves_the_fit(fits):
    np.testing.assert_allclose(fits.settings.length[8], 0.4, rtol=0.02)
    assert abs(fits.settings.length[0] - 0.4) > 0.2


def test_a_mixture_weighs_settings_by_their_evidence():
    grid = gp.Settings(np.array([2.5, 1.0, 2.5]), np.array([0.7, 2.0, 50.0]), np.array([0.3, 0.5, 1e-18]))
    mix = exact(jax.jit(lambda: gp.mixture(INPUTS, TARGETS, grid, log_prior=np.array([0.0, 1.5, 0.0]))))
    densities = [
        scipy.stats.multivariate_normal(
            cov=covariance(INPUTS, INPUTS, (grid[0][i], grid[1][i])) + grid[2][i] * np.eye(17)
        ).logpdf(TARGETS)
        for i in range(2)
    ]
    odds = np.exp(densities[1] + 1.5 - densities[0])
    np.testing.assert_allclose(mix.weights, [1 / (1 + odds), odds / (1 + odds), 0], rtol=1e-9)
    law = exact(lambda: gp.predict(jax.tree.map(lambda x: jnp.asarray(x[1]), mix.components), POINTS))
    alone = exact(lambda: gp.predict(gp.condition(INPUTS, TARGETS, gp.Settings(1.0, 2.0, 0.5)), POINTS))
    np.testing.assert_allclose(law.mean, alone.mean, rtol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": INPUTS[:, 0]}, r"inputs has shape \(17,\), expected \[N, D\]; inputs\[:, None\]"),
        ({"targets": TARGETS[:3]}, r"targets has shape \(3,\), expected \(17,\)"),
        ({"noise_scale": SCALE[:3]}, r"noise_scale has shape \(3,\), expected \(\) or \(17,\)"),
        ({"noise_scale": -SCALE}, "noise_scale is .* expected at least 0"),
        ({"settings": gp.Settings(1.0, np.ones(3), 1.0)}, r"settings.length has shape \(3,\), expected \(\) or \(2,\)"),
        ({"settings": gp.Settings(1.0, 1.0, 0.0)}, "settings.noise is 0.0, expected above 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"inputs": INPUTS, "targets": TARGETS, "settings": SETTINGS} | change
    with pytest.raises(ValueError, match=message):
        gp.condition(**arguments)


def test_points_of_another_size_are_refused():
    posterior = gp.condition(INPUTS, TARGETS, SETTINGS)
    with pytest.raises(ValueError, match=r"points has shape \(5, 1\), expected \[m, 2\]"):
        gp.predict(posterior, POINTS[:, :1])
