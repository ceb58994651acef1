"""`jaxrl solve`: the best policy of a finite MDP against the worst law in a set, certified."""

from __future__ import annotations

import dataclasses
import inspect
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxrl.cli import listing, options, runs
from jaxrl.cli.errors import UsageError, plain

POINTS = 21  # radii of the figure
DISCOUNT = 0.99  # of a model that has none of its own


@dataclasses.dataclass(frozen=True)
class Solve:
    """Find the best policy of a finite MDP against the worst law in a set, in float64, with a certificate.

    MODEL is a file (model.csv or model.npz), a table of Gymnasium such as FrozenLake-v1, or one of jaxrl list models,
    such as river_swim or 'river_swim(states=10)'.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]  # as in jaxrl list models
    set: str = "nominal"  # such as l1, kl, 'CVaR(0.1)' or 'L1(0.2, support="all")', see jaxrl list sets
    radius: float | None = None  # the radius of a set that is only named, or the level or beta of a measure of risk
    discount: float | None = None  # None: that of the model, or 0.99 for CSV files and Gymnasium, which have none
    settings: tuple[str, ...] = ()  # of a table of Gymnasium, as name=value: map_name=8x8 is_slippery=False
    method: Literal["auto", "value_iteration", "modified_policy_iteration", "policy_iteration"] = "auto"  # of solving
    tolerance: float | None = None  # largest error of a value; None: 1e-6
    out: Path | None = None  # .npz for value, q, policy, worst_transition and the certificate
    figure: Path | None = None  # .png, .pdf or .svg: the value at the start against radii from 0 to that of the set


def run(arguments: list[str]) -> int:
    """Solve, print, write; 1 if it did not converge."""
    asked = options.parse(Solve, arguments, "solve")
    _check(asked.out, "--out", (".npz",))
    _check(asked.figure, "--figure", (".png", ".pdf", ".svg"))
    import jax

    with jax.enable_x64(True):
        return _solve(asked)


def _solve(asked: Solve) -> int:
    import jax.numpy as jnp

    from jaxrl import robust

    set_, field = ambiguity(asked.set, asked.radius)
    if asked.figure and field is None:
        raise UsageError(f"--figure needs a set with a radius, got {asked.set!r}")
    model = read(asked.model, asked.discount, asked.settings)
    begin = time.monotonic()
    solution = robust.solve(model, set_, method=asked.method, tolerance=asked.tolerance)
    value, bound = float(jnp.vdot(model.initial, solution.value)), float(solution.error_bound)
    states, actions = solution.policy.shape
    print(f"{asked.model}: {states} states, {actions} actions, discount {float(model.discount):g}")
    print(
        f"{set_}: value {value:.10g} at the start, within {bound:.2g} in every state; "
        f"{int(solution.iterations)} sweeps, {time.monotonic() - begin:.1f} s"
    )
    print(f"policy: {_policy(np.asarray(solution.policy))}")
    if asked.out:
        arrays: dict[str, Any] = {
            each.name: np.asarray(getattr(solution, each.name)) for each in dataclasses.fields(solution)
        }
        with runs.whole(asked.out) as file:
            np.savez(file, **arrays)
        print(f"wrote {asked.out}")
    if asked.figure:
        _draw(asked.figure, model, set_, str(field), asked)
        print(f"wrote {asked.figure}")
    if not bool(solution.converged):
        raise ValueError(f"it did not converge: values are within {bound:.2g}; try another --method or --tolerance")
    return 0


def read(name: str, discount: float | None, settings: tuple[str, ...] = ()) -> Any:
    """The model of a file, of a table of Gymnasium, or of a name."""
    from jaxrl import mdp

    if settings and not re.search(r"-v\d+$", name):
        raise UsageError(f"--settings go with a table of Gymnasium, got {name!r}")
    if name.endswith((".csv", ".npz")):
        default = DISCOUNT if name.endswith(".csv") else None
        return mdp.read(name, discount=default if discount is None else discount)
    if re.search(r"-v\d+$", name):
        return _table(name, DISCOUNT if discount is None else discount, options.settings(settings))
    if "." in name and "(" not in name:
        raise UsageError(f"{name} has a suffix that is no model's, expected .csv or .npz")
    model = options.call(name, listing.models(), "model", "jaxrl list models")
    model = model() if callable(model) else model
    return model if discount is None else dataclasses.replace(model, discount=np.float64(discount))


def _table(name: str, discount: float, settings: dict[str, Any]) -> Any:
    from jaxrl import mdp

    try:
        return mdp.from_gymnasium(name, discount, **settings)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # Gymnasium has many of its own
        raise UsageError(f"Gymnasium has no {name} with {settings}: {' '.join(str(error).split())}") from error


def ambiguity(text: str, radius: float | None) -> tuple[Any, str | None]:
    """The set of this text, and the name of its first setting, if that is a number: its radius, or its level."""
    kinds = listing.sets()
    named = {plain(name): kind for name, kind in kinds.items()}.get(plain(text))
    first = next(iter(inspect.signature(named).parameters)) if named else None
    if radius is not None:
        if "(" in text or first in ("support", "optimistic"):
            raise UsageError(f"--radius goes with a set that has one and is only named, such as l1, got {text!r}")
        text = f"{text}({radius})"
    elif named and first not in ("support", "optimistic"):
        raise UsageError(f"--set {text} needs its {first}: give --radius, or --set '{named.__name__}(...)'")
    made = options.call(text, kinds, "set", "jaxrl list sets")
    field = dataclasses.fields(made)[0].name
    return made, field if isinstance(getattr(made, field), (int, float)) else None


def _policy(policy: np.ndarray) -> str:
    """The action of each state, or their probabilities where that is no single one; of the first states alone."""
    shown = 40
    if np.all(policy.max(axis=1) == 1):
        text = " ".join(map(str, policy[:shown].argmax(axis=1)))
    else:
        text = " ".join("/".join(f"{share:.2g}" for share in row) for row in policy[:shown])
    return text + (f" ... and {len(policy) - shown} more" if len(policy) > shown else "")


def _check(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    if path is not None and path.suffix not in suffixes:
        raise UsageError(f"{option} {path} has the suffix {path.suffix!r}, expected {' or '.join(suffixes)}")


def _draw(path: Path, model: Any, set_: Any, field: str, asked: Solve) -> None:
    """The value at the start against the radius, from 0 to that of the set."""
    import jax
    import jax.numpy as jnp
    from matplotlib.figure import Figure

    from jaxrl import plot, robust

    def value(radius: jax.Array) -> jax.Array:
        changed = dataclasses.replace(set_, **{field: radius})
        return jnp.vdot(
            model.initial, robust.solve(model, changed, method=asked.method, tolerance=asked.tolerance).value
        )

    radii = jnp.linspace(0.0, getattr(set_, field), POINTS)
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(radii, jax.jit(jax.vmap(value))(radii), color=plot.COLOURS[0], marker=".")
    title = f"{asked.model}, {type(set_).__name__}".replace("$", r"\$")
    axes.set(xlabel=field, ylabel="robust value at the start", title=title)
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    with runs.whole(path) as file:
        figure.savefig(file)
