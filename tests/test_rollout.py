"""The rollout against a simulation in plain Python, and its promises about ends, limits, resets and broken lanes."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import rollout
from jaxrl.types import Box, Discrete, Rollout, Spec, Step


@dataclasses.dataclass(frozen=True)
class Walk:
    """Starts at a random whole number below 1000 and counts on; terminates at multiples of `end`.

    The observation is the number; the reward is the action plus a tenth of the number.
    """

    end: int = 7
    max_steps: int = 4
    breaks_at: int = -1  # the number at which the observation is not finite

    spec = Spec(Box((1,)), Box((1,), -1.0, 1.0))

    def params(self):
        return {}

    def reset(self, params, key):
        number = jax.random.randint(key, (), 0, 1000)
        return number, number[None].astype(float)

    def step(self, params, state, action, key):
        state = state + 1
        observation = jnp.where(state == self.breaks_at, jnp.nan, state.astype(float))[None]
        reward = action[0] + state / 10
        return state, Step(observation, reward, state % self.end == 0, jnp.array(False), {"number": state / 1})


def alternate(observation, key):
    """Actions of 2, outside of the box, and their size as an extra."""
    return jnp.full((observation.shape[0], 1), 2.0), {"twice": 2 * observation[:, 0]}


def collect(env, length, num_envs=3, resets="pool", pieces=1, key=0):
    """`pieces` rollouts one after the other, concatenated, and the lanes after them."""
    lanes, batches = rollout.lanes(env, num_envs, resets), []
    run = jax.jit(lambda lanes, key: rollout.collect(env, alternate, lanes, key, length))
    for piece_key in jax.random.split(jax.random.key(key), pieces):
        lanes, batch = run(lanes, piece_key)
        batches.append(batch)
    return lanes, jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


@pytest.mark.parametrize("resets", ["pool", "fresh"])
def test_against_a_simulation_in_python(resets):
    env = Walk()
    _, batch = collect(env, length=10, num_envs=6, resets=resets, pieces=3)
    for lane in range(6):
        number, length, total = int(batch.observation[0, lane, 0]), 0, 0.0
        for t in range(30):
            assert batch.observation[t, lane, 0] == number
            number, length = number + 1, length + 1
            reward = 1.0 + number / 10  # the environment got the action clipped to its box
            total += reward
            terminated = number % env.end == 0
            truncated = length == env.max_steps and not terminated
            assert batch.action[t, lane, 0] == 2.0  # the agent keeps its own
            assert batch.extras["twice"][t, lane] == 2 * (number - 1)
            np.testing.assert_allclose(batch.reward[t, lane], reward, rtol=1e-6)
            assert batch.next_observation[t, lane, 0] == number  # the true successor, also at an end
            assert batch.terminated[t, lane] == terminated
            assert batch.truncated[t, lane] == truncated
            ended = terminated or truncated
            np.testing.assert_allclose(batch.extras["episode_return"][t, lane], total if ended else 0, rtol=1e-5)
            assert batch.extras["episode_length"][t, lane] == (length if ended else 0)
            if ended and t < 29:
                number, length, total = int(batch.observation[t + 1, lane, 0]), 0, 0.0
    assert batch.terminated.any() and batch.truncated.any()


def test_fresh_resets_are_all_different_and_pooled_ones_are_renewed():
    """Every episode of `fresh` has a start of its own; a pooled lane repeats a start only until it is renewed."""

    def starts(resets, num_envs, length, pieces):
        _, batch = collect(Walk(end=2000, max_steps=4), length, num_envs, resets, pieces)
        return batch.observation[::4, :, 0]  # [episodes, N]

    fresh = starts("fresh", num_envs=4, length=8, pieces=8)
    assert len(np.unique(fresh)) > 0.9 * fresh.size  # of 1000 numbers
    pooled = starts("pool", num_envs=4, length=8, pieces=8)  # in 64 steps, each lane is renewed once
    assert all(2 <= len(np.unique(lane)) <= 3 for lane in pooled.T)
    long = starts("pool", num_envs=4, length=64, pieces=4)  # a rollout of 64 steps renews all lanes
    changes = (long[1:] != long[:-1]).sum(0)
    np.testing.assert_array_equal(changes, 3)


def test_starts_come_from_the_law_of_reset():
    _, batch = collect(Walk(end=2000, max_steps=1), length=64, num_envs=64, pieces=4)
    starts = np.unique(batch.observation)
    assert len(starts) > 200
    np.testing.assert_allclose(starts.mean(), 500, atol=3 * 289 / np.sqrt(len(starts)))


def test_a_lane_that_breaks_down_is_stopped_counted_and_reset():
    env = Walk(end=2000, max_steps=100, breaks_at=3)
    lanes = rollout.lanes(env, 2, "fresh")
    lanes = lanes.replace(state=jnp.array([0, 500]), observation=jnp.array([[0.0], [500.0]]), ended=jnp.zeros(2, bool))
    _, batch = rollout.collect(env, alternate, lanes, jax.random.key(0), 5)
    np.testing.assert_array_equal(batch.extras["non_finite"], [[0, 0], [0, 0], [1, 0], [0, 0], [0, 0]])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(batch))
    assert batch.truncated[2, 0] and not batch.terminated[2, 0]
    assert batch.reward[2, 0] == 0 and batch.next_observation[2, 0, 0] == 2  # the last that was finite
    assert batch.observation[3, 0, 0] != 2  # a new episode
    assert rollout.summary(batch)["non_finite"] == 1
    np.testing.assert_array_equal(batch.observation[:, 1, 0], np.arange(500, 505))  # the other lane goes on


def test_summary():
    _, batch = collect(Walk(), length=20)
    summary = rollout.summary(batch)
    ended = batch.terminated | batch.truncated
    assert summary["episodes"] == ended.sum()
    np.testing.assert_allclose(summary["episode_return"], batch.extras["episode_return"][ended].mean(), rtol=1e-6)
    np.testing.assert_allclose(summary["episode_length"], batch.extras["episode_length"][ended].mean(), rtol=1e-6)
    np.testing.assert_allclose(summary["environment/number"], batch.extras["metrics"]["number"].mean(), rtol=1e-6)
    none = rollout.summary(jax.tree.map(lambda leaf: leaf[:1], collect(Walk(end=5000), length=2)[1]))
    assert none["episodes"] == 0 and np.isnan(none["episode_return"])


def test_reset_and_step_are_in_the_compiled_program_once():
    """`tan` marks the reset and `cbrt` the step in the program; initialising the loop contains neither."""

    @dataclasses.dataclass(frozen=True)
    class Marked(Walk):
        def reset(self, params, key):
            state, observation = super().reset(params, key)
            return state, jnp.tan(observation)

        def step(self, params, state, action, key):
            state, step = super().step(params, state, action, key)
            return state, step.replace(observation=jnp.cbrt(step.observation))

    for resets in ("pool", "fresh"):
        lanes = rollout.lanes(Marked(), 4, resets)
        run = jax.jit(lambda lanes, key: rollout.collect(Marked(), alternate, lanes, key, 8))
        text = run.lower(lanes, jax.random.key(0)).as_text()
        assert (text.count("chlo.tan ") + text.count("stablehlo.tan "), text.count("stablehlo.cbrt")) == (1, 1)
    text = jax.jit(lambda: rollout.lanes(Marked(), 4)).lower().as_text()
    assert "tan " not in text and "cbrt" not in text


def test_random_keys_in_the_state_of_an_environment():
    @dataclasses.dataclass(frozen=True)
    class Keyed(Walk):
        def reset(self, params, key):
            state_key, key = jax.random.split(key)
            number, observation = super().reset(params, key)
            return (number, state_key), observation

        def step(self, params, state, action, key):
            number, step = super().step(params, state[0], action, key)
            return (number, state[1]), step

    with jax.debug_key_reuse(False):  # it takes a choice between two keys for a use of both
        for resets in ("pool", "fresh"):
            assert np.all(np.isfinite(collect(Keyed(), length=12, resets=resets)[1].reward))


def test_discrete_actions_are_taken_as_they_are():
    env = dataclasses.replace(Walk())
    object.__setattr__(env, "spec", Spec(Box((1,)), Discrete(3)))
    assert env.spec.action.clip(jnp.array([2])) == 2


@pytest.mark.parametrize("data", [None, 3, "rollout"])
def test_unknown_data_is_refused(data):
    with pytest.raises(ValueError, match=r"Config.data is .*, expected jaxrl.types.Rollout"):
        rollout.begin(data, Walk())
    with pytest.raises(ValueError, match=r"Config.data is .*, expected jaxrl.types.Rollout"):
        rollout.advance(data, None, Walk(), None, None, None, None)


def test_vmapped_lanes_are_the_same_as_alone():
    env, data = Walk(), Rollout(3, 10)
    lanes = rollout.lanes(env, data.num_envs)
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.debug_key_reuse(False):  # the same keys are used again
        together = jax.vmap(lambda key: rollout.collect(env, alternate, lanes, key, 10)[1])(keys)
        for i in range(2):
            alone = rollout.collect(env, alternate, lanes, keys[i], 10)[1]
            jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)


@pytest.mark.parametrize("resets", ["pool", "fresh"])
def test_rollouts_that_restart_begin_with_new_episodes(resets):
    data = Rollout(num_envs=50, length=3, resets=resets, restart=True)
    agent = types.SimpleNamespace(
        act=lambda config, state, observation, key: (jnp.ones((50, 1)), {}),
        update=lambda config, state, batch, key: (state, {"number": batch.observation[:, :, 0]}),
    )
    state, lanes, starts = types.SimpleNamespace(normaliser=None), rollout.begin(data, Walk(end=10_000)), []
    advance = jax.jit(lambda lanes, key: rollout.advance(data, agent, Walk(end=10_000), None, state, lanes, key)[1:])
    for key in jax.random.split(jax.random.key(0), 3):
        lanes, metrics = advance(lanes, key)
        np.testing.assert_array_equal(metrics["number"], metrics["number"][0] + np.arange(3)[:, None])
        starts.append(metrics["number"][0])
    assert np.mean(starts[0] == starts[1]) < 0.1 and np.mean(starts[1] == starts[2]) < 0.1


# ----------------------------------------------------------------------------- proposed parameters


@dataclasses.dataclass(frozen=True)
class Tilted:
    """Starts at its parameter `start`, adds its parameter `slope` at each step, and pays it; ends after `max_steps`."""

    max_steps: int = 4
    spec = Spec(Box((1,)), Box((1,), -1.0, 1.0))

    def params(self):
        return {"start": jnp.zeros(()), "slope": jnp.ones(())}

    def reset(self, params, key):
        return params["start"], params["start"][None]

    def step(self, params, state, action, key):
        state = state + params["slope"]
        return state, Step(state[None], params["slope"], jnp.array(False), jnp.array(False))


def draw(params, observation, key):
    """Any parameters; those in use and the observation are part of the next ones, to see that they come in."""
    noise = jax.random.uniform(key, observation.shape[:1])
    return {"start": params["slope"] + 100 * noise, "slope": 1 + jnp.abs(observation[:, 0]) / 1000 + noise}


def collect_tilted(propose, length=30, num_envs=5, resets="pool", **settings):
    lanes = rollout.lanes(Tilted(), num_envs, resets, varying=True)
    run = jax.jit(
        lambda lanes, key: rollout.collect(Tilted(), alternate, lanes, key, length, propose=propose, **settings)
    )
    return run(lanes, jax.random.key(0))[1]


@pytest.mark.parametrize("resets", ["pool", "fresh"])
def test_parameters_proposed_for_an_episode_hold_from_its_reset_to_its_end(resets):
    batch = collect_tilted(draw, resets=resets)
    start, slope = batch.extras["env_params"]["start"], batch.extras["env_params"]["slope"]
    episode = np.arange(30) // 4
    for lane in range(5):
        for number in np.unique(episode):
            rows = np.flatnonzero(episode == number)
            assert np.all(start[rows, lane] == start[rows[0], lane])
            assert np.all(slope[rows, lane] == slope[rows[0], lane])
            np.testing.assert_allclose(batch.observation[rows[0], lane, 0], start[rows[0], lane])
    np.testing.assert_array_equal(batch.reward, slope)
    np.testing.assert_allclose(batch.next_observation[..., 0], batch.observation[..., 0] + slope, rtol=1e-6)
    assert len(np.unique(slope)) == (5 if resets == "pool" else 5 * 8)  # the pool is renewed between rollouts


def test_a_proposal_gets_the_parameters_in_use_and_the_last_observation():
    batch = collect_tilted(lambda params, observation, key: {
        "start": observation[:, 0], "slope": params["slope"] + 1
    }, resets="fresh", num_envs=2)  # fmt: skip
    slope = batch.extras["env_params"]["slope"][::4]
    np.testing.assert_array_equal(slope, np.broadcast_to(np.arange(2.0, 10.0)[:, None], (8, 2)))
    np.testing.assert_array_equal(batch.observation[4::4], batch.next_observation[3:-1:4])  # where the last one ended


def test_parameters_proposed_at_each_step_hold_for_that_step():
    batch = collect_tilted(draw, each_step=True)
    params = batch.extras["env_params"]
    np.testing.assert_array_equal(batch.reward, params["slope"])
    assert len(np.unique(params["slope"])) == 30 * 5
    np.testing.assert_array_equal(batch.observation[::4], 0)  # episodes start with the parameters of the environment
    np.testing.assert_allclose(params["slope"][::4] - 1, (params["start"][::4] - 1) / 100, atol=1e-5)


@pytest.mark.parametrize(
    ("propose", "got"),
    [
        (lambda params, observation, key: params | {"start": jnp.zeros(())}, r"\(\(\), dtype\('float32'\)\)"),
        (lambda params, observation, key: params | {"start": jnp.zeros(5, int)}, "int32"),
        (lambda params, observation, key: {"slope": params["slope"]}, r"\{'slope': \*\}"),
    ],
)
def test_proposals_of_another_shape_type_or_structure_are_refused(propose, got):
    with pytest.raises(ValueError, match=rf"propose returned parameters .*{got}.* expected those of the parameters"):
        collect_tilted(propose)
