"""The reference step has the same losses and more host synchronization."""

import pytest

from tests.support.benchmark import SMALL
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics.benchmark import OperationCounter, our_update
from vits_trainer.diagnostics.reference_step import reference_update
from vits_trainer.distributed.runtime import Runtime

pytestmark = pytest.mark.slow


def test_reference_synchronizes_and_launches_more() -> None:
    config, runtime = BenchmarkConfig(**SMALL, precision="bf16"), Runtime("bf16", 1)
    counts = []
    for update in (our_update(config, runtime)[1], reference_update(config, runtime)):
        update()
        with OperationCounter() as counter:
            update()
        counts.append((counter.launching, counter.host_syncs))
    (ours, _), (reference, host_syncs) = counts
    assert host_syncs > 100
    assert ours < 0.75 * reference


def test_reference_starts_from_the_same_losses() -> None:
    """The first losses agree with ours up to noise, so both compute the same update."""
    config, runtime = BenchmarkConfig(**{**SMALL, "batch_size": 8}), Runtime("fp32", 1)
    ours = our_update(config, runtime)[1]()
    reference = reference_update(config, runtime)()
    assert reference["mel"] == pytest.approx(float(ours["generator/mel"]), rel=0.1)
    assert reference["kl"] == pytest.approx(float(ours["generator/kl"]), rel=0.1)
    assert reference["discriminator"] == pytest.approx(float(ours["discriminator/total"]), rel=0.1)
