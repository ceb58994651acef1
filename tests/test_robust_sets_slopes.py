"""The derivatives of worst cases, against finite differences and at every border."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import risk, robust

R, N = 12, 6  # rows and states: one shape, so that each set compiles once
H = 1e-6  # of differences
PLACES = np.random.default_rng(0).normal(size=(N, 2))
METRIC = np.linalg.norm(PLACES[:, None] - PLACES, axis=-1)
RADII = np.linspace(0.05, 0.4, R)
KINDS = {
    "l1": robust.L1,
    "total variation": robust.TotalVariation,
    "linf": robust.LInf,
    "l2": robust.L2,
    "chi-square": robust.ChiSquare,
    "kl": robust.KL,
    "burg": robust.Burg,
    "contamination": robust.Contamination,
    "wasserstein": lambda radius, **flags: robust.Wasserstein(radius, np.tile(METRIC, (R, 1, 1)), **flags),
    "signed 1": lambda radius, **flags: robust.SignedLp(radius, 1, **flags),
    "signed 2": lambda radius, **flags: robust.SignedLp(radius, 2, **flags),
    "signed inf": lambda radius, **flags: robust.SignedLp(radius, math.inf, **flags),
    "cvar": lambda radius: risk.CVaR(np.exp(-radius)),
    "evar": lambda radius: risk.EVaR(np.exp(-radius)),
    "entropic": risk.Entropic,
}
FREE = ("l1", "total variation", "linf", "l2", "contamination", "wasserstein")  # have slopes where p0 is 0, too
SLOPES = jax.grad(lambda set, p, z: robust.worst_case(set, p, z)[0].sum(), (0, 1, 2))


def exact(set, p, z, function=robust.worst_case):
    """What a set gives, in float64."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (set, p, z))
        return jax.tree.map(np.asarray, function(*double))


def some_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(N), R), 3 * rng.normal(size=(R, N))


def step(tree, direction, t):
    return jax.tree.map(lambda x, d: x + t * d, tree, direction)


def slope_along(set, p, z, directions, one_sided=False) -> np.ndarray:
    """The slope of the value of each row along directions in the set, the law and the values, by differences."""
    at = [exact(*(step(x, d, t) for x, d in zip((set, p, z), directions, strict=True)))[0] for t in (-H, 0, H, 2 * H)]
    return (-3 * at[1] + 4 * at[2] - at[3]) / (2 * H) if one_sided else (at[2] - at[0]) / (2 * H)


def along(slopes, directions) -> np.ndarray:
    """The same from the derivatives."""
    products = jax.tree.map(lambda s, d: (s * d).reshape(R, -1).sum(-1), list(slopes), list(directions))
    return sum(jax.tree.leaves(products))


def check_slopes(set, p, z, move_p=None, **settings):
    """Along each argument alone, and all of them together."""
    rng = np.random.default_rng(1)
    slopes = exact(set, p, z, SLOPES)
    move_p = (lambda d: np.where(p > 0, d, 0)) if move_p is None else move_p
    raw = move_p(rng.normal(size=(R, N)))
    d_p = raw - np.where(p > 0, p, 0) * raw.sum(-1, keepdims=True)  # keeps the sum, and the support
    d_set = jax.tree.map(lambda x: np.broadcast_to(rng.normal(size=np.shape(x)), np.shape(x)), set)
    directions = (d_set, d_p, rng.normal(size=(R, N)))
    nothing = jax.tree.map(lambda x: np.zeros(np.shape(x)), directions)
    for i in range(3):
        alone = (*nothing[:i], directions[i], *nothing[i + 1 :])
        expected = slope_along(set, p, z, alone, **settings)
        np.testing.assert_allclose(along(slopes, alone), expected, rtol=1e-5, atol=2e-6, err_msg=f"argument {i}")
    expected = slope_along(set, p, z, directions, **settings)
    np.testing.assert_allclose(along(slopes, directions), expected, rtol=1e-5, atol=2e-6)
    with jax.enable_x64(True):
        arguments, moves = (
            (jax.tree.map(jnp.asarray, x), *(jnp.asarray(y) for y in ys)) for x, *ys in ((set, p, z), directions)
        )
        forwards = jax.jvp(lambda *args: robust.worst_case(*args)[0], arguments, moves)[1]
    np.testing.assert_allclose(forwards, along(slopes, directions), rtol=1e-9, atol=1e-9)
    return slopes


