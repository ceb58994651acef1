"""Robust policies from little data, under the true model: `python benchmarks/robust/machine_replacement.py`.

Machine replacement, known from a few draws of every transition law: 100 data sets, and for each the policies that are
best for the frequencies (radius 0) and against sets of growing radius around them. How well do they do in truth, on
average and in the worst tenth of the data sets? And how often is the value that was promised for a policy kept?
Takes about two minutes; writes machine_replacement.json and machine_replacement.png beside this file.
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

from jaxrl import mdp, plot, robust
from jaxrl.robust.counts import from_counts
from jaxrl.robust.solve import solve

VISITS = (5, 20)  # draws of each law
RADII = np.concatenate([[0.0], np.geomspace(0.01, 2, 17)])
CONFIDENCE = 0.9
SETS = {
    "L1": lambda radius: robust.L1(radius),
    "L1, any state": lambda radius: robust.L1(radius, support="all"),
    "KL": lambda radius: robust.KL(radius),
}


def truth():
    """The true model, with the reward of a state for reaching it, also where that can't happen."""
    model = mdp.dense(mdp.machine_replacement())
    arrival = jnp.min(model.reward, axis=(0, 1))
    return model.replace(reward=jnp.broadcast_to(arrival, model.transition.shape))


def sample(model, visits, datasets, seed):
    """Counts of each transition, `[datasets, S, A, S]`."""
    laws = np.asarray(model.transition, np.float64)
    rng = np.random.default_rng(seed)
    return rng.multinomial(visits, laws / laws.sum(-1, keepdims=True), size=(datasets, *laws.shape[:2]))


def worth(model, transition, ball):
    """What the robust policy for a kernel and a set is worth in truth, from the first state; if that was promised."""
    found = solve(model.replace(transition=transition), ball)
    value = model.initial @ mdp.evaluate(model, found.policy)
    return value, value >= model.initial @ found.value - 1e-6


@functools.partial(jax.jit, static_argnames="make")
def by_radius(model, transitions, radii, make):
    """Values in truth, and if they were promised, each `[radii, datasets]`."""
    one = functools.partial(worth, model)
    return jax.lax.map(lambda radius: jax.vmap(lambda p: one(p, make(radius)))(transitions), radii)


@functools.partial(jax.jit, static_argnames=("kind",))
def by_confidence(model, counts, keys, kind):
    """The same, `[datasets]`, and the mean radius of the sets from the data, for each row on its own."""

    def one(counts, key):
        key = key if kind == "bayes" else None
        transition, ball = from_counts(counts, CONFIDENCE, kind, jointly=False, key=key)
        return worth(model, transition, ball), jnp.mean(ball.radius)

    values, radius = jax.vmap(one)(counts, keys)
    return values, jnp.mean(radius)


def summary(values, kept):
    """The mean, the mean of the worst tenth, and the share of promises kept, over the data sets (last axis)."""
    values = np.sort(np.asarray(values), axis=-1)
    tenth = values.shape[-1] // 10
    shares = np.mean(np.asarray(kept), axis=-1)
    return {"mean": values.mean(-1), "worst decile": values[..., :tenth].mean(-1), "promises kept": shares}


def study(model, visits, datasets, seed):
    counts = sample(model, visits, datasets, seed)
    transitions = jnp.asarray(counts / visits)
    keys = jax.random.split(jax.random.key(seed), datasets)
    results = {name: summary(*by_radius(model, transitions, jnp.asarray(RADII), make)) for name, make in SETS.items()}
    for kind in ("weissman", "bayes"):
        values, radius = by_confidence(model, jnp.asarray(counts), keys, kind)
        results[kind] = {"radius": float(radius)} | summary(*values)
    return results


def figure(path, results, best):
    """Value in truth against the radius."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    panels = canvas.subplots(2, len(results), sharex=True, sharey="row")
    quantities = dict(zip(("mean", "worst decile"), plot.DASHES, strict=False))
    for (upper, lower), (visits, result) in zip(panels.T, results.items(), strict=True):
        upper.axhline(best, color="0.5", linestyle=plot.REFERENCE_DASHES[0], linewidth=1, label="optimum of the truth")
        for colour, name in zip(plot.COLOURS, SETS, strict=False):
            for quantity, dash in quantities.items():
                upper.plot(RADII, result[name][quantity], color=colour, linestyle=dash, label=f"{name}, {quantity}")
            lower.plot(RADII, result[name]["promises kept"], color=colour)
        for marker, kind in (("o", "weissman"), ("s", "bayes")):
            black = {"color": "black", "marker": marker, "markersize": 5, "linestyle": "none"}
            point = result[kind]
            for quantity, filled in (("mean", "full"), ("worst decile", "none")):
                label = f"L1 from counts ({kind}), {quantity}"
                upper.plot(point["radius"], point[quantity], fillstyle=filled, label=label, **black)
            lower.plot(point["radius"], point["promises kept"], **black)
        upper.set(title=f"{visits} draws of each law")
        lower.set(xlabel="radius")
        lower.set_xscale("symlog", linthresh=0.01, linscale=0.3)
        lower.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        for panel in (upper, lower):
            panel.minorticks_off()
            panel.grid(color="0.92", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("value under the true model")
    panels[1, 0].set_ylabel("share of promises kept")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    canvas.savefig(path, bbox_inches="tight")


def main(datasets, seed):
    begin = time.perf_counter()
    model = truth()
    best = float(model.initial @ mdp.policy_iteration(model).value)
    results = {visits: study(model, visits, datasets, seed) for visits in VISITS}
    settings = {
        "datasets": datasets,
        "seed": seed,
        "radii": RADII,
        "confidence": CONFIDENCE,
        "best for the true model": best,
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    here = Path(__file__)
    record = {"settings": settings} | {f"{visits} draws of each law": result for visits, result in results.items()}
    text = json.dumps(record, indent=1, default=lambda x: np.round(x, 4).tolist())
    here.with_suffix(".json").write_text(re.sub(r"\s+(?=[^\[\]{}]*\])", " ", text) + "\n")  # a list is a line
    figure(here.with_suffix(".png"), results, best)
    for visits, result in results.items():
        for name, rows in result.items():
            for quantity in ("mean", "worst decile", "promises kept"):
                print(f"{visits:4} {name:14} {quantity:13}", np.round(rows[quantity], 3))
    print(f"best for the true model {best:.3f}; {settings['seconds']} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    jax.config.update("jax_enable_x64", True)
    main(**vars(parser.parse_args()))
