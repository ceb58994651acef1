"""Learning with Bayesian policy gradients, beside Monte Carlo at equal samples.

    python benchmarks/bayes/learning.py linear-quadratic    # minutes: the problem of the paper, M = 5 and 20 episodes
    python benchmarks/bayes/learning.py pendulum            # a quarter of an hour: dbqpg on Brax's inverted pendulum
    python benchmarks/bayes/learning.py reacher             # minutes: on Brax's reacher

writes learning-NAME.json (settings, versions, raw results) and learning-NAME.png beside this file.
"""

import argparse
import functools
import json
import os
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # each core takes its share of the seeds

from jaxrl import envs, evaluate, log, plot, stats, train  # noqa: E402
from jaxrl.agents import dbqpg  # noqa: E402
from jaxrl.bayes import fisher, quadrature, scores, triangular  # noqa: E402
from jaxrl.types import Rollout  # noqa: E402

HERE = Path(__file__).parent
RUNS = Path("runs/bayes")


# ------------------------------------------------------------------------------- linear-quadratic

LENGTH, UPDATES = 20, 100
COUNTS = (5, 20)  # M, episodes of an update
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # step sizes; each method has the best of them
SHOWN = (10, 20, 50, 100)  # updates
START = (-2.2, -6.0)  # gain -0.2, standard deviation 0.999
NOISE, CONSTANT = 0.1, 1e4  # noise variance at amplitude 1; prior variance of a constant
DAMPING = 1e-9  # of the Fisher information: where the sigmoid of the standard deviation is flat, it has a 0


def gain_and_std(nu):
    """The paper's parametrisation: an action is N(gain x, std^2)."""
    return -1.999 + 1.998 * jax.nn.sigmoid(-nu[0]), 0.001 + jax.nn.sigmoid(-nu[1])


def policy(nu, x):
    """Mean and log standard deviation of an action."""
    gain, std = gain_and_std(nu)
    return gain * x, jnp.log(std)


def log_prob(nu, x, action):
    """Log density of an action, up to its constant."""
    mean, log_std = policy(nu, x)
    return -((action - mean) ** 2) * jnp.exp(-2 * log_std) / 2 - log_std


def expected_cost(nu):
    """By the recursion of E x^2: x_0 ~ N(0.3, 0.001), x' = x + a + N(0, 0.01), cost x^2 + a^2 / 10, 20 steps."""
    gain, std = gain_and_std(nu)

    def step(second, _):
        cost = (1 + 0.1 * gain**2) * second + 0.1 * std**2
        return (1 + gain) ** 2 * second + std**2 + 0.01, cost

    return jnp.sum(jax.lax.scan(step, jnp.asarray(0.3**2 + 0.001), length=LENGTH)[1])


def episodes(nu, key, count):
    """States and actions [T, M] and returns [M]."""
    start_key, noise_key, action_key = jax.random.split(key, 3)
    normals = jax.random.normal(action_key, (LENGTH, count)), jax.random.normal(noise_key, (LENGTH, count))
    gain, std = gain_and_std(nu)

    def step(x, random):
        action = gain * x + std * random[0]
        return x + action + 0.1 * random[1], (x, action)

    start = 0.3 + np.sqrt(0.001) * jax.random.normal(start_key, (count,))
    _, (states, actions) = jax.lax.scan(step, start, normals)
    return states, actions, -jnp.sum(states**2 + 0.1 * actions**2, axis=0)


def solved(information, gradient):
    """The natural gradient, G^-1 gradient."""
    factor = triangular.cholesky(information)
    return triangular.solve_transposed(factor, triangular.solve(factor, gradient[:, None]))[:, 0]


def monte_carlo(rows, returns, information):
    """The mean of R u."""
    return rows.T @ returns / len(returns)


def leave_one_out(rows, returns, information):
    """Monte Carlo with the mean return of the other episodes as baseline."""
    return monte_carlo(rows, (returns - jnp.mean(returns)) * len(returns) / (len(returns) - 1), information)


