"""Three kills of ``make chaos``, with one process and with two; the whole of it has 25 of each."""

from pathlib import Path

import pytest

from tests.chaos import chaos

pytestmark = pytest.mark.distributed


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_run_killed_three_times_ends_as_the_uninterrupted_one(ranks: int, tmp_path: Path) -> None:
    assert chaos(tmp_path, kills=3, ranks=ranks, updates=24, seed=ranks)
