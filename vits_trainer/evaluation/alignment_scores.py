"""How well texts fit their recordings under a voice of the language: the alignment of VITS as a judge.

The alignment search (:mod:`vits_trainer.models.alignment`) finds the most likely assignment of frames to tokens. Its
log-likelihood per frame is low if the text is another one. How low depends on speaker, noise and voice as well, so it
is compared with that of other texts on the same recording. A text that is too long leaves many tokens a single frame,
and one that is too short stretches tokens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import VitsModel, VitsTokenizer

from vits_trainer.models import alignment
from vits_trainer.models.encoders import encode_text, flow, sample_posterior
from vits_trainer.models.pretrained import audio_spec, speaker_names
from vits_trainer.models.spectrogram import frame_mask, spectrogram
from vits_trainer.text.tokenizer import encode

_OTHER_TEXTS = 4
_BATCH_S = 60.0
"""Seconds of speech in a batch, with padding: the scores of frames and tokens need most memory."""


class AlignmentScore(NamedTuple):
    """Fit of one text to its recording; NaN where no alignment exists."""

    log_likelihood: float
    """Per frame, in nats."""
    contrast: float
    """Log-likelihood minus the mean of that of the texts of up to four other clips of similar duration; NaN if there
    are none."""
    hurried_fraction: float
    """Fraction of tokens with a single frame."""
    longest_token_s: float


NO_ALIGNMENT = AlignmentScore(np.nan, np.nan, np.nan, np.nan)
"""Of a clip whose text has no known characters, or more tokens than the recording has frames."""


class Aligner:
    """Aligns texts and recordings with a voice, on the device of its model."""

    def __init__(self, model: VitsModel, tokenizer: VitsTokenizer) -> None:
        """``model`` is in training form, as of ``pretrained.load_model``; it is switched to eval mode."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.spec = audio_spec(model.config)
        self._speakers = {name: number for number, name in enumerate(speaker_names(model.config))}

    def scores(
        self, texts: Sequence[str], recordings: Sequence[NDArray[np.int16]], speakers: Sequence[str], rate_hz: int
    ) -> list[AlignmentScore]:
        """Returns the score of each clip.

        Args:
            texts: of the clips.
            recordings: samples, (T,) each.
            speakers: names; the first speaker of the voice takes the place of unknown ones.
            rate_hz: sampling rate of the recordings; they are resampled to that of the voice.
        """
        tokens = [encode(self.tokenizer, text) for text in texts]
        waveforms = [self._waveform(recording, rate_hz) for recording in recordings]
        frames = [self.spec.frames(len(waveform)) for waveform in waveforms]
        results = [NO_ALIGNMENT] * len(texts)
        usable = [
            row
            for row in range(len(texts))
            if 0 < len(tokens[row]) <= frames[row] and frames[row] >= self.spec.minimum_frames
        ]
        for rows in self._batches(usable, frames):
            ids = [self._speakers.get(speakers[row], 0) for row in rows]
            batch = self._align([tokens[row] for row in rows], [waveforms[row] for row in rows], ids)
            for row, score in zip(rows, batch, strict=True):
                results[row] = score
        return results

    def _waveform(self, recording: NDArray[np.int16], rate_hz: int) -> NDArray[np.float32]:
        samples = recording.astype(np.float32) / np.float32(32768)
        if rate_hz == self.spec.sampling_rate:
            return samples
        return np.asarray(soxr.resample(samples, rate_hz, self.spec.sampling_rate), dtype=np.float32)

    def _batches(self, rows: Sequence[int], frames: Sequence[int]) -> Iterator[list[int]]:
        limit = _BATCH_S * self.spec.sampling_rate / self.spec.hop
        batch: list[int] = []
        for row in sorted(rows, key=lambda row: frames[row]):
            if batch and (len(batch) + 1) * frames[row] > limit:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    @torch.inference_mode()
    def _align(
        self, tokens: Sequence[NDArray[np.int64]], waveforms: Sequence[NDArray[np.float32]], speakers: Sequence[int]
    ) -> list[AlignmentScore]:
        model, device = self.model, self.model.device
        token_lengths = torch.tensor([len(one) for one in tokens], device=device)
        frame_lengths = torch.tensor([self.spec.frames(len(one)) for one in waveforms], device=device)
        frames = int(frame_lengths.max())
        magnitude = spectrogram(_padded(waveforms, frames * self.spec.hop).to(device), frame_lengths, self.spec)
        text_mask = frame_mask(token_lengths, int(token_lengths.max()))
        mask = frame_mask(frame_lengths, frames)
        speaker = None
        if model.config.num_speakers > 1:
            speaker = model.embed_speaker(torch.tensor(speakers, device=device))[:, :, None]
        padded_tokens = _padded(tokens, int(token_lengths.max())).to(device)
        _, mean, log_std = encode_text(model.text_encoder, padded_tokens, text_mask)
        posterior, _ = sample_posterior(model.posterior_encoder, magnitude, mask, speaker, torch.zeros_like)
        latents = flow(model.flow, posterior, mask, speaker)
        own, path = _best_path(latents, mean, log_std, frame_lengths, token_lengths)
        others = [
            _best_path(latents, mean.roll(k, 0), log_std.roll(k, 0), frame_lengths, token_lengths.roll(k, 0))[0]
            for k in range(1, min(_OTHER_TEXTS + 1, len(tokens)))
        ]
        contrast = own - torch.stack(others).mean(0) if others else torch.full_like(own, torch.nan)
        durations = alignment.durations(path, mask, int(token_lengths.max()))[:, 0]
        return [
            AlignmentScore(
                log_likelihood=float(own[row]),
                contrast=float(contrast[row]),
                hurried_fraction=float((durations[row, : token_lengths[row]] <= 1).float().mean()),
                longest_token_s=float(durations[row].max()) * self.spec.hop / self.spec.sampling_rate,
            )
            for row in range(len(tokens))
        ]


def _best_path(
    latents: Tensor, mean: Tensor, log_std: Tensor, frame_lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the log-likelihood per frame of the best alignment, (B,), and the token of each frame, (B, T).

    Texts with more tokens than frames are cut.
    """
    scores = alignment.log_likelihoods(latents, mean, log_std)  # (B, T, S)
    path = alignment.search(scores, frame_lengths, torch.minimum(token_lengths, frame_lengths))
    mask = frame_mask(frame_lengths, scores.shape[1])[:, 0]
    return (scores.gather(2, path[:, :, None])[:, :, 0] * mask).sum(1) / frame_lengths, path


def _padded(arrays: Sequence[NDArray[np.generic]], size: int) -> Tensor:
    """Cuts or pads one-dimensional arrays to (B, size)."""
    padded = np.zeros((len(arrays), size), dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        padded[row, : min(len(array), size)] = array[:size]
    return torch.from_numpy(padded)
