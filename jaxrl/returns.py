"""Returns and advantages: what a sequence of rewards and values says about each of its steps.

Every function takes time-major arrays of one shape, `[T, ...]`: row t is step t, the other axes are independent
streams. `next_values[t]` is the value of the true successor of step t, taken before any reset. The flags, bool or
0/1, end an episode after step t in two ways:

    terminated[t]    nothing follows: the bootstrap is 0 (also where `truncated[t]` is set as well),
    truncated[t]     the episode was cut off: the bootstrap is next_values[t].

No sum crosses an end, so nothing of one episode, not even a NaN, reaches another. The last row bootstraps from
its next_values, as if truncated. Below, `gamma_t` is `discount (1 - terminated[t])`.

`discount`, `lambda_` and the clipping thresholds are scalars, or arrays that broadcast to `[T, ...]`; they are taken
in the dtype of the data, which is the dtype of the result. No gradient is stopped: regress on
`jax.lax.stop_gradient(targets)`. Shapes that do not fit raise a ValueError at trace time.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from jaxrl.types import Transition, check_positive


class VTrace(NamedTuple):
    """What V-trace gives, each `[T, ...]`."""

    values: jax.Array  # targets for the values, v_t
    advantages: jax.Array  # weights of the policy gradient, clipped importance ratio included


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    next_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    discount: ArrayLike,
    lambda_: ArrayLike,
) -> jax.Array:
    """Generalised advantage estimates, `[T, ...]`.

        A_t = sum_k (discount lambda)^k delta_{t+k},    delta_t = r_t + gamma_t V(s_{t+1}) - V(s_t),

    summed to the end of the episode. `values[t]` is V(s_t); `A_t + values[t]` is the lambda-return.

    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", (16).

    >>> one = jnp.ones(3)
    >>> gae(one, one, one, jnp.array([0, 0, 1]), jnp.zeros(3), discount=0.5, lambda_=1.0)
    Array([0.75, 0.5 , 0.  ], dtype=float32)
    """
    (rewards, values, next_values), (discount, lambda_) = _check(
        {"rewards": rewards, "values": values, "next_values": next_values}, discount=discount, lambda_=lambda_
    )
    terminated, continues = _ends(rewards, terminated, truncated)
    errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
    return _accumulate(errors, discount * lambda_, continues)


def lambda_returns(
    rewards: ArrayLike,
    next_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    discount: ArrayLike,
    lambda_: ArrayLike,
) -> jax.Array:
    """Lambda-returns, `[T, ...]`: all n-step returns of the episode, averaged with weights that decay by lambda.

        G_t = r_t + gamma_t ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}),

    where an episode that is cut off after step t ends in `G_t = r_t + gamma_t V(s_{t+1})`.

    Source: Sutton and Barto 2018, "Reinforcement Learning", eqs. (12.3) and (12.18).

    >>> one = jnp.ones(3)
    >>> lambda_returns(one, one, jnp.array([0, 0, 1]), jnp.zeros(3), discount=0.5, lambda_=1.0)
    Array([1.75, 1.5 , 1.  ], dtype=float32)
    """
    (rewards, next_values), (discount, lambda_) = _check(
        {"rewards": rewards, "next_values": next_values}, discount=discount, lambda_=lambda_
    )
    terminated, continues = _ends(rewards, terminated, truncated)
    bootstrap = jnp.where(continues, 1 - lambda_, 1) * jnp.where(terminated, 0, next_values)
    return _accumulate(rewards + discount * bootstrap, discount * lambda_, continues)


def n_step_returns(
    rewards: ArrayLike,
    next_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    discount: ArrayLike,
    n: int,
) -> jax.Array:
    """n-step returns, `[T, ...]`.

        G_t = sum_{k<m} discount^k r_{t+k} + discount^{m-1} gamma_{t+m-1} V(s_{t+m}),

    where m is n, or the number of steps that are left in the episode or in the data where those are fewer. `n` is a
    Python integer of at least 1, else ValueError; time grows as `min(n, T) T`.

    Source: Sutton and Barto 2018, "Reinforcement Learning", eq. (7.1).

    >>> one = jnp.ones(4)
    >>> n_step_returns(one, 8 * one, jnp.array([0, 0, 0, 1]), jnp.zeros(4), discount=0.5, n=2)
    Array([3.5, 3.5, 1.5, 1. ], dtype=float32)
    """
    check_positive("n_step_returns", n=n)
    (rewards, next_values), (discount,) = _check({"rewards": rewards, "next_values": next_values}, discount=discount)
    terminated, continues = _ends(rewards, terminated, truncated)
    one_step = rewards + discount * jnp.where(terminated, 0, next_values)

    def lengthen(returns: jax.Array, _: None) -> tuple[jax.Array, None]:
        following = jnp.roll(returns, -1, axis=0)  # the last row, which this brings to the first, never continues
        return jnp.where(continues, rewards + discount * following, one_step), None

    returns, _ = jax.lax.scan(lengthen, one_step, length=min(n, len(rewards)) - 1)
    return returns


def vtrace(
    rewards: ArrayLike,
    values: ArrayLike,
    next_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    log_ratios: ArrayLike,
    discount: ArrayLike,
    lambda_: ArrayLike = 1.0,
    clip_rho: ArrayLike = 1.0,
    clip_c: ArrayLike = 1.0,
    clip_pg_rho: ArrayLike = 1.0,
) -> VTrace:
    """V-trace targets and advantages, each `[T, ...]`, from data of a behaviour policy mu.

        v_t = V(s_t) + sum_k discount^k (prod_{i<k} c_{t+i}) rho_{t+k} delta_{t+k},
        A_t = min(clip_pg_rho, pi/mu) (r_t + gamma_t v_{t+1} - V(s_t)),

    with `delta_t` as in `gae`, `rho = min(clip_rho, pi/mu)` and `c = lambda min(clip_c, pi/mu)`; where the episode is
    cut off after step t, `next_values[t]` stands for v_{t+1}. `log_ratios[t]` is log pi(a_t|s_t) - log mu(a_t|s_t),
    in nats, summed over the components of the action. A threshold of infinity does not clip.

    Source: Espeholt et al. 2018, "IMPALA", eq. (1), section 4.2 and remark 2.
    """
    (rewards, values, next_values, log_ratios), (discount, lambda_, *clips) = _check(
        {"rewards": rewards, "values": values, "next_values": next_values, "log_ratios": log_ratios},
        discount=discount,
        lambda_=lambda_,
        clip_rho=clip_rho,
        clip_c=clip_c,
        clip_pg_rho=clip_pg_rho,
    )
    terminated, continues = _ends(rewards, terminated, truncated)
    rho, c, pg_rho = (_clipped_ratio(log_ratios, clip) for clip in clips)
    errors = rewards + discount * jnp.where(terminated, 0, next_values) - values
    targets = values + _accumulate(rho * errors, discount * lambda_ * c, continues)
    bootstrap = jnp.where(continues, jnp.roll(targets, -1, axis=0), jnp.where(terminated, 0, next_values))
    return VTrace(targets, pg_rho * (rewards + discount * bootstrap - values))


def retrace(
    rewards: ArrayLike,
    q_values: ArrayLike,
    next_values: ArrayLike,
    terminated: ArrayLike,
    truncated: ArrayLike,
    log_ratios: ArrayLike,
    discount: ArrayLike,
    lambda_: ArrayLike,
) -> jax.Array:
    """Retrace(lambda) targets for the action values, `[T, ...]`, from data of a behaviour policy mu.

        G_t = Q(s_t, a_t) + sum_k discount^k (prod_{1<=i<=k} c_{t+i}) delta_{t+k},
        delta_t = r_t + gamma_t E_pi Q(s_{t+1}, .) - Q(s_t, a_t),    c_t = lambda min(1, pi/mu).

    `q_values[t]` is Q(s_t, a_t), `next_values[t]` is E_pi Q(s_{t+1}, .), and `log_ratios[t]` is
    log pi(a_t|s_t) - log mu(a_t|s_t), in nats, summed over the components of the action.

    Source: Munos et al. 2016, "Safe and Efficient Off-Policy Reinforcement Learning", section 3.
    """
    (rewards, q_values, next_values, log_ratios), (discount, lambda_) = _check(
        {"rewards": rewards, "q_values": q_values, "next_values": next_values, "log_ratios": log_ratios},
        discount=discount,
        lambda_=lambda_,
    )
    terminated, continues = _ends(rewards, terminated, truncated)
    c = lambda_ * _clipped_ratio(log_ratios, 1.0)
    errors = rewards + discount * jnp.where(terminated, 0, next_values) - q_values
    return q_values + _accumulate(errors, discount * jnp.roll(c, -1, axis=0), continues)


@struct.dataclass
class Bootstrap:
    """What a window says of the value of its first step: `returns + discount * V(observation)`."""

    returns: jax.Array  # [B]: discounted sum of the rewards
    observation: jax.Array  # [B, *observation]: the one successor to evaluate
    discount: jax.Array  # [B]: of its value; 0 if the episode terminated


def bootstrap(window: Transition, discount: ArrayLike) -> Bootstrap:
    """Sum up each window `[n_step, B]`: the n-step return of its first step, but for the value of one successor.

        y = sum_{k<m} discount^k r_k + discount^m (1 - terminated_{m-1}) V(s_m),

    where m is n_step, or the number of steps up to and including the first end; s_m is the true successor of the last
    of them. Rows after the first end are not used, so that a window may be any piece of a rollout.

    Source: Sutton and Barto 2018, "Reinforcement Learning", eq. (7.1).

    >>> flag, number = jnp.array([[False], [True], [False]]), jnp.ones((3, 1))
    >>> window = Transition(number, number, number, number, terminated=~flag & flag, truncated=flag)
    >>> y = bootstrap(window, 0.5)
    >>> y.returns, y.discount
    (Array([1.5], dtype=float32), Array([0.25], dtype=float32))
    """
    taken = until_end(window.terminated | window.truncated)
    count = jnp.sum(taken, axis=0)
    discount = jnp.asarray(discount, window.reward.dtype)
    weights = discount ** jnp.arange(len(taken))[:, None]
    over = jnp.any(window.terminated & taken, axis=0)
    return Bootstrap(
        returns=jnp.sum(jnp.where(taken, weights * window.reward, 0), axis=0),
        observation=window.next_observation[count - 1, jnp.arange(len(count))],
        discount=jnp.where(over, 0, discount**count),
    )


def until_end(ended: jax.Array) -> jax.Array:
    """Which rows of a window `[n, B]` are not behind its first end, as bool `[n, B]`: the others are padding."""
    return jnp.cumsum(ended, axis=0) - ended == 0


def _accumulate(increments: jax.Array, factors: jax.Array, continues: jax.Array) -> jax.Array:
    """`x_t = increments_t + factors_t x_{t+1}`, without the second term where the episode does not continue."""

    def step(following: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        increment, factor, goes_on = row
        total = increment + factor * jnp.where(goes_on, following, 0)
        return total, total

    rows = (increments, jnp.where(continues, factors, 0), continues)
    return jax.lax.scan(step, jnp.zeros_like(increments[0]), rows, reverse=True)[1]


def _clipped_ratio(log_ratios: jax.Array, clip: ArrayLike) -> jax.Array:
    """`min(clip, exp(log_ratios))`, clipped before the exponential, which overflows in value or in gradient else."""
    return jnp.exp(jnp.minimum(log_ratios, jnp.log(jnp.asarray(clip, log_ratios.dtype))))


def _ends(rewards: jax.Array, terminated: ArrayLike, truncated: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Whether each step terminates, and whether the sums go on after it, as bool `[T, ...]`."""
    for name, flags in (("terminated", terminated), ("truncated", truncated)):
        _check_shape(name, jnp.shape(flags), rewards.shape)
    terminated, truncated = jnp.asarray(terminated) != 0, jnp.asarray(truncated) != 0
    return terminated, (~(terminated | truncated)).at[-1].set(False)


