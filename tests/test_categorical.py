"""Categorical laws against a minimiser of the Cramer distance, explicit loops, quadrature and rlax."""

from __future__ import annotations

import itertools
import math
import warnings

import chex
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from hypothesis import given, settings

from jaxrl.distributional import categorical

with warnings.catch_warnings():  # what rlax imports uses old names
    warnings.simplefilter("ignore")
    import rlax

project, two_hot, bellman_target = map(jax.jit, (categorical.project, categorical.two_hot, categorical.bellman_target))
hl_gauss = jax.jit(categorical.hl_gauss, static_argnums=3)

rlax_project = jax.jit(jax.vmap(rlax.categorical_l2_project, (0, 0, None)))

FORMS = {"kernel": jax.jit(categorical._by_kernel), "scatter": jax.jit(categorical._by_scatter)}
SUPPORTS = {"uniform": np.linspace(-2.0, 3.0, 6), "uneven": np.array([-2.0, -1.5, 0.0, 0.1, 2.0, 3.0])}

floats = st.floats(-5.0, 5.0, allow_subnormal=False)
laws = st.tuples(hnp.arrays(np.float64, 5, elements=floats), hnp.arrays(np.float64, 5, elements=st.floats(0.01, 1.0)))


def random_law(seed: int, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-4.0, 5.0, size), rng.dirichlet(np.ones(size))


def projected_by_loops(atoms, probs, support) -> np.ndarray:
    """Each atom in turn, between its two neighbours."""
    law = np.zeros(len(support))
    for x, p in zip(atoms, probs, strict=True):
        x = min(max(x, support[0]), support[-1])
        upper = next(i for i in range(1, len(support)) if x <= support[i])
        share = (x - support[upper - 1]) / (support[upper] - support[upper - 1])
        law[upper - 1] += p * (1 - share)
        law[upper] += p * share
    return law


def squared_cramer(atoms, probs, support, law) -> float:
    """The integral of the squared difference of the two distribution functions."""
    points = np.unique(np.concatenate([atoms, support]))
    difference = [probs[atoms <= x].sum() - law[support <= x].sum() for x in points[:-1]]
    return float(np.sum(np.square(difference) * np.diff(points)))


# ------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
@pytest.mark.parametrize("seed", range(3))
def test_projection_minimises_the_cramer_distance(support, seed):
    atoms, probs = random_law(seed)
    n = len(support)
    best = scipy.optimize.minimize(
        lambda law: squared_cramer(atoms, probs, support, law),
        np.full(n, 1 / n),
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda law: law.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    with jax.enable_x64(True):
        ours = np.asarray(project(atoms, probs, support))
    np.testing.assert_allclose(ours, best.x, atol=1e-5)
    assert squared_cramer(atoms, probs, support, ours) <= best.fun + 1e-10


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
def test_projection_is_that_of_explicit_loops_and_of_rlax(form, support):
    atoms, probs = zip(*[random_law(seed) for seed in range(4)], strict=True)
    atoms, probs = np.stack(atoms), np.stack(probs)
    atoms[0, :3] = support[[0, 2, -1]]  # on the support
    with jax.enable_x64(True):
        ours = form(jnp.clip(atoms, support[0], support[-1]), jnp.asarray(probs), jnp.asarray(support))
        theirs = rlax_project(*map(jnp.asarray, (atoms, probs, support)))
        public = project(atoms, probs, support)
    loops = np.stack([projected_by_loops(a, p, support) for a, p in zip(atoms, probs, strict=True)])
    np.testing.assert_allclose(ours, loops, atol=1e-14)
    np.testing.assert_allclose(public, loops, atol=1e-14)
    np.testing.assert_allclose(theirs, loops, atol=1e-14)


def test_a_large_support_is_projected_alike():
    support = np.linspace(-3.0, 3.0, categorical.KERNEL_LIMIT + 1)
    atoms, probs = random_law(0, size=40)
    with jax.enable_x64(True):
        ours = project(atoms, probs, support)
    np.testing.assert_allclose(ours, projected_by_loops(atoms, probs, support), atol=1e-14)


def test_distribution_function_is_the_average_of_the_targets_over_each_interval():
    support, (atoms, probs) = SUPPORTS["uneven"], random_law(3)
    with jax.enable_x64(True):
        ours = np.cumsum(project(atoms, probs, support))
    for i in range(len(support) - 1):
        grid = support[i] + (np.arange(20000) + 0.5) / 20000 * (support[i + 1] - support[i])
        average = np.mean([probs[atoms <= x].sum() for x in grid])
        assert ours[i] == pytest.approx(average, abs=1e-4)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("low", "high"), [(-10.0, 10.0), (0.0, 1.0), (-0.1, 250.3), (1e3, 1007.0)])
