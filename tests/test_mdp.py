"""Models: what they are made of, what is refused, and what both forms share."""

from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxrl import mdp
from jaxrl.envs.tiny import Tabular

S, A, K = 4, 3, 3


def garnet(states=S, actions=A, seed=0, full_reward=False):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 0.5), (states, actions))
    reward = rng.normal(size=(states, actions, states) if full_reward else (states, actions))
    return mdp.MDP(transition, reward, 0.9, rng.dirichlet(np.ones(states)))


def sparse_garnet(seed=0, full_reward=True):
    """Rows of one to three successors, in any order, the padding with numbers that would show."""
    rng = np.random.default_rng(seed)
    successors = np.stack([rng.permutation(S)[:K] for _ in range(S * A)]).reshape(S, A, K)
    weights = rng.uniform(0.1, 1, (S, A, K)) * (np.arange(K) < rng.integers(1, K + 1, (S, A, 1)))
    successors = np.where(weights > 0, successors, successors[..., :1])
    reward = np.where(weights > 0, rng.normal(size=(S, A, K)), 1e6) if full_reward else rng.normal(size=(S, A))
    return mdp.SparseMDP(successors, weights / weights.sum(-1, keepdims=True), reward, 0.9, rng.dirichlet(np.ones(S)))


def as_lists(model):
    """The model as loops see it: `law[s][a]` is a list of (successor, probability, reward)."""
    full = np.broadcast_to(
        np.asarray(model.reward)[..., None] if np.ndim(model.reward) == 2 else model.reward,
        np.shape(mdp.probabilities(model)),
    )
    where, probs = np.asarray(mdp.successors(model)), np.asarray(mdp.probabilities(model))
    return [
        [list(zip(where[s, a], probs[s, a], full[s, a], strict=True)) for a in range(probs.shape[1])]
        for s in range(probs.shape[0])
    ]


MODELS = {
    "dense": garnet(),
    "dense, reward of the successor": garnet(full_reward=True),
    "sparse": sparse_garnet(full_reward=False),
    "sparse, reward of the successor": sparse_garnet(),
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)

# ----------------------------------------------------------------------------------------------- checks


@each_model
def test_a_model_is_accepted_with_its_sizes(model):
    mdp.validate(model)
    mdp.validate(jax.tree.map(jnp.asarray, model))
    assert (model.num_states, model.num_actions) == (S, A)


def test_rounding_in_float32_is_accepted():
    rng = np.random.default_rng(1)
    weights = rng.uniform(size=(3, 2, 2000, 3)).astype(np.float32)[..., 0]
    rows = weights / weights.sum(-1, keepdims=True)
    transition = np.zeros((2000, 2, 2000), np.float32)
    transition[:, :, 0] = 1
    transition[:3] = rows
    mdp.validate(mdp.MDP(transition, np.zeros((2000, 2)), 0.5, np.eye(2000)[0]))


def replaced(name, index, value, model=None):
    """A model with one entry changed."""
    model = garnet(full_reward=True) if model is None else model
    leaf = np.array(getattr(model, name))
    leaf[index] = value
    return model.replace(**{name: leaf})


