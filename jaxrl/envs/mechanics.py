"""The physical parameters of a model of Brax or MJX by name: where in the model each stands, and whether it acts.

A model of Brax holds MuJoCo's numbers beside its own, and each engine reads some and ignores the others without a word.
`LIVE` says which leaf an engine reads for what; only those are offered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MASSES, INERTIAS, LIMITS = "link.inertia.mass", "link.inertia.i", "dof.limit"  # of Brax
MAXIMAL = ("spring", "positional")  # Brax's engines in maximal coordinates

# By engine, the leaf of the model that it reads for each kind of parameter.
_BRAX = {
    "mass": MASSES,
    "inertia": INERTIAS,
    "friction": "geom_friction",
    "gear": "actuator.gear",
    "gain": "actuator.gain",
    "gravity": "gravity",
    "lower": LIMITS,
    "upper": LIMITS,
}
LIVE: dict[str, dict[str, str]] = {
    "spring": _BRAX,
    "positional": _BRAX,
    "generalized": _BRAX | {"damping": "dof.damping"},
    "mjx": {
        "mass": "body_mass",
        "inertia": "body_inertia",
        "friction": "geom_friction",
        "damping": "dof_damping",
        "gear": "actuator_gear",
        "gain": "actuator_gainprm",
        "gravity": "opt.gravity",
        "lower": "jnt_range",
        "upper": "jnt_range",
    },
}
UNITS = {
    "mass": "kg",
    "friction": "coefficient of sliding friction",
    "damping": "N m s/rad, N s/m",
    "gear": "N m or N per unit of the actuator's force",
    "gain": "force per unit of control",
    "gravity": "m/s^2",
    "lower": "rad, m",
    "upper": "rad, m",
}
# By kind, the flags of MuJoCo's options (mjDSBL_...) that switch it off; Brax's own engines do not know them.
SWITCHES = {
    "friction": ("CONTACT", "CONSTRAINT"),
    "damping": ("DAMPER",),
    "gear": ("ACTUATION",),
    "gain": ("ACTUATION",),
    "gravity": ("GRAVITY",),
    "lower": ("LIMIT", "CONSTRAINT"),
    "upper": ("LIMIT", "CONSTRAINT"),
}
SLIDE, HINGE = 2, 3  # MuJoCo's types of joints that have one degree of freedom
JOINT = 0  # MuJoCo's type of actuators that act on a joint


class Model(NamedTuple):
    """What describes the bodies of a raw environment."""

    named: Any  # mujoco.MjModel, which knows the names
    leaves: Any  # what the engine reads: brax.System or mjx.Model
    engine: str  # a key of LIVE


class Parameter(NamedTuple):
    """One named number, and what stands for it in the model: `leaf[index]` is in proportion to it."""

    nominal: float
    places: tuple[tuple[str, Any], ...]  # (leaf, index)


def model(env: Any) -> Model | None:
    """The model of a raw environment of Brax or Playground; None if it has none."""
    if hasattr(env, "sys"):
        return Model(env.sys.mj_model, env.sys, env.backend)
    if hasattr(env, "_mjx_model"):
        return Model(env.mj_model, env._mjx_model, "mjx")
    return None


def parameters(model: Model, inertia: str) -> dict[str, Parameter]:
    """All parameters that act, by name; `inertia` says whether that of a body is "scaled" with its mass or "fixed"."""
    offered = _masses(model, inertia) | _friction(model) | _joints(model) | _actuators(model) | _gravity(model)
    off = _switched_off(model)
    return {name: parameter for name, parameter in offered.items() if name.rpartition("_")[2] not in off}


def replaced(model: Model, parameters: list[Parameter], values: jax.Array) -> dict[str, Any]:
    """The leaves of the model, by their path, in which the parameters have these `values` [k]."""
    leaves: dict[str, Any] = {}
    for parameter, value in zip(parameters, values, strict=True):
        for leaf, index in parameter.places:
            base = read(model, leaf)
            now = base[index] * (value / parameter.nominal) if parameter.nominal else value
            old = leaves.get(leaf, jnp.asarray(base))
            leaves[leaf] = old.at[index].set(jnp.asarray(now, old.dtype))
    return leaves | _following(model, leaves)


def _following(model: Model, leaves: dict[str, Any]) -> dict[str, Any]:
    """What has to change with the leaves that are replaced, or in its form."""
    follow: dict[str, Any] = {}
    if model.engine in MAXIMAL:
        scales = {MASSES: "spring_mass_scale", INERTIAS: "spring_inertia_scale"}
        follow |= {scale: jnp.zeros_like(read(model, scale)) for leaf, scale in scales.items() if leaf in leaves}
    if LIMITS in leaves:
        follow[LIMITS] = tuple(leaves[LIMITS])
    if "body_mass" in leaves:
        mass = leaves["body_mass"]
        follow["body_subtreemass"] = jnp.asarray(_subtrees(model.named), mass.dtype) @ mass
    return follow


def read(model: Model, leaf: str) -> np.ndarray:
    """A leaf of the model, as the engine uses it.

    Brax's engines in maximal coordinates use masses to the power of 1 - `spring_mass_scale`, and inertias likewise;
    several models have an exponent of 0. Here these powers are read, to stand where the exponent is 1.
    """
    value = _raw(model, leaf)
    if model.engine in MAXIMAL and leaf == MASSES:
        return value ** (1 - _raw(model, "spring_mass_scale"))
    if model.engine in MAXIMAL and leaf == INERTIAS:
        diagonal = np.diagonal(value, axis1=1, axis2=2) ** (1 - _raw(model, "spring_inertia_scale"))
        return diagonal[:, :, None] * np.eye(3, dtype=diagonal.dtype)
    return value


def _raw(model: Model, leaf: str) -> np.ndarray:
    value: Any = model.leaves
    for name in leaf.split("."):
        value = getattr(value, name)
    if leaf == LIMITS:
        return np.stack(value)
    return np.asarray(value, jnp.result_type(float))  # some of Brax's gears are integers


# ------------------------------------------------------------------------------------ what there is


def _masses(model: Model, inertia: str) -> dict[str, Parameter]:
    mj, live = model.named, LIVE[model.engine]
    world = 0 if model.engine == "mjx" else 1  # Brax's links leave out the world
    kinds = ("mass", "inertia") if inertia == "scaled" else ("mass",)
    nominal = _raw(model, live["mass"])
    return {
        f"{mj.body(body).name}_mass": Parameter(
            float(nominal[body - world]), tuple((live[kind], body - world) for kind in kinds)
        )
        for body in range(1, mj.nbody)
        if mj.body(body).name and nominal[body - world] > 0 and mj.body_weldid[body] > 0
    }


def _friction(model: Model) -> dict[str, Parameter]:
    """That of all geometry at once, named by that of the ground: of the two in a contact, the larger one counts."""
    mj, leaf = model.named, LIVE[model.engine]["friction"]
    touching = sorted(_touching(mj), key=lambda geom: mj.body_weldid[mj.geom_bodyid[geom]] > 0)
    friction = read(model, leaf)[:, 0]
    reference = next((float(friction[geom]) for geom in touching if friction[geom] > 0), None)
    return {} if reference is None else {"friction": Parameter(reference, ((leaf, (slice(None), 0)),))}


def _gravity(model: Model) -> dict[str, Parameter]:
    leaf = LIVE[model.engine]["gravity"]
    size = float(np.linalg.norm(read(model, leaf)))
    return {"gravity": Parameter(size, ((leaf, slice(None)),))} if size else {}


def _switched_off(model: Model) -> set[str]:
    """The kinds of parameters that the options of the model switch off."""
    if model.engine != "mjx":
        return set()
    import mujoco

    flags, bits = model.named.opt.disableflags, mujoco.mjtDisableBit
    return {
        kind for kind, names in SWITCHES.items() if any(flags & getattr(bits, f"mjDSBL_{name}").value for name in names)
    }


def _touching(mj: Any) -> list[int]:
    """The geometry that may collide with friction, in order."""
    types, takes = mj.geom_contype, mj.geom_conaffinity
    pairs = (types[:, None] & takes) | (types & takes[:, None])
    rough = np.maximum(mj.geom_condim[:, None], mj.geom_condim) > 1
    body = mj.body_weldid[mj.geom_bodyid]
    parent = np.where(body > 0, mj.body_weldid[mj.body_parentid[body]], -1)
    jointed = (parent == body[:, None]) & (body[:, None] > 0)  # a body does not touch the one that carries it
    apart = (body[:, None] != body) & ~jointed & ~jointed.T
    return list(np.flatnonzero(np.any((pairs != 0) & rough & apart, axis=1)))


def _joints(model: Model) -> dict[str, Parameter]:
    """Damping and limits of joints with one degree of freedom."""
    mj, live = model.named, LIVE[model.engine]
    offered: dict[str, Parameter] = {}
    joints = [joint for joint in range(mj.njnt) if mj.jnt_type[joint] in (SLIDE, HINGE) and mj.joint(joint).name]
    if "damping" in live:
        dofs = {mj.joint(joint).name: int(mj.jnt_dofadr[joint]) for joint in joints}
        offered |= _each_and_all(model, "damping", dofs)
    for side, kind in enumerate(("lower", "upper")):
        for joint in joints:
            if mj.jnt_limited[joint]:
                index = (joint, side) if model.engine == "mjx" else (side, int(mj.jnt_dofadr[joint]))
                nominal = float(read(model, live[kind])[index])
                offered[f"{mj.joint(joint).name}_{kind}"] = Parameter(nominal, ((live[kind], index),))
    return offered


def _actuators(model: Model) -> dict[str, Parameter]:
    """Gear and gain; an actuator without a name has that of its joint."""
    mj, indices = model.named, {}
    for actuator in range(mj.nu):
        joint = mj.actuator_trnid[actuator, 0] if mj.actuator_trntype[actuator] == JOINT else None
        name = mj.actuator(actuator).name or ("" if joint is None else mj.joint(joint).name)
        if name:
            indices[name] = (actuator, 0) if model.engine == "mjx" else actuator
    return _each_and_all(model, "gear", indices) | _each_and_all(model, "gain", indices)


def _each_and_all(model: Model, kind: str, indices: dict[str, Any]) -> dict[str, Parameter]:
    """`kind` of each, and of all in proportion, named by the first that is not zero."""
    leaf = LIVE[model.engine][kind]
    offered = {
        f"{name}_{kind}": Parameter(float(read(model, leaf)[index]), ((leaf, index),))
        for name, index in indices.items()
    }
    first = next((parameter.nominal for parameter in offered.values() if parameter.nominal), None)
    if first is not None:
        offered[kind] = Parameter(first, tuple(place for parameter in offered.values() for place in parameter.places))
    return offered


def _subtrees(mj: Any) -> np.ndarray:
    """Row b has a 1 for each body that b carries, [bodies, bodies]: MJX's sensors divide by the masses of subtrees."""
    carries = np.eye(mj.nbody)
    for body in range(mj.nbody - 1, 0, -1):
        carries[mj.body_parentid[body]] += carries[body]
    return carries
