"""What the benchmark counts, and that an update leaves the host alone."""

import json
from pathlib import Path

import pytest
import torch

from vits_trainer import benchmark
from vits_trainer.__main__ import main
from vits_trainer.benchmark import OperationCounter, our_update
from vits_trainer.config_tools import BenchmarkConfig
from vits_trainer.runtime import Runtime
from vits_trainer.textbook import textbook_update

SMALL = {"size": "tiny", "batch_size": 2, "clip_s": 2.0, "tokens": 40, "updates": 1}


def test_counter_tells_work_from_views_and_waiting() -> None:
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
    """On the CPU, where the alignment search is not counted: it is numba's. On a GPU: the next test."""
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
    torch.cuda.set_sync_debug_mode("error")  # raises at the first wait
    try:
        found = update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(list(found.values()))).all()


def test_textbook_waits_and_launches_more() -> None:
    config, runtime = BenchmarkConfig(**SMALL, precision="bf16"), Runtime("bf16", 1)
    counts = []
    for update in (our_update(config, runtime)[1], textbook_update(config, runtime)):
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
    theirs = textbook_update(config, runtime)()
    assert theirs["mel"] == pytest.approx(float(ours["generator/mel"]), rel=0.1)
    assert theirs["kl"] == pytest.approx(float(ours["generator/kl"]), rel=0.1)
    assert theirs["discriminator"] == pytest.approx(float(ours["discriminator/total"]), rel=0.1)


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    search = benchmark.alignment.search
    assert main(["benchmark", *words, "--compare", "reference", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
    parts = sum(value for name, value in figures.items() if name.removeprefix("ms_") in benchmark.PARTS)
    assert parts == pytest.approx(figures["ms_update"], rel=0.6)
    assert all(figures[f"ms_{part}"] > 0 for part in benchmark.PARTS)
    assert figures["host_syncs"] == 0
    assert figures["ratio"] > 0
    assert benchmark.alignment.search is search


def test_alignment_suite_has_equal_paths(tmp_path: Path) -> None:
    words = ["--suite", "alignment", "--updates", "1", "--json", str(tmp_path / "figures.json")]
    assert main(["benchmark", *words]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [value for name, value in figures.items() if name.endswith("equal_paths")] == [1.0] * 3


def test_text_that_cannot_be_aligned_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--clip_s", "1", "--tokens", "180"]) == 2
    assert "62 frames" in capsys.readouterr().err
