"""Posteriors of the policy gradient against conditioning of joint Gaussians on finite spaces of trajectories."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl.bayes import fisher, quadrature, regression, scores, triangular

posterior_ = jax.jit(quadrature.gradient_posterior, static_argnames="kernel")
evidence_ = jax.jit(quadrature.evidence_grid, static_argnames="kernel")


def exact(function, *args, **kwargs):
    """What a function gives in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **kwargs))


class Space:
    """Finitely many trajectories with probabilities softmax(phi theta): all integrals are sums."""

    def __init__(self, n, size=30, seed=0):
        self.rng = np.random.default_rng(seed)
        features = self.rng.normal(size=(size, n))
        self.probs = self.rng.dirichlet(np.ones(size))
        self.scores = features - self.probs @ features
        self.fisher = self.scores.T @ (self.probs[:, None] * self.scores)

    def kernel(self, name, constant, amplitude):
        k = self.scores @ np.linalg.inv(self.fisher) @ self.scores.T
        return amplitude * ((k if name == "fisher" else (1 + k) ** 2) + constant)

    def batch(self, count):
        drawn = self.rng.integers(0, len(self.probs), count)  # some twice, as they come
        return drawn, self.scores[drawn], 3 * self.rng.normal(size=count) + 2, self.rng.uniform(0.2, 2.0, count)


def conditioned(space, name, drawn, returns, noise, constant, amplitude):
    """Mean and covariance of the gradient, and the log-density of the data, by the rules for Gaussian vectors."""
    prior = space.kernel(name, constant, amplitude)
    of_data = prior[np.ix_(drawn, drawn)] + np.diag(noise)
    gain = prior[:, drawn] @ np.linalg.inv(of_data)
    left = prior - gain @ prior[drawn]  # covariance of the function at every trajectory
    if name == "fisher":  # the function is the return, the gradient sum_xi Pr(xi) u(xi) R(xi)
        weights = (space.probs[:, None] * space.scores).T
        evidence = scipy.stats.multivariate_normal(cov=of_data).logpdf(returns)
        return weights @ gain @ returns, weights @ left @ weights.T, evidence
    values = returns[:, None] * space.scores[drawn]  # the functions are R u_j, the gradient sum_xi Pr(xi) R u_j
    variance = space.probs @ left @ space.probs
    evidence = sum(scipy.stats.multivariate_normal(cov=of_data).logpdf(column) for column in values.T)
    return space.probs @ gain @ values, variance * np.eye(values.shape[1]), evidence


# ------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize(
    ("kernel", "count", "n"), [("fisher", 9, 2), ("fisher", 3, 5), ("quadratic", 9, 2), ("quadratic", 4, 3)]
)
@pytest.mark.parametrize(("constant", "amplitude"), [(0.0, 1.0), (1.7, 0.3)])
def test_posterior_is_the_conditioned_joint_gaussian(kernel, count, n, constant, amplitude):
    """More samples than features, and fewer: both spaces; with noise that differs from sample to sample."""
    space = Space(n, seed=count)
    drawn, rows, returns, noise = space.batch(count)
    mean, covariance, evidence = conditioned(space, kernel, drawn, returns, noise, constant, amplitude)
    ours = exact(
        posterior_, rows, returns, space.fisher, noise, kernel=kernel, constant_variance=constant, amplitude=amplitude
    )
    inverse = np.linalg.inv(space.fisher)
    np.testing.assert_allclose(ours.mean, mean, atol=1e-11)
    np.testing.assert_allclose(ours.covariance, covariance, atol=1e-11)
    np.testing.assert_allclose(ours.natural_mean, inverse @ mean, atol=1e-10)
    np.testing.assert_allclose(ours.natural_covariance, inverse @ covariance @ inverse, atol=1e-10)
    assert ours.log_evidence == pytest.approx(evidence, abs=1e-9)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_feature_space_is_sample_space(shape):
    rng = np.random.default_rng(0)
    features, targets, directions = (rng.normal(size=s) for s in (shape, (shape[0], 2), (shape[1], 4)))
    gram, cross, prior = features @ features.T, features @ directions, directions.T @ directions
    one = exact(jax.jit(regression.feature_space), features, targets, directions)
    other = exact(jax.jit(regression.sample_space), gram, cross, prior, targets)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("n", [1, 7, triangular.BLOCK + 1, 3 * triangular.BLOCK, triangular.LARGEST + 1])
