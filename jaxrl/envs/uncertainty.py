"""Families of environments: named physical parameters within ranges, as a point of the unit box."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrl.envs import mechanics
from jaxrl.envs.physics import Physics
from jaxrl.types import Environment, PyTree, Spec, Step

Ranges = dict[str, tuple[float, float]]

# The least value of a parameter, by the last word of its name, and whether it is itself allowed.
LEAST = {
    **dict.fromkeys(("mass", "length", "dt"), (0.0, False)),
    **dict.fromkeys(("friction", "damping", "gravity"), (0.0, True)),
}


@dataclasses.dataclass(frozen=True)
class Uncertain:
    """A family of environments; `jaxrl.envs.uncertain` makes it, and says what it is.

    - `env`: the environment.
    - `names`, `low`, `high`: its K uncertain parameters and their ranges, in physical units.
    - `inertia`: whether the inertia of a body is "scaled" with its mass or "fixed".
    """

    env: Environment
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    inertia: Literal["scaled", "fixed"] = "scaled"

    def __post_init__(self) -> None:
        if self.inertia not in ("scaled", "fixed"):
            raise ValueError(f"inertia is {self.inertia!r}, expected 'scaled' or 'fixed' (as RRLS has it)")
        if not self.names:
            raise ValueError(f"ranges is empty, expected some of {_listed(self._offered)}")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if name not in self._offered:
                raise ValueError(_unknown(self.env, name, self._offered))
            _check_range(name, low, high)
        _check_disjoint(self.names, [self._offered[name] for name in self.names])
        self._check_limits()

    @property
    def spec(self) -> Spec:
        return self.env.spec

    @property
    def max_steps(self) -> int:
        return self.env.max_steps

    def params(self) -> jax.Array:
        """The nominal model, [K]."""
        return jnp.asarray(self._nominal(jnp.result_type(float)))

    def physical(self, params: ArrayLike) -> jax.Array:
        """The parameters in physical units, in the order of `names`, [..., K]; `params` [..., K] in the unit box.

        Raises ValueError for another shape, and for numbers outside the box (which the nominal model may be); traced
        ones are clipped.
        """
        params = jnp.asarray(params, jnp.result_type(params, float))
        nominal, low, high = self._units(params.dtype)
        if params.shape[-1:] != nominal.shape:
            raise ValueError(
                f"params has shape {params.shape}, expected [..., {len(self.names)}], a number in [0, 1] for each of "
                f"{', '.join(self.names)}"
            )
        at = self._nominal(params.dtype)
        self._check_inside(params, at)
        value = nominal + (params - at) * (high - low)  # exact at the nominal model
        return jnp.clip(value, np.minimum(low, nominal), np.maximum(high, nominal))

    def normalised(self, **values: ArrayLike) -> jax.Array:
        """The params [..., K] of these `values` in physical units, numbers or arrays [...]; others are nominal.

        Raises ValueError for a name that is not in `names`.
        """
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not varied in this family, expected some of {_listed(self.names)}")
        nominal, low, high = self._units(jnp.result_type(float))
        columns = [values.get(name, default) for name, default in zip(self.names, nominal, strict=True)]
        return (jnp.stack(jnp.broadcast_arrays(*map(jnp.asarray, columns)), axis=-1) - low) / (high - low)

    def reset(self, params: jax.Array, key: jax.Array) -> tuple[PyTree, jax.Array]:
        return self.env.reset(self._inner(params), key)

    def step(self, params: jax.Array, state: PyTree, action: jax.Array, key: jax.Array) -> tuple[PyTree, Step]:
        return self.env.step(self._inner(params), state, action, key)

    # ------------------------------------------------------------------------- of the environment within

    def _inner(self, params: jax.Array) -> PyTree:
        """The parameters of the environment within."""
        values = self.physical(params)
        if self._model is not None:
            return mechanics.replaced(self._model, [self._offered[name] for name in self.names], values)
        new = dict(zip(self.names, values, strict=True))
        return jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(new.get(_name(path), leaf), jnp.result_type(leaf)), self.env.params()
        )

    @functools.cached_property
    def _model(self) -> mechanics.Model | None:
        return mechanics.model(self.env.env) if isinstance(self.env, Physics) else None

    @functools.cached_property
    def _offered(self) -> dict[str, mechanics.Parameter]:
        return offered(self.env, self.inertia)

    def _units(self, dtype: jnp.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nominal model and the ranges in physical units, each [K]."""
        nominal = [self._offered[name].nominal for name in self.names]
        return np.asarray(nominal, dtype), np.asarray(self.low, dtype), np.asarray(self.high, dtype)

    def _nominal(self, dtype: jnp.dtype) -> np.ndarray:
        """The nominal model in the unit box, [K], or outside it."""
        nominal, low, high = self._units(dtype)
        return (nominal - low) / (high - low)

    # ------------------------------------------------------------------------------------------- checks

    def _check_inside(self, params: jax.Array, nominal: np.ndarray) -> None:
        """Raises ValueError for a concrete number outside the unit box, widened to the nominal model."""
        if isinstance(params, jax.core.Tracer):
            return
        rounding = 8 * float(jnp.finfo(params.dtype).eps)
        least, most = np.minimum(0, nominal) - rounding, np.maximum(1, nominal) + rounding
        numbers = np.asarray(params)
        outside = np.argwhere((numbers < least) | (numbers > most))
        if outside.size:
            index = int(outside[0][-1])
            raise ValueError(
                f"params has {numbers[tuple(outside[0])]:g} for {self.names[index]}, expected a number in "
                f"[0, 1], for {self.low[index]:g} to {self.high[index]:g}; env.normalised({self.names[index]}=...) "
                f"takes physical units"
            )

    def _check_limits(self) -> None:
        """Raises ValueError where the lower limit of a joint could come to lie above the upper one."""
        for joint, _, side in (name.rpartition("_") for name in self.names):
            if side in ("lower", "upper") and f"{joint}_upper" in self._offered:
                most, least = self._range(f"{joint}_lower")[1], self._range(f"{joint}_upper")[0]
                if most >= least:
                    raise ValueError(f"{joint}_lower may be {most:g} while {joint}_upper is {least:g}, expected less")

    def _range(self, name: str) -> tuple[float, float]:
        """The range of a parameter, which is a point if it is certain."""
        if name in self.names:
            index = self.names.index(name)
            return self.low[index], self.high[index]
        return self._offered[name].nominal, self._offered[name].nominal


