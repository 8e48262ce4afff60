"""Self-checks of ``check``: each runs one real operation and reports its result, or the error and its remedy."""

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import torch
import wandb
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel, pipeline

from vits_trainer.config.architecture import Architecture, DiscriminatorShape
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.dataset import Batch, PreparedClipDataset
from vits_trainer.data.preparation.espeak_corpus import speak_corpus
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.distributed.launch_environment import uses_gpu
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import audio_spec
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.objective import Objective, frozen
from vits_trainer.utils.cpu_threads import STARVED_REMEDY, available_cpus, time_threads
from vits_trainer.utils.errors import CheckFailedError
from vits_trainer.utils.strings import counted
from vits_trainer.utils.versions import versions

Train = Callable[[TrainConfig], object]

SMALL = Architecture(
    hidden_size=32,
    num_hidden_layers=1,
    ffn_dim=64,
    posterior_encoder_num_wavenet_layers=2,
    prior_encoder_num_flows=2,
    prior_encoder_num_wavenet_layers=1,
    duration_predictor_num_flows=2,
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)
DISCRIMINATOR = DiscriminatorShape(periods=(2, 3), channels_divisor=8)
PARTS = ("text_encoder", "posterior_encoder", "flow", "duration_predictor", "decoder")
NEEDED_BYTES = 200 * 2**20


def run_self_checks(folder: Path, train: Train) -> Iterator[tuple[str, str]]:
    """Runs all checks in order and yields the name and result of each.

    Args:
        folder: an empty directory for files that the checks write.
        train: the ``train_vits`` command.

    Raises:
        CheckFailedError: a check failed; the message states the problem and the remedy.
    """
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())
    yield "machine", _machine(folder)
    yield "VitsModel.forward", _forward()
    prepared = folder / "training"
    corpus = speak_corpus(folder / "corpus")
    summary = prepare(PrepareConfig(dataset=str(corpus), output_dir=str(prepared), max_samples=12, processes=1))
    yield "data", f"{summary.accepted} spoken sentences prepared"
    yield "gradients and update", _gradients(prepared)
    yield "GPU against CPU", device_parity(prepared, torch.device("cuda" if uses_gpu(os.environ) else "cpu"))
    uninterrupted = _train_and_hash(train, prepared, folder / "whole", updates=4)
    yield "training", f"4 updates, final weights sha256 {uninterrupted[:16]}"
    _train_and_hash(train, prepared, folder / "halves", updates=2)
    resumed = _train_and_hash(train, prepared, folder / "halves", updates=4, resume="latest")
    if resumed != uninterrupted:
        raise CheckFailedError(
            "A run with --deterministic, resumed at update 2, ended with different weights than the uninterrupted run: "
            "kernels here are not deterministic. Resuming works, but not bit for bit."
        )
    yield "saving and resuming", "stopped at update 2 and resumed, same weights"
    yield "Weights & Biases", _offline_run(prepared / "runs" / "whole")
    yield "export", _check_pipeline(folder / "whole" / "final_model")


def _machine(folder: Path) -> str:
    processes, gpu_count = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > 1:
        raise CheckFailedError(
            f"check was started with {processes} processes. Start it with one: python -m vits_trainer check"
        )
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise CheckFailedError(
            f"{folder} has {free / 2**20:.0f} MiB free, {NEEDED_BYTES / 2**20:.0f} MiB are required. Free some space, "
            "or set TMPDIR to a directory with more space."
        )
    gpus = ", ".join(torch.cuda.get_device_name(n) for n in range(gpu_count)) or "no GPU: training runs on the CPU"
    return f"{gpus}; {processor()}; {_threads()}; {free / 2**30:.1f} GiB free for temporary files"