def test_factors_and_systems_are_those_of_lapack(n):
    rng = np.random.default_rng(n)
    matrix, right = rng.normal(size=(n, n + 5)), rng.normal(size=(n, 3))
    matrix = matrix @ matrix.T / n
    factor = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(exact(jax.jit(triangular.cholesky), matrix), factor, atol=1e-10)
    solution = np.linalg.solve(factor, right)
    np.testing.assert_allclose(exact(jax.jit(triangular.solve), factor, right) / solution, 1, rtol=1e-6)
    solution = np.linalg.solve(factor.T, right)
    np.testing.assert_allclose(exact(jax.jit(triangular.solve_transposed), factor, right) / solution, 1, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["fisher", "quadratic"])
@pytest.mark.parametrize("real", [3, 9])
def test_padded_is_unpadded(kernel, real):
    space = Space(2, seed=1)
    _, rows, returns, noise = space.batch(9)
    mask = np.random.default_rng(2).permutation(9) < real
    holes = [np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for x in (rows, returns, noise)]
    settings = {"kernel": kernel, "constant_variance": 2.0, "amplitude": 0.5}
    padded = exact(posterior_, *holes[:2], space.fisher, holes[2], mask=mask, **settings)
    alone = exact(posterior_, rows[mask], returns[mask], space.fisher, noise[mask], **settings)
    for ours, theirs in zip(padded, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    nothing = exact(posterior_, *holes[:2], space.fisher, holes[2], mask=np.zeros(9, bool), **settings)
    np.testing.assert_array_equal(nothing.mean, 0)
    assert nothing.log_evidence == 0


def test_with_the_fisher_of_the_same_batch_model_2_is_monte_carlo():
    space = Space(3, seed=3)
    _, rows, returns, _ = space.batch(20)
    same = exact(fisher.same_batch, rows)
    for noise in (0.01, 1.0, 30.0):
        ours = exact(posterior_, rows, returns, same, noise)
        np.testing.assert_allclose(ours.mean, rows.T @ returns / 20 * 20 / (20 + noise), rtol=1e-10)
        np.testing.assert_allclose(ours.covariance, same * noise / (20 + noise), rtol=1e-9, atol=1e-12)


def test_model_1_integrates_linear_returns_exactly():
    """With as many samples as features and no noise its weights match all moments of the scores up to the second."""
    space = Space(2, seed=4)
    _, rows, _, _ = space.batch(40)
    returns = 0.7 + rows @ [1.0, -2.0]
    ours = exact(posterior_, rows, returns, space.fisher, 1e-9, kernel="quadratic")
    np.testing.assert_allclose(ours.mean, space.fisher @ [1.0, -2.0], atol=1e-5)


def test_posteriors_follow_a_change_of_coordinates():
    """theta = T theta': gradients turn with T^T. Not so the covariance of Model 1, as its docstring says."""
    space = Space(2, seed=5)
    _, rows, returns, noise = space.batch(9)
    T = np.array([[2.0, 0.5], [-1.0, 0.3]])
    for kernel in ("fisher", "quadratic"):
        ours = exact(posterior_, rows, returns, space.fisher, noise, kernel=kernel)
        turned = exact(posterior_, rows @ T, returns, T.T @ space.fisher @ T, noise, kernel=kernel)
        np.testing.assert_allclose(turned.mean, T.T @ ours.mean, atol=1e-10)
        np.testing.assert_allclose(turned.natural_mean, np.linalg.solve(T, ours.natural_mean), atol=1e-10)
        covariant = np.allclose(turned.covariance, T.T @ ours.covariance @ T, atol=1e-8)
        assert covariant == (kernel == "fisher")


# -------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize("kernel", ["fisher", "quadratic"])
def test_evidence_grid_finds_the_most_likely_settings(kernel):
    space = Space(2, seed=6)
    drawn, rows, _, _ = space.batch(12)
    returns = 5 + rows @ [3.0, 1.0] + space.rng.normal(size=12)
    ratios = np.array([1e-3, 0.03, 0.3, 1.0, 30.0])
    grid = exact(evidence_, rows, returns, space.fisher, ratios, kernel=kernel, constant_variance=4.0)
    best = ratios[np.argmax(grid.log_evidence)]
    assert grid.noise_variance == pytest.approx(best * grid.amplitude)

    def density(ratio, amplitude):
        return conditioned(space, kernel, drawn, returns, np.full(12, ratio * amplitude), 4.0, amplitude)[2]

    for ratio, value in zip(ratios, grid.log_evidence, strict=True):
        over = scipy.optimize.minimize_scalar(lambda x, r=ratio: -density(r, np.exp(x)), bounds=(-9, 9))
        assert value == pytest.approx(-over.fun, abs=1e-6)
    assert density(best, grid.amplitude) == pytest.approx(max(grid.log_evidence), abs=1e-8)


def test_evidence_grid_survives_returns_that_are_all_zero():
    space = Space(2, seed=7)
    _, rows, _, _ = space.batch(9)
    grid = evidence_(*map(np.float32, (rows, np.zeros(9), space.fisher)))
    law = posterior_(*map(np.float32, (rows, np.zeros(9), space.fisher)), grid.noise_variance, amplitude=grid.amplitude)
    np.testing.assert_array_equal(law.mean, 0)
    assert np.all(np.isfinite(law.covariance))


def test_slopes_of_the_evidence_are_finite_differences():
    space = Space(2, seed=8)
    _, rows, returns, _ = space.batch(9)

    def log_evidence(x):
        return quadrature.gradient_posterior(
            rows, returns, space.fisher, x[0], constant_variance=x[1], amplitude=x[2]
        ).log_evidence

    both = jax.jit(jax.value_and_grad(log_evidence))
    for x in ([0.7, 1.3, 2.0], [0.7, 0.0, 2.0]):
        slopes = exact(both, np.array(x))[1]
        for i, step in enumerate(1e-6 * np.eye(3)):
            ends = [exact(both, x + sign * step)[0] for sign in ((1, 0) if x[i] == 0 else (1, -1))]
            assert slopes[i] == pytest.approx((ends[0] - ends[1]) / (1e-6 if x[i] == 0 else 2e-6), rel=1e-4)


# ----------------------------------------------------------------------------------- float32, vmap


def test_float32_agrees_with_float64():
    space = Space(2, seed=9)
    _, rows, returns, noise = space.batch(9)
    for kernel in ("fisher", "quadratic"):
        settings = {"kernel": kernel, "constant_variance": 1e4 if kernel == "fisher" else 0.0}
        single = posterior_(*map(np.float32, (rows, returns, space.fisher, noise)), **settings)
        double = exact(posterior_, rows, returns, space.fisher, noise, **settings)
        for ours, theirs in zip(single, double, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4 * np.abs(theirs).max())


def test_what_float32_cannot_do_is_refused():
    """Never a wrong number: NaN inside of a trace, an error outside, and the answer in float64."""
    rng = np.random.default_rng(10)
    rows, returns = rng.normal(size=(8, 2)), rng.normal(size=8)
    skewed = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-6]])
    single = [np.float32(x) for x in (rows, returns, skewed)]
    assert np.all(np.isnan(posterior_(*single, 1.0).mean))
    with pytest.raises(ValueError, match=r"fisher is not positive definite to the precision of float32.*fisher.damped"):
        quadrature.gradient_posterior(*single, 1.0)
    assert np.all(np.isfinite(exact(posterior_, rows, returns, skewed, 1.0).mean))

    wide = np.repeat(rng.normal(size=(1, 12)), 8, axis=0)  # fewer samples than features, which coincide, without noise
    with pytest.raises(ValueError, match="the posterior is singular to the precision of float32"):
        quadrature.gradient_posterior(np.float32(wide), np.float32(returns), np.eye(12, dtype=np.float32), 1e-7)


