"""Networks: shapes, the weights they start from, and what they compute, against NumPy."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxrl.networks import MLP, Convolutions, Plain, Scalar, SimbaV2, Torso, ensemble


def init(module: nn.Module, x: jax.Array) -> Any:
    return jax.jit(module.init)(jax.random.key(0), x)


def apply(module: nn.Module, params: Any, x: jax.Array) -> jax.Array:
    return jax.jit(module.apply)(params, x)


def shapes(params: Any) -> Any:
    return jax.tree.map(jnp.shape, params)["params"]


def parameters(module: nn.Module, x: jax.Array, seed: int = 0) -> Any:
    """Random parameters where `init` has zeros and ones too, so that biases and scales count."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def data(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --------------------------------------------------------------------------------------------------- MLP


def test_mlp_is_affine_then_activation_layer_by_layer() -> None:
    x = data(7, 3)
    params = parameters(MLP((5, 4)), x, 1)
    layers = params["params"]
    h = np.asarray(x, np.float64)
    for name in ("Dense_0", "Dense_1"):
        h = np.tanh(h @ np.asarray(layers[name]["kernel"]) + np.asarray(layers[name]["bias"]))
    np.testing.assert_allclose(apply(MLP((5, 4)), params, x), h, rtol=1e-4, atol=1e-5)


def test_layer_norm_stands_between_the_affine_map_and_the_activation() -> None:
    x, module = data(7, 3), MLP((5, 4), nn.relu, layer_norm=True)
    params = parameters(module, x, 2)
    layers = params["params"]
    h = np.asarray(x, np.float64)
    for i in range(2):
        h = h @ np.asarray(layers[f"Dense_{i}"]["kernel"]) + np.asarray(layers[f"Dense_{i}"]["bias"])
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        norm = layers[f"LayerNorm_{i}"]
        h = np.maximum(h * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), 0)
    np.testing.assert_allclose(apply(module, params, x), h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "inputs", "outputs"),
    [(MLP((5, 4)), (3,), (4,)), (Scalar(), (3,), ()), (Convolutions((2,)), (4, 5, 3), (40,))],
)
def test_leading_axes_are_batch_axes(module: nn.Module, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    x = data(2, 3, *inputs)
    params = parameters(module, x[0, 0])
    batch = apply(module, params, x)
    assert batch.shape == (2, 3, *outputs)
    np.testing.assert_allclose(apply(module, params, x[0]), batch[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(module, params, x[1, 2]), batch[1, 2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("inputs", "size"), [(200, 100), (50, 400)])
def test_weights_start_with_variance_two_over_inputs_and_biases_at_zero(inputs: int, size: int) -> None:
    params = init(MLP((size, 80)), data(inputs))["params"]
    for layer in params.values():
        kernel = np.asarray(layer["kernel"])
        np.testing.assert_allclose(kernel.var() * kernel.shape[0], 2, rtol=0.05)
        assert abs(kernel).max() <= 2 * np.sqrt(2 / kernel.shape[0]) / 0.87  # cut at two standard deviations
        assert not np.any(layer["bias"])


def test_no_hidden_layer_is_the_identity() -> None:
    np.testing.assert_array_equal(apply(MLP(()), {}, data(7, 3)), data(7, 3))


# ------------------------------------------------------------------------------------------- convolutions


def test_convolutions_are_scipys() -> None:
    x, module = data(2, 4, 5, 3), Convolutions((6,))
    params = parameters(module, x, 3)
    kernel, bias = (np.asarray(params["params"]["Conv_0"][name]) for name in ("kernel", "bias"))
    expected = np.zeros((2, 4, 5, 6)) + bias
    for image in range(2):
        for i in range(3):
            for o in range(6):
                expected[image, ..., o] += scipy.signal.correlate2d(x[image, ..., i], kernel[..., i, o], mode="same")
    np.testing.assert_allclose(apply(module, params, x), np.maximum(expected, 0).reshape(2, -1), rtol=1e-4, atol=1e-5)


def test_convolutions_stack() -> None:
    params = init(Convolutions((16, 80)), data(4, 4, 3))
    assert {name: layer["kernel"] for name, layer in shapes(params).items()} == {
        "Conv_0": (3, 3, 3, 16),
        "Conv_1": (3, 3, 16, 80),
    }
    kernel = np.asarray(params["params"]["Conv_1"]["kernel"])
    np.testing.assert_allclose(kernel.var() * 3 * 3 * 16, 2, rtol=0.05)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32])
def test_convolutions_take_integers_as_they_are(dtype: Any) -> None:
    board = np.random.default_rng(4).integers(0, 2 if dtype is bool else 9, (10, 10, 4)).astype(dtype)
    module = Convolutions((2,))
    params = parameters(module, jnp.asarray(board))
    got = apply(module, params, jnp.asarray(board))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, apply(module, params, jnp.asarray(board, jnp.float32)), rtol=1e-6)


def test_an_empty_batch_of_images_has_no_features() -> None:
    params = parameters(Convolutions((2,)), data(4, 5, 3))
    assert apply(Convolutions((2,)), params, jnp.zeros((0, 4, 5, 3))).shape == (0, 40)


def test_convolutions_say_what_an_image_is() -> None:
    with pytest.raises(ValueError, match=r"input of shape \(10, 10\), expected \[\.\.\., height, width, channels\]"):
        Convolutions().init(jax.random.key(1), jnp.zeros((10, 10)))


# -------------------------------------------------------------------------------------- Scalar, ensembles


