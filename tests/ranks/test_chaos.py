"""Two kills of ``make chaos``, with one process; the full run has 25 of each, with one and with two processes."""

from pathlib import Path

import pytest

from experiments.chaos import chaos
from tests.support.fork_server import python

pytestmark = pytest.mark.ranks


def test_run_killed_twice_ends_like_the_uninterrupted_run(tmp_path: Path) -> None:
    assert chaos(tmp_path, kills=2, ranks=1, updates=12, seed=1, program=python())