@pytest.mark.parametrize("kind", KINDS)
def test_slopes(kind):
    check_slopes(KINDS[kind](RADII), *some_rows(2))


@pytest.mark.parametrize("kind", ["l1", "linf", "l2", "chi-square", "kl", "burg", "wasserstein", "signed inf"])
def test_slopes_of_laws_without_mass_somewhere(kind):
    """Under support "nominal" the support is kept."""
    p, z = some_rows(3)
    p[:, 4] = 0
    p[::2, 1] = 0
    slopes = check_slopes(KINDS[kind](RADII), p / p.sum(-1, keepdims=True), z)
    assert (slopes[1][p == 0] == 0).all()


@pytest.mark.parametrize("kind", [*FREE, "burg"])
def test_slopes_with_all_states(kind):
    """Under support "all" mass may also come to a state: the slope is that to one side."""
    p, z = some_rows(4)
    p[:, 4] = 0
    p[::2, 1] = 0
    z[3, 4] = z[4, 1] = -9
    p /= p.sum(-1, keepdims=True)
    move = None if kind == "burg" else (lambda d: np.where(p > 0, d, np.abs(d)))
    check_slopes(KINDS[kind](RADII, support="all"), p, z, move, one_sided=kind != "burg")


def test_slopes_of_intervals():
    p, z = some_rows(5)
    lower, upper = p / 2, np.minimum(p + 0.1, 0.9)
    check_slopes(robust.Interval(lower, upper), p, z)
    slopes = exact(robust.Interval(np.full((R, 1), 0.05), np.full((R, 1), 0.42)), p, z, SLOPES)[0]
    for name, other in (("lower", "upper"), ("upper", "lower")):
        at = {"lower": 0.05, "upper": 0.42}
        values = []
        for t in (-H, H):
            bounds = {name: np.full((R, 1), at[name] + t), other: np.full((R, 1), at[other])}
            values.append(exact(robust.Interval(**bounds), p, z)[0])
        np.testing.assert_allclose(getattr(slopes, name)[:, 0], (values[1] - values[0]) / (2 * H), atol=1e-6)
    beyond = exact(robust.Interval(np.zeros((R, N)), np.full((R, N), 2.0)), p, z, SLOPES)[0]
    assert (beyond.upper == 0).all()


@pytest.mark.parametrize("kind", ["l1", "kl"])
def test_slopes_of_an_optimistic_set(kind):
    check_slopes(KINDS[kind](RADII, optimistic=True), *some_rows(6))


# ---------------------------------------------------------------------------------------- borders


def test_slopes_in_the_radius_at_zero():
    """Those to the right; infinite for KL, chi-square and Burg, and given as 0."""
    p, z = some_rows(7)
    gain = np.max((z[:, :, None] - z[:, None, :]) / np.where(METRIC > 0, METRIC, np.inf), axis=(1, 2))
    expected = {
        "l1": -np.ptp(z, axis=-1) / 2,
        "total variation": -np.ptp(z, axis=-1),
        "linf": -np.abs(z - np.median(z, axis=-1, keepdims=True)).sum(-1),
        "l2": -np.linalg.norm(z - z.mean(-1, keepdims=True), axis=-1),
        "contamination": z.min(-1) - (p * z).sum(-1),
        "wasserstein": -gain,
        "chi-square": np.zeros(R),
        "kl": np.zeros(R),
        "burg": np.zeros(R),
    }
    for kind, slope in expected.items():
        slopes = exact(KINDS[kind](np.zeros(R)), p, z, SLOPES)
        np.testing.assert_allclose(slopes[0].radius, slope, rtol=1e-9, err_msg=kind)
        np.testing.assert_array_equal(slopes[2], p)
        d = p * (z - (p * z).sum(-1, keepdims=True))  # the mean of z has the slope z, up to a constant
        np.testing.assert_allclose((slopes[1] * d).sum(-1), (z * d).sum(-1), rtol=1e-7, err_msg=kind)


