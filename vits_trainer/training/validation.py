"""Validation: the objective on clips that are not trained on, with the same noise and segments each time.

Clips are read one by one, each with its own seed: the metrics depend neither on the number of ranks nor on batches.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import VitsModel, VitsTokenizer

from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import Batch, ClipDataset
from vits_trainer.data.sampler import validation_batches
from vits_trainer.distributed.runtime import Runtime, seed_all
from vits_trainer.evaluation.speakers import SpeakerMel, curves
from vits_trainer.evaluation.speech_metrics import ClipScore, SpeechMetrics, means, worst_first
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.pretrained import clamp_token_durations
from vits_trainer.models.spectrogram import log_mel, spectrogram
from vits_trainer.tracking.plots import Sample
from vits_trainer.training import losses
from vits_trainer.training.objective import LossDenominators, Objective
from vits_trainer.utils.errors import TooManyRejectedError
from vits_trainer.utils.strings import shown_speaker

SEGMENTS = 4
"""Length of the decoded part of each clip, in segments of training: one segment is half a second."""


class ClipMel(NamedTuple):
    """Mel L1 of one clip."""

    row: int
    frames: float
    """Decoded frames."""
    total: float
    """Mel L1, summed over these frames."""
    shares: tuple[float, ...] = ()
    """This clip's share of each loss, in the objective's order."""


@dataclass(frozen=True)
class ValidationResult:
    """Metrics of one voice on the validation clips."""

    scalars: dict[str, float]
    """By name as logged, ``validation/<name>``; empty if there is no validation clip."""
    clips: tuple[ClipMel, ...] = ()
    """All clips of all ranks, in the order of their rows."""
    speakers: tuple[SpeakerMel, ...] = ()
    """In the order of their names; empty if the clips are of one speaker."""
    scores: Sequence[ClipScore] = ()
    """Speech metrics of sentences generated from text, worst first."""
    by_clip: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics of each clip, whose mean is the metric: by name without ``validation/``, then by clip."""


