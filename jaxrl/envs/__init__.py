"""One protocol for all environments (`jaxrl.types.Environment`), and `make`, which finds them by name.

>>> from jaxrl import envs
>>> envs.make("jaxrl/pendulum").spec.action
Box(shape=(1,), low=-2.0, high=2.0, dtype='float32')
>>> envs.make("jaxrl/pendulum") is envs.make("jaxrl/pendulum")
True
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxrl.envs import brax, builtin, gymnax, playground
from jaxrl.envs.uncertainty import Uncertain, rrls
from jaxrl.types import Environment

__all__ = ["SUITES", "Uncertain", "make", "names", "rrls", "uncertain"]

# A suite is a module with NAMES, REFUSED (the reason by name), BACKENDS (the default first; empty where there is no
# choice) and make(name, backend, **settings), which imports what it adapts only then.
SUITES: dict[str, Any] = {"brax": brax, "playground": playground, "gymnax": gymnax, "jaxrl": builtin}


def make(name: str, *, backend: str | None = None, **settings: Any) -> Environment:
    """The environment called `name`, as "suite/name".

    The same name and settings give the same object, so that what was compiled for it is found again.

    Args:
        name: one of `names()`.
        backend: the physics engine, for suites that have several (`brax`: "spring", the default, "generalized",
            "positional" or "mjx").
        **settings: `max_steps`, and what the environment's own constructor takes.

    Raises:
        ValueError: the name, the backend or a setting is unknown, or a setting is not hashable.
        ImportError: the suite's package is not installed.
    """
    if name not in names():
        raise ValueError(_unknown(name))
    suite, _, short = name.partition("/")
    backends = SUITES[suite].BACKENDS
    if backend is None and backends:
        backend = backends[0]
    if backend is not None and backend not in backends:
        choice = f"expected one of {', '.join(backends)}" if backends else "this suite has no choice of backend"
        raise ValueError(f"{name} has no backend {backend!r}; {choice}")
    for setting, value in settings.items():
        try:
            hash(value)
        except TypeError:
            raise ValueError(
                f"{name}: the setting {setting!r} is a {type(value).__name__}, expected something hashable by which "
                f"the environment can be found again, such as a tuple"
            ) from None
    return _make(suite, short, backend, jnp.result_type(float), **dict(sorted(settings.items())))


def names(suite: str | None = None) -> tuple[str, ...]:
    """The names that `make` takes, of all suites or of one; nothing is imported for it.

    >>> names("jaxrl")[:3]
    ('jaxrl/linear_quadratic', 'jaxrl/pendulum', 'jaxrl/point_mass')
    """
    if suite is not None and suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}, expected one of {', '.join(SUITES)}")
    suites = SUITES if suite is None else (suite,)
    return tuple(f"{each}/{name}" for each in suites for name in SUITES[each].NAMES)


def uncertain(
    env: Environment | str,
    ranges: Mapping[str, tuple[float, float]],
    *,
    inertia: Literal["scaled", "fixed"] = "scaled",
) -> Uncertain:
    r"""A family of environments, whose parameters are named physical ones within ranges.

        value = low + params (high - low),    params in [0, 1]^K in the order of `ranges`

    `ranges` are absolute values in the units of the model (kg, m/s^2, rad, ...), as RRLS has them, and not factors.
    `env.params()` [K] is the nominal model, wherever it lies: outside the unit box if it is outside the ranges (Brax's
    Hopper has a torso of 3.67 kg, which RRLS varies from 0.1 to 3 kg). Params are clipped to the unit box, widened to
    the nominal model; those that are not traced are refused beyond it. `env.physical(params)` gives values in units,
    `env.normalised(torso_mass=2.0)` params from these; `env.names`, `env.low` and `env.high` say what is varied.

    For Brax and Playground the parameters are `<body>_mass`, `gravity`, `friction`, `<joint>_damping`, `<joint>_lower`
    and `_upper` (limits), `<actuator>_gear` and `_gain` (an actuator without a name has that of its joint), but only
    those that the physics engine reads, for what can move, and limits only where there are some. A name without a part,
    `damping`, `gear` or `gain`, stands for all in proportion, and its number is that of the first that is not zero.
    `friction` stands for that of all geometry, and its number is that of the ground. Constants that MuJoCo derives from
    the nominal model, such as the softness of contacts, stay. Brax's engines "spring" and "positional" deform masses
    and inertias (by powers, to 1 in several models); there, these are varied in proportion.

    For other environments they are the numbers in `env.params()`, by the name of their field.

    Args:
        env: the environment, or its name for `make`.
        ranges: (low, high) by name; the order is that of the parameters.
        inertia: "scaled" with the mass of a body, as if its density changed, or "fixed", as in RRLS.

    Raises:
        ValueError: a name is unknown or does nothing (the message lists those that act), a range is empty or not
            possible, or two names stand for the same number.

    Source: Zouitine et al. 2024, "RRLS: Robust Reinforcement Learning Suite".

    >>> from jaxrl import envs
    >>> env = envs.uncertain("jaxrl/pendulum", {"mass": (0.5, 2.5), "length": (0.5, 1.5)})
    >>> env.params(), env.physical(jnp.ones(2))
    (Array([0.25, 0.5 ], dtype=float32), Array([2.5, 1.5], dtype=float32))
    """
    env = make(env) if isinstance(env, str) else env
    for name, bounds in ranges.items():
        if np.shape(bounds) != (2,):
            raise ValueError(f"the range of {name} is {bounds!r}, expected (low, high)")
    low, high = (tuple(float(bounds[side]) for bounds in ranges.values()) for side in (0, 1))
    return Uncertain(env, tuple(ranges), low, high, inertia)


@functools.lru_cache(maxsize=None, typed=True)
def _make(suite: str, name: str, backend: str | None, dtype: jnp.dtype, /, **settings: Any) -> Environment:
    """`make`, cached; `dtype` is the default float type, which the specs follow."""
    try:
        env: Environment = SUITES[suite].make(name, backend, **settings)
    except TypeError as error:  # a setting that the constructor does not know
        raise ValueError(f"{suite}/{name}: {error}; the settings were {settings}") from error
    return env


def _unknown(name: str) -> str:
    """Why there is no environment called `name`, and what there is instead."""
    suite, _, short = name.partition("/")
    if suite in SUITES and short in SUITES[suite].REFUSED:
        return f"{name} is not available: {SUITES[suite].REFUSED[short]}"
    known = {key.lower(): full for full in names() for key in (full, full.partition("/")[2])}
    near = dict.fromkeys(known[key] for key in difflib.get_close_matches(name.lower(), known))
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"there is no environment {name!r}{hint} All names, as 'suite/name': jaxrl.envs.names()"
