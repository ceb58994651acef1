"""`jaxrl.returns` against sums written out from the definitions, expectations over every trajectory, and rlax."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import returns

T, N = 11, 3
ENDS = ("terminated", "truncated")


def examples(test: Callable[..., None]) -> Any:
    """Run a test on a few seeds of `data`, discounts and lambdas."""
    arguments = {"seed": st.integers(0, 2**31), "discount": st.floats(0, 1), "lambda_": st.floats(0, 1)}
    return settings(max_examples=12, deadline=None)(given(**arguments)(test))


gae = jax.jit(returns.gae)
lambda_returns = jax.jit(returns.lambda_returns)
n_step_returns = jax.jit(returns.n_step_returns, static_argnames="n")
vtrace = jax.jit(returns.vtrace)
retrace = jax.jit(returns.retrace)


def data(seed: int, consistent: bool = True) -> dict[str, Any]:
    """Random streams [T, N] with a few ends; consistent: next_values[t] = values[t+1] inside an episode."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, T, N))
    terminated, truncated = rng.random((2, T, N)) < 0.15
    if consistent:
        inside = ~(terminated | truncated)[:-1]
        next_values[:-1] = np.where(inside, values[1:], next_values[:-1])
    arrays = {"rewards": rewards, "values": values, "next_values": next_values}
    arrays |= {"terminated": terminated, "truncated": truncated, "log_ratios": rng.normal(size=(T, N))}
    return {name: array if array.dtype == bool else array.astype(np.float32) for name, array in arrays.items()}


def pick(batch: dict[str, Any], *names: str) -> list[Any]:
    return [batch[name] for name in names]


def span(batch: dict[str, Any], t: int, i: int) -> int:
    """How many steps of stream i there are from t to the end of its episode or of the data."""
    over = (batch["terminated"] | batch["truncated"])[t:, i]
    return int(np.argmax(over)) + 1 if over.any() else T - t


def bootstrap(batch: dict[str, Any], t: int, i: int) -> float:
    return 0.0 if batch["terminated"][t, i] else float(batch["next_values"][t, i])


def every_step(target: Any) -> np.ndarray:
    return np.array([[target(t, i) for i in range(N)] for t in range(T)])


def by_hand_n_step(batch: dict[str, Any], t: int, i: int, n: int, discount: float) -> float:
    m = min(n, span(batch, t, i))
    rewards = sum(discount**k * float(batch["rewards"][t + k, i]) for k in range(m))
    return rewards + discount**m * bootstrap(batch, t + m - 1, i)


def by_hand_errors(batch: dict[str, Any], t: int, i: int, discount: float, rho: np.ndarray, c: np.ndarray) -> float:
    """`sum_k discount^k (prod_{j<k} c[t+j]) rho[t+k] delta[t+k]` to the end of the episode."""
    total = 0.0
    for k in range(span(batch, t, i)):
        s = t + k
        delta = float(batch["rewards"][s, i]) + discount * bootstrap(batch, s, i) - float(batch["values"][s, i])
        total += discount**k * np.prod(c[t:s, i]) * rho[s, i] * delta
    return total


# --------------------------------------------------------------------------- against the definitions


@examples
def test_gae_is_the_weighted_sum_of_td_errors(seed: int, discount: float, lambda_: float) -> None:
    batch = data(seed, consistent=False)
    got = gae(*pick(batch, "rewards", "values", "next_values", *ENDS), discount, lambda_)
    one, decay = np.ones((T, N)), np.full((T, N), lambda_)
    expected = every_step(lambda t, i: by_hand_errors(batch, t, i, discount, one, decay))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@examples
