"""The law of the gradient given a critic, on a finite problem whose integrals are sums over all states and actions."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from jaxrl.bayes import actor_critic, gptd, quadrature, triangular

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

posterior_ = jax.jit(actor_critic.gradient_posterior, static_argnames="noise")
evidence_ = jax.jit(actor_critic.evidence_grid, static_argnames="noise")

T, M, DISCOUNT = 4, 3, 0.9
LENGTHS = np.array([4, 2, 3])
MASK = np.arange(T)[:, None] < LENGTHS
TERMINATED = np.array([False, True, True])


def exact(function, *args, **kwargs):
    """What a function gives in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **kwargs))


class Problem:
    """A random MDP of 5 states and 3 actions, a softmax policy of 6 parameters, and three episodes of it."""

    states, actions, n = 5, 3, 6

    def __init__(self, seed=0, num_features=3):
        self.rng = rng = np.random.default_rng(seed)
        self.transition = rng.dirichlet(np.ones(self.states), (self.states, self.actions))
        self.reward = rng.normal(size=(self.states, self.actions))
        self.initial = rng.dirichlet(np.ones(self.states))
        self.logits = rng.normal(size=(self.states, self.actions, self.n))
        self.theta = rng.normal(size=self.n)
        self.probs = self.policy(self.theta)
        mean = np.einsum("xa,xan->xn", self.probs, self.logits)
        self.scores = self.logits - mean[:, None]  # grad log mu(a | x), [S, A, n]
        self.visits = self.occupancy(self.probs)
        self.measure = self.visits[:, None] * self.probs  # nu(x) mu(a | x)
        self.fisher = np.einsum("xa,xan,xam->nm", self.measure, self.scores, self.scores)
        self.features = rng.normal(size=(self.states, num_features))
        self.x, self.a = rng.integers(self.states, size=(T + 1, M)), rng.integers(self.actions, size=(T, M))
        self.rewards = rng.normal(size=(T, M)) + 2

    def policy(self, theta):
        weights = np.exp(self.logits @ theta)
        return weights / weights.sum(axis=1, keepdims=True)

    def occupancy(self, probs):
        kernel = np.einsum("xa,xay->xy", probs, self.transition)
        return np.linalg.solve(np.eye(self.states) - DISCOUNT * kernel.T, self.initial)

    def expected_return(self, theta):
        probs = self.policy(theta)
        return self.occupancy(probs) @ np.sum(probs * self.reward, axis=1)

    def data(self):
        """Scores, state features, rewards and ends of the episodes, NaN behind them."""
        scores, states = self.scores[self.x[:-1], self.a], self.features[self.x]
        reached = np.arange(T + 1)[:, None] <= LENGTHS - TERMINATED
        return (
            np.where(MASK[..., None], scores, np.nan),
            np.where(reached[..., None], states, np.nan),
            np.where(MASK, self.rewards, np.nan),
            TERMINATED,
        )

    def prior(self, amplitude):
        """The covariance of Q over all pairs of a state and an action."""
        flat = self.scores.reshape(-1, self.n)
        of_states = np.repeat(np.repeat(self.features @ self.features.T, self.actions, 0), self.actions, 1)
        return amplitude * (of_states + flat @ np.linalg.inv(self.fisher) @ flat.T)

    def seen(self, noise):
        """Rows: what each reward is of (Q at all pairs, the noise). V = sum_a mu Q is written out where one was cut."""
        pairs, rows, rewards = self.states * self.actions, [], []

        def pair(t, i):
            row = np.zeros((self.states, self.actions))
            if t == LENGTHS[i]:
                row[self.x[t, i]] = self.probs[self.x[t, i]]
            else:
                row[self.x[t, i], self.a[t, i]] = 1
            return row.ravel()

        for i in range(M):
            for t in range(LENGTHS[i]):
                goes_on = t < LENGTHS[i] - 1 or not TERMINATED[i]
                of_noise = np.zeros((T + 1, M))
                of_noise[t, i] = 1
                row = pair(t, i)
                if goes_on:
                    row = row - DISCOUNT * pair(t + 1, i)
                    of_noise[t + 1, i] = -DISCOUNT if noise == "mc" else 0
                rows.append(np.concatenate([row, of_noise.ravel()]))
                rewards.append(self.rewards[t, i])
        assert rows[0].size == pairs + (T + 1) * M
        return np.array(rows), np.array(rewards)


