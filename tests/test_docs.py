"""The pages: their Python runs, their links lead somewhere, and their tables are those of the code."""

import dataclasses
import math
import re
import sys
import types
from pathlib import Path

import flax.linen as nn
import jax
import pytest
from helpers import AGENTS, jax_settings, small

from jaxrl import envs, networks, risk, train
from jaxrl.distributional import critics
from jaxrl.types import Replay, Rollout

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("benchmarks/*/README.md"))]


def name(value):
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else value.__name__


# --------------------------------------------------------------------------------------------- code


def blocks(page):
    """The Python of a page, block by block, each on its own lines, so that errors name the line of the page."""
    text = page.read_text()
    for block in re.finditer(r"^```python(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
        if "no-run" not in block[1]:
            yield "\n" * text[: block.start(2)].count("\n") + block[2]


@pytest.fixture
def in_a_moment(monkeypatch, tmp_path):
    """Few steps and seeds, Brax without physics, programs that are not optimised, a directory of its own.

    JAX's check for keys that are used twice is off: it takes a vmap over a scan over keys for one.
    """

    def fit(agent, config, env, key, *, steps, seeds=1, **settings):
        steps, seeds = min(steps, 3 * config.data.transitions), min(seeds, 2)
        return train_fit(agent, config, env, key, steps=steps, seeds=seeds, **settings)

    def make(name, **settings):
        return envs_make("brax/fast" if name.startswith("brax/") else name, **settings)

    train_fit, envs_make = train.fit, envs.make
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(envs, "make", make)
    monkeypatch.chdir(tmp_path)
    with jax_settings(jax_debug_key_reuse=False, jax_disable_most_optimizations=True):
        yield
    jax.clear_caches()  # a page leaves hundreds of programs


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, in_a_moment, monkeypatch):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look for their module
    for block in blocks(page):
        exec(compile(block, str(page), "exec", dont_inherit=True), vars(module))


# -------------------------------------------------------------------------------------------- links


def prose(page):
    """The page without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What a link into the page may name: its headings in lower case, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation


# ------------------------------------------------------------------------------------ pages of agents


def rows(page):
    """The tables of a page: their cells by what stands in backticks at the beginning of the row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.split("\n") if line.startswith("|")]
    return {cells[0].strip("`"): cells[1:] for cells in lines if cells[0].startswith("`")}


@pytest.mark.parametrize("agent", AGENTS, ids=name)
def test_the_page_of_an_agent_has_all_its_settings_and_metrics(agent):
    page = ROOT / "docs" / "agents" / f"{agent.__name__.rpartition('.')[2]}.md"
    table = rows(page.read_text())
    names = {
        "nn": nn,
        "inf": math.inf,
        "Rollout": Rollout,
        "Replay": Replay,
        "critics": critics,
        "networks": networks,
        "risk": risk,
        agent.__name__.rpartition(".")[2]: agent,
    }
    for field in dataclasses.fields(agent.Config):
        default, kind = (cell.strip("`") for cell in table[field.name][:2])
        assert eval(default, names) == getattr(agent.Config(), field.name), field.name
        assert kind == ("traced" if field.metadata.get("pytree_node", True) else "static"), field.name
    loop = train.loop(agent, envs.make("jaxrl/point_mass"))
    config = small(agent)
    _, metrics = jax.eval_shape(loop.step, config, jax.eval_shape(loop.init, config, jax.random.key(0)))
    always = rows((ROOT / "docs" / "guides" / "training.md").read_text())
    assert set(metrics) <= set(table) | set(always), set(metrics) - set(table) - set(always)
