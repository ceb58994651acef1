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
from typing import Any

import jax.numpy as jnp

from jaxrl.envs import brax, builtin, gymnax, playground
from jaxrl.types import Environment

__all__ = ["SUITES", "make", "names"]

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
