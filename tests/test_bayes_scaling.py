"""Uncertainty-aware scaling against loops over the eigenvectors that NumPy finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.bayes import scaling

scaled_ = jax.jit(scaling.uncertainty_aware, static_argnames=("natural", "rank"))


def exact(*args, **kwargs):
    with jax.enable_x64(True):
        return np.asarray(scaled_(*args, **kwargs))


@pytest.fixture(scope="module")
def law():
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    variances = np.array([0.01, 0.5, 2.0, 3.0, 40.0, 700.0])
    return rng.normal(size=6), rotation @ np.diag(variances) @ rotation.T


def by_hand(mean, covariance, natural, limit, rank):
    """The definition, direction by direction."""
    variances, directions = np.linalg.eig(covariance)
    order = np.argsort(variances)[:rank] if natural else np.argsort(-variances)[:rank]
    edge = max(variances[order]) if natural else min(variances[order])
    step = np.zeros_like(mean)
    for i in range(len(mean)):
        factor = 1.0
        if i in order:
            factor = np.sqrt(edge / variances[i])
            factor = min(factor, limit) if natural else factor
        step += factor * directions[:, i] * (directions[:, i] @ mean)
    return step


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 6, None])
def test_it_scales_direction_by_direction(law, natural, rank):
    expected = by_hand(*law, natural, 3.0, rank or 6)
    np.testing.assert_allclose(exact(*law, natural=natural, limit=3.0, rank=rank), expected, rtol=1e-10)


def test_of_full_rank_the_step_is_equally_uncertain_in_all_directions(law):
    """The linear map that it is, applied to both sides of the covariance, leaves a multiple of the identity."""
    _, covariance = law
    for natural, level in ((False, 0.01), (True, 700.0)):
        steps = np.stack([exact(e, covariance, natural=natural, limit=np.inf) for e in np.eye(6)], axis=1)
        np.testing.assert_allclose(steps @ covariance @ steps.T, level * np.eye(6), atol=1e-9 * level)


def test_a_gradient_is_never_lengthened_and_a_natural_one_never_shortened(law):
    mean, covariance = law
    assert np.linalg.norm(exact(mean, covariance)) < np.linalg.norm(mean)
    once = np.linalg.norm(exact(mean, covariance, natural=True, limit=3.0))
    assert np.linalg.norm(mean) < once <= 3 * np.linalg.norm(mean) + 1e-9
    np.testing.assert_allclose(exact(mean, covariance, natural=True, limit=1.0), mean, rtol=1e-10)


def test_a_direction_without_uncertainty_is_finite(law):
    mean, _ = law
    for natural in (False, True):
        assert np.all(np.isfinite(exact(mean, np.diag([0.0, 0, 1, 2, 3, 4]), natural=natural)))
        assert np.all(np.isfinite(exact(mean, np.zeros((6, 6)), natural=natural)))


def test_batches_and_single_precision(law):
    mean, covariance = (jnp.asarray(x, jnp.float32) for x in law)
    limits = jnp.array([1.0, 3.0, 10.0])
    together = jax.vmap(lambda limit: scaled_(mean, covariance, natural=True, limit=limit))(limits)
    assert together.dtype == jnp.float32
    for limit, row in zip(limits, together, strict=True):
        np.testing.assert_allclose(row, exact(*law, natural=True, limit=float(limit)), rtol=2e-3)


def test_wrong_shapes_and_ranks_are_refused():
    with pytest.raises(ValueError, match=r"mean has shape \(2,\) and covariance \(3, 3\)"):
        scaling.uncertainty_aware(jnp.ones(2), jnp.eye(3))
    with pytest.raises(ValueError, match="rank is 4, expected at most n = 3"):
        scaling.uncertainty_aware(jnp.ones(3), jnp.eye(3), rank=4)
    with pytest.raises(ValueError, match="rank"):
        scaling.uncertainty_aware(jnp.ones(3), jnp.eye(3), rank=0)
