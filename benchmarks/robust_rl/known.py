"""Robust agents where the robust optimum is known: `python benchmarks/robust_rl/known.py`.

Two problems with one uncertain parameter, which stays for an episode:

- a linear system with quadratic costs and an uncertain gain. The best linear policy for the worst gain is found by
  scipy, from the closed form of its costs;
- the pendulum with an uncertain mass, on a grid of angles and speeds, torques and masses, solved by `jaxrl.robust`
  against a nature that picks the mass anew at each step. What the policy so found is worth is measured in the pendulum
  itself, as for the agents.

Every method has the same transitions, updates and networks. Each policy is run, without sampling and from the same
starts, in 41 models between the ends of the range. Writes known.json and known.png beside this file.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import optimize

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # each core takes its share of the seeds

from jaxrl import envs, evaluate, incremental, log, robust, train  # noqa: E402
from jaxrl.agents import iwocs, m2td3, rarl, sac, tc_rmdp  # noqa: E402
from jaxrl.envs import memory  # noqa: E402
from jaxrl.mdp import MDP  # noqa: E402
from jaxrl.types import Box, Replay, Spec, Step, canonical  # noqa: E402

HERE = Path(__file__).parent
MODELS, EPISODES, SEEDS, NUM_ENVS = 41, 64, 8, 8


@dataclasses.dataclass(frozen=True)
class Gain:
    """A linear system s' = a s + g u with reward -(s^2 + r u^2), first states uniform in [-1, 1].

    The parameter is the gain, g = low + params (high - low) for params in [0, 1]; the nominal one is 0.52.
    """

    a: float = 1.2
    r: float = 0.1
    low: float = 0.4
    high: float = 1.6
    max_steps: int = 20

    @property
    def spec(self) -> Spec:
        return Spec(Box((1,)), Box((1,), -5.0, 5.0))

    def params(self) -> jax.Array:
        return jnp.array([0.1])

    def reset(self, params: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return state, state

    def step(self, params: jax.Array, state: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, Step]:
        u = jnp.clip(action, -5.0, 5.0)
        reward = -(state[0] ** 2 + self.r * u[0] ** 2)
        state = jnp.clip(self.a * state + (self.low + params * (self.high - self.low)) * u, -100.0, 100.0)
        return state, Step(state, reward, jnp.array(False), jnp.array(False))

    def cost(self, k: float, gain: Any) -> Any:
        """Of u = -k s, expected: E s_0^2 (1 + r k^2) sum_t (a - g k)^(2 t)."""
        ratio = (self.a - gain * k) ** 2
        return (1 + self.r * k**2) / 3 * np.sum(ratio ** np.arange(self.max_steps)[:, None], axis=0)


class Problem(NamedTuple):
    title: str
    family: Any
    label: str
    values: np.ndarray  # [MODELS], the parameter in physical units
    steps: int
    settings: dict[str, Any]
    optimum: Any  # () -> returns [MODELS] of the policy of reference


class Policy(NamedTuple):
    """All of an agent that an evaluation needs."""

    act: Any


def linear_optimum() -> tuple[np.ndarray, dict[str, Any]]:
    """The best gain of feedback against the worst gain of the system."""
    env, gains = Gain(), np.linspace(Gain.low, Gain.high, MODELS)
    best = optimize.minimize_scalar(lambda k: env.cost(k, gains).max(), bounds=(0, 3), method="bounded")
    average = optimize.minimize_scalar(lambda k: env.cost(k, gains).mean(), bounds=(0, 3), method="bounded")
    settings = {"k": best.x, "worst": -best.fun, "k, on average": average.x}
    return -env.cost(best.x, gains), settings | {"worst, on average": -env.cost(average.x, gains).max()}


# ------------------------------------------------------------------------- the pendulum on a grid

MASSES = (0.4, 1.6)
PENDULUM = envs.uncertain(envs.make("jaxrl/pendulum", max_steps=100), {"mass": MASSES})


def pendulum_on_a_grid(mass: float, angles: int, speeds: int, torques: int, discount: float) -> MDP:
    """The pendulum between grid points: its successor is a law on the four corners around it, of the same mean."""
    dt, most = 0.05, 8.0
    angle = np.linspace(-np.pi, np.pi, angles, endpoint=False)
    speed, torque = np.linspace(-most, most, speeds), np.linspace(-2.0, 2.0, torques)
    th, om, u = np.meshgrid(angle, speed, torque, indexing="ij")
    reward = -(th**2 + 0.1 * om**2 + 0.001 * u**2)
    om = np.clip(om + (15.0 * np.sin(th) + 3 / mass * u) * dt, -most, most)
    th = th + om * dt
    at = [(th + np.pi) / (2 * np.pi) * angles, (om + most) / (2 * most) * (speeds - 1)]
    at[1] = np.minimum(at[1], speeds - 1 - 1e-9)
    cell, part = [np.floor(x).astype(int) for x in at], [x - np.floor(x) for x in at]
    states, transition = angles * speeds, np.zeros((angles * speeds, torques, angles * speeds), np.float32)
    row, column = np.indices((states, torques))
    for i in (0, 1):
        for j in (0, 1):
            corner = ((cell[0] + i) % angles) * speeds + cell[1] + j
            weight = (part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1])
            np.add.at(transition, (row, column, corner.reshape(states, torques)), weight.reshape(states, torques))
    transition /= transition.sum(-1, keepdims=True)
    initial = np.full(states, 1 / states, np.float32)
    return canonical(MDP(transition, reward.reshape(states, torques).astype(np.float32), discount, initial))


def pendulum_optimum(angles: int = 41, speeds: int = 41, torques: int = 5) -> tuple[np.ndarray, dict[str, Any]]:
    """Greedy in the robust q on the grid, between its points by their weights; in the pendulum itself."""
    discount = 0.98
    models = [pendulum_on_a_grid(mass, angles, speeds, torques, discount) for mass in np.linspace(*MASSES, 3)]
    nature = robust.Scenarios(jnp.stack([model.transition for model in models]))
    solution = robust.solve(models[1], nature, tolerance=0.05)
    q = jnp.asarray(solution.q).reshape(angles, speeds, torques)
    torque = jnp.linspace(-2.0, 2.0, torques)

    def act(config: Any, state: Any, observation: jax.Array, key: Any = None) -> tuple[jax.Array, dict[str, Any]]:
        angle = jnp.arctan2(observation[:, 1], observation[:, 0])
        at = jnp.stack([(angle + jnp.pi) / (2 * jnp.pi) * angles, (observation[:, 2] + 8) / 16 * (speeds - 1)])
        wrapped = jnp.concatenate([q, q[:1]])

        def between(table: jax.Array) -> jax.Array:
            return jax.scipy.ndimage.map_coordinates(table, list(at), order=1, mode="nearest")

        values = jax.vmap(between, in_axes=-1, out_axes=-1)(wrapped)
        return torque[jnp.argmax(values, axis=-1)][:, None], {}

    returns = examine(Policy(act), None, jnp.zeros(1), PENDULUM)[0]
    found = {"error bound": float(solution.error_bound), "converged": bool(solution.converged)}
    return returns, found | {"worst": float(returns.min())}


# ---------------------------------------------------------------------------------------- agents

PROBLEMS = {
    "gain": Problem(
        "Linear system, uncertain gain",
        Gain(),
        "gain of the system",
        np.linspace(Gain.low, Gain.high, MODELS),
        steps=40_000,
        settings={"discount": 0.95},
        optimum=linear_optimum,
    ),
    "pendulum": Problem(
        "Pendulum, uncertain mass",
        PENDULUM,
        "mass, kg",
        np.linspace(*MASSES, MODELS),
        steps=160_000,
        settings={"discount": 0.98, "reward_scale": 0.1},
        optimum=pendulum_optimum,
    ),
}


def uniform(config: Any, state: Any, params: jax.Array, observation: jax.Array, key: jax.Array) -> jax.Array:
    """Domain randomisation: a point of the whole box for each episode."""
    return jax.random.uniform(key, params.shape)


def examine(agent: Any, config: Any, states: Any, env: Any) -> np.ndarray:
    """The mean returns of each seed in each model, [seeds, MODELS], all from the same starts."""
    models, key = jnp.linspace(0.0, 1.0, MODELS)[:, None], jax.random.key(1)

    def one(state: Any) -> jax.Array:
        grid = evaluate.grid(agent, config, state, env, models, key, episodes=EPISODES, fresh_episodes=1)
        return grid.means

    return np.asarray(jax.jit(jax.vmap(one))(states))


def methods(problem: Problem) -> dict[str, Any]:
    """The states [seeds, ...] and the environment of each method, learned when asked for."""
    data = Replay(num_envs=NUM_ENVS, capacity=50_000, warmup=1_000, batch_size=128)
    common: dict[str, Any] = {"learning_rate": 1e-3, "hidden_sizes": (64, 64), "data": data, **problem.settings}
    family, stacked = problem.family, memory.Stacked(problem.family)
    updates = problem.steps / NUM_ENVS
    shared = {"key": jax.random.key(0), "seeds": SEEDS, "progress": False}

    def fitted(agent: Any, config: Any, env: Any = family, propose: Any = None) -> Any:
        result = train.fit(agent, config, env, steps=problem.steps, propose=propose, evaluate_every=0, **shared)
        return agent, config, result.run.agent, env

    def staged(parallel: int) -> Any:
        config = iwocs.Config(num_models=3, **common)
        steps = {"first_steps": 0.4 * problem.steps, "steps": 0.2 * problem.steps, "evaluate_every": 0}
        looking = {"method": evaluate.Lattice(21), "parallel": parallel}
        return iwocs, config, incremental.search(iwocs, config, stacked, **shared, **steps, **looking).state, stacked

    tc = tc_rmdp.Config(largest_move=2 / family.max_steps, **common)
    return {
        "sac, nominal": lambda: fitted(sac, sac.Config(**common)),
        "sac, randomised": lambda: fitted(sac, sac.Config(**common), propose=uniform),
        "rarl": lambda: fitted(rarl, rarl.Config(**common)),
        "m2td3": lambda: fitted(m2td3, m2td3.Config(noise_updates=updates, **common)),
        "soft m2td3": lambda: fitted(m2td3, m2td3.Config(soft=True, noise_updates=updates, **common)),
        "tc-rarl": lambda: fitted(tc_rmdp, tc),
        "tc-rarl, stacked": lambda: fitted(tc_rmdp, tc, stacked),
        "iwocs": lambda: staged(1),
        "iwocs, parallel": lambda: staged(3),
    }


def run(name: str, chosen: list[str], record: dict[str, Any]) -> None:
    """Solve, learn and compare."""
    problem = PROBLEMS[name]
    returns, found = problem.optimum()
    record["optimum"] = found | {"returns": np.round(returns, 4).tolist()}
    print(f"{problem.title}: the optimum {found}", flush=True)
    for label, learn in methods(problem).items():
        if chosen and label not in chosen:
            continue
        agent, config, states, env = learn()
        means = examine(agent, canonical(config), states, env)
        record["methods"][label] = {"returns": np.round(means, 4).tolist(), "config": log.describe(config)}
        worst = means.min(-1)
        middle, low, high = np.median(worst), worst.min(), worst.max()
        print(f"{label:<18} worst {middle:9.3f} [{low:.3f}, {high:.3f}]   average {means.mean():9.3f}", flush=True)
        jax.clear_caches()


def draw(record: dict[str, Any]) -> None:
    """Returns over the parameter: medians over seeds, and the optimum."""
    figure = Figure(figsize=(10, 4.6), dpi=150, layout="constrained")
    for axes, (name, problem) in zip(figure.subplots(1, 2), PROBLEMS.items(), strict=True):
        found = record[name]
        axes.plot(problem.values, found["optimum"]["returns"], color="black", linewidth=2, label="robust optimum")
        lowest = min(found["optimum"]["returns"])
        for label, each in found["methods"].items():
            axes.plot(problem.values, np.median(each["returns"], axis=0), linewidth=1, label=label)
        axes.set(title=problem.title, xlabel=problem.label, ylabel="mean return", ylim=(3 * lowest, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(HERE / "known.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", choices=PROBLEMS, help="both by default")
    parser.add_argument("methods", nargs="*", help="all by default")
    arguments = parser.parse_args()
    path = HERE / "known.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for name in [arguments.problem] if arguments.problem else PROBLEMS:
        record.setdefault(name, {"methods": {}})
        run(name, arguments.methods, record[name])
        record |= {"versions": log.versions(), "models": MODELS, "episodes": EPISODES, "seeds": SEEDS}
        path.write_text(json.dumps(record) + "\n")
    if set(PROBLEMS) <= set(record):
        draw(record)


if __name__ == "__main__":
    main()
