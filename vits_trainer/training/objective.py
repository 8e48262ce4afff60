"""The VITS objective (Kim et al. 2021, section 2): synthesis once, then two sets of named losses.

Knows no optimiser, no accelerator and no logging.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from typing import NamedTuple

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


class LossDenominators(NamedTuple):
    """What the losses' sums are divided by: counts over all micro-batches of an update, on all ranks."""

    clips: float
    tokens: float
    frames: float
    segment_frames: float


ZERO_WEIGHT = LossDenominators(inf, inf, inf, inf)
"""For a micro-batch in which silence stands in for clips: its losses and their gradients are zero."""


class SegmentPair(NamedTuple):
    """Generated segments beside the recorded ones."""

    output: GeneratorOutput
    denominators: LossDenominators
    generated: Tensor
    """(B, 1, segment_samples) silent behind the end of clips that are shorter than a segment."""
    recorded: Tensor
    """(B, 1, segment_samples)."""
    generated_mel: Tensor
    """(B, M, segment_frames) of the generated segment by itself."""
    recorded_mel: Tensor
    """(B, M, segment_frames) cut from the mel of the whole clip."""
    mel_mask: Tensor
    """(B, 1, segment_frames) zero behind the end of short clips."""


class Objective:
    """``vits``: adversarial + feature matching + 45 mel + duration + KL. ``mel``: 45 mel + duration alone."""

    def __init__(self, kind: ObjectiveKind, weights: LossWeights, spec: AudioSpec, segment_frames: int) -> None:
        self.adversarial = kind == "vits"
        self.loss_weights = weights
        self.weights: dict[str, float] = asdict(weights)
        self.spec = spec
        self.segment_frames = segment_frames

    def denominators(self, batch: Batch) -> LossDenominators:
        """Counts in ``batch``. A CPU-GPU sync point unless it is still on the CPU."""
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
        normalisers: LossDenominators | None = None,
    ) -> SegmentPair:
        """The only forward of the generator in a micro-batch.

        Args:
            generator: a :class:`~vits_trainer.models.generator.Generator`, wrapped for several processes or not.
            batch: clips and texts on the generator's device.
            segment_starts: (B,) frames; drawn at random when left out.
            normalisers: of the update that the batch is part of; when left out, of the batch alone.
        """
        with torch.no_grad():
            magnitude = spectrogram(batch.waveform, batch.frame_lengths, self.spec)
            whole_mel = log_mel(magnitude, self.spec)
        synthesis: GeneratorOutput = generator(
            batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths, batch.speaker_ids, segment_starts
        )
        starts = synthesis.segment_starts
        hop = self.spec.hop
        valid_frames = (batch.frame_lengths - starts).clamp(max=self.segment_frames)
        audible = frame_mask(valid_frames * hop, self.segment_frames * hop)
        generated = at_least_float32(synthesis.waveform) * audible
        return SegmentPair(
            output=synthesis,
            denominators=(normalisers or self.denominators(batch)) if batch.clip_ids else ZERO_WEIGHT,
            generated=generated,
            recorded=cut_segments(batch.waveform[:, None], starts * hop, self.segment_frames * hop) * audible,
            generated_mel=log_mel(spectrogram(generated[:, 0], valid_frames, self.spec), self.spec),
            recorded_mel=cut_segments(whole_mel, starts, self.segment_frames),
            mel_mask=frame_mask(valid_frames, self.segment_frames),
        )

    def discriminator_losses(self, discriminator: nn.Module, comparison: SegmentPair) -> dict[str, Tensor]:
        """``real``, ``fake`` and their sum ``total``: this batch's share of the update's. None is the generator's."""
        both = torch.cat([comparison.recorded, comparison.generated.detach()])
        real, fake = discriminator(both).split(len(comparison.recorded))
        real_loss, fake_loss = losses.discriminator_lsgan(real.scores, fake.scores)
        clips = comparison.denominators.clips
        real_loss, fake_loss = real_loss / clips, fake_loss / clips
        return {"real": real_loss, "fake": fake_loss, "total": real_loss + fake_loss}

    def generator_losses(self, discriminator: nn.Module | None, comparison: SegmentPair) -> dict[str, Tensor]:
        """Each loss unweighted under its name, and their weighted sum ``total``: this batch's share of the update's.

        Added up over the micro-batches of an update and over all ranks, they are the losses of its joined clips.

        Args:
            discriminator: the judge, with its parameters frozen (:func:`frozen`); None for the mel objective.
            comparison: from :meth:`generator_forward`.
        """
        s, normalisers = comparison.output, comparison.denominators
        mel = losses.mel_l1(comparison.generated_mel, comparison.recorded_mel, comparison.mel_mask)
        terms = {"mel": mel / normalisers.segment_frames, "duration": s.duration_loss.sum() / normalisers.tokens}
        if self.adversarial:
            if discriminator is None:
                raise ValueError("the vits objective needs a discriminator")
            with torch.no_grad():
                real = discriminator(comparison.recorded)
            fake = discriminator(comparison.generated)
            kl = losses.kl_divergence(s.latents, s.posterior_log_std, s.prior_mean, s.prior_log_std, s.frame_mask)
            terms["kl"] = kl / normalisers.frames
            terms["adversarial"] = losses.generator_lsgan(fake.scores) / normalisers.clips
            matching = losses.feature_matching(real.feature_maps, fake.feature_maps)
            terms["feature_matching"] = matching / normalisers.clips
        return terms | {"total": self.total(terms)}

    @property
    def generator_loss_names(self) -> tuple[str, ...]:
        """What :meth:`generator_losses` gives."""
        adversarial = ("kl", "adversarial", "feature_matching") if self.adversarial else ()
        return ("mel", "duration", *adversarial, "total")

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of named losses."""
        return torch.stack([self.weights[name] * loss for name, loss in terms.items()]).sum()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """The network's parameters take no gradient inside: it is only looked through."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
