"""The folder in which the pages' commands run, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.documents.place import make_place


@pytest.fixture(scope="session")
def whole_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def place(whole_place: Path, tmp_path: Path) -> Path:
    """A copy of it, for one page."""
    folder = tmp_path / "place"
    shutil.copytree(whole_place, folder)
    return folder
