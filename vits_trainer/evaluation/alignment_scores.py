"""How well texts fit their recordings under a voice of the language: the alignment of VITS as a judge.

The alignment search (:mod:`vits_trainer.models.alignment`) finds the most likely assignment of frames to tokens. Its
log-likelihood per frame is low if the text is another one. Speaker, noise and voice lower it as well, so it is compared
with the highest one of other texts of similar length on the same recording. If the text is too long, many tokens have
a single frame; if it is too short, tokens are stretched.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import VitsModel, VitsTokenizer

from vits_trainer.evaluation.timings import SpeechTimings, piece_timings
from vits_trainer.models import alignment
from vits_trainer.models.encoders import encode_text, flow, sample_posterior
from vits_trainer.models.pretrained import audio_spec, speaker_names
from vits_trainer.models.spectrogram import frame_mask, spectrogram
from vits_trainer.text.tokenizer import encode
from vits_trainer.utils.errors import DataError

_OTHER_TEXTS = 8
_BATCH_S = 60.0
"""Seconds of speech in a batch, with padding: the scores of frames and tokens need most memory."""


class AlignmentScore(NamedTuple):
    """Fit of one text to its recording; NaN where no alignment exists."""

    log_likelihood: float
    """Per frame, in nats."""
    contrast: float
    """Log-likelihood minus the highest one of up to eight other texts, those with the most similar numbers of tokens;
    NaN if there are none. Below 0, another text fits better."""
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
        self,
        texts: Sequence[str],
        recordings: Sequence[NDArray[np.int16]],
        speakers: Sequence[str],
        rate_hz: int,
        more_texts: Sequence[str] = (),
    ) -> list[AlignmentScore]:
        """Returns the score of each clip.

        Args:
            texts: of the clips.
            recordings: samples, (T,) each.
            speakers: names; the first speaker of the voice takes the place of unknown ones.
            rate_hz: sampling rate of the recordings; they are resampled to that of the voice.
            more_texts: texts of other clips, for the contrast, in addition to those of these clips.
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
        if not usable:
            return results
        more_tokens = [encode(self.tokenizer, text) for text in more_texts]
        compared = [*(tokens[row] for row in usable), *(one for one in more_tokens if len(one))]
        encoded = self._encode(compared)
        others = _other_texts(compared, len(usable))
        for batch in self._batches([frames[row] for row in usable]):
            rows = [usable[index] for index in batch]
            ids = [self._speakers.get(speakers[row], 0) for row in rows]
            latents, frame_lengths = self._latents([waveforms[row] for row in rows], ids)
            found = self._scores(encoded, batch, [others[index] for index in batch], latents, frame_lengths)
            for row, score in zip(rows, found, strict=True):
                results[row] = score
        return results

    def timings(self, text: str, recording: NDArray[np.int16], speaker: str, rate_hz: int) -> SpeechTimings:
        """Returns when the parts of a text are heard in its recording, (T,).

        Raises:
            DataError: the text has no known characters, or more tokens than the recording has frames.
        """
        ids, waveform = encode(self.tokenizer, text), self._waveform(recording, rate_hz)
        if not 0 < len(ids) <= self.spec.frames(len(waveform)):
            seconds = len(waveform) / self.spec.sampling_rate
            raise DataError(f"{text!r} cannot be aligned with {seconds:.2f} s of speech.")
        latents, frames = self._latents([waveform], [self._speakers.get(speaker, 0)])
        _, path = _best_path(latents, self._encode([ids]), [0], frames)
        durations = alignment.durations(path, frame_mask(frames, latents.shape[2]), len(ids))[0, 0]
        token_s = durations.double().cpu().numpy() * self.spec.hop / self.spec.sampling_rate
        return piece_timings(self.tokenizer, text, ids, token_s)

    def _scores(
        self,
        encoded: "_EncodedTexts",
        own: Sequence[int],
        others: Sequence[Sequence[int]],
        latents: Tensor,
        frame_lengths: Tensor,
    ) -> list[AlignmentScore]:
        """Aligns recordings, (B, C, T), with their own texts, and with others: indices of ``encoded``."""
        likelihood, path = _best_path(latents, encoded, own, frame_lengths)
        best_other = torch.full_like(likelihood, -torch.inf)
        for number in range(max(map(len, others))):
            rows = [row for row, indices in enumerate(others) if number < len(indices)]
            texts = [others[row][number] for row in rows]
            found, _ = _best_path(latents[rows], encoded, texts, frame_lengths[rows])
            best_other[rows] = torch.maximum(best_other[rows], found)
        lengths = encoded.lengths[list(own)]
        mask = frame_mask(frame_lengths, latents.shape[2])
        durations = alignment.durations(path, mask, int(lengths.max()))[:, 0]
        return [
            AlignmentScore(
                log_likelihood=float(likelihood[row]),
                contrast=float(likelihood[row] - best_other[row]) if others[row] else np.nan,
                hurried_fraction=float((durations[row, : lengths[row]] <= 1).float().mean()),
                longest_token_s=float(durations[row].max()) * self.spec.hop / self.spec.sampling_rate,
            )
            for row in range(len(own))
        ]

    def _waveform(self, recording: NDArray[np.int16], rate_hz: int) -> NDArray[np.float32]:
        samples = recording.astype(np.float32) / np.float32(32768)
        if rate_hz == self.spec.sampling_rate:
            return samples
        return np.asarray(soxr.resample(samples, rate_hz, self.spec.sampling_rate), dtype=np.float32)

    def _batches(self, frames: Sequence[int]) -> Iterator[list[int]]:
        """Yields indices of clips with similar numbers of frames."""
        limit = _BATCH_S * self.spec.sampling_rate / self.spec.hop
        batch: list[int] = []
        for index in sorted(range(len(frames)), key=lambda index: frames[index]):
            if batch and (len(batch) + 1) * frames[index] > limit:
                yield batch
                batch = []
            batch.append(index)
        yield batch

    @torch.no_grad()  # not inference mode: the windows that it would keep could not serve a training afterwards
    def _encode(self, tokens: Sequence[NDArray[np.int64]]) -> "_EncodedTexts":
        device = self.model.device
        lengths = torch.tensor([len(one) for one in tokens], device=device)
        size = int(lengths.max())
        _, mean, log_std = encode_text(
            self.model.text_encoder, _padded(tokens, size).to(device), frame_mask(lengths, size)
        )
        return _EncodedTexts(mean, log_std, lengths)

    @torch.no_grad()
    def _latents(self, waveforms: Sequence[NDArray[np.float32]], speakers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns the posterior means after the flow, (B, C, T), and the frames of each clip, (B,)."""
        model, device = self.model, self.model.device
        frame_lengths = torch.tensor([self.spec.frames(len(one)) for one in waveforms], device=device)
        frames = int(frame_lengths.max())
        magnitude = spectrogram(_padded(waveforms, frames * self.spec.hop).to(device), frame_lengths, self.spec)
        mask = frame_mask(frame_lengths, frames)
        speaker = None
        if model.config.num_speakers > 1:
            speaker = model.embed_speaker(torch.tensor(speakers, device=device))[:, :, None]
        posterior, _ = sample_posterior(model.posterior_encoder, magnitude, mask, speaker, torch.zeros_like)
        return flow(model.flow, posterior, mask, speaker), frame_lengths


class _EncodedTexts(NamedTuple):
    """Output of the text encoder for N texts."""

    mean: Tensor
    """(N, C, S)."""
    log_std: Tensor
    """(N, C, S)."""
    lengths: Tensor
    """(N,) tokens of each text."""


def _other_texts(tokens: Sequence[NDArray[np.int64]], count: int) -> list[list[int]]:
    """Returns for the first texts the indices of different ones, those with the most similar numbers of tokens."""
    keys = [one.tobytes() for one in tokens]
    found = []
    for row, own in enumerate(tokens[:count]):
        different = [index for index in range(len(tokens)) if keys[index] != keys[row]]
        different.sort(key=lambda index: abs(len(tokens[index]) - len(own)))
        found.append(different[:_OTHER_TEXTS])
    return found


@torch.no_grad()
def _best_path(
    latents: Tensor, encoded: _EncodedTexts, texts: Sequence[int], frame_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the log-likelihood per frame of the best alignment with each text, (B,), and the token of each frame.

    Texts with more tokens than frames are cut.
    """
    rows = list(texts)
    token_lengths = torch.minimum(encoded.lengths[rows], frame_lengths)
    size = int(token_lengths.max())
    scores = alignment.log_likelihoods(latents, encoded.mean[rows, :, :size], encoded.log_std[rows, :, :size])
    path = alignment.search(scores, frame_lengths, token_lengths)  # (B, T)
    mask = frame_mask(frame_lengths, scores.shape[1])[:, 0]
    return (scores.gather(2, path[:, :, None])[:, :, 0] * mask).sum(1) / frame_lengths, path


def _padded(arrays: Sequence[NDArray[np.generic]], size: int) -> Tensor:
    """Cuts or pads one-dimensional arrays to (B, size)."""
    padded = np.zeros((len(arrays), size), dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        padded[row, : min(len(array), size)] = array[:size]
    return torch.from_numpy(padded)