def _check(data: dict[str, ArrayLike], **settings: ArrayLike) -> tuple[list[jax.Array], list[jax.Array]]:
    """Check every shape against the rewards'; return data and settings as arrays of the data's float dtype."""
    shape = jnp.shape(data["rewards"])
    if not shape or not shape[0]:
        raise ValueError(f"rewards has shape {shape}, expected [T, ...]: time first, at least one step")
    for name, array in data.items():
        _check_shape(name, jnp.shape(array), shape)
    for name, setting in settings.items():
        got = jnp.shape(setting)
        if len(got) > len(shape) or any(g not in (1, s) for g, s in zip(got[::-1], shape[::-1], strict=False)):
            raise ValueError(
                f"{name} has shape {got}, expected a scalar or a shape that broadcasts to {shape}, that of rewards; "
                f"for one number a step, write {name}.reshape({(-1, *[1] * (len(shape) - 1))})"
            )
    dtype = jnp.result_type(*data.values(), float)
    return [jnp.asarray(x, dtype) for x in data.values()], [jnp.asarray(x, dtype) for x in settings.values()]


def _check_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError, with the likely cause, unless the two shapes are the same."""
    if got == expected:
        return
    cause = "data is time-major, [T, ...], with the same axes in every array"
    if len(got) > 1 and got == (*expected[1::-1], *expected[2:]):
        cause = f"is one of the two batch-major? swap its first two axes, as in {name}.swapaxes(0, 1)"
    elif got == (expected[0] + 1, *expected[1:]):
        cause = "one row too many: the value after the last step belongs into next_values, not at the end of values"
    elif got[:-1] == expected:
        cause = f"one axis too many: {name}.squeeze(-1) if it has one element, .sum(-1) for the parts of a log-ratio"
    raise ValueError(f"{name} has shape {got}, expected {expected}, that of rewards; {cause}")
