"""The VITS objective (Kim et al. 2021, section 2): one generator forward pass, then the losses of both networks.

Independent of optimizers, Accelerate and logging.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.options import ObjectiveKind
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import Batch
from vits_trainer.models.generator import GeneratorOutput
from vits_trainer.models.precision import at_least_float32
from vits_trainer.models.spectrogram import cut_segments, frame_mask, log_mel, spectrogram
from vits_trainer.training import losses
from vits_trainer.training.multi_scale_mel import multi_scale_mel_l1


class LossDenominators(NamedTuple):
    """Counts over all micro-batches of an update, on all ranks, by which the summed losses are divided."""

    clips: float
    tokens: float
    frames: float
    segment_frames: float


ZERO_WEIGHT = LossDenominators(inf, inf, inf, inf)
"""For a placeholder micro-batch of silence: its losses and their gradients are zero."""


class SegmentPair(NamedTuple):
    """Generated segments and the recorded ones at the same positions."""

    output: GeneratorOutput
    denominators: LossDenominators
    generated: Tensor
    """(B, 1, segment_samples), zero after the end of clips that are shorter than a segment."""
    recorded: Tensor
    """(B, 1, segment_samples)."""
    generated_mel: Tensor
    """(B, M, segment_frames), computed from the generated segment alone."""
    recorded_mel: Tensor
    """(B, M, segment_frames), cut from the mel of the whole clip."""
    mel_mask: Tensor
    """(B, 1, segment_frames), zero after the end of short clips."""
    spec: AudioSpec


Term = Callable[[SegmentPair, Any, Any], Tensor]
"""Returns one loss from the segments, and from the discriminator's output on the recorded and the generated one."""


def _mel(pair: SegmentPair, real: Any, fake: Any) -> Tensor:  # noqa: ARG001 - the signature of a term
    mel = losses.mel_l1(pair.generated_mel, pair.recorded_mel, pair.mel_mask)
    return mel / pair.denominators.segment_frames


def _duration(pair: SegmentPair, real: Any, fake: Any) -> Tensor:  # noqa: ARG001
    return pair.output.duration_loss.sum() / pair.denominators.tokens


def _kl(pair: SegmentPair, real: Any, fake: Any) -> Tensor:  # noqa: ARG001
    out = pair.output
    kl = losses.kl_divergence(out.latents, out.posterior_log_std, out.prior_mean, out.prior_log_std, out.frame_mask)
    return kl / pair.denominators.frames


def _adversarial(pair: SegmentPair, real: Any, fake: Any) -> Tensor:  # noqa: ARG001
    return losses.generator_lsgan(fake.scores) / pair.denominators.clips


def _feature_matching(pair: SegmentPair, real: Any, fake: Any) -> Tensor:
    return losses.feature_matching(real.feature_maps, fake.feature_maps) / pair.denominators.clips


def _multi_scale_mel(pair: SegmentPair, real: Any, fake: Any) -> Tensor:  # noqa: ARG001
    valid_samples = pair.mel_mask[:, 0].sum(1).long() * pair.spec.hop
    distance = multi_scale_mel_l1(pair.generated, pair.recorded, valid_samples, pair.spec)
    return distance / pair.denominators.segment_frames


TERMS: dict[str, Term] = {"mel": _mel, "duration": _duration}
"""Losses of the generator, by the names of their weights in :class:`LossWeights`."""
ADVERSARIAL_TERMS: dict[str, Term] = {"kl": _kl, "adversarial": _adversarial, "feature_matching": _feature_matching}
"""Further losses of the vits objective."""
OPTIONAL_TERMS: dict[str, Term] = {"multi_scale_mel": _multi_scale_mel}
"""Losses that are computed if their weight is above 0."""


