"""TC-RARL's own mathematics: how far the adversary moves, which parameters the target looks at, and a known game."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, window
from test_rarl import LEARNING, Duel, payoff, transitions

from jaxrl import envs, rollout, train
from jaxrl.agents import rarl, sac, tc_rmdp, td3
from jaxrl.envs import memory, tiny

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")
ENV = envs.uncertain(tiny.PointMass(max_steps=7), {"mass": (0.5, 2.0), "control_cost": (0.0, 0.1)})
CONFIG = small(tc_rmdp, num_params=2, largest_move=0.1)


def fresh(config, env=ENV):
    return jax.jit(tc_rmdp.init, static_argnums=1)(config, env.spec, jax.random.key(0))


@pytest.fixture(scope="module")
def state():
    made = fresh(CONFIG)
    return made.replace(target=jax.tree.map(lambda leaf: leaf + 0.1, made.target), updates=jnp.int32(1))


def q(params, observation, psi, action):
    """Q_i(s, psi', a), [K, B], from the networks of SAC."""
    inputs = jnp.concatenate([jnp.asarray(action), 2 * jnp.asarray(psi, jnp.float32) - 1], -1)
    return sac.critics(CONFIG, params, observation, inputs)[..., 0]


# -------------------------------------------------------------------------------------- the adversary


@pytest.mark.parametrize("updates", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"exploration_noise": 9.0, "largest_move": 0.4}])
def test_no_parameter_moves_by_more_than_the_largest_move(state, updates, settings):
    """On every step of a rollout over several episodes, each of which begins at the nominal model."""
    config, played = CONFIG.replace(**settings), state.replace(updates=jnp.int32(updates))

    def collect(config, state, key):
        def policy(observation, key):
            return tc_rmdp.act(config, state, observation, key)

        lanes = rollout.lanes(ENV, 16, varying=True)
        return rollout.collect(ENV, policy, lanes, key, 30, **rollout.proposed(tc_rmdp.propose, config, state))[1]

    batch = jax.jit(collect)(config, played, jax.random.key(0))
    psi = np.asarray(batch.extras["env_params"])
    ended = np.asarray(batch.terminated | batch.truncated)
    assert ended.sum() == 4 * 16
    before = np.concatenate([np.broadcast_to(ENV.params(), (1, 16, 2)), psi[:-1]])
    before[1:][ended[:-1]] = ENV.params()
    moves = abs(psi - before)
    largest = settings.get("largest_move", 0.1)
    assert moves.max() <= largest * (1 + 1e-5)
    assert moves.max() > 0.1 * largest
    assert psi.min() >= 0 and psi.max() <= 1
    if settings:
        assert psi.min() == 0 or psi.max() == 1  # the walls are reached


def test_a_nominal_model_outside_of_the_box_goes_no_further_out():
    psi, choice = jnp.array([-1.0, -0.05, 1.5, 0.5]), jnp.array([[1.0], [-1.0]])
    moved = jax.jit(tc_rmdp.move)(CONFIG, psi, choice)
    np.testing.assert_allclose(moved, [[-0.9, 0.05, 1.5, 0.6], [-1.0, -0.05, 1.4, 0.4]], atol=1e-6)