def test_float32_is_exact_on_the_support_and_loses_no_mass(form, low, high):
    n = 51
    support = jnp.linspace(low, high, n, dtype=jnp.float32)
    on_support = np.asarray(support)
    near = np.concatenate([np.nextafter(on_support, np.float32(-1e9)), np.nextafter(on_support, np.float32(1e9))])
    points = np.concatenate([on_support, np.clip(near, on_support[0], on_support[-1])])
    laws = np.asarray(form(points[:, None], np.ones((3 * n, 1), np.float32), support))
    np.testing.assert_array_equal(laws[:n], np.eye(n, dtype=np.float32))
    assert (laws >= 0).all()
    np.testing.assert_allclose(laws.astype(np.float64).sum(-1), 1, atol=1.2e-7)  # one rounding


@settings(deadline=None, max_examples=30)
@given(laws, hnp.arrays(np.float64, 5, elements=st.floats(0.0, 3.0)))
def test_mass_and_clipped_mean_are_kept_and_order_is_respected(law, increase):
    atoms, weights = law
    probs = weights / weights.sum()
    support = SUPPORTS["uniform"]
    with jax.enable_x64(True):
        ours = np.asarray(project(atoms, probs, support))
        higher = np.asarray(project(atoms + increase, probs, support))
    assert (ours >= 0).all()
    assert ours.sum() == pytest.approx(1, abs=1e-12)
    assert ours @ support == pytest.approx(probs @ np.clip(atoms, support[0], support[-1]), abs=1e-12)
    assert (np.cumsum(higher) <= np.cumsum(ours) + 1e-12).all()


