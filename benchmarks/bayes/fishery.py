"""A fishery near a tipping point, managed from 40 years of data: `python benchmarks/bayes/fishery.py`.

Takes some minutes; writes fishery.json and fishery.png beside this file. 100 histories each of an unharvested stock
that recovers from just above its Allee threshold, from further up, and that stays near its capacity. From each: the
best harvest for a Gaussian process; for three parametric models by maximum likelihood (Ricker, without a threshold;
Allen, the truth's form; Myers); and for that of the three which Akaike's criterion selects. Each policy then manages
100 stocks for 50 years, with the same noise.

The settings are those of Boettiger, Mangel and Munch 2015, and of their published code where the paper is silent; the
first stock of their histories is 5.5.
"""

import argparse
import functools
import json
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import mdp, plot
from jaxrl.bayes import gp, gpdp, minimise
from jaxrl.envs.fishery import Fishery
from jaxrl.mdp.harvest import harvest, log_normal_law

ENV = Fishery()
PARAMS = ENV.params()
LEVELS = jnp.linspace(0, 15, 50)
DISCOUNT = 0.99
YEARS = 40  # of a history
FIRST = (5.5, 6.5, 8.0)  # its first stock
COLLAPSED = 1.0  # a stock below is as good as gone: the threshold is 5

# models of log(x' / s): parameters and their ranges, the paper's priors
RANGES = {
    "Ricker": ((0.01, 20.0), (0.01, 40.0)),  # r, K
    "Allen": ((0.01, 6.0), (0.01, 20.0), (0.01, 20.0)),  # r, K, C
    "Myers": ((1e-4, 10.0), (1e-4, 40.0), (1e-4, 10.0)),  # r, K, theta
}


def log_growth(name, p, s):
    if name == "Ricker":
        return p[0] * (1 - s / p[1])
    if name == "Allen":
        return p[0] * (1 - s / p[1]) * (s - p[2]) / p[1]
    return jnp.log(p[0]) + (p[2] - 1) * jnp.log(s) - jnp.log1p(s ** p[2] / p[1])


# -------------------------------------------------------------------------------------------- data


def unharvested(first, key):
    """The stock of a history, `[YEARS]`."""

    def year(stock, key):
        stock, _ = ENV.step(PARAMS, stock, jnp.zeros(1), key)
        return stock, stock

    _, later = jax.lax.scan(year, first, jax.random.split(key, YEARS - 1))
    return jnp.append(first, later)


# ------------------------------------------------------------------------------- models of the growth


def fitted(name, left, stock, key, restarts=16, steps=100):
    """Maximum likelihood in the ranges: parameters, sigma, AIC."""
    low, high = jnp.asarray(RANGES[name]).T
    observed = jnp.log(stock / left)

    def parameters(u):
        return low + (high - low) * jax.nn.sigmoid(u)

    def loss(u):
        return jnp.log(jnp.mean((observed - log_growth(name, parameters(u), left)) ** 2) + 1e-12)

    us, losses = minimise.lbfgs(loss, 1.5 * jax.random.normal(key, (restarts, len(low))), steps)
    best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    sigma2 = jnp.exp(losses[best])
    aic = len(left) * (jnp.log(2 * jnp.pi * sigma2) + 1) + 2 * (len(low) + 1)
    return parameters(us[best]), jnp.sqrt(sigma2), aic


def parametric(name, p, sigma):
    """The law of the next stock on the levels."""
    s = jnp.where(LEVELS > 0, LEVELS, 1)
    log_mean = jnp.where(LEVELS > 0, jnp.log(s) + log_growth(name, p, s), -jnp.inf)
    return log_normal_law(LEVELS, log_mean, sigma)