def test_the_adversary_sees_the_parameters_and_keeps_the_others(state):
    params = {"a": jnp.linspace(0, 1, 50), "b": jnp.full((50, 2), 0.5)}
    observation = jnp.broadcast_to(window(ENV, 1).observation[0, 0], (50, 4))
    quiet = CONFIG.replace(exploration_noise=0.0)
    chosen = jax.jit(tc_rmdp.propose)(quiet, state, params, observation, jax.random.key(0))
    psi = np.stack([params["a"], params["b"][:, 0]], axis=-1)
    seen = np.concatenate([observation, 2 * psi - 1], axis=-1)
    choice = np.asarray(rarl.adversary(CONFIG, state.params, jnp.asarray(seen)))
    assert np.ptp(choice[:, 0]) > 1e-3
    expected = np.clip(psi + 0.1 * choice, 0, 1)
    np.testing.assert_allclose(chosen["a"], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(chosen["b"], np.stack([expected[:, 1], np.full(50, 0.5)], -1), atol=1e-6)


# ------------------------------------------------------------------------------------------ the losses


def ends(batch, rows):
    """The successor of each window [rows, 6], the parameters it comes from, and the number of steps until then."""
    steps = [1 if b in (1, 2) else rows for b in range(6)]
    last = jnp.stack([batch.next_observation[m - 1, b] for b, m in enumerate(steps)])
    return last, jnp.stack([batch.extras["env_params"][m - 1, b] for b, m in enumerate(steps)]), steps


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("largest", [0.0, 0.3])
def test_target_is_the_value_after_the_next_move(state, rows, largest):
    """In NumPy, for each member of the batch by itself; with L = 0 at the parameters of the last step."""
    config = CONFIG.replace(discount=0.9, target_noise=0.4, noise_clip=0.3, largest_move=largest)
    batch = transitions(rows)
    targets = jax.jit(tc_rmdp.target)(config, state, batch, jax.random.key(5))
    last, psi, steps = ends(batch, rows)
    seen = jnp.concatenate([last, 2 * psi - 1], axis=-1)
    choices = [td3.actor(config, ENV.spec, state.target, last), rarl.adversary(config, state.target, seen)]
    for player, key in enumerate(jax.random.split(jax.random.key(5))):
        noise = np.clip(0.4 * np.asarray(jax.random.normal(key, (6, 2))), -0.3, 0.3)
        choices[player] = np.clip(np.asarray(choices[player]) + noise, -1, 1)
    moved = np.clip(np.asarray(psi) + largest * choices[1], 0, 1)
    values = np.asarray(q(state.target["critics"], last, moved, choices[0]))
    for b, m in enumerate(steps):
        expected = sum(0.9**k * batch.reward[k, b] for k in range(m))
        if b != 1:  # the one that terminated
            expected += 0.9**m * values[:, b].min()
        np.testing.assert_allclose(targets[b, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_adversary_descends_what_the_actor_climbs(state):
    """Both gradients, written out by the chain rule from those of Q_1 alone."""
    batch = transitions(3)
    climbed = jax.jit(jax.grad(tc_rmdp.actor_loss))(state.params["actor"], CONFIG, state, batch)
    descended = jax.jit(jax.grad(tc_rmdp.adversary_loss))(state.params["adversary"], CONFIG, state, batch)
    critics = state.params["critics"]

    first, used = batch.observation[0], batch.extras["env_params"][0]
    action, back = jax.vjp(lambda p: td3.actor(CONFIG, ENV.spec, {"actor": p}, first), state.params["actor"])
    slope = jax.grad(lambda action: jnp.mean(q(critics, first, used, action)[0]))(action)
    expected = back(-slope)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), climbed, expected)

    last, psi, _ = ends(batch, 3)
    answer = td3.actor(CONFIG, ENV.spec, state.params, last)
    seen = jnp.concatenate([last, 2 * psi - 1], axis=-1)
    choice, back = jax.vjp(lambda p: rarl.adversary(CONFIG, {"adversary": p}, seen), state.params["adversary"])
    alive = np.array([1, 0, 1, 1, 1, 1])  # the second has terminated
    moved = psi + 0.1 * choice
    inside = (moved >= 0) & (moved <= 1)
    slope = jax.grad(lambda moved: jnp.sum(alive * q(critics, last, moved, answer)[0]) / 5)(jnp.clip(moved, 0, 1))
    expected = back(jnp.where(inside, 0.1 * slope, 0))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), descended, expected)
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(descended)) > 1e-5


def test_what_does_not_fit_is_refused(state):
    with pytest.raises(ValueError, match=r'batch.extras has no "env_params", expected the parameters'):
        tc_rmdp.update(CONFIG, state, window(ENV, 1), jax.random.key(0))
    with pytest.raises(ValueError, match=r"Config.largest_move must be in \[0, 1\], got 2"):
        tc_rmdp.Config(largest_move=2.0)


# ---------------------------------------------------------------------------------- what the agent sees


