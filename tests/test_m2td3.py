"""M2TD3: its target and losses, what becomes of its candidates, what it proposes, and a saddle that is known."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import assert_same, moved, small, window

from jaxrl import envs, train
from jaxrl.agents import m2td3, rarl, sac, td3
from jaxrl.types import Box, Replay, Spec, Step

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")
ENV = envs.make("jaxrl/point_mass", max_steps=5)
STILL = {"min_distance": 0.0, "min_probability": 0.0}  # no candidate is drawn anew
CONFIG = small(m2td3, num_params=2, num_candidates=3, **STILL)


def batch_of(rows=1):
    """A window [rows, 6] whose environments have three numbers, of which the first two are omega; and that omega."""
    omega = np.random.default_rng(1).beta(0.3, 0.3, size=(6, 3)).astype(np.float32)  # some of it near the walls
    every_row = np.broadcast_to(omega, (rows, 6, 3))
    params = {"a": jnp.asarray(every_row[..., 0]), "b": jnp.asarray(every_row[..., 1:])}
    return window(ENV, rows).replace(extras={"env_params": params}), omega[:, :2]


@pytest.fixture(scope="module")
def state():
    fresh = jax.jit(m2td3.init, static_argnums=1)(CONFIG, ENV.spec, jax.random.key(0))
    probability = jnp.array([0.2, 0.5, 0.3])
    return fresh.replace(
        target=jax.tree.map(lambda leaf: leaf + 0.1, fresh.target),
        candidates=fresh.candidates.replace(probability=probability),
    )


def q_values(params, observation, action, omega):
    """Both critics [2, B] at actions, and at omega from -1 to 1."""
    inputs = np.concatenate([action, 2 * np.asarray(omega) - 1], axis=-1)
    return np.asarray(sac.critics(CONFIG, params, observation, jnp.asarray(inputs)))[..., 0]


def first_values(state, observation):
    """V_k for each candidate, [K]."""
    action = td3.actor(CONFIG, ENV.spec, state.params, observation)
    omega = np.asarray(state.candidates.omega)
    return np.array([q_values(state.params["critics"], observation, action, [w] * 6)[0].mean() for w in omega])


@pytest.mark.parametrize("rows", [1, 3])
def test_target_is_the_smaller_value_near_the_policy_in_a_model_nearby(state, rows):
    """In NumPy, for each member of the batch by itself."""
    config = CONFIG.replace(discount=0.9, reward_scale=2.0, target_noise=0.6, noise_clip=0.5)
    batch, omega = batch_of(rows)
    targets = m2td3.target(config, state, batch, jax.random.key(5))
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    keys = jax.random.split(jax.random.key(5))
    noises = [np.clip(0.6 * np.asarray(jax.random.normal(key, (6, 2))), -0.5, 0.5) for key in keys]
    assert all(np.any(abs(noise) == 0.5) and np.any(abs(noise) < 0.5) for noise in noises)
    action = np.clip(td3.actor(config, ENV.spec, state.target, last) + noises[0], -1, 1)
    nearby = np.clip(omega + noises[1] / 2, 0, 1)
    assert np.any((nearby == 0) | (nearby == 1))
    values = q_values(state.target["critics"], last, action, nearby)
    for b, m in enumerate(steps):
        expected = sum(0.9**k * 2 * batch.reward[k, b] for k in range(m))
        if b != 1:  # the one that terminated
            expected += 0.9**m * values[:, b].min()
        np.testing.assert_allclose(targets[b, 0], expected, rtol=1e-4, atol=1e-5)


def test_critics_regress_on_the_target_at_the_parameters_of_each_episode(state):
    batch, omega = batch_of()
    targets = np.random.default_rng(2).normal(size=(6, 1)).astype(np.float32)
    loss, metrics = rarl.critic_loss(state.params["critics"], CONFIG, state, batch, jnp.asarray(targets))
    values = q_values(state.params["critics"], batch.observation[0], batch.action[0], omega)
    assert loss == pytest.approx(((values - targets[:, 0]) ** 2).mean(1).sum() / 2, rel=1e-4)
    assert metrics["value"] == pytest.approx(values.mean(), rel=1e-4)


def test_the_actor_ascends_the_worst_value_or_softly_all_of_them(state):
    batch, _ = batch_of()
    values, params = first_values(state, batch.observation[0]), state.params["actor"]
    assert np.ptp(values) > 1e-3
    for k in range(3):
        hard = m2td3.actor_loss(params, CONFIG, state, batch, k)
        assert hard == pytest.approx(-values[k], rel=1e-4, abs=1e-6)
    soft = m2td3.actor_loss(params, CONFIG.replace(soft=True), state, batch, 0)
    assert soft == pytest.approx(-(0.2 * values[0] + 0.5 * values[1] + 0.3 * values[2]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_the_worst_candidate_descends_and_becomes_more_probable(state, soft):
    config = CONFIG.replace(soft=soft, probability_rate=0.25)
    batch, _ = batch_of()
    values = first_values(state, batch.observation[0])
    worst = values.argmin()
    after = jax.jit(m2td3.improve)(config, state, batch, m2td3.draw(config, jax.random.key(1)))
    assert after.worst_value == pytest.approx(values.min(), rel=1e-4, abs=1e-6)

    def shifted(d, by):
        logits = state.candidates.logits.at[worst, d].add(by)
        moved = state.replace(candidates=state.candidates.replace(logits=logits))
        return first_values(moved, batch.observation[0])[worst]

    slope = [shifted(d, 0.05) - shifted(d, -0.05) for d in range(2)]
    move = np.asarray(after.candidates.logits - state.candidates.logits)
    np.testing.assert_allclose(move[worst], -0.01 * np.sign(slope), rtol=1e-3)  # Adam's first step
    np.testing.assert_array_equal(np.delete(move, worst, 0), 0)
    np.testing.assert_array_equal(after.candidates.optimiser[0].count, np.arange(3) == worst)
    expected = 0.75 * np.array([0.2, 0.5, 0.3]) + 0.25 * (np.arange(3) == worst)
    np.testing.assert_allclose(after.candidates.probability, expected, rtol=1e-5)
    before, now = (actor["actor"] for actor in (state.params, after.params))
    loss = [m2td3.actor_loss(params, config, state, batch, worst) for params in (before, now)]
    assert loss[1] < loss[0]
    assert (after.optimiser["actor"][0].count, after.optimiser["critics"][0].count) == (1, 0)
    rate = config.target_rate
    slow = jax.tree.map(lambda old, new: old + rate * (new - old), state.target, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.target, slow)


def test_actor_candidates_and_targets_move_every_delay_updates(state):
    config, (batch, _) = CONFIG.replace(delay=3), batch_of()
    update = jax.jit(m2td3.update)
    for count in range(1, 5):
        after, _ = update(config, state, batch, jax.random.key(count))
        changed = [
            moved(old, new)
            for old, new in [
                (state.params["critics"], after.params["critics"]),
                (state.params["actor"], after.params["actor"]),
                (state.candidates, after.candidates),
                (state.target, after.target),
            ]
        ]
        assert changed == [True, *[count % 3 == 0] * 3]
        state = after


# ----------------------------------------------------------------------------------------- candidates


def candidates_at(config, omega, probability):
    omega = jnp.asarray(omega, jnp.float32)
    fresh = m2td3.draw(config, jax.random.key(7))
    used = jax.tree.map(jnp.ones_like, fresh.optimiser)
    return m2td3.Candidates(jnp.log(omega / (1 - omega)), used, jnp.asarray(probability, jnp.float32))


@pytest.mark.parametrize(
    ("omega", "probability"),
    [
        ([[0.1, 0.1], [0.4, 0.4], [0.6, 0.6], [0.9, 0.9]], [0.25, 0.25, 0.25, 0.25]),
        ([[0.1, 0.1], [0.4, 0.4], [0.15, 0.14], [0.9, 0.9]], [0.4, 0.1, 0.2, 0.3]),  # the first is near the third
        ([[0.1, 0.1], [0.4, 0.4], [0.6, 0.6], [0.9, 0.9]], [0.03, 0.9, 0.04, 0.03]),
        ([[0.1, 0.1], [0.1, 0.12], [0.1, 0.14], [0.9, 0.9]], [0.03, 0.9, 0.04, 0.03]),  # near, and then improbable
        ([[0.1, 0.8], [0.1, 0.75], [0.8, 0.1], [0.81, 0.13]], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_candidates_that_are_near_or_improbable_are_drawn_anew(omega, probability):
    """In loops."""
    config = CONFIG.replace(num_candidates=4, min_distance=0.1, min_probability=0.05)
    before = candidates_at(config, omega, probability)
    drawn = m2td3.draw(config, jax.random.key(0))
    after = jax.jit(m2td3.restart)(config, before, drawn)

    near = {i for i in range(4) for j in range(i + 1, 4) if np.abs(np.subtract(omega[i], omega[j])).sum() <= 0.1}
    p = np.array(probability)
    p[list(near)] = np.mean([p[k] for k in range(4) if k not in near]) or 1
    p /= p.sum()
    rare = {k for k in range(4) if p[k] < 0.05}
    p[list(rare)] = np.mean([p[k] for k in range(4) if k not in rare])
    p /= p.sum()
    np.testing.assert_allclose(after.probability, p, rtol=1e-5)
    assert after.probability.sum() == pytest.approx(1)
    for k in range(4):
        one = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), (before, after))
        if k in near | rare:
            np.testing.assert_array_equal(one[1].logits, drawn.logits[k])
            assert np.all(abs(one[1].logits - one[0].logits) > 1e-3)
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(one[1].optimiser))
        else:
            np.testing.assert_array_equal(one[1].logits, one[0].logits)
            assert_same(one[1].optimiser, one[0].optimiser)


def test_candidates_are_drawn_uniformly_and_independently():
    drawn = m2td3.draw(CONFIG.replace(num_candidates=4000), jax.random.key(0))
    for d in range(2):
        assert scipy.stats.kstest(drawn.omega[:, d], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn.omega.T)[0, 1]) < 0.05
    np.testing.assert_allclose(drawn.probability, 1 / 4000)


# ------------------------------------------------------------------------------------------ proposals


def test_proposals_are_noisy_candidates_and_uniform_before_the_first_update(state):
    params = {"a": jnp.full(4000, 0.3), "b": jnp.full((4000, 2), 7.0)}
    propose = jax.jit(m2td3.propose)
    omega = np.array([[0.3, 0.5], [0.5, 0.6], [0.7, 0.4]])
    candidates = candidates_at(CONFIG, omega, [0.2, 0.5, 0.3])
    config = CONFIG.replace(omega_noise=0.08, last_omega_noise=0.04, noise_updates=100.0)
    for updates, std in ((1, 0.04), (50, 0.03), (100, 0.02), (500, 0.02)):  # half of the noise: the box is 1 wide
        after = state.replace(candidates=candidates, updates=jnp.int32(updates))
        drawn = propose(config, after, params, jnp.zeros((4000, 4)), jax.random.key(updates))
        both = np.stack([drawn["a"], drawn["b"][:, 0]], axis=-1)
        chosen = np.abs(both[:, None] - omega).sum(-1).argmin(-1)
        np.testing.assert_allclose(np.bincount(chosen) / 4000, [0.2, 0.5, 0.3], atol=0.03)
        np.testing.assert_allclose((both - omega[chosen]).std(0), std, rtol=0.06)
        np.testing.assert_array_equal(drawn["b"][:, 1], 7)

    wide = config.replace(omega_noise=3.0)
    wide = propose(wide, after.replace(updates=jnp.int32(1)), params, jnp.zeros((4000, 4)), jax.random.key(1))
    assert wide["a"].min() == 0 and wide["a"].max() == 1
    first = propose(config, state, params, jnp.zeros((4000, 4)), jax.random.key(0))
    for drawn in (first["a"], first["b"][:, 0]):
        assert scipy.stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_what_does_not_fit_is_refused(state):
    args = jnp.zeros((5, 1)), jnp.zeros((5, 4)), jax.random.key(0)
    with pytest.raises(ValueError, match=r"the environment has 1 parameters, and Config.num_params is 2"):
        jax.eval_shape(m2td3.propose, CONFIG, state, *args)
    batch, _ = batch_of()
    with pytest.raises(ValueError, match=r'batch.extras has no "env_params"'):
        jax.eval_shape(m2td3.update, CONFIG, state, batch.replace(extras={}), jax.random.key(0))
    with pytest.raises(ValueError, match=r"Config.min_probability must be in \[0, 0.25\], got 0.3"):
        m2td3.Config(num_candidates=4, min_probability=0.3)
    with pytest.raises(ValueError, match=r"Config.num_params must be an integer of at least 1, got 0"):
        m2td3.Config(num_params=0)
    with pytest.raises(ValueError, match="expected an action space Box"):
        m2td3.init(CONFIG, envs.make("jaxrl/probe_context").spec, jax.random.key(0))


# ------------------------------------------------------------------------------------- a known saddle


@dataclasses.dataclass(frozen=True)
class Saddle:
    """One step of reward -a^2 / 2 + a (z + 1/2) + z^2 / 4, at an unknown wind z.

    It is concave in a and convex in z. If z is uniform on [-1, 1], a = 1/2 is best. Against the worst wind,
    z = -2 a for a in [0, 1/2], the reward is -3/2 a^2 + a / 2, and best is a = 1/6, where z = -1/3.
    """

    max_steps: int = 1

    @property
    def spec(self):
        return Spec(Box((1,)), Box((1,), -1.0, 1.0))

    def params(self):
        return {"wind": jnp.zeros(())}

    def reset(self, params, key):
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, params, state, action, key):
        a, z = action[0], params["wind"]
        reward = -(a**2) / 2 + a * (z + 0.5) + z**2 / 4
        return state, Step(state, reward, jnp.array(True), jnp.array(False))


def trained(agent, propose=None, **settings):
    config = agent.Config(
        learning_rate=3e-3,
        target_rate=0.05,
        hidden_sizes=(32, 32),
        activation=nn.tanh,
        data=Replay(num_envs=16, capacity=16_000, batch_size=64, warmup=512, resets="fresh"),
        **settings,
    )
    loop = train.loop(agent, envs.uncertain(Saddle(), {"wind": (-1.0, 1.0)}), propose)
    run, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 2000)
    action, _ = agent.act(config, run.agent, jnp.zeros(1))
    return float(action[0]), run.agent, metrics


def uniform(config, state, params, observation, key):
    return jax.random.uniform(key, params.shape)


def test_the_saddle_is_found_where_td3_finds_the_best_on_average():
    action, state, metrics = trained(m2td3, probability_rate=0.02, noise_updates=1000.0)
    assert action == pytest.approx(1 / 6, abs=0.04)
    worst = state.candidates.omega[state.candidates.probability.argmax(), 0]
    assert worst == pytest.approx(1 / 3, abs=0.03)
    assert np.mean(metrics["worst_value"][-200:]) == pytest.approx(1 / 24, abs=0.005)
    average, _, _ = trained(td3, uniform)
    assert average == pytest.approx(1 / 2, abs=0.15)  # 0.41 to 0.60 over seeds: its rewards vary with z
