"""Replays saved updates whose losses or gradients were NaN or Inf.

nonfinite/update-<update>/
    voice/, generator.safetensors, discriminator.safetensors, config.yaml     as in a checkpoint; a few updates later
    rank<rank>.safetensors                                                    micro-batches of one rank
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from torch import nn
from transformers import VitsConfig

from vits_trainer.config import parser
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.dataset import Batch
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.distributed.launch_environment import uses_gpu
from vits_trainer.distributed.runtime import Runtime, seed_all
from vits_trainer.models import pretrained
from vits_trainer.models.discriminator import Discriminator, load_discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.speech_encoder import attach_speech_encoder
from vits_trainer.training.nonfinite_guard import _TENSORS
from vits_trainer.training.objective import Objective, frozen
from vits_trainer.utils.errors import CheckpointError, VitsTrainerError
from vits_trainer.utils.finite_weights import require_finite
from vits_trainer.utils.records import Count, PositiveInt, Seed, parse_json, read_tensor_header, read_tensors
from vits_trainer.utils.strings import first_line

_REMEDY = "Pass nonfinite/update-<update>/rank<rank>.safetensors of a run."


@dataclass(frozen=True)
class ReplayRecord:
    """Metadata of a saved update."""

    update: PositiveInt
    rank: Count
    seed: Seed
    clips: list[tuple[str, ...]]
    """Ids of the clips of each micro-batch."""


@dataclass(frozen=True)
class ReplayResult:
    """Losses and gradient norms of a micro-batch, or of one of its clips."""

    clips: tuple[str, ...]
    values: Mapping[str, float]
    """Losses and gradient norms by name."""

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite."""
        return all(map(isfinite, self.values.values()))

    def __str__(self) -> str:
        """Formats the clips and values as one line."""
        return f"{', '.join(self.clips)}: " + ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())


def replay(file: Path) -> Iterator[ReplayResult]:
    """Runs saved micro-batches again with the same random numbers, and each clip of a non-finite one separately.

    Raises:
        CheckpointError: the file or the networks in its directory cannot be read.
    """
    batches, record = _read(file)
    config = parser.parse("train_vits", TrainConfig, ["--config", str(file.parent / "config.yaml")])
    precision = "fp32" if config.precision == "fp16" and not uses_gpu(os.environ) else config.precision
    runtime = Runtime(precision, 1)
    generator, discriminator = _networks(file.parent, config)
    objective = Objective(
        config.objective, config.loss_weights, pretrained.audio_spec(generator.model.config), config.segment_frames
    )
    for number, batch in enumerate(batches):
        require_valid(batch, generator.model.config, f"{file}: micro-batch {number}", CheckpointError)
    networks = [network.to(runtime.device) for network in (generator, discriminator) if network is not None]
    seed_all(record.seed, record.update - 1, record.rank)
    results = [_run(batch, objective, networks, runtime) for batch in batches]
    for batch, result in zip(batches, results, strict=True):
        yield result
        if not result.is_finite and len(batch.clip_ids) > 1:
            for row in range(len(batch.clip_ids)):
                yield _run(_single_clip(batch, row, objective.spec.hop), objective, networks, runtime)


def _run(batch: Batch, objective: Objective, networks: Sequence[nn.Module], runtime: Runtime) -> ReplayResult:
    generator, *rest = networks
    discriminator = rest[0] if rest else None
    for network in networks:
        network.zero_grad(set_to_none=True)
    with runtime.autocast():
        segments = objective.generator_forward(generator, batch.to(runtime.device))
        values: dict[str, float] = {}
        if discriminator is not None:
            losses = objective.discriminator_losses(discriminator, segments)
            losses["total"].backward()  # type: ignore[no-untyped-call]
            values |= {f"discriminator/{name}": float(loss.detach()) for name, loss in losses.items()}
            values["grad_norm/discriminator"] = _norm(discriminator)
            with frozen(discriminator):
                losses = objective.generator_losses(discriminator, segments)
        else:
            losses = objective.generator_losses(None, segments)
    losses["total"].backward()  # type: ignore[no-untyped-call]
    values |= {f"generator/{name}": float(loss.detach()) for name, loss in losses.items()}
    values["grad_norm/generator"] = _norm(generator)
    return ReplayResult(batch.clip_ids, values)


def _norm(network: nn.Module) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))


def _single_clip(batch: Batch, row: int, hop: int) -> Batch:
    one = {name: tensor[row : row + 1] for name in _TENSORS if (tensor := getattr(batch, name)) is not None}
    return replace(batch, **one, clip_ids=batch.clip_ids[row : row + 1]).trimmed(hop)


