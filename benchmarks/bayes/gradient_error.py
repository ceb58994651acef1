"""Errors of estimates of the policy gradient, where it is known: `python benchmarks/bayes/gradient_error.py`.

Takes about a minute; writes gradient_error.json and gradient_error.png beside this file. Bandits with and without noise
in the reward, and the linear-quadratic problem, from M = 5 to 100 trajectories; every estimate sees the same ones.
"""

import argparse
import functools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import plot
from jaxrl.bayes import fisher, quadrature, scores, triangular

COUNTS = (5, 10, 20, 40, 60, 80, 100)  # M; the batches are of the last, and masked
CONSTANT = 1e4  # prior variance of a constant return: next to no prior
NINETY = 2 * np.log(10)  # the 0.9 quantile of chi-squared with 2 degrees of freedom


# --------------------------------------------------------------------------------------- problems


class Batch(NamedTuple):
    """M trajectories of T steps, and their returns."""

    observations: jax.Array  # [T, M]
    actions: jax.Array  # [T, M]
    returns: jax.Array  # [M]


class Problem(NamedTuple):
    """A policy, how it is sampled, and what is to be estimated."""

    title: str
    sample: Callable[[jax.Array, int], Batch]  # (key, M) -> Batch
    policy: Callable  # (params, observation) -> mean, log_std of the action
    params: tuple[float, float]
    gradient: np.ndarray  # [2], exact
    fisher: np.ndarray  # [2, 2], exact
    noise_variance: float  # that the models are told, at amplitude 1


def bandit_policy(params, _):
    """One action, normal with mean theta_0 and standard deviation theta_1."""
    return params[0], jnp.log(params[1])


def linear_policy(params, x):
    """Mean theta_0 x, standard deviation theta_1."""
    return params[0] * x, jnp.log(params[1])


def bandit(title, reward, gradient, noise):
    """The reward of an action a ~ N(0, 1) is `reward(a)` and normal noise."""

    def sample(key, count):
        action_key, noise_key = jax.random.split(key)
        actions = jax.random.normal(action_key, (1, count))
        returns = reward(actions[0]) + noise * jax.random.normal(noise_key, (count,))
        return Batch(jnp.zeros((1, count)), actions, returns)

    return Problem(
        title, sample, bandit_policy, (0.0, 1.0), np.array(gradient), np.diag([1.0, 2.0]), 1.0 if noise else 1e-3
    )


def linear_quadratic(gain=-0.2, std=1.0, length=20):
    """A line with x' = x + a + N(0, 0.01), a ~ N(gain x, std^2), x_0 ~ N(0.3, 0.001), return -sum x^2 + a^2 / 10."""

    def sample(key, count):
        start_key, noise_key, action_key = jax.random.split(key, 3)
        noises = 0.1 * jax.random.normal(noise_key, (length, count))
        normals = std * jax.random.normal(action_key, (length, count))

        def step(x, random):
            action = gain * x + random[0]
            return x + action + random[1], (x, action)

        start = 0.3 + np.sqrt(0.001) * jax.random.normal(start_key, (count,))
        _, (states, actions) = jax.lax.scan(step, start, (normals, noises))
        return Batch(states, actions, -jnp.sum(states**2 + 0.1 * actions**2, axis=0))

    _, gradient, information = linear_quadratic_exact(gain, std, length)
    title = f"linear-quadratic, {length} steps"
    return Problem(title, sample, linear_policy, (gain, std), gradient, information, 0.1)


def linear_quadratic_exact(gain, std, length):
    """The expected return, its gradient and the Fisher information, by the recursion of E x^2 and of its slopes."""
    second, slope = 0.3**2 + 0.001, np.zeros(2)
    value, gradient, states = 0.0, np.zeros(2), 0.0
    for _ in range(length):
        value -= (1 + 0.1 * gain**2) * second + 0.1 * std**2
        gradient -= (1 + 0.1 * gain**2) * slope + 0.2 * np.array([gain * second, std])
        states += second
        slope = (1 + gain) ** 2 * slope + 2 * np.array([(1 + gain) * second, std])
        second = (1 + gain) ** 2 * second + std**2 + 0.01
    return value, gradient, np.diag([states, 2 * length]) / std**2