def replaced_sparse(name, index, value):
    return replaced(name, index, value, mdp.sparse(garnet(full_reward=True)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replaced("transition", (2, 1, 3), np.nan), r"transition\[state 2, action 1, successor 3\] is nan"),
        (replaced("transition", (2, 1, 3), np.inf), r"transition\[state 2, action 1, successor 3\] is inf"),
        (replaced("transition", (0, 2, 1), -0.25), r"transition\[state 0, action 2, successor 1\] is -0.25"),
        (replaced("transition", (3, 0), [0.5, 0.25, 0.125, 0]), r"transition\[state 3, action 0\] sums to 0.875"),
        (replaced("transition", (1, 2), [1, 0, 0, 1e-7]), r"transition\[state 1, action 2\] sums to 1.0000001"),
        (replaced("reward", (1, 2, 0), np.inf), r"reward\[state 1, action 2, successor 0\] is inf"),
        (replaced("initial", slice(None), [0.5, 0.25, 0, 0]), r"initial sums to 0.75, expected 1"),
        (replaced("initial", 2, -1.0), r"initial\[state 2\] is -1.0, expected a probability"),
        (garnet().replace(discount=1.0), r"discount is 1.0, expected a number in \[0, 1\)"),
        (garnet().replace(discount=-0.1), r"discount is -0.1"),
        (garnet().replace(discount=np.nan), r"discount is nan"),
        (garnet().replace(discount=np.full(3, 0.9)), r"discount has shape \(3,\), expected \(\)"),
        (garnet().replace(transition=np.ones((4, 4)) / 4), r"transition has shape \(4, 4\), expected \[S, A, S\]"),
        (garnet().replace(transition=np.ones((4, 3, 5)) / 5), r"transition has shape \(4, 3, 5\), expected"),
        (garnet().replace(reward=np.zeros((3, 4))), r"reward has shape \(3, 4\), expected \(4, 3\) or \(4, 3, 4\)"),
        (garnet().replace(initial=np.ones(3) / 3), r"initial has shape \(3,\), expected \(4,\)"),
        (replaced_sparse("probabilities", (2, 1, 3), np.nan), r"probabilities\[state 2, action 1, slot 3\] is nan"),
        (replaced_sparse("probabilities", (2, 1), 0.3), r"probabilities\[state 2, action 1\] sums to 1.2"),
        (replaced_sparse("reward", (1, 2, 0), -np.inf), r"reward\[state 1, action 2, slot 0\] is -inf"),
        (
            replaced_sparse("successors", (1, 0, 2), 4),
            r"successors\[state 1, action 0, slot 2\] is 4, expected",
        ),
        (replaced_sparse("successors", (1, 0, 2), -1), r"successors\[state 1, action 0, slot 2\] is -1"),
        (replaced_sparse("successors", (1, 0, 2), 0), r"successors\[state 1, action 0\] lists state 0 twice"),
        (sparse_garnet().replace(successors=np.zeros((S, A, K))), r"successors has dtype float\d\d, expected integers"),
        (sparse_garnet().replace(successors=np.zeros((S, A), int)), r"successors has shape \(4, 3\), expected"),
        (sparse_garnet().replace(probabilities=np.ones((S, A, 1))), r"probabilities has shape \(4, 3, 1\), expected"),
        (sparse_garnet().replace(discount=1.5), r"discount is 1.5"),
    ],
)
def test_what_is_no_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        mdp.validate(model)


def test_a_trace_checks_shapes_only():
    @jax.jit
    def total(model):
        mdp.validate(model)
        return model.transition.sum()

    model = garnet()
    assert jnp.isnan(total(model.replace(transition=np.full((4, 3, 4), np.nan))))
    with pytest.raises(ValueError, match="initial has shape"):
        total(model.replace(initial=np.ones(3) / 3))


# --------------------------------------------------------------------------------- what both forms share


@each_model
def test_parts_of_a_backup_are_its_loops(model):
    laws, value = as_lists(model), np.random.default_rng(7).normal(size=S)
    with jax.enable_x64(True):
        z, probs = np.asarray(mdp.targets(model, value)), np.asarray(mdp.probabilities(model))
        q, mean, reward = (
            np.asarray(x)
            for x in (mdp.action_values(model, value), mdp.expectation(model, value), mdp.expected_reward(model))
        )
    assert z.shape == probs.shape == np.shape(mdp.successors(model))
    assert np.all(np.isfinite(z))
    for s in range(S):
        for a in range(A):
            law = laws[s][a]
            assert q[s, a] == pytest.approx(sum(p * (r + 0.9 * value[t]) for t, p, r in law))
            assert mean[s, a] == pytest.approx(sum(p * value[t] for t, p, _ in law))
            assert reward[s, a] == pytest.approx(sum(p * r for _, p, r in law))
            np.testing.assert_allclose(
                z[s, a][probs[s, a] > 0], [r + 0.9 * value[t] for t, p, r in law if p > 0], rtol=1e-12
            )


@each_model
def test_a_model_that_follows_a_policy_is_its_chain(model):
    rng = np.random.default_rng(2)
    policy, actions, value = rng.dirichlet(np.ones(A), S), rng.integers(0, A, S), rng.normal(size=S)
    with jax.enable_x64(True):
        q = np.asarray(mdp.action_values(model, value))
        mixed, picked = mdp.follow(model, policy), mdp.follow(model, actions)
        assert mixed.num_actions == picked.num_actions == 1
        np.testing.assert_allclose(mdp.action_values(mixed, value)[:, 0], (policy * q).sum(1), rtol=1e-12)
        np.testing.assert_allclose(mdp.action_values(picked, value)[:, 0], q[np.arange(S), actions], rtol=1e-12)