def test_vmap_over_seeds_is_each_alone():
    space = Space(2, seed=11)
    batches = [space.batch(9)[1:] for _ in range(64)]
    rows, returns, noise = (np.stack(x) for x in zip(*batches, strict=True))
    many = exact(jax.jit(jax.vmap(lambda u, y, s: posterior_(u, y, space.fisher, s))), rows, returns, noise)
    for i in (0, 13, 63):
        alone = exact(posterior_, rows[i], returns[i], space.fisher, noise[i])
        for ours, theirs in zip(many, alone, strict=True):
            np.testing.assert_allclose(ours[i], theirs, atol=1e-12)


# ------------------------------------------------------------------------------------ matrix-free


def policy(params, observation):
    return jnp.tanh(observation @ params["w"]) @ params["v"], params["log_std"]


def log_prob(params, observation, action):
    mean, log_std = policy(params, observation)
    return jnp.sum(-(((action - mean) * jnp.exp(-log_std)) ** 2) / 2 - log_std)


@functools.partial(jax.jit, static_argnames="num_draws")
def both_ways(params, observations, actions, returns, noise, mask, key=None, num_draws=0):
    steps = jnp.broadcast_to(mask, actions.shape[:2])
    rows = scores.operator(log_prob, params, observations, actions, steps)
    root = fisher.root(fisher.normal, policy, params, observations, steps)
    settings = {"constant_variance": 3.0, "amplitude": 2.0, "mask": mask}
    free = quadrature.gradient_posterior_matrix_free(
        rows,
        returns,
        root,
        noise,
        key,
        damping=0.1,
        num_draws=num_draws,
        max_iterations=100,
        tolerance=1e-10,
        **settings,
    )
    explicit = scores.trajectories(log_prob, params, observations, actions, steps)
    information = fisher.state_analytic(fisher.normal, policy, params, observations, steps)
    return free, quadrature.gradient_posterior(explicit, returns, fisher.damped(information, 0.1), noise, **settings)


