"""Gaussian process temporal differences against conditioning of joint Gaussians, regression on returns, and loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl.bayes import gptd, kernels
from jaxrl.bayes.gptd import sparse
from jaxrl.envs.control import RandomWalk

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

posterior_ = jax.jit(gptd.posterior, static_argnames="noise")
weights_ = jax.jit(gptd.weight_posterior, static_argnames="noise")
value_ = jax.jit(gptd.value)

T, M, DISCOUNT = 5, 4, 0.8
LENGTHS = np.array([5, 3, 1, 4])
MASK = np.arange(T)[:, None] < LENGTHS
TERMINATED = np.array([False, True, False, True])


def exact(function, *args, **kwargs):
    """What a function gives in float64, as NumPy."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args, **kwargs))


def kernel(x, y):
    return 2 * kernels.rbf(x, y, 1.3) + 0.5


def gram(x, y):
    """The kernel above in NumPy."""
    return 2 * np.exp(-((x[:, None] - y) ** 2).sum(-1) / (2 * 1.3**2)) + 0.5


class Data:
    """Episodes of different lengths with random points and rewards; what is padding is NaN."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.points = self.rng.normal(size=(T + 1, M, 2))
        self.flat = self.points.reshape(-1, 2)
        self.rewards = np.where(MASK, self.rng.normal(size=(T, M)), np.nan)
        self.gram = gram(self.flat, self.flat)
        self.new = self.rng.normal(size=(3, 2))

    def differences(self):
        """H [rewards, (T + 1) M], and the rewards, a row after the other."""
        rows, rewards = [], []
        for i in range(M):
            for t in range(LENGTHS[i]):
                row = np.zeros((T + 1, M))
                row[t, i] = 1
                if t < LENGTHS[i] - 1 or not TERMINATED[i]:
                    row[t + 1, i] = -DISCOUNT
                rows.append(row.ravel())
                rewards.append(self.rewards[t, i])
        return np.array(rows), np.array(rewards)


def with_holes(points):
    """NaN wherever no episode has been: behind the last point, and at that of an episode that terminated."""
    reached = np.arange(T + 1)[:, None] <= LENGTHS - TERMINATED
    return np.where(reached.reshape(T + 1, M, *(1,) * (points.ndim - 2)), points, np.nan)


# ------------------------------------------------------------------------------------------- batch


@pytest.mark.parametrize("noise", ["mc", "white"])
@pytest.mark.parametrize("equal", [True, False])
def test_posterior_is_the_conditioned_joint_gaussian(noise, equal):
    """With values and noise as explicit variables: r = H (V + n) for the noise of returns, r = H V + n for white."""
    data = Data(seed=1)
    H, rewards = data.differences()
    variance = np.full((T + 1, M), 0.6) if equal else data.rng.uniform(0.2, 2.0, (T + 1, M))
    of_noise = variance.ravel() if noise == "mc" else variance[:T].T[MASK.T]  # rewards run along episodes
    everything = np.concatenate([data.flat, data.new])
    prior = gram(everything, everything)
    zeros = np.zeros((len(everything), len(of_noise)))
    joint = np.block([[prior, zeros], [zeros.T, np.diag(of_noise)]])  # of the values at all points, and of the noise
    seen = np.concatenate([H, np.zeros((len(H), 3)), H if noise == "mc" else np.eye(len(H))], axis=1)
    of_rewards = seen @ joint @ seen.T
    gain = joint @ seen.T @ np.linalg.inv(of_rewards)
    mean, covariance = gain @ rewards, joint - gain @ seen @ joint
    evidence = scipy.stats.multivariate_normal(cov=of_rewards).logpdf(rewards)

    given = 0.6 if equal else variance[:T] if noise == "white" else variance
    settings = {"noise": noise, "mask": MASK}
    law = exact(posterior_, data.gram, data.rewards, TERMINATED, DISCOUNT, given, **settings)
    ours = exact(value_, law, gram(data.new, data.flat), gram(data.new, data.new))
    new = slice(len(data.flat), len(everything))
    np.testing.assert_allclose(ours[0], mean[new], atol=1e-12)
    np.testing.assert_allclose(ours[1], covariance[new, new], atol=1e-12)
    assert law.log_evidence == pytest.approx(evidence, abs=1e-10)

    features = np.linalg.cholesky(data.gram + 1e-13 * np.eye(len(data.gram)))  # as many as points, more than rewards
    other = exact(weights_, features.reshape(T + 1, M, -1), data.rewards, TERMINATED, DISCOUNT, given, **settings)
    np.testing.assert_allclose(features @ other.mean, mean[: len(data.flat)], atol=1e-9)
    np.testing.assert_allclose(
        features @ other.covariance @ features.T, covariance[: len(features), : len(features)], atol=1e-9
    )
    assert other.log_evidence == pytest.approx(evidence, abs=1e-9)


@pytest.mark.parametrize("noise", ["mc", "white"])
def test_few_features_give_the_posterior_of_their_kernel(noise):
    data = Data(seed=2)
    features = data.rng.normal(size=(T + 1, M, 3))
    flat = features.reshape(-1, 3)
    settings = {"noise": noise, "mask": MASK}
    law = exact(posterior_, flat @ flat.T, data.rewards, TERMINATED, DISCOUNT, 0.6, **settings)
    ours = exact(weights_, features, data.rewards, TERMINATED, DISCOUNT, 0.6, **settings)
    mean, covariance = exact(value_, law, np.eye(3) @ flat.T, np.eye(3))  # at points whose features are the axes
    np.testing.assert_allclose(ours.mean, mean, atol=1e-12)
    np.testing.assert_allclose(ours.covariance, covariance, atol=1e-12)
    assert ours.log_evidence == pytest.approx(law.log_evidence)


def test_of_terminated_episodes_it_is_regression_on_their_returns():
    data = Data(seed=3)
    returns, places = [], []
    for i in range(M):
        for t in range(LENGTHS[i]):
            returns.append(sum(DISCOUNT ** (k - t) * data.rewards[k, i] for k in range(t, LENGTHS[i])))
            places.append(t * M + i)
    K = data.gram[np.ix_(places, places)]
    mean = gram(data.new, data.flat[places]) @ np.linalg.solve(K + 0.6 * np.eye(len(K)), returns)
    law = exact(posterior_, data.gram, data.rewards, np.ones(M, bool), DISCOUNT, 0.6, mask=MASK)
    np.testing.assert_allclose(exact(value_, law, gram(data.new, data.flat), np.eye(3))[0], mean, atol=1e-12)
    evidence = scipy.stats.multivariate_normal(cov=K + 0.6 * np.eye(len(K))).logpdf(returns)
    assert law.log_evidence == pytest.approx(evidence)


@pytest.mark.parametrize("noise", ["mc", "white"])
def test_what_padding_holds_counts_for_nothing(noise):
    data = Data(seed=4)
    settings = {"noise": noise, "mask": MASK}
    law = exact(posterior_, data.gram, data.rewards, TERMINATED, DISCOUNT, 0.6, **settings)
    reached = ~np.isnan(with_holes(data.points))[..., 0].ravel()
    holes = np.where(reached[:, None] & reached, data.gram, np.nan)
    padded = exact(posterior_, holes, data.rewards, TERMINATED, DISCOUNT, 0.6, **settings)
    for ours, theirs in zip(padded, law, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    one = exact(weights_, data.points, data.rewards, TERMINATED, DISCOUNT, 0.6, **settings)
    other = exact(weights_, with_holes(data.points), data.rewards, TERMINATED, DISCOUNT, 0.6, **settings)
    for ours, theirs in zip(other, one, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    empty = exact(weights_, data.points, data.rewards, TERMINATED, DISCOUNT, 0.6, noise=noise, mask=np.zeros((T, M)))
    np.testing.assert_array_equal(empty.mean, 0)
    assert empty.log_evidence == 0


def test_points_are_states_and_where_episodes_were_left():
    rng = np.random.default_rng(5)
    now, then = rng.normal(size=(2, T, M, 2))
    ours = np.asarray(gptd.points(now, then, MASK))
    for i, length in enumerate(LENGTHS):
        np.testing.assert_allclose(ours[:length, i], now[:length, i], rtol=1e-6)
        np.testing.assert_allclose(ours[length, i], then[length - 1, i], rtol=1e-6)


def test_the_mean_comes_to_the_value_of_a_policy():
    """A value for each state, and 4,000 episodes of the random walk to the right."""
    env = RandomWalk(states=5)
    transition = np.asarray(env.model(env.params(), 0.9).transition)[:4]
    kernel = 0.3 * transition[:, 0, :4] + 0.7 * transition[:, 1, :4]
    value = np.linalg.solve(np.eye(4) - 0.9 * kernel, -np.ones(4))
    rng = np.random.default_rng(6)
    states = np.zeros((41, 4000), int)
    for t in range(40):
        moved = np.where(rng.uniform(size=4000) < 0.7, states[t] + 1, np.maximum(states[t] - 1, 0))
        states[t + 1] = np.where(states[t] == 4, 4, moved)
    mask = states[:-1] < 4
    rewards = -1 + rng.normal(size=mask.shape)
    law = exact(weights_, 10 * np.eye(5)[states], rewards, states[-1] == 4, 0.9, 1.0, mask=mask)
    np.testing.assert_allclose(10 * law.mean[:4], value, atol=0.1)


# ------------------------------------------------------------------------------------------ sparse


def dictionary(points, threshold, capacity):
    """The rows A of approximate linear dependence, by explicit inverses: `[P, m]`, and the points that are kept."""
    kept, rows = [], []
    for i, x in enumerate(points):
        a, delta = np.zeros(0), gram(x[None], x[None])[0, 0]
        if kept:
            k = gram(points[kept], x[None])[:, 0]
            a = np.linalg.inv(gram(points[kept], points[kept])) @ k
            delta -= k @ a
        if delta > threshold and len(kept) < capacity:
            kept, a = [*kept, i], np.append(np.zeros(len(kept)), 1)
        rows.append(a)
    return np.array([np.append(a, np.zeros(len(kept) - len(a))) for a in rows]), kept


update_ = jax.jit(lambda law, *data, **settings: sparse.update(law, kernel, *data, **settings))


def online(data, threshold, capacity, parts=1):
    """The law after all episodes, given in one or more parts."""
    law = exact(sparse.init, data.points[0, 0], capacity)
    for some in np.array_split(np.arange(M), parts):
        rewards, mask = np.where(MASK, data.rewards, 7.0)[:, some], MASK[:, some]
        law = exact(
            update_, law, data.points[:, some], rewards, TERMINATED[some], DISCOUNT, 0.6, threshold=threshold, mask=mask
        )
    return law


@pytest.mark.parametrize(("threshold", "capacity", "refused"), [(0.0, 20, 0), (0.3, 20, 0), (0.3, 4, None)])
def test_sparse_is_batch_with_the_kernel_of_its_dictionary(threshold, capacity, refused):
    data = Data(seed=7)
    order = [t * M + i for i in range(M) for t in range(LENGTHS[i] + (not TERMINATED[i]))]
    rows, kept = dictionary(data.flat[order], threshold, capacity)
    few = data.flat[order][kept]
    combined = np.zeros((len(data.flat), len(kept)))
    combined[order] = rows
    law = online(data, threshold, capacity)
    assert law.size == len(kept)
    np.testing.assert_allclose(law.points[: len(kept)], few)
    if refused is None:
        assert len(kept) == capacity and law.refused > 0
    else:
        assert law.refused == refused and (len(kept) < len(order)) == (threshold > 0)

    between = gram(few, few)
    batch = exact(posterior_, combined @ between @ combined.T, data.rewards, TERMINATED, DISCOUNT, 0.6, mask=MASK)
    alpha, reduction = combined.T @ batch.coefficients, combined.T @ batch.reduction @ combined
    ours = exact(sparse.coefficients, law)
    np.testing.assert_allclose(ours[0][: len(kept)], alpha, atol=1e-10)
    np.testing.assert_allclose(ours[1][: len(kept), : len(kept)], reduction, atol=1e-10)
    mean, covariance = exact(sparse.value, law, kernel, data.new)
    cross = gram(data.new, few)
    np.testing.assert_allclose(mean, cross @ alpha, atol=1e-11)
    np.testing.assert_allclose(covariance, gram(data.new, data.new) - cross @ reduction @ cross.T, atol=1e-11)
    if threshold == 0:  # nothing is lost
        batch = exact(posterior_, data.gram, data.rewards, TERMINATED, DISCOUNT, 0.6, mask=MASK)
        dense = exact(value_, batch, gram(data.new, data.flat), gram(data.new, data.new))
        np.testing.assert_allclose(mean, dense[0], atol=1e-11)
        np.testing.assert_allclose(covariance, dense[1], atol=1e-11)


def test_sparse_takes_episodes_as_they_come():
    data = Data(seed=8)
    whole, parts = online(data, 0.1, 20), online(data, 0.1, 20, parts=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), whole, parts)


def test_sparse_keeps_what_it_has_seen_twice_once():
    data = Data(seed=9)
    data.points[:, 2:] = data.points[:, :2]
    law = online(data, 0.0, 20)
    assert law.size == len({tuple(x) for x in with_holes(data.points).reshape(-1, 2) if not np.isnan(x[0])})
    assert np.all(np.isfinite(law.mean))


# ------------------------------------------------------------------------------------------ others


def test_float32_agrees_with_float64():
    data = Data(seed=10)
    arguments = (data.gram, data.rewards, TERMINATED)
    single = posterior_(*(x if x.dtype == bool else np.float32(x) for x in arguments), DISCOUNT, 0.6, mask=MASK)
    double = exact(posterior_, *arguments, DISCOUNT, 0.6, mask=MASK)
    for ours, theirs in zip(single, double, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    law = sparse.init(np.float32(data.points[0, 0]), 20)
    rewards = np.float32(np.where(MASK, data.rewards, 0))
    law = update_(law, np.float32(data.points), rewards, TERMINATED, DISCOUNT, 0.6, threshold=0.1, mask=MASK)
    theirs = exact(sparse.value, online(data, 0.1, 20), kernel, data.new)
    for a, b in zip(sparse.value(law, kernel, np.float32(data.new)), theirs, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_what_float32_cannot_do_is_refused():
    """Never a wrong number: NaN inside of a trace, an error outside, and the answer in float64."""
    same, rewards, end = np.ones((8, 8)) + 1e-6 * np.eye(8), np.ones((1, 4)), np.ones(4, bool)
    single = np.float32(same), np.float32(rewards), end, 0.9, 1e-6
    assert np.all(np.isnan(posterior_(*single).coefficients[:4]))
    with pytest.raises(ValueError, match="the system of the posterior is singular to the precision of float32"):
        gptd.posterior(*single)
    assert np.all(np.isfinite(exact(posterior_, same, rewards, end, 0.9, 1e-6).coefficients))


def test_kernels_and_their_features():
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(4, 2))
    np.testing.assert_allclose(exact(kernels.gram, kernel, x, y), gram(x, y), atol=1e-13)
    np.testing.assert_allclose(exact(kernels.gram, kernels.linear, x, y), x @ y.T, atol=1e-13)
    some = exact(kernels.inducing, kernel, x, np.concatenate([x, y]))
    projected = gram(y, x) @ np.linalg.solve(gram(x, x), gram(x, y))
    np.testing.assert_allclose(some[:6] @ some[:6].T, gram(x, x), atol=1e-12)
    np.testing.assert_allclose(some[6:] @ some[6:].T, projected, atol=1e-10)
    information = x.T @ x
    z = exact(kernels.whiten, y, information)
    np.testing.assert_allclose(z @ z.T, y @ np.linalg.inv(information) @ y.T, atol=1e-12)
    with pytest.raises(ValueError, match="the kernel between anchors is singular to the precision of float32"):
        kernels.inducing(kernel, jnp.zeros((2, 2)), jnp.zeros((2, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": np.eye(3)}, r"gram has shape \(3, 3\), expected \(6, 6\)"),
        ({"rewards": np.ones(2)}, r"rewards has shape \(2,\), expected \[T, M\]"),
        ({"terminated": np.ones(3)}, r"terminated has shape \(3,\), expected \(2,\)"),
        ({"noise": "td"}, "noise is 'td', expected 'mc'"),
        ({"noise_variance": np.ones((2, 2))}, r"noise_variance has shape \(2, 2\), expected \(\) or \(3, 2\)"),
        ({"noise_variance": 0.0}, "noise_variance is 0.0, expected above 0"),
        ({"mask": np.ones(2)}, r"mask has shape \(2,\), expected \(2, 2\)"),
        ({"mask": np.array([[0, 1], [1, 1]])}, "mask has a real step after a padded one"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    good = {"gram": np.eye(6), "rewards": np.ones((2, 2)), "terminated": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        gptd.posterior(**(good | {"discount": 0.9, "noise_variance": 1.0} | change))


def test_errors_of_the_other_forms():
    with pytest.raises(ValueError, match=r"features has shape \(2, 2, 3\), expected \(3, 2, m\): a row more"):
        gptd.weight_posterior(np.ones((2, 2, 3)), np.ones((2, 2)), np.ones(2), 0.9, 1.0)
    with pytest.raises(ValueError, match=r"points have leading axes \[\(2, 2\)\], rewards has shape \(2, 2\)"):
        sparse.update(
            sparse.init(jnp.zeros(1), 3), kernel, np.ones((2, 2, 1)), np.ones((2, 2)), np.ones(2), 0.9, 1.0, threshold=0
        )
    with pytest.raises(ValueError, match=r"init\.capacity must be an integer of at least 1, got 0"):
        sparse.init(jnp.zeros(1), 0)
