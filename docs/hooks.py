"""Learning curves stand beside the benchmarks; here they join the site, where the links in the checkout lead."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

CURVES = Path(__file__).parents[1] / "benchmarks" / "learning"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `benchmarks/learning/` to the site, known to the pages as `../benchmarks/learning/`."""
    for path in sorted([*CURVES.glob("*.md"), *CURVES.glob("*.png")]):
        name = f"benchmarks/learning/{path.name}"
        file = File.generated(config, f"../{name}", abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)
        file.dest_uri = File.generated(config, name, content="").dest_uri
        files.append(file)
    return files