def test_slopes_of_a_tiny_radius():
    """The loss is that of the first order: radius times a slope, or sqrt(2 radius Var) and the like."""
    p, z = some_rows(8)
    variance = (p * z**2).sum(-1) - (p * z).sum(-1) ** 2
    for radius in (1e-20, 1e-12, 1e-9):
        for kind, factor in (("kl", 2), ("burg", 2), ("chi-square", 1)):
            slopes = exact(KINDS[kind](np.full(R, radius)), p, z, SLOPES)
            expected = -np.sqrt(factor * variance / radius) / 2
            np.testing.assert_allclose(slopes[0].radius, expected, rtol=3e-4, err_msg=kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("cvar", "evar", "entropic")])
def test_slopes_are_finite_at_every_border(kind):
    p, z = some_rows(9)
    p[0], p[1, :3], p[2, 2] = np.eye(N)[2], 0, 1e-30
    z[3], z[4, :3], z[5] = 2.0, z[4].min(), 1e6 * z[5]
    p /= p.sum(-1, keepdims=True)
    for radius in (0.0, 1e-300, 1e-9, 0.5, 1.0, 1e3, 1e30, math.inf):
        set = KINDS[kind](np.full(R, radius))
        value, probs = exact(set, p, z)
        slopes = exact(set, p, z, SLOPES)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes)) or (radius == math.inf and "signed" in kind)
        np.testing.assert_array_equal(slopes[2], probs)
        if radius >= 1e3 and "signed" not in kind and (kind != "burg" or radius >= 1e30):
            assert np.abs(slopes[0].radius).max() <= 1e-9  # nothing more to lose
        assert np.isfinite(value).all() or (radius == math.inf and "signed" in kind)
    assert exact(KINDS[kind](np.full(R, 0.5)), p, z, SLOPES)[0].radius[3] == 0


def test_the_law_is_a_constant_and_slopes_have_no_slopes():
    p, z = (x[0] for x in some_rows(10))
    for set in (robust.L1(0.3), robust.KL(0.3), risk.CVaR(0.3), risk.Entropic(1.0)):
        jacobian = jax.jacfwd(lambda z, set=set: robust.worst_case(set, p, z)[1])(jnp.asarray(z))
        assert (jacobian == 0).all()
    for second in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f)), lambda f: jax.jacfwd(jax.jacfwd(f))):
        with pytest.raises(ValueError, match="differentiated twice"):
            second(lambda z: robust.worst_case(robust.KL(0.3), p, z)[0])(jnp.asarray(z))
    inner = jax.grad(lambda z: robust.worst_case(robust.KL(0.3), p, z)[0])
    outer = jax.grad(lambda z: (inner(jax.lax.stop_gradient(z)) * z).sum())(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(outer, robust.worst_case(robust.KL(0.3), p, z)[1], rtol=1e-5)


def test_slopes_pass_through_transformations():
    p, z = some_rows(11)
    with jax.enable_x64(True):
        batched = exact(robust.KL(RADII), p, z, SLOPES)
        value = functools.partial(lambda r, p, z: robust.worst_case(robust.KL(r), p, z)[0])
        lanes = jax.jit(jax.vmap(jax.grad(value, (0, 1, 2))))(RADII, p, z)
        np.testing.assert_allclose(lanes[0], batched[0].radius, rtol=1e-9)
        np.testing.assert_allclose(lanes[1], batched[1], atol=1e-12)
        np.testing.assert_allclose(lanes[2], batched[2], atol=1e-12)
        curve = jax.jit(jax.vmap(jax.value_and_grad(value), (0, None, None)))(RADII, p[0], z[0])
        assert (np.diff(curve[0]) < 0).all()
        np.testing.assert_allclose(np.gradient(curve[0], RADII)[2:-2], curve[1][2:-2], rtol=0.1)
    shared = exact(robust.L1(0.3), p, z[0], SLOPES)  # values that all rows share, one radius
    apart = exact(robust.L1(np.full(R, 0.3)), p, np.tile(z[0], (R, 1)), SLOPES)
    np.testing.assert_allclose(shared[2], apart[2].sum(0), atol=1e-12)
    np.testing.assert_allclose(shared[0].radius, apart[0].radius.sum(), atol=1e-12)
