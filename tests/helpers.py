"""What several tests need."""

import contextlib
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import agents
from jaxrl.types import Replay, Rollout, Transition

AGENTS = [importlib.import_module(f"jaxrl.agents.{module.name}") for module in pkgutil.iter_modules(agents.__path__)]


@contextlib.contextmanager
def jax_settings(**values):
    """JAX's settings for a while."""
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def small(agent, **settings):
    """A configuration of the agent that compiles in a moment, with every option that has a number switched on."""
    config = agent.Config()
    if isinstance(config.data, Replay):
        data = Replay(num_envs=4, capacity=64, batch_size=8, n_step=config.data.n_step, warmup=8)
    else:
        data = Rollout(num_envs=4, length=8, restart=config.data.restart)
    config = config.replace(data=data, learning_rate=0.01)
    for sizes in ("hidden_sizes", "critic_hidden_sizes"):
        if hasattr(config, sizes):
            config = config.replace(**{sizes: (8, 8)})
    for count in ("num_epochs", "num_minibatches"):
        if hasattr(config, count):
            config = config.replace(**{count: min(getattr(config, count), 4)})
    return config.replace(**settings)


def window(env, rows, batch=6, seed=0):
    """Random transitions [rows, batch]: the second of the batch terminates in its first row, the third truncates."""
    rng = np.random.default_rng(seed)
    size = env.spec.observation.shape[0]
    flags = np.zeros((2, rows, batch), bool)
    flags[0, 0, 1] = flags[1, 0, 2] = True
    return Transition(
        observation=jnp.asarray(rng.normal(size=(rows, batch, size)), jnp.float32),
        action=jnp.asarray(rng.uniform(-1, 1, size=(rows, batch, *env.spec.action.shape)), jnp.float32),
        reward=jnp.asarray(rng.normal(size=(rows, batch)), jnp.float32),
        next_observation=jnp.asarray(rng.normal(size=(rows, batch, size)), jnp.float32),
        terminated=jnp.asarray(flags[0]),
        truncated=jnp.asarray(flags[1]),
    )


def assert_same(a, b):
    """Two pytrees are equal to the last bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map_with_path(_same_leaf, a, b)


def moved(old, new):
    """Whether anything in a pytree has changed."""
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), old, new)))


def _same_leaf(path, a, b):
    if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
