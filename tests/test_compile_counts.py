"""What is traced and compiled, how often, and how much memory the programs take: guards of speed that need no clock."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import AGENTS, jax_settings, small

from jaxrl import envs, replay, train
from jaxrl.agents import ppo, sac
from jaxrl.types import Environment, Replay, Rollout, canonical

TASKS = ("jaxrl/point_mass", "jaxrl/probe_context")  # continuous actions, and discrete ones
OFF_POLICY = [agent for agent in AGENTS if isinstance(agent.Config().data, Replay)]


@dataclasses.dataclass(frozen=True, eq=False)  # each is another, with programs of its own
class Marked:
    """An environment whose reset contains one `tan` and whose step one `cbrt`; it counts how often it is traced."""

    env: Environment
    traces: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def spec(self):
        return self.env.spec

    @property
    def max_steps(self):
        return self.env.max_steps

    def params(self):
        return self.env.params()

    def reset(self, params, key):
        self.traces["reset"] += 1
        state, observation = self.env.reset(params, key)
        return state, jnp.tan(observation)

    def step(self, params, state, action, key):
        self.traces["step"] += 1
        state, step = self.env.step(params, state, action, key)
        return state, step.replace(observation=jnp.cbrt(step.observation))


def operations(jaxpr: Any, name: str) -> int:
    """How often a primitive stands in a program, in all that it calls too, at each place where it is called."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                total += operations(getattr(inner, "jaxpr", inner), name)
    return total


def started(agent: Any, config: Any, env: Environment) -> tuple[train.Loop, Any]:
    """The loop and the shapes of its run."""
    loop = train.loop(agent, env)
    return loop, jax.eval_shape(loop.init, config, jax.random.key(0))


def marked(agent: Any) -> Marked:
    """The first task that this agent takes."""
    for task in TASKS:
        env = Marked(envs.make(task))
        try:
            started(agent, small(agent), env)
        except ValueError:
            continue
        return env
    raise AssertionError(f"{agent.__name__} takes no task")


def changed(config: Any) -> Any:
    """Another number in every float, in those that were declared static by mistake too."""

    def other(number: Any) -> Any:
        return 0.1 if math.isinf(number) or number == 0 else number / 2

    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    floats = {name: other(value) for name, value in fields.items() if isinstance(value, float)}
    return jax.tree.map(other, config).replace(**floats)


@pytest.mark.parametrize(
    "agent",
    [pytest.param(agent, marks=[] if agent in (ppo, sac) else pytest.mark.slow) for agent in AGENTS],
    ids=lambda agent: agent.__name__,
)
def test_new_floats_do_not_trace_the_loop_again_and_it_holds_each_function_of_the_environment_once(agent):
    env = marked(agent)
    config = small(agent)
    loop, run = started(agent, config, env)
    before = env.traces.copy()
    program = loop.step.trace(config, run)
    first = env.traces.copy()
    assert first["reset"] > before["reset"] and first["step"] > before["step"]
    again = loop.step.trace(changed(config), run)
    assert env.traces == first
    assert again.jaxpr is program.jaxpr
    assert [operations(program.jaxpr, name) for name in ("tan", "cbrt")] == [1, 1]


def test_fit_traces_the_environment_and_compiles_its_programs_once(caplog):
    """Training and evaluation hold reset and step once each; the others are for shapes: a check, and lanes' states."""
    env = Marked(envs.make("jaxrl/point_mass"))
    with jax_settings(jax_log_compiles=True, jax_debug_key_reuse=False):  # in all threads
        train.fit(ppo, small(ppo), env, jax.random.key(0), steps=5 * 32, seeds=2, episodes=2, progress=False)
    assert env.traces == {"reset": 2 + 3, "step": 2 + 1}
    compiled = Counter(record.args[0] for record in caplog.records if record.msg.startswith("Compiling %s"))
    assert [compiled[f"jit({name})"] for name in ("init", "chunk", "evaluate", "reset", "step")] == [1, 1, 1, 0, 0]


# ------------------------------------------------------------------------------------------------ memory


def compiled_chunk(agent: Any, config: Any, seeds: int) -> tuple[Any, Any]:
    """The program in which `fit` trains, and the shapes of its run."""
    env = envs.make("jaxrl/point_mass")
    programs = train._programs(train.loop(agent, env), agent, env, 10, 1, tuple(jax.devices()[:1]))
    runs = jax.eval_shape(programs.init, config, jax.random.split(jax.random.key(0), seeds), None)
    with jax.debug_key_reuse(False):  # it does not understand a vmap over a scan over keys
        return programs.chunk.lower(config, runs, 1).compile(), runs


@pytest.mark.parametrize(
    "agent",
    [pytest.param(agent, marks=[] if agent is sac else pytest.mark.slow) for agent in OFF_POLICY],
    ids=lambda agent: agent.__name__,
)
def test_an_agent_of_a_replay_is_trained_in_place(agent):
    """The replay of 10^6 transitions is handed on: it is neither copied inside the program nor around it.

    Its smallest ring has a byte for each transition.
    """
    data = dataclasses.replace(small(agent).data, capacity=10**6, batch_size=2)
    program, runs = compiled_chunk(agent, canonical(small(agent, data=data)), 1)
    memory, needed = program.memory_analysis(), replay.bytes_of(runs.experience.buffer)
    assert needed > 1e7
    assert memory.alias_size_in_bytes > needed
    assert memory.temp_size_in_bytes < 0.8e6


@pytest.mark.parametrize(
    ("agent", "data"),
    [
        pytest.param(ppo, Rollout(num_envs=4, length=128), id="ppo"),
        pytest.param(sac, Replay(num_envs=1, capacity=1000, batch_size=64), id="sac", marks=pytest.mark.slow),
    ],
)
def test_memory_is_linear_in_seeds(agent, data):
    """Eight times as many seeds take eight times as much; the temporaries a little less or more, as XLA fuses them."""

    def needed(seeds):
        memory = compiled_chunk(agent, canonical(small(agent, data=data)), seeds)[0].memory_analysis()
        return memory.argument_size_in_bytes, memory.temp_size_in_bytes

    few, many = needed(4), needed(32)
    assert many[0] <= 8 * few[0]
    assert many[1] <= 1.1 * 8 * few[1]
