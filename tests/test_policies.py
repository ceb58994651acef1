"""Action distributions against scipy, quadrature and the change of variables."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrl import policies
from jaxrl.types import Box, Discrete

# neither symmetric nor of one size
BOX = Box((2,), (-1.0, -0.5), (3.0, 0.5))
CENTRE, SCALE = np.array([1.0, 0.0]), np.array([2.0, 0.5])
MEAN = np.array([[0.3, -0.7], [-1.2, 0.4], [0.0, 1.6]])
LOG_STD = np.array([-0.5, 0.2])
STD = np.exp(LOG_STD)
LOGITS = np.array([[0.5, -1.0, 2.0, 0.0], [3.0, 3.0, -2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])

# compiled once, as agents use them
tanh_log_prob = jax.jit(lambda mean, log_std, a: policies.tanh_normal(mean, log_std, BOX).log_prob(a))
tanh_log_prob_gradients = jax.jit(
    jax.grad(lambda mean, log_std, a: policies.tanh_normal(mean, log_std, BOX).log_prob(a).sum(), (0, 1, 2))
)
tanh_sample = jax.jit(lambda mean, log_std, key: policies.tanh_normal(mean, log_std, BOX).sample_and_log_prob(seed=key))
standard_normal = jax.jit(lambda key: policies.normal(jnp.zeros((5, 2)), jnp.zeros(2), Box((2,))).sample(seed=key))


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def tanh_sample_gradients(mean: jax.Array, log_std: jax.Array, key: jax.Array) -> Any:
    action, log_prob = policies.tanh_normal(mean, log_std, BOX).sample_and_log_prob(seed=key)
    return jnp.sum(log_prob), (action, log_prob)


def f32(*arrays: np.ndarray) -> Any:
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def tanh_log_density(action: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Density of the normal at the inverse, divided by the slope of the map, as textbooks have it."""
    y = (action - CENTRE) / SCALE
    return np.sum(scipy.stats.norm.logpdf(np.arctanh(y), mean, std) - np.log(SCALE * (1 - y**2)), -1)


def log_sech2(u: np.ndarray) -> np.ndarray:
    """log (1 - tanh^2 u), which does not cancel for large u."""
    return 2 * (np.log(2) - np.logaddexp(u, -u))


# ------------------------------------------------------------------------------------------- categorical