def test_the_gradient_is_the_integral_over_the_occupancy():
    problem = Problem()
    value = np.linalg.solve(
        np.eye(5) - DISCOUNT * np.einsum("xa,xay->xy", problem.probs, problem.transition),
        np.sum(problem.probs * problem.reward, axis=1),
    )
    q = problem.reward + DISCOUNT * problem.transition @ value
    gradient = np.einsum("xa,xan,xa->n", problem.measure, problem.scores, q)
    steps = [
        problem.expected_return(problem.theta + e) - problem.expected_return(problem.theta - e)
        for e in np.eye(6) * 1e-5
    ]
    np.testing.assert_allclose(gradient, np.array(steps) / 2e-5, atol=1e-8)


@pytest.mark.parametrize("noise", ["mc", "white"])
@pytest.mark.parametrize(("num_features", "amplitude"), [(3, 1.0), (1, 0.4), (0, 2.0)])
def test_posterior_is_the_conditioned_joint_gaussian(noise, num_features, amplitude):
    """Nine rewards, with nine, seven and six features: both spaces."""
    problem = Problem(seed=1, num_features=num_features)
    seen, rewards = problem.seen(noise)
    joint = np.zeros((seen.shape[1],) * 2)
    joint[:15, :15] = problem.prior(amplitude)
    joint[15:, 15:] = 0.7 * np.eye((T + 1) * M)
    of_rewards = seen @ joint @ seen.T
    gain = joint @ seen.T @ np.linalg.inv(of_rewards)
    integral = (problem.measure[..., None] * problem.scores).reshape(15, 6).T  # sum over all states and actions
    mean = integral @ (gain @ rewards)[:15]
    covariance = integral @ (joint - gain @ seen @ joint)[:15, :15] @ integral.T
    ours = exact(
        posterior_, *problem.data(), problem.fisher, DISCOUNT, 0.7, noise=noise, amplitude=amplitude, mask=MASK
    )
    inverse = np.linalg.inv(problem.fisher)
    np.testing.assert_allclose(ours.mean, mean, atol=1e-10)
    np.testing.assert_allclose(ours.covariance, covariance, atol=1e-10)
    np.testing.assert_allclose(ours.natural_mean, inverse @ mean, atol=1e-9)
    np.testing.assert_allclose(ours.natural_covariance, inverse @ covariance @ inverse, atol=1e-9)
    assert ours.log_evidence == pytest.approx(scipy.stats.multivariate_normal(cov=of_rewards).logpdf(rewards), abs=1e-9)


def test_it_is_a_critic_with_the_sum_of_two_kernels():
    """mean = c U^T alpha, covariance = c G - c^2 U^T C U, for the critic of `gptd` with the same kernel."""
    problem = Problem(seed=2)
    scores, states, rewards, terminated = problem.data()
    padded = np.concatenate([np.where(MASK[..., None], scores, 0), np.zeros((1, M, 6))]).reshape(-1, 6)
    flat = np.nan_to_num(states).reshape(-1, 3)
    gram = 0.4 * (flat @ flat.T + padded @ np.linalg.inv(problem.fisher) @ padded.T)
    critic = exact(gptd.posterior, gram, rewards, terminated, DISCOUNT, 0.7, mask=MASK)
    ours = exact(posterior_, *problem.data(), problem.fisher, DISCOUNT, 0.7, noise="mc", amplitude=0.4, mask=MASK)
    np.testing.assert_allclose(ours.mean, 0.4 * padded.T @ critic.coefficients, atol=1e-11)
    covariance = 0.4 * problem.fisher - 0.4**2 * padded.T @ critic.reduction @ padded
    np.testing.assert_allclose(ours.covariance, covariance, atol=1e-11)