def of_most_evidence(left, stock, key):
    """The Gaussian process with the settings of most evidence, and no average over them."""
    inputs, targets = jnp.append(left, 0.0)[:, None], jnp.append(stock, 0.0)
    scale = jnp.ones_like(targets).at[-1].set(0)
    found = gp.fit(inputs, targets, key, noise_scale=scale).settings
    one = jax.tree.map(lambda leaf: leaf[None], found)
    return gpdp.transition(gp.mixture(inputs, targets, one, noise_scale=scale), LEVELS)


def of_the_paper(left, stock):
    """Amplitude 1, and length and noise averaged over their posterior under the priors of the published code."""
    inputs, targets = jnp.append(left, 0.0)[:, None], jnp.append(stock, 0.0)
    axes = jnp.meshgrid(jnp.geomspace(1.0, 20.0, 20), jnp.geomspace(0.1, 1.5, 20), indexing="ij")
    length, sigma = (x.ravel() for x in axes)
    prior = 9 * jnp.log(length) - length / 10 + 4 * jnp.log(sigma) - 5 * sigma  # Gamma(10, 1/10) and Gamma(5, 5)
    settings = gp.Settings(jnp.ones_like(length), length, sigma**2)
    return gpdp.transition(gp.mixture(inputs, targets, settings, log_prior=prior), LEVELS)


# ------------------------------------------------------------------------------------- policies, worth


def left_of(growth):
    """What the best harvest leaves of each level, `[L]`."""
    found = mdp.policy_iteration(harvest(growth, LEVELS, DISCOUNT))
    return gpdp.escapement(found, LEVELS)


def policies(history, key):
    """From one history: what each policy leaves `[L]`, by name, and which model AIC selected."""
    left, stock = history[:-1], history[1:]
    keys = jax.random.split(key, 4)
    leaves, aics = {}, []
    for name, k in zip(RANGES, keys, strict=False):
        p, sigma, aic = fitted(name, left, stock, k)
        leaves[f"{name}, maximum likelihood"] = left_of(parametric(name, p, sigma))
        aics.append(aic)
    chosen = jnp.argmin(jnp.stack(aics))
    leaves["chosen by AIC"] = jnp.stack(list(leaves.values()))[chosen]
    leaves["GPDP"] = left_of(gpdp.transition(gpdp.learn(left, stock, keys[3]), LEVELS))
    leaves["GPDP, most evidence"] = left_of(of_most_evidence(left, stock, keys[3]))
    leaves["GPDP, paper's settings"] = left_of(of_the_paper(left, stock))
    return leaves, chosen


def managed(leave, key, years):
    """Stock before the catch `[years]` and catch `[years]` under a policy."""

    def year(stock, key):
        target = leave[jnp.argmin(jnp.abs(LEVELS - stock))]
        after, step = ENV.step(PARAMS, stock, jnp.maximum(stock - target, 0)[None], key)
        return after, (stock, step.reward)

    _, (stocks, catches) = jax.lax.scan(year, PARAMS.initial, jax.random.split(key, years))
    return stocks, catches


@functools.partial(jax.jit, static_argnames=("years", "stocks"))
def outcomes(leaves, key, years, stocks):
    """Stocks and catches, `[histories, stocks, years]`, for policies `[histories, L]`."""
    keys = jax.random.split(key, stocks)
    return jax.vmap(lambda leave: jax.vmap(lambda k: managed(leave, k, years))(keys))(leaves)