class Objective:
    """``vits``: adversarial + feature matching + 45 mel + duration + KL. ``mel``: 45 mel + duration only.

    Either with the optional losses whose weight is above 0.
    """

    def __init__(self, kind: ObjectiveKind, weights: LossWeights, spec: AudioSpec, segment_frames: int) -> None:
        self.adversarial = kind == "vits"
        self.loss_weights = weights
        self.weights: dict[str, float] = asdict(weights)
        optional = {name: term for name, term in OPTIONAL_TERMS.items() if self.weights[name]}
        self.terms = TERMS | (ADVERSARIAL_TERMS if self.adversarial else {}) | optional
        self.kl_share = 1.0
        """Share of the KL weight while it is annealed (``annealing``)."""
        self.spec = spec
        self.segment_frames = segment_frames

    def with_segments(self, segment_frames: int) -> "Objective":
        """Returns this objective for segments of another length."""
        other = copy.copy(self)
        other.segment_frames = segment_frames
        return other

    def denominators(self, batch: Batch) -> LossDenominators:
        """Returns the counts of ``batch``. A CPU-GPU sync point unless it is still on the CPU."""
        if not batch.clip_ids:
            return LossDenominators(0, 0, 0, 0)
        frames = batch.frame_lengths
        segment_frames = frames.clamp(max=self.segment_frames).sum()
        return LossDenominators(len(frames), int(batch.token_lengths.sum()), int(frames.sum()), int(segment_frames))

    def generator_forward(
        self,
        generator: nn.Module,
        batch: Batch,
        segment_starts: Tensor | None = None,
        denominators: LossDenominators | None = None,
    ) -> SegmentPair:
        """Runs the generator on a micro-batch; both networks' losses use this one forward pass.

        Args:
            generator: a :class:`~vits_trainer.models.generator.Generator`, wrapped or not.
            batch: on the generator's device.
            segment_starts: (B,) in frames; random by default.
            denominators: of the update that contains the batch; by default of the batch alone.
        """
        with torch.no_grad():
            magnitude = spectrogram(batch.waveform, batch.frame_lengths, self.spec)
            whole_mel = log_mel(magnitude, self.spec)
        output: GeneratorOutput = generator(
            batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths, batch.speaker_ids, segment_starts
        )
        starts = output.segment_starts
        hop = self.spec.hop
        valid_frames = (batch.frame_lengths - starts).clamp(max=self.segment_frames)
        audible = frame_mask(valid_frames * hop, self.segment_frames * hop)
        generated = at_least_float32(output.waveform) * audible
        return SegmentPair(
            output=output,
            denominators=(denominators or self.denominators(batch)) if batch.clip_ids else ZERO_WEIGHT,
            generated=generated,
            recorded=cut_segments(batch.waveform[:, None], starts * hop, self.segment_frames * hop) * audible,
            generated_mel=log_mel(spectrogram(generated[:, 0], valid_frames, self.spec), self.spec),
            recorded_mel=cut_segments(whole_mel, starts, self.segment_frames),
            mel_mask=frame_mask(valid_frames, self.segment_frames),
            spec=self.spec,
        )

    def discriminator_losses(self, discriminator: nn.Module, pair: SegmentPair) -> dict[str, Tensor]:
        """Returns ``real``, ``fake`` and their sum ``total``: this batch's shares of the update's losses.

        They have no gradient with respect to the generator.
        """
        both = torch.cat([pair.recorded, pair.generated.detach()])
        real, fake = discriminator(both).split(len(pair.recorded))
        real_loss, fake_loss = losses.discriminator_lsgan(real.scores, fake.scores)
        clips = pair.denominators.clips
        real_loss, fake_loss = real_loss / clips, fake_loss / clips
        return {"real": real_loss, "fake": fake_loss, "total": real_loss + fake_loss}

    def generator_losses(self, discriminator: nn.Module | None, pair: SegmentPair) -> dict[str, Tensor]:
        """Returns each unweighted loss, and their weighted sum ``total``: this batch's shares of the update's losses.

        Summed over the micro-batches of an update and all ranks, they are the losses of all of its clips.

        Args:
            discriminator: with frozen parameters (:func:`frozen`); None for the mel objective.
            pair: from :meth:`generator_forward`.
        """
        real = fake = None
        if self.adversarial:
            if discriminator is None:
                raise ValueError("the vits objective needs a discriminator")
            with torch.no_grad():
                real = discriminator(pair.recorded)
            fake = discriminator(pair.generated)
        terms = {name: term(pair, real, fake) for name, term in self.terms.items()}
        return terms | {"total": self.total(terms)}

    @property
    def generator_loss_names(self) -> tuple[str, ...]:
        """Keys that :meth:`generator_losses` returns."""
        return (*self.terms, "total")

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted sum of the losses."""
        weights = self.weights | {"kl": self.weights["kl"] * self.kl_share}
        return torch.stack([weights[name] * loss for name, loss in terms.items()]).sum()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, the network's parameters require no gradient; gradients still pass through to its inputs."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
