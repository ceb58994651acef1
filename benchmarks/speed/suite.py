"""Speed: jaxrl beside its peers and beside its own parts, in one command.

    benchmarks/peers/setup rejax; benchmarks/peers/setup sbx; benchmarks/peers/setup brax    # once
    python benchmarks/speed/suite.py                     # all rows that this commit lacks on this machine: hours
    python benchmarks/speed/suite.py cartpole-1 sac      # these rows, again
    python benchmarks/speed/suite.py --table             # no measurement: the newest table and figure
    python benchmarks/speed/suite.py --smoke             # does every row run? tiny sizes, nothing is kept

In each row everybody does the same work in processes and environments of their own, in turns (A B A B), and the ratio
is taken within a turn: seconds of a peer over ours, for the same work, so above 1 we are faster; its median, least and
greatest are in the table. There are two kinds of rows. In the first, everybody has compiled, and is asked for a second
of work; in the second, each turn is a whole process, once with an empty cache of compiled programs ("cold") and once
with what it then holds ("warm"). A floor is a part of our own training alone: no loop can be faster than the
environment and the gradient steps one after the other. After each row its record is added to suite.json: every single
measurement, with versions, machine, commit, date, seconds of the clock and of all cores, peak memory, and the load of
the machine before and after. A run that was stopped goes on with the rows that are missing.

purejaxrl is no package; its published settings for CartPole are those of the CartPole rows, for everybody.
"""

import argparse
import datetime
from pathlib import Path
from typing import Any, NamedTuple

import measure
import report

RESULTS = Path(__file__).with_suffix(".json")
FLOORS = ("environment", "gradients")


class Row(NamedTuple):
    """What is measured: everybody's task, and who does it beside us."""

    title: str
    task: dict[str, Any]
    peers: tuple[str, ...] = ()
    floors: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = {}  # ourselves, with changes of the task  # noqa: RUF012
    goal: str = ""

    def members(self, seconds):
        """Library and task of everybody, by label."""
        task = self.task | {"seconds": seconds}
        tasks = {"jaxrl": ("jaxrl", task)} | {peer: (peer, task) for peer in self.peers}
        tasks |= {f"jaxrl, {label}": ("jaxrl", task | change) for label, change in self.variants.items()}
        tasks |= {f"floor: {part}": ("jaxrl", task | {"kind": part}) for part in self.floors}
        return {label: (library, task | {"units": units(task)}) for label, (library, task) in tasks.items()}


def units(task):
    """How much one iteration of training is: environment steps of PPO, gradient updates of the others."""
    if task.get("algorithm") == "ppo":
        return task["num_envs"] * task["length"] * task["seeds"]
    return task.get("updates", 1) * task.get("seeds", 1)


