"""Benchmarks a training update on a fixed, seeded workload: total, by part, and against a reference implementation."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vits_trainer.config.architecture import Architecture, DiscriminatorShape
from vits_trainer.config.tools import BenchmarkConfig
from vits_trainer.config.train import LossWeights, TrainConfig
from vits_trainer.data.dataset import Batch
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.distributed.runtime import Runtime, seed_all
from vits_trainer.models import alignment, initialization, pretrained
from vits_trainer.models.compile import compile_networks
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.graphed_step import CudaGraphs, GraphedTrainStep
from vits_trainer.training.meter import DeviceMeans, peak_memory_gib
from vits_trainer.training.objective import Objective
from vits_trainer.training.optim import NetworkOptimizer, build_optimizer
from vits_trainer.training.train_step import GanTrainStep

ALPHABET = "abcdefghijklmnopqrstuvwxyz '-.,!?"
SIZES = {
    "mms": (Architecture(), DiscriminatorShape()),
    "tiny": (
        Architecture(
            hidden_size=64, num_hidden_layers=2, ffn_dim=128, posterior_encoder_num_wavenet_layers=4,
            prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2, upsample_initial_channel=64,
        ),
        DiscriminatorShape(channels_divisor=8),
    ),
}  # fmt: skip
TIMED_PARTS = ("data", "synthesis", "alignment", "discriminator", "generator", "optimiser")

_FREE = {
    *("empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default"),
    *("new_empty_strided.default", "detach.default", "is_pinned.default", "_unsafe_view.default"),
}
"""Operations other than views that launch no work on the device."""
_READS_BACK = {
    *("_local_scalar_dense.default", "nonzero.default", "is_nonzero.default", "equal.default"),
    *("masked_select.default", "unique_consecutive.default", "_unique2.default"),
}
"""Operations for which the host must wait for the device."""


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of an eager update that launch device work, and those that synchronize with the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launching = 0
        self.host_syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"{func.overloadpacket.__name__}.{func._overloadname}"
        self.launching += not (func.is_view or name in _FREE)
        self.host_syncs += name in _READS_BACK or (name.startswith("index.") and _is_boolean_index(args))
        return func(*args, **(kwargs or {}))


def _is_boolean_index(args: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])


class Clock:
    """Time spent in named parts, including device work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent_s = dict.fromkeys(TIMED_PARTS, 0.0)
        self._open: list[float] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the callables that :meth:`timed` replaced."""
        for owner, name, call in reversed(self._replaced):
            setattr(owner, name, call)

    def now(self) -> float:
        """Returns the time in seconds after synchronizing with the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, owner: Any, name: str, part: str) -> None:
        """Adds the time of calls to ``owner.name`` to ``part``, without the time of nested timed calls."""
        call = getattr(owner, name)
        self._replaced.append((owner, name, call))

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            self._open.append(0.0)
            result = call(*args, **kwargs)
            elapsed_s = self.now() - start
            self.spent_s[part] += elapsed_s - self._open.pop()
            if self._open:
                self._open[-1] += elapsed_s
            return result

        setattr(owner, name, wrapped)


def networks(config: BenchmarkConfig) -> tuple[Generator, Discriminator]:
    """Creates untrained networks of the configured size, deterministic for a given seed."""
    seed_all(config.seed)
    architecture, shape = SIZES[config.size]
    tokenizer = build_tokenizer([ALPHABET])
    model = initialization.new_model(architecture, tokenizer, [])
    return Generator(model, "posterior", segment_frames=32).train(), Discriminator(shape)


def workload(config: BenchmarkConfig) -> Batch:
    """Creates a batch on the CPU: noise with a syllable-like envelope and random texts; all clips have equal length."""
    rate_hz, hop = 16000, 256
    frames = int(config.clip_s * rate_hz) // hop
    draw = torch.Generator().manual_seed(config.seed)
    time_s = torch.arange(frames * hop) / rate_hz
    envelope = 0.1 + 0.09 * torch.sin(2 * torch.pi * 3 * time_s)
    shape = (config.batch_size,)
    return Batch(
        tokens=torch.randint(1, len(ALPHABET), (*shape, config.tokens), generator=draw),
        token_lengths=torch.full(shape, config.tokens),
        waveform=(torch.randn(*shape, frames * hop, generator=draw).clamp(-3, 3) * envelope * 32768).to(torch.int16),
        frame_lengths=torch.full(shape, frames),
        speaker_ids=None,
        clip_ids=tuple(map(str, range(config.batch_size))),
        audio_s=config.batch_size * config.clip_s,
        spec=MicroBatchSpec((), 0, 0, closes_update=True),
        rejections=(),
    )