def test_supports_may_be_traced_and_differ_between_lanes():
    atoms, probs = random_law(4)
    lows, highs = np.array([-2.0, 0.0, -5.0]), np.array([3.0, 1.0, 5.0])

    @jax.jit
    def ours(low, high):
        return project(atoms, probs, jnp.linspace(low, high, 11))

    with jax.enable_x64(True):
        lanes = jax.vmap(ours)(lows, highs)
    for lane, low, high in zip(lanes, lows, highs, strict=True):
        np.testing.assert_allclose(lane, projected_by_loops(atoms, probs, np.linspace(low, high, 11)), atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradients_are_finite_on_the_support_and_outside(form):
    support = jnp.linspace(-2.0, 3.0, 6)
    atoms = jnp.array([-2.0, 0.0, 3.0, -9.0, 9.0])

    def value(atoms, probs, low, high):
        support = jnp.linspace(low, high, 6)
        return form(jnp.clip(atoms, low, high), probs, support) @ jnp.arange(6.0) ** 2

    gradients = jax.jit(jax.grad(value, (0, 1, 2, 3)))(atoms, jnp.full(5, 0.2), support[0], support[-1])
    chex.assert_tree_all_finite(gradients)
    assert gradients[0][3] == gradients[0][4] == 0


# ---------------------------------------------------------------------------------------- targets


def test_bellman_target_is_that_of_explicit_loops():
    rng = np.random.default_rng(0)
    support = np.linspace(-2.0, 2.0, 9)
    rewards, costs = rng.normal(size=4), rng.normal(size=4)
    discounts = 0.9 * np.array([1.0, 0.0, 1.0, 0.0])
    probs = rng.dirichlet(np.ones(9), 4)
    with jax.enable_x64(True):
        hard = bellman_target(rewards, discounts, probs, support)
        soft = bellman_target(rewards, discounts, probs, support, costs)
        shares = categorical.clipped_share(
            categorical.bellman_atoms(rewards, discounts, support, costs), probs, support
        )
    for b in range(4):
        moved = [rewards[b] + discounts[b] * z for z in support]
        np.testing.assert_allclose(hard[b], projected_by_loops(moved, probs[b], support), atol=1e-14)
        moved = [rewards[b] + discounts[b] * (z - costs[b]) for z in support]
        np.testing.assert_allclose(soft[b], projected_by_loops(moved, probs[b], support), atol=1e-14)
        outside = sum(p for x, p in zip(moved, probs[b], strict=True) if not -2 <= x <= 2)
        assert shares[b] == pytest.approx(outside, abs=1e-14)


def test_atoms_on_the_ends_are_not_clipped():
    support, atoms = np.array([-1.0, 0.0, 1.0]), np.array([-1.0, 1.0, 1.001, -7.0])
    assert categorical.clipped_share(atoms, np.array([0.1, 0.2, 0.3, 0.4]), support) == pytest.approx(0.7)


def test_terminal_target_is_the_reward_alone_without_entropy():
    support = jnp.linspace(-1.0, 1.0, 5)
    target = bellman_target(0.3, 0.0, jnp.full(5, 0.2), support, entropy_costs=7.0)
    np.testing.assert_array_equal(target, two_hot(0.3, support))


def test_identity_and_shift_by_whole_atoms():
    probs = jnp.array([0.1, 0.2, 0.3, 0.4])
    support = jnp.array([0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(bellman_target(0.0, 1.0, probs, support), probs)
    shifted = bellman_target(1.0, 1.0, probs, support)
    np.testing.assert_allclose(shifted, [0.0, 0.1, 0.2, 0.7], atol=1e-7)


def test_least_mean_takes_whole_laws():
    probs = np.random.default_rng(1).dirichlet(np.ones(4), (3, 6)).astype(np.float32)  # K, B, N
    support = jnp.array([-1.0, 0.0, 1.0, 5.0])
    ours = categorical.least_mean(probs, support)
    means = probs @ np.asarray(support)
    for b in range(6):
        np.testing.assert_array_equal(ours[b], probs[int(np.argmin(means[:, b])), b])
    assert len({int(np.argmin(means[:, b])) for b in range(6)}) > 1  # it is chosen for each element
    np.testing.assert_allclose(categorical.mean(ours, support), means.min(0), atol=1e-6)


# ------------------------------------------------------------------------- numbers as distributions


def test_two_hot_is_that_of_explicit_loops_and_keeps_the_mean():
    support = np.linspace(-3.0, 3.0, 13)
    targets = np.array([-9.0, -3.0, -2.9, 0.0, 0.25, 2.5, 2.99, 3.0, 9.0])
    ours = np.asarray(two_hot(targets, support))
    np.testing.assert_allclose(ours, [projected_by_loops([y], [1.0], support) for y in targets], atol=1e-6)
    np.testing.assert_allclose(ours @ support, np.clip(targets, -3, 3), atol=1e-6)
    assert ours[-1, -1] == ours[-2, -1] == ours[0, 0] == ours[1, 0] == 1  # the top bin exists, whole


@pytest.mark.parametrize("sigma", [0.15, 0.75, 4.0])
def test_hl_gauss_is_the_numerical_integral_of_the_truncated_normal(sigma):
    low, high, n = -3.0, 5.0, 8
    targets = np.array([-3.0, -2.7, 0.0, 0.5, 1.234, 4.9, 5.0])
    with jax.enable_x64(True):
        ours = hl_gauss(targets, low, high, n, sigma)
    edges = [low + (high - low) * i / n for i in range(n + 1)]
    for y, law in zip(targets, ours, strict=True):

        def density(x, y=y):
            return math.exp(-((x - y) ** 2) / (2 * sigma**2))

        mass = [
            scipy.integrate.quad(density, a, b, points=[y] if a < y < b else None, epsabs=1e-13)[0]
            for a, b in itertools.pairwise(edges)
        ]
        np.testing.assert_allclose(law, np.array(mass) / sum(mass), atol=1e-12)


def test_hl_gauss_has_sigma_in_the_units_of_the_target():
    y = jnp.array([-0.7, 0.2])
    law = hl_gauss(y, -1.0, 1.0, 10, 0.15)
    np.testing.assert_allclose(hl_gauss(40 * y, -40.0, 40.0, 10, 6.0), law, atol=1e-6)
    np.testing.assert_array_equal(hl_gauss(y, -1.0, 1.0, 10), law)  # 0.75 of a bin's width, 0.2


def test_hl_gauss_value_is_the_mean_over_the_middles_of_the_bins():
    centres = categorical.bin_centres(-2.0, 2.0, 40)
    np.testing.assert_allclose(centres, -1.95 + 0.1 * np.arange(40), atol=1e-6)
    y = jnp.linspace(-1.4, 1.4, 29)
    np.testing.assert_allclose(categorical.mean(hl_gauss(y, -2.0, 2.0, 40), centres), y, atol=2e-5)
    narrow = hl_gauss(centres, -2.0, 2.0, 40, 1e-3)
    np.testing.assert_allclose(narrow, np.eye(40), atol=1e-6)


def test_hl_gauss_outside_the_range_is_that_of_the_end_and_gradients_are_finite():
    outside = hl_gauss(jnp.array([-1e6, 1e6]), -1.0, 1.0, 11)
    ends = hl_gauss(jnp.array([-1.0, 1.0]), -1.0, 1.0, 11)
    np.testing.assert_array_equal(outside, ends)
    np.testing.assert_allclose(outside.sum(-1), 1, atol=1e-6)

    def value(y, low, high, sigma):
        return hl_gauss(y, low, high, 11, sigma) @ jnp.arange(11.0)

    y = jnp.array([-50.0, -1.0, 0.0, 1.0, 50.0])
    gradients = jax.jit(jax.vmap(jax.grad(value, (0, 1, 2, 3)), (0, None, None, None)))(y, -1.0, 1.0, 0.1)
    chex.assert_tree_all_finite(gradients)
    assert gradients[0][0] == gradients[0][4] == 0


# ------------------------------------------------------------------------------------------- faces


def test_dtype_is_kept():
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            x = np.full(5, 0.2, dtype)
            for function in (
                lambda x: categorical.project(x, x, x),
                lambda x: categorical.bellman_target(x, 0.9, x, x, 0.1),
                lambda x: categorical.hl_gauss(x, -1.0, 1.0, 5, 0.2),
                lambda x: categorical.hl_gauss(x, -1.0, 1.0, 5),
            ):
                assert jax.eval_shape(function, x).dtype == dtype


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="same last axis"):
        project(jnp.zeros(3), jnp.zeros(4), jnp.arange(2.0))
    with pytest.raises(ValueError, match="N >= 2"):
        project(jnp.zeros(3), jnp.zeros(3), jnp.zeros(1))
    with pytest.raises(ValueError, match="num_bins"):
        hl_gauss(0.0, -1.0, 1.0, 0)
