"""`jaxrl.normalise` against numpy on all the data at once."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import normalise
from jaxrl.types import Box, Discrete, Transition

update = jax.jit(normalise.update)
merge = jax.jit(normalise.merge)
apply = jax.jit(normalise.apply, static_argnames="clip")


def moments_of(rows: np.ndarray) -> normalise.Moments:
    """What numpy makes of `[B, ...]` in double precision."""
    rows = np.asarray(rows, np.float64)
    count, mean = len(rows), rows.mean(0)
    return normalise.Moments(*map(jnp.float32, (count, mean, ((rows - mean) ** 2).sum(0))))


def check(got: normalise.Moments, rows: np.ndarray, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    rows = np.asarray(rows, np.float64)
    assert got.count == len(rows)
    np.testing.assert_allclose(got.mean, rows.mean(0), rtol=rtol, atol=atol)
    np.testing.assert_allclose(normalise.variance(got), rows.var(0), rtol=rtol, atol=atol)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.sampled_from([1, 2, 7]), min_size=1, max_size=8))
def test_any_split_gives_the_moments_of_the_whole(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    scale, offset = 10 ** rng.uniform(-3, 3, size=(2, 3))
    rows = (offset + scale * rng.normal(size=(sum(sizes), 3))).astype(np.float32)
    moments = normalise.init(Box((3,)))
    for piece in np.split(rows, np.cumsum(sizes)[:-1]):
        moments = update(moments, piece)
    exact = rows.astype(np.float64)
    unit = np.spacing(np.abs(rows).max(0))  # a mean is known to a few units in its last place, a deviation from it too
    assert moments.count == len(rows)
    assert np.all(np.abs(moments.mean - exact.mean(0)) <= 4 * unit)
    error = np.abs(normalise.variance(moments) - exact.var(0))
    assert np.all(error <= 1e-5 * exact.var(0) + 8 * unit * exact.std(0) + (4 * unit) ** 2)


@pytest.mark.parametrize(("leading", "shape"), [((), (4,)), ((6,), ()), ((3, 2), (4,)), ((2, 3, 1), (2, 3))])
def test_any_leading_axes_and_any_observation(leading: tuple[int, ...], shape: tuple[int, ...]) -> None:
    batch = np.random.default_rng(0).normal(size=(*leading, *shape)).astype(np.float32)
    moments = update(normalise.init(Box(shape)), batch)
    assert moments.mean.shape == moments.m2.shape == shape
    check(moments, batch.reshape(-1, *shape))
    assert apply(moments, batch).shape == batch.shape


@pytest.mark.parametrize("batch_size", [10, 1000, 100_000])
def test_float32_stands_a_mean_far_above_the_deviation(batch_size: int) -> None:
    rows = np.random.default_rng(0).normal(1e4, 1.0, size=(100_000, 2)).astype(np.float32)
    batches = rows.reshape(-1, batch_size, 2)
    moments, _ = jax.jit(lambda b: jax.lax.scan(lambda m, x: (normalise.update(m, x), None), init(), b))(batches)
    exact = rows.astype(np.float64)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, exact.mean(0), atol=0.01)  # 10 units in the last place of 1e4
    np.testing.assert_allclose(normalise.variance(moments), exact.var(0), rtol=2e-3)
    standardised = np.asarray(apply(moments, rows), np.float64)
    np.testing.assert_allclose(standardised.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(standardised.std(0), 1, rtol=2e-3)


def init() -> normalise.Moments:
    return normalise.init(Box((2,)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_merge_is_associative_commutative_and_has_a_neutral_element(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = [rng.normal(rng.normal(), rng.uniform(0.1, 3), size=(size, 2)) for size in rng.integers(1, 50, size=3)]
    a, b, c = map(moments_of, pieces)
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        check(merged, np.concatenate(pieces), rtol=1e-4)
    for merged in (merge(a, init()), merge(init(), a)):
        jax.tree.map(np.testing.assert_array_equal, merged, a)
    jax.tree.map(np.testing.assert_array_equal, merge(init(), init()), init())


def test_vmapped_lanes_are_each_on_their_own() -> None:
    batch = np.random.default_rng(0).normal(size=(5, 8, 2)) * np.arange(1, 6)[:, None, None]
    lanes = jax.jit(jax.vmap(normalise.update, (None, 0)))(init(), batch)
    standardised = jax.jit(jax.vmap(normalise.apply))(lanes, batch)
    for i in range(5):
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], lanes)
        check(lane, batch[i])
        np.testing.assert_allclose(standardised[i], (batch[i] - batch[i].mean(0)) / batch[i].std(0), atol=1e-5)


# --------------------------------------------------------------------- long runs and broken numbers


@pytest.mark.parametrize("rows", [1, 64])
def test_a_very_long_run_still_follows_the_data(rows: int) -> None:
    old = normalise.Moments(jnp.float32(1e12), jnp.zeros(2), jnp.full(2, 1e12, jnp.float32))
    batches = np.random.default_rng(0).normal(2.0, 3.0, size=(100, rows, 2)).astype(np.float32)
    moments = old
    for batch in batches:
        moments = update(moments, batch)
    # the exponential average, in double precision: each batch weighs 1 / (2^20 + 1)
    mean, second = np.zeros(2), np.ones(2)
    for batch in batches.astype(np.float64):
        mean = (2**20 * mean + batch.mean(0)) / (2**20 + 1)
        second = (2**20 * second + (batch**2).mean(0)) / (2**20 + 1)
    assert moments.count == (2**20 + 1) * rows
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(normalise.variance(moments) - 1, second - mean**2 - 1, rtol=0.02)


def test_the_cap_is_not_felt_before() -> None:
    old = normalise.Moments(jnp.float32(2**20), jnp.zeros(2), jnp.full(2, 2.0**20, jnp.float32))
    moments = update(old, np.zeros((1, 2), np.float32))
    np.testing.assert_array_equal(moments.m2, old.m2)
    assert moments.count == 2**20 + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e13])
def test_broken_observations_are_left_out_whole(bad: float) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    broken = rows.copy()
    broken[3, 0] = broken[11, 1] = bad
    moments = update(init(), broken)
    check(moments, np.delete(rows, [3, 11], axis=0))
    unchanged = update(moments, np.full((20, 2), bad, np.float32))
    jax.tree.map(np.testing.assert_array_equal, unchanged, moments)
    nothing = update(moments, jnp.zeros((0, 2)))
    jax.tree.map(np.testing.assert_array_equal, nothing, moments)


def test_the_largest_observations_do_not_overflow() -> None:
    rows = np.array([[9e11, -9e11], [-9e11, 9e11]] * 500, np.float32)
    moments = update(normalise.Moments(jnp.float32(4e9), jnp.ones(2), jnp.full(2, 4e9)), rows)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(moments))


# --------------------------------------------------------------------------------------------- apply


def test_apply_standardises_and_clips() -> None:
    rows = np.array([[0.0, 5.0], [4.0, 5.0]], np.float32)
    moments = update(init(), rows)  # means 2 and 5, deviations 2 and 0
    got = apply(moments, jnp.array([[3.0, 5.5], [1000.0, 5.0], [-1000.0, 5.0]]))
    np.testing.assert_allclose(got, [[0.5, 0.5], [10.0, 0.0], [-10.0, 0.0]])
    np.testing.assert_allclose(apply(moments, jnp.array([1000.0, 5.0]), clip=3.0), [3.0, 0.0])
    assert jnp.isnan(apply(moments, jnp.array([jnp.nan, 5.0]))[0])


def test_apply_leaves_alone_what_it_knows_nothing_of() -> None:
    observation = jnp.array([1000.0, -3.0])
    assert normalise.apply(None, observation) is observation
    np.testing.assert_array_equal(apply(init(), observation), observation)
    once = apply(update(init(), np.ones((1, 2), np.float32)), jnp.array([1.5, 0.0]))
    np.testing.assert_allclose(once, [0.5, -1.0])  # one observation has no deviation


def test_rounding_noise_is_not_blown_up() -> None:
    noisy = np.float32(1e4) + np.array([[0.0], [np.spacing(np.float32(1e4))]] * 8, np.float32)
    moments = normalise.update(normalise.init(Box((1,))), noisy)
    assert normalise.variance(moments) > 0
    np.testing.assert_allclose(apply(moments, noisy), 0, atol=1e-3)


def test_gradients_with_respect_to_the_observation_are_finite() -> None:
    for moments in (init(), update(init(), np.array([[0.0, 5.0], [4.0, 5.0]], np.float32))):
        gradient = jax.grad(lambda o, m=moments: apply(m, o).sum())(jnp.array([1.0, 5.0]))
        std = jnp.where(normalise.variance(moments) > 0, jnp.sqrt(normalise.variance(moments)), 1)
        np.testing.assert_allclose(gradient, 1 / std)


def test_dtypes() -> None:
    for dtype, wide in (("uint8", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        with jax.enable_x64(True):
            moments = normalise.init(Box((2,), 0, 9, dtype))
            batch = jnp.asarray([[1, 2], [3, 4]], dtype)
            assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype(wide)}
            assert jax.eval_shape(normalise.update, moments, batch) == jax.eval_shape(lambda m=moments: m)
            assert apply(moments, batch).dtype == (wide if dtype == "uint8" else dtype)
    moments = normalise.init(Box((2,), dtype="float64"))  # without x64, numpy's doubles are taken as singles
    assert (
        normalise.apply(normalise.update(moments, np.ones((3, 2))), np.ones(2)).dtype
        == moments.mean.dtype
        == jnp.float32
    )


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"expects a Box of observations, got Discrete\(n=5.*normaliser to None"):
        normalise.init(Discrete(5))
    with pytest.raises(ValueError, match=r"batch has shape \(4, 3\), expected \(\.\.\., 2\)"):
        normalise.update(init(), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"observation has shape \(\), expected \(\.\.\., 2\)"):
        normalise.apply(init(), jnp.zeros(()))


# ----------------------------------------------------------------------------- the scale of rewards

update_returns = jax.jit(normalise.update_returns)
scale = jax.jit(normalise.scale)


def episodes(steps: int, lanes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards [T, N] and both kinds of ends, several of each in every lane."""
    rng = np.random.default_rng(seed)
    ends = rng.uniform(size=(steps, lanes))
    return rng.normal(1.0, 2.0, size=(steps, lanes)).astype(np.float32), ends < 0.1, (ends >= 0.1) & (ends < 0.2)