def model(rows, returns, information, kernel="fisher", same_batch=False, evidence=False):
    """The posterior mean of the gradient, with the Fisher information of the batch's states, or of its scores."""
    constant = CONSTANT if kernel == "fisher" else 0.0
    prior = fisher.damped(fisher.same_batch(rows), DAMPING) if same_batch else information
    noise, amplitude = NOISE, 1.0
    if evidence:
        best = quadrature.evidence_grid(rows, returns, prior, kernel=kernel, constant_variance=constant)
        noise, amplitude = best.noise_variance, best.amplitude
    return quadrature.gradient_posterior(
        rows, returns, prior, noise, amplitude=amplitude, kernel=kernel, constant_variance=constant
    ).mean


METHODS = {
    "Monte Carlo": monte_carlo,
    "Monte Carlo, leave-one-out": leave_one_out,
    "Model 1": functools.partial(model, kernel="quadratic"),
    "Model 2 + constant": model,
    "Model 2 + constant, evidence": functools.partial(model, evidence=True),
    "Model 2 + constant, same-batch Fisher": functools.partial(model, same_batch=True),
}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def learn(method, natural, count, rates, keys):
    """The exact cost after each update, `[rates, runs, updates + 1]`; all methods see the same random numbers."""

    def update(nu, random):
        rate, key = random
        states, actions, returns = episodes(nu, key, count)
        rows = scores.trajectories(log_prob, nu, states, actions)
        information = fisher.damped(fisher.state_analytic(fisher.normal, policy, nu, states), DAMPING)
        gradient = METHODS[method](rows, returns, information)
        step = solved(information, gradient) if natural else gradient
        return nu + rate * step, expected_cost(nu)

    def run(rate, key):
        random = jnp.full(UPDATES + 1, rate), jax.random.split(key, UPDATES + 1)
        return jax.lax.scan(update, jnp.array(START), random)[1]

    return jax.vmap(lambda rate: jax.vmap(lambda key: run(rate, key))(keys))(rates)


