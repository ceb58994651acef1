"""`jaxrl.plot`: what is drawn, read back from the figure, and the files it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from jaxrl import plot, stats

LABELS: dict[str, Any] = {"xlabel": "environment steps", "ylabel": "return"}
STEPS = np.arange(1, 6) * 1000


def returns(seeds: int = 8, points: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(seeds, points)) + np.arange(points)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that were saved."""
    saved: list[matplotlib.figure.Figure] = []
    savefig = matplotlib.figure.Figure.savefig

    def save(figure: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    return saved


def lines(figure: matplotlib.figure.Figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[0].lines}


def legend(figure: matplotlib.figure.Figure) -> tuple[str, list[str]]:
    return figure.legends[0].get_title().get_text(), [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("statistic", [stats.mean, stats.interquartile_mean])
def test_line_band_and_references_are_where_they_belong(tmp_path: Path, figures: Any, statistic: Any) -> None:
    data = {"sac": (STEPS, returns()), "stac": (STEPS[:3], returns(8, 3) + 2)}
    plot.curves(tmp_path / "a.png", data, **LABELS, title="Task", references={"random": -3.0}, statistic=statistic)
    (figure,), axes = figures, figures[0].axes[0]
    drawn = lines(figure)
    for label, band in zip(data, axes.collections, strict=True):
        steps, scores = data[label]
        np.testing.assert_allclose(drawn[label], np.stack([steps, statistic(scores, 0)], 1))
        low, high = stats.bootstrap_interval(scores, statistic)
        corners = {tuple(corner) for corner in np.round(band.get_paths()[0].vertices, 9)}
        assert corners >= {tuple(corner) for end in (low, high) for corner in np.round(np.stack([steps, end], 1), 9)}
    np.testing.assert_array_equal(drawn["random"][:, 1], -3.0)
    name = {stats.mean: "mean", stats.interquartile_mean: "interquartile mean"}[statistic]
    caption = f"line: {name} over 8 seeds; band: 95 % bootstrap interval"
    assert legend(figure) == (caption, ["sac", "stac", "random"])
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("environment steps", "return", "Task")


def test_seven_colours_and_five_dashes_make_different_lines(tmp_path: Path, figures: Any) -> None:
    plot.curves(tmp_path / "a.png", {f"agent {i}": (STEPS, returns(2)) for i in range(12)}, **LABELS)
    drawn = figures[0].axes[0].lines
    assert len({(line.get_color(), line._unscaled_dash_pattern) for line in drawn}) == 12  # no public getter


def test_the_legend_lies_below_the_axes_and_within_the_figure(tmp_path: Path, figures: Any) -> None:
    for length in (1, 12, 30):
        data = {f"{i}" * length: (STEPS, returns(2 + i)) for i in range(6)}
        plot.curves(tmp_path / "a.png", data, **LABELS)
        figure = figures[-1]
        box = figure.legends[0].get_window_extent()
        assert box.y1 < figure.axes[0].get_tightbbox().y0
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_a_seed_keeps_its_last_return_and_a_curve_begins_with_the_last_seed(tmp_path: Path, figures: Any) -> None:
    nan, inf = np.nan, np.inf
    data = [[nan, 1.0, nan, 3.0, inf], [nan, nan, 5.0, 7.0, 9.0], [nan] * 5]
    plot.curves(tmp_path / "a.png", {"x": (STEPS, data)}, **LABELS, statistic=stats.mean)
    np.testing.assert_allclose(lines(figures[0])["x"], [[3000, 3], [4000, 5], [5000, 6]])
    assert legend(figures[0])[0] == "line: mean over 2 seeds; band: 95 % bootstrap interval"


def test_the_legend_counts_seeds_where_they_differ(tmp_path: Path, figures: Any) -> None:
    data = {
        "one": (STEPS, returns(1)),
        "three": (STEPS, returns(3)),
        "point": (STEPS[:1], returns(3, 1)),
        "none": (STEPS, np.full((4, 5), np.nan)),
    }
    plot.curves(tmp_path / "a.png", data, **LABELS)
    caption, names = legend(figures[0])
    assert names == ["one (1 seed)", "three (3 seeds)", "point (3 seeds)", "none (0 seeds)"]
    assert caption == "line: interquartile mean over seeds; band: 95 % bootstrap interval"
    assert len(figures[0].axes[0].collections) == 2  # one seed has no band
    assert figures[0].axes[0].lines[2].get_marker() == "o"  # a line through one point is invisible
    plot.curves(tmp_path / "b.png", {"one": data["one"]}, **LABELS)
    assert legend(figures[1]) == ("line: interquartile mean over 1 seed", ["one"])


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_names_the_format_and_folders_are_made(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / "new" / f"curves.{suffix}"
    plot.curves(str(path), {"x": (STEPS, returns())}, **LABELS)
    assert path.read_bytes().startswith(magic)


def test_importing_does_not_import_matplotlib_and_drawing_not_pyplot(tmp_path: Path) -> None:
    code = f"""
import sys
from jaxrl import plot
assert "matplotlib" not in sys.modules
plot.curves({str(tmp_path / "a.png")!r}, {{"x": ([1, 2], [[1.0, 2.0]])}}, xlabel="steps", ylabel="return")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "series is empty"),
        ({"x": (STEPS, returns(8, 4))}, r"series\['x'\] has steps of shape \(5,\) and returns of shape \(8, 4\)"),
        ({"x": (STEPS, returns(8, 5).T)}, r"expected \[points\] and \[seeds, points\].*axes swapped\?"),
        ({"x": (STEPS, returns(1)[0])}, r"returns of shape \(5,\)"),
        ({"x": (STEPS, np.zeros((0, 5)))}, r"returns of shape \(0, 5\).*at least one"),
        ({"x": ([], np.zeros((3, 0)))}, r"steps of shape \(0,\)"),
        ({"x": ([1, 3, 2, 4, 5], returns())}, "steps that do not increase"),
        ({"x": ([1, 2, 3, 4, np.nan], returns())}, "steps that do not increase"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, series: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.curves(tmp_path / "a.png", series, **LABELS)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ over models

X, Y = np.array([0.5, 1.0, 2.0]), np.array([1.0, 3.0])
VALUES = np.arange(6.0).reshape(3, 2)
AXES: dict[str, Any] = {"xlabel": "mass, kg", "ylabel": "length, m", "label": "mean return"}


def test_a_cell_of_the_heat_map_is_the_value_of_its_model(tmp_path: Path, figures: Any) -> None:
    values = VALUES.copy()
    values[0, 1] = np.nan
    plot.heat_map(tmp_path / "a" / "map.png", X, Y, values, title="T", marks={"nominal": (1.0, 3.0)}, **AXES)
    axes, scale = figures[0].axes
    drawn = np.ma.getdata(axes.collections[0].get_array()).reshape(2, 3)  # rows are y
    hidden = np.ma.getmaskarray(axes.collections[0].get_array()).reshape(2, 3)
    np.testing.assert_array_equal(hidden, np.isnan(values.T))
    np.testing.assert_array_equal(drawn[~hidden], values.T[~hidden])
    corners = axes.collections[0].get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [0.25, 0.75, 1.5, 2.5])  # edges half way between the points
    assert (axes.get_xlabel(), axes.get_ylabel(), scale.get_ylabel()) == tuple(AXES.values())
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1.0, 3.0]])
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["nominal"]
    assert (tmp_path / "a" / "map.png").stat().st_size > 1000


def test_a_profile_has_the_models_of_each_seed_in_its_own_order(tmp_path: Path, figures: Any) -> None:
    means = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 6.0, 7.0]])
    plot.profiles(tmp_path / "p.svg", {"sac": means, "ppo": means[0]}, ylabel="mean return")
    axes = figures[0].axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata()[:, 0], [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(axes.lines[0].get_xydata()[:, 1], np.sort(means, 1).mean(0))
    np.testing.assert_allclose(axes.lines[1].get_xydata()[:, 1], [0, 1, 2, 3])
    low, high = stats.bootstrap_interval(np.sort(means, 1), stats.mean)
    corners = {tuple(corner) for corner in np.round(axes.collections[0].get_paths()[0].vertices, 9)}
    assert corners >= {(0.125, round(float(low[0]), 9)), (0.125, round(float(high[0]), 9))}
    assert len(axes.collections) == 1  # one seed has no band
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts == ["sac (2 seeds)", "ppo (1 seed)"]


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"values has shape \(2, 3\), x \(3,\) and y \(2,\), expected \[X, Y\]"):
        plot.heat_map(tmp_path / "a.png", X, Y, VALUES.T, **AXES)
    with pytest.raises(ValueError, match="x and y must increase"):
        plot.heat_map(tmp_path / "a.png", X[::-1], Y, VALUES, **AXES)
    with pytest.raises(ValueError, match="series is empty"):
        plot.profiles(tmp_path / "a.png", {}, ylabel="return")
    with pytest.raises(ValueError, match=r"series\['a'\] has shape \(1, 2, 3\), expected \[seeds, models\]"):
        plot.profiles(tmp_path / "a.png", {"a": np.ones((1, 2, 3))}, ylabel="return")


# ------------------------------------------------------------------------------------------- laws


def test_a_law_is_drawn_as_its_distribution_function(tmp_path: Path, figures: Any) -> None:
    atoms, probs = [2.0, -1.0, 0.5], [0.5, 0.2, 0.3]
    plot.laws(tmp_path / "laws.png", {"critic": (atoms, probs)}, xlabel="return", samples={"episodes": [0.0, 1.0]})
    learned, sampled = figures[0].axes[0].lines
    np.testing.assert_allclose(learned.get_xydata(), [[-1, 0], [-1, 0.2], [0.5, 0.5], [2, 1]])
    np.testing.assert_allclose(sampled.get_xydata(), [[0, 0], [0, 0.5], [1, 1]])
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["critic", "episodes (2)"]


def test_an_ellipse_holds_its_share_of_the_law(tmp_path: Path, figures: Any) -> None:
    mean, covariance = np.array([1.0, -2.0]), np.array([[2.0, 0.9], [0.9, 0.5]])
    plot.ellipses(
        tmp_path / "e.png", {"posterior": (mean, covariance)}, xlabel="a", ylabel="b", level=0.8, points={"true": mean}
    )
    line = figures[0].axes[0].lines[0].get_xydata()
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 20_000)
    from matplotlib.path import Path as Outline

    assert abs(Outline(line).contains_points(draws).mean() - 0.8) < 0.01
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["posterior", "true"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plot.laws(path, {}, xlabel="x"), "series is empty"),
        (lambda path: plot.laws(path, {"a": ([1.0], [0.5])}, xlabel="x"), r"\['a'\] has probabilities that sum to 0.5"),
        (lambda path: plot.laws(path, {"a": ([1.0, 2.0], [1.0])}, xlabel="x"), r"shapes \(2,\) and \(1,\)"),
        (lambda path: plot.laws(path, {}, xlabel="x", samples={"b": [np.nan]}), r"samples\['b'\] has 1 numbers"),
        (lambda path: plot.ellipses(path, {}, xlabel="x", ylabel="y"), "series is empty"),
        (
            lambda path: plot.ellipses(path, {"a": ([0, 0], -np.eye(2))}, xlabel="x", ylabel="y"),
            "not symmetric and pos",
        ),
        (
            lambda path: plot.ellipses(path, {"a": ([0, 0], [1, 1])}, xlabel="x", ylabel="y"),
            r"expected \[2\] and \[2, 2\]",
        ),
        (lambda path: plot.ellipses(path, {"a": ([0, 0], np.eye(2))}, xlabel="x", ylabel="y", level=90), "got 90"),
    ],
)
def test_laws_that_are_none_are_refused(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
