"""Training forward pass of the generator on transformers' modules (``VitsModel`` only supports inference)."""

import copy
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import VitsModel

from vits_trainer.models import alignment
from vits_trainer.models.decoder import autocast_modules, decode
from vits_trainer.models.duration_predictor import duration_loss
from vits_trainer.models.encoders import encode_text, flow, reversed_flow, sample_posterior
from vits_trainer.models.precision import Noise, at_least_float32
from vits_trainer.models.spectrogram import cut_segments, frame_mask, random_segment_starts


class GeneratorOutput(NamedTuple):
    """Output of a generator forward pass. B clips, C latent channels, T frames, S tokens.

    A NamedTuple, so that DistributedDataParallel can find its tensors.
    """

    waveform: Tensor
    """(B, 1, segment_samples) decoded segments."""
    segment_starts: Tensor
    """(B,) first frame of each segment."""
    duration_loss: Tensor
    """(B,) duration loss per clip, summed over its tokens."""
    posterior: Tensor
    """(B, C, T) posterior sample ``z``."""
    latents: Tensor
    """(B, C, T) posterior sample after the flow, ``z_p``."""
    posterior_log_std: Tensor
    """(B, C, T)."""
    prior_mean: Tensor
    """(B, C, T) expanded to frames by the alignment."""
    prior_log_std: Tensor
    """(B, C, T) expanded to frames by the alignment."""
    token_of_frame: Tensor
    """(B, T) alignment: token index of each frame."""
    text_mask: Tensor
    """(B, 1, S)."""
    frame_mask: Tensor
    """(B, 1, T)."""


class ForwardParts(NamedTuple):
    """Functions of the forward pass, which ``--compile`` replaces."""

    encode_text: Callable[..., Any]
    sample_posterior: Callable[..., Any]
    flow: Callable[..., Any]
    decode: Callable[..., Any]
    duration_loss: Callable[..., Any]

    @classmethod
    def eager(cls) -> "ForwardParts":
        """Returns the functions as they are."""
        return cls(encode_text, sample_posterior, flow, decode, duration_loss)


class Generator(nn.Module):
    """Trainable wrapper of a ``VitsModel``: maps text and spectrogram to decoded segments and the inputs of the losses.

    ``decode_from`` selects the decoded sample: that of the posterior (VITS), or of the prior through the reversed flow,
    as in inference (mel objective; the frozen posterior encoder is then only used for the alignment). With
    ``gradient_checkpointing``, activations are recomputed in the backward pass: less memory, identical values, at the
    cost of one more forward pass.
    """

    def __init__(self, model: VitsModel, decode_from: Literal["posterior", "prior"], segment_frames: int) -> None:
        super().__init__()
        self.model = model
        self.decode_from = decode_from
        self.segment_frames = segment_frames
        self.noise: Noise = torch.randn_like
        self.alignment_noise = 0.0
        """Noise on the scores of the alignment search, relative to their standard deviation."""
        self.gradient_checkpointing = False
        self.parts = ForwardParts.eager()
        if decode_from == "prior":
            model.posterior_encoder.requires_grad_(False)

    def with_segments(self, segment_frames: int, decode_from: Literal["posterior", "prior"]) -> "Generator":
        """Returns a generator that shares the networks, and decodes other segments; not for training."""
        other = copy.copy(self)  # a new one would freeze the posterior encoder
        other.segment_frames = segment_frames
        other.decode_from = decode_from
        other.parts = ForwardParts.eager()  # compiled ones are for training
        return other

    @property
    def autocast_networks(self) -> list[nn.Module]:
        """Networks whose weights autocast would cast; none if they are cast again in the backward pass."""
        if self.gradient_checkpointing:
            return []
        model = self.model
        return [model.text_encoder, model.posterior_encoder, model.flow, autocast_modules(model.decoder)]

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        spectrogram: Tensor,
        frame_lengths: Tensor,
        speaker_ids: Tensor | None = None,
        segment_starts: Tensor | None = None,
    ) -> GeneratorOutput:
        """Runs the training forward pass.

        Args:
            tokens: (B, S) token ids.
            token_lengths: (B,).
            spectrogram: (B, F, T) magnitudes.
            frame_lengths: (B,) at least the number of tokens of each clip.
            speaker_ids: (B,) for multi-speaker models.
            segment_starts: (B,) start frames; random by default.
        """
        text_mask = frame_mask(token_lengths, tokens.shape[1])
        frames = frame_mask(frame_lengths, spectrogram.shape[2])
        speaker = None if speaker_ids is None else self.model.embed_speaker(speaker_ids)[:, :, None]

        hidden, token_mean, token_log_std = self._run(
            self.parts.encode_text, self.model.text_encoder, tokens, text_mask
        )
        token_mean, token_log_std = at_least_float32(token_mean), at_least_float32(token_log_std)

        posterior, posterior_log_std, latents = self._posterior(spectrogram, frames, speaker)
        with torch.no_grad():
            scores = alignment.log_likelihoods(latents, token_mean, token_log_std)
            if self.alignment_noise:
                noise = self.noise(scores) * self.alignment_noise
                scores = scores + noise * alignment.score_std(scores, frames, text_mask)
            token_of_frame = alignment.search(scores, frame_lengths, token_lengths)
            token_durations = alignment.durations(token_of_frame, frames, tokens.shape[1])
        prior_mean = alignment.expand(token_mean, token_of_frame, frames)
        prior_log_std = alignment.expand(token_log_std, token_of_frame, frames)

        decoded = posterior
        if self.decode_from == "prior":
            sample = prior_mean + self.noise(prior_mean) * torch.exp(prior_log_std)
            decoded = self._run(reversed_flow, self.model.flow, sample * frames, frames, speaker)
        if segment_starts is None:
            segment_starts = random_segment_starts(frame_lengths, self.segment_frames)
        segment = cut_segments(decoded * frames, segment_starts, self.segment_frames)
        return GeneratorOutput(
            waveform=self._run(self.parts.decode, self.model.decoder, segment, speaker),
            segment_starts=segment_starts,
            duration_loss=self.parts.duration_loss(
                self.model.duration_predictor, hidden, text_mask, speaker, token_durations, self.noise
            ),
            posterior=posterior,
            latents=latents,
            posterior_log_std=posterior_log_std,
            prior_mean=prior_mean,
            prior_log_std=prior_log_std,
            token_of_frame=token_of_frame,
            text_mask=text_mask,
            frame_mask=frames,
        )

    def _posterior(self, spectrogram: Tensor, frames: Tensor, speaker: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the posterior sample, its log standard deviation, and the sample after the flow, (B, C, T) each."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.decode_from == "posterior"):
            encoder, part = self.model.posterior_encoder, self.parts.sample_posterior
            sample, log_std = self._run(part, encoder, spectrogram, frames, speaker, self.noise)
            latents = self._run(self.parts.flow, self.model.flow, sample, frames, speaker)
            return sample, log_std, at_least_float32(latents)

    def _run(self, module: Callable[..., Any], *args: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)
        return module(*args)
