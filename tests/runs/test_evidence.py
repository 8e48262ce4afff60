"""The files in docs/evidence have the figures that are stated beside them."""

import json
import math
from pathlib import Path

import pytest

from experiments.evidence import reprint

pytest.importorskip("mel_cepstral_distance", reason="the extra 'evaluate' is not installed")
CASES = sorted(path.parent for path in (Path(__file__).parents[2] / "docs/evidence").glob("*/figures.json"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_evaluate_prints_the_figures_of_the_files_again(case: Path) -> None:
    stated = json.loads((case / "figures.json").read_text("utf-8"))
    measured = reprint(case, stated["sampling_rate"], "mcd,duration")
    for name in ("before", "after"):
        for metric in ("mcd_db", "duration_error"):
            assert math.isclose(measured[name][metric], stated["figures"][name][metric], rel_tol=0.03, abs_tol=0.01)
    assert sum(path.stat().st_size for path in case.rglob("*.opus")) < 200_000