def our_update(
    config: BenchmarkConfig, runtime: Runtime, weights: LossWeights | None = None, other: Discriminator | None = None
) -> tuple[GanTrainStep, Callable[[], dict[str, Tensor]]]:
    """Returns the training step as the trainer builds it, and a function that runs one update.

    Args:
        config: the workload.
        runtime: device and precision.
        weights: of the losses, if others than the defaults.
        other: discriminators, if others than those of the configured size.
    """
    generator, discriminator = networks(config)
    discriminator = other or discriminator
    generator.gradient_checkpointing = config.gradient_checkpointing
    if config.compile:
        compile_networks(generator, discriminator)
    spec = pretrained.audio_spec(generator.model.config)
    training = TrainConfig(model_name="none")
    objective = Objective("vits", weights or training.loss_weights, spec, segment_frames=32)
    optimizers = []
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        network.to(runtime.device)
        optimizer = build_optimizer(network.parameters(), training)
        optimizers.append(
            NetworkOptimizer(name, network, optimizer, runtime.accelerator, runtime.gradient_scaler(), 0.0)
        )
    train_step = GanTrainStep(runtime, objective, optimizers[0], discriminator, optimizers[1], config.compile)
    run_step = GraphedTrainStep(train_step, CudaGraphs()) if config.cuda_graphs else train_step
    batch = workload(config)
    denominators = objective.denominators(batch)

    means = DeviceMeans()

    def update() -> dict[str, Tensor]:
        losses = run_step(
            batch, denominators, discriminator_only=False, sync_gradients=True, learning_rate=training.learning_rate
        )
        norms = torch.stack([value for name, value in losses.items() if name.startswith("grad_norm/")])
        means.add(losses, denominators.clips, counts=torch.isfinite(norms).all())
        return losses

    return train_step, update


def measure_update(config: BenchmarkConfig, runtime: Runtime) -> dict[str, float]:
    """Returns all metrics of our update except the comparison. Counters and the time per part use separate updates.

    Operations are counted in an eager update, after peak memory has been read.
    """
    train_step, update = our_update(config, runtime)
    start = time.perf_counter()
    update()
    first_s = time.perf_counter() - start
    with Clock(runtime.device) as clock:
        update_s = statistics.median(_time_calls(update, config.updates, clock))
        _time_parts(train_step, clock)
        for _ in range(config.updates):
            update()
        peak = matmul_tflop_per_s(runtime, clock)
    parts = {f"ms_{name}": 1000 * spent_s / config.updates for name, spent_s in clock.spent_s.items()}
    memory_gib = peak_memory_gib(runtime.device)
    counts = _count_operations(our_update(replace(config, compile=False, cuda_graphs=False), runtime)[1])
    return {
        **throughput(config, update_s),
        **parts,
        "ms_first_update": 1000 * first_s,
        "memory_gib": memory_gib,
        **counts,
        "tflop_per_s": counts["tflop_per_update"] / update_s,
        "matmul_tflop_per_s": peak,
        "share_of_matmul": counts["tflop_per_update"] / update_s / peak,
    }


def _count_operations(update: Callable[[], object]) -> dict[str, float]:
    update()  # the first step allocates the optimizer state
    with OperationCounter() as counter:
        update()
    with FlopCounterMode(display=False) as flops:
        update()
    return {
        "launching_operations": counter.launching,
        "host_syncs": counter.host_syncs,
        "tflop_per_update": flops.get_total_flops() / 1e12,
    }


def matmul_tflop_per_s(runtime: Runtime, clock: Clock) -> float:
    """Returns the achievable peak of the device: the fastest of ten large matmuls in the run's precision."""
    size = 8192 if runtime.device.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=runtime.device)
    with runtime.autocast():
        best_s = min(_time_calls(lambda: matrix @ matrix, 10, clock))
    return 2 * size**3 / best_s / 1e12


def compare_updates(config: BenchmarkConfig, runtime: Runtime, other: Callable[[], object]) -> dict[str, float]:
    """Alternates our update with another, so that load on the machine affects both; returns medians and their ratio."""
    _, update = our_update(config, runtime)
    clock = Clock(runtime.device)
    durations: tuple[list[float], list[float]] = ([], [])
    for number in range(config.updates + 1):
        for which, run_update in enumerate((update, other)):
            (seconds,) = _time_calls(run_update, 1, clock)
            if number:  # the first is a warm-up
                durations[which].append(seconds)
    ours_s, theirs_s = map(statistics.median, durations)
    pairs = [theirs / ours for ours, theirs in zip(*durations, strict=True)]
    return {"ms_ours": 1000 * ours_s, "ms_reference": 1000 * theirs_s, "ratio": statistics.median(pairs)}


def throughput(config: BenchmarkConfig, update_s: float) -> dict[str, float]:
    """Returns throughput for a given duration of an update."""
    return {
        "ms_update": 1000 * update_s,
        "clips_per_s": config.batch_size / update_s,
        "audio_s_per_s": config.batch_size * config.clip_s / update_s,
    }


def _time_calls(update: Callable[[], object], times: int, clock: Clock) -> list[float]:
    durations = []
    for _ in range(times):
        start = clock.now()
        update()
        durations.append(clock.now() - start)
    return durations


def _time_parts(train_step: GanTrainStep, clock: Clock) -> None:
    clock.timed(Batch, "to", "data")
    clock.timed(train_step.objective, "generator_forward", "synthesis")
    clock.timed(train_step.objective, "discriminator_losses", "discriminator")
    clock.timed(train_step.objective, "generator_losses", "generator")
    for optimizer in train_step.optimizers:
        clock.timed(optimizer, "backward", optimizer.name)
        clock.timed(optimizer, "step", "optimiser")
    clock.timed(alignment, "search", "alignment")