def flat(tree, *axes):
    """Leaves side by side, as `ravel_pytree` has them, `[*axes, n]`."""
    return np.concatenate([np.reshape(leaf, (*axes, -1)) for leaf in jax.tree.leaves(tree)], axis=-1)


def some_trajectories(seed):
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(2, 3)), "v": rng.normal(size=(3, 1)), "log_std": rng.normal(size=1)}
    observations, actions = rng.normal(size=(4, 15, 2)), rng.normal(size=(4, 15, 1))
    return params, observations, actions, rng.normal(size=15), rng.uniform(0.5, 2.0, 15), np.arange(15) < 13


def test_matrix_free_is_dense():
    free, dense = exact(both_ways, *some_trajectories(12))
    assert free.residual < 1e-8
    assert free.draws is None
    assert jax.tree.structure(free.mean) == jax.tree.structure(some_trajectories(12)[0])
    np.testing.assert_allclose(flat(free.mean), dense.mean, atol=1e-8)
    np.testing.assert_allclose(flat(free.natural_mean), dense.natural_mean, atol=1e-8)


def test_draws_have_the_law_of_the_posterior():
    with jax.enable_x64(True):
        laws = both_ways(*some_trajectories(13), jax.random.key(0), num_draws=2000)
    free, dense = jax.tree.map(np.asarray, laws)
    for drawn, mean, covariance in (
        (flat(free.draws, 2000), dense.mean, dense.covariance),
        (flat(free.natural_draws, 2000), dense.natural_mean, dense.natural_covariance),
    ):
        white = np.linalg.solve(np.linalg.cholesky(covariance), (drawn - mean).T)
        np.testing.assert_allclose(white.mean(1), 0, atol=4.5 / np.sqrt(2000))
        np.testing.assert_allclose(white @ white.T / 2000, np.eye(10), atol=4.5 * np.sqrt(2 / 2000))


def test_few_iterations_say_what_they_have_not_solved():
    params, observations, actions, returns, noise, _ = some_trajectories(14)
    rows = scores.operator(log_prob, params, observations, actions)
    root = fisher.root(fisher.normal, policy, params, observations)
    free = quadrature.gradient_posterior_matrix_free(rows, returns, root, noise, damping=0.1, max_iterations=2)
    assert 1e-4 < free.residual < 1
    with pytest.raises(ValueError, match=r"rows of shape \(15,\), got \(14,\)"):
        quadrature.gradient_posterior_matrix_free(rows, returns[1:], root, 1.0, damping=0.1)
    with pytest.raises(ValueError, match=r"damping is -0.1\d*, expected at least 0"):
        quadrature.gradient_posterior_matrix_free(rows, returns, root, noise, damping=-0.1)
    with pytest.raises(ValueError, match="num_draws is 3 and key is None"):
        quadrature.gradient_posterior_matrix_free(rows, returns, root, noise, damping=0.1, num_draws=3)


# ------------------------------------------------------------------------------------ calibration


