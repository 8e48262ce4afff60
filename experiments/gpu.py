"""Checks and measures this trainer on one GPU, in at most eight minutes: ``make gpu``.

``python -m experiments.gpu [STEP ...] [--output benchmark] [--limit_s 480] [--size mms]``

Each step runs in a process of its own, prints PASS or FAIL, and the next one follows in any case. Results go to
``gpu.json``, also those of a step that is stopped by its time limit; the table is that of docs/benchmarks.md.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from vits_trainer.cli.main import main as vits_trainer
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.data.preparation.espeak_corpus import speak_corpus
from vits_trainer.diagnostics import benchmark
from vits_trainer.diagnostics.reference_step import reference_update
from vits_trainer.diagnostics.self_check import device_parity, processor
from vits_trainer.distributed.runtime import Runtime, is_out_of_memory, seed_all
from vits_trainer.models import alignment, decoder
from vits_trainer.training.optim import NetworkOptimizer
from vits_trainer.utils.versions import versions

CUDA = torch.device("cuda")
RUNS = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
}
UPDATES = 40


class WrongValueError(Exception):
    """A value differs from what it should be; anything else that a step raises is an error of the program."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise WrongValueError(message)


def relative_errors(values: dict[str, float], exact: dict[str, float]) -> dict[str, float]:
    """Of the losses; gradient norms are too sensitive."""
    losses = [name for name in exact if not name.startswith("grad_norm")]
    return {name: abs(values[name] - exact[name]) / max(abs(exact[name]), 1e-9) for name in losses}


class Step:
    """What a step gets: a folder that all steps share, the size, and a place for figures."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self.size = size

    def report(self, name: str, value: Any) -> None:
        """Prints a figure at once, as the process may be stopped, for the parent to read."""
        print(f"FIGURE {json.dumps([name, value])}", flush=True)

    @property
    def prepared(self) -> Path:
        """Prepared clips of espeak-ng."""
        training = self.folder / "training"
        if not (training / "dataset.json").is_file():
            speak_corpus(self.folder / "corpus")
            argv = ["--dataset", str(self.folder / "corpus"), "--output_dir", str(training), "--max_samples", "48"]
            require(vits_trainer(["prepare_data", *argv]) == 0, "prepare_data failed")
        return training

    def flags(self, name: str, **settings: Any) -> list[str]:
        """Flags of a run of train_vits."""
        folder = self.folder / name
        settings = {
            "config": "tiny", "data_dir": self.prepared, "batch_size": 8, "log_every_updates": 5, "report_to": "none",
            "checkpoint_dir": folder / "checkpoints", "output_dir": folder / "final_model", "runs_dir": folder / "runs",
            "run_name": name, **settings,
        }  # fmt: skip
        words = {
            flag: str(value).lower() if isinstance(value, bool) else str(value) for flag, value in settings.items()
        }
        return [word for flag, value in words.items() for word in (f"--{flag}", value)]

    def config(self, **settings: Any) -> BenchmarkConfig:
        return BenchmarkConfig(size=self.size, **settings)  # type: ignore[arg-type]


def device(step: Step) -> None:
    """Names the machine; fails without a CUDA device."""
    require(torch.cuda.is_available(), "no CUDA device is visible: is the driver of series 580 or newer installed?")
    properties = torch.cuda.get_device_properties(0)
    step.report("device", properties.name)
    step.report("memory_gib", round(properties.total_memory / 2**30, 1))
    step.report("capability", f"{properties.major}.{properties.minor}")
    step.report("processor", f"{processor()}, {os.cpu_count()} threads, Python {platform.python_version()}")
    step.report("gcc", shutil.which("gcc") or "none: the alignment search runs on the CPU, and --compile does not")
    step.report("versions", versions())


def values(step: Step) -> None:
    """Compares losses and gradients with the CPU's, and the alignment search bit for bit."""
    step.report("parity", device_parity(step.prepared, CUDA))
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, 1, 1), (2, 7, 7), (3, 200, 64), (3, 200, 65), (3, 300, 128), (2, 300, 129), (16, 1500, 400)]
    for clips, frames, tokens in shapes:
        for kind in ("random", "tied", "nan"):
            scores = torch.randn(clips, frames, tokens, generator=draw)
            scores = scores.round() if kind == "tied" else scores
            if kind == "nan":
                scores[torch.rand(scores.shape, generator=draw) < 0.01] = float("nan")
            token_lengths = torch.randint(1, tokens + 1, (clips,), generator=draw).index_fill(
                0, torch.tensor([0]), tokens
            )
            frame_lengths = (token_lengths + torch.randint(0, frames, (clips,), generator=draw)).clamp(max=frames)
            expected = alignment.search(scores, frame_lengths, token_lengths)
            for _ in range(20):  # a race would not lose every time
                found = alignment.search(scores.to(CUDA), frame_lengths.to(CUDA), token_lengths.to(CUDA)).cpu()
                require(torch.equal(found, expected), f"alignment of {kind} scores {tuple(scores.shape)} differs")


