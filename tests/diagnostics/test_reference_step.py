"""The reference step: the same losses, more waiting."""

import pytest

from tests.support.benchmark import SMALL
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics.benchmark import OperationCounter, our_update
from vits_trainer.diagnostics.reference_step import reference_update
from vits_trainer.distributed.runtime import Runtime


def test_textbook_waits_and_launches_more() -> None:
    config, runtime = BenchmarkConfig(**SMALL, precision="bf16"), Runtime("bf16", 1)
    counts = []
    for update in (our_update(config, runtime)[1], reference_update(config, runtime)):
        update()
        with OperationCounter() as counter:
            update()
        counts.append((counter.launching, counter.host_syncs))
    (ours, _), (theirs, waits) = counts
    assert waits > 100
    assert ours < 0.75 * theirs


def test_textbook_starts_from_the_same_losses() -> None:
    """What stands beside ours computes the same thing: its first losses agree, but for the noise."""
    config, runtime = BenchmarkConfig(**{**SMALL, "batch_size": 8}), Runtime("fp32", 1)
    ours = our_update(config, runtime)[1]()
    theirs = reference_update(config, runtime)()
    assert theirs["mel"] == pytest.approx(float(ours["generator/mel"]), rel=0.1)
    assert theirs["kl"] == pytest.approx(float(ours["generator/kl"]), rel=0.1)
    assert theirs["discriminator"] == pytest.approx(float(ours["discriminator/total"]), rel=0.1)