def transitions(reward: Any, terminated: Any, truncated: Any) -> Transition:
    observation = jnp.stack([jnp.asarray(reward, jnp.float32)] * 2, axis=-1)
    flags = jnp.asarray(terminated), jnp.asarray(truncated)
    return Transition(observation, observation, jnp.asarray(reward), observation, *flags)


def sums(reward: np.ndarray, ended: np.ndarray, discount: float) -> list[float]:
    """The discounted sum after each step, each written out from the rewards of its own episode."""
    found = []
    for lane in range(reward.shape[1]):
        first = 0
        for t in range(len(reward)):
            found.append(sum(discount ** (t - k) * float(reward[k, lane]) for k in range(first, t + 1)))
            first = t + 1 if ended[t, lane] else first
    return found


def test_returns_are_those_of_each_episode_alone() -> None:
    """Against all sums written out; ends of both kinds, and the same whatever batches the steps come in."""
    reward, terminated, truncated = episodes(60, 3)
    assert terminated.any(0).all() and truncated.any(0).all()
    expected = np.array(sums(reward, terminated | truncated, 0.9))
    whole = update_returns(normalise.init_returns(3), transitions(reward, terminated, truncated), 0.9)
    parts = normalise.init_returns(3)
    for piece in np.split(np.arange(60), 20):
        parts = update_returns(parts, transitions(reward[piece], terminated[piece], truncated[piece]), 0.9)
    for returns in (whole, parts):
        assert returns.moments.count == 180
        np.testing.assert_allclose(returns.moments.mean, expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(normalise.variance(returns.moments), expected.var(), rtol=1e-5)
        np.testing.assert_allclose(returns.largest, abs(expected).max(), rtol=1e-5)
    np.testing.assert_allclose(parts.running, whole.running, rtol=1e-6)
    size = max(expected.std(), abs(expected).max() / 2)
    assert size > expected.std()  # so that both cases are seen
    known = normalise.Normaliser(None, whole)
    np.testing.assert_allclose(scale(known, jnp.float32(3.0), 2.0), 3 / size, rtol=1e-5)
    np.testing.assert_allclose(scale(known, jnp.float32(3.0)), 3 / expected.std(), rtol=1e-5)
    np.testing.assert_allclose(abs(scale(known, jnp.asarray(expected, jnp.float32), 2.0)).max(), 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_the_last_reward_counts_for_its_own_episode(kind: str) -> None:
    """A reward of 100 at the end is nothing to the next episode, and the sum before it is something to this one."""
    reward, end = np.array([[1.0], [100.0], [1.0], [1.0]], np.float32), np.array([[False], [True], [False], [False]])
    none = np.zeros_like(end)
    flags = (end, none) if kind == "terminated" else (none, end)
    returns = update_returns(normalise.init_returns(1), transitions(reward, *flags), 0.5)
    np.testing.assert_allclose(returns.running, [1.5])
    np.testing.assert_allclose(returns.largest, 100.5)
    np.testing.assert_allclose(returns.moments.mean, (1 + 100.5 + 1 + 1.5) / 4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.99))
def test_returns_to_go_are_nearly_in_the_bound(seed: int, discount: float) -> None:
    """Those of any rewards, by the factor that the module states, up to the end of what was seen."""
    reward, terminated, _ = episodes(20, 2, seed)
    reward = reward * np.random.default_rng(seed + 1).choice([-1, 0, 1, 10], size=reward.shape).astype(np.float32)
    terminated[-1] = True
    returns = update_returns(normalise.init_returns(2), transitions(reward, terminated, terminated), discount)
    ahead, largest = np.zeros(2), 0.0
    for t in reversed(range(20)):
        ahead = reward[t] + discount * np.where(terminated[t], 0, ahead)
        largest = max(largest, abs(ahead).max())
    assert largest <= (1 + 2 * discount) * returns.largest * (1 + 1e-5)


def test_rewards_stay_as_they_are_while_nothing_is_known() -> None:
    rewards = jnp.array([3.0, -2.0])
    assert normalise.scale(None, rewards) is rewards and normalise.scale(init(), rewards) is rewards
    zeros = jnp.zeros((4, 1), bool)
    nothing = normalise.init_returns(1)
    for returns in (nothing, update_returns(nothing, transitions(np.zeros((4, 1), np.float32), zeros, zeros), 0.9)):
        np.testing.assert_array_equal(scale(normalise.Normaliser(None, returns), rewards, 5.0), rewards)
    same = update_returns(nothing, transitions(np.full((4, 1), 7.0, np.float32), ~zeros, zeros), 0.9)
    np.testing.assert_allclose(scale(normalise.Normaliser(None, same), rewards, 5.0), rewards / 1.4, rtol=1e-5)


def test_lanes_of_a_vmap_have_returns_of_their_own() -> None:
    batches = [transitions(*episodes(20, 3, seed)) for seed in (1, 2)]
    fresh = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), normalise.init_returns(3))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    both = jax.jit(jax.vmap(normalise.update_returns))(fresh, stacked, jnp.array([0.5, 0.9]))
    for i, discount in enumerate((0.5, 0.9)):
        alone = update_returns(normalise.init_returns(3), batches[i], discount)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5), both, alone)


