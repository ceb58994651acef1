"""Kalman temporal differences against batch conditioning in NumPy; LKTD against Lyapunov's equation and Bayes' rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxrl.bayes import kalman

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")

N, T = 3, 12
RNG = np.random.default_rng(0)
FEATURES, NEXT = RNG.normal(size=(T, N)), RNG.normal(size=(T, N))
REWARDS, ENDS = RNG.normal(size=T), RNG.uniform(size=T) < 0.3
DISCOUNT, NOISE, PRIOR = 0.9, 0.4, np.array([2.0, 0.5, 1.0])
DIFFERENCES = FEATURES - DISCOUNT * (1 - ENDS)[:, None] * NEXT


def exact(function, *args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args))


def filtered(process_noise=None, dtype=float, features=FEATURES, noise=NOISE):
    def step(state, row):
        return kalman.kalman_td_step(state, *row, discount=DISCOUNT, noise_variance=noise, process_noise=process_noise)

    state = kalman.init(N, jnp.asarray(PRIOR, dtype))
    return jax.jit(lambda state, rows: jax.lax.scan(step, state, rows))(
        state, (features.astype(dtype), NEXT.astype(dtype), REWARDS.astype(dtype), ENDS)
    )


# ------------------------------------------------------------------------------------ linear critics


def test_the_filter_is_gaussian_process_temporal_differences_in_batch():
    """Engel's equations in the space of samples: alpha = H^T (H K H^T + S)^-1 r with K = Phi P Phi^T, all at once."""
    state, innovations = exact(filtered)
    kernel = np.diag(PRIOR)
    of_rewards = DIFFERENCES @ kernel @ DIFFERENCES.T + NOISE * np.eye(T)
    gain = kernel @ DIFFERENCES.T @ np.linalg.inv(of_rewards)
    np.testing.assert_allclose(state.mean, gain @ REWARDS, rtol=1e-10)
    np.testing.assert_allclose(state.covariance, kernel - gain @ DIFFERENCES @ kernel, rtol=1e-9, atol=1e-12)
    density = scipy.stats.norm.logpdf(innovations.error, 0, np.sqrt(innovations.variance)).sum()
    np.testing.assert_allclose(density, scipy.stats.multivariate_normal(cov=of_rewards).logpdf(REWARDS), rtol=1e-11)


@pytest.mark.parametrize("wander", [0.3, np.array([0.1, 0.5, 0.2]), np.diag([0.2, 0.1, 0.4]) + 0.05])
def test_with_process_noise_it_conditions_the_whole_walk(wander):
    """All weights of all times as one normal vector: cov(theta_s, theta_t) = P + min(s, t) Q."""
    state, _ = exact(functools.partial(filtered, wander))
    q = wander if np.ndim(wander) == 2 else np.diag(np.broadcast_to(wander, N))
    times = np.arange(1, T + 1)
    walk = np.kron(np.ones((T, T)), np.diag(PRIOR)) + np.kron(np.minimum.outer(times, times), q)
    design = scipy.linalg.block_diag(*DIFFERENCES[:, None])
    gain = walk @ design.T @ np.linalg.inv(design @ walk @ design.T + NOISE * np.eye(T))
    np.testing.assert_allclose(state.mean, (gain @ REWARDS)[-N:], rtol=1e-9)
    np.testing.assert_allclose(state.covariance, (walk - gain @ design @ walk)[-N:, -N:], rtol=1e-8, atol=1e-11)


def test_no_process_noise_is_none():
    """Not even with a root that is not triangular, or that has a direction without variance."""
    state = kalman.KalmanState(jnp.zeros(2), jnp.array([[1.0, 2.0], [0.5, 1.0]]))
    settings = {"discount": 0.9, "noise_variance": 1.0}
    a, _ = kalman.kalman_td_step(state, [1.0, 2.0], [0.0, 1.0], 1.0, False, **settings)
    b, _ = kalman.kalman_td_step(state, [1.0, 2.0], [0.0, 1.0], 1.0, False, process_noise=0.0, **settings)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-4, atol=1e-6)


def test_the_covariance_stays_symmetric_and_positive_in_float32():
    """Nearly the same features again and again, and next to no noise: Joseph's form has variances of -1e-6 there."""
    same = (np.ones((T, N)) + 1e-4 * RNG.normal(size=(T, N))).astype(np.float32)
    state, _ = filtered(dtype=np.float32, features=100 * same, noise=1e-6)
    assert state.covariance.dtype == jnp.float32
    root = np.asarray(state.root, float)
    double = exact(lambda: filtered(features=100.0 * same, noise=1e-6)[0].covariance)
    np.testing.assert_allclose(root @ root.T, double, atol=1e-2 * np.abs(double).max())
    _, variance = kalman.value(state, jnp.asarray(RNG.normal(size=(1000, N)), jnp.float32))
    assert np.all(variance >= 0)


