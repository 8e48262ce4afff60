"""Three kills of ``make chaos``, with one process; the whole of it has 25 of each, with one process and with two."""

from pathlib import Path

import pytest

from experiments.chaos import chaos

pytestmark = pytest.mark.ranks


def test_run_killed_three_times_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    assert chaos(tmp_path, kills=3, ranks=1, updates=24, seed=1)
