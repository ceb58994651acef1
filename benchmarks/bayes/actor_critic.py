"""Errors of Bayesian actor-critic where the gradient is known: `python benchmarks/bayes/actor_critic.py`.

Takes some minutes; writes actor_critic.json and actor_critic.png beside this file. The walk of ten states, policies of
nine parameters, from M = 5 to 100 episodes; every estimate sees the same ones.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import plot, returns, rollout
from jaxrl.bayes import actor_critic, fisher, gptd, kernels, quadrature, scores, triangular
from jaxrl.envs.control import RandomWalk

COUNTS = (5, 10, 20, 40, 60, 80, 100)  # M
DISCOUNT = 0.99
NOISE = 1.0  # variance of a return around the critic, at amplitude 1
CONSTANT = 1e4  # prior variance of a constant return of Model 2
NINETY = 14.68  # the 0.9 quantile of chi-squared with 9 degrees of freedom
PLACES = RandomWalk().states - 1


class Problem(NamedTuple):
    """A policy on the walk; the time limit is longer than 99 % of its episodes."""

    title: str
    theta: float  # of all places: right with probability sigmoid(theta)
    env: RandomWalk


PROBLEMS = {
    "even": Problem("random walk, right with probability 1/2", 0.0, RandomWalk(max_steps=400)),
    "uneven": Problem("random walk, right with probability 3/4", float(np.log(3)), RandomWalk(max_steps=100)),
}

WHOLE = "Monte Carlo, whole return"
BASE = "Monte Carlo, reward to go"
BASELINE = "Monte Carlo, reward to go, leave-one-out"
OURS = "BAC, state-analytic"
ORDER = (
    WHOLE,
    BASE,
    BASELINE,
    "BPG, Model 2 + constant",
    OURS,
    "BAC, exact",
    "BAC, state-analytic, noise 10",
    "BAC, state-analytic, noise 100",
    "BAC, state-analytic, evidence",
    "BAC, same-batch",
    "BAC, mass 1",
    "BAC, undiscounted visits",
)


def policy(params, x):
    """Logits of left and right at a one-hot place: right with probability sigmoid(params[x])."""
    return jnp.stack([jnp.zeros_like(params[0]), x @ params])


def log_prob(params, x, action):
    return jax.nn.log_softmax(policy(params, x))[action]


def state_features(places):
    """Those of the paper's kernel of states, of width 3, exact since every place is an anchor."""
    return kernels.inducing(lambda x, y: kernels.rbf(x, y, 3.0), jnp.arange(PLACES, dtype=float), places)


def exact(problem):
    """The gradient of the expected discounted return `[n]`, and the Fisher information of the visits `[n, n]`."""
    env, theta = problem.env, np.full(PLACES, problem.theta)
    model = env.model(env.params(), DISCOUNT)
    right = 1 / (1 + np.exp(-theta))
    probs = np.append(np.stack([1 - right, right], axis=1), [[1.0, 0.0]], axis=0)
    kernel = np.einsum("sa,sat->st", probs, np.asarray(model.transition))
    value = np.linalg.solve(np.eye(env.states) - DISCOUNT * kernel, np.sum(probs * np.asarray(model.reward), axis=1))
    q = np.asarray(model.reward) + DISCOUNT * np.asarray(model.transition) @ value
    visits = np.asarray(fisher.expected_visits(model, probs, DISCOUNT))[:PLACES]
    gradient = visits * right * (1 - right) * (q[:PLACES, 1] - q[:PLACES, 0])
    return gradient, fisher.exact(fisher.categorical, policy, jnp.asarray(theta), jnp.eye(PLACES), visits)


def sample(problem, key, count):
    """M episodes, as agents get them, `[T, M]`."""

    def act(observation, key):
        logits = jax.vmap(policy, (None, 0))(jnp.full(PLACES, problem.theta), observation)
        return jax.random.categorical(key, logits), {}

    return rollout.collect(problem.env, act, rollout.lanes(problem.env, count), key, problem.env.max_steps)[1]


def estimates(theta, batch, information):
    """All estimates of the gradient from a batch by name; the posteriors, stacked, and their names."""
    powers = DISCOUNT ** jnp.arange(len(batch.reward))[:, None]
    mask = returns.until_end(batch.terminated | batch.truncated)
    count = mask.shape[1]
    rewards = jnp.where(mask, batch.reward, 0)
    never = jnp.zeros_like(mask)
    to_go = returns.lambda_returns(rewards, jnp.zeros_like(rewards), never, never, DISCOUNT, 1.0)
    others = (jnp.sum(to_go, axis=1, keepdims=True) - to_go) / (count - 1)
    rows = scores.steps(log_prob, theta, batch.observation, batch.action, mask)
    points = gptd.points(batch.observation, batch.next_observation, mask)
    states = state_features((points @ jnp.arange(PLACES, dtype=float)).ravel()).reshape(*points.shape[:2], PLACES)

    def visits(discount):
        settings = (fisher.categorical, policy, theta, batch.observation, mask)
        return fisher.state_analytic(*settings, discount=discount)

    def critic(information, noise, amplitude):
        damped = fisher.damped(information, 1e-6)  # a few episodes may miss a place
        return actor_critic.gradient_posterior(
            rows, states, rewards, ended, damped, DISCOUNT, noise, amplitude=amplitude, mask=mask
        )

    ended = jnp.any(batch.terminated & mask, axis=0)
    analytic, undiscounted = visits(DISCOUNT), visits(1.0)
    best = actor_critic.evidence_grid(
        rows, states, rewards, ended, fisher.damped(analytic, 1e-6), DISCOUNT, np.geomspace(1.0, 1e4, 5), mask=mask
    )
    mass = jnp.sum(mask * powers) / count
    critics = {
        OURS: (analytic, NOISE, 1.0),
        "BAC, exact": (information, NOISE, 1.0),
        "BAC, state-analytic, noise 10": (analytic, 10 * NOISE, 1.0),
        "BAC, state-analytic, noise 100": (analytic, 100 * NOISE, 1.0),
        "BAC, state-analytic, evidence": (analytic, best.noise_variance, best.amplitude),
        "BAC, same-batch": (jnp.einsum("tmi,tm,tmj->ij", rows, mask * powers, rows) / count, NOISE, 1.0),
        "BAC, mass 1": (analytic / mass, NOISE, 1.0),
        "BAC, undiscounted visits": (undiscounted, NOISE, 1.0),
    }
    laws = jax.vmap(critic)(*(jnp.stack(column) for column in zip(*critics.values(), strict=True)))
    whole = jnp.sum(rows, axis=0)
    model_2 = quadrature.gradient_posterior(
        whole, to_go[0], fisher.damped(undiscounted, 1e-6), NOISE, constant_variance=CONSTANT
    )
    means = {
        WHOLE: jnp.mean(whole * to_go[0][:, None], axis=0),
        BASE: jnp.einsum("tmi,tm->i", rows, powers * to_go) / count,
        BASELINE: jnp.einsum("tmi,tm->i", rows, powers * (to_go - others)) / count,
        "BPG, Model 2 + constant": model_2.mean,
    }
    return means | dict(zip(critics, laws.mean, strict=True)), laws, tuple(critics)