def processor() -> str:
    """Returns the CPU model and the instruction set that PyTorch uses."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    limits = [f"{limit}={os.environ[limit]}" for limit in ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR") if limit in os.environ]
    return " ".join([name, torch.backends.cpu.get_cpu_capability(), *limits])


def _threads() -> str:
    """Times convolutions of a small voice's size with one thread and with all threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        return f"1 thread, {counted(available_cpus(), 'CPU')} available"
    frames, kernel = torch.zeros(8, 96, 128), torch.zeros(96, 96, 3)

    def run_convolutions() -> float:
        start = time.perf_counter()
        for _ in range(200):
            torch.tanh(torch.nn.functional.conv1d(frames, kernel))
        return time.perf_counter() - start

    try:
        times = time_threads(run_convolutions, threads, torch.set_num_threads)
    finally:
        torch.set_num_threads(threads)
    starved = f" WARNING: {STARVED_REMEDY}" if times.is_starved else ""
    return f"{threads} threads, {counted(available_cpus(), 'CPU')} available (200 convolutions take {times}){starved}"


def _forward() -> str:
    model = VitsModel(VitsConfig(hidden_size=16, flow_size=16, num_hidden_layers=1, upsample_initial_channel=16)).eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        output = model(tokens)
    try:
        model(tokens, labels=torch.zeros(1, 513, 6))
    except NotImplementedError as error:
        labels = f"labels raises: {error}"
    else:
        labels = "labels no longer raises (not used by this trainer)"
    arguments = ", ".join(name for name in signature(VitsModel.forward).parameters if name not in ("self", "kwargs"))
    return f"arguments: {arguments}; outputs: {', '.join(output.keys())}, no loss; {labels}"


@dataclass
class _Update:
    """Untrained networks, the same at each construction, and a batch of real clips."""

    generator: Generator
    discriminator: Discriminator
    objective: Objective
    batch: Batch

    @classmethod
    def of(cls, prepared_dir: Path) -> "_Update":
        prepared = open_prepared(prepared_dir)
        tokenizer = build_tokenizer(prepared.texts)
        torch.manual_seed(0)
        generator = Generator(new_model(SMALL, tokenizer, []), "posterior", 32)
        spec = audio_spec(generator.model.config)
        batch = PreparedClipDataset(prepared, tokenizer, spec, None)[MicroBatchSpec((0, 1, 2, 3), 0, 0, True)]
        objective = Objective("vits", TrainConfig().loss_weights, spec, 32)
        return cls(generator, Discriminator(DISCRIMINATOR), objective, batch.to(torch.device("cpu")))

    def parts(self) -> dict[str, nn.Module]:
        return {name: getattr(self.generator.model, name) for name in PARTS} | {"discriminator": self.discriminator}

    def backward(self, segment_starts: Tensor | None = None) -> dict[str, float]:
        """Adds the gradients of an update; returns its losses."""
        pair = self.objective.generator_forward(self.generator, self.batch, segment_starts)
        of_discriminator = self.objective.discriminator_losses(self.discriminator, pair)
        of_discriminator["total"].backward()  # type: ignore[no-untyped-call]
        with frozen(self.discriminator):
            of_generator = self.objective.generator_losses(self.discriminator, pair)
        of_generator["total"].backward()  # type: ignore[no-untyped-call]
        named = {"generator": of_generator, "discriminator": of_discriminator}
        return {
            f"{network}/{name}": float(loss.detach())
            for network, values in named.items()
            for name, loss in values.items()
        }

    def values_on(self, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """Returns losses and gradient norms in eval mode, without noise, with fixed segments."""
        self.generator.noise = torch.zeros_like
        for network in (self.generator, self.discriminator):
            network.to(device, dtype).eval()
        self.batch = self.batch.to(device)
        self.batch = replace(self.batch, waveform=self.batch.waveform.to(dtype))
        losses = self.backward(torch.zeros_like(self.batch.frame_lengths))
        return losses | {f"gradient norm of {name}": _gradient_norm(part) for name, part in self.parts().items()}


def device_parity(prepared_dir: Path, device: torch.device) -> str:
    """Compares losses and gradients on ``device`` with those on the CPU, in float64 and float32 (without TF32).

    In float32 only the losses: gradients of leaky ReLUs are discontinuous, so the last bit changes norms by percents.
    """
    if device.type == "cpu":
        return "not compared: no GPU is used"
    lines = []
    for dtype, bound in ((torch.float64, 1e-5), (torch.float32, 1e-3)):
        expected, found = (_Update.of(prepared_dir).values_on(d, dtype) for d in (torch.device("cpu"), device))
        names = [name for name in expected if dtype == torch.float64 or not name.startswith("gradient")]
        errors = {name: abs(found[name] - expected[name]) / max(abs(expected[name]), 1e-9) for name in names}
        worst = max(errors, key=lambda name: errors[name])
        if not errors[worst] <= bound:
            raise CheckFailedError(
                f"{worst} is {found[worst]:.9g} on {device} and {expected[worst]:.9g} on the CPU ({dtype}, at most "
                f"{bound:g} apart): this GPU, its driver or this PyTorch computes another loss. Do not train with it."
            )
        lines.append(f"{str(dtype).removeprefix('torch.')} within {errors[worst]:.1e} ({worst})")
    return "; ".join(lines)


def _gradients(prepared_dir: Path) -> str:
    update = _Update.of(prepared_dir)
    update.generator.train()
    parts = update.parts()
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    optimizer = torch.optim.AdamW([*update.generator.parameters(), *update.discriminator.parameters()], lr=1e-3)
    norms: dict[str, float] = {}
    for _ in range(2):  # zero-initialised layers pass no gradient before their first step
        optimizer.zero_grad()
        update.backward()
        norms = {name: _gradient_norm(part) for name, part in parts.items()}
        optimizer.step()
    dead = [name for name, norm in norms.items() if not 0 < norm < float("inf")]
    dead += [
        name
        for name, part in parts.items()
        if any(torch.equal(old, new) for old, new in zip(before[name], part.parameters(), strict=True))
    ]
    if dead:
        raise CheckFailedError(
            f"Zero or non-finite gradient, or unchanged weights, in {', '.join(sorted(set(dead)))}: norms {norms}. "
            "Install the versions that pyproject.toml requires."
        )
    return "norms " + ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items()) + "; all weights changed"