def _networks(folder: Path, config: TrainConfig) -> tuple[Generator, Discriminator | None]:
    try:
        model = pretrained.model_from_config(folder / "voice")
        weights = read_tensors(folder / "generator.safetensors", CheckpointError, _REMEDY)
        require_finite(weights, folder, "The weights are the cause, not the clips: resume from an earlier checkpoint.")
        model.load_state_dict(weights)
        if config.objective == "mel":
            return Generator(model, "prior", config.segment_frames).train(), None
        generator = Generator(model, "posterior", config.segment_frames).train()
        discriminator = load_discriminator(folder / "discriminator.safetensors")
    except RuntimeError as error:  # of load_state_dict
        raise CheckpointError(f"{folder}: cannot load the networks of the update ({first_line(error)}).") from error
    attach_speech_encoder(discriminator, config, pretrained.audio_spec(model.config), is_resumed=True)
    return generator, discriminator


def _read(file: Path) -> tuple[list[Batch], ReplayRecord]:
    header = read_tensor_header(file, CheckpointError, f"It is not a saved update. {_REMEDY}")
    record = parse_json(header.metadata.get("record"), f"{file}: record", ReplayRecord, CheckpointError, _REMEDY)
    needed = {f"{number}/{name}" for number in range(len(record.clips)) for name in _TENSORS if name != "speaker_ids"}
    missing = sorted(needed - header.shapes.keys())
    if missing:
        raise CheckpointError(f"{file} is not a saved update: it has no {missing[0]}. {_REMEDY}")
    tensors = read_tensors(file, CheckpointError, _REMEDY)
    batches = [
        Batch(
            **{name: tensors.get(f"{number}/{name}") for name in _TENSORS},  # type: ignore[arg-type]
            clip_ids=clips,
            audio_s=0.0,
            spec=MicroBatchSpec((), 0, number, closes_update=False),
            rejections=(),
        )
        for number, clips in enumerate(record.clips)
    ]
    return batches, record


def require_valid(batch: Batch, config: VitsConfig, source: str, error: type[VitsTrainerError]) -> None:
    """Checks shapes, dtypes and ranges of a batch that was read from a file. Kernels do not: they would crash.

    Args:
        batch: on the CPU.
        config: of the voice.
        source: where the batch comes from, for the message.
        error: class of the exception.

    Raises:
        VitsTrainerError: an ``error`` that names the tensor.
    """
    clips = len(batch.token_lengths) if batch.token_lengths.ndim == 1 else 0
    hop = pretrained.audio_spec(config).hop
    tokens, waveform, lengths, frames = batch.tokens, batch.waveform, batch.token_lengths, batch.frame_lengths
    speakers = batch.speaker_ids
    integers = {"tokens": tokens, "token_lengths": lengths, "frame_lengths": frames, "speaker_ids": speakers}
    wrong = [name for name, tensor in integers.items() if tensor is not None and tensor.dtype != torch.int64]
    wrong += [name for name in ("token_lengths", "frame_lengths") if integers[name].shape != (clips,)]  # type: ignore[union-attr]
    wrong += [
        name for name in ("tokens", "waveform") if getattr(batch, name).ndim != 2 or len(getattr(batch, name)) != clips
    ]
    if wrong or not clips or len(batch.clip_ids) not in (0, clips):
        raise error(f"{source}: {', '.join(dict.fromkeys(wrong)) or 'clips'}: unexpected type or shape. {_REMEDY}")
    in_range = {
        "waveform": waveform.dtype in (torch.int16, torch.float32, torch.float64),
        "tokens": bool(((tokens >= 0) & (tokens < config.vocab_size)).all()) and tokens.shape[1] > 0,
        "token_lengths": bool(((lengths >= 1) & (lengths <= tokens.shape[1])).all()),
        "frame_lengths": bool(((frames >= lengths) & (frames <= waveform.shape[1] // hop)).all()),
        "speaker_ids": (speakers is None) == (config.num_speakers <= 1),
    }
    if speakers is not None and in_range["speaker_ids"]:
        valid = speakers.shape == (clips,) and bool(((speakers >= 0) & (speakers < config.num_speakers)).all())
        in_range["speaker_ids"] = valid
    wrong = [name for name, holds in in_range.items() if not holds]
    if wrong:
        raise error(f"{source}: {', '.join(wrong)}: a value is out of range for this voice. {_REMEDY}")