def test_lambda_return_is_the_average_of_n_step_returns(seed: int, discount: float, lambda_: float) -> None:
    batch = data(seed)

    def average(t: int, i: int) -> float:
        m = span(batch, t, i)
        weights = [(1 - lambda_) * lambda_ ** (n - 1) for n in range(1, m)] + [lambda_ ** (m - 1)]
        return sum(w * by_hand_n_step(batch, t, i, n, discount) for n, w in enumerate(weights, 1))

    got = lambda_returns(*pick(batch, "rewards", "next_values", *ENDS), discount, lambda_)
    np.testing.assert_allclose(got, every_step(average), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, T, T + 5])
@examples
def test_n_step_return_is_the_sum_of_n_rewards(n: int, seed: int, discount: float, lambda_: float) -> None:
    batch = data(seed, consistent=False)
    got = n_step_returns(*pick(batch, "rewards", "next_values", *ENDS), discount, n)
    expected = every_step(lambda t, i: by_hand_n_step(batch, t, i, n, discount))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clips", [(1.0, 1.0, 1.0), (2.0, 0.7, 1.5), (np.inf, np.inf, np.inf)])
@examples
def test_vtrace_is_the_clipped_sum(clips: tuple[float, ...], seed: int, discount: float, lambda_: float) -> None:
    batch = data(seed)
    got = vtrace(*pick(batch, "rewards", "values", "next_values", *ENDS, "log_ratios"), discount, lambda_, *clips)
    ratio = np.exp(batch["log_ratios"].astype(np.float64))
    rho, c, pg_rho = (np.minimum(ratio, clip) for clip in clips)
    v = every_step(lambda t, i: float(batch["values"][t, i]) + by_hand_errors(batch, t, i, discount, rho, lambda_ * c))

    def advantage(t: int, i: int) -> float:
        following = bootstrap(batch, t, i) if span(batch, t, i) == 1 else v[t + 1, i]
        return pg_rho[t, i] * float(batch["rewards"][t, i] + discount * following - batch["values"][t, i])

    np.testing.assert_allclose(got.values, v, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.advantages, every_step(advantage), rtol=1e-4, atol=1e-4)


