"""Spaces, kinds of data and the helpers: what they accept, what they refuse, and in which words."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import struct

from jaxrl.types import (
    Box,
    Discrete,
    Replay,
    Rollout,
    Spec,
    Transition,
    canonical,
    check_batch,
    check_positive,
)

inf = math.inf


def says(*parts: str) -> str:
    """A pattern for a message that has all of `parts`, word for word and in this order."""
    return "(?s)" + ".*".join(map(re.escape, parts))


# --------------------------------------------------------------------------------------------------- Box


def test_bounds_have_the_shape_and_the_type_of_the_box() -> None:
    for dtype in ("float32", "float64"):
        low, high = Box((2, 3), -1.0, 2.0, dtype).bounds()
        assert low.shape == high.shape == (2, 3) and low.dtype == high.dtype == dtype
        assert np.all(low == -1) and np.all(high == 2)
    low, high = Box((3,), (-1.0, -2.0, -inf), 5.0).bounds()
    np.testing.assert_array_equal(low, [-1.0, -2.0, -inf])
    np.testing.assert_array_equal(high, [5.0, 5.0, 5.0])


def test_samples_of_a_bounded_box_are_uniform() -> None:
    box = Box((2,), (-1.0, -0.5), (3.0, 0.5))
    samples = np.asarray(jax.jit(jax.vmap(box.sample))(jax.random.split(jax.random.key(0), 20_000)))
    assert samples.shape == (20_000, 2) and samples.dtype == np.float32
    for axis, law in enumerate([scipy.stats.uniform(-1, 4), scipy.stats.uniform(-0.5, 1)]):
        assert scipy.stats.kstest(samples[:, axis], law.cdf).pvalue > 0.01
    assert abs(np.corrcoef(samples.T)[0, 1]) < 0.02


def test_samples_without_bounds_are_normal_and_clipped_where_there_is_one() -> None:
    box = Box((3,), (-inf, 0.5, -inf), (inf, inf, -0.25))
    samples = np.asarray(jax.jit(jax.vmap(box.sample))(jax.random.split(jax.random.key(1), 20_000)))
    assert scipy.stats.kstest(samples[:, 0], scipy.stats.norm.cdf).pvalue > 0.01
    for axis, bound, inside in [(1, 0.5, samples[:, 1] > 0.5), (2, -0.25, samples[:, 2] < -0.25)]:
        mass = scipy.stats.norm.sf(abs(bound))
        assert abs(inside.mean() - mass) < 3 * math.sqrt(mass * (1 - mass) / len(samples))
        assert np.all(samples[~inside, axis] == np.float32(bound))


def test_samples_of_the_widest_box_do_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    samples = np.asarray(
        jax.jit(jax.vmap(Box((), -largest, largest).sample))(jax.random.split(jax.random.key(2), 1000))
    )
    assert np.all(np.isfinite(samples)) and samples.min() < -largest / 2 and samples.max() > largest / 2


def test_clip_gives_the_nearest_element() -> None:
    box = Box((3,), (-1.0, -inf, 0.0), (1.0, 2.0, inf))
    value = np.random.default_rng(0).normal(scale=3.0, size=(4, 5, 3)).astype(np.float32)
    expected = [
        [[min(max(x, lo), hi) for x, lo, hi in zip(row, *box.bounds(), strict=True)] for row in m] for m in value
    ]
    clipped = jax.jit(box.clip)(value)
    np.testing.assert_array_equal(clipped, np.array(expected, np.float32))
    np.testing.assert_array_equal(box.clip(clipped), clipped)
    np.testing.assert_array_equal(Box((3,)).clip(jnp.asarray(value)), value)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (7, 2, 4)])
def test_check_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    Box((4,)).check("observation", jnp.zeros(shape))
    Box(()).check("observation", np.zeros(shape))
    Box((2, 4)).check("observation", jnp.zeros((3, 2, 4)))


@pytest.mark.parametrize(
    ("box", "shape", "expected"),
    [((4,), (3,), "(..., 4)"), ((4,), (), "(..., 4)"), ((2, 4), (4,), "(..., 2, 4)"), ((2, 4), (4, 2), "(..., 2, 4)")],
)
def test_check_says_what_came_and_what_was_expected(
    box: tuple[int, ...], shape: tuple[int, ...], expected: str
) -> None:
    with pytest.raises(
        ValueError, match=says(f"observation has shape {shape}, expected {expected}", "another environment?")
    ):
        Box(box).check("observation", jnp.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 1.0, "high": 1.0}, ["Box.low must be below Box.high", "low = 1.0", "high = 1.0"]),
        ({"low": (0.0, 3.0), "high": 2.0}, ["Box.low must be below Box.high", "low = (0.0, 3.0)", "high = 2.0"]),
        ({"low": math.nan}, ["Box.low must be below Box.high", "low = nan"]),
        ({"low": (0.0, 0.0, 0.0)}, ["Box.low is a tuple of 3 numbers", "Box.shape = (2,)", "one number"]),
        ({"shape": (1, 2), "high": (9.0, 9.0)}, ["Box.high is a tuple of 2 numbers", "Box.shape = (1, 2)"]),
        ({"low": np.zeros(2)}, ["Box.low must be a number, or a tuple of numbers", "got array([0., 0.])"]),
        ({"high": [1.0, 1.0]}, ["Box.high must be a number, or a tuple of numbers", "got [1.0, 1.0]"]),
        ({"shape": 2}, ["Box.shape must be a tuple of integers, got 2"]),
        ({"shape": [2]}, ["Box.shape must be a tuple of integers, got [2]"]),
        ({"shape": (2.0,)}, ["Box.shape must be a tuple of integers, got (2.0,)"]),
        ({"dtype": np.float32}, ["Box.dtype must be a name such as 'float32'", "got <class 'numpy.float32'>"]),
        ({"dtype": "int32"}, ["Box of int32 can't hold low = -inf and high = inf"]),
    ],
)
def test_a_box_that_is_none_is_refused(settings: dict[str, Any], message: list[str]) -> None:
    with pytest.raises(ValueError, match=says(*message)):
        Box(**{"shape": (2,)} | settings)


def test_a_box_may_hold_bytes() -> None:
    pixels = Box((4, 4, 3), 0, 255, "uint8")
    assert pixels.zeros().dtype == jnp.uint8 and pixels.bounds()[1].dtype == np.uint8


# ---------------------------------------------------------------------------------------------- Discrete


def test_samples_of_a_discrete_space_are_uniform() -> None:
    samples = np.asarray(jax.jit(jax.vmap(Discrete(5).sample))(jax.random.split(jax.random.key(3), 10_000)))
    assert samples.dtype == np.int32
    assert scipy.stats.chisquare(np.bincount(samples, minlength=5)).pvalue > 0.01


def test_discrete_checks_the_type_and_never_clips() -> None:
    Discrete(3).check("action", jnp.arange(3))
    Discrete(3).check("action", 2)
    np.testing.assert_array_equal(Discrete(3).clip(jnp.array([7, -1])), [7, -1])
    for value in (jnp.zeros(2), jnp.array([True])):
        message = says("action has dtype", value.dtype.name, "expected integers below 3", "another environment?")
        with pytest.raises(ValueError, match=message):
            Discrete(3).check("action", value)


@pytest.mark.parametrize("n", [0, -3, 2.5, True])
def test_discrete_needs_a_positive_integer(n: Any) -> None:
    with pytest.raises(ValueError, match=says(f"Discrete.n must be an integer of at least 1, got {n}")):
        Discrete(n)


def test_discrete_needs_the_name_of_a_type() -> None:
    with pytest.raises(ValueError, match=says("Discrete.dtype must be a name", "got <class 'int'>")):
        Discrete(2, int)  # type: ignore[arg-type]


SPACES: list[Box | Discrete] = [
    Box((2,), (-1.0, 0.0), 3.0),
    Box(()),
    Box((3, 2), -1.0, 1.0),
    Discrete(4),
    Discrete(2, "uint8"),
]


@pytest.mark.parametrize("space", SPACES)
def test_zeros_and_samples_have_the_shape_and_the_type_of_the_space(space: Box | Discrete) -> None:
    for element in (space.zeros(), jax.eval_shape(space.sample, jax.random.key(4))):
        assert element.shape == space.shape and element.dtype == space.dtype
    space.check("it", space.zeros())


@pytest.mark.parametrize("space", [Box((2,), (-1.0, 0.0), 3.0, "float64"), Discrete(4, "int64")])
def test_spaces_work_in_double_precision(space: Box | Discrete) -> None:
    with jax.enable_x64(True):
        sample = jax.eval_shape(space.sample, jax.random.key(5))
        assert {element.dtype.name for element in (space.zeros(), sample)} == {space.dtype}
        assert space.clip(space.zeros()).dtype == space.dtype


def test_a_box_of_singles_stays_one_in_double_precision() -> None:
    with jax.enable_x64(True):
        for box in (Box((2,), -1.0, 1.0), Box((2,))):
            assert jax.eval_shape(box.sample, jax.random.key(6)).dtype == jnp.float32


# ----------------------------------------------------------------------------- what is static in a program


FROZEN = [*SPACES, Spec(*SPACES[:2]), Rollout(4, 8), Replay()]


@pytest.mark.parametrize("value", FROZEN, ids=lambda value: type(value).__name__)
def test_specs_are_frozen_hashable_and_equal_by_value(value: Any) -> None:
    copy = dataclasses.replace(value)
    assert copy == value and hash(copy) == hash(value) and copy is not value
    assert eval(repr(value), {"inf": inf}, globals()) == value  # what the record of a run shows can be pasted
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


def test_rollout_counts_its_transitions() -> None:
    assert Rollout(num_envs=4, length=8).transitions == 32
    assert Replay(num_envs=4, capacity=100).transitions == 4


@pytest.mark.parametrize("name", ["num_envs", "length"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_rollout_needs_positive_integers(name: str, size: Any) -> None:
    with pytest.raises(ValueError, match=says(f"Rollout.{name} must be an integer of at least 1, got {size!r}")):
        Rollout(**{"num_envs": 4, "length": 8} | {name: size})


@pytest.mark.parametrize("name", ["num_envs", "capacity", "batch_size", "n_step", "updates_per_step"])
@pytest.mark.parametrize("size", [0, 1e6])
def test_replay_needs_positive_integers(name: str, size: Any) -> None:
    with pytest.raises(ValueError, match=says(f"Replay.{name} must be an integer of at least 1, got {size!r}")):
        Replay(**{name: size})


def test_replay_may_start_at_once_but_not_before() -> None:
    assert Replay(warmup=0).warmup == 0
    for warmup in (-1, 1e4):
        with pytest.raises(ValueError, match=says(f"Replay.warmup must be an integer of at least 0, got {warmup!r}")):
            Replay(warmup=warmup)  # type: ignore[arg-type]


def test_replay_holds_a_window_of_every_environment() -> None:
    assert Replay(num_envs=16, n_step=3, capacity=64).capacity == 64
    with pytest.raises(ValueError, match=says("Replay.capacity = 63", "n_step = 3", "num_envs = 16", "at least 64")):
        Replay(num_envs=16, n_step=3, capacity=63)


@pytest.mark.parametrize("kind", [Rollout, Replay])
def test_resets_are_pool_or_fresh(kind: Any) -> None:
    assert kind(num_envs=1, **{"length": 1} if kind is Rollout else {}, resets="fresh").resets == "fresh"
    with pytest.raises(ValueError, match=says(f"{kind.__name__}.resets must be 'pool' or 'fresh', got 'auto'")):
        kind(num_envs=1, **{"length": 1} if kind is Rollout else {}, resets="auto")


def test_check_positive_takes_the_integers_of_numpy() -> None:
    check_positive("Config", num_epochs=np.int64(3), num_minibatches=1)
    with pytest.raises(ValueError, match=says("Config.num_minibatches must be an integer of at least 1, got 0")):
        check_positive("Config", num_epochs=1, num_minibatches=0)


# --------------------------------------------------------------------------------------------- canonical


@struct.dataclass
class Config:
    learning_rate: Any = 3e-4
    clip: Any = None
    inner: Any = struct.field(default_factory=lambda: {"radius": 1, "weights": (0.5, np.float64(0.25))})
    name: str = struct.field(pytree_node=False, default="static")


@pytest.mark.parametrize("x64", [False, True])
def test_canonical_makes_strong_floats_and_keeps_the_rest(x64: bool) -> None:
    with jax.enable_x64(x64):
        config = canonical(Config())
        leaves = jax.tree.leaves(config)
        assert [float(leaf) for leaf in leaves] == pytest.approx([3e-4, 1.0, 0.5, 0.25])
        assert {(leaf.dtype.name, leaf.weak_type) for leaf in leaves} == {("float64" if x64 else "float32", False)}
        assert jax.tree.structure(config) == jax.tree.structure(Config())
        assert config.clip is None and config.name == "static"


def test_a_new_value_never_traces_again() -> None:
    traces = []

    @jax.jit
    def f(config: Config) -> Any:
        traces.append(config)
        return config.learning_rate * (1 if config.clip is None else config.clip)

    same = [1e-3, 7, True, np.float64(2.0), np.float32(3.0), jnp.float32(4.0), jnp.asarray(5), jnp.asarray(6.0)]
    for learning_rate in same:
        np.testing.assert_allclose(f(canonical(Config(learning_rate))), float(learning_rate), rtol=1e-6)
    assert len(traces) == 1
    f(canonical(canonical(Config())))
    f(jax.jit(canonical)(Config()))
    assert len(traces) == 1
    f(canonical(Config(clip=0.2)))  # from None to a number is another program
    assert len(traces) == 2


def test_canonical_keeps_the_axis_of_a_stack() -> None:
    stacked = canonical(Config(np.geomspace(1e-4, 1e-2, 5)))
    assert stacked.learning_rate.shape == (5,) and stacked.learning_rate.dtype == jnp.float32


@pytest.mark.parametrize("leaf", ["adam", jax.random.key(8), len])
def test_canonical_names_the_leaf_that_is_no_number(leaf: Any) -> None:
    message = says("config.inner['scheme'] is", "expected a number", "struct.field(pytree_node=False)")
    with pytest.raises(ValueError, match=message):
        canonical(Config(inner={"scheme": leaf}))


# ------------------------------------------------------------------------------------------- check_batch


SPEC = Spec(Box((3,)), Discrete(4))


def batch(**leaves: Any) -> Transition:
    fields: dict[str, Any] = {
        "observation": np.zeros((5, 2, 3)),
        "action": np.zeros((5, 2), np.int32),
        "reward": np.zeros((5, 2)),
        "next_observation": np.zeros((5, 2, 3)),
        "terminated": np.zeros((5, 2), bool),
        "truncated": np.zeros((5, 2), bool),
    }
    return Transition(**fields | leaves)


def test_a_batch_of_the_spec_passes() -> None:
    check_batch(SPEC, batch())
    check_batch(Spec(Box((3,)), Box((6,))), batch(action=np.zeros((5, 2, 6))))
    check_batch(SPEC, jax.tree.map(lambda leaf: leaf[0], batch()), axes=1)
    jax.eval_shape(lambda batch: check_batch(SPEC, batch), batch())  # inside a trace too


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("observation", (5, 3), (5, 2, 3)),
        ("observation", (2, 5, 3), (5, 2, 3)),
        ("next_observation", (5, 2, 4), (5, 2, 3)),
        ("action", (5, 2, 4), (5, 2)),  # one-hot
        ("terminated", (5,), (5, 2)),
        ("truncated", (5, 2, 1), (5, 2)),
    ],
)
def test_the_leaf_that_does_not_fit_is_named(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    message = says(f"batch.{name} has shape {shape}, expected {expected}", "the axes of batch.reward (5, 2)", "spec")
    with pytest.raises(ValueError, match=message):
        check_batch(SPEC, batch(**{name: np.zeros(shape)}))


@pytest.mark.parametrize("shape", [(), (5,), (5, 2, 1)])
def test_a_batch_without_two_leading_axes_is_refused(shape: tuple[int, ...]) -> None:
    message = says(f"batch.reward has shape {shape}, expected 2 axes, time first", "[T, N]", "[n_step, B]")
    with pytest.raises(ValueError, match=message):
        check_batch(SPEC, batch(reward=np.zeros(shape)))


def test_transitions_are_pytrees_that_may_carry_anything() -> None:
    doubled = jax.jit(lambda batch: jax.tree.map(lambda leaf: leaf + leaf, batch))(
        batch(extras={"log_prob": jnp.ones(3)})
    )
    assert isinstance(doubled, Transition) and np.all(doubled.extras["log_prob"] == 2)
    assert batch().extras == {} and batch().extras is not batch().extras