class Validation:
    """Measures networks on the validation clips, with the same noise and the same part of each clip each time."""

    def __init__(
        self,
        runtime: Runtime,
        objective: Objective,
        dataset: ClipDataset,
        rows: Sequence[int],
        seed: int,
        speech_metrics: SpeechMetrics | None = None,
        scored_clips: int = 0,
        segment_frames: int | None = None,
    ) -> None:
        """Args:
        runtime: the ranks, which share the clips.
        objective: whose losses are measured.
        dataset: reads the clips.
        rows: of the validation clips.
        seed: of noise and segments.
        speech_metrics: of sentences generated from text (None: not measured).
        scored_clips: number of these sentences.
        segment_frames: of each clip that are decoded (None = :data:`SEGMENTS` segments of training).
        """
        self.runtime = runtime
        self.segment_frames = segment_frames or SEGMENTS * objective.segment_frames
        self.objective = objective.with_segments(self.segment_frames)
        self.dataset = dataset
        self.rows = rows
        self.seed = seed
        self.speech_metrics = speech_metrics
        self.scored_clips = scored_clips
        self._speaker_of = {row: dataset.speaker(row) for row in rows}

    @property
    def speakers(self) -> int:
        """Number of speakers of the validation clips."""
        return len(set(self._speaker_of.values()))

    def find_unreadable(self) -> list[Incident]:
        """Reads all validation clips once and drops those that cannot be used. Runs on every rank.

        Returns:
            Why each dropped clip cannot be used, the same on every rank.
        """
        bad = self.runtime.on_main_then_broadcast(
            lambda: {row: record for row in self.rows if isinstance(record := self.dataset.read(row), Incident)}
        )
        self.rows = [row for row in self.rows if row not in bad]
        return [replace(incident, stage="validation") for incident in bad.values()]

    def measure(self, generator: Generator, discriminator: Discriminator | None) -> ValidationResult:
        """Returns all metrics: losses, mel from text, the baseline, and speech metrics. Runs on every rank."""
        result = self.run(generator, discriminator)
        scalars = dict(result.scalars)
        if not scalars:
            return result
        by_clip = dict(result.by_clip)
        if self.objective.adversarial:
            from_text = self.run_from_text(generator)
            scalars["validation/mel_from_text"] = from_text.scalars["validation/mel"]
            by_clip["mel_from_text"] = from_text.by_clip["mel"]
        scalars["validation/constant_frame_mel"] = self.constant_frame_mel
        scores = self._scores(generator)
        for name, value in means(scores).items():
            scalars[f"validation/{name}"] = value
            by_clip[name] = {clip.clip: clip.metrics[name] for clip in scores if name in clip.metrics}
        return replace(result, scalars=scalars, scores=scores, by_clip=by_clip)

    def run(self, generator: Generator, discriminator: Discriminator | None) -> ValidationResult:
        """Returns each generator loss over all validation clips, and the mel L1 of each speaker. Runs on every rank.

        Restores the networks' mode; leaves the random generators in another state.
        """
        return self._run(generator, discriminator, self.objective)

    def run_from_text(self, generator: Generator) -> ValidationResult:
        """Returns mel and duration loss of clips decoded from text along the recordings' alignments.

        Runs on every rank.
        """
        objective = Objective("mel", self.objective.loss_weights, self.objective.spec, self.segment_frames)
        return self._run(generator, None, objective, decode_from="prior")

    def _run(
        self,
        generator: Generator,
        discriminator: Discriminator | None,
        objective: Objective,
        decode_from: Literal["posterior", "prior"] | None = None,
    ) -> ValidationResult:
        if not self.rows:
            return ValidationResult({})
        batches = self._read()
        denominators = self._denominators(batches, objective)
        names = objective.generator_loss_names
        clips = []
        with _evaluating(generator, self.seed):
            longer = generator.with_segments(self.segment_frames, decode_from or generator.decode_from)
            for batch in batches:
                (row,) = batch.spec.indices
                seed_all(self.seed, row)
                # Without autocast: the voice is used in float32.
                pair = objective.generator_forward(longer, batch.to(self.runtime.device), denominators=denominators)
                by_name = objective.generator_losses(discriminator, pair)
                shares = torch.stack([by_name[name].double() for name in names]).tolist()
                mel = losses.mel_l1(pair.generated_mel, pair.recorded_mel, pair.mel_mask)
                clips.append(ClipMel(row, float(pair.mel_mask.sum()), float(mel), tuple(shares)))
        everywhere = sorted(clip for of_rank in self.runtime.all_gather_object(clips) for clip in of_rank)
        speakers = self._by_speaker(everywhere)
        columns = dict(zip(names, zip(*(clip.shares for clip in everywhere), strict=True), strict=True))
        scalars = {f"validation/{name}": math.fsum(shares) for name, shares in columns.items()}
        rows = [str(clip.row) for clip in everywhere]
        by_clip = {
            name: dict(zip(rows, (share * len(rows) for share in shares), strict=True))
            for name, shares in columns.items()
        }
        return ValidationResult(scalars | curves(speakers), tuple(everywhere), speakers, by_clip=by_clip)

    def _by_speaker(self, clips: Sequence[ClipMel]) -> tuple[SpeakerMel, ...]:
        """Mel L1 of each speaker; empty if there is only one."""
        of_speaker: dict[str, list[ClipMel]] = {}
        for clip in clips:
            of_speaker.setdefault(self._speaker_of[clip.row], []).append(clip)
        if len(of_speaker) == 1:
            return ()
        return tuple(
            SpeakerMel(
                shown_speaker(name), len(mine), sum(clip.total for clip in mine) / sum(clip.frames for clip in mine)
            )
            for name, mine in sorted(of_speaker.items())
        )

    def _read(self) -> list[Batch]:
        """Reads this rank's validation clips, one per batch. Runs on every rank."""
        specs = validation_batches(self.rows, 1, self.runtime.process_index, self.runtime.num_processes)
        batches = list(build_dataloader(self.dataset, specs, workers=0))
        lost = [rejection for batch in batches for rejection in batch.rejections]
        if self.runtime.all_reduce_sum(torch.tensor([len(lost)])).item():
            everywhere = [rejection for of_rank in self.runtime.all_gather_object(lost) for rejection in of_rank]
            raise TooManyRejectedError(
                "Validation clips that could be read at the start cannot be read any more: "
                f"{'; '.join(map(str, everywhere[:5]))}. Restore the files, then --resume_from_checkpoint latest."
            )
        return batches

    def _denominators(self, batches: Sequence[Batch], objective: Objective) -> LossDenominators:
        own = [objective.denominators(batch) for batch in batches]
        counts = torch.tensor(own, dtype=torch.float64).reshape(-1, len(LossDenominators._fields)).sum(0)
        return LossDenominators(*self.runtime.all_reduce_sum(counts).tolist())

    def samples(self, generator: Generator, count: int) -> list[Sample]:
        """Returns the first ``count`` validation sentences as the voice generates them. Involves no other rank.

        Restores the networks' mode; leaves the random generators in another state.
        """
        rows = self.rows[:count]
        batches = build_dataloader(self.dataset, validation_batches(rows, 1, 0, 1), workers=0)
        hop = self.objective.spec.hop
        with _evaluating(generator, self.seed):
            return [
                self._sample(generator.model, batch.trimmed(hop).to(self.runtime.device), self.dataset.text(row))
                for row, batch in zip(rows, batches, strict=True)
            ]

    def _scores(self, generator: Generator) -> list[ClipScore]:
        """Generates the first validation sentences from text and measures them, worst first. Runs on every rank.

        Each sentence has its own seed. Restores the networks' mode; leaves the random generators in another state.
        """
        metrics = self.speech_metrics
        if metrics is None:
            return []
        rows = list(self.rows[: self.scored_clips])[self.runtime.process_index :: self.runtime.num_processes]
        batches = build_dataloader(self.dataset, validation_batches(rows, 1, 0, 1), workers=0)
        hop, device = self.objective.spec.hop, self.runtime.device
        with _evaluating(generator, self.seed):
            scores = [
                self._score(generator.model, batch.trimmed(hop).to(device), row, metrics)
                for row, batch in zip(rows, batches, strict=True)
            ]
        return worst_first([score for of_rank in self.runtime.all_gather_object(scores) for score in of_rank])

    def _score(self, model: VitsModel, batch: Batch, row: int, metrics: SpeechMetrics) -> ClipScore:
        speaker = None if batch.speaker_ids is None else int(batch.speaker_ids)
        seed_all(self.seed, row)
        with torch.no_grad(), clamp_token_durations(model):
            mask = torch.ones_like(batch.tokens)
            spoken = model(batch.tokens, attention_mask=mask, speaker_id=speaker).waveform[0].float().cpu().numpy()
        text = self.dataset.text(row)
        measured = metrics.measure(text, batch.waveform[0].cpu().numpy(), spoken)
        return ClipScore(batch.clip_ids[0], text, measured.transcript, measured.metrics)

    def _sample(self, model: VitsModel, batch: Batch, text: str) -> Sample:
        spec = self.objective.spec
        magnitude = spectrogram(batch.waveform, batch.frame_lengths, spec)
        whole = Generator(model, "posterior", int(batch.frame_lengths)).eval()
        starts = torch.zeros_like(batch.frame_lengths)
        synthesis = whole(batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths, batch.speaker_ids, starts)
        speaker = None if batch.speaker_ids is None else int(batch.speaker_ids)
        with clamp_token_durations(model):
            speech = model(batch.tokens, attention_mask=torch.ones_like(batch.tokens), speaker_id=speaker).waveform
        waveforms = {"recorded": batch.waveform, "decoded": synthesis.waveform[:, 0], "spoken from text": speech}
        tokenizer = self.dataset.tokenizer
        return Sample(
            text=text,
            recorded=batch.waveform[0].cpu().numpy(),
            speech=speech[0].cpu().numpy(),
            mels={title: self._mel(waveform) for title, waveform in waveforms.items()},
            token_of_frame=synthesis.token_of_frame[0].cpu().numpy(),
            tokens=_characters(tokenizer, batch.tokens[0].tolist()),
        )

    def _mel(self, waveform: Tensor) -> NDArray[np.float32]:
        spec = self.objective.spec
        frames = max(spec.frames(waveform.shape[1]), spec.minimum_frames)
        whole = torch.nn.functional.pad(waveform, (0, frames * spec.hop - waveform.shape[1]))
        lengths = torch.tensor([frames], device=waveform.device)
        mel: NDArray[np.float32] = log_mel(spectrogram(whole, lengths, spec), spec)[0].cpu().numpy()
        return mel

    @cached_property
    def constant_frame_mel(self) -> float:
        """Baseline: mel L1 of each band's median over the frames of these clips.

        No single spectrum is closer to the clips, so a voice that has learnt anything is below it.
        """
        places = validation_batches(self.rows, 1, 0, 1)
        batches = build_dataloader(self.dataset, places, workers=0)
        hop = self.objective.spec.hop
        mels = [self._mel(batch.trimmed(hop).to(torch.device("cpu")).waveform) for batch in batches]
        frames = torch.from_numpy(np.concatenate(mels, axis=1))
        return float((frames - frames.median(dim=1, keepdim=True).values).abs().mean())


def _characters(tokenizer: VitsTokenizer, token_ids: Sequence[int]) -> list[str]:
    """Returns the characters of tokens; "" for blanks, whose token may be a letter, as in MMS-TTS."""
    tokens = tokenizer.convert_ids_to_tokens(list(token_ids))
    is_blank = (index % 2 == 0 for index in range(len(tokens))) if tokenizer.add_blank else (False for _ in tokens)
    return ["" if blank else str(token) for token, blank in zip(tokens, is_blank, strict=True)]


@contextmanager
def _evaluating(generator: Generator, seed: int) -> Iterator[None]:
    """Inside, the generator is in eval mode, seeded, and builds no graph."""
    training = generator.training
    generator.eval()
    torch.manual_seed(seed)
    try:
        with torch.no_grad():
            yield
    finally:
        generator.train(training)
