"""Speech that several modules train on, prepared once for each."""

import shutil
from pathlib import Path

import pytest

from tests.voices import prepared_folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of "number 0 speaks" and so on."""
    return prepared_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A folder with a copy of them as ``training``."""
    shutil.copytree(prepared, tmp_path / "training")
    return tmp_path
