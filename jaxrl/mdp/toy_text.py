"""Gymnasium's tabular environments as models."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jaxrl.mdp.build import from_transitions
from jaxrl.mdp.model import SparseMDP


def from_gymnasium(env: Any, discount: ArrayLike, **settings: Any) -> SparseMDP:
    """The model of a tabular environment of Gymnasium: FrozenLake, Taxi, CliffWalking, or any with such a table `P`.

    The states keep their numbers, and one is added as the last: the end, where every transition that terminates leads
    to, with its reward, and where nothing happens any more. So what the table says of a terminal state counts for
    nothing, and a state that is entered both ways is right. The time limit is no part of the model.

    - `env`: a name such as "FrozenLake-v1", or the environment; wrappers are looked through.
    - `settings`: of `gymnasium.make`, for a name.

    Raises ValueError if it has no table, ImportError for a name if Gymnasium is not installed.

    >>> model = from_gymnasium("CliffWalking-v1", discount=0.99)
    >>> model.num_states, model.num_actions
    (49, 4)
    """
    if isinstance(env, str):
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError("from_gymnasium needs Gymnasium: pip install 'jaxrl[gymnasium]'") from error
        env = gymnasium.make(env, **settings)
    elif settings:
        raise ValueError(f"settings {sorted(settings)} go with the name of an environment, got the environment itself")
    raw = getattr(env, "unwrapped", env)
    table, initial = getattr(raw, "P", None), getattr(raw, "initial_state_distrib", None)
    if table is None or initial is None:
        raise ValueError(
            f"{raw} has no table of transitions (P and initial_state_distrib), expected a tabular environment such as "
            f"FrozenLake-v1, Taxi-v4 or CliffWalking-v1"
        )
    end = len(table)
    rows = [
        (state, action, end if terminated else int(successor), probability, reward)
        for state, laws in table.items()
        for action, law in laws.items()
        for probability, successor, reward, terminated in law
    ]
    rows += [(end, action, end, 1.0, 0.0) for action in table[0]]
    states, actions, successors, probabilities, rewards = map(np.array, zip(*rows, strict=True))
    return from_transitions(
        states, actions, successors, probabilities, rewards, discount, initial=np.append(np.asarray(initial), 0)
    )
