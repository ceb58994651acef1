"""`jaxrl report`: one HTML page of a run, which needs no network but for Brax's viewer."""

from __future__ import annotations

import base64
import dataclasses
import html
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxrl.cli import curves, evaluation, figures, listing, options, resuming, runs
from jaxrl.cli.errors import UsageError

LARGEST = 2**25  # bytes of an episode that becomes part of the page
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d1d1f; background: #fff; margin: 0 auto; max-width: 60rem;
       padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; } p { margin: .4rem 0; }
.about { color: #555; } img { max-width: 100%; } iframe { width: 100%; height: 30rem; border: 1px solid #ddd; }
pre, code { font: 13px/1.45 ui-monospace, monospace; background: #f5f5f7; border-radius: 4px; }
pre { padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; } code { padding: .1rem .3rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem 1.2rem .2rem 0; vertical-align: top;
       border-bottom: 1px solid #e8e8ea; overflow-wrap: anywhere; } th { font-weight: 600; }
.number td + td, .number th + th { text-align: right; font-variant-numeric: tabular-nums; }
.changed td { font-weight: 600; } details { margin: .6rem 0; } summary { cursor: pointer; }
"""


@dataclasses.dataclass(frozen=True)
class Report:
    """Make one HTML page of a run: how it went, curves, evaluations, settings, versions, and how to have it again."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # its directory
    out: Path | None = None  # .html; None: RUN/report.html


def run(arguments: list[str]) -> None:
    """Make the page, and say where it is."""
    asked = options.parse(Report, arguments, "report")
    path = asked.out or asked.run / "report.html"
    if path.suffix != ".html":
        raise UsageError(f"--out {path} has the suffix {path.suffix!r}, expected .html")
    found = runs.find(asked.run)
    text = page(found, path.parent)
    with runs.whole(path) as file:
        file.write_text(text, encoding="utf-8")
    print(f"wrote {path}")


def page(found: runs.Run, beside: Path) -> str:
    """The page of a run, to stand in the directory `beside`."""
    train, evaluations = runs.record(found), runs.evaluations(found)
    settings = found.settings
    title = f"{_short(settings['agent'])} on {settings['environment']}"
    sections = {
        "": f"<h1>{_text(title)}</h1>{_standing(found, train)}",
        "To have it again": _command(found),
        "Learning": _learning(found, train, evaluations),
        "Evaluation": _evaluation(found, evaluations),
        "An episode": _episode(found, beside),
        "All metrics": _metrics(found, train),
        "Settings": _settings(settings),
        "Made with": _rows(settings["versions"] | {"device": settings["device"]}),
    }
    body = "\n".join(f"<h2>{name}</h2>\n{text}" if name else text for name, text in sections.items() if text)
    return (
        f"<!doctype html>\n<html lang='en'>\n<head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><title>{_text(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------------------------------------- sections


def _standing(found: runs.Run, train: dict[str, np.ndarray]) -> str:
    """How far the run is."""
    total, seeds = found.settings["steps"], found.settings["seeds"]
    steps = train.get("steps", np.zeros(0))
    done = int(steps[-1]) if len(steps) else 0
    text = f"{done:,} of {total:,} environment steps of each of {seeds} {'seed' if seeds == 1 else 'seeds'}"
    if len(steps) and "seconds" in train:
        text += f", in {_duration(float(np.nanmax(train['seconds'])))} with compilation"
    broken = float(np.nansum(train["non_finite"])) if "non_finite" in train else 0.0
    if broken:
        text += f"; {broken:,.0f} episodes broke down"
    if done < total:
        text += ". It has not come to its end"
    return f"<p class='about'>{_text(text)}.</p><p class='about'><code>{_text(os.path.abspath(found.path))}</code></p>"


def _command(found: runs.Run) -> str:
    if found.command is None:
        return "<p>It was begun in Python, by <code>train.fit</code>, with the settings below.</p>"
    text = f"jaxrl {shlex.join(found.command)}"
    try:
        _, asked = resuming.again(found)
        later = found.settings["steps"] - asked.steps >= asked.config.data.transitions
    except ValueError:  # the page of a run is worth having even if its command is of another version
        later = False
    if later:
        text += f"\njaxrl resume {shlex.quote(str(found.path))} --steps {found.settings['steps']}"
    return f"<pre>{_text(text)}</pre>"


def _learning(found: runs.Run, train: dict[str, np.ndarray], evaluations: dict[str, np.ndarray]) -> str:
    path = found.path / "figures" / "returns.png"
    series = {}
    if np.isfinite(train.get("episode_return", np.array(np.nan))).any():
        series["training episodes"] = (train["steps"], train["episode_return"])
    for name, label in (("greedy", "evaluation, greedy"), ("sampled", "evaluation, sampled")):
        if evaluations:
            series[label] = (evaluations["steps"], evaluations[name].mean(-1))
    if not series:
        return "<p>No episode has ended yet.</p>"
    curves.draw(path, series, "return", None)
    return _image(path, "returns against environment steps")


def _evaluation(found: runs.Run, evaluations: dict[str, np.ndarray]) -> str:
    """The last evaluation of the training, that of `jaxrl eval`, and how the returns are distributed."""
    text = ""
    if evaluations:
        last = {name: evaluations[name][:, -1] for name in ("greedy", "sampled")}
        text += f"<p>At {int(evaluations['steps'][-1]):,} steps, with the keys of all evaluations in training:</p>"
        text += _returns(last)
        path = found.path / "figures" / "distribution.png"
        figures.distribution(path, last)
        text += _image(path, "distribution of the returns of episodes")
    apart = evaluation.read(found)
    if apart:
        about = f"By <code>jaxrl eval</code> at {apart.steps:,} steps on {_text(apart.environment)}, seed {apart.seed}:"
        text += f"<p>{about}</p>" + _returns(apart.returns)
    if apart and apart.law is not None:
        path = found.path / "figures" / "law.png"
        figures.law(path, apart.law)
        text += "<p>The law of the return that the critics see at the start of an episode, a line for each seed. It is "
        text += "discounted, of scaled rewards, and with the entropy where the agent is soft:</p>"
        text += _image(path, "law of the return that the critics see")
    return text or "<p>There is none; <code>jaxrl eval</code> makes one.</p>"


def _returns(returns: dict[str, np.ndarray]) -> str:
    """Mean and spread of each seed, at most 32 of them, and the interquartile mean over seeds."""
    seeds = len(next(iter(returns.values())))
    head = "".join(f"<th>{_text(name)}</th>" for name in returns)
    rows = [
        (str(i), [f"{values[i].mean():,.4g} ± {values[i].std():.3g}" for values in returns.values()])
        for i in range(min(seeds, 32))
    ]
    rows.append((f"all {seeds}", [evaluation.summary(values) for values in returns.values()]))
    body = "".join(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows)
    episodes = next(iter(returns.values())).shape[1]
    return (
        f"<table class='number'><tr><th>seed</th>{head}</tr>{body}</table>"
        f"<p class='about'>Each seed: mean ± standard deviation of {episodes} episodes. All: interquartile mean of "
        f"the means of the seeds, with its 95 % bootstrap interval.</p>"
    )


def _episode(found: runs.Run, beside: Path) -> str:
    """What `jaxrl render` has made."""
    page, animation = found.path / "render.html", found.path / "render.gif"
    for path in (page, animation):
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link, expected what jaxrl render has written; it is not followed")
    if page.is_file():
        source = _text(Path(os.path.relpath(page, beside)).as_posix())
        return (
            f"<iframe src='{source}' sandbox='allow-scripts' title='an episode'></iframe>"
            f"<p class='about'><a href='{source}'>The viewer</a> is Brax's, and is loaded from the network.</p>"
        )
    if animation.is_file() and animation.stat().st_size < LARGEST:
        return _image(animation, "an episode", "image/gif")
    return ""


def _metrics(found: runs.Run, train: dict[str, np.ndarray]) -> str:
    if not len(train.get("steps", ())):
        return ""
    path = found.path / "figures" / "metrics.png"
    figures.metrics(path, train)
    about = "A thin line for each seed, a thick one for their mean. Quantities of a posterior or a law of the return, "
    about += "where the agent has them, are among these; its page in the documentation says what each is."
    return f"<p class='about'>{about}</p>" + _image(path, "all metrics against environment steps")


def _settings(settings: dict[str, Any]) -> str:
    """The configuration, what is not the default of the agent in bold, and then what else makes the run."""
    defaults = _defaults(settings["agent"])
    rows = []
    for name, value in _flat(settings["config"]):
        changed = name in defaults and defaults[name] != value
        default = f"{defaults[name]}" if changed else ""
        rows.append(
            f"<tr{' class=changed' if changed else ''}><td>{_text(name)}</td><td>{_text(value)}</td>"
            f"<td>{_text(default)}</td></tr>"
        )
    others = {name: value for name, value in settings.items() if name not in ("config", "versions", "device")}
    return (
        f"<table><tr><th>setting</th><th>value</th><th>default</th></tr>{''.join(rows)}</table>"
        f"<details><summary>Environment, seeds and keys</summary>{_rows(dict(_flat(others)))}</details>"
    )


def _defaults(agent: str) -> dict[str, Any]:
    """The default configuration of one of jaxrl's agents."""
    import importlib

    from jaxrl import log
    from jaxrl.types import canonical

    name = _short(agent)
    if agent != f"jaxrl.agents.{name}" or name not in listing.agents():
        return {}
    return dict(_flat(log.describe(canonical(importlib.import_module(agent).Config()))))


# ----------------------------------------------------------------------------------------------- HTML


def _text(value: Any) -> str:
    return html.escape(str(value))


def _rows(values: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _image(path: Path, about: str, kind: str = "image/png") -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<p><img src='data:{kind};base64,{data}' alt='{about}'></p>"


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Nested objects as names with dots."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        if key == "type" and name == "":
            continue
        yield from _flat(item, f"{name}.{key}" if name else str(key))


def _short(agent: str) -> str:
    return agent.rpartition(".")[2]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