@pytest.mark.parametrize("observed", [True, False])
def test_refresh_takes_in_all_that_there_is(observed: bool) -> None:
    @struct.dataclass
    class State:
        normaliser: Any

    config, batch = types.SimpleNamespace(discount=0.9), transitions(*episodes(20, 3))
    assert normalise.refresh(config, State(None), batch).normaliser is None
    moments = normalise.refresh(config, State(init()), batch).normaliser
    jax.tree.map(np.testing.assert_array_equal, moments, normalise.update(init(), batch.observation))
    both = normalise.Normaliser(init() if observed else None, normalise.init_returns(3))
    after = normalise.refresh(config, State(both), batch).normaliser
    assert jax.tree.structure(after) == jax.tree.structure(both)
    jax.tree.map(np.testing.assert_array_equal, after.observations, moments if observed else None)
    expected = normalise.update_returns(normalise.init_returns(3), batch, 0.9)
    jax.tree.map(np.testing.assert_array_equal, after.returns, expected)
    standardised = normalise.apply(after, batch.observation)
    np.testing.assert_array_equal(standardised, normalise.apply(moments if observed else None, batch.observation))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_returns_keep_their_type(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        reward, *flags = episodes(4, 3)
        returns = normalise.init_returns(3)
        after = jax.eval_shape(normalise.update_returns, returns, transitions(reward.astype(dtype), *flags), 0.9)
        assert {leaf.dtype.name for leaf in jax.tree.leaves((returns, after))} == {dtype}


def test_other_lanes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch.reward has shape \(20, 3\), expected \(T, 4\): the steps, in order"):
        normalise.update_returns(normalise.init_returns(4), transitions(*episodes(20, 3)), 0.9)