PROBLEMS = {
    "bandit-linear": bandit("bandit, reward a + N(0, 1)", lambda a: a, (1.0, 0.0), noise=1.0),
    "bandit-quadratic": bandit("bandit, reward a² + N(0, 1)", jnp.square, (0.0, 2.0), noise=1.0),
    "bandit-noise-free": bandit("bandit, reward a²", jnp.square, (0.0, 2.0), noise=0.0),
    "linear-quadratic": linear_quadratic(),
}


# -------------------------------------------------------------------------------------- estimates


def log_prob(policy, params, observation, action):
    """Log density of a normal action, up to its constant."""
    mean, log_std = policy(params, observation)
    return -((action - mean) ** 2) * jnp.exp(-2 * log_std) / 2 - log_std


def monte_carlo(rows, returns, mask):
    """The mean of R_i u_i."""
    return jnp.where(mask, returns, 0) @ rows / jnp.sum(mask)


def leave_one_out(rows, returns, mask):
    """Monte Carlo with the mean return of the other trajectories as baseline."""
    others = (jnp.sum(jnp.where(mask, returns, 0)) - returns) / (jnp.sum(mask) - 1)
    return monte_carlo(rows, returns - others, mask)


def estimates(problem, batch, mask):
    """All estimates from the real trajectories of a batch: means by name, and posteriors by name."""
    params = jnp.array(problem.params)
    rows = scores.trajectories(functools.partial(log_prob, problem.policy), params, batch.observations, batch.actions)
    steps = jnp.broadcast_to(mask, batch.actions.shape)
    informations = {
        "exact": jnp.asarray(problem.fisher),
        "state-analytic": fisher.state_analytic(fisher.normal, problem.policy, params, batch.observations, steps),
        "same-batch": fisher.same_batch(rows, mask),
    }

    def posterior(information, noise_variance=problem.noise_variance, **settings):
        return quadrature.gradient_posterior(
            rows, batch.returns, informations[information], noise_variance, mask=mask, **settings
        )

    def by_evidence(information):
        best = quadrature.evidence_grid(
            rows, batch.returns, informations[information], constant_variance=CONSTANT, mask=mask
        )
        return posterior(information, best.noise_variance, constant_variance=CONSTANT, amplitude=best.amplitude)

    means = {
        "Monte Carlo": monte_carlo(rows, batch.returns, mask),
        "Monte Carlo, leave-one-out": leave_one_out(rows, batch.returns, mask),
    }
    posteriors = {
        "Model 1, exact": posterior("exact", kernel="quadratic"),
        "Model 1, state-analytic": posterior("state-analytic", kernel="quadratic"),
        "Model 1, same-batch": posterior("same-batch", kernel="quadratic"),
        "Model 2, exact": posterior("exact"),
        "Model 2, same-batch": posterior("same-batch"),
        "Model 2 + constant, exact": posterior("exact", constant_variance=CONSTANT),
        "Model 2 + constant, state-analytic": posterior("state-analytic", constant_variance=CONSTANT),
        "Model 2 + constant, same-batch": posterior("same-batch", constant_variance=CONSTANT),
        "Model 2 + constant, state-analytic, evidence": by_evidence("state-analytic"),
    }
    return means | {name: law.mean for name, law in posteriors.items()}, posteriors


def measure(problem, key, count, largest):
    """Squared error and angle (degrees) of each estimate from `count` trajectories, and who covers the gradient."""
    batch = problem.sample(key, largest)
    means, posteriors = estimates(problem, batch, jnp.arange(largest) < count)
    exact = jnp.asarray(problem.gradient)

    def angle(mean):
        cosine = mean @ exact / jnp.linalg.norm(mean) / jnp.linalg.norm(exact)
        return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))

    def covers(law):
        error = triangular.solve(triangular.cholesky(law.covariance), (exact - law.mean)[:, None])
        return jnp.sum(error**2) <= NINETY

    return {
        "error": {name: jnp.sum((mean - exact) ** 2) for name, mean in means.items()},
        "angle": {name: angle(mean) for name, mean in means.items()},
        "coverage": {name: covers(law) for name, law in posteriors.items() if name.startswith("Model 2 + constant")},
    }


