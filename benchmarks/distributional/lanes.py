"""Runs of several settings and seeds as lanes of one program, looked at on the way."""

import os

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # each core takes its share of the seeds

from jaxrl import train  # noqa: E402
from jaxrl.types import canonical  # noqa: E402


def run(agent, env, config, rows, fields, seeds, steps, measure, points=1):
    """Train, and `measure(config, state, key)` after each of `points` parts of the steps: `[R, seeds, points, ...]`.

    `fields(row)` makes the fields of `config` that vary, of the traced numbers `rows` `[R]`. Rows share the keys.
    """
    loop = train.loop(agent, env)

    def lane(row, key):
        own = canonical(config).replace(**fields(row))
        train_key, *keys = jax.random.split(key, 1 + points)

        def part(state, key):
            state, _ = train.scan(loop, own, state, steps // points)
            return state, measure(own, state.agent, key)

        return jax.lax.scan(part, loop.init(own, train_key), jnp.stack(keys))[1]

    mesh = jax.make_mesh((jax.device_count(),), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    axes = jax.sharding.PartitionSpec("seed" if seeds % jax.device_count() == 0 else None)
    keys = jax.device_put(jax.random.split(jax.random.key(0), seeds), jax.sharding.NamedSharding(mesh, axes))
    program = jax.jit(jax.vmap(jax.vmap(lane, (None, 0)), (0, None)))
    return jax.tree.map(np.asarray, program(jnp.asarray(rows), keys))