def precisions(step: Step) -> None:
    """Compares the losses of an update in each precision with those in fp32."""
    exact: dict[str, float] = {}
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        config = replace(step.config(batch_size=4, clip_s=2.0, tokens=40), size="tiny")
        _, update = benchmark.our_update(config, Runtime(precision, 1))
        seed_all(0)
        losses = {name: float(value) for name, value in update().items() if "/" in name}
        exact = exact or losses
        errors = relative_errors(losses, exact)
        worst = max(errors, key=lambda name: errors[name])
        step.report(f"{precision} against fp32", f"{errors[worst]:.1e} ({worst})")
        require(errors[worst] < 0.03, f"{worst} is {losses[worst]:.6g} in {precision}, {exact[worst]:.6g} in fp32")


def mechanics(step: Step) -> None:
    """Host synchronization, masked steps, separate scalers, and the error for too large a batch."""
    runtime = Runtime("bf16", 1)
    train_step, update = benchmark.our_update(replace(step.config(batch_size=4), size="tiny"), runtime)
    update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    require(all(isfinite(float(value)) for value in losses.values()), "a loss is NaN or Inf")
    for optimizer in train_step.optimizers:
        _require_masked(optimizer)
    _require_separate_scalers(train_step.optimizers)
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        torch.empty(torch.cuda.get_device_properties(0).total_memory // 50, dtype=torch.uint8, device=CUDA)
    except RuntimeError as error:
        require(is_out_of_memory(error), f"not recognised as out of memory: {error}")
    else:
        raise WrongValueError("memory is not limited")


def _require_masked(optimizer: NetworkOptimizer) -> None:
    """A step whose gradient has a NaN changes neither weights nor moments nor the step counter."""
    parameters = optimizer.optimizer.param_groups[0]["params"]

    def state() -> list[torch.Tensor]:
        moments = [value for p in parameters for value in optimizer.optimizer.state[p].values()]
        return [tensor.detach().clone() for tensor in [*parameters, *moments]]

    before = state()
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(1e-3)
    changed = sum(not torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    require(not changed, f"a step with a NaN gradient changed {changed} tensors of the {optimizer.name}")


def _require_separate_scalers(optimizers: list[NetworkOptimizer]) -> None:
    runtime = Runtime("fp16", 1)
    first, second = (replace(optimizer, scaler=runtime.gradient_scaler()) for optimizer in optimizers)
    for optimizer, value in ((first, float("inf")), (second, 1e-3)):
        optimizer.scaler.scale(torch.ones((), device=CUDA))  # creates the scale
        for parameter in optimizer.optimizer.param_groups[0]["params"]:
            parameter.grad = torch.full_like(parameter, value)
        optimizer.step(0.0)
    scales = first.scaler.get_scale(), second.scaler.get_scale()
    require(scales[0] == scales[1] / 2, f"after an overflow of the first network alone, the scales are {scales}")


def runs(step: Step) -> None:
    """Whole runs of train_vits with spoken samples: the mel loss falls."""
    for name, settings in RUNS.items():
        code = vits_trainer(["train_vits", *step.flags(name, max_updates=UPDATES, ema_decay=0.9, **settings)])
        require(code == 0, f"{name}: exit code {code}")
        metrics = step.folder / name / "runs" / name / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        mels = [line["generator/mel"] for line in lines if "generator/mel" in line]
        step.report(f"mel, {name}", [round(mel, 3) for mel in (mels[0], mels[-1])])
        require(
            isfinite(mels[-1]) and mels[-1] < 0.8 * mels[0], f"{name}: the mel loss went from {mels[0]} to {mels[-1]}"
        )


def check(step: Step) -> None:
    """``vits-trainer check``: among others, resuming is exact with --deterministic."""
    require(vits_trainer(["check"]) == 0, "vits-trainer check failed")


def graphs(step: Step) -> None:
    """Compares five updates by CUDA graphs with eager ones."""
    _compare_updates(step, "by CUDA graphs", cuda_graphs=True)


def compiled(step: Step) -> None:
    """Compares five compiled updates with eager ones."""
    _compare_updates(step, "compiled", compile=True)


def _compare_updates(step: Step, title: str, **settings: Any) -> None:
    config = replace(step.config(batch_size=4, clip_s=2.0, tokens=40, precision="bf16"), size="tiny")
    results = []
    for changed in ({}, settings):
        _, update = benchmark.our_update(replace(config, **changed), Runtime("bf16", 1))
        began_s = time.perf_counter()
        for number in range(5):
            seed_all(number)
            losses = {name: float(value) for name, value in update().items()}
            if not number:
                took_s = round(time.perf_counter() - began_s, 1)
                step.report(f"first update, {title if changed else 'eager'}, s", took_s)
        results.append(losses)
    eager, ours = results
    errors = relative_errors(ours, eager)
    worst = max(errors, key=lambda name: errors[name])
    step.report(f"{title} against eager", f"{errors[worst]:.1e} ({worst})")
    require(errors[worst] < 0.05, f"{worst} is {ours[worst]:.6g} {title} and {eager[worst]:.6g} eager")


def figures(step: Step) -> None:
    """Times updates: eager and compiled, at two batch sizes, beside the reference."""

    def measure(name: str, compare: bool = False, **settings: Any) -> None:
        config = step.config(precision="bf16", updates=10, **settings)
        torch.cuda.empty_cache()
        runtime = Runtime("bf16", 1)
        measured = benchmark.measure_update(config, runtime)
        if compare:
            measured |= benchmark.compare_updates(config, runtime, reference_update(config, runtime))
        step.report(name, measured)

    measure("16, eager", batch_size=16)
    measure("64, eager", batch_size=64)
    measure("16, CUDA graphs", batch_size=16, cuda_graphs=True)
    measure("64, CUDA graphs", batch_size=64, cuda_graphs=True)
    stages, decoder.FLOAT32_STAGES = decoder.FLOAT32_STAGES, 0
    measure("64, eager, whole decoder in bf16", batch_size=64)
    decoder.FLOAT32_STAGES = stages
    torch.backends.cudnn.benchmark = True
    measure("64, eager, cudnn.benchmark", batch_size=64)
    torch.backends.cudnn.benchmark = False
    measure("64, compiled", batch_size=64, compile=True)
    measure("64, compiled, CUDA graphs", batch_size=64, compile=True, cuda_graphs=True)
    measure("16, compiled", batch_size=16, compile=True)
    measure("16, eager, beside the reference", batch_size=16, compare=True)


def ranks(step: Step) -> None:
    """Two ranks on one GPU over gloo (NCCL refuses them): the run's end compares the weights of both."""
    one_gpu = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", **one_gpu}
    code = (
        "import sys, torch; torch.distributed.init_process_group('gloo'); from vits_trainer.cli.main import main; "
        "sys.exit(main(['train_vits', *sys.argv[1:]]))"
    )
    flags = step.flags("two", max_updates=4, discriminator_warmup_updates=1, gradient_accumulation_steps=2)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *flags], env={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    codes = [process.wait() for process in processes]
    require(codes == [0, 0], f"exit codes {codes}")


STEPS: dict[str, tuple[Callable[[Step], None], int]] = {
    "device": (device, 60),
    "values": (values, 90),
    "precisions": (precisions, 60),
    "mechanics": (mechanics, 60),
    "runs": (runs, 120),
    "check": (check, 90),
    "graphs": (graphs, 60),
    "figures": (figures, 240),
    "compiled": (compiled, 120),
    "ranks": (ranks, 90),
}
"""In order of importance; each with its time limit in seconds."""


def run_step(name: str, folder: Path, size: str, limit_s: float) -> dict[str, Any]:
    """Runs a step in a process of its own and returns its result and figures."""
    argv = [sys.executable, "-m", "experiments.gpu", "--inside", name, "--folder", str(folder), "--size", size]
    began_s = time.perf_counter()
    log = folder / f"{name}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=subprocess.STDOUT)
        try:
            code: int | str = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"stopped after {limit_s:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    figures_ = dict(json.loads(line.removeprefix("FIGURE ")) for line in lines if line.startswith("FIGURE "))
    failure = "" if code == 0 else next((line for line in reversed(lines) if line.strip()), "") or str(code)
    if isinstance(code, str):
        failure = f"{code}; last line: {failure}"
    result = "PASS" if code == 0 else "FAIL"
    return {"result": result, "s": round(time.perf_counter() - began_s, 1), "failure": failure, "figures": figures_}


def run_steps(names: list[str], output: Path, limit_s: float, size: str) -> int:
    """Runs the steps, writes ``gpu.json`` after each, and returns the number of failed ones."""
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    ends_s = time.perf_counter() + limit_s
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left_s = ends_s - time.perf_counter()
            if left_s < 10:
                results[name] = {"result": "FAIL", "s": 0, "failure": "no time left", "figures": {}}
            else:
                results[name] = run_step(name, Path(folder), size, min(left_s, STEPS[name][1]))
            found = results[name]
            print(f"{found['result']}  {name:<10} {found['s']:6.1f} s  {found['failure']}", flush=True)
            for figure, value in found["figures"].items():
                print(f"      {figure}: {json.dumps(value) if isinstance(value, dict) else value}", flush=True)
            (output / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            shutil.copyfile(Path(folder) / f"{name}.log", output / f"gpu-{name}.log") if left_s >= 10 else None
            if name == "device" and found["result"] == "FAIL":
                break
    for row in table(results.get("figures", {}).get("figures", {})):
        print(row)
    return sum(found["result"] == "FAIL" for found in results.values())


def table(measured: dict[str, dict[str, float]]) -> Iterator[str]:
    """Rows for docs/benchmarks.md."""
    columns = (
        "clips_per_s",
        "ms_update",
        "memory_gib",
        "launching_operations",
        "host_syncs",
        "share_of_matmul",
        "ratio",
    )
    if measured:
        yield f"| clips per update | {' | '.join(columns)} |"
        yield "|---" * (len(columns) + 1) + "|"
    for name, row in measured.items():
        yield f"| {name} | {' | '.join(f'{row[column]:.4g}' if column in row else '' for column in columns)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--output", type=Path, default=Path("benchmark"))
    parser.add_argument("--limit_s", type=float, default=480)
    parser.add_argument("--size", choices=["mms", "tiny"], default="mms")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        STEPS[asked.inside][0](Step(asked.folder, asked.size))
    else:
        sys.exit(run_steps(asked.steps or list(STEPS), asked.output, asked.limit_s, asked.size))