def table(problem, counts, repetitions, names=None, seed=0):
    """Means over repetitions of what `measure` gives, each `[len(counts)]`; of the estimates of these names, or all."""

    def some(key, count):
        rows = measure(problem, key, count, max(COUNTS))
        return {quantity: {k: row[k] for k in row if names is None or k in names} for quantity, row in rows.items()}

    @jax.jit
    def run(counts, keys):
        each = jax.vmap(some, in_axes=(None, 0))
        results = jax.lax.map(lambda key: each(key, counts), keys, batch_size=250)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), results)

    return jax.tree.map(np.asarray, run(jnp.array(counts), jax.random.split(jax.random.key(seed), repetitions)))


# ----------------------------------------------------------------------------------------- output


def figure(path, results):
    """Error and angle against M."""
    from matplotlib.figure import Figure

    shown = {
        "Monte Carlo": "Monte Carlo",
        "Monte Carlo, leave-one-out": "Monte Carlo, leave-one-out baseline",
        "Model 2 + constant, same-batch": "Model 2 + constant, same-batch Fisher",
        "Model 2 + constant, state-analytic": "Model 2 + constant, state-analytic Fisher",
        "Model 2 + constant, exact": "Model 2 + constant, exact Fisher",
        "Model 1, exact": "Model 1, exact Fisher",
    }
    names = ("bandit-linear", "bandit-quadratic", "linear-quadratic")
    canvas = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    axes = canvas.subplots(2, len(names), sharex=True)
    for column, name in enumerate(names):
        for row, (quantity, label) in enumerate((("error", "mean squared error"), ("angle", "mean angle, degrees"))):
            panel = axes[row, column]
            for i, (estimate, words) in enumerate(shown.items()):
                values, dashes = results[name][quantity][estimate], plot.DASHES[i % len(plot.DASHES)]
                marker = "" if i < len(plot.DASHES) else "o"
                panel.plot(COUNTS, values, color=plot.COLOURS[i], linestyle=dashes, marker=marker, label=words)
            panel.set(xscale="log", yscale="log", title=PROBLEMS[name].title if row == 0 else "")
            panel.minorticks_off()
            panel.set_xticks(COUNTS, ["" if count == 80 else str(count) for count in COUNTS])
            if quantity == "angle":
                panel.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
            panel.grid(color="0.92", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
            if row == 1:
                panel.set_xlabel("trajectories M")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    canvas.savefig(path, bbox_inches="tight")


def rounded(tree):
    return jax.tree.map(lambda leaf: [float(f"{x:.4g}") for x in leaf], tree)


def main(repetitions):
    begin = time.perf_counter()
    results = {name: rounded(table(problem, COUNTS, repetitions)) for name, problem in PROBLEMS.items()}
    settings = {
        "M": COUNTS,
        "repetitions": repetitions,
        "constant_variance": CONSTANT,
        "noise_variance": {name: problem.noise_variance for name, problem in PROBLEMS.items()},
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    here = Path(__file__)
    record = json.dumps({"settings": settings} | results, indent=1)
    here.with_suffix(".json").write_text(re.sub(r"\s+(?=[^\[\]{}]*\])", " ", record) + "\n")  # a list is a line
    figure(here.with_suffix(".png"), results)
    for name, result in results.items():
        for quantity, rows in result.items():
            print(f"\n{name}: {quantity}" + "".join(f"{count:>11}" for count in COUNTS))
            for estimate, values in rows.items():
                print(f"{estimate:46}" + "".join(f"{value:11.4g}" for value in values))
    print(f"\n{settings['seconds']} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    jax.config.update("jax_enable_x64", True)
    main(parser.parse_args().repetitions)
