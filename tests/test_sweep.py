"""Settings times seeds: each lane is the run of its own configuration and seed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import jax_settings, small

from jaxrl import envs, evaluate, risk, sweep, train
from jaxrl.agents import ppo, sac
from jaxrl.distributional import critics

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")
ENV = envs.make("jaxrl/point_mass", max_steps=5)


def test_a_lane_is_the_run_of_its_configuration_and_seed():
    config, key = small(ppo), jax.random.key(0)
    configs = sweep.grid(config, learning_rate=[0.01, 0.02], clip_ratio=[0.01, 0.02, 0.04])
    with jax_settings(jax_debug_key_reuse=False):  # seeds have the same keys in every lane
        result = sweep.run(ppo, configs, ENV, key, steps=4 * 32, seeds=2, points=2, episodes=3)
        loop = train.loop(ppo, ENV)
        alone = config.replace(learning_rate=0.02, clip_ratio=0.01)
        run, metrics = train.scan(loop, alone, loop.init(alone, jax.random.split(key, 2)[1]), 4)
        returns = evaluate.evaluate(ppo, alone, run.agent, ENV, jax.random.key(0), episodes=3).returns
    np.testing.assert_array_equal(result.steps, [64, 128])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[3, 1], b, rtol=1e-3, atol=1e-4),
        (result.run.agent.params, result.returns),
        (run.agent.params, returns),
    )
    for name, values in metrics.items():
        np.testing.assert_allclose(result.metrics[name][3, 1], values[1::2], rtol=1e-3, atol=1e-4, err_msg=name)
    assert np.unique(result.returns[..., 0]).size == 12  # no two lanes are the same


def test_grid_is_every_combination():
    rates, discounts = [1e-3, 1e-2, 1e-1], [0.9, 0.99]
    configs = sweep.grid(ppo.Config(), learning_rate=rates, discount=discounts)
    lanes = list(zip(configs.learning_rate.tolist(), configs.discount.tolist(), strict=True))
    np.testing.assert_allclose(lanes, list(itertools.product(rates, discounts)), rtol=1e-6)
    assert all(leaf.shape == (6,) for leaf in jax.tree.leaves(configs))


def test_a_measure_of_risk_is_swept_by_its_level():
    config = sac.Config(critic=critics.Quantile(5), risk=risk.CVaR(0.5))
    configs = sweep.grid(config, risk=risk.CVaR(jnp.array([0.1, 0.5, 1.0])), discount=[0.9, 0.99])
    np.testing.assert_allclose(configs.risk.level, np.repeat([0.1, 0.5, 1.0], 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": [1.0]}, r"Config has no field 'learning_rat'; did you mean learning_rate"),
        ({"num_epochs": [1, 2]}, r"Config.num_epochs is static: .* call run once for each of its values"),
        ({"discount": [0.9, 0.99], "learning_rate": [1e-3]}, r"one length, got {'discount': 2, 'learning_rate': 1}"),
        ({"discount": 0.9}, r"discount has leaves of shapes \[\(\)\], expected values along one leading axis"),
        ({"discount": []}, r"discount has leaves of shapes \[\(0,\)\]"),
        ({"discount": [0.9, 1.5]}, r"Config.discount must be in \[0, 1\), got 1.5"),
        ({}, r"no field is named"),
    ],
)
def test_what_cannot_be_swept_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        sweep.stack(ppo.Config(), **values)


def test_a_run_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="without a common leading axis; make it with"):
        sweep.run(ppo, ppo.Config(), ENV, jax.random.key(0), steps=1)
    configs = sweep.stack(ppo.Config(), discount=[0.9])
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        sweep.run(ppo, configs, ENV, jax.random.key(0), steps=0)
    with pytest.raises(ValueError, match=r"run.seeds must be an integer of at least 1, got 0"):
        sweep.run(ppo, configs, ENV, jax.random.key(0), steps=1, seeds=0)
