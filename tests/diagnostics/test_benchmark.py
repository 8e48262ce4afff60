"""Operation counts of the benchmark, and absence of host synchronization in an update."""

import pytest
import torch

from tests.support.benchmark import SMALL
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics.benchmark import OperationCounter, our_update
from vits_trainer.distributed.runtime import Runtime


def test_counter_distinguishes_work_views_and_host_syncs() -> None:
    x = torch.arange(6.0)
    with OperationCounter() as counter:
        x.view(2, 3).transpose(0, 1)[0]
        torch.empty(3)
    assert (counter.launching, counter.host_syncs) == (0, 0)
    with OperationCounter() as counter:
        _ = x + 1, x * 2
        float(x[0])
        x[x > 2]
        x.nonzero()
    assert counter.host_syncs == 3
    assert counter.launching >= 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_host_sync_in_an_update(precision: str) -> None:
    """Runs on the CPU, where the numba alignment search is not counted. The next test covers the GPU."""
    _, update = our_update(BenchmarkConfig(**SMALL, precision=precision), Runtime(precision, 1))
    update()
    with OperationCounter() as counter:
        update()
    assert counter.host_syncs == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_host_sync_in_an_update_on_a_gpu() -> None:
    _, update = our_update(BenchmarkConfig(**SMALL, precision="bf16"), Runtime("bf16", 1))
    update()
    torch.cuda.set_sync_debug_mode("error")  # raises on synchronization
    try:
        losses = update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(list(losses.values()))).all()