# ------------------------------------------------------------------------------------ what there is


def offered(env: Environment, inertia: str = "scaled") -> dict[str, mechanics.Parameter]:
    """The parameters of `env` that act, by name, with their nominal values.

    >>> from jaxrl import envs
    >>> list(offered(envs.make("jaxrl/pendulum")))
    ['gravity', 'mass', 'length', 'max_speed', 'max_torque', 'dt']
    """
    if isinstance(env, Physics):
        model = mechanics.model(env.env)
        return {} if model is None else mechanics.parameters(model, inertia)
    return {
        _name(path): mechanics.Parameter(float(leaf), ((_name(path), ()),))
        for path, leaf in jax.tree_util.tree_leaves_with_path(env.params())
        if jnp.shape(leaf) == () and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }


def _name(path: Any) -> str:
    """A leaf of the parameters of an environment, such as `mass`, or `env.mass` below a wrapper."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _listed(names: Any) -> str:
    return ", ".join(names) or "none: this environment has no parameters that are single numbers"


def _unknown(env: Environment, name: str, offered: dict[str, mechanics.Parameter]) -> str:
    """Why `name` is not offered, and what is."""
    kind = name.rpartition("_")[2]
    why = ""
    model = mechanics.model(env.env) if isinstance(env, Physics) else None
    if model is not None:
        readers = [engine for engine, live in mechanics.LIVE.items() if kind in live]
        if readers and model.engine not in readers:
            why = f"; the engine {model.engine!r} does not read {kind}, {' and '.join(readers)} do"
        elif name == "friction":
            why = ", since nothing in it touches with friction"
    return f"{env} has no uncertain parameter {name!r}{why}; expected some of {_listed(offered)}"


def _check_range(name: str, low: float, high: float) -> None:
    least, allowed = LEAST.get(name.rpartition("_")[2].rpartition(".")[2], (-math.inf, True))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the range of {name} is ({low}, {high}), expected finite (low, high) with low < high")
    if low < least or (low == least and not allowed):
        expected = f"at least {least:g}" if allowed else f"more than {least:g}"
        raise ValueError(f"the range of {name} begins at {low}, expected {expected}")


def _check_disjoint(names: tuple[str, ...], parameters: list[mechanics.Parameter]) -> None:
    """Raises ValueError where two parameters stand for the same number, as `gear` and that of one actuator do."""
    owner: dict[tuple[str, str], str] = {}
    for name, parameter in zip(names, parameters, strict=True):
        for leaf, index in parameter.places:
            first = owner.setdefault((leaf, str(index)), name)
            if first != name:
                raise ValueError(f"{first} and {name} stand for the same number of the model, expected one of them")


# ------------------------------------------------------------------------------------------ presets

# RRLS weighs the torso of its ant alone; Brax fuses the first parts of the legs with it, 4 x 0.039158 kg.
_LEGS = 4 * 0.03915775372846671

RRLS: dict[str, tuple[Ranges, ...]] = {
    "ant": ({"torso_mass": (0.1 + _LEGS, 3.0 + _LEGS)},),
    "halfcheetah": (
        {"friction": (0.1, 3.0)},
        {"friction": (0.1, 4.0), "torso_mass": (0.1, 7.0)},
        {"friction": (0.1, 4.0), "torso_mass": (0.1, 7.0), "bthigh_mass": (0.1, 3.0)},
    ),
    "hopper": (
        {"friction": (0.1, 3.0)},
        {"friction": (0.1, 3.0), "torso_mass": (0.1, 3.0)},
        {"friction": (0.1, 3.0), "torso_mass": (0.1, 3.0), "thigh_mass": (0.1, 4.0)},
    ),
    "humanoidstandup": ({"torso_mass": (0.1, 16.0)},),
    "inverted_pendulum": ({"pole_mass": (1.0, 31.0)}, {"pole_mass": (1.0, 31.0), "cart_mass": (1.0, 11.0)}),
    "walker2d": (
        {"friction": (0.1, 4.0)},
        {"friction": (0.1, 4.0), "torso_mass": (0.1, 5.0)},
        {"friction": (0.1, 4.0), "torso_mass": (0.1, 5.0), "thigh_mass": (0.1, 6.0)},
    ),
}
_NOT_IN_BRAX = {
    "ant": "the first part of a leg, whose mass it varies, is fused with the torso in Brax",
    "humanoidstandup": "the foot, whose mass it varies, is fused with the shin in Brax",
}


def rrls(name: str, dimensions: int) -> Ranges:
    """The uncertainty set of RRLS for one of Brax's environments, of one, two or three parameters, as `ranges`.

    Those of M2TD3 (Tanabe et al. 2022) and IWOCS, too. RRLS varies masses alone: `uncertain(..., inertia="fixed")`. Its
    friction is that of the floor in Hopper and Walker, where the larger one of a foot hides it for much of the range;
    here all friction is in proportion to it. In Ant the fused legs, 0.157 kg, are added to the range of the torso.

    Raises ValueError where there is no such set, or Brax has no such body.

    Source: Zouitine et al. 2024, "RRLS: Robust Reinforcement Learning Suite", and its code.

    >>> rrls("hopper", 2)
    {'friction': (0.1, 3.0), 'torso_mass': (0.1, 3.0)}
    """
    if name not in RRLS:
        raise ValueError(f"RRLS has no uncertainty set for {name!r}, expected one of {', '.join(RRLS)}")
    sets = RRLS[name]
    if dimensions not in range(1, len(sets) + 1):
        there = f"expected {' or '.join(str(size) for size in range(1, len(sets) + 1))}"
        why = f"; {_NOT_IN_BRAX[name]}" if name in _NOT_IN_BRAX and dimensions in (2, 3) else ""
        raise ValueError(f"there is no set of {dimensions} parameters for {name}, {there}{why}")
    return dict(sets[dimensions - 1])