@examples
def test_retrace_starts_its_product_one_step_later(seed: int, discount: float, lambda_: float) -> None:
    batch = data(seed, consistent=False)
    got = retrace(*pick(batch, "rewards", "values", "next_values", *ENDS, "log_ratios"), discount, lambda_)
    c = lambda_ * np.minimum(1, np.exp(batch["log_ratios"].astype(np.float64)))
    later = np.concatenate([c[1:], np.zeros((1, N))])
    expected = every_step(
        lambda t, i: float(batch["values"][t, i]) + by_hand_errors(batch, t, i, discount, np.ones((T, N)), later)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------- expectations over every trajectory of a tree


def tree() -> dict[str, np.ndarray]:
    """Every action sequence of a decision tree (2 actions, 3 steps) as streams [3, 8], with its probabilities."""
    rng = np.random.default_rng(0)
    depth, discount = 3, 0.9
    pi, mu, reward = {}, {}, {}
    for history in itertools.chain.from_iterable(itertools.product((0, 1), repeat=d) for d in range(depth)):
        pi[history], mu[history] = rng.dirichlet((2, 2), size=2)
        reward[history] = rng.normal(size=2)

    def value(history: tuple[int, ...]) -> float:
        return 0.0 if len(history) == depth else float(sum(pi[history][a] * q(history, a) for a in (0, 1)))

    def q(history: tuple[int, ...], action: int) -> float:
        return float(reward[history][action]) + discount * value((*history, action))

    leaves = list(itertools.product((0, 1), repeat=depth))
    steps = [[(leaf[:t], leaf[t]) for leaf in leaves] for t in range(depth)]

    def table(f: Any) -> np.ndarray:
        return np.array([[f(history, action) for history, action in row] for row in steps])

    return {
        "rewards": table(lambda h, a: reward[h][a]),
        "values": table(lambda h, a: value(h)),
        "q_values": table(q),
        "next_values": table(lambda h, a: value((*h, a))),
        "terminated": table(lambda h, a: len(h) == depth - 1),
        "truncated": np.zeros((depth, len(leaves)), bool),
        "log_ratios": table(lambda h, a: np.log(pi[h][a] / mu[h][a])),
        "pi": np.prod(table(lambda h, a: pi[h][a]), axis=0),
        "mu": np.prod(table(lambda h, a: mu[h][a]), axis=0),
        "wrong": table(lambda h, a: np.sin(7 * (int("1" + "".join(map(str, h)), 2)))),  # any other value of h
        "next_wrong": table(lambda h, a: np.sin(7 * (int("1" + "".join(map(str, (*h, a))), 2)))),
    }


def test_expectations_over_a_tree_are_the_true_values() -> None:
    x, discount = tree(), 0.9
    root = x["values"][0, 0]
    assert np.isclose(x["pi"].sum(), 1) and np.isclose(x["mu"].sum(), 1)
    # On-policy with lambda = 1, any value function gives the true value of the root.
    advantages = returns.gae(*pick(x, "rewards", "wrong", "next_wrong", *ENDS), discount, 1.0)
    np.testing.assert_allclose(x["pi"] @ (advantages[0] + x["wrong"][0]), root, rtol=1e-5)
    # Off-policy, V-trace without clipping is importance sampling: again any value function does.
    unclipped = returns.vtrace(
        *pick(x, "rewards", "wrong", "next_wrong", *ENDS, "log_ratios"), discount, 1.0, np.inf, np.inf, np.inf
    )
    np.testing.assert_allclose(x["mu"] @ unclipped.values[0], root, rtol=1e-5)
    # The true action values are the fixed point of Retrace, whatever lambda and the behaviour policy are.
    targets = returns.retrace(*pick(x, "rewards", "q_values", "next_values", *ENDS, "log_ratios"), discount, 0.7)
    for action in (0, 1):
        taken = np.arange(8) // 4 == action
        expected = x["q_values"][0, taken][0]
        np.testing.assert_allclose(x["mu"][taken] @ targets[0, taken] / x["mu"][taken].sum(), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------ against rlax


def test_agrees_with_rlax_without_truncation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what rlax imports uses deprecated names of JAX
        import rlax

    batch = data(0) | {"truncated": np.zeros((T, N), bool)}
    inside = ~batch["terminated"][:-1]
    batch["next_values"][:-1] = np.where(inside, batch["values"][1:], batch["next_values"][:-1])
    r, v, w, log_ratio = pick(batch, "rewards", "values", "next_values", "log_ratios")
    d, rho, all_v = np.float32(0.9) * ~batch["terminated"], np.exp(log_ratio), np.concatenate([v, w[-1:]])

    def check(ours: jax.Array, oracle: Callable[..., Any], *arrays: np.ndarray) -> None:
        np.testing.assert_allclose(ours, jax.vmap(oracle, 1, 1)(*arrays), rtol=1e-5, atol=1e-5)

    ours = gae(r, v, w, *pick(batch, *ENDS), 0.9, 0.8)
    check(ours, lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, 0.8, v), r, d, all_v)
    ours = lambda_returns(r, w, *pick(batch, *ENDS), 0.9, 0.8)
    check(ours, lambda r, d, w: rlax.lambda_returns(r, d, w, 0.8), r, d, w)
    ours = n_step_returns(r, w, *pick(batch, *ENDS), 0.9, 3)
    check(ours, lambda r, d, w: rlax.n_step_bootstrapped_returns(r, d, w, 3), r, d, all_v[1:])
    ours = vtrace(r, v, w, *pick(batch, *ENDS), log_ratio, 0.9, 1.0, 1.3, 1.0, 0.8)
    oracle = lambda *x: rlax.vtrace_td_error_and_advantage(*x, 1.0, 1.3, 0.8)  # noqa: E731
    check(ours.values - v, lambda *x: oracle(*x).errors, v, w, r, d, rho)
    check(ours.advantages, lambda *x: oracle(*x).pg_advantage, v, w, r, d, rho)
    ours = retrace(r, v, w, *pick(batch, *ENDS), log_ratio, 0.9, 0.8)
    check(ours, rlax.general_off_policy_returns_from_q_and_v, v[1:], w, r, d, 0.8 * np.minimum(1, rho[1:]))


# -------------------------------------------------------------------------------------- properties


def all_targets(batch: dict[str, Any], discount: Any, lambda_: Any, n: int = 4) -> dict[str, jax.Array]:
    """Everything this module computes, by name."""
    reward, value, next_value, terminated, truncated, log_ratio = pick(
        batch, "rewards", "values", "next_values", *ENDS, "log_ratios"
    )
    v = returns.vtrace(reward, value, next_value, terminated, truncated, log_ratio, discount, lambda_)
    return {
        "gae": returns.gae(reward, value, next_value, terminated, truncated, discount, lambda_),
        "lambda": returns.lambda_returns(reward, next_value, terminated, truncated, discount, lambda_),
        "n_step": returns.n_step_returns(reward, next_value, terminated, truncated, discount, n),
        "vtrace_values": v.values,
        "vtrace_advantages": v.advantages,
        "retrace": returns.retrace(reward, value, next_value, terminated, truncated, log_ratio, discount, lambda_),
    }


jitted_targets = jax.jit(all_targets, static_argnames="n")


@examples
def test_truncated_pieces_give_together_what_they_give_apart(seed: int, discount: float, lambda_: float) -> None:
    first, second = data(seed), data(seed + 1)
    joined = {name: np.concatenate([first[name], second[name]]) for name in first}
    joined["truncated"][T - 1] = True
    together = jitted_targets(joined, discount, lambda_)
    apart = (jitted_targets(piece, discount, lambda_) for piece in (first, second))
    for name, pair in jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *apart).items():
        np.testing.assert_allclose(together[name], pair, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("poisoned", ["rewards", "values", "next_values", "log_ratios"])
@pytest.mark.parametrize("flag", ENDS)
def test_no_number_crosses_the_end_of_an_episode(poisoned: str, flag: str) -> None:
    batch = data(3) | {"terminated": np.zeros((T, N), bool), "truncated": np.zeros((T, N), bool)}
    batch[flag][4] = True
    clean = jitted_targets(batch, 0.9, 0.8)
    batch[poisoned][5:] = np.nan
    for name, got in jitted_targets(batch, 0.9, 0.8).items():
        np.testing.assert_array_equal(got[:5], clean[name][:5], err_msg=name)


def test_a_terminated_step_ignores_its_next_value_and_its_truncation() -> None:
    batch = data(4)
    odd = batch | {
        "next_values": np.where(batch["terminated"], np.float32(np.nan), batch["next_values"]),
        "truncated": batch["truncated"] | batch["terminated"],
    }
    assert batch["terminated"].any()
    for name, got in jitted_targets(odd, 0.9, 0.8).items():
        np.testing.assert_array_equal(got, jitted_targets(batch, 0.9, 0.8)[name], err_msg=name)


@examples
def test_special_cases(seed: int, discount: float, lambda_: float) -> None:
    batch = data(seed)
    reward, value, next_value, terminated, truncated, zero = pick(
        batch | {"zero": np.zeros((T, N), np.float32)}, "rewards", "values", "next_values", *ENDS, "zero"
    )
    ends, close = (terminated, truncated), dict(rtol=1e-5, atol=1e-5)
    td = reward + discount * np.where(terminated, 0, next_value)
    # lambda = 0 is TD(0), whatever the steps that follow
    np.testing.assert_allclose(gae(reward, value, next_value, *ends, discount, 0.0), td - value, **close)
    np.testing.assert_allclose(lambda_returns(reward, next_value, *ends, discount, 0.0), td, **close)
    np.testing.assert_allclose(n_step_returns(reward, next_value, *ends, discount, 1), td, **close)
    # lambda = 1 telescopes to the Monte-Carlo return, less the value; so does n >= T
    monte_carlo = every_step(lambda t, i: by_hand_n_step(batch, t, i, T, discount))
    np.testing.assert_allclose(gae(reward, value, next_value, *ends, discount, 1.0), monte_carlo - value, **close)
    np.testing.assert_allclose(lambda_returns(reward, next_value, *ends, discount, 1.0), monte_carlo, **close)
    np.testing.assert_allclose(n_step_returns(reward, next_value, *ends, discount, T), monte_carlo, **close)
    # on-policy, every one of them is the lambda-return
    g = lambda_returns(reward, next_value, *ends, discount, lambda_)
    on_policy = vtrace(reward, value, next_value, *ends, zero, discount, lambda_)
    np.testing.assert_allclose(gae(reward, value, next_value, *ends, discount, lambda_) + value, g, **close)
    np.testing.assert_allclose(on_policy.values, g, **close)
    np.testing.assert_allclose(retrace(reward, value, next_value, *ends, zero, discount, lambda_), g, **close)


def test_gradients_are_finite_also_where_ratios_overflow() -> None:
    batch = data(5)
    batch["log_ratios"][:3] = np.array([[200.0], [-200.0], [0.0]])
    floats = {name: batch[name] for name in ("rewards", "values", "next_values", "log_ratios")}

    def total(floats: dict[str, Any], discount: float, lambda_: float) -> jax.Array:
        return sum(jnp.sum(x**2) for x in all_targets(batch | floats, discount, lambda_).values())

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))
    for discount, lambda_ in itertools.product((0.0, 0.9, 1.0), (0.0, 0.8, 1.0)):
        assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients(floats, discount, lambda_)))


