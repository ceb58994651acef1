"""What holds for every agent: each file in agents/ is tested here as soon as it is there."""

import contextlib
import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AGENTS, assert_same, small

from jaxrl import envs, rollout, train
from jaxrl.agents import iwocs, ppo, sac
from jaxrl.envs import memory
from jaxrl.types import Replay, canonical

pytestmark = pytest.mark.usefixtures("compiled_in_a_moment")
TASKS = {"continuous": "jaxrl/point_mass", "discrete": "jaxrl/probe_context"}
VISIBLE = {  # with these, three updates show what takes many by default; at bpo's temperature, its loss is a step
    "temperature": 0.5,
    "probability_rate": 0.8,
    "min_distance": 0.2,
    "noise_updates": 4.0,
}


class Case:
    """An agent on a task: its small configuration, a fresh state, and a batch that this state collected."""

    def __init__(self, agent, task):
        self.agent, self.env = agent, envs.make(TASKS[task])
        self.config = small(agent, **options(agent))
        try:
            self.env = memory.Stacked(self.env) if agent is iwocs else self.env
            self.state = jax.jit(agent.init, static_argnums=1)(self.config, self.env.spec, jax.random.key(0))
        except ValueError as error:
            pytest.skip(f"{agent.__name__} does not take {task} actions: {error}")
        data = self.config.data
        shape = (data.batch_size, data.n_step) if isinstance(data, Replay) else (data.num_envs, data.length)
        self.propose = getattr(agent, "propose", None) if jax.tree.leaves(self.env.params()) else None
        lanes = rollout.lanes(self.env, shape[0], varying=self.propose is not None)

        def collect(config, state, lanes, key):
            def policy(observation, key):
                return agent.act(config, state, observation, key)

            proposals = rollout.proposed(self.propose, config, state)
            return rollout.collect(self.env, policy, lanes, key, shape[1], **proposals)[1]

        self.update = jax.jit(agent.update)
        self.batch = jax.jit(collect)(self.config, self.state, lanes, jax.random.key(2))

    def updates(self, config, count=3):
        """State and metrics after some updates on the same batch."""
        state = self.state
        for key in jax.random.split(jax.random.key(1), count):
            state, metrics = self.update(config, state, self.batch, key)
        return state, metrics

    def proposal(self, config, state):
        """What the agent proposes for the environments of the batch, if it proposes anything."""
        if self.propose is None:
            return None
        params = jax.tree.map(lambda leaf: leaf[0], self.batch.extras["env_params"])
        return self.propose(config, state, params, self.batch.observation[0], jax.random.key(3))


def options(agent):
    """A number for every traced option that is off by default, or is as good as 0."""
    fields = {field.name: field for field in dataclasses.fields(agent.Config)}
    config = agent.Config()
    off = {name: 0.05 for name, field in fields.items() if traced(field) and getattr(config, name) is None}
    return off | {name: value for name, value in VISIBLE.items() if name in fields}


def traced(field):
    return field.metadata.get("pytree_node", True)


@pytest.fixture(scope="module", params=[(a, t) for a in AGENTS for t in TASKS], ids=lambda p: f"{p[0].__name__}-{p[1]}")
def case(request):
    return Case(*request.param)


def float_fields(agent):
    """Fields with a number in them, or several."""
    config = agent.Config().replace(**options(agent))
    return [f.name for f in dataclasses.fields(agent.Config) if traced(f) and jax.tree.leaves(getattr(config, f.name))]


ALL_FLOATS = [(agent, name) for agent in AGENTS for name in float_fields(agent)]


def test_there_are_agents():
    assert "jaxrl.agents.ppo" in [agent.__name__ for agent in AGENTS]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda a: a.__name__)
def test_the_file_has_its_parts_in_order(agent):
    order = [inspect.getsourcelines(getattr(agent, name))[1] for name in ("Config", "State", "init", "act", "update")]
    assert order == sorted(order)
    assert "Source:" in agent.__doc__
    assert list(inspect.signature(agent.init).parameters) == ["config", "spec", "key"]
    assert list(inspect.signature(agent.act).parameters) == ["config", "state", "observation", "key"]
    assert list(inspect.signature(agent.update).parameters) == ["config", "state", "batch", "key"]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda a: a.__name__)
def test_every_field_of_config_has_its_comment(agent):
    lines = inspect.getsource(agent.Config).splitlines()
    for field in dataclasses.fields(agent.Config):
        (line,) = [line for line in lines if line.strip().startswith(f"{field.name}:")]
        assert "  # " in line, line


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_act_takes_any_leading_axes(case, leading):
    spec = case.env.spec
    observation = jnp.broadcast_to(spec.observation.zeros(), leading + spec.observation.shape)
    sampled, _ = jax.jit(case.agent.act)(case.config, case.state, observation, jax.random.key(0))
    mode, _ = jax.jit(case.agent.act)(case.config, case.state, observation)
    for action in (sampled, mode):
        assert action.shape == leading + spec.action.shape
        assert action.dtype == spec.action.dtype
        assert np.all(np.isfinite(action))


def test_update_keeps_structure_shapes_and_types(case):
    after, metrics = jax.eval_shape(case.agent.update, case.config, case.state, case.batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(case.state)
    before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), case.state)
    assert before == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after)
    assert all(metric.shape == () for metric in metrics.values())