def test_of_terminated_episodes_and_a_constant_it_is_model_2_of_steps():
    problem = Problem(seed=3)
    scores, _, rewards, _ = problem.data()
    ends, states = np.ones(M, bool), np.full((T + 1, M, 1), np.sqrt(5.0))
    returns = np.zeros((T, M))
    for t in reversed(range(T)):
        returns[t] = np.where(MASK[t], rewards[t], 0) + (DISCOUNT * returns[t + 1] if t + 1 < T else 0)
    ours = exact(posterior_, scores, states, rewards, ends, problem.fisher, DISCOUNT, 0.7, noise="mc", mask=MASK)
    theirs = exact(
        quadrature.gradient_posterior, scores[MASK], returns[MASK], problem.fisher, 0.7, constant_variance=5.0
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_a_fisher_information_of_another_mass_scales_the_gradient():
    """With G / Z and the amplitude over Z the critic is the same, and its gradient that of an occupancy of mass 1."""
    problem = Problem(seed=4)
    scores, states, *rest = problem.data()
    mass = problem.visits.sum()
    ours = exact(posterior_, scores, states, *rest, problem.fisher, DISCOUNT, 0.7, noise="mc", mask=MASK)
    settings = {"noise": "mc", "amplitude": 1 / mass, "mask": MASK}
    other = exact(posterior_, scores, states * np.sqrt(mass), *rest, problem.fisher / mass, DISCOUNT, 0.7, **settings)
    assert mass == pytest.approx(1 / (1 - DISCOUNT))
    np.testing.assert_allclose(ours.mean, mass * other.mean, atol=1e-11)
    np.testing.assert_allclose(ours.covariance, mass**2 * other.covariance, atol=1e-11)
    assert ours.log_evidence == pytest.approx(other.log_evidence)


def test_padded_is_unpadded():
    problem = Problem(seed=5)
    scores, states, rewards, terminated = problem.data()
    ours = exact(posterior_, scores, states, rewards, terminated, problem.fisher, DISCOUNT, 0.7, noise="mc", mask=MASK)
    pad = [(0, 3), (0, 2)]
    wide = [np.pad(x, [*pad, *[(0, 0)] * (x.ndim - 2)], constant_values=np.nan) for x in (scores, states, rewards)]
    mask = np.pad(MASK, pad)
    padded = exact(posterior_, *wide, np.pad(terminated, (0, 2)), problem.fisher, DISCOUNT, 0.7, noise="mc", mask=mask)
    for one, other in zip(padded, ours, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)
    nothing = exact(posterior_, *wide, np.pad(terminated, (0, 2)), problem.fisher, DISCOUNT, 0.7, mask=0 * mask)
    np.testing.assert_array_equal(nothing.mean, 0)
    np.testing.assert_allclose(nothing.covariance, problem.fisher, atol=1e-12)


def test_evidence_grid_finds_the_most_likely_settings():
    problem = Problem(seed=6)
    seen, rewards = problem.seen("mc")
    ratios = np.array([0.01, 0.3, 10.0])
    grid = exact(evidence_, *problem.data(), problem.fisher, DISCOUNT, ratios, mask=MASK)

    def density(ratio, amplitude):
        joint = np.zeros((seen.shape[1],) * 2)
        joint[:15, :15] = problem.prior(amplitude)
        joint[15:, 15:] = ratio * amplitude * np.eye((T + 1) * M)
        return scipy.stats.multivariate_normal(cov=seen @ joint @ seen.T).logpdf(rewards)

    for ratio, value in zip(ratios, grid.log_evidence, strict=True):
        over = scipy.optimize.minimize_scalar(lambda x, r=ratio: -density(r, np.exp(x)), bounds=(-9, 9))
        assert value == pytest.approx(-over.fun, abs=1e-6)
    best = ratios[np.argmax(grid.log_evidence)]
    assert grid.noise_variance == pytest.approx(best * grid.amplitude)
    assert density(best, grid.amplitude) == pytest.approx(max(grid.log_evidence), abs=1e-8)


def test_posterior_is_calibrated_under_its_own_prior():
    """Where Q is drawn from the prior, the 50 and 90 % ellipsoids hold the gradient as often as they say."""
    problem = Problem(seed=7)
    seen, _ = problem.seen("mc")
    root = np.linalg.cholesky(problem.prior(1.5) + 1e-12 * np.eye(15))
    integral = (problem.measure[..., None] * problem.scores).reshape(15, 6).T
    drawn = np.random.default_rng(8).normal(size=(4000, seen.shape[1]))
    drawn[:, :15] = drawn[:, :15] @ root.T
    drawn[:, 15:] *= np.sqrt(0.7)
    rewards = np.zeros((4000, M, T))
    rewards[:, MASK.T] = drawn @ seen.T

    def distance(rewards, gradient):
        scores, states, _, terminated = problem.data()
        law = actor_critic.gradient_posterior(
            scores, states, rewards, terminated, problem.fisher, DISCOUNT, 0.7, amplitude=1.5, mask=MASK
        )
        factor = triangular.cholesky(law.covariance)
        return jnp.sum(triangular.solve(factor, (gradient - law.mean)[:, None]) ** 2)

    distances = exact(jax.jit(jax.vmap(distance)), rewards.swapaxes(1, 2), drawn[:, :15] @ integral.T)
    for share in (0.5, 0.9):
        assert np.mean(distances < scipy.stats.chi2(6).ppf(share)) == pytest.approx(share, abs=0.02)


def test_float32_agrees_with_float64():
    problem = Problem(seed=9)
    scores, states, rewards, terminated = problem.data()
    settings = {"noise": "mc", "mask": MASK}
    double = exact(posterior_, scores, states, rewards, terminated, problem.fisher, DISCOUNT, 0.7, **settings)
    single = map(np.float32, (scores, states, rewards))
    single = posterior_(*single, terminated, np.float32(problem.fisher), DISCOUNT, 0.7, **settings)
    for ours, theirs in zip(single, double, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4 * np.abs(theirs).max())


def test_what_float32_cannot_do_is_refused():
    problem = Problem(seed=10)
    data = [np.float32(x) if x.dtype == float else x for x in problem.data()]
    skewed = np.float32(problem.fisher[0, 0] * np.ones((6, 6)) + 1e-6 * np.eye(6))
    with pytest.raises(ValueError, match=r"fisher is not positive definite to the precision of float32.*fisher.damped"):
        actor_critic.gradient_posterior(*data, skewed, DISCOUNT, 0.7, mask=MASK)
    assert np.all(np.isnan(posterior_(*data, skewed, DISCOUNT, 0.7, noise="mc", mask=MASK).mean))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.ones((2, 3))}, r"scores has shape \(2, 3\), expected \[T, M, n\] for rewards of shape \(2, 3\)"),
        ({"states": np.ones((2, 3, 1))}, r"states has shape \(2, 3, 1\), expected \(3, 3, m\): a row more"),
        ({"fisher": np.eye(3)}, r"fisher has shape \(3, 3\), expected \(2, 2\)"),
        ({"amplitude": 0.0}, "amplitude is 0.0, expected above 0"),
        ({"noise_variance": -1.0}, "noise_variance is -1.0, expected above 0"),
        ({"terminated": np.ones(2)}, r"terminated has shape \(2,\), expected \(3,\)"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    good = {"scores": np.ones((2, 3, 2)), "states": np.ones((3, 3, 1)), "rewards": np.ones((2, 3))}
    good |= {"terminated": np.ones(3), "fisher": np.eye(2), "discount": 0.9, "noise_variance": 1.0}
    with pytest.raises(ValueError, match=message):
        actor_critic.gradient_posterior(**(good | change))


# ------------------------------------------------------------------------------------------- gain


@functools.cache
def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "bayes" / "actor_critic.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_actor_critic", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_the_gradient_of_the_walk_is_that_of_its_return(name):
    problem = benchmark().PROBLEMS[name]
    gradient, information = exact(benchmark().exact, problem)
    theta = np.full(9, problem.theta)

    def occupancy(theta):
        right = 1 / (1 + np.exp(-theta))
        kernel = np.diag(right[:-1], 1) + np.diag(1 - right[1:], -1)
        kernel[0, 0] = 1 - right[0]
        return np.linalg.solve(np.eye(9) - 0.99 * kernel.T, np.eye(9)[0])

    slopes = [-np.sum(occupancy(theta + e) - occupancy(theta - e)) / 2e-5 for e in 1e-5 * np.eye(9)]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6)
    right = 1 / (1 + np.exp(-problem.theta))
    np.testing.assert_allclose(information, np.diag(occupancy(theta) * right * (1 - right)), atol=1e-10)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_the_critic_is_the_gain(count):
    """A quarter of the error of Monte Carlo with rewards to go, less than with a baseline; not with a wrong mass."""
    base, baseline, ours = benchmark().BASE, benchmark().BASELINE, benchmark().OURS
    wrong = ("BAC, mass 1", "BAC, undiscounted visits")
    with jax.enable_x64(True), jax.debug_key_reuse(False):  # its check takes a vmap over a scan over keys for reuse
        result = benchmark().table(benchmark().PROBLEMS["even"], (count,), 60, names=(base, baseline, ours, *wrong))
    error = {name: values[0] for name, values in result["error"].items()}
    assert error[ours] < error[base] / 4
    assert error[ours] < error[baseline] / 1.5
    assert all(error[name] > 3 * error[ours] for name in wrong)
