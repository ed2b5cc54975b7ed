"""mkdocs hooks: the quick start's picture lies outside docs/, beside its numbers, and is part of the site."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PICTURE = "../examples/quickstart/results/summary.png"  # as pages name it, which a reader on GitHub sees too


def on_files(files: Files, config: MkDocsConfig) -> Files:
    source = Path(config.docs_dir) / PICTURE
    files.append(File.generated(config, source.name, abs_src_path=str(source.resolve())))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace(PICTURE, Path(PICTURE).name)