def test_gradient_is_the_difference_quotient() -> None:
    with jax.enable_x64(True):
        batch = {name: x if x.dtype == bool else x.astype(np.float64) for name, x in data(6).items()}

        def total(rewards: jax.Array, discount: float, lambda_: float) -> jax.Array:
            return sum(jnp.sum(x**2) for x in all_targets(batch | {"rewards": rewards}, discount, lambda_).values())

        gradients = jax.jit(jax.grad(total, (0, 1, 2)))(batch["rewards"], 0.9, 0.8)
        value, h = jax.jit(total), 1e-6
        shift = np.zeros((T, N))
        shift[2, 1] = h
        quotients = (
            (value(batch["rewards"] + shift, 0.9, 0.8) - value(batch["rewards"] - shift, 0.9, 0.8)) / (2 * h),
            (value(batch["rewards"], 0.9 + h, 0.8) - value(batch["rewards"], 0.9 - h, 0.8)) / (2 * h),
            (value(batch["rewards"], 0.9, 0.8 + h) - value(batch["rewards"], 0.9, 0.8 - h)) / (2 * h),
        )
        np.testing.assert_allclose((gradients[0][2, 1], *gradients[1:]), quotients, rtol=1e-6)


def test_vmap_over_settings_and_settings_that_vary_along_the_data() -> None:
    batch = data(7)
    discounts, lambdas = jnp.array([0.0, 0.9, 1.0]), jnp.array([1.0, 0.5, 0.0])
    lanes = jax.jit(jax.vmap(all_targets, (None, 0, 0)))(batch, discounts, lambdas)
    per_stream = jitted_targets(batch, discounts, lambdas)  # [N] broadcasts to [T, N]
    per_entry = jitted_targets(batch, jnp.broadcast_to(discounts, (T, N)), jnp.broadcast_to(lambdas, (T, N)))
    for i in range(N):
        alone = jitted_targets(batch, discounts[i], lambdas[i])
        for name in alone:
            np.testing.assert_allclose(lanes[name][i], alone[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(per_stream[name][:, i], alone[name][:, i], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(per_entry[name][:, i], alone[name][:, i], rtol=1e-5, atol=1e-6)


def test_shapes_and_flags() -> None:
    batch = data(8)
    whole = jitted_targets(batch, 0.9, 0.8)
    stream = jitted_targets({name: x[:, 0] for name, x in batch.items()}, 0.9, 0.8)  # [T]
    cube = jitted_targets({name: x[:, :, None] for name, x in batch.items()}, 0.9, 0.8)  # [T, N, 1]
    floats = jitted_targets(batch | {name: batch[name].astype(np.float32) for name in ENDS}, 0.9, 0.8)
    one = jitted_targets({name: x[:1] for name, x in batch.items()}, 0.9, 0.8)
    for name in whole:
        np.testing.assert_allclose(stream[name], whole[name][:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cube[name][..., 0], whole[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(floats[name], whole[name])
        assert one[name].shape == (1, N)
    integers = returns.lambda_returns(np.arange(3), np.arange(3), np.zeros(3), np.zeros(3), 0.5, 1.0)
    np.testing.assert_allclose(integers, [0 + 0.5 * (1 + 0.5 * (2 + 0.5 * 2)), 1 + 0.5 * (2 + 0.5 * 2), 3.0])


def test_the_data_decide_the_dtype() -> None:
    batch = data(8)
    single = jitted_targets(batch, 0.9, 0.8)
    with jax.enable_x64(True):
        discount = jnp.asarray(0.9, jnp.float64)  # strongly typed, as in a canonical configuration
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            cast = {name: x if x.dtype == bool else x.astype(dtype) for name, x in batch.items()}
            for name, shape in jax.eval_shape(all_targets, cast, discount, 0.8).items():
                assert shape.dtype == dtype, name
        for name, got in jitted_targets(cast, discount, 0.8).items():
            np.testing.assert_allclose(got, single[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": jnp.zeros((N, T))}, r"values has shape \(3, 11\), expected \(11, 3\).*batch-major.*swapaxes"),
        ({"terminated": jnp.zeros((T, N, 1))}, r"terminated has shape .*one axis too many.*squeeze"),
        ({"values": jnp.zeros((T + 1, N))}, r"values has shape \(12, 3\).*one row too many.*next_values"),
        ({"next_values": jnp.zeros(N)}, r"next_values has shape \(3,\), expected \(11, 3\).*time-major"),
        ({"discount": jnp.zeros(T)}, r"discount has shape \(11,\).*reshape\(\(-1, 1\)\)"),
        ({"lambda_": jnp.zeros((1, T, N))}, r"lambda_ has shape \(1, 11, 3\), expected a scalar"),
        ({"rewards": jnp.zeros(())}, r"rewards has shape \(\), expected \[T, ...\]"),
        ({"rewards": jnp.zeros((0, N))}, r"rewards has shape \(0, 3\).*at least one step"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Any], message: str) -> None:
    batch = data(9)
    del batch["log_ratios"]
    with pytest.raises(ValueError, match=message):
        gae(**batch | {"discount": 0.9, "lambda_": 0.8} | change)


def test_wrong_log_ratios_and_n_are_named() -> None:
    batch = data(9)
    arguments = pick(batch, "rewards", "values", "next_values", *ENDS)
    with pytest.raises(ValueError, match=r"log_ratios has shape \(11, 3, 2\), expected \(11, 3\).*sum\(-1\)"):
        vtrace(*arguments, jnp.zeros((T, N, 2)), 0.9)
    with pytest.raises(ValueError, match=r"log_ratios has shape \(3, 11\).*batch-major"):
        retrace(*arguments, jnp.zeros((N, T)), 0.9, 1.0)
    for n in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=r"n_step_returns\.n must be an integer of at least 1"):
            returns.n_step_returns(*pick(batch, "rewards", "next_values", *ENDS), 0.9, n)
