"""The replay against plain Python lists, its loop with a small linear agent (this module), and what it costs."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrl import envs, normalise, replay, returns, rollout, train
from jaxrl.types import Box, Discrete, Replay, Spec, Step, Transition, canonical

NUM_ENVS, STEPS, DRAWS = 3, 24, 512
SPEC = Spec(Box((1,)), Discrete(10_000))
FIELDS = [field.name for field in dataclasses.fields(Transition) if field.name != "extras"]
QUIET = settings(max_examples=12, deadline=None, derandomize=True, database=None)

# ----------------------------------------------------------------------------- against Python lists


def history(ends: np.ndarray) -> Transition:
    """Transitions [STEPS, NUM_ENVS] in which every observation, action and reward is another number.

    `ends` says after which steps an episode terminates (1) or is truncated (2).
    """
    shape = ends.shape
    number = np.arange(ends.size).reshape(shape)
    following = np.concatenate([number[1:], number[-1:] + NUM_ENVS])
    true = np.where(ends > 0, number + 0.5, following)  # after an end comes an observation that starts no step
    columns = number[..., None].astype(np.float32), number, np.sqrt(number + 1), true[..., None].astype(np.float32)
    return Transition(*map(jnp.asarray, (*columns, ends == 1, ends == 2)))


@functools.cache
def record(capacity: int, n_step: int) -> Any:
    """Insert one row after the other; after each, how many windows there are [STEPS, N], and draws from them."""
    data = Replay(NUM_ENVS, capacity, DRAWS, n_step)

    def body(buffer: replay.Buffer, inputs: tuple[Transition, jax.Array]) -> tuple[replay.Buffer, Any]:
        transition, key = inputs
        buffer = replay.insert(buffer, transition)
        return buffer, (buffer.size, replay.num_windows(buffer, n_step), replay.sample(buffer, data, key))

    @jax.jit
    def run(transitions: Transition) -> Any:
        keys = jax.random.split(jax.random.key(0), STEPS)
        return jax.lax.scan(body, replay.init(data, SPEC), (transitions, keys))[1]

    return run


def held(ends: list[int], places: int) -> list[int]:
    """The newest steps of a lane that go into so many places, an end into two."""
    steps = list(range(len(ends)))
    while sum(1 + (ends[t] > 0) for t in steps) > places:
        steps.pop(0)
    return steps


def windows(data: dict[str, np.ndarray], ends: list[int], steps: list[int], lane: int, n_step: int) -> dict[float, Any]:
    """The windows of a lane by the number of their first observation."""
    found = {}
    for i in range(len(steps)):
        rows = steps[i : i + n_step]
        last = next((k for k, t in enumerate(rows) if ends[t]), None)
        if last is None and len(rows) < n_step:
            continue
        rows = rows if last is None else rows[: last + 1]
        window = {name: [data[name][t, lane] for t in rows] for name in FIELDS}
        for _ in range(n_step - len(rows)):  # padding
            for name in ("action", "terminated", "truncated", "next_observation"):
                window[name].append(window[name][-1])
            window["observation"].append(window["next_observation"][-1])
            window["reward"].append(np.float32(0))
        found[window["observation"][0].item()] = window
    return found


@pytest.mark.parametrize(("capacity", "n_step"), [(NUM_ENVS * 7, 1), (NUM_ENVS * 9, 3), (NUM_ENVS * 4, 3)])
@QUIET
@given(ends=hnp.arrays(np.int32, (STEPS, NUM_ENVS), elements=st.integers(0, 2), fill=st.sampled_from([0, 1, 2])))
def test_contents_and_windows_are_those_of_a_list(capacity: int, n_step: int, ends: np.ndarray) -> None:
    transitions = history(ends)
    data = {name: np.asarray(getattr(transitions, name)) for name in FIELDS}
    sizes, counts, draws = jax.tree.map(np.asarray, record(capacity, n_step)(transitions))
    for now in range(STEPS):
        expected: dict[float, Any] = {}
        for lane in range(NUM_ENVS):
            past = ends[: now + 1, lane].tolist()
            steps = held(past, capacity // NUM_ENVS)
            assert sizes[now, lane] == len(steps)
            found = windows(data, past, steps, lane, n_step)
            assert counts[now, lane] == len(found)
            expected |= found
        if not expected:
            assert now < n_step - 1
            continue
        first = draws.observation[now, 0, :, 0]
        assert set(first.tolist()) == set(expected)  # each of at most 27 windows is among 512 draws
        _, draw, which = np.unique(first, return_index=True, return_inverse=True)
        for name in FIELDS:
            values = getattr(draws, name)[now]  # [n_step, B, ...]
            np.testing.assert_array_equal(values, values[:, draw][:, which])  # equal starts, equal windows
            for b in draw:
                np.testing.assert_array_equal(values[:, b], np.stack(expected[first[b].item()][name]), err_msg=name)


def test_draws_are_uniform_over_the_windows_of_lanes_of_unequal_size() -> None:
    ends = np.zeros((STEPS, NUM_ENVS), np.int32)
    ends[:, 0], ends[::3, 1] = 1, 2
    data = Replay(NUM_ENVS, NUM_ENVS * 12, 20_000, n_step=2)

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        body = lambda buffer, transition: (replay.insert(buffer, transition), None)  # noqa: E731
        buffer, _ = jax.lax.scan(body, replay.init(data, SPEC), history(ends))
        return replay.num_windows(buffer, 2), replay.sample(buffer, data, key).observation[0, :, 0]

    counts, first = jax.jit(run)(jax.random.key(1))
    assert counts.tolist() == [6, 8, 11]  # 12 places are 6 steps, 9 or 12; the newest of the last two is too new
    _, drawn = np.unique(first, return_counts=True)
    assert len(drawn) == 25
    assert scipy.stats.chisquare(drawn).pvalue > 0.01


def test_observations_are_kept_in_their_type_and_insertion_is_checked() -> None:
    spec = Spec(Box((2, 2), 0, 255, "uint8"), Box((3,), -1.0, 1.0))
    buffer = replay.init(Replay(2, 8), spec)
    assert buffer.observation.dtype == np.uint8 and buffer.observation.shape == (5, 2, 2, 2)
    with pytest.raises(ValueError, match=r"transition.reward has shape \(1, 2\), expected \(2,\)"):
        replay.insert(
            buffer, jax.tree.map(lambda x: x[None], history(np.zeros((1, 2), int))).replace(reward=jnp.ones((1, 2)))
        )


# ------------------------------------------------------------------------------------ the bootstrap


@QUIET
@given(ends=hnp.arrays(np.int32, (5, 8), elements=st.integers(0, 3)), discount=st.sampled_from([0.0, 0.5, 0.97, 1.0]))
def test_bootstrap_is_the_return_of_the_paper(ends: np.ndarray, discount: float) -> None:
    """Against an explicit sum, on pieces of a rollout that go on after an end, or end in both ways at once."""
    rng = np.random.default_rng(0)
    reward, successor = rng.normal(size=(2, *ends.shape)).astype(np.float32)
    terminated, truncated = ends % 2 == 1, ends >= 2
    window = Transition(successor, successor, reward, successor[..., None], terminated, truncated)
    found = jitted_bootstrap(jax.tree.map(jnp.asarray, window), discount)
    for b in range(ends.shape[1]):
        total, m = 0.0, 0
        while True:
            total, m = total + discount**m * float(reward[m, b]), m + 1
            if terminated[m - 1, b] or truncated[m - 1, b] or m == len(ends):
                break
        np.testing.assert_allclose(found.returns[b], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.discount[b], 0 if terminated[m - 1, b] else discount**m, rtol=1e-6)
        assert found.observation[b, 0] == successor[m - 1, b]
    value = found.returns + found.discount * found.observation[:, 0]
    whole = returns.n_step_returns(reward, successor, terminated, truncated, discount, len(ends))
    np.testing.assert_allclose(value, whole[0], rtol=1e-5, atol=1e-6)


jitted_bootstrap = jax.jit(replay.bootstrap)


def test_bootstrap_has_gradients_and_double_precision() -> None:
    with jax.enable_x64(True):
        ones = jnp.ones((3, 1))
        window = Transition(ones, ones, ones, ones, ones == 0, ones == 0)

        def value(discount: jax.Array) -> jax.Array:
            found = replay.bootstrap(window, discount)
            return jnp.sum(found.returns + found.discount * 8)

        discounts = np.array([0.0, 0.5])
        slopes = jax.jit(jax.vmap(jax.grad(value)))(discounts)
        assert slopes.dtype == np.float64
        np.testing.assert_allclose(slopes, 1 + 2 * discounts + 3 * discounts**2 * 8, rtol=1e-12)


# ----------------------------------------------------------------- the loop, with an agent of our own


@struct.dataclass
class Config:
    learning_rate: float = 0.2
    discount: float = 0.5
    normalised: bool = struct.field(pytree_node=False, default=False)
    data: Replay = struct.field(pytree_node=False, default=Replay())


@struct.dataclass
class State:
    weights: jax.Array  # of a linear value function
    updates: jax.Array
    normaliser: normalise.Moments | None
    spec: Spec = struct.field(pytree_node=False)


def init(config: Config, spec: Spec, key: jax.Array) -> State:
    normaliser = normalise.init(spec.observation) if config.normalised else None
    return State(jnp.zeros(spec.observation.shape), jnp.int32(0), normaliser, spec)


def act(config: Config, state: State, observation: jax.Array, key: jax.Array | None = None) -> Any:
    """Always the same action, 0."""
    return jnp.broadcast_to(state.spec.action.zeros(), (*observation.shape[:1], *state.spec.action.shape)), {}


def update(config: Config, state: State, batch: Transition, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """A step of temporal-difference learning."""
    successor = replay.bootstrap(batch, config.discount)
    target = successor.returns + successor.discount * (successor.observation @ state.weights)
    error = target - batch.observation[0] @ state.weights
    weights = state.weights + config.learning_rate * jnp.mean(error[:, None] * batch.observation[0], axis=0)
    state = state.replace(weights=weights, updates=state.updates + 1)
    return state, {"error": jnp.mean(error**2), "updates": state.updates}


AGENT = sys.modules[__name__]


@dataclasses.dataclass(frozen=True)
class Hundreds:
    """Starts at a multiple of 100 and counts on; terminates at 3 above, or 6 if the start is an even multiple."""

    max_steps: int = 5
    spec = Spec(Box((1,)), Box((2,), -1.0, 1.0))

    def params(self) -> dict[str, jax.Array]:
        return {}

    def reset(self, params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        number = 100 * jax.random.randint(key, (), 1, 1000)
        return number, number[None].astype(float)

    def step(self, params: Any, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        state = state + 1
        terminated = state % 100 == jnp.where(state // 100 % 2, 3, 6)
        return state, Step(state[None].astype(float), state / 10, terminated, jnp.array(False))


def start(data: Replay, env: Any = None, **options: Any) -> tuple[train.Loop, Config, train.RunState]:
    loop = train.loop(AGENT, env or Hundreds())
    config = canonical(Config(data=data, **options))
    return loop, config, jax.jit(loop.init)(config, jax.random.key(0))


MILLION = Replay(num_envs=4, capacity=10**6, batch_size=8, n_step=3, warmup=10, updates_per_step=3)


def test_updates_begin_after_the_warm_up() -> None:
    loop, config, run = start(MILLION, normalised=True, learning_rate=1e-12)
    run, metrics = train.scan(loop, config, run, 6)
    np.testing.assert_array_equal(metrics["updates"], [np.nan, np.nan, 2, 5, 8, 11])  # the mean of 1, 2 and 3, ...
    assert np.isnan(metrics["error"][:2]).all() and np.isfinite(metrics["error"][2:]).all()
    assert run.agent.updates == 12
    buffer = run.experience.buffer
    actions = np.asarray(buffer.steps.action[:6])
    assert len(np.unique(actions[:3])) == 3 * 4 * 2  # random: 3 is the first number of steps to make 10 transitions
    assert not actions[3:].any()  # the agent's
    seen = np.stack([buffer.observation[buffer.steps.place[t], np.arange(4)] for t in range(6)])
    assert run.agent.normaliser.count == 6 * 4
    np.testing.assert_allclose(run.agent.normaliser.mean, seen.mean((0, 1)), rtol=1e-5)


def test_without_warm_up_updates_begin_with_the_first_window() -> None:
    loop, config, run = start(MILLION, normalised=True, learning_rate=1e-12)
    run = run.replace(experience=run.experience.replace(warmup=jnp.int32(0)))
    run, metrics = train.scan(loop, config, run, 6)
    np.testing.assert_array_equal(np.isnan(metrics["error"]), [True, True, False, False, False, False])
    assert not np.asarray(run.experience.buffer.steps.action).any()


def test_a_million_transitions_are_stepped_in_place() -> None:
    """No temporary of the compiled loop is as large as the flags, the smallest of the rings: one byte a transition."""
    loop, config, run = start(MILLION, normalised=True, learning_rate=1e-12)
    memory = train.scan.lower(loop, config, run, 6).compile().memory_analysis()
    needed = replay.bytes_needed(MILLION, Hundreds.spec)
    assert memory.output_size_in_bytes > needed > 1e7
    assert memory.temp_size_in_bytes < 1e5


@functools.cache
def seeds() -> tuple[list[int], Config, Any]:
    """Two seeds as `fit` steps them: a list that grows by one in each of their updates, settings, compiled programs."""
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return update(*arguments)

    agent: Any = type(sys)("counted")
    agent.Config, agent.init, agent.act, agent.update = Config, init, act, counted
    config = canonical(Config(data=dataclasses.replace(MILLION, updates_per_step=1), learning_rate=1e-12))
    programs = train._programs(train.loop(agent, Hundreds()), agent, Hundreds(), 50, 1, tuple(jax.devices()[:1]))
    runs = programs.init(config, jax.random.split(jax.random.key(0), 2), None)
    with jax.debug_key_reuse(False):  # it does not understand a vmap over a scan over keys
        chunk = programs.chunk.lower(config, runs, 1).compile()
    return calls, config, programs._replace(chunk=chunk)


def test_the_seeds_of_fit_are_stepped_in_place() -> None:
    """And nothing is copied from chunk to chunk, as `fit` donates."""
    _, config, programs = seeds()
    memory = programs.chunk.memory_analysis()
    assert memory.alias_size_in_bytes > 2 * replay.bytes_needed(config.data, Hundreds.spec) > 1e7
    assert memory.temp_size_in_bytes < 1e5


def test_the_updates_of_a_warm_up_are_skipped_under_vmap() -> None:
    calls, config, programs = seeds()
    runs = programs.init(config, jax.random.split(jax.random.key(0), 2), None)
    calls.clear()
    for done in range(1, 5):
        runs, _ = programs.chunk(config, runs, 1)
        jax.effects_barrier()
        assert len(calls) == max(0, done - 2)


def test_one_seed_may_warm_up_longer_than_another() -> None:
    _, config, programs = seeds()
    runs = programs.init(config, jax.random.split(jax.random.key(0), 2), None)
    runs = runs.replace(experience=runs.experience.replace(warmup=jnp.array([0, 100])))
    runs, metrics = programs.chunk(config, runs, 4)
    assert runs.agent.updates.tolist() == [2, 0]
    np.testing.assert_array_equal(np.isnan(metrics["error"][:, :4]), [[True, True, False, False], [True] * 4])
    assert np.all(runs.agent.weights[0] != 0) and np.all(runs.agent.weights[1] == 0)


def test_the_loop_fills_the_buffers_with_what_happened() -> None:
    _, config, programs = seeds()
    runs = programs.init(config, jax.random.split(jax.random.key(0), 2), None)
    runs, _ = programs.chunk(config, runs, 50)
    assert np.all(runs.experience.buffer.size == 50)
    draw = jax.jit(jax.vmap(lambda buffer, key: replay.sample(buffer, Replay(4, 40, 1000), key)))
    batch = draw(runs.experience.buffer, jax.random.split(jax.random.key(1), 2))
    number = batch.observation[..., 0]
    odd = number // 100 % 2 == 1
    np.testing.assert_array_equal(batch.next_observation[..., 0], number + 1)  # also where an episode ended
    np.testing.assert_allclose(batch.reward, (number + 1) / 10, rtol=1e-6)
    np.testing.assert_array_equal(batch.terminated, odd & (number % 100 == 2))
    np.testing.assert_array_equal(batch.truncated, ~odd & (number % 100 == 4))  # by the time limit
    assert batch.terminated.any() and batch.truncated.any()


@pytest.mark.parametrize("probe", ["truncation", "termination"])
def test_it_learns_the_values_of_a_probe(probe: str) -> None:
    """Value goes on past a cut, and not past an end, with windows of three steps."""
    env = envs.make(f"jaxrl/probe_{probe}")
    data = Replay(num_envs=2, capacity=60, batch_size=32, n_step=3, warmup=20)
    loop, config, run = start(data, env, learning_rate=2.0)
    run, _ = train.scan(loop, config, run, 200)
    values = env.values(0.5)
    np.testing.assert_allclose(values.observation @ run.agent.weights, values.value, atol=1e-3)


def test_the_loop_keeps_its_types_in_double_precision() -> None:
    with jax.enable_x64(True):
        env = envs.make("jaxrl/pendulum")
        loop, config = train.loop(AGENT, env), canonical(Config(data=Replay(2, 8, 4, n_step=2), normalised=True))
        run = jax.eval_shape(loop.init, config, jax.random.key(0))
        after, _ = jax.eval_shape(loop.step, config, run)
        assert run == after
        assert run.experience.buffer.observation.dtype == run.experience.buffer.steps.reward.dtype == np.float64


# ---------------------------------------------------------------------------------------- its costs

WIDE = Spec(Box((17,)), Box((6,), -1.0, 1.0))


def test_bytes_are_those_of_the_buffer() -> None:
    data = Replay(num_envs=4, capacity=400)
    buffer = replay.init(data, WIDE)
    needed = 101 * 4 * (17 * 4 + 6 * 4 + 4 + 2 + 4) + 16 * 4 + 4
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(buffer)) == replay.bytes_needed(data, WIDE) == needed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"capacity": 10, "num_envs": 3},
            "capacity = 10 is not divisible by num_envs = 3, which share it equally; 9 is",
        ),
        (
            {"capacity": 15, "num_envs": 4, "n_step": 3},
            "num_envs = 4 environments: expected at least 16, and less than",
        ),
        ({"capacity": 2**30}, r"capacity = 1073741824 .* less than 2\*\*30"),
    ],
)
def test_a_capacity_that_does_not_fit_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(**settings)


def test_a_buffer_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Replay(num_envs=4, capacity=400)
    monkeypatch.setattr(replay, "memory", lambda: 8956)
    rollout.begin(data, Hundreds())
    monkeypatch.setattr(replay, "memory", lambda: 8955)
    with pytest.raises(
        ValueError, match=r"needs 8,956 bytes, and there are 8,955 .* 404 steps of 4 \(obs.* = 22 bytes"
    ):
        rollout.begin(data, Hundreds())


def test_memory_is_that_of_the_device_or_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert replay.memory() == total  # a CPU
    monkeypatch.setattr(
        jax, "local_devices", lambda: [type("Gpu", (), {"memory_stats": lambda _: {"bytes_limit": 7}})()]
    )
    assert replay.memory() == 7


def test_neither_insertion_nor_sampling_does_more_with_a_larger_buffer() -> None:
    step = jax.tree.map(lambda leaf: jnp.zeros((4, *leaf.shape[2:]), leaf.dtype), history(np.zeros((1, 4), int)))
    step = step.replace(observation=jnp.zeros((4, 17)), next_observation=jnp.zeros((4, 17)), action=jnp.zeros((4, 6)))

    def operations(capacity: int) -> tuple[float, int]:
        data = Replay(num_envs=4, capacity=capacity, n_step=3)

        def both(buffer: replay.Buffer, step: Transition, key: jax.Array) -> tuple[replay.Buffer, Transition]:
            buffer = replay.insert(buffer, step)
            return buffer, replay.sample(buffer, data, key)

        buffer = jax.eval_shape(lambda: replay.init(data, WIDE))
        compiled = jax.jit(both, donate_argnums=0).lower(buffer, step, jax.random.key(0)).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    assert operations(1000) == operations(10**6)


# ----------------------------------------------------------------------------- proposed parameters


@dataclasses.dataclass(frozen=True)
class Paid:
    """Pays its parameter, which somebody proposes; ends after three steps."""

    max_steps: int = 3
    spec = Spec(Box((1,)), Box((1,), -1.0, 1.0))

    def params(self) -> jax.Array:
        return jnp.zeros(())

    def reset(self, params: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return params, params[None]

    def step(self, params: jax.Array, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        return state, Step(params[None], params, jnp.array(False), jnp.array(False))


def test_windows_hold_the_parameters_that_were_in_use() -> None:
    data = Replay(num_envs=2, capacity=20, batch_size=32, n_step=4, warmup=0)
    env = Paid()
    spec = env.spec
    assert replay.bytes_needed(data, spec, env.params()) == replay.bytes_needed(data, spec) + 4 * 2 * 11

    def run(key: jax.Array) -> Transition:
        collect_key, sample_key = jax.random.split(key)
        lanes = rollout.lanes(env, 2, "fresh", varying=True)
        propose = lambda params, observation, key: jax.random.uniform(key, params.shape)  # noqa: E731
        policy = lambda observation, key: (jnp.zeros((2, 1)), {})  # noqa: E731
        _, batch = rollout.collect(env, policy, lanes, collect_key, 30, propose=propose)
        body = lambda buffer, transition: (replay.insert(buffer, transition), None)  # noqa: E731
        buffer, _ = jax.lax.scan(body, replay.init(data, spec, env.params()), batch)
        return replay.sample(buffer, data, sample_key)

    window = jax.jit(run)(jax.random.key(0))
    params, taken = window.extras["env_params"], returns.until_end(window.terminated | window.truncated)
    assert params.shape == (4, 32) and len(np.unique(params)) > 3
    np.testing.assert_array_equal(window.reward, np.where(taken, params, 0))
    np.testing.assert_array_equal(window.next_observation[..., 0], params)
