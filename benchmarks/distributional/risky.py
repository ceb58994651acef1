"""Aversion to risk, where it shows: STAC on the risky point mass, SAC and TD3 with measures of risk at a fork.

    python benchmarks/distributional/risky.py point-mass
    python benchmarks/distributional/risky.py two-paths

`point-mass`: STAC with pessimism 0, 0.25 and 0.5 and several seeds, all of them lanes of one program, and then how
often and how long its paths are in the danger. `two-paths`: SAC and TD3 whose actors climb a measure of risk of a law
that is learned, with quantiles or atoms, for a range of levels; the path they choose beside the one that is best, which
is known. Each writes risky-NAME.json and a figure beside this file; --steps and --seeds make them longer or shorter.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import lanes  # sets the number of devices
import numpy as np

from jaxrl import envs, log, plot, risk
from jaxrl.agents import sac, stac, td3
from jaxrl.distributional import critics
from jaxrl.types import Replay

HERE = Path(__file__).parent
EPISODES = 256


# -------------------------------------------------------------------------------------- point mass

PESSIMISM = (0.0, 0.25, 0.5)
STAC = stac.Config(
    learning_rate=1e-3, hidden_sizes=(64, 64), data=Replay(num_envs=1, capacity=20_000, warmup=1_000, batch_size=256)
)


def paths(agent, env, config, state, key):
    """Whole episodes with sampled actions: positions, rewards, in danger, still under way, `[steps, EPISODES, ...]`."""
    reset_key, key = jax.random.split(key)
    params = env.params()
    env_state, observation = jax.vmap(env.reset, (None, 0))(params, jax.random.split(reset_key, EPISODES))

    def body(carry, key):
        env_state, observation, alive = carry
        act_key, step_key = jax.random.split(key)
        action, _ = agent.act(config, state, observation, act_key)
        action = env.spec.action.clip(action)
        env_state, step = jax.vmap(env.step, (None, 0, 0, 0))(
            params, env_state, action, jax.random.split(step_key, EPISODES)
        )
        out = step.observation, jnp.where(alive, step.reward, 0), alive & (step.metrics["danger"] > 0), alive
        return (env_state, step.observation, alive & ~step.terminated), out

    start = env_state, observation, jnp.ones(EPISODES, bool)
    return jax.lax.scan(body, start, jax.random.split(key, env.max_steps))[1]


def point_mass(steps, seeds):
    """STAC with more and more pessimism."""
    env, begin = envs.make("jaxrl/risky_point_mass"), time.perf_counter()
    measured = functools.partial(paths, stac, env)
    found = lanes.run(stac, env, STAC, PESSIMISM, lambda beta: {"pessimism": beta}, seeds, steps, measured)
    positions, rewards, danger, alive = (leaf[:, :, 0] for leaf in found)  # [rows, seeds, steps, EPISODES, ...]
    seconds = round(time.perf_counter() - begin, 1)
    returns, record = rewards.sum(2), {}  # [rows, seeds, EPISODES]
    for row, pessimism in enumerate(PESSIMISM):
        found = {
            "steps in the danger": danger[row].sum(1).mean(-1),
            "episodes through the danger": danger[row].any(1).mean(-1),
            "length": alive[row].sum(1).mean(-1),
            "return": returns[row].mean(-1),
            "mean of the worst tenth of the returns": np.asarray(risk.CVaR(0.1)(returns[row])),
        }
        record[str(pessimism)] = {name: values.round(3).tolist() for name, values in found.items()}
        print(f"pessimism {pessimism}", {name: values.mean().round(2).item() for name, values in found.items()})
    draw_paths(HERE / "risky-point-mass.png", env, positions, alive, steps)
    settings = {"config": log.describe(STAC), "seconds, compilation included": seconds, "episodes": EPISODES}
    write("point-mass", steps, seeds, settings | {"each pessimism, by seed": record})


def draw_paths(path, env, positions, alive, steps):
    """A few episodes of every seed, for each pessimism."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    params = env.params()
    figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(PESSIMISM), sharex=True, sharey=True)
    for row, (panel, pessimism) in enumerate(zip(panels, PESSIMISM, strict=True)):
        panel.add_patch(Circle(params.centre, params.radius, color="#D55E00", alpha=0.2, linewidth=0))
        panel.add_patch(Circle(params.goal, 0.1, color="#009E73", alpha=0.4, linewidth=0))
        for seed in range(positions.shape[1]):
            for episode in range(6):
                line = positions[row, seed, alive[row, seed, :, episode], episode]
                panel.plot(*line.T, color=plot.COLOURS[0], alpha=0.35, linewidth=0.8)
        panel.plot(*params.start, "k.", markersize=5)
        panel.set(title=f"pessimism {pessimism}", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    figure.suptitle(
        f"STAC on the risky point mass after {steps:,} steps: 6 episodes of each of {positions.shape[1]} seeds"
    )
    figure.savefig(path, bbox_inches="tight")


# --------------------------------------------------------------------------------------- two paths

LEVELS, BETAS = (1.0, 0.6, 0.4, 0.1), (0.0, 0.05, 0.1, 0.4)
LAWS = {"Quantile": critics.Quantile(25), "Categorical": critics.Categorical(-35.0, 5.0, 81)}
MEASURES = {"CVaR": (risk.CVaR, LEVELS, ("Quantile", "Categorical")), "Entropic": (risk.Entropic, BETAS, ("Quantile",))}
SMALL = {
    "learning_rate": 1e-3,
    "hidden_sizes": (32, 32),
    "data": Replay(num_envs=1, capacity=5_000, warmup=500, batch_size=64),
}
AGENTS = {"SAC": (sac, sac.Config(**SMALL)), "TD3": (td3, td3.Config(**SMALL))}


def choice(agent, env, config, state, key):
    """Does the mode go the safe way, and what share of the sampled actions does."""
    _, fork = env.reset(env.params(), jax.random.key(0))
    mode, _ = agent.act(config, state, fork)
    sampled, _ = agent.act(config, state, jnp.broadcast_to(fork, (EPISODES, *fork.shape)), key)
    return mode[0] <= 0, jnp.mean(sampled[:, 0] <= 0)


def two_paths(steps, seeds):
    """Every agent, kind of law and measure of risk, for a range of levels; what there is already is kept."""
    env = envs.make("jaxrl/two_paths")
    worth = env.laws(env.params(), AGENTS["SAC"][1].discount)
    path = HERE / "risky-two-paths.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.get("command") != command("two-paths", steps, seeds):
        record = {name: {} for name in MEASURES}
    cases = [(measure, agent, law) for measure, (_, _, laws) in MEASURES.items() for agent in AGENTS for law in laws]
    for measure, name, law in cases:
        made, levels, _ = MEASURES[measure]
        values = np.stack([made(level)(*worth) for level in levels])
        record[measure] |= {
            "levels": levels,
            "worth of the safe and the risky path": values.round(3).tolist(),
            "best is the safe path": (values[:, 0] > values[:, 1]).tolist(),
        }
        label, (agent, config) = f"{name}, {law}", AGENTS[name]
        if label not in record[measure]:
            config = config.replace(critic=LAWS[law], risk=made(levels[0]))
            begin, measured = time.perf_counter(), functools.partial(choice, agent, env)
            found = lanes.run(
                agent, env, config, levels, lambda level, made=made: {"risk": made(level)}, seeds, steps, measured
            )
            modes, shares = (leaf[:, :, 0] for leaf in found)
            record[measure][label] = {
                "config": log.describe(config),
                "seconds, compilation included": round(time.perf_counter() - begin, 1),
                "share of seeds whose mode is the safe path": modes.mean(1).tolist(),
                "share of sampled actions that take the safe path, by seed": shares.round(3).tolist(),
            }
            write("two-paths", steps, seeds, record)
        chosen = record[measure][label]["share of seeds whose mode is the safe path"]
        print(f"{measure:9}{label:18}", dict(zip(levels, chosen, strict=True)), flush=True)
    draw_choices(HERE / "risky-two-paths.png", record, steps, seeds)


def draw_choices(path, record, steps, seeds):
    """The share of seeds on the safe path against the level, and what is best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for panel, (measure, (_, levels, laws)) in zip(panels, MEASURES.items(), strict=True):
        at, best = np.arange(len(levels)), record[measure]["best is the safe path"]
        panel.plot(at, best, "s", color="0.6", markersize=12, markerfacecolor="none", label="best")
        for i, name in enumerate(f"{agent}, {law}" for law in laws for agent in AGENTS):
            shares = record[measure][name]["share of seeds whose mode is the safe path"]
            panel.plot(at, shares, color=plot.COLOURS[i], linestyle=plot.DASHES[i], marker=".", label=name)
        panel.set(xlabel=f"{measure}, {'level' if measure == 'CVaR' else 'beta'}", xticks=at, xticklabels=levels)
    panels[0].set_ylabel("share of seeds on the safe path")
    figure.suptitle(f"Two paths after {steps:,} steps, {seeds} seeds; the mean is at the left of each panel")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, bbox_inches="tight")


# ------------------------------------------------------------------------------------------ output


def command(name, steps, seeds):
    return f"python benchmarks/distributional/risky.py {name} --steps {steps} --seeds {seeds}"


def write(name, steps, seeds, record):
    """Settings and results, as JSON."""
    settings = {
        "command": command(name, steps, seeds),
        "versions": {"jax": jax.__version__},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    (HERE / f"risky-{name}.json").write_text(json.dumps(settings | record) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("point-mass", "two-paths"))
    parser.add_argument("--steps", type=int, help="per run: 10,000 or 3,000 by default")
    parser.add_argument("--seeds", type=int, help="4 or 8 by default")
    arguments = parser.parse_args()
    if arguments.name == "point-mass":
        point_mass(arguments.steps or 10_000, arguments.seeds or 4)
    else:
        two_paths(arguments.steps or 3_000, arguments.seeds or 8)