def test_posterior_is_calibrated_under_its_own_prior():
    """Where returns are drawn from the prior, the 50 and 90 % ellipsoids hold the gradient as often as they say."""
    space = Space(3, seed=15)
    root = np.linalg.cholesky(np.linalg.inv(space.fisher))

    def distance(key):
        weights_key, drawn_key, level_key, noise_key = jax.random.split(key, 4)
        natural = 1.5 * root @ jax.random.normal(weights_key, (3,))
        rows = space.scores[jax.random.choice(drawn_key, 30, (12,), p=space.probs)]
        returns = rows @ natural + 1.5 * 2.0 * jax.random.normal(level_key) + 0.7 * jax.random.normal(noise_key, (12,))
        law = quadrature.gradient_posterior(
            rows, returns, space.fisher, 0.7**2, constant_variance=2.0**2, amplitude=1.5**2
        )
        factor = triangular.cholesky(law.covariance)
        return jnp.sum(triangular.solve(factor, (space.fisher @ natural - law.mean)[:, None]) ** 2)

    with jax.enable_x64(True):
        space.scores, space.probs = jnp.asarray(space.scores), jnp.asarray(space.probs)
        distances = np.asarray(jax.jit(jax.vmap(distance))(jax.random.split(jax.random.key(1), 4000)))
    for share in (0.5, 0.9):
        assert np.mean(distances < scipy.stats.chi2(3).ppf(share)) == pytest.approx(share, abs=0.02)


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.ones(3)}, r"scores has shape \(3,\), expected \[M, n\]"),
        ({"returns": np.ones(4)}, r"returns has shape \(4,\), expected \(3,\)"),
        ({"fisher": np.eye(3)}, r"fisher has shape \(3, 3\), expected \(2, 2\)"),
        ({"noise_variance": np.ones(2)}, r"noise_variance has shape \(2,\), expected \(\) or \(3,\)"),
        ({"noise_variance": 0.0}, "noise_variance is 0.0, expected above 0"),
        ({"noise_variance": np.nan}, "noise_variance is nan"),
        ({"constant_variance": -1.0}, "constant_variance is -1.0, expected at least 0"),
        ({"amplitude": 0.0}, "amplitude is 0.0, expected above 0"),
        ({"mask": np.ones((3, 1))}, r"mask has shape \(3, 1\), expected \(3,\)"),
        ({"kernel": "model 1"}, "kernel is 'model 1', expected 'fisher'"),
        ({"fisher": -np.eye(2)}, "fisher is not positive definite"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    good = {"scores": np.ones((3, 2)), "returns": np.ones(3), "fisher": np.eye(2), "noise_variance": 1.0}
    with pytest.raises(ValueError, match=message):
        quadrature.gradient_posterior(**(good | change))


# ------------------------------------------------------------------------------------------- gain


@functools.cache
def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "bayes" / "gradient_error.py"
    spec = importlib.util.spec_from_file_location("gradient_error", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gradient_of_the_linear_quadratic_problem_is_that_of_its_return():
    value, gradient, information = benchmark().linear_quadratic_exact(-0.2, 1.0, 20)

    def expected(gain, std):  # by the law of x at each step, mean and variance
        mean, variance, total = 0.3, 0.001, 0.0
        for _ in range(20):
            total -= mean**2 + variance + 0.1 * (gain**2 * (mean**2 + variance) + std**2)
            mean, variance = (1 + gain) * mean, (1 + gain) ** 2 * variance + std**2 + 0.01
        return total

    assert value == pytest.approx(expected(-0.2, 1.0))
    assert value == pytest.approx(-50.7660, abs=1e-4)
    slopes = [expected(-0.2 + e, 1.0 + f) - expected(-0.2 - e, 1.0 - f) for e, f in ((1e-5, 0), (0, 1e-5))]
    np.testing.assert_allclose(gradient, np.array(slopes) / 2e-5, rtol=1e-7)
    np.testing.assert_allclose(np.diag(information), [48.5717, 40], rtol=1e-5)


@pytest.mark.parametrize("name", ["bandit-quadratic", "linear-quadratic"])
def test_a_better_fisher_is_the_gain(name):
    """A seventh of the error of Monte Carlo with a baseline; nothing with the Fisher of the same batch."""
    plain, baseline, ours = "Monte Carlo", "Monte Carlo, leave-one-out", "Model 2 + constant, state-analytic"
    nothing, same = "Model 2, same-batch", "Model 2 + constant, same-batch"
    with jax.enable_x64(True):
        result = benchmark().table(
            benchmark().PROBLEMS[name], (20, 100), repetitions=1000, names=(plain, baseline, ours, nothing, same)
        )
    error, angle, coverage = result["error"], result["angle"], result["coverage"]
    assert np.all(error[ours] < error[baseline] / 7)
    assert np.all(error[same] > 0.8 * error[baseline])
    np.testing.assert_allclose(angle[nothing], angle[plain], rtol=1e-6)
    if name == "bandit-quadratic":  # the return is linear in the score, with normal noise, as the model has it
        assert np.all((coverage[ours] > 0.85) & (coverage[ours] < 0.95))