# fmt: off
CARTPOLE = {
    "kind": "train", "algorithm": "ppo", "env": "gymnax/CartPole-v1", "seeds": 1, "num_envs": 4, "length": 128,
    "epochs": 4, "minibatches": 4, "hidden": [64, 64], "normalise": False, "learning_rate": 2.5e-4, "entropy": 0.01,
}
BRAX = {
    "kind": "train", "algorithm": "ppo", "env": "brax/inverted_pendulum", "seeds": 1, "num_envs": 256, "length": 16,
    "epochs": 4, "minibatches": 8, "hidden": [256, 256], "normalise": True, "learning_rate": 3e-4, "entropy": 0.0,
    "iterations": 4,  # of an epoch of Brax's own loop
}
SAC = {
    "kind": "train", "algorithm": "sac", "env": "gymnax/Pendulum-v1", "seeds": 1, "capacity": 1_000_000,
    "warmup": 1_000, "updates": 1, "full": False, "hidden": [256, 256], "normalise": False, "learning_rate": 3e-4,
    "iterations": 100,
}
START = {"kind": "start"}
SOLVE = {"kind": "start", "solved": 475.0, "episodes": 32, "every": 25, "steps": 1_000_000}
# fmt: on
FULL = {"full": True}
SMALL = {"hidden": [64, 64]}
EMPTY = {"with an empty replay": {"full": False}}
ROWS = {
    **{
        f"cartpole-{seeds}": Row(
            f"PPO, CartPole, 4 x 128, {seeds} seed{'s' * (seeds > 1)}: steps",
            CARTPOLE | {"seeds": seeds},
            peers=("rejax", "sbx") if seeds == 1 else ("rejax",),
            floors=FLOORS,
            goal="rejax: 1.5" if seeds == 1 else "rejax: 2.5",
        )
        for seeds in (1, 16, 64, 256)
    },
    "cartpole-cpu": Row(
        "PPO, CartPole, 64 seeds beside one: steps",
        CARTPOLE | {"seeds": 64},
        variants={"1 seed": {"seeds": 1}},
        goal="1 seed: 1, by CPU",
    ),
    **{
        f"{name}-{seeds}": Row(
            f"PPO, Brax {name}, 256 x 16, {seeds} seed{'s' * (seeds > 1)}: steps",
            BRAX | {"env": f"brax/{name}", "seeds": seeds},
            peers=("rejax", "brax") if seeds == 1 else ("rejax",),
            floors=FLOORS,
            goal={"fast-1": "1.3", "inverted_pendulum-1": "1.5"}.get(f"{name}-{seeds}", ""),
        )
        for name in ("fast", "inverted_pendulum", "reacher", "hopper")
        for seeds in (1, 8)
    },
    "sac": Row("SAC, pendulum: updates", SAC, ("rejax", "sbx"), FLOORS, goal="90 a second of CPU"),
    "sac-full": Row("SAC, pendulum, full replay: updates", SAC | FULL, ("rejax", "sbx"), variants=EMPTY, goal="1"),
    "sac-fast": Row("SAC, Brax fast: updates", SAC | {"env": "brax/fast"}, ("brax",), FLOORS),
    "sac-fast-full": Row(
        "SAC, Brax fast, full replay: updates", SAC | FULL | {"env": "brax/fast"}, ("brax",), variants=EMPTY
    ),
    "tqc": Row("TQC, pendulum: updates", SAC | {"algorithm": "tqc"}, ("sbx",), FLOORS),
    "tqc-full": Row("TQC, pendulum, full replay: updates", SAC | FULL | {"algorithm": "tqc"}, ("sbx",), variants=EMPTY),
    "stac": Row(
        "STAC, pendulum: updates",
        SAC | {"algorithm": "stac"},
        floors=FLOORS,
        variants={"SAC": {"algorithm": "sac"}},
        goal="SAC: 1",
    ),
    "stac-full": Row(
        "STAC, pendulum, full replay: updates",
        SAC | FULL | {"algorithm": "stac"},
        variants=EMPTY | {"SAC": {"algorithm": "sac"}},
        goal="1",
    ),
    "sac-64": Row("SAC, pendulum, 64 x 64: updates", SAC | SMALL, ("rejax", "sbx"), FLOORS),
    "sac-64-8": Row("SAC, pendulum, 64 x 64, 8 seeds: updates", SAC | SMALL | {"seeds": 8}, ("rejax",), FLOORS),
    "sac-64-only": Row("SAC, pendulum, 64 x 64, 50 updates a step", SAC | SMALL | {"updates": 50}, ("rejax", "sbx")),
    "sac-only": Row("SAC, pendulum, 50 updates a step", SAC | {"updates": 50}, ("rejax", "sbx")),
    "import": Row("import", {"kind": "import"}, ("rejax", "sbx", "brax")),
    **{
        f"reset-{name}": Row(f"construction and first reset, {env}", {"kind": "reset", "env": env}, peers)
        for name, env, peers in (
            ("cartpole", "gymnax/CartPole-v1", ("rejax",)),
            ("inverted_pendulum", "brax/inverted_pendulum", ("rejax", "brax")),
            ("hopper", "brax/hopper", ("rejax", "brax")),
        )
    },
    "start-cartpole": Row("PPO, CartPole, first update", CARTPOLE | START, ("rejax",), goal="7 s cold, 4 s warm"),
    "start-inverted_pendulum": Row(
        "PPO, Brax inverted_pendulum, first update", BRAX | START, ("rejax", "brax"), goal="20 s cold, 8 s warm"
    ),
    "solve-cartpole": Row("PPO, CartPole, solved: mean return of 475", CARTPOLE | SOLVE, ("rejax",)),
}
TINY = {"capacity": 3_000, "warmup": 300, "iterations": 2, "every": 2, "steps": 2_048}


def run(name, row, pairs, seconds, tiny):
    """Measure a row: its record."""
    row = row._replace(task=row.task | {key: value for key, value in tiny.items() if key in row.task})
    measured = measure.chunks if row.task["kind"] == "train" else measure.processes
    record = {
        "row": name,
        "title": row.title,
        "goal": row.goal,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": measure.revision(),
        "machine": measure.machine(),
        "pairs": pairs,
    }
    return record | {"members": measured(row.members(seconds), pairs)}


def whole(record):
    """Everybody ran."""
    return not any("error" in member for member in record["members"].values())


def main(names, pairs, seconds, smoke):
    records = report.read(RESULTS)
    here = measure.revision(), measure.machine()
    done = {record["row"] for record in records if (record["revision"], record["machine"]) == here and whole(record)}
    for name in names or ROWS:
        if name in done and not names and not smoke:
            continue
        try:
            record = run(name, ROWS[name], pairs, seconds, TINY if smoke else {})
        except measure.Failed:  # it has been said; the other rows can be measured
            continue
        print(report.table([record]), flush=True)
        if not smoke:
            records.append(record)
            report.write(RESULTS, records)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; by default, all that are missing")
    parser.add_argument("--pairs", type=int, default=5, help="how often everybody has a turn (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a chunk of work is, about (default: 1)")
    parser.add_argument("--table", action="store_true", help="print the table and draw the figure of suite.json")
    parser.add_argument("--smoke", action="store_true", help="one pair at tiny sizes, to see that all rows run")
    found = parser.parse_args()
    unknown = set(found.rows) - set(ROWS)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return found


if __name__ == "__main__":
    given = arguments()
    if given.smoke:
        main(given.rows, 1, 0.05, True)
    elif not given.table:
        main(given.rows, given.pairs, given.seconds, False)
    if not given.smoke:
        newest = report.newest(report.read(RESULTS))
        print(report.table(newest))
        report.figure(newest, RESULTS.with_suffix(".png"))