@pytest.mark.slow  # every operation is compiled by itself
def test_update_is_the_same_eager_and_compiled(case):
    eager = case.agent.update(case.config, case.state, case.batch, jax.random.key(0))
    compiled = case.update(case.config, case.state, case.batch, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), eager, compiled)


def test_update_is_finite_and_changes_the_parameters(case):
    state, metrics = case.updates(case.config)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state, metrics)))
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), case.state.params, state.params)
    assert all(jax.tree.leaves(changed)), changed


def test_update_over_seeds(case):
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(lambda key: case.agent.init(case.config, case.env.spec, key))(keys)
    update = jax.jit(jax.vmap(case.agent.update, in_axes=(None, 0, None, 0)))
    together, _ = update(case.config, states, case.batch, jax.random.split(jax.random.key(1), 2))
    alone, _ = case.update(
        case.config, jax.tree.map(lambda leaf: leaf[1], states), case.batch, jax.random.split(jax.random.key(1), 2)[1]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-4), together, alone)


@pytest.mark.parametrize(("agent", "name"), ALL_FLOATS, ids=lambda p: p if isinstance(p, str) else p.__name__)
def test_every_float_matters(agent, name):
    """Among lanes that each change one field, the lane of this field differs from the first, which changes none."""
    lanes = changed_lanes(agent)
    lane = 1 + float_fields(agent).index(name)
    assert any(np.any(leaf[0] != leaf[lane]) for leaf in jax.tree.leaves(lanes)), f"Config.{name} changes nothing"


@pytest.mark.parametrize("agent", AGENTS, ids=lambda a: a.__name__)
def test_update_over_floats(agent):
    """The first lane of a vmap over configurations is the update of its configuration alone."""
    (*_, lanes), case = changed_lanes(agent), first_case(agent)
    alone, _ = case.updates(case.config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-4), lanes, alone)


@functools.cache
def changed_lanes(agent):
    """What act, a proposal and three updates give; the first lane has the default, each other one changes one float."""
    case = first_case(agent)

    def changed(value):
        return 0.1 if math.isinf(value) or value == 0 else value / 2

    configs = [
        case.config.replace(**{name: jax.tree.map(changed, getattr(case.config, name))}) for name in float_fields(agent)
    ]
    configs = jax.tree.map(lambda *leaves: jnp.array(leaves, float), case.config, *configs)

    def run(config):
        state = agent.init(config, case.env.spec, jax.random.key(0))
        action = agent.act(config, state, case.batch.observation, jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 3)
        state, _ = jax.lax.scan(lambda s, key: (agent.update(config, s, case.batch, key)[0], None), state, keys)
        return action, case.proposal(config, state), state

    return jax.jit(jax.vmap(run))(configs)


@functools.cache
def first_case(agent):
    """The first task that this agent takes."""
    for task in TASKS:
        with contextlib.suppress(pytest.skip.Exception):
            return Case(agent, task)
    raise AssertionError(f"{agent.__name__} takes no task")


def test_a_new_float_is_not_traced_again(case):
    traces = []

    @jax.jit
    def update(config, *rest):
        traces.append(config)
        return case.agent.update(config, *rest)

    for config in (case.config, case.config.replace(learning_rate=0.5, discount=0.5)):
        update(config, case.state, case.batch, jax.random.key(0))
    assert len(traces) == 1
    for config in (case.config, case.config.replace(learning_rate=0.25, discount=0.25)):
        update(canonical(config), case.state, case.batch, jax.random.key(0))
    assert len(traces) == 2


def test_a_wrong_observation_or_batch_is_refused(case):
    wrong = jnp.zeros(case.env.spec.observation.shape[0] + 1)
    with pytest.raises(ValueError, match=r"observation has shape \(\d+,\), expected \(\.\.\., \d+\)"):
        case.agent.act(case.config, case.state, wrong)
    batch = case.batch.replace(action=jnp.zeros((*case.batch.reward.shape, 7)))
    with pytest.raises(ValueError, match=r"batch.action has shape .*7\), expected"):
        case.agent.update(case.config, case.state, batch, jax.random.key(0))
    with pytest.raises(ValueError, match=r"batch.reward has shape .* expected 2 axes, time first"):
        case.agent.update(case.config, case.state, jax.tree.map(lambda x: x[0], case.batch), jax.random.key(0))


@pytest.mark.parametrize(
    "agent",
    [pytest.param(agent, marks=[] if agent in (ppo, sac) else pytest.mark.slow) for agent in AGENTS],
    ids=lambda a: a.__name__,
)
def test_the_loop_is_bitwise_the_same_in_any_chunks(agent):
    case = first_case(agent)
    loop = train.loop(agent, case.env)
    run = jax.jit(loop.init)(case.config, jax.random.key(0))
    with jax.debug_key_reuse(False):  # the same run is continued twice
        whole, metrics = train.scan(loop, case.config, run, 4)
        part, first = train.scan(loop, case.config, run, 2)
        part, second = train.scan(loop, case.config, part, 2)
    assert_same(whole, part)
    assert_same(metrics, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second))
