"""Agents find the values of the probe environments, which are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import envs, evaluate, normalise, train
from jaxrl.agents import ppo
from jaxrl.types import Rollout

DISCOUNT = 0.8
QUICK = ("jaxrl/probe_context", "jaxrl/probe_truncation")
PROBES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in envs.names("jaxrl")
    if "probe" in name
]


@pytest.mark.parametrize("name", PROBES)
def test_ppo_finds_the_values_of_a_probe(name):
    continuous = name in ("jaxrl/probe_action", "jaxrl/probe_truncation")  # both kinds of policy are tried
    env = envs.make(name, continuous=continuous)
    known = env.values(DISCOUNT)
    config = ppo.Config(
        learning_rate=0.01,
        discount=DISCOUNT,
        anneal_updates=150.0,
        hidden_sizes=(16,),
        data=Rollout(num_envs=16, length=8),
    )
    loop = train.loop(ppo, env)
    run, _ = train.scan(loop, config, loop.init(config, jax.random.key(0)), 150)
    observation = normalise.apply(run.agent.normaliser, known.observation)
    _, values = ppo.apply(config, env.spec, run.agent.params, observation)
    actions, _ = ppo.act(config, run.agent, known.observation)
    noise = 0.1 if continuous else 0.02  # a sampled action is not the best one, and the values are those of sampling
    spread = jnp.exp(2 * run.agent.params["params"]["policy"]["log_std"][0]) if continuous else 0.0
    lost = spread if name == "jaxrl/probe_action" else 0.0  # the reward is 1 - (action - 1/2)^2
    np.testing.assert_allclose(values, known.value - lost, atol=noise * max(1, float(abs(known.value).max())))
    if name in ("jaxrl/probe_action", "jaxrl/probe_context"):
        np.testing.assert_allclose(actions, known.action, atol=noise)


@pytest.mark.slow
def test_ppo_improves_on_the_point_mass():
    """It comes within a small multiple of the return of standing still at the goal, far above where it begins."""
    env = envs.make("jaxrl/point_mass")
    config = ppo.Config(learning_rate=3e-3, data=Rollout(num_envs=32, length=32))
    loop = train.loop(ppo, env)
    run = loop.init(config, jax.random.key(0))
    assess = jax.jit(lambda state: evaluate.evaluate(ppo, config, state, env, jax.random.key(1), episodes=32).returns)
    before = assess(run.agent).mean()
    run, _ = train.scan(loop, config, run, 60)
    random = evaluate.random_returns(env, jax.random.key(1), episodes=32).mean()
    after = assess(run.agent).mean()
    assert after > before / 3 and after > random / 3, (before, random, after)  # returns are negative