def test_scalar_is_one_affine_output() -> None:
    wide = init(Scalar(), data(2000))["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.var(wide) * 2000, 1, rtol=0.1)
    x = data(7, 3)
    layer = (params := parameters(Scalar(), x))["params"]["Dense_0"]
    expected = np.asarray(x) @ np.asarray(layer["kernel"])[:, 0] + np.asarray(layer["bias"])
    np.testing.assert_allclose(apply(Scalar(), params, x), expected, rtol=1e-5, atol=1e-6)


def test_members_of_an_ensemble_are_the_module_with_parameters_of_their_own() -> None:
    x = data(7, 3)
    critics = ensemble(MLP, 3)((5, 4), nn.relu)
    params = init(critics, x)
    assert shapes(params) == {
        "Dense_0": {"kernel": (3, 3, 5), "bias": (3, 5)},
        "Dense_1": {"kernel": (3, 5, 4), "bias": (3, 4)},
    }
    wide = init(ensemble(MLP, 3)((80,)), data(100))["params"]["Dense_0"]["kernel"]  # each starts as if it were alone
    np.testing.assert_allclose(np.var(wide, axis=(1, 2)) * 100, 2, rtol=0.05)
    out = apply(critics, params, x)
    assert out.shape == (3, 7, 4)
    for i in range(3):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        np.testing.assert_allclose(out[i], apply(MLP((5, 4), nn.relu), alone, x), rtol=1e-5, atol=1e-6)
        assert not np.allclose(out[i], out[(i + 1) % 3])


def test_members_of_an_ensemble_draw_dropout_of_their_own() -> None:
    class Dropout(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dropout(0.5, deterministic=False)(x)

    out = ensemble(Dropout, 2)().apply({}, jnp.ones(64), rngs={"dropout": jax.random.key(2)})
    assert np.any(out[0] != out[1])


@pytest.mark.parametrize("size", [0, -1, 2.0])
def test_the_size_of_an_ensemble_is_checked(size: Any) -> None:
    with pytest.raises(ValueError, match=rf"ensemble\.size must be an integer of at least 1, got {size}"):
        ensemble(Scalar, size)


# ------------------------------------------------------------------------------------------------- Torso


def test_torso_of_a_vector_is_an_mlp() -> None:
    x = data(7, 3)
    params = parameters(Torso((3,), (5, 4), nn.relu), x, 6)
    assert set(shapes(params)) == {"MLP_0"}
    alone = {"params": params["params"]["MLP_0"]}
    got = apply(Torso((3,), (5, 4), nn.relu), params, x)
    np.testing.assert_allclose(got, apply(MLP((5, 4), nn.relu), alone, x), rtol=1e-6)


def test_torso_of_an_image_is_an_mlp_of_convolutions() -> None:
    x, module = data(2, 3, 10, 10, 4), Torso((10, 10, 4), (5,), nn.relu)
    params = parameters(module, x, 7)
    assert shapes(params)["MLP_0"]["Dense_0"]["kernel"] == (1600, 5)
    features = apply(Convolutions(), {"params": params["params"]["Convolutions_0"]}, x)
    expected = apply(MLP((5,), nn.relu), {"params": params["params"]["MLP_0"]}, features)
    assert expected.shape == (2, 3, 5)
    np.testing.assert_allclose(apply(module, params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (4, 5), (2, 4, 5, 3)])
def test_torso_says_what_it_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"observations have shape \(.*\), expected a vector \(F,\) or an image .*wrapper"
    ):
        Torso(shape, (5,)).init(jax.random.key(3), jnp.zeros(shape))


# --------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("layer_norm", [False, True])
def test_plain_is_an_mlp_with_linear_outputs(layer_norm: bool) -> None:
    network = Plain(layer_norm)

    class Whole(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> Any:
            return network.heads(network.features((5, 4), nn.relu)(x), 3, 2)

    x = data(7, 3)
    params = parameters(Whole(), x, 10)
    features = apply(MLP((5, 4), nn.relu, layer_norm), {"params": params["params"]["MLP_0"]}, x)
    head = params["params"]["Dense_0"]
    expected = np.asarray(features) @ head["kernel"] + head["bias"]
    first, second = apply(Whole(), params, x)
    np.testing.assert_allclose(first, expected[:, :3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, expected[:, 3:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.log_std(jnp.array([-50.0, 0.5, 50.0])), jnp.array([-20.0, 0.5, 2.0]))


def test_architectures_are_told_apart_and_found_again() -> None:
    """They are static settings: equal ones must compile once, others must not be taken for each other."""
    assert Plain() == Plain() and hash(SimbaV2()) == hash(SimbaV2()) and SimbaV2() == SimbaV2()
    assert len({Plain(), Plain(layer_norm=True), SimbaV2()}) == 3


def test_torso_takes_another_architecture() -> None:
    module = Torso((3,), (5,), nn.relu, SimbaV2())
    x = data(7, 3)
    params = init(module, x)
    assert set(shapes(params)) == {"Encoder_0"}
    np.testing.assert_allclose(np.linalg.norm(apply(module, params, x), axis=-1), 1, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("module", [MLP((5,), layer_norm=True), Scalar(), Convolutions((2,)), Torso((4, 5, 3), (5,))])
def test_dtypes_are_kept(module: nn.Module, dtype: str) -> None:
    with jax.enable_x64(True):
        x = jnp.ones((2, 4, 5, 3), dtype)
        params = jax.eval_shape(module.init, jax.random.key(0), x)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
        assert jax.eval_shape(module.apply, params, x).dtype == dtype


def test_vmap_over_parameters_is_each_network_alone() -> None:
    x, module = data(7, 3), MLP((5, 4))
    both = [parameters(module, x, seed) for seed in (8, 9)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *both)
    out = jax.jit(jax.vmap(module.apply, (0, None)))(stacked, x)
    for got, params in zip(out, both, strict=True):
        np.testing.assert_allclose(got, apply(module, params, x), rtol=1e-5, atol=1e-6)
