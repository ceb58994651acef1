"""Seconds for a posterior of the policy gradient: `python benchmarks/bayes/speed.py` writes speed.json.

A Gaussian policy with 10,143 parameters and M = 1,000 trajectories of 10 steps, without matrices, in 30 iterations at
most; 64 seeds at once with M = 100; and 64 seeds of a small policy, with matrices. A call begins with observations,
actions and returns and ends with the posterior, passes through the network and all.
"""

import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl.bayes import fisher, quadrature, scores

SIZES = (11, 93, 93, 3)  # observation, hidden layers, action


def init(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    layers = [
        {"w": jax.random.normal(k, (m, n)) / jnp.sqrt(m), "b": jnp.zeros(n)}
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    return {"layers": layers, "log_std": jnp.zeros(sizes[-1])}


def policy(params, observation):
    """Mean and log standard deviation of the action."""
    x = observation
    for layer in params["layers"][:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params["layers"][-1]["w"] + params["layers"][-1]["b"], params["log_std"]


def log_prob(params, observation, action):
    mean, log_std = policy(params, observation)
    return jnp.sum(-(((action - mean) * jnp.exp(-log_std)) ** 2) / 2 - log_std)


def batch(key, params, count, length):
    """Trajectories whose return is the negative distance from each action to the state."""
    state_key, action_key = jax.random.split(key)
    observations = jax.random.normal(state_key, (length, count, SIZES[0]))
    means, log_std = jax.vmap(jax.vmap(policy, (None, 0)), (None, 0))(params, observations)
    actions = means + jnp.exp(log_std) * jax.random.normal(action_key, means.shape)
    returns = -jnp.sum((actions - observations[..., : means.shape[-1]]) ** 2, axis=(0, 2))
    return observations, actions, (returns - jnp.mean(returns)) / jnp.std(returns)


def matrix_free(params, observations, actions, returns, key=None, damping=0.1, **settings):
    rows = scores.operator(log_prob, params, observations, actions)
    root = fisher.root(fisher.normal, policy, params, observations)
    return quadrature.gradient_posterior_matrix_free(
        rows, returns, root, 10.0, key, damping=damping, constant_variance=1e4, **settings
    )


def dense(params, observations, actions, returns):
    rows = scores.trajectories(log_prob, params, observations, actions)
    information = fisher.state_analytic(fisher.normal, policy, params, observations)
    return quadrature.gradient_posterior(rows, returns, fisher.damped(information, 0.1), 10.0, constant_variance=1e4)


def seconds(function, *arguments):
    """The least of three calls, by the clock and of all cores together, and the compilation."""
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compilation = time.perf_counter() - begin
    jax.block_until_ready(compiled(*arguments))
    calls = []
    for _ in range(3):
        begin = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        calls.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    clock, cores = (round(min(times), 3) for times in zip(*calls, strict=True))
    return {"seconds": clock, "core seconds": cores, "compilation": round(compilation, 1)}


def cosine(a, b):
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(x)]) for x in (a, b))
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def accuracy(params, data, damping):
    """How far 30 iterations come: the relative residual, and cosines with what 500 give."""
    solve = jax.jit(matrix_free, static_argnames="max_iterations")
    few, many = (solve(params, *data, damping=damping, max_iterations=n, tolerance=1e-4) for n in (30, 500))
    return {
        "residual": round(float(few.residual), 4),
        "residual of 500": round(float(many.residual), 6),
        "cosine": round(cosine(few.mean, many.mean), 4),
        "cosine, natural": round(cosine(few.natural_mean, many.natural_mean), 4),
    }


def main():
    params = init(jax.random.key(0), SIZES)
    data = batch(jax.random.key(1), params, 1000, 10)
    small = init(jax.random.key(0), (SIZES[0], 8, SIZES[-1]))
    seeds = jax.random.split(jax.random.key(3), 64)
    many = jax.vmap(lambda key: batch(key, params, 100, 10))(seeds)
    few = jax.vmap(lambda key: batch(key, small, 200, 10))(seeds)
    over_seeds = (None, 0, 0, 0)
    cases = {
        "matrix-free, M = 1000, n = 10143": (matrix_free, params, *data),
        "and 4 draws": (lambda *x: matrix_free(*x, num_draws=4), params, *data, jax.random.key(2)),
        "matrix-free, 64 seeds, M = 100, n = 10143": (jax.vmap(matrix_free, over_seeds), params, *many),
        "dense, 64 seeds, M = 200, n = 126": (jax.vmap(dense, over_seeds), small, *few),
    }
    record = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    record |= {name: seconds(*case) for name, case in cases.items()}
    data = batch(jax.random.key(4), params, 300, 10)
    record |= {f"30 iterations, M = 300, damping {x}": accuracy(params, data, x) for x in (0.1, 1.0)}
    record |= {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "jax": jax.__version__}
    print(json.dumps(record, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
