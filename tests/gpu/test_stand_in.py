"""CUDA paths on a device that executes no kernel (``tests.support.stand_in``): what is counted and raised is real."""

import json
import re
from pathlib import Path

import pytest

from tests.support import stand_in
from tests.support.encoders import write_encoder
from tests.support.voices import train_flags

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(stand_in.missing_requirement()), reason=stand_in.missing_requirement() or "runs"),
]


WITHOUT_CHECKS_OF_VALUES = """
import sys
from vits_trainer.utils import finite_weights
finite_weights.require_finite = lambda *args: None
from vits_trainer.models import pretrained
pretrained._compare = lambda *args: None
from vits_trainer.cli.main import main
sys.exit(main(["train_vits", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "ema_decay": 0.9, "max_grad_norm": 10, "data_workers": 1},
        {"precision": "fp16", "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
        {"precision": "tf32", "objective": "mel"},
        {"precision": "bf16", "cuda_graphs": True, "batch_size": 8, "max_updates": 6, "discriminator_encoder": "wavlm"},
        {"precision": "fp32", "deterministic": True, "freeze": "text_encoder", "batch_seconds": 4, "batch_size": 4},
    ],
    ids=lambda changes: f"{changes['precision']}{' CUDA graphs' * ('cuda_graphs' in changes)}",
)
def test_run_reaches_its_end(tmp_path: Path, prepared: Path, changes: dict[str, object]) -> None:
    """Devices and dtypes match in training, validation, checkpoint and export. No samples: their length is a value."""
    settings = {"data_dir": prepared, "runs_dir": tmp_path / "runs", "max_updates": 2, "report_to": "none", **changes}
    if "discriminator_encoder" in changes:
        settings["discriminator_encoder"] = write_encoder(tmp_path / "encoder")
    graphs = stand_in.with_graphs(tmp_path) if "cuda_graphs" in changes else None
    ended = stand_in.run("-c", WITHOUT_CHECKS_OF_VALUES, *train_flags(tmp_path, **settings), preload=graphs)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert re.search(rf"1 process on (?!CPU).*, {changes['precision']}\n", ended.stderr)
    assert "No GPU is visible" not in ended.stderr
    last = tmp_path / f"checkpoints/checkpoint-{settings['max_updates']}"
    assert (last / "generator.safetensors").is_file()


@pytest.mark.parametrize(("capability", "precision"), [(75, "fp32"), (80, "bf16"), (90, "bf16")])
def test_auto_is_bf16_only_where_it_is_native(capability: int, precision: str) -> None:
    code = "from vits_trainer.distributed.runtime import resolve_precision; print(resolve_precision('auto', True))"
    ended = stand_in.run("-c", code, capability=capability)
    assert ended.stdout.split() == [precision], ended.stderr


def test_update_has_no_host_sync() -> None:
    ended = stand_in.run("-m", "pytest", "-n0", "-q", "-m", "gpu", "tests/diagnostics/test_benchmark.py")
    assert "1 passed" in ended.stdout, ended.stdout
    assert "NaN" not in ended.stdout


def test_cpu_run_opens_no_cuda_context(tmp_path: Path, prepared: Path) -> None:
    """A context takes 0.3 to 0.5 GB of a GPU that others may use."""
    flags = train_flags(tmp_path, data_dir=prepared, runs_dir=tmp_path / "runs", max_updates=1, report_to="none")
    code = (
        "import os, sys, torch; from vits_trainer.cli.main import main; os.environ['ACCELERATE_USE_CPU'] = 'true'; "
        "code = main(['train_vits', *sys.argv[1:]]); "
        "print(torch.cuda.is_available(), torch.cuda.is_initialized(), code)"
    )
    ended = stand_in.run("-c", code, *flags)
    assert ended.stdout.split()[-3:] == ["True", "False", "0"], ended.stderr[-2000:]


def test_search_without_a_c_compiler_runs_on_the_cpu(tmp_path: Path) -> None:
    code = (
        "import torch; from vits_trainer.models.alignment import search; one = torch.tensor([3], device='cuda'); "
        "print(search(torch.zeros(1, 3, 2, device='cuda'), one, one - 1).shape)"
    )
    (tmp_path / "triton").mkdir()
    ended = stand_in.run(
        "-c", f"import os; os.environ['TRITON_CACHE_DIR'] = {str(tmp_path)!r}; {code}", path="/nowhere"
    )
    assert "torch.Size([1, 3])" in ended.stdout, ended.stderr
    assert "Install gcc and Python's headers" in ended.stderr


@pytest.mark.parametrize("most_clips", [True, False])
def test_dry_run_needs_as_much_memory_as_any_batch(most_clips: bool) -> None:
    """Peaks of PyTorch's allocator at equal seconds per batch: many short clips need most."""
    code = """
import json, torch
from dataclasses import replace
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics import benchmark
from vits_trainer.distributed.runtime import Runtime
config = BenchmarkConfig(size="tiny", batch_size=1, clip_s=2.0, tokens=30, precision="bf16")
step, update = benchmark.our_update(config, Runtime("bf16", 1))
def peak(clips, clip_s, rate):
    shape = replace(config, batch_size=clips, clip_s=clip_s, tokens=int(15 * clip_s))
    batch = benchmark.workload(shape).to(torch.device("cuda"))
    torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
    step(batch, step.objective.denominators(batch), False, True, rate)
    return torch.cuda.max_memory_allocated()
for optimizer in step.optimizers: optimizer.rehearse_step()
rehearsed = {clips: peak(clips, 60 / clips, None) for clips in (3, 60)}
real = {clips: peak(clips, 60 / clips, 1e-4) for clips in (3, 6, 12, 20, 40, 60)}
print(json.dumps([rehearsed, real]))
"""
    ended = stand_in.run("-c", code)
    rehearsed, real = json.loads(ended.stdout.splitlines()[-1])
    if most_clips:
        assert max(rehearsed.values()) >= 0.99 * max(real.values())
    else:  # the longest clips alone, as before
        assert rehearsed["3"] < max(real.values())


@pytest.mark.parametrize("waits", [False, True], ids=["an update", "an update that waits"])
def test_whole_update_can_be_captured(tmp_path: Path, waits: bool) -> None:
    """Torch's host code captures all of it; an operation for which the host waits is an error."""
    code = f"""
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.diagnostics import benchmark
from vits_trainer.distributed.runtime import Runtime
from vits_trainer.training.train_step import GanTrainStep
if {waits}:
    call = GanTrainStep.__call__
    GanTrainStep.__call__ = lambda *args: {{name: value * value.item() for name, value in call(*args).items()}}
config = BenchmarkConfig(size="tiny", batch_size=2, clip_s=2.0, tokens=30, precision="bf16", cuda_graphs=True)
update = benchmark.our_update(config, Runtime("bf16", 1))[1]
print([len(update()) for _ in range(3)])
"""
    ended = stand_in.run("-c", code, preload=stand_in.with_graphs(tmp_path))
    assert ("an update cannot be captured" in ended.stderr) == waits, ended.stderr
    assert ("[11, 11, 11]" in ended.stdout) == (not waits), ended.stdout
