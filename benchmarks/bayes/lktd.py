"""Do credible intervals of a critic hold the values? `python benchmarks/bayes/lktd.py` writes lktd.json.

A ring of 20 states whose values are drawn from the prior of the critic, linear in Fourier features of the angle or a
network; 30 such problems, each with 100 transitions from 14 of the states and rewards with noise of known size, so that
some values follow from few rewards, or from none. Their law is learned by LKTD, by an ensemble of critics that differ
in their start alone and are trained by Adam on the same squared errors, and for the linear critic by exact Kalman TD.
Reported: how often the 90 % interval holds the true value, its width, and the error of its centre. Takes minutes.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.bayes import kalman

STATES, SEEN, DISCOUNT, NOISE = 20, 14, 0.7, 0.5  # NOISE: standard deviation of a reward
ANGLES = 2 * np.pi * np.arange(STATES) / STATES
FOURIER = np.stack([f(k * ANGLES) for k in range(1, 5) for f in (np.sin, np.cos)] + [np.ones(STATES)], axis=1)
CIRCLE = FOURIER[:, :4] * np.sqrt(2)
SIZES = (4, 32, 32, 1)


class Critic(NamedTuple):
    """Parameters from the prior N(0, I), and the value of every state given them, `[STATES]`."""

    draw: Callable
    values: Callable


def network(params):
    x = CIRCLE
    for i, (w, b) in enumerate(params):
        x = (jnp.tanh(x) if i else x) @ w / np.sqrt(len(w)) + b
    return 2 * x[:, 0]


def weights(key):
    keys = jax.random.split(key, 2 * len(SIZES))
    shapes = zip(keys[::2], keys[1::2], SIZES[:-1], SIZES[1:], strict=False)
    return [(jax.random.normal(k, (m, n)), jax.random.normal(j, (n,))) for k, j, m, n in shapes]


LINEAR = Critic(lambda key: jax.random.normal(key, FOURIER.shape[1:]), lambda w: FOURIER @ w)
DEEP = Critic(weights, network)


def problem(key, critic, slip, count=100):
    """True values `[STATES]`, and states, successors and rewards, `[count]` each; one step in 1 / slip stays."""
    keys = jax.random.split(key, 4)
    value = critic.values(critic.draw(keys[0]))
    state = jax.random.randint(keys[1], (count,), 0, SEEN)
    following = jnp.where(jax.random.bernoulli(keys[2], slip, (count,)), state, (state + 1) % STATES)
    reward = value - DISCOUNT * ((1 - slip) * jnp.roll(value, -1) + slip * value)
    return value, (state, following, reward[state] + NOISE * jax.random.normal(keys[3], (count,)))


def differences(value, state, following):
    return value[state] - DISCOUNT * value[following]


def by_lktd(data, key, critic, draws, steps, step_size=2e-3):
    """Values `[draws, STATES]` of parallel chains that start in the prior."""
    state, following, rewards = data
    settings = {"noise_variance": NOISE**2, "share": 0.5}

    def predict(params):
        return differences(critic.values(params), state, following)

    def chain(key):
        keys = jax.random.split(key, 3)
        law = kalman.lktd_init(critic.draw(keys[0]), predict, rewards, keys[1], **settings)

        def step(law, key):
            return kalman.lktd_step(
                law, predict, rewards, key, step_size=step_size, prior_variance=1.0, **settings
            ), None

        law, _ = jax.lax.scan(step, law, jax.random.split(keys[2], steps))
        return critic.values(law.params)

    return jax.vmap(chain)(jax.random.split(key, draws))


def by_ensemble(data, key, critic, draws, steps, rate=3e-3):
    """Values `[draws, STATES]` of critics that start in the prior and are trained by Adam."""
    state, following, rewards = data
    adam = optax.adam(rate)

    def loss(params):
        return jnp.mean((rewards - differences(critic.values(params), state, following)) ** 2)

    def member(key):
        params = critic.draw(key)

        def step(carry, _):
            params, opt_state = carry
            move, opt_state = adam.update(jax.grad(loss)(params), opt_state)
            return (optax.apply_updates(params, move), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), None, length=steps)
        return critic.values(params)

    return jax.vmap(member)(jax.random.split(key, draws))


def by_kalman(data):
    """Mean and variance of the value of every state for weights ~ N(0, I) of the Fourier features."""
    state, following, rewards = data
    features = jnp.asarray(FOURIER)

    def step(law, row):
        return kalman.kalman_td_step(
            law, features[row[0]], features[row[1]], row[2], False, discount=DISCOUNT, noise_variance=NOISE**2
        )

    law, _ = jax.lax.scan(step, kalman.init(features.shape[1], 1.0), (state, following, rewards))
    return kalman.value(law, features)


def scores(mean, variance, true, level=0.9):
    """Coverage, width and error, over states with data and the others, for `[problems, STATES]`."""
    low, high = kalman.interval(mean, variance, level)
    hit, width, error = (low < true) & (true < high), high - low, (mean - true) ** 2
    parts = {"with data": slice(0, SEEN), "without": slice(SEEN, STATES)}
    return {
        name: {
            "coverage": round(float(jnp.mean(hit[:, part])), 3),
            "width": round(float(jnp.mean(width[:, part])), 3),
            "error": round(float(jnp.sqrt(jnp.mean(error[:, part]))), 3),
        }
        for name, part in parts.items()
    }


@functools.partial(jax.jit, static_argnames=("critic", "problems", "draws", "steps"))
def laws(key, slip, critic, problems, draws, steps):
    """True values `[problems, STATES]`, and means and variances by method."""

    def one(key):
        keys = jax.random.split(key, 3)
        true, data = problem(keys[0], critic, slip)
        found = {"LKTD": by_lktd(data, keys[1], critic, draws, steps)}
        found["ensemble"] = by_ensemble(data, keys[2], critic, draws, steps)
        moments = {name: (jnp.mean(x, axis=0), jnp.var(x, axis=0, ddof=1)) for name, x in found.items()}
        return true, moments | ({"Kalman TD": by_kalman(data)} if critic is LINEAR else {})

    return jax.vmap(one)(jax.random.split(key, problems))


def study(slip, problems, draws, steps, seed):
    rows = {}
    for name, critic in {"linear": LINEAR, "network": DEEP}.items():
        true, found = laws(jax.random.key(seed), slip, critic, problems, draws, steps)
        rows |= {f"{name}, {method}": scores(*law, true) for method, law in found.items()}
    return rows


def main(problems, draws, steps, seed):
    begin = time.perf_counter()
    record = {
        "model holds: no slips": study(0.0, problems, draws, steps, seed),
        "model does not hold: one step in five stays": study(0.2, problems, draws, steps, seed),
    }
    record["settings"] = {"problems": problems, "draws": draws, "steps": steps, "jax": jax.__version__}
    record["settings"]["seconds"] = round(time.perf_counter() - begin, 1)
    text = json.dumps(record, indent=1)
    print(text)
    Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