def linear_quadratic(runs=100):
    """Every method and every step size, 100 runs each."""
    begin = time.perf_counter()
    results = {}
    keys = jax.random.split(jax.random.key(0), runs)
    for count in COUNTS:
        for natural in (False, True):
            for method in METHODS:
                costs = np.asarray(learn(method, natural, count, jnp.array(RATES), keys))
                mean = np.where(np.isfinite(costs), costs, np.inf).mean(axis=1)  # [rates, updates + 1]
                best = int(np.argmin(mean[:, SHOWN[0]] if natural else mean[:, -1]))
                name = f"{method}, natural" if natural else method
                results.setdefault(str(count), {})[name] = {
                    "rate": RATES[best],
                    "mean": mean[best].tolist(),
                    "median": np.median(costs[best], axis=0).tolist(),
                    "runs": costs[best][:, list(SHOWN)].tolist(),
                    "mean of every rate": mean[:, list(SHOWN)].tolist(),
                }
                shown = "".join(f"{mean[best, k]:10.3f}" for k in SHOWN)
                print(f"M = {count:<4}{name:50} {RATES[best]:<6}{shown}", flush=True)
    gains = jnp.stack([jnp.linspace(-2, 2, 4001), jnp.full(4001, 50.0)], axis=1)  # of the least standard deviation
    optimum = float(jnp.min(jax.vmap(expected_cost)(gains)))
    settings = {
        "command": "python benchmarks/bayes/learning.py linear-quadratic",
        "runs": runs,
        "updates": list(SHOWN),
        "rates": RATES,
        "best rate": "by the mean cost after 10 updates (natural), or after 100",
        "noise_variance": NOISE,
        "constant_variance": CONSTANT,
        "damping": DAMPING,
        "cost of the start": float(expected_cost(jnp.array(START))),
        "least cost": optimum,
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    results = jax.tree.map(lambda x: float(f"{x:.4g}") if isinstance(x, float) else x, results)
    write("linear-quadratic", {"settings": settings} | results)
    figure(HERE / "learning-linear-quadratic.png", results, optimum)


def figure(path, results, optimum):
    """Mean cost against updates, natural methods."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    panels = canvas.subplots(1, len(COUNTS), sharey=True)
    for panel, count in zip(panels, COUNTS, strict=True):
        for i, method in enumerate(METHODS):
            mean = results[str(count)][f"{method}, natural"]["mean"]
            dashes = plot.DASHES[i % len(plot.DASHES)]
            panel.plot(range(len(mean)), mean, color=plot.COLOURS[i], linestyle=dashes, label=method)
        panel.axhline(optimum, color="0.6", linewidth=0.8)
        panel.set(yscale="log", xlabel="updates", title=f"natural gradient, M = {count} episodes", xlim=(0, 50))
        panel.grid(color="0.92", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("expected cost, mean of 100 runs")
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    canvas.savefig(path, bbox_inches="tight")


# ------------------------------------------------------------------------------------------ Brax

STEPS = 163_840
TASKS = {"pendulum": ("inverted_pendulum", 16), "reacher": ("reacher", 8)}  # environment, seeds
CONFIG = dbqpg.Config(learning_rate=3e-3, max_kl=0.03, data=Rollout(num_envs=64, length=32))
AGENTS = {
    "dbqpg": CONFIG,
    "plain (quadrature=False)": CONFIG.replace(quadrature=False),
}


def deep(task):
    """DBQPG and its plain counterpart, from the same starts with the same random numbers."""
    title, seeds = TASKS[task]
    env = envs.make(f"brax/{title}")
    record, series = {"command": f"python benchmarks/bayes/learning.py {task}", "environment": repr(env)}, {}
    for name, config in AGENTS.items():
        directory = RUNS / task / name.partition(" ")[0]
        result = train.fit(
            dbqpg,
            config,
            env,
            jax.random.key(0),
            steps=STEPS,
            seeds=seeds,
            evaluate_every=STEPS / 8,
            episodes=8,
            run_dir=directory,
            resume=True,
        )
        steps, sampled = result.evaluations["steps"], result.evaluations["sampled"].mean(-1)
        record[name] = {
            "config": log.describe(config),
            "seconds, compilation and evaluations included": round(float(log.read(directory)["seconds"].max()), 1),
            "steps": steps.tolist(),
            "returns, actions sampled": sampled.tolist(),
            "returns, greedy": result.evaluations["greedy"].mean(-1).tolist(),
        }
        series[name] = steps, sampled
    random = float(jax.jit(lambda key: evaluate.random_returns(env, key, episodes=256))(jax.random.key(1)).mean())
    record |= {"random policy": random, "versions": {"jax": jax.__version__}}
    write(task, record)
    plot.curves(
        HERE / f"learning-{task}.png",
        series,
        xlabel="environment steps (per seed)",
        ylabel="return of an episode, actions sampled",
        title=f"Brax {title} (spring): natural steps of {CONFIG.max_kl} nats, 64 environments x 32 steps",
        references={f"random policy ({random:.0f})": random},
    )
    for name, (at, returns) in series.items():
        for share in (1 / 3, 2 / 3, 1.0):
            point = int(np.argmin(np.abs(at - share * at[-1])))
            low, high = stats.bootstrap_interval(returns[:, point], stats.mean)
            print(f"{name:<26} {at[point]:>9,} steps: mean {returns[:, point].mean():6.1f}  [{low:.1f}, {high:.1f}]")
        area = returns.mean(axis=1)
        low, high = stats.bootstrap_interval(area, stats.mean)
        print(f"{name:<26} mean over the run {area.mean():6.1f}  [{low:.1f}, {high:.1f}]")


# ---------------------------------------------------------------------------------------- output


def write(name, record):
    text = json.dumps(record, indent=1)
    (HERE / f"learning-{name}.json").write_text(re.sub(r"\s+(?=[^\[\]{}]*\])", " ", text) + "\n")  # a list is a line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("linear-quadratic", *TASKS))
    name = parser.parse_args().name
    if name in TASKS:
        deep(name)
    else:
        with jax.enable_x64(True):
            linear_quadratic()