@each_model
def test_rows(model):
    with jax.enable_x64(True):
        law = [np.asarray(x) for x in mdp.row(model, 2, 1)]
    np.testing.assert_allclose(np.stack(law, axis=1), as_lists(model)[2][1])


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.99), st.floats(-5, 5))
@settings(deadline=None, max_examples=50)
def test_the_bellman_operator_contracts_is_monotone_and_shifts(seed, discount, shift):
    rng = np.random.default_rng(seed)
    model = sparse_garnet(seed % 10).replace(discount=discount)
    v, w = rng.normal(scale=3, size=(2, S))
    with jax.enable_x64(True):
        tv, tw, high, shifted = (np.asarray(_optimal_backup(model, x)) for x in (v, w, np.maximum(v, w), v + shift))
    assert np.abs(tv - tw).max() <= discount * np.abs(v - w).max() + 1e-12
    assert np.all(high >= np.maximum(tv, tw) - 1e-12)
    np.testing.assert_allclose(shifted, tv + discount * shift, atol=1e-12)


@jax.jit
def _optimal_backup(model, value):
    return mdp.action_values(model, value).max(axis=1)


def test_models_stack():
    models = mdp.stack([garnet(seed=0), garnet(seed=1).replace(discount=0.5)])
    assert (models.num_states, models.num_actions) == (S, A)
    np.testing.assert_array_equal(models.discount, np.float32([0.9, 0.5]))
    sizes = jax.vmap(lambda model: model.transition.sum() / model.num_actions)(models)
    np.testing.assert_allclose(sizes, [4, 4], rtol=1e-5)
    slots = mdp.stack([sparse_garnet(0), sparse_garnet(1), sparse_garnet(2)])
    assert slots.successors.shape == (3, S, A, K)


def test_what_does_not_stack_is_refused():
    with pytest.raises(ValueError, match="models is empty"):
        mdp.stack([])
    with pytest.raises(ValueError, match=r"models\[1\] is of type MDP .*'reward': \(4, 3, 4\).*'reward': \(4, 3\)"):
        mdp.stack([garnet(), garnet(full_reward=True)])
    with pytest.raises(ValueError, match=r"models\[1\] is of type SparseMDP .* expected MDP"):
        mdp.stack([garnet(), sparse_garnet()])


def test_one_jit_tells_the_forms_apart():
    forms = [jax.tree.structure(jax.tree.map(lambda _: 0, model)) for model in (garnet(), sparse_garnet())]
    assert forms[0] != forms[1]


# ------------------------------------------------------------------------------------ from one to another


def assert_same_model(one, other, rtol=1e-6):
    assert type(one) is type(other)
    for name, leaf in vars(one).items():
        np.testing.assert_allclose(leaf, getattr(other, name), rtol=rtol, err_msg=name)


@pytest.mark.parametrize("full_reward", [False, True])
def test_dense_and_sparse_are_the_same_model(full_reward):
    model = sparse_garnet(full_reward=full_reward)
    dense = mdp.dense(model)
    mdp.validate(dense)
    table = np.zeros((S, A, S, 2))
    for s, actions in enumerate(as_lists(model)):
        for a, law in enumerate(actions):
            for t, p, r in law:
                table[s, a, t] += (p, r) if p > 0 else (0, 0)
    np.testing.assert_allclose(dense.transition, table[..., 0], rtol=1e-6)
    if full_reward:
        np.testing.assert_allclose(dense.reward, table[..., 1], rtol=1e-6)
    again = mdp.sparse(dense)
    assert again.successors.shape[-1] == (table[..., 0] > 0).sum(-1).max()
    mdp.validate(again)
    assert_same_model(mdp.dense(again), dense)