def test_environments_show_parameters_and_memory():
    """Step by step beside the environment within, with parameters that change."""
    within = envs.uncertain("jaxrl/pendulum", {"mass": (0.5, 2.5), "length": (0.5, 1.5)})
    oracle, stacked = memory.Oracle(within), memory.Stacked(memory.Oracle(within))
    assert oracle.spec.observation.shape == (5,) and stacked.spec.observation.shape == (11,)
    assert oracle.spec.observation.low[:3] == (-1, -1, -np.inf) and oracle.max_steps == stacked.max_steps == 200
    psi = np.random.default_rng(0).uniform(size=(4, 2)).astype(np.float32)
    key = jax.random.key(3)
    with jax.debug_key_reuse(False):
        state, first = within.reset(psi[0], key)
        seeing, shown = oracle.reset(psi[0], key)
        remembering, both = stacked.reset(psi[0], key)
        np.testing.assert_allclose(shown, [*first, *psi[0]])
        np.testing.assert_allclose(both, [*shown, *shown, 0])
        for params, torque in zip(psi[1:], [0.5, -2.0, 1.0], strict=True):
            action = jnp.array([torque])
            state, step = within.step(params, state, action, key)
            seeing, seen = oracle.step(params, seeing, action, key)
            remembering, stack = stacked.step(params, remembering, action, key)
            np.testing.assert_allclose(seen.observation, [*step.observation, *params])
            np.testing.assert_allclose(stack.observation, [*seen.observation, *shown, torque])
            np.testing.assert_allclose(stack.reward, step.reward)
            shown = seen.observation
    with pytest.raises(ValueError, match=r"Stacked.env acts in Discrete\(.*\), expected a Box with one axis"):
        memory.Stacked(envs.make("jaxrl/probe_context"))


@pytest.mark.parametrize("wrapper", [memory.Oracle, memory.Stacked])
def test_the_loop_trains_what_sees_more(wrapper):
    env = wrapper(ENV)
    config = small(tc_rmdp, num_params=2)
    loop = train.loop(tc_rmdp, env)
    _, metrics = train.scan(loop, config, loop.init(config, jax.random.key(0)), 8)
    assert np.isfinite(metrics["critic_loss"][-1])


def solution(largest, discount, size=41, contexts=21):
    """The time-constrained game by value iteration on a grid: actions and pushes [contexts, size], over (s, u)."""
    s, grid = np.linspace(-1, 1, contexts), np.linspace(-1, 1, size)
    table = payoff(s[:, None, None], grid[:, None], grid)  # [s, a, u']
    reach = abs(grid[:, None] - grid) <= largest + 1e-9  # [u, u']
    later = np.zeros(size)
    for _ in range(60):
        q = table + discount * later
        worst = np.where(reach[None, :, None], q[:, None], np.inf).min(-1)  # [s, u, a]
        best = np.where(reach[None], q.max(1)[:, None], np.inf)  # [s, u, u']
        later = worst.max(-1).mean(0)
    assert np.max(best.min(-1) - worst.max(-1)) < 0.01  # it has a value, but for the grid
    return s, grid, grid[worst.argmax(-1)], grid[best.argmin(-1)]


def test_it_finds_the_saddle_of_a_known_game():
    """The oracle, against an adversary that pushes by at most 0.2 more or less at each step."""
    env = memory.Oracle(envs.uncertain(Duel(max_steps=20), {"push": (-1.0, 1.0)}))
    config = tc_rmdp.Config(largest_move=0.1, **LEARNING)
    loop = train.loop(tc_rmdp, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 3000)
    s, grid, actions, pushes = solution(0.2, 0.5)
    for i, j in [(2, 16), (2, 20), (2, 24), (10, 20), (18, 16), (18, 20), (18, 24)]:
        psi = jnp.array([(1 + grid[j]) / 2])
        observation = jnp.array([s[i], psi[0]])
        action, _ = tc_rmdp.act(config, run.agent, observation)
        moved = tc_rmdp.move(config, psi, tc_rmdp.adversary(config, run.agent.params, observation, psi))
        np.testing.assert_allclose(action[0], actions[i, j], atol=0.1)
        np.testing.assert_allclose(2 * moved[0] - 1, pushes[i, j], atol=0.08)