def test_value_and_interval():
    state = kalman.KalmanState(jnp.array([1.0, 2.0]), jnp.linalg.cholesky(jnp.array([[2.0, 0.5], [0.5, 1.0]])))
    mean, variance = kalman.value(state, jnp.array([[1.0, 0.0], [1.0, -1.0]]))
    np.testing.assert_allclose(mean, [1.0, -1.0])
    np.testing.assert_allclose(variance, [2.0, 2.0], rtol=1e-6)
    low, high = kalman.interval(mean, variance, 0.8)
    np.testing.assert_allclose(scipy.stats.norm(mean, np.sqrt(2)).cdf(low), 0.1, rtol=1e-5)
    np.testing.assert_allclose(scipy.stats.norm(mean, np.sqrt(2)).cdf(high), 0.9, rtol=1e-5)


# -------------------------------------------------------------------------------------- any critic


STEP = {"step_size": 0.02, "noise_variance": NOISE, "prior_variance": 0.8, "share": 0.3}


def predict(params):
    return jnp.asarray(DIFFERENCES) @ jnp.concatenate([params["a"], params["b"][None]])


def state_of(x):
    return kalman.LangevinState({"a": x[: N - 1], "b": x[N - 1]}, x[N:])


def flat(state):
    return jnp.concatenate([state.params["a"], state.params["b"][None], state.latent])


def affine(step_size, temperature=1.0):
    """The step as x -> A x + b + C z, z its standard normal numbers."""
    settings = STEP | {"step_size": step_size, "temperature": temperature}

    def step(x, z):
        normals = ({"a": z[: N - 1], "b": z[N - 1]}, z[N : N + T], z[N + T :])
        return flat(kalman._langevin(state_of(x), predict, jnp.asarray(REWARDS), normals, **settings))

    def parts():
        x, z = jnp.zeros(N + T), jnp.zeros(N + 2 * T)
        return jax.jacobian(step)(x, z), step(x, z), jax.jacobian(step, argnums=1)(x, z)

    return exact(parts)


def posterior(temperature=1.0):
    """Of the parameters, for a prior and a likelihood to the power N / B, by Bayes' rule."""
    precision = np.eye(N) / STEP["prior_variance"] + DIFFERENCES.T @ DIFFERENCES / NOISE / temperature
    covariance = np.linalg.inv(precision)
    return covariance @ DIFFERENCES.T @ REWARDS / NOISE / temperature, covariance


@pytest.mark.parametrize("temperature", [1.0, 0.25], ids=["whole", "a quarter"])
def test_a_linear_critic_reaches_the_posterior(temperature):
    """The stationary law by Lyapunov's equation: the mean exactly, the covariance up to the step size."""
    mean, covariance = posterior(temperature)
    errors = []
    for step_size in (4e-4, 1e-4):
        A, b, C = affine(step_size, temperature)
        assert np.abs(np.linalg.eigvals(A)).max() < 1
        np.testing.assert_allclose(np.linalg.solve(np.eye(N + T) - A, b)[:N], mean, rtol=1e-9)
        stationary = scipy.linalg.solve_discrete_lyapunov(A, C @ C.T)[:N, :N]
        errors.append(np.linalg.norm(stationary - covariance) / np.linalg.norm(covariance))
    assert errors[0] < 0.01
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)


def test_it_is_preconditioned_langevin_dynamics():
    """x + T/2 eps M grad U + N(0, T eps M) with M = (I, 1 - K), U the log-density of (theta, xi) given r."""
    step_size, temperature, share = 0.02, 0.25, STEP["share"]
    A, b, C = affine(step_size, temperature)
    remaining = 2 * (1 - share) * NOISE
    kept = remaining / (step_size + remaining)  # 1 - K

    def log_density(x):
        theta, xi = x[:N], x[N:]
        fits = jnp.sum((xi - DIFFERENCES @ theta) ** 2) / share + jnp.sum((REWARDS - xi) ** 2) / (1 - share)
        return -jnp.sum(theta**2) / STEP["prior_variance"] / 2 - fits / (2 * NOISE) / temperature

    metric = np.concatenate([np.ones(N), np.full(T, kept)])
    x = RNG.normal(size=N + T)
    slope = exact(jax.grad(log_density), x)
    np.testing.assert_allclose(A @ x + b, x + temperature * step_size / 2 * metric * slope, rtol=1e-10)
    np.testing.assert_allclose(C @ C.T, np.diag(temperature * step_size * metric), atol=1e-15)


