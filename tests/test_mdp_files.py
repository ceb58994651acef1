"""Models on disk: what is written is read, CRAAM's files too, and bad files say where."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from jaxrl import mdp
from jaxrl.mdp import files

HEADER = "idstatefrom,idaction,idstateto,probability,reward\n"


def garnet(full_reward=True):
    model = mdp.garnet(5, 2, 3, 0.9, jax.random.key(0))
    initial = np.float32([0.25, 0.5, 0.25, 0, 0])
    return model.replace(initial=initial, reward=model.reward if full_reward else model.reward[..., 0])


def assert_same_model(one, other, rtol=0.0):
    assert type(one) is type(other)
    for name, leaf in vars(one).items():
        np.testing.assert_allclose(leaf, getattr(other, name), rtol=rtol, err_msg=name)


def text(path, *lines, header=HEADER):
    path.write_text(header + "\n".join(lines) + "\n")
    return path


# ------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("full_reward", [False, True])
@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("x64", [False, True])
def test_npz_keeps_everything(tmp_path, form, full_reward, x64):
    with jax.enable_x64(x64):
        model = garnet(full_reward)
        model = mdp.dense(model) if form == "dense" else model
        mdp.write(tmp_path / "model.npz", model)
        again = mdp.read(tmp_path / "model.npz")
        assert_same_model(again, model)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(again)} == {
            leaf.dtype.name for leaf in jax.tree.leaves(model)
        }
    assert os.listdir(tmp_path) == ["model.npz"]
    changed = mdp.read(str(tmp_path / "model.npz"), discount=0.5, initial=np.eye(5)[2])
    assert changed.discount == 0.5 and changed.initial[2] == 1


@pytest.mark.parametrize("full_reward", [False, True])
@pytest.mark.parametrize("x64", [False, True])
def test_csv_keeps_the_transitions(tmp_path, full_reward, x64):
    with jax.enable_x64(x64):
        model = garnet(full_reward)
        mdp.write(tmp_path / "model.csv", model)
        again = mdp.read(tmp_path / "model.csv", discount=0.9, initial=model.initial)
        assert_same_model(again, model, rtol=1e-6 if not x64 else 1e-15)
        assert again.reward.shape == model.reward.shape
        mdp.write(tmp_path / "dense.csv", mdp.dense(model))
    assert (tmp_path / "dense.csv").read_text() == (tmp_path / "model.csv").read_text()
    assert (tmp_path / "model.csv").read_text().startswith(HEADER)
    assert sorted(os.listdir(tmp_path)) == ["dense.csv", "model.csv"]


def test_what_float32_wrote_is_read_in_float64(tmp_path):
    mdp.write(tmp_path / "model.csv", garnet())
    with jax.enable_x64(True):
        assert mdp.read(tmp_path / "model.csv", discount=0.9).probabilities.dtype == np.float64


def test_a_file_as_craam_writes_it(tmp_path):
    """Quoted names, another order of columns and lines, numbers as R abbreviates them, laws in a few decimals."""
    lines = ["0.3333333,0,0,1,-2.5", "0.6666667,0,0,0,1e+05", "", "1,1,0e+00,1,0"]
    path = text(tmp_path / "m.csv", *lines, header='"probability","idstatefrom","idaction","idstateto","reward"\n')
    with jax.enable_x64(True):
        model = mdp.read(path, discount=0.9)
        np.testing.assert_allclose(model.probabilities[0, 0].sum(), 1, rtol=1e-15)
        np.testing.assert_allclose(mdp.dense(model).transition[:, 0], [[2 / 3, 1 / 3], [0, 1]], atol=1e-7)
        np.testing.assert_allclose(mdp.dense(model).reward[0, 0], [1e5, -2.5])
        np.testing.assert_allclose(model.initial, [0.5, 0.5])


def test_terminal_states_and_actions_that_are_missing(tmp_path):
    path = text(tmp_path / "m.csv", "0,0,1,1,3", "0,1,2,1,4", "0,2,0,1,0", "1,0,1,1,-9", "1,1,0,0.5,1", "1,1,2,0.5,2")
    model = mdp.dense(mdp.read(path, discount=0.5))
    np.testing.assert_array_equal(model.transition[0], np.eye(3)[[1, 2, 0]])
    np.testing.assert_array_equal(
        model.transition[1], [[0, 1, 0], [0.5, 0, 0.5], [0.5, 0, 0.5]]
    )  # its last action twice
    np.testing.assert_array_equal(model.transition[2], [[0, 0, 1]] * 3)  # terminal
    np.testing.assert_array_equal(model.reward[2], 0)
    np.testing.assert_allclose(mdp.policy_iteration(model).value, [30 / 7, 18 / 7, 0], rtol=1e-5)


# ------------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"line 1: the header is '', expected 'idstatefrom,"),
        ("state,action,next,p,r\n0,0,0,1,0\n", r"line 1: the header is 'state,action,next,p,r'"),
        (HEADER, "has no line but its header"),
        (HEADER + "0,0,0,1\n", "line 2: it has 4 fields, expected 5"),
        (HEADER + "0,0,0,1,0\n0,x,0,1,0\n", "line 3: idaction is 'x', expected an integer from 0"),
        (HEADER + "0,0,0,1,0\n\n0.5,0,0,1,0\n", "line 4: idstatefrom is '0.5', expected an integer"),
        (HEADER + "0,0,-1,1,0\n", "line 2: idstateto is '-1'"),
        (HEADER + "0,0,1e30,1,0\n", "line 2: idstateto is '1e30'"),
        (HEADER + "0,0,0,1,nan\n", "line 2: reward is 'nan', expected a finite number"),
        (HEADER + "0,0,0,1,\n", "line 2: reward is ''"),
        (HEADER + "0,0,0,-0.5,0\n", r"line 2: probability is '-0.5', expected a number in \[0, 1\]"),
        (HEADER + "0,0,0,2,0\n", "line 2: probability is '2'"),
        (HEADER + '0,0,0,1,"0\n', "line 2: unexpected end of data"),
        (HEADER + "0,0,0,0.5,0\n0,0,1,0.4,0\n", r"probabilities\[state 0, action 0\] sums to 0.9"),
        (HEADER + "0,0,0,0.999,0\n", r"probabilities\[state 0, action 0\] sums to 0.999"),
        (HEADER + "0,0,7,1,0\n", "state 1 is nowhere, expected states to be numbered from 0 to 7"),
        (HEADER + "0,0,0,1,0\n0,2,0,1,0\n", "state 0 has action 2 but no action 1"),
        (HEADER + "0,0,0,1,0\n0,0,0,1,\xff\n", "line 3"),
    ],
)
def test_a_bad_csv_file_says_where(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        mdp.read(path, discount=0.9)
    assert "bad.csv" in str(error.value)


def test_a_csv_file_needs_a_discount(tmp_path):
    with pytest.raises(ValueError, match=r"holds no discount, as no CSV file does: pass discount=\.\.\."):
        mdp.read(text(tmp_path / "m.csv", "0,0,0,1,0"))
    with pytest.raises(ValueError, match=r"m.csv: discount is 1.0"):
        mdp.read(tmp_path / "m.csv", discount=1.0)


@given(st.text("01234567,.e-\n", max_size=60))
@settings(deadline=None, max_examples=60)
def test_any_text_is_a_model_or_an_error(tmp_path_factory, lines):
    path = text(tmp_path_factory.mktemp("any") / "m.csv", "0,0,0,1,0", lines)
    try:
        mdp.validate(mdp.read(path, discount=0.9))
    except ValueError as error:
        assert "m.csv" in str(error)


def test_bad_npz_files_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    mdp.write(path, garnet())
    whole = path.read_bytes()
    for damaged in (b"", b"not a zip file", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"m.npz can't be read"):
            mdp.read(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"m.npz"):
        mdp.read(path)
    np.savez(path, probabilities=np.ones(3))
    with pytest.raises(ValueError, match=r"m.npz holds the arrays \['probabilities'\], expected those of an MDP or a"):
        mdp.read(path)
    arrays = {name: np.asarray(leaf) for name, leaf in vars(garnet()).items()}
    np.savez(path, **arrays | {"reward": np.array([[None]])})
    with pytest.raises(ValueError, match=r"m.npz can't be read"):
        mdp.read(path)  # never unpickled
    np.savez(path, **arrays | {"discount": np.array(2.0)})
    with pytest.raises(ValueError, match=r"m.npz: discount is 2.0"):
        mdp.read(path)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    for name in ("m.npz", "m.csv"):
        with pytest.raises(FileNotFoundError):
            mdp.read(tmp_path / name, discount=0.9)
    for call in (lambda: mdp.read(tmp_path / "m.txt"), lambda: mdp.write(tmp_path / "m", garnet())):
        with pytest.raises(ValueError, match=r"has the suffix '(.txt|)', expected '.csv' or '.npz'"):
            call()


# -------------------------------------------------------------------------------------------- half-written


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_file_is_never_half_written(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"m{suffix}"
    mdp.write(path, garnet())
    before = path.read_bytes()

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OSError, match="no space left"):
        mdp.write(path, garnet().replace(discount=0.5))
    with pytest.raises(OSError, match="no space left"):
        mdp.write(tmp_path / f"new{suffix}", garnet())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"discount is 1\.0"):
        mdp.write(path, garnet().replace(discount=1.0))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