def measure(problem, key, count, gradient, information):
    """Squared error and angle (degrees) of each estimate from `count` episodes, and who covers the gradient."""
    means, laws, names = estimates(jnp.full(PLACES, problem.theta), sample(problem, key, count), information)

    def angle(mean):
        cosine = mean @ gradient / jnp.linalg.norm(mean) / jnp.linalg.norm(gradient)
        return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))

    def covers(law):
        error = triangular.solve(triangular.cholesky(law.covariance), (gradient - law.mean)[:, None])
        return jnp.sum(error**2) <= NINETY

    covered = jax.vmap(covers)(laws)

    return {
        "error": {name: jnp.sum((mean - gradient) ** 2) for name, mean in means.items()},
        "angle": {name: angle(mean) for name, mean in means.items()},
        "coverage": dict(zip(names, covered, strict=True)),
    }


def table(problem, counts, repetitions, names=None, seed=0):
    """Means over repetitions of what `measure` gives, each `[len(counts)]`; of the estimates of these names, or all."""

    def run(count, keys, *truth):
        def one(key):
            rows = measure(problem, key, count, *truth)
            return {quantity: {k: row[k] for k in row if names is None or k in names} for quantity, row in rows.items()}

        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.lax.map(one, keys, batch_size=4))

    keys = jax.random.split(jax.random.key(seed), (len(counts), repetitions))
    columns = [jax.jit(run, static_argnums=0)(count, keys[i], *exact(problem)) for i, count in enumerate(counts)]
    return jax.tree.map(lambda *leaves: np.array(leaves), *columns)


# ----------------------------------------------------------------------------------------- output


def figure(path, results):
    """Error and angle against M."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    axes = canvas.subplots(2, len(PROBLEMS), sharex=True)
    for column, (name, problem) in enumerate(PROBLEMS.items()):
        for row, (quantity, label) in enumerate((("error", "mean squared error"), ("angle", "mean angle, degrees"))):
            panel = axes[row, column]
            for i, estimate in enumerate((WHOLE, BASE, BASELINE, "BPG, Model 2 + constant", "BAC, same-batch", OURS)):
                dashes, marker = plot.DASHES[i % len(plot.DASHES)], "" if i < len(plot.DASHES) else "o"
                values = results[name][quantity][estimate]
                panel.plot(COUNTS, values, color=plot.COLOURS[i], linestyle=dashes, marker=marker, label=estimate)
            panel.set(xscale="log", yscale="log", title=problem.title if row == 0 else "")
            panel.minorticks_off()
            panel.set_xticks(COUNTS, ["" if count == 80 else str(count) for count in COUNTS])
            if quantity == "angle":
                panel.set_yticks([10, 20, 50, 90], ["10", "20", "50", "90"])
            panel.grid(color="0.92", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
            if row == 1:
                panel.set_xlabel("episodes M")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    canvas.savefig(path, bbox_inches="tight")


def main(repetitions):
    begin = time.perf_counter()
    results = {}
    for name, problem in PROBLEMS.items():
        columns = table(problem, COUNTS, repetitions)
        results[name] = {
            quantity: {key: [float(f"{x:.4g}") for x in rows[key]] for key in ORDER if key in rows}
            for quantity, rows in columns.items()
        }
    settings = {
        "M": COUNTS,
        "repetitions": repetitions,
        "discount": DISCOUNT,
        "noise_variance": NOISE,
        "gradient": {name: [float(f"{x:.6g}") for x in exact(problem)[0]] for name, problem in PROBLEMS.items()},
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    here = Path(__file__)
    record = json.dumps({"settings": settings} | results, indent=1)
    here.with_suffix(".json").write_text(re.sub(r"\s+(?=[^\[\]{}]*\])", " ", record) + "\n")  # a list is a line
    figure(here.with_suffix(".png"), results)
    for name, result in results.items():
        for quantity, rows in result.items():
            print(f"\n{name + ': ' + quantity:42}" + "".join(f"{count:>11}" for count in COUNTS))
            for estimate, values in rows.items():
                print(f"{estimate:42}" + "".join(f"{value:11.4g}" for value in values))
    print(f"\n{settings['seconds']} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300)
    jax.config.update("jax_enable_x64", True)
    main(parser.parse_args().repetitions)
