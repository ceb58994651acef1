"""A finite Markov decision process as a pytree of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class MDP:
    """A Markov decision process with `S` states and `A` actions, as dense arrays.

    `transition[s, a, s']` is the probability of the successor s' when action a is taken in state s; the reward
    belongs to (s, a), or to (s, a, s'). Nothing is checked here, so that a model can be built inside a trace:
    `validate` does.

    >>> model = MDP(transition=np.eye(2)[[[0, 1], [1, 0]]], reward=np.eye(2), discount=0.9, initial=np.array([1., 0.]))
    >>> model.num_states, model.num_actions
    (2, 2)
    """

    transition: jax.Array  # [S, A, S], each row a law
    reward: jax.Array  # [S, A] or [S, A, S]
    discount: jax.Array  # [], per step, in [0, 1)
    initial: jax.Array  # [S], the law of the first state

    @property
    def num_states(self) -> int:
        """The number of states, S."""
        return int(self.transition.shape[-1])

    @property
    def num_actions(self) -> int:
        """The number of actions, A."""
        return int(self.transition.shape[-2])


def validate(model: MDP) -> None:
    """Raises ValueError unless `model` is a Markov decision process, naming the state and the action at fault.

    Checks the shapes and, outside a trace, the values: each row of `transition` and `initial` is a law (finite, not
    negative, summing to one up to 100 units of rounding of its own type, or to 1e-8), rewards are finite, and the
    discount lies in [0, 1). Takes one model, not a stack of them.
    """
    _check_shapes(model)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model)):
        return
    _check_laws("transition", model.transition, ("state", "action"))
    _check_laws("initial", model.initial, ())
    reward, discount = np.asarray(model.reward), float(model.discount)
    if not np.all(np.isfinite(reward)):
        where = tuple(np.argwhere(~np.isfinite(reward))[0])
        raise ValueError(
            f"reward[{_place(('state', 'action', 'successor'), where)}] is {reward[where]}, expected a finite number"
        )
    if not 0 <= discount < 1:
        raise ValueError(f"discount is {discount}, expected a number in [0, 1)")


def _check_shapes(model: MDP) -> None:
    """Raises ValueError unless the leaves fit together."""
    shape = jnp.shape(model.transition)
    if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
        raise ValueError(f"transition has shape {shape}, expected [S, A, S], the successor last")
    for name, expected in (("reward", (shape[:2], shape)), ("discount", ((),)), ("initial", (shape[:1],))):
        got = jnp.shape(getattr(model, name))
        if got not in expected:
            raise ValueError(
                f"{name} has shape {got}, expected {' or '.join(map(str, expected))} since transition has shape {shape}"
            )


def _check_laws(name: str, laws: jax.Array, axes: tuple[str, ...]) -> None:
    """Raises ValueError unless each row (last axis) of `laws` is finite, not negative and sums to one."""
    probs = np.asarray(laws)
    precision = jnp.finfo(probs.dtype).eps if jnp.issubdtype(probs.dtype, jnp.floating) else 0
    tolerance = max(100 * float(precision), 1e-8)
    probs = probs.astype(np.float64)
    wrong = ~(np.isfinite(probs) & (probs >= 0))
    if np.any(wrong):
        where = tuple(np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}[{_place((*axes, 'successor' if axes else 'state'), where)}] is {probs[where]}, "
            f"expected a probability"
        )
    totals = probs.sum(-1)
    unnormalised = np.argwhere(np.abs(totals - 1) > tolerance)
    if len(unnormalised):
        where = tuple(unnormalised[0])
        place = f"[{_place(axes, where)}]" if axes else ""
        raise ValueError(
            f"{name}{place} sums to {totals[where]:.9g}, expected 1 up to {tolerance:.1e}; "
            f"divide each row by its sum if the difference is rounding"
        )


def _place(axes: tuple[str, ...], where: tuple[int, ...]) -> str:
    """`state 3, action 1`."""
    return ", ".join(f"{axis} {index}" for axis, index in zip(axes, where, strict=False))
