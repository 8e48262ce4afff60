"""The order of validations."""

import pytest

from vits_trainer.evaluation.ranking import rank


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("mel", (0.4, 9.0), (0.5, 0.1)),
        ("dnsmos", (3.1, 9.0), (3.0, 0.1)),
        ("cer", (0.1, 9.0), (0.2, 0.1)),
        ("cer", (0.2, 0.1), (0.2, 0.2)),
        ("wer", (1.0, 0.1), (0.6, 0.2)),
        ("cer", (0.45, 0.9), (0.6, 0.2)),
    ],
)
def test_better_validation_ranks_lower(metric: str, better: tuple[float, float], worse: tuple[float, float]) -> None:
    assert rank(metric, *better) < rank(metric, *worse)


def test_mel_does_not_decide_for_other_metrics() -> None:
    assert rank("total", 1.0, 0.1) == rank("total", 1.0, 0.2)