def test_transitions_make_a_model_in_any_order():
    model = sparse_garnet()
    rows = [
        (s, a, t, p, r)
        for s, actions in enumerate(as_lists(model))
        for a, law in enumerate(actions)
        for t, p, r in law
        if p > 0
    ]
    rows += [(0, 0, 3, 0.0, 1e9)]  # without mass: nothing
    halves = [(s, a, t, p / 2, r + sign) for s, a, t, p, r in rows for sign in (-0.5, 0.5)]
    np.random.default_rng(0).shuffle(halves)
    for listed in (rows, halves):
        states, actions, successors, probs, rewards = zip(*listed, strict=True)
        built = mdp.from_transitions(states, actions, successors, probs, rewards, 0.9, initial=model.initial)
        assert_same_model(mdp.dense(built), mdp.dense(model), rtol=1e-4)
        assert built.successors.dtype == jnp.int32


def test_a_reward_that_does_not_depend_on_the_successor_is_short():
    model = mdp.from_transitions([0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [0.5, 0.5, 0.25, 0.75], [2, 2, 7, 7], 0.9)
    np.testing.assert_array_equal(model.reward, [[2], [7]])
    np.testing.assert_allclose(model.initial, [0.5, 0.5])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0], [0], [0], [0.5], [0.0]), r"probabilities\[state 0, action 0\] sums to 0.5"),
        (([0, 1], [0, 1], [1, 0], [1, 1], [0, 0]), r"probabilities\[state 0, action 1\] sums to 0"),
        (([0, 0], [0, 0], [0, 0], [2, -1], [0, np.inf]), r"reward\[state 0, action 0\] is (-inf|nan)"),
        (([0, 1], [0, 0], [0, 1], [1, np.nan], [0, 0]), r"probabilities\[state 1, action 0, slot 0\] is nan"),
        (([0], [-1], [0], [1], [0]), "actions must be integers from 0, got -1"),
        (([0.0], [0], [0], [1], [0]), "states must be integers from 0, got 0.0"),
        (([0], [0], [0, 1], [1], [0]), r"successors has shape \(2,\), expected \(1,\)"),
        (([], [], [], [], []), r"states has shape \(0,\)"),
    ],
)
def test_what_is_no_list_of_transitions_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        mdp.from_transitions(*columns, 0.9)


@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_counts_make_the_mean_of_the_posterior(prior):
    rng = np.random.default_rng(3)
    counts = rng.poisson(2, (S, A, S))
    counts[1, 2] = 0
    reward = rng.normal(size=(S, A))
    model = mdp.from_counts(counts, reward, 0.8, prior=prior)
    for s in range(S):
        for a in range(A):
            total = counts[s, a].sum() + S * prior
            expected = (counts[s, a] + prior) / total if total else np.full(S, 1 / S)
            np.testing.assert_allclose(model.transition[s, a], expected, rtol=1e-6)
    np.testing.assert_allclose(model.initial, np.full(S, 1 / S))
    traced = jax.jit(lambda n: mdp.from_counts(n, reward, 0.8, prior=prior).transition)(counts)
    np.testing.assert_allclose(traced, model.transition, rtol=1e-6)
    slope = jax.grad(lambda n: mdp.from_counts(n, reward, 0.8, prior=prior).transition[1, 2, 0])(counts * 1.0)
    assert np.all(np.isfinite(slope))


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match=r"counts \+ prior has the entry -1"):
        mdp.from_counts(np.full((2, 1, 2), -1), np.zeros((2, 1)), 0.9)
    with pytest.raises(ValueError, match=r"reward has shape \(1, 2\)"):
        mdp.from_counts(np.ones((2, 1, 2)), np.zeros((1, 2)), 0.9)


# ------------------------------------------------------------------------------------------- environment


def test_a_sparse_model_is_an_environment():
    """Its draws have the frequencies of its rows, and padded slots are never drawn."""
    model, num = sparse_garnet(), 20_000
    env = Tabular(model)
    advance = jax.jit(jax.vmap(env.step, (None, None, None, 0)))
    dense = mdp.dense(model)
    for state, action in ((0, 0), (3, 2)):
        keys = jax.random.split(jax.random.key(state), num)
        successors, step = advance(env.params(), jnp.int32(state), jnp.int32(action), keys)
        probs = np.asarray(dense.transition[state, action])
        frequencies = np.bincount(successors, minlength=S) / num
        assert np.all(np.abs(frequencies - probs) <= 4 * np.sqrt(probs * (1 - probs) / num))
        np.testing.assert_array_equal(step.observation.argmax(-1), successors)
        np.testing.assert_allclose(step.reward, np.asarray(dense.reward)[state, action][successors], rtol=1e-6)
