"""What all tests share: one thread a process, prepared clips, and marks by folder."""

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch is loaded: the tests' tensors are so small that more threads only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# W&B parses the metadata of all installed packages at the start of each run, for a third of a second.
os.environ.setdefault("WANDB_X_SAVE_REQUIREMENTS", "false")

from tests.support.voices import prepared_folder

# Tests by Hypothesis hold on slow and busy machines: no limit of time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

MARKS = {"runs": "run", "ranks": "ranks", "reliability": "reliability"}
"""Of a folder's tests, for ``pytest -m``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    for item in items:
        if folder(item) in MARKS:
            item.add_marker(MARKS[folder(item)])
    # The longest files first: at the end, no worker waits for another one. By name, so that files of ``ranks``, which
    # wait for processes, run at the same time as others.
    items.sort(key=lambda item: (folder(item) not in {*MARKS, "gpu"}, item.path.name))


def pytest_collection_finish() -> None:
    """Excludes what is imported, millions of objects, from garbage collection: each run collects several times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of "number 0 speaks" and so on."""
    return prepared_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A folder with a copy of them as ``training``."""
    shutil.copytree(prepared, tmp_path / "training")
    return tmp_path
