"""What makes arrays a Markov decision process: checked with a message where values are known, as a flag in a trace."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.mdp.model import MDP, Model, SparseMDP, probabilities


def validate(model: Model) -> None:
    """Raises ValueError unless `model` is a Markov decision process, naming the state and the action at fault.

    Checks the shapes and, outside a trace, the values: each row of `transition` (or `probabilities`) and `initial` is a
    law (finite, not negative, summing to one up to 100 units of rounding of its own type, or to 1e-8), rewards are
    finite, the discount lies in [0, 1), successors are states, and no row lists one of them twice. Takes one model,
    not a stack of them.
    """
    check(model)


def check(model: Model, undiscounted: bool = False) -> None:
    """`validate`; a discount of 1 is right if `undiscounted`, as with a finite horizon."""
    _check_shapes(model)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model)):
        return
    if isinstance(model, MDP):
        check_laws("transition", model.transition, ("state", "action", "successor"))
    else:
        check_laws("probabilities", model.probabilities, ("state", "action", "slot"))
        _check_successors(model)
    check_laws("initial", model.initial, ("state",))
    reward, discount = np.asarray(model.reward), float(model.discount)
    if not np.all(np.isfinite(reward)):
        where = tuple(np.argwhere(~np.isfinite(reward))[0])
        axes = ("state", "action", "successor" if isinstance(model, MDP) else "slot")
        raise ValueError(f"reward[{_place(axes, where)}] is {reward[where]}, expected a finite number")
    if not (0 <= discount < 1 or (undiscounted and discount == 1)):
        raise ValueError(f"discount is {discount}, expected a number in [0, 1{']' if undiscounted else ')'}")


def sound(model: Model, undiscounted: bool = False) -> jax.Array:
    """Whether the values are those of a Markov decision process, `[]` bool: the flag of `validate`, for traces."""
    probs = jnp.asarray(probabilities(model))
    precision = float(jnp.finfo(probs.dtype).eps)
    tolerance = max(100 * precision, 1e-8) + probs.shape[-1] * precision  # the sum here rounds, too
    laws = (jnp.min(probs) >= 0) & jnp.all(jnp.abs(jnp.sum(probs, axis=-1) - 1) <= tolerance)
    discount = jnp.asarray(model.discount)
    below_one = discount <= 1 if undiscounted else discount < 1
    right = laws & jnp.all(jnp.isfinite(model.reward)) & (discount >= 0) & below_one
    if isinstance(model, SparseMDP):
        right &= (jnp.min(model.successors) >= 0) & (jnp.max(model.successors) < model.num_states)
    return right


def check_policy(model: Model, policy: jax.Array) -> None:
    """Raises ValueError unless `policy` is `[S, A]`, with a law for each state where values are known."""
    expected = (model.num_states, model.num_actions)
    if jnp.shape(policy) != expected:
        raise ValueError(
            f"policy has shape {jnp.shape(policy)}, expected [S, A] = {expected}, the probability of each action; "
            f"jax.nn.one_hot(actions, {expected[1]}) makes one of actions"
        )
    if not isinstance(policy, jax.core.Tracer):
        check_laws("policy", policy, ("state", "action"))


def check_laws(name: str, laws: jax.Array, axes: tuple[str, ...]) -> None:
    """Raises ValueError unless each row (last axis) of `laws` is finite, not negative and sums to one."""
    probs = np.asarray(laws)
    precision = jnp.finfo(probs.dtype).eps if jnp.issubdtype(probs.dtype, jnp.floating) else 0
    tolerance = max(100 * float(precision), 1e-8)
    totals = probs.sum(-1, dtype=np.float64)
    if np.min(probs) >= 0 and np.all(np.abs(totals - 1) <= tolerance):
        return
    wrong = ~(np.isfinite(probs) & (probs >= 0))
    if np.any(wrong):
        where = tuple(np.argwhere(wrong)[0])
        raise ValueError(f"{name}[{_place(axes, where)}] is {probs[where]}, expected a probability")
    where = tuple(np.argwhere(np.abs(totals - 1) > tolerance)[0])
    place = f"[{_place(axes[:-1], where)}]" if where else ""
    raise ValueError(
        f"{name}{place} sums to {totals[where]:.9g}, expected 1 up to {tolerance:.1e}; "
        f"divide each row by its sum if the difference is rounding"
    )


def _check_shapes(model: Model) -> None:
    """Raises ValueError unless the leaves fit together."""
    if isinstance(model, MDP):
        name, shape = "transition", jnp.shape(model.transition)
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise ValueError(f"transition has shape {shape}, expected [S, A, S], the successor last")
        others = {}
    else:
        name, shape = "successors", jnp.shape(model.successors)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"successors has shape {shape}, expected [S, A, K], the slot last")
        if not jnp.issubdtype(jnp.result_type(model.successors), jnp.integer):
            raise ValueError(f"successors has dtype {jnp.result_type(model.successors)}, expected integers, the states")
        others = {"probabilities": (shape,)}
    for leaf, expected in (others | {"reward": (shape[:2], shape), "discount": ((),), "initial": (shape[:1],)}).items():
        got = jnp.shape(getattr(model, leaf))
        if got not in expected:
            raise ValueError(
                f"{leaf} has shape {got}, expected {' or '.join(map(str, expected))} since {name} has shape {shape}"
            )


def _check_successors(model: SparseMDP) -> None:
    """Raises ValueError unless successors are states, and those of a row that have mass differ."""
    places, probs = np.asarray(model.successors), np.asarray(model.probabilities)
    axes = ("state", "action", "slot")
    if places.min() < 0 or places.max() >= model.num_states:
        where = tuple(np.argwhere((places < 0) | (places >= model.num_states))[0])
        raise ValueError(
            f"successors[{_place(axes, where)}] is {places[where]}, expected a state in 0, ..., {model.num_states - 1}"
        )
    distinct = np.sort(np.where(probs > 0, places, -1 - np.arange(places.shape[-1])), axis=-1)
    twice = np.diff(distinct, axis=-1) == 0
    if np.any(twice):
        where = tuple(np.argwhere(twice)[0])
        raise ValueError(
            f"successors[{_place(axes[:2], where)}] lists state {distinct[where]} twice, expected one slot with all of "
            f"its probability: sets of ambiguity count slots; from_transitions adds them up"
        )


def _place(axes: tuple[str, ...], where: tuple[int, ...]) -> str:
    """`state 3, action 1`."""
    return ", ".join(f"{axis} {index}" for axis, index in zip(axes, where, strict=False))
