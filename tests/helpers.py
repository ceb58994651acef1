"""What several tests need."""

import importlib
import pkgutil

import jax
import numpy as np

from jaxrl import agents
from jaxrl.types import Replay, Rollout

AGENTS = [importlib.import_module(f"jaxrl.agents.{module.name}") for module in pkgutil.iter_modules(agents.__path__)]


def small(agent, **settings):
    """A configuration of the agent that compiles in a moment, with every option that has a number switched on."""
    config = agent.Config()
    if isinstance(config.data, Replay):
        data = Replay(num_envs=4, capacity=64, batch_size=8, n_step=config.data.n_step, warmup=8)
    else:
        data = Rollout(num_envs=4, length=8, restart=config.data.restart)
    config = config.replace(data=data, learning_rate=0.01)
    if hasattr(config, "hidden_sizes"):
        config = config.replace(hidden_sizes=(8, 8))
    return config.replace(**settings)


def assert_same(a, b):
    """Two pytrees are equal to the last bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map_with_path(_same_leaf, a, b)


def _same_leaf(path, a, b):
    if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