def test_categorical_is_scipys() -> None:
    law = policies.categorical(jnp.float32(LOGITS))
    probs = scipy.special.softmax(LOGITS, -1)
    log_prob = jax.jit(law.log_prob)
    for action in range(4):
        np.testing.assert_allclose(log_prob(jnp.full(3, action)), np.log(probs[:, action]), rtol=1e-5)
    np.testing.assert_allclose(law.entropy(), scipy.stats.entropy(probs, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(law.mode(), [2, 0, 0])


def test_categorical_samples_have_their_probabilities() -> None:
    law = policies.categorical(np.broadcast_to(LOGITS.astype(np.float32), (5000, 3, 4)))
    actions, log_probs = jax.jit(lambda key: law.sample_and_log_prob(seed=key))(jax.random.key(0))
    probs = scipy.special.softmax(LOGITS, -1)
    for row in range(3):
        counts = np.bincount(np.asarray(actions[:, row]), minlength=4)
        assert scipy.stats.chisquare(counts, probs[row] * 5000).pvalue > 0.01
    np.testing.assert_allclose(log_probs, np.log(probs)[np.arange(3), np.asarray(actions)], rtol=1e-5)


def test_an_impossible_action_is_never_taken_and_harms_no_gradient() -> None:
    logits = jnp.array([0.0, -jnp.inf, 1.0])
    law = policies.categorical(jnp.broadcast_to(logits, (1000, 3)))
    assert set(np.asarray(jax.jit(lambda key: law.sample(seed=key))(jax.random.key(1)))) == {0, 2}

    def entropy_and_log_prob(logits: jax.Array) -> jax.Array:
        law = policies.categorical(logits)
        return jnp.stack([law.entropy(), law.log_prob(jnp.int32(2))])

    probs = scipy.special.softmax([0.0, 1.0])
    expected = [scipy.stats.entropy(probs), np.log(probs[1])]
    np.testing.assert_allclose(jax.jit(entropy_and_log_prob)(logits), expected, rtol=1e-5)
    assert np.all(np.isfinite(jax.jit(jax.jacrev(entropy_and_log_prob))(logits)))


# ------------------------------------------------------------------------------------------------ normal


def test_normal_is_scipys_in_units_of_the_box() -> None:
    box = Box((4,), (-1.0, -math.inf, 0.0, -math.inf), (3.0, math.inf, math.inf, 7.0))
    centre, scale = np.array([1.0, 0.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0, 1.0])  # half a bound is no unit
    mean, log_std = np.array([[0.3, -0.7, 0.1, 0.0], [5.0, 0.2, -0.1, 1.0]]), np.array([-0.5, 0.2, 0.0, -2.0])
    action = np.array([[0.5, 0.1, -3.0, 0.0], [9.0, 0.0, 0.0, 1.1]])
    law, truth = (
        policies.normal(*f32(mean, log_std), box),
        scipy.stats.norm(centre + scale * mean, scale * np.exp(log_std)),
    )
    np.testing.assert_allclose(law.log_prob(jnp.float32(action)), truth.logpdf(action).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(law.entropy(), truth.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_allclose(law.mode(), truth.mean(), rtol=1e-6)


def test_normal_samples_have_their_law() -> None:
    law = policies.normal(jnp.broadcast_to(jnp.float32(MEAN[0]), (20_000, 2)), jnp.float32(LOG_STD), BOX)
    actions, log_probs = law.sample_and_log_prob(seed=jax.random.key(2))
    truth = scipy.stats.norm(CENTRE + SCALE * MEAN[0], SCALE * STD)
    for axis in range(2):
        cdf = scipy.stats.norm(truth.mean()[axis], truth.std()[axis]).cdf
        assert scipy.stats.kstest(np.asarray(actions[:, axis]), cdf).pvalue > 0.01
    assert abs(scipy.stats.pearsonr(*np.asarray(actions).T).statistic) < 0.02  # three standard errors: independent axes
    np.testing.assert_allclose(log_probs, truth.logpdf(actions).sum(-1), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- tanh_normal


@pytest.mark.parametrize(("x64", "rtol"), [(False, 1e-4), (True, 1e-10)])
def test_tanh_normal_is_the_change_of_variables(x64: bool, rtol: float) -> None:
    with jax.enable_x64(x64):
        mean, log_std = jnp.asarray(MEAN), jnp.asarray(LOG_STD)  # singles without x64
        actions = CENTRE + SCALE * np.random.default_rng(0).uniform(-0.99, 0.99, (50, 3, 2))
        log_probs = tanh_log_prob(mean, log_std, jnp.asarray(actions))
        np.testing.assert_allclose(log_probs, tanh_log_density(actions, MEAN, STD), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("log_std", [-1.5, 0.0, 0.5])
def test_tanh_normal_has_mass_one_and_samples_have_its_moments(mean: float, log_std: float) -> None:
    with jax.enable_x64(True):
        t = np.linspace(-3.2, 3.2, 641)  # tanh-sinh quadrature, whose nodes crowd at the borders
        y = np.tanh(np.pi / 2 * np.sinh(t))
        weights = 2.0 * (t[1] - t[0]) * np.pi / 2 * np.cosh(t) / np.cosh(np.pi / 2 * np.sinh(t)) ** 2
        law = policies.tanh_normal(jnp.array([mean]), jnp.array([log_std]), Box((1,), -1.0, 3.0, "float64"))
        mass = weights * np.exp(law.log_prob(jnp.asarray(1.0 + 2.0 * y)[:, None]))
        np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-6)

        keys = jax.random.split(jax.random.key(3), 10_000)
        samples = np.asarray(jax.vmap(lambda key: law.sample(seed=key))(keys))[:, 0]
    first, second = (mass @ (1.0 + 2.0 * y) ** power for power in (1, 2))
    error = np.sqrt((second - first**2) / len(samples))
    assert abs(samples.mean() - first) < 3 * error
    np.testing.assert_allclose(samples.var(), second - first**2, rtol=0.1)


def test_tanh_normal_samples_have_their_law() -> None:
    law = policies.tanh_normal(jnp.broadcast_to(jnp.float32(MEAN[0]), (20_000, 2)), jnp.float32(LOG_STD), BOX)
    actions = np.asarray(law.sample(seed=jax.random.key(4)))
    for axis in range(2):

        def cdf(a: np.ndarray, i: int = axis) -> np.ndarray:
            y = np.clip((a - CENTRE[i]) / SCALE[i], -1, 1)
            with np.errstate(divide="ignore"):  # the border is at infinity
                return scipy.stats.norm.cdf(np.arctanh(y), MEAN[0, i], STD[i])

        assert scipy.stats.kstest(actions[:, axis], cdf).pvalue > 0.01
    assert abs(scipy.stats.spearmanr(*actions.T).statistic) < 0.02


def test_both_ways_to_the_density_agree_away_from_the_border() -> None:
    mean, log_std = f32(np.random.default_rng(1).uniform(-1, 1, (1000, 2)), LOG_STD - 0.5)
    action, log_prob = tanh_sample(mean, log_std, jax.random.key(5))
    np.testing.assert_allclose(tanh_log_prob(mean, log_std, action), log_prob, rtol=1e-3, atol=1e-3)
    same = jax.jit(lambda key: policies.tanh_normal(mean, log_std, BOX).sample(seed=key))(jax.random.key(5))
    np.testing.assert_array_equal(same, action)


EXTREMES = [(mean, log_std) for mean in (-20.0, -9.0, 0.0, 9.0, 20.0) for log_std in (-10.0, -5.0, 0.0, 2.0)]


@pytest.mark.parametrize(("mean", "log_std"), EXTREMES)
def test_the_density_of_a_sample_is_exact_at_the_border(mean: float, log_std: float) -> None:
    parameters = f32(np.full((5, 2), mean), np.full((5, 2), log_std))
    noise = np.asarray(standard_normal(jax.random.key(6)), np.float64)
    (_, (action, log_prob)), gradients = tanh_sample_gradients(*parameters, jax.random.key(6))
    u = mean + np.exp(log_std) * noise
    expected = scipy.stats.norm.logpdf(noise) - log_std - log_sech2(u) - np.log(SCALE)
    np.testing.assert_allclose(log_prob, expected.sum(-1), rtol=1e-5, atol=1e-5)
    assert np.all((action >= BOX.bounds()[0]) & (action <= BOX.bounds()[1]))
    # of log p(mean + std noise) the noise does not move, so what is left is the slope's, 2 tanh(u) du, and -log std
    np.testing.assert_allclose(gradients[0], 2 * np.tanh(u), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1], 2 * np.tanh(u) * np.exp(log_std) * noise - 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mean", "log_std"), EXTREMES)
def test_the_density_of_any_action_is_finite_and_so_are_its_gradients(mean: float, log_std: float) -> None:
    low, high = BOX.bounds()
    actions = jnp.stack([jnp.asarray(low), jnp.asarray(high), jnp.array([low[0], high[1]]), jnp.asarray(high + 1)])
    parameters = f32(np.full((4, 2), mean), np.full((4, 2), log_std))
    log_prob = tanh_log_prob(*parameters, actions)
    gradients = tanh_log_prob_gradients(*parameters, actions)
    assert all(np.all(np.isfinite(x)) for x in (log_prob, *gradients))


def test_the_border_counts_as_the_last_value_before_it() -> None:
    last = CENTRE + SCALE * (1 - 2.0**-24)
    got = tanh_log_prob(*f32(MEAN, LOG_STD), jnp.asarray(BOX.bounds()[1]))
    np.testing.assert_allclose(got, tanh_log_density(last, MEAN, STD), rtol=1e-5)


def test_the_mode_of_tanh_normal_is_the_squashed_mean() -> None:
    law = policies.tanh_normal(*f32(MEAN, LOG_STD), BOX)
    np.testing.assert_allclose(law.mode(), CENTRE + SCALE * np.tanh(MEAN), rtol=1e-6)


def test_tanh_normal_says_that_it_has_no_entropy() -> None:
    with pytest.raises(NotImplementedError, match=r"no closed form; average -log_prob over samples"):
        policies.tanh_normal(*f32(MEAN, LOG_STD), BOX).entropy()


# --------------------------------------------------------------------------------------- all of them

LAWS: dict[str, tuple[Callable[..., policies.Distribution], tuple[Any, ...]]] = {
    "categorical": (policies.categorical, (LOGITS,)),
    "normal": (lambda mean, log_std: policies.normal(mean, log_std, BOX), (MEAN, LOG_STD + 0 * MEAN)),
    "tanh_normal": (lambda mean, log_std: policies.tanh_normal(mean, log_std, BOX), (MEAN, LOG_STD + 0 * MEAN)),
}


@pytest.mark.parametrize("name", LAWS)
def test_batch_axes_lead_and_vmap_changes_nothing(name: str) -> None:
    law, parameters = LAWS[name]
    parameters = f32(*(np.broadcast_to(p, (2, *p.shape)) * np.array([1.0, 0.5]).reshape(2, 1, 1) for p in parameters))
    action, log_prob = jax.jit(lambda *p: law(*p).sample_and_log_prob(seed=jax.random.key(7)))(*parameters)
    assert action.shape[:2] == log_prob.shape == (2, 3) and len(np.unique(action)) > 1

    def all_of(action: jax.Array, *parameters: jax.Array) -> list[jax.Array]:
        there = law(*parameters)
        return [there.log_prob(action), there.mode()] + ([] if name == "tanh_normal" else [there.entropy()])

    batched = jax.jit(all_of)(action, *parameters)
    assert [x.shape[:2] for x in batched] == [(2, 3)] * len(batched)
    np.testing.assert_allclose(batched[0], log_prob, rtol=1e-4, atol=1e-5)
    for got, want in zip(jax.jit(jax.vmap(jax.vmap(all_of)))(action, *parameters), batched, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_a_wider_batch_draws_each_row_on_its_own(name: str) -> None:
    law, parameters = LAWS[name]
    same = f32(*(np.broadcast_to(p[:1], (200, p.shape[-1])) for p in parameters))
    action = np.asarray(law(*same).sample(seed=jax.random.key(8)), np.float64).reshape(200, -1)
    assert np.all(action.std(0) > 0.1)
    assert not np.array_equal(action, np.asarray(law(*same).sample(seed=jax.random.key(9))).reshape(200, -1))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes_are_kept(name: str, dtype: str) -> None:
    law, parameters = LAWS[name]

    def values_and_actions(*parameters: jax.Array) -> Any:
        there = law(*parameters)
        action, log_prob = there.sample_and_log_prob(seed=jax.random.key(10))
        values = [log_prob, there.log_prob(action)] + ([] if name == "tanh_normal" else [there.entropy()])
        return values, [action, there.mode(), there.sample(seed=jax.random.key(11))]

    with jax.enable_x64(True):
        values, actions = jax.eval_shape(values_and_actions, *(p.astype(dtype) for p in parameters))
    assert {x.dtype.name for x in values} == {dtype}
    assert {x.dtype.name for x in actions} == {"int32" if name == "categorical" else dtype}


def test_all_have_the_methods_of_the_protocol() -> None:
    methods = [
        name for name, value in vars(policies.Distribution).items() if inspect.isfunction(value) and name[0] != "_"
    ]
    assert set(methods) == {"sample", "sample_and_log_prob", "log_prob", "mode", "entropy"}
    for law, parameters in LAWS.values():
        assert all(callable(getattr(law(*f32(*parameters)), method)) for method in methods)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("box", [Box((2,)), Box((2,), 0.0), Box((2,), (-1.0, -math.inf), (1.0, 1.0))])
def test_tanh_normal_needs_bounds(box: Box) -> None:
    with pytest.raises(ValueError, match=r"tanh_normal needs finite bounds, got low = .*inf.*; use normal"):
        policies.tanh_normal(jnp.zeros(2), jnp.zeros(2), box)


@pytest.mark.parametrize("law", [policies.normal, policies.tanh_normal])
def test_a_mean_of_another_size_is_refused(law: Callable[..., policies.Distribution]) -> None:
    for shape in [(1,), (5, 3), ()]:  # one element would broadcast to a density that is wrong
        with pytest.raises(ValueError, match=r"mean has shape \(.*\), expected \(\.\.\., 2\), as many as Box"):
            law(jnp.zeros(shape), jnp.zeros(()), BOX)


@pytest.mark.parametrize("action", [Box((2, 3), -1.0, 1.0), Box((), -1.0, 1.0), Discrete(3)])
def test_actions_that_are_no_vectors_are_refused(action: Box | Discrete) -> None:
    with pytest.raises(ValueError, match=r"expected an action space Box\(\(A,\)\), got (Box|Discrete)\(.*wrapper"):
        policies.vector_size(action)


# -------------------------------------------------------------------------------------------------- Head


FEATURES = np.random.default_rng(2).normal(size=(5, 4, 8)).astype(np.float32)


def start(action: Box | Discrete) -> tuple[Any, Any]:
    """The first law that a head gives, and its parameters."""
    head = policies.Head(action)
    params = jax.jit(lambda key: head.init(key, FEATURES))(jax.random.key(12))
    return head.apply(params, FEATURES), params


def test_head_of_a_discrete_space_starts_almost_uniform() -> None:
    law, params = start(Discrete(3))
    probs = scipy.special.softmax(np.asarray(law.logits), -1)
    assert probs.shape == (5, 4, 3)
    np.testing.assert_allclose(probs, np.full((5, 4, 3), 1 / 3), rtol=0.1)
    assert np.any(probs != probs[0, 0])  # almost: it does see the features
    assert jax.tree.map(jnp.shape, params) == {"params": {"Dense_0": {"kernel": (8, 3), "bias": (3,)}}}


def test_head_of_a_box_starts_in_the_middle_with_unit_deviation() -> None:
    law, params = start(BOX)
    assert law.mode().shape == (5, 4, 2)
    np.testing.assert_allclose((law.mode() - CENTRE) / SCALE, np.zeros((5, 4, 2)), atol=0.1)
    assert np.any(law.mode() != law.mode()[0, 0])
    np.testing.assert_allclose(law.entropy(), np.full((5, 4), scipy.stats.norm.entropy(0, SCALE).sum()), rtol=1e-6)
    shapes = {"Dense_0": {"kernel": (8, 2), "bias": (2,)}, "log_std": (2,)}
    assert jax.tree.map(jnp.shape, params) == {"params": shapes}
    params["params"]["log_std"] += np.array([1.0, -0.5])
    wider: Any = policies.Head(BOX).apply(params, FEATURES)
    np.testing.assert_allclose(wider.entropy(), law.entropy() + 0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_head_keeps_the_dtype_of_its_features(dtype: str) -> None:
    def values_and_params(features: jax.Array) -> Any:
        law: Any
        law, params = policies.Head(BOX).init_with_output(jax.random.key(13), features)
        return [law.mode(), law.entropy(), law.sample(seed=jax.random.key(14))], params

    with jax.enable_x64(True):
        values, params = jax.eval_shape(values_and_params, FEATURES.astype(dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert {leaf.dtype.name for leaf in values} == {dtype}


def test_head_refuses_a_matrix_of_actions() -> None:
    with pytest.raises(ValueError, match=r"expected an action space Box\(\(A,\)\), got Box\(shape=\(2, 2\)"):
        policies.Head(Box((2, 2))).init(jax.random.key(18), jnp.ones((1, 4)))


def test_actions_of_the_unit_box_and_those_of_another_are_the_same_numbers_in_other_units():
    box = Box((2,), (1.0, -10.0), (2.0, 30.0))
    assert policies.unit_box(box) == Box((2,), -1.0, 1.0)
    corners = jnp.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]])
    expected = [[1.0, -10.0], [2.0, 30.0], [1.5, 20.0]]
    np.testing.assert_allclose(policies.from_unit(corners, box), expected)
    np.testing.assert_allclose(policies.to_unit(jnp.array(expected), box), corners)
    with pytest.raises(ValueError, match="finite bounds, got low = -inf"):
        policies.unit_box(Box((2,)))
    with pytest.raises(ValueError, match=r"expected an action space Box\(\(A,\)\), got Discrete"):
        policies.unit_box(Discrete(3))
    with pytest.raises(ValueError, match=r"action has shape \(3,\)"):
        policies.from_unit(jnp.zeros(3), box)
