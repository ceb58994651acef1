"""Other tools get what the record says: TensorBoard's own files are read back, and W&B runs offline."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxrl import log, sinks, stats


@pytest.fixture
def run_dir(tmp_path):
    """A record of three seeds, with a return that is missing."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    rng, lines = np.random.default_rng(0), []
    for step in (10, 20, 30):
        for seed in range(3):
            value = None if (step, seed) == (10, 1) else rng.normal()
            common = {"steps": step, "seed": seed, "seconds": 0.5}
            lines.append({"kind": "train", **common, "episode_return": value, "entropy": rng.normal()})
            if step == 20:
                lines.append({"kind": "evaluation", **common, "greedy": rng.normal(size=4).tolist()})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "config.json").write_text(json.dumps({"agent": "jaxrl.agents.ppo", "config": {"discount": 0.9}}))
    return run_dir


def scalars(directory):
    """{(name, step): value} of the event files in a directory, by their format: length, checksum, event, checksum."""
    found = {}
    for file in directory.iterdir():
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_tensorboard_gets_each_seed(run_dir):
    into = sinks.tensorboard(run_dir)
    assert sinks.tensorboard(run_dir) == into == run_dir / "tensorboard"  # the second time in place of the first
    assert sorted(path.name for path in into.iterdir()) == ["seed_0", "seed_1", "seed_2"]
    assert all(len(list(path.iterdir())) == 1 for path in into.iterdir())
    record, evaluation = log.read(run_dir), log.read(run_dir, "evaluation")
    for seed in range(3):
        found = scalars(into / f"seed_{seed}")
        for point, step in enumerate((10, 20, 30)):
            for name in ("episode_return", "entropy"):
                if np.isfinite(record[name][seed, point]):
                    np.testing.assert_allclose(found[name, step], record[name][seed, point], rtol=1e-6)
        assert (("episode_return", 10) in found) == (seed != 1)
        np.testing.assert_allclose(found["evaluation/greedy", 20], evaluation["greedy"][seed, 0].mean(), rtol=1e-6)
        assert ("evaluation/greedy", 10) not in found


def test_seeds_together_have_a_band(run_dir, tmp_path):
    found = scalars(sinks.tensorboard(run_dir, tmp_path / "events", together=True) / "seeds")
    entropy = log.read(run_dir)["entropy"]
    low, high = stats.bootstrap_interval(entropy, stats.interquartile_mean)
    for point, step in enumerate((10, 20, 30)):
        middle = stats.interquartile_mean(entropy)[point]
        expected = [middle, low[point], high[point]]
        got = [found["entropy" + part, step] for part in ("", "/low", "/high")]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert ("episode_return", 10) not in found  # of one seed it is missing


def test_the_console_gets_columns_and_a_terminal_a_table(run_dir, capsys, monkeypatch):
    sinks.console(run_dir, ["entropy"], together=False, last=2)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["seeds", "steps", "entropy"]
    entropy = log.read(run_dir)["entropy"]
    expected = [[f"seed_{i}", str(step), entropy[i, at]] for i in range(3) for at, step in ((1, 20), (2, 30))]
    assert [line[:2] for line in lines[1:]] == [row[:2] for row in expected]
    np.testing.assert_allclose([float(line[2]) for line in lines[1:]], [row[2] for row in expected], rtol=1e-4)
    sinks.console(run_dir)
    assert "episode_return\tepisode_return/low\tepisode_return/high\tevaluation/greedy" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    sinks.console(run_dir)
    assert "┃" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no metric returns; it has entropy, entropy/high, entropy/low"):
        sinks.console(run_dir, ["returns"])


@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_runs_offline(run_dir, monkeypatch):
    for name in ("WANDB_SILENT", "WANDB_DISABLE_GIT", "WANDB_DISABLE_CODE"):
        monkeypatch.setenv(name, "true")
    sinks.wandb(run_dir, project="test", mode="offline")
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 3
    assert all(b"episode_return" in file.read_bytes() for file in files)


def test_a_broken_record_is_refused_and_files_of_others_stay(run_dir, tmp_path):
    with pytest.raises(ValueError, match="is not the directory of a run"):
        sinks.tensorboard(tmp_path / "nothing")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match=r"other holds thesis.tex: name a directory for these files alone"):
        sinks.tensorboard(run_dir, other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    sinks.tensorboard(run_dir)
    before = sorted((run_dir / "tensorboard").rglob("*"))
    (run_dir / "metrics.jsonl").write_text("{broken\n")
    for sink in (sinks.tensorboard, lambda run_dir: sinks.wandb(run_dir, project="test", mode="offline")):
        with pytest.raises(ValueError, match="line 1 is not a record of a run"):
            sink(run_dir)
    assert sorted((run_dir / "tensorboard").rglob("*")) == before and not (run_dir / "wandb").exists()