def _gradient_norm(part: nn.Module) -> float:
    gradients = [torch.zeros(()) if p.grad is None else p.grad.norm() for p in part.parameters()]
    return float(torch.stack([gradient.double().cpu() for gradient in gradients]).norm())


def _train_and_hash(train: Train, prepared: Path, folder: Path, updates: int, resume: str | None = None) -> str:
    """Runs the training command and returns the hash of the last checkpoint's weights."""
    train(
        TrainConfig(
            data_dir=str(prepared),
            checkpoint_dir=str(folder / "checkpoints"),
            output_dir=str(folder / "final_model"),
            model_name=None,
            architecture=SMALL,
            discriminator=DISCRIMINATOR,
            run_name=folder.name,
            gradient_accumulation_steps=1,
            max_updates=updates,
            data_workers=0,
            resume_from_checkpoint=resume,
            precision="fp32",
            deterministic=True,
        )
    )
    checkpoint = folder / "checkpoints" / f"checkpoint-{updates}"
    content = b"".join(
        (checkpoint / f"{network}.safetensors").read_bytes() for network in ("generator", "discriminator")
    )
    return hashlib.sha256(content).hexdigest()


def _offline_run(run_dir: Path) -> str:
    files = [path for path in run_dir.glob("wandb/*run-*/run-*.wandb") if path.stat().st_size > 0]
    if not files:
        raise CheckFailedError(f"wandb {wandb.__version__} wrote no run in {run_dir}. Reinstall wandb.")
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return f"a run of {files[0].stat().st_size / 1024:.0f} KiB, {len(lines)} lines in metrics.jsonl"


def _check_pipeline(voice: Path) -> str:
    speech = pipeline("text-to-speech", model=str(voice), trust_remote_code=False)("the old boat")
    duration_s = len(speech["audio"]) / speech["sampling_rate"]
    return f"transformers' pipeline generates {duration_s:.2f} s with the exported voice"
