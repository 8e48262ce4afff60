"""Updates that came to no finite number, kept and run again.

nonfinite/update-<update>/
    voice/, generator.safetensors, discriminator.safetensors, config.yaml     as in a checkpoint; a few updates later
    rank<rank>.safetensors                                                    the micro-batches of one rank
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from vits_trainer.config import parser
from vits_trainer.config.train import TrainConfig
from vits_trainer.data.dataset import Batch
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.distributed.runtime import Runtime, seed_all
from vits_trainer.models import pretrained
from vits_trainer.models.discriminator import Discriminator, load_discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.training.nonfinite_guard import _TENSORS
from vits_trainer.training.objective import Objective, frozen
from vits_trainer.utils.errors import CheckpointError
from vits_trainer.utils.finite_weights import require_finite


@dataclass(frozen=True)
class ReplayResult:
    """What a micro-batch, or one clip of it alone, comes to."""

    clips: tuple[str, ...]
    values: Mapping[str, float]
    """Losses, and the norms of the gradients."""

    @property
    def is_finite(self) -> bool:
        """Whether every value is."""
        return all(map(isfinite, self.values.values()))

    def __str__(self) -> str:
        """For people."""
        return f"{', '.join(self.clips)}: " + ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())


def replay(file: Path) -> Iterator[ReplayResult]:
    """Runs kept micro-batches again, with the same random numbers; then, where one is not finite, each clip alone.

    Raises:
        CheckpointError: the file, or the networks beside it, cannot be read.
    """
    batches, record = _read(file)
    config = parser.parse("train_vits", TrainConfig, ["--config", str(file.parent / "config.yaml")])
    precision = "fp32" if config.precision == "fp16" and not torch.cuda.is_available() else config.precision
    runtime = Runtime(precision, 1)
    generator, discriminator = _networks(file.parent, config)
    objective = Objective(
        config.objective, config.loss_weights, pretrained.audio_spec(generator.model.config), config.segment_frames
    )
    networks = [network.to(runtime.device) for network in (generator, discriminator) if network is not None]
    seed_all(record["seed"], record["update"] - 1, record["rank"])
    findings = [_run(batch, objective, networks, runtime) for batch in batches]
    for batch, finding in zip(batches, findings, strict=True):
        yield finding
        if not finding.is_finite and len(batch.clip_ids) > 1:
            for row in range(len(batch.clip_ids)):
                yield _run(_alone(batch, row, objective.spec.hop), objective, networks, runtime)


def _run(batch: Batch, objective: Objective, networks: Sequence[nn.Module], runtime: Runtime) -> ReplayResult:
    generator, *rest = networks
    discriminator = rest[0] if rest else None
    for network in networks:
        network.zero_grad(set_to_none=True)
    with runtime.autocast():
        pair = objective.generator_forward(generator, batch.to(runtime.device))
        values: dict[str, float] = {}
        if discriminator is not None:
            losses = objective.discriminator_losses(discriminator, pair)
            losses["total"].backward()  # type: ignore[no-untyped-call]
            values |= {f"discriminator/{name}": float(loss.detach()) for name, loss in losses.items()}
            values["grad_norm/discriminator"] = _norm(discriminator)
            with frozen(discriminator):
                losses = objective.generator_losses(discriminator, pair)
        else:
            losses = objective.generator_losses(None, pair)
    losses["total"].backward()  # type: ignore[no-untyped-call]
    values |= {f"generator/{name}": float(loss.detach()) for name, loss in losses.items()}
    values["grad_norm/generator"] = _norm(generator)
    return ReplayResult(batch.clip_ids, values)


def _norm(network: nn.Module) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))


def _alone(batch: Batch, row: int, hop: int) -> Batch:
    one = {name: tensor[row : row + 1] for name in _TENSORS if (tensor := getattr(batch, name)) is not None}
    return replace(batch, **one, clip_ids=batch.clip_ids[row : row + 1]).trimmed(hop)


def _networks(folder: Path, config: TrainConfig) -> tuple[Generator, Discriminator | None]:
    try:
        model = pretrained.model_to_restore(folder / "voice")
        weights = load_file(folder / "generator.safetensors")
        require_finite(weights, folder, "The update's weights, not its clips, are the cause: go back to a checkpoint.")
        model.load_state_dict(weights)
        if config.objective == "mel":
            return Generator(model, "prior", config.segment_frames).train(), None
        generator = Generator(model, "posterior", config.segment_frames).train()
        return generator, load_discriminator(folder / "discriminator.safetensors")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not hold the networks of the update ({error}).") from error


def _read(file: Path) -> tuple[list[Batch], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as kept:
            record = json.loads((kept.metadata() or {})["record"])
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - it is no dictionary
        batches = [
            Batch(
                **{name: tensors.get(f"{number}/{name}") for name in _TENSORS},  # type: ignore[arg-type]
                clip_ids=tuple(clips),
                audio_s=0.0,
                spec=MicroBatchSpec((), 0, number, closes_update=False),
                rejections=(),
            )
            for number, clips in enumerate(record["clips"])
        ]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file} is no kept update ({error}). Give nonfinite/update-<update>/rank<rank>.safetensors of a run."
        ) from error
    return batches, record