def summary(stocks, catches, best):
    worth = catches.sum(-1)
    return {
        "collapsed": float(np.mean(stocks[..., -1] < COLLAPSED)),
        "histories with a collapse": float(np.mean(np.any(stocks[..., -1] < COLLAPSED, axis=1))),
        "profit": float(worth.mean()),
        "share of the optimum": float(worth.mean() / best),
        "share, worst tenth of histories": float(np.sort(worth.mean(1))[: max(1, len(worth) // 10)].mean() / best),
    }


def study(first, histories, stocks, years, key):
    """The table of one kind of history, and runs and policies for the figure."""
    keys = jax.random.split(key, 3)
    drawn = jax.vmap(lambda k: unharvested(jnp.asarray(first), k))(jax.random.split(keys[0], 2 * histories))
    recovered = np.asarray(drawn[:, -1] > PARAMS.threshold)  # before a collapse nobody knows of the threshold
    kept = drawn[np.flatnonzero(recovered)[:histories]]
    leaves, chosen = decide(kept, jax.random.split(keys[1], histories))
    truth = gpdp.escapement(mdp.policy_iteration(ENV.model(PARAMS, LEVELS, DISCOUNT)), LEVELS)
    leaves = {"truth": jnp.broadcast_to(truth, kept.shape[:1] + LEVELS.shape)} | leaves
    runs = {name: jax.tree.map(np.asarray, outcomes(x, keys[2], years, stocks)) for name, x in leaves.items()}
    best = float(runs["truth"][1].sum(-1).mean())
    full = int(np.asarray(LEVELS).searchsorted(PARAMS.initial))
    table = {
        name: summary(*run, best) | {"left of a full stock, median": float(np.median(leaves[name][:, full]))}
        for name, run in runs.items()
    }
    selected = {name: int(np.sum(chosen == i)) for i, name in enumerate(RANGES)}
    return {"kept": float(recovered.mean()), "selected by AIC": selected, "policies": table}, runs, leaves


@jax.jit
def decide(histories, keys):
    """`policies` of each history, one after the other."""
    return jax.lax.map(lambda data: policies(*data), (histories, keys))


def main(histories, stocks, years, seed):
    begin = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), len(FIRST))
    studies = {first: study(first, histories, stocks, years, k) for first, k in zip(FIRST, keys, strict=True)}
    settings = {
        "histories": histories,
        "stocks each": stocks,
        "years": years,
        "levels": LEVELS.size,
        "discount": DISCOUNT,
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    record = {"settings": settings} | {f"histories from {first}": found[0] for first, found in studies.items()}
    here = Path(__file__)
    text = json.dumps(record, indent=1, default=float)
    here.with_suffix(".json").write_text(re.sub(r"(\d\.\d{4})\d+", r"\1", text) + "\n")
    figure(here.with_suffix(".png"), studies)
    for first, (table, _, _) in studies.items():
        print(f"\nhistories from {first}: kept {table['kept']:.2f}, selected {table['selected by AIC']}")
        for name, row in table["policies"].items():
            print(f"{name:28}" + "".join(f"{key[:12]:>14} {value:6.3f}" for key, value in row.items()))
    print(f"{settings['seconds']} s")


def figure(path, studies):
    """Stocks under each policy, one of each history."""
    from matplotlib.figure import Figure

    shown = ("truth", "GPDP", "GPDP, most evidence", "chosen by AIC", "Allen, maximum likelihood")
    canvas = Figure(figsize=(12, 7), dpi=150, layout="constrained")
    panels = canvas.subplots(len(studies), len(shown), sharex=True, sharey=True)
    for row, (first, (_, runs, _)) in enumerate(studies.items()):
        for panel, name, colour in zip(panels[row], shown, plot.COLOURS, strict=False):
            stocks = runs[name][0]
            panel.plot(stocks[:, 0].T, color=colour, linewidth=0.6, alpha=0.3)
            panel.axhline(PARAMS.threshold, color="0.3", linestyle=plot.REFERENCE_DASHES[0], linewidth=1)
            panel.set_title(f"{name}: {100 * np.mean(stocks[..., -1] < COLLAPSED):.0f} % collapse", fontsize=9)
            panel.grid(color="0.92", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
        panels[row, 0].set_ylabel(f"stock; history from {first}")
    for panel in panels[-1]:
        panel.set_xlabel("year")
    canvas.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--stocks", type=int, default=100)
    parser.add_argument("--years", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    jax.config.update("jax_enable_x64", True)
    main(**vars(parser.parse_args()))
