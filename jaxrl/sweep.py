"""Settings times seeds in one compiled call: every lane has a configuration of its own.

>>> from jaxrl import sweep
>>> from jaxrl.agents import ppo
>>> configs = sweep.grid(ppo.Config(), learning_rate=[1e-3, 1e-2], discount=[0.9, 0.95, 0.99])
>>> [round(float(x), 3) for x in configs.learning_rate], [round(float(x), 2) for x in configs.discount]
([0.001, 0.001, 0.001, 0.01, 0.01, 0.01], [0.9, 0.95, 0.99, 0.9, 0.95, 0.99])
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import evaluate, train
from jaxrl.types import Environment, Metrics, PyTree, canonical, check_positive


class Result(NamedTuple):
    """What `run` returns, for C settings and P points in time."""

    run: train.RunState  # leaves [C, seeds, ...]
    steps: jax.Array  # [P], environment transitions of each lane
    metrics: Metrics  # each [C, seeds, P]
    returns: jax.Array  # [C, seeds, episodes], of the last policies without sampling


def stack(config: Any, **values: Any) -> Any:
    """Configurations side by side: a `config` all of whose leaves have a leading axis [C].

    Each of `values` holds a field's C numbers, or is a pytree such as `risk.CVaR(levels)` with leaves [C]. Fields that
    are not named are the same in all. Use it under `vmap`, or with `run`.

    Raises ValueError for an unknown field, a static one (it fixes shapes: lanes of one program share it), for lengths
    that differ, and for a value that the configuration refuses.

    >>> from jaxrl.agents import ppo
    >>> stack(ppo.Config(), learning_rate=[1e-4, 1e-3]).clip_ratio
    Array([0.2, 0.2], dtype=float32)
    """
    values = _columns(config, values)
    lengths = {name: _length(name, value) for name, value in values.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"stack expects values of one length, got {lengths}; grid makes every combination of them")
    rows = (jax.tree.map(operator.itemgetter(i), values) for i in range(next(iter(lengths.values()))))
    lanes = [canonical(config.replace(**jax.tree.map(_number, row))) for row in rows]  # each of them is checked
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)


def grid(config: Any, **axes: Any) -> Any:
    """`stack` of every combination of the values; the field that is named last runs fastest.

    Raises ValueError as `stack` does.
    """
    columns = _columns(config, axes)
    lengths = [_length(name, value) for name, value in columns.items()]
    index = zip(columns, np.unravel_index(np.arange(math.prod(lengths)), lengths), strict=True)
    return stack(config, **{name: jax.tree.map(operator.itemgetter(i), columns[name]) for name, i in index})


def run(
    agent: Any,
    configs: Any,
    env: Environment,
    key: jax.Array,
    *,
    steps: float,
    seeds: int = 1,
    points: int = 100,
    episodes: int = 16,
    propose: train.Propose | None = None,
) -> Result:
    """Train every configuration with every seed: one compiled call, without files, progress or checkpoints.

    Seed `i` starts from `split(key, seeds)[i]` under every configuration, as in `train.fit`. Where there are several
    devices, as many as divide the lanes take equal shares of them.

    - `configs`: of `stack` or `grid`, leaves [C, ...].
    - `steps`: environment transitions of each lane, rounded up to whole points in time.
    - `points`: in time at which metrics are kept, spread evenly; at most one per loop step.
    - `episodes`: of the evaluation without sampling at the end, with the same starts for every lane.

    Raises ValueError for a configuration without the leading axis, and for numbers that are not positive.
    """
    check_positive("run", seeds=seeds, points=points, episodes=episodes)
    if steps <= 0:
        raise ValueError(f"steps must be positive, got {steps}")
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(configs)}
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError("configs has leaves without a common leading axis; make it with sweep.stack or sweep.grid")
    count = next(iter(shapes))[0]
    iterations = math.ceil(steps / configs.data.transitions)
    length = math.ceil(iterations / points)
    points = math.ceil(iterations / length)

    devices = train.devices_for(count * seeds)
    program = _program(agent, env, propose, length, points, episodes, devices)
    keys = jax.random.split(key, seeds)
    lanes = jax.tree.map(lambda leaf: jnp.repeat(leaf, seeds, axis=0), configs), jnp.tile(keys, count)
    apart = jax.tree.map(lambda leaf: leaf.reshape(count, seeds, *leaf.shape[1:]), program(*lanes))
    return Result(apart[0], configs.data.transitions * length * jnp.arange(1, points + 1), *apart[1:])


@functools.cache
def _program(
    agent: Any,
    env: Environment,
    propose: train.Propose | None,
    length: int,
    points: int,
    episodes: int,
    devices: tuple[jax.Device, ...],
) -> Any:
    """The compiled function of lanes: (configs, keys) -> (run, metrics [lanes, points], returns [lanes, episodes])."""
    loop = train.loop(agent, env, propose)

    def lane(config: Any, key: jax.Array) -> tuple[train.RunState, Metrics, jax.Array]:
        def point(run: train.RunState, _: None) -> tuple[train.RunState, Metrics]:
            run, metrics = train.scan(loop, config, run, length)
            return run, jax.tree.map(lambda leaf: leaf[-1], metrics)

        run, metrics = jax.lax.scan(point, loop.init(config, key), length=points)
        final = evaluate.evaluate(agent, config, run.agent, env, jax.random.key(0), episodes=episodes)
        return run, metrics, final.returns

    lanes = jax.vmap(lane)
    if len(devices) > 1:
        share = train.sharing(devices)
        lanes = jax.shard_map(lanes, mesh=share.mesh, in_specs=share.spec, out_specs=share.spec, check_vma=False)
    return jax.jit(lanes)


def _columns(config: Any, values: dict[str, Any]) -> dict[str, PyTree]:
    """The values as pytrees of arrays; raise ValueError for a field that is not there, or is static."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields) or sorted(fields)
            raise ValueError(f"{type(config).__qualname__} has no field {name!r}; did you mean {', '.join(near)}?")
        if not fields[name].metadata.get("pytree_node", True):
            raise ValueError(
                f"{type(config).__qualname__}.{name} is static: it fixes shapes or control flow, which lanes of one "
                f"program share; call run once for each of its values"
            )
    if not values:
        raise ValueError("no field is named; expected such as learning_rate=jnp.geomspace(1e-4, 1e-2, 8)")
    columns = {name: np.asarray(x) if isinstance(x, (list, tuple)) else x for name, x in values.items()}
    return {name: jax.tree.map(np.asarray, column) for name, column in columns.items()}


def _length(name: str, column: PyTree) -> int:
    """How many values there are; raise ValueError unless all leaves agree on it."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(column)]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1 or not shapes[0][0]:
        raise ValueError(f"{name} has leaves of shapes {shapes}, expected values along one leading axis")
    return int(shapes[0][0])


def _number(leaf: np.ndarray) -> Any:
    return leaf.item() if leaf.ndim == 0 else leaf
