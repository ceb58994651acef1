from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import mdp


def garnet(states=4, actions=3, seed=0, full_reward=False):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(states, 0.5), (states, actions))
    reward = rng.normal(size=(states, actions, states) if full_reward else (states, actions))
    return mdp.MDP(transition, reward, 0.9, rng.dirichlet(np.ones(states)))


@pytest.mark.parametrize("full_reward", [False, True])
def test_a_model_is_accepted_with_its_sizes(full_reward):
    model = garnet(full_reward=full_reward)
    mdp.validate(model)
    mdp.validate(jax.tree.map(jnp.asarray, model))
    assert (model.num_states, model.num_actions) == (4, 3)


def test_rounding_in_float32_is_accepted():
    rng = np.random.default_rng(1)
    weights = rng.uniform(size=(3, 2, 2000, 3)).astype(np.float32)[..., 0]
    rows = weights / weights.sum(-1, keepdims=True)
    transition = np.zeros((2000, 2, 2000), np.float32)
    transition[:, :, 0] = 1
    transition[:3] = rows
    mdp.validate(mdp.MDP(transition, np.zeros((2000, 2)), 0.5, np.eye(2000)[0]))


def replaced(name, index, value):
    """A model with one entry changed."""
    model = garnet(full_reward=True)
    leaf = np.array(getattr(model, name), float)
    leaf[index] = value
    return model.replace(**{name: leaf})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replaced("transition", (2, 1, 3), np.nan), r"transition\[state 2, action 1, successor 3\] is nan"),
        (replaced("transition", (0, 2, 1), -0.25), r"transition\[state 0, action 2, successor 1\] is -0.25"),
        (replaced("transition", (3, 0), [0.5, 0.25, 0.125, 0]), r"transition\[state 3, action 0\] sums to 0.875"),
        (replaced("transition", (1, 2), [1, 0, 0, 1e-7]), r"transition\[state 1, action 2\] sums to 1.0000001"),
        (replaced("reward", (1, 2, 0), np.inf), r"reward\[state 1, action 2, successor 0\] is inf"),
        (replaced("initial", slice(None), [0.5, 0.25, 0, 0]), r"initial sums to 0.75, expected 1"),
        (replaced("initial", 2, -1), r"initial\[state 2\] is -1.0, expected a probability"),
        (garnet().replace(discount=1.0), r"discount is 1.0, expected a number in \[0, 1\)"),
        (garnet().replace(discount=-0.1), r"discount is -0.1"),
        (garnet().replace(discount=np.nan), r"discount is nan"),
        (garnet().replace(discount=np.full(3, 0.9)), r"discount has shape \(3,\), expected \(\)"),
        (garnet().replace(transition=np.ones((4, 4)) / 4), r"transition has shape \(4, 4\), expected \[S, A, S\]"),
        (garnet().replace(transition=np.ones((4, 3, 5)) / 5), r"transition has shape \(4, 3, 5\), expected"),
        (garnet().replace(reward=np.zeros((3, 4))), r"reward has shape \(3, 4\), expected \(4, 3\) or \(4, 3, 4\)"),
        (garnet().replace(initial=np.ones(3) / 3), r"initial has shape \(3,\), expected \(4,\)"),
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


def test_models_stack():
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), garnet(seed=0), garnet(seed=1))
    assert (models.num_states, models.num_actions) == (4, 3)
    sizes = jax.vmap(lambda model: model.transition.sum() / model.num_actions)(models)
    np.testing.assert_allclose(sizes, [4, 4], rtol=1e-5)
