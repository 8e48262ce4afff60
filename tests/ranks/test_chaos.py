"""Three kills of ``make chaos``, with one process; the full run has 25 of each, with one and with two processes."""

from pathlib import Path

import pytest

from experiments.chaos import chaos

pytestmark = pytest.mark.ranks


def test_run_killed_three_times_ends_like_the_uninterrupted_run(tmp_path: Path) -> None:
    assert chaos(tmp_path, kills=3, ranks=1, updates=24, seed=1)
