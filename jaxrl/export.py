"""Policies for programs that know nothing of jaxrl: compiled functions, and weights.

What `policy` writes runs wherever JAX is; what `weights` writes are arrays by name, for any framework:

    export.policy("runs/cartpole", "cartpole.stablehlo")
    policy = jax.export.deserialize(Path("cartpole.stablehlo").read_bytes())
    action = policy.call(observation)                        # [batch, *observation] -> [batch, *action]

    export.weights("runs/cartpole", "cartpole.safetensors")
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import checkpoint, files, log

StrPath = str | os.PathLike[str]


def policy(
    path: StrPath,
    file: StrPath,
    *,
    step: int | Literal["best"] | None = None,
    seed: int | Literal["best"] = 0,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> Path:
    """Write the policy without sampling as StableHLO, a function of observations [batch, *observation]; return where.

    Weights, normaliser and the scale of actions are part of it; the batch may have any size. `jax.export.deserialize`
    reads it, for at least half a year of later versions of JAX, on each of `platforms`.
    Needs `flatbuffers`.

    - `path`, `step`, `seed`: which run, checkpoint and seed, as in `checkpoint.load`.
    - `file`: replaced if it exists.

    Raises CheckpointError as `checkpoint.load` does.
    """
    learned = checkpoint.load(path, step=step, seed=seed)

    def act(observation: jax.Array) -> jax.Array:
        action: jax.Array = learned.agent.act(learned.config, learned.state, observation)[0]
        return action

    space = learned.spec.observation
    shape = jax.export.symbolic_shape(", ".join(["batch", *map(str, space.shape)]))
    exported = jax.export.export(jax.jit(act), platforms=platforms)(jax.ShapeDtypeStruct(shape, jnp.dtype(space.dtype)))
    return _write(file, bytes(exported.serialize()))


def weights(
    path: StrPath,
    file: StrPath,
    *,
    step: int | Literal["best"] | None = None,
    seed: int | Literal["best"] = 0,
) -> Path:
    """Write every array of the agent's State as safetensors, and return where.

    Names are paths in the State with dots between, such as `params.params.actor.MLP_0.Dense_0.kernel`; the metadata
    hold agent, configuration and spec as JSON. Arguments and errors are those of `policy`; needs `safetensors`.
    """
    import safetensors.numpy

    learned = checkpoint.load(path, step=step, seed=seed)
    arrays = {
        jax.tree_util.keystr(where, simple=True, separator="."): np.asarray(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(learned.state)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }
    described: dict[str, Any] = {"config": learned.config, "spec": learned.spec}
    metadata = {name: json.dumps(log.describe(value)) for name, value in described.items()}
    return _write(file, safetensors.numpy.save(arrays, metadata | {"agent": learned.agent.__name__}))


def _write(file: StrPath, content: bytes) -> Path:
    """Write a file, in a directory that is made if it is not there; return where."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(file) as unfinished:
        unfinished.write_bytes(content)
    return file