@pytest.fixture(scope="module")
def chains():
    """Parameters [2000, N] of parallel chains after some time, with new latents every fifth step, in float32."""
    rewards = jnp.asarray(REWARDS, jnp.float32)
    settings = {"noise_variance": NOISE, "share": STEP["share"]}

    def batch(params, key):
        keys = jax.random.split(key, 6)
        state = kalman.lktd_init(params, predict, rewards, keys[0], **settings)
        for k in keys[1:]:
            state = kalman.lktd_step(
                state, predict, rewards, k, step_size=0.001, prior_variance=STEP["prior_variance"], **settings
            )
        return state.params, None

    def chain(key):
        start = {"a": jnp.full(N - 1, 2.0), "b": jnp.array(-2.0)}
        return jax.lax.scan(batch, start, jax.random.split(key, 500))[0]

    with jax.debug_key_reuse(False):  # it takes a vmap over a scan over keys for one
        params = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 2000))
    return np.concatenate([params["a"], params["b"][:, None]], axis=1)


def test_draws_have_the_law_of_the_posterior(chains):
    mean, covariance = posterior()
    errors = (chains.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(chains))
    assert np.all(np.abs(errors) < 4)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), (chains - mean).T)
    np.testing.assert_allclose(np.cov(whitened), np.eye(N), atol=0.12)


def test_latents_of_a_new_batch_have_their_conditional_law():
    params = {"a": jnp.array([0.3, -1.0]), "b": jnp.array(0.5)}
    settings = {"noise_variance": NOISE, "share": 0.3, "population": 4 * T}

    def draw(key):
        return kalman.lktd_init(params, predict, jnp.asarray(REWARDS, jnp.float32), key, **settings).latent

    draws = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 20_000)))
    h = DIFFERENCES @ np.array([0.3, -1.0, 0.5])
    before, after = 0.3 * NOISE / 4, 0.7 * NOISE / 4  # of h to xi, and of xi to r
    variance = 1 / (1 / before + 1 / after)
    np.testing.assert_allclose(draws.mean(0), variance * (h / before + REWARDS / after), atol=5e-3)
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.06)


def test_a_network_in_float32_keeps_its_types_and_moves():
    params = {"w": jnp.ones((4, 2)), "half": jnp.ones(2, jnp.bfloat16)}
    inputs = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)

    def network(p):
        return jnp.tanh(inputs @ p["w"]) @ p["half"].astype(jnp.float32)

    rewards = jnp.ones(5)
    settings = {"noise_variance": 1.0, "population": 50}
    state = kalman.lktd_init(params, network, rewards, jax.random.key(0), **settings)
    after = kalman.lktd_step(
        state, network, rewards, jax.random.key(1), step_size=0.1, prior_variance=jnp.inf, **settings
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(np.all(np.isfinite(np.asarray(x, float))) for x in jax.tree.leaves(after))
    assert np.all(after.params["w"] != params["w"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kalman.init(2, jnp.ones(3)), r"prior_variance has shape \(3,\), expected \(\) or \(2,\)"),
        (lambda: kalman.init(2, 0.0), "prior_variance is 0.0, expected above 0"),
        (lambda: step(features=jnp.ones((4, 2))), r"features has shape \(4, 2\), expected \(2,\).*scan"),
        (lambda: step(process_noise=jnp.ones(3)), r"process_noise has shape \(3,\), expected"),
        (lambda: step(process_noise=-1.0), "process_noise is -1.0, expected at least 0"),
        (lambda: step(process_noise=-jnp.eye(2)), "process_noise is not positive definite.*give a diagonal"),
        (lambda: step(noise_variance=0.0), "noise_variance is 0.0, expected above 0"),
        (lambda: latents(share=1.0), r"share must be in \(0, 1\), got 1.0"),
        (lambda: latents(rewards=jnp.ones((2, 2))), r"rewards has shape \(2, 2\), expected \[B\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def step(features=(1.0, 2.0), noise_variance=1.0, process_noise=None):
    return kalman.kalman_td_step(
        kalman.init(2, 1.0),
        features,
        (0.0, 1.0),
        1.0,
        False,
        discount=0.9,
        noise_variance=noise_variance,
        process_noise=process_noise,
    )


def latents(rewards=None, share=0.5):
    rewards = jnp.ones(2) if rewards is None else rewards
    return kalman.lktd_init(jnp.ones(2), lambda p: p, rewards, jax.random.key(0), noise_variance=1.0, share=share)
