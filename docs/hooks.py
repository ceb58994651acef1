"""Figures stand beside the benchmarks; here they join the site, where the links in the checkout lead."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and figures of `benchmarks/` to the site, known to the pages as `../benchmarks/`."""
    for path in sorted([*BENCHMARKS.glob("[a-z]*/*.md"), *BENCHMARKS.glob("[a-z]*/*.png")]):
        name = f"benchmarks/{path.parent.name}/{path.name}"
        file = File.generated(config, f"../{name}", abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)
        file.dest_uri = File.generated(config, name, content="").dest_uri
        files.append(file)
    return files
