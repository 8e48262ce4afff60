"""Validation: held-out clips through the same objective, with the same noise and segments each time."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import VitsModel

from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import Batch, PreparedClipDataset
from vits_trainer.data.sampler import validation_batches
from vits_trainer.data.streaming import StreamingClipDataset
from vits_trainer.distributed.runtime import Runtime, seed_all
from vits_trainer.evaluation.speakers import SpeakerMel, curves
from vits_trainer.evaluation.speech_metrics import ClipScore, SpeechMetrics, worst_first
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.pretrained import clamp_token_durations
from vits_trainer.models.spectrogram import log_mel, spectrogram
from vits_trainer.tracking.plots import Sample
from vits_trainer.training import losses
from vits_trainer.training.objective import LossDenominators, Objective, SegmentPair
from vits_trainer.utils.errors import TooManyRejectedError


@dataclass(frozen=True)
class ValidationResult:
    """What came of the held-out clips."""

    scalars: dict[str, float]
    """Each generator loss as ``validation/<loss>``, and the speakers' curves; empty where no clip is held out."""
    speakers: tuple[SpeakerMel, ...]
    """In the order of their names; empty where the held-out clips are of one."""


class Validation:
    """The held-out clips, and how to judge networks by them."""

    def __init__(
        self,
        runtime: Runtime,
        objective: Objective,
        reader: PreparedClipDataset | StreamingClipDataset,
        rows: Sequence[int],
        batch_size: int,
        seed: int,
    ) -> None:
        self.runtime = runtime
        self.objective = objective
        self.reader = reader
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self._speaker_of = {row: reader.speaker(row) for row in rows}

    @property
    def speakers(self) -> int:
        """How many of them the held-out clips are of."""
        return len(set(self._speaker_of.values()))

    def find_unreadable(self) -> list[Incident]:
        """Reads all held-out clips once: those that cannot be used are left out from now on. Runs on every rank.

        Returns:
            Why, for each that is left out, on every rank the same.
        """
        bad = self.runtime.on_main_then_broadcast(
            lambda: {row: record for row in self.rows if isinstance(record := self.reader[row], Incident)}
        )
        self.rows = [row for row in self.rows if row not in bad]
        return [replace(incident, stage="validation") for incident in bad.values()]

    def run(self, generator: Generator, discriminator: Discriminator | None) -> ValidationResult:
        """Each generator loss over all held-out clips, and the mel L1 of each speaker. Runs on every rank.

        Leaves the networks in the mode they were in, and the random generators elsewhere.
        """
        if not self.rows:
            return ValidationResult({}, ())
        places = validation_batches(self.rows, self.batch_size, self.runtime.rank, self.runtime.world_size)
        batches = list(build_dataloader(self.reader, places, workers=0))
        own = [self.objective.denominators(batch) for batch in batches]
        counts = torch.tensor(own, dtype=torch.float64).reshape(-1, len(LossDenominators._fields)).sum(0)
        normalisers = LossDenominators(*self.runtime.all_reduce_sum(counts).tolist())
        lost = [rejection for batch in batches for rejection in batch.rejections]
        if self.runtime.all_reduce_sum(torch.tensor([len(lost)])).item():
            told = [rejection for found in self.runtime.all_gather_object(lost) for rejection in found]
            raise TooManyRejectedError(
                f"Held-out clips that were good at the start cannot be read any more: {'; '.join(map(str, told[:5]))}. "
                "Put the files back, then --resume_from_checkpoint auto."
            )
        names = self.objective.generator_loss_names
        totals = dict.fromkeys(names, torch.zeros((), dtype=torch.float64))
        speakers = sorted(set(self._speaker_of.values()))
        by_speaker = torch.zeros(len(speakers), 3, dtype=torch.float64)
        training = generator.training
        generator.eval()
        torch.manual_seed(self.seed)
        with torch.no_grad():
            for batch in batches:
                with self.runtime.autocast():
                    comparison = self.objective.generator_forward(
                        generator, batch.to(self.runtime.device), normalisers=normalisers
                    )
                    found = self.objective.generator_losses(discriminator, comparison)
                totals = {name: totals[name] + found[name].double().cpu() for name in names}
                for row, parts in zip(batch.spec.indices, self._mel_by_clip(comparison), strict=True):
                    by_speaker[speakers.index(self._speaker_of[row])] += parts
        generator.train(training)
        sums = self.runtime.all_reduce_sum(torch.stack([totals[name] for name in names])).tolist()
        table = zip(speakers, self.runtime.all_reduce_sum(by_speaker).tolist(), strict=True)
        met = tuple(SpeakerMel(name, int(clips), mel / frames) for name, (clips, frames, mel) in table if clips)
        met = met if len(met) > 1 else ()
        scalars = {f"validation/{name}": value for name, value in zip(names, sums, strict=True)}
        return ValidationResult(scalars | curves(met), met)

    def mel_from_text(self, generator: Generator) -> float:
        """Mel L1 of segments decoded from the text alone, along the recordings' alignments. Runs on every rank."""
        spoken = copy.copy(generator)  # shares the model; a new Generator would freeze its posterior encoder
        spoken.decode_from = "prior"
        objective = Objective("mel", self.objective.loss_weights, self.objective.spec, generator.segment_frames)
        alone = Validation(self.runtime, objective, self.reader, self.rows, self.batch_size, self.seed)
        return alone.run(spoken, None).scalars["validation/mel"]

    def samples(self, generator: Generator, count: int) -> list[Sample]:
        """The first ``count`` held-out sentences as the voice has them now. Needs no other rank.

        Leaves the networks in the mode they were in, and the random generators elsewhere.
        """
        training = generator.training
        generator.eval()
        torch.manual_seed(self.seed)
        with torch.no_grad():
            places = validation_batches(self.rows[:count], 1, 0, 1)
            batches = build_dataloader(self.reader, places, workers=0)
            found = [
                self._sample(generator.model, batch.trimmed(self.objective.spec.hop).to(self.runtime.device))
                for batch in batches
            ]
        generator.train(training)
        return found

    def scores(self, generator: Generator, jury: SpeechMetrics, count: int) -> list[ClipScore]:
        """What a jury says of the first ``count`` held-out sentences, spoken now: the worst first. Runs on every rank.

        Each is spoken with noise of its own, the same each time. Leaves the networks in the mode they were in, and the
        random generators elsewhere.
        """
        training = generator.training
        generator.eval()
        mine = list(self.rows[:count])[self.runtime.rank :: self.runtime.world_size]
        places = validation_batches(mine, 1, 0, 1)
        found = [
            self._score(generator.model, batch.trimmed(self.objective.spec.hop).to(self.runtime.device), row, jury)
            for row, batch in zip(mine, build_dataloader(self.reader, places, workers=0), strict=True)
        ]
        generator.train(training)
        return worst_first([score for told in self.runtime.all_gather_object(found) for score in told])

    def _mel_by_clip(self, comparison: SegmentPair) -> Tensor:
        """(B, 3) float64: one clip, its segment's frames, its mel L1 summed over them. A CPU-GPU sync point."""
        clips = zip(comparison.generated_mel, comparison.recorded_mel, comparison.mel_mask, strict=True)
        mels = [losses.mel_l1(generated[None], recorded[None], mask[None]) for generated, recorded, mask in clips]
        frames = comparison.mel_mask.sum(dim=(1, 2))
        return torch.stack([torch.ones_like(frames), frames, torch.stack(mels)], dim=1).double().cpu()

    def _score(self, model: VitsModel, batch: Batch, row: int, jury: SpeechMetrics) -> ClipScore:
        speaker = None if batch.speaker_ids is None else int(batch.speaker_ids)
        seed_all(self.seed, row)
        with torch.no_grad(), clamp_token_durations(model):
            mask = torch.ones_like(batch.tokens)
            spoken = model(batch.tokens, attention_mask=mask, speaker_id=speaker).waveform[0].float().cpu().numpy()
        text = self.reader.text(row)
        judgement = jury.measure(text, batch.waveform[0].cpu().numpy(), spoken)
        return ClipScore(batch.clip_ids[0], text, judgement.transcript, judgement.metrics)

    def _sample(self, model: VitsModel, batch: Batch) -> Sample:
        spec = self.objective.spec
        magnitude = spectrogram(batch.waveform, batch.frame_lengths, spec)
        whole = Generator(model, "posterior", int(batch.frame_lengths)).eval()
        starts = torch.zeros_like(batch.frame_lengths)
        synthesis = whole(batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths, batch.speaker_ids, starts)
        speaker = None if batch.speaker_ids is None else int(batch.speaker_ids)
        with clamp_token_durations(model):
            speech = model(batch.tokens, attention_mask=torch.ones_like(batch.tokens), speaker_id=speaker).waveform
        waveforms = {"recorded": batch.waveform, "decoded": synthesis.waveform[:, 0], "spoken from text": speech}
        tokenizer = self.reader.tokenizer
        return Sample(
            text=tokenizer.decode(batch.tokens[0]),
            recorded=batch.waveform[0].cpu().numpy(),
            speech=speech[0].cpu().numpy(),
            mels={title: self._mel(waveform) for title, waveform in waveforms.items()},
            token_of_frame=synthesis.token_of_frame[0].cpu().numpy(),
            tokens=tokenizer.convert_ids_to_tokens(batch.tokens[0].tolist()),
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
        """Mel L1 of the best constant: each band's median over the frames of these very clips.

        What a voice must beat to have learnt anything: no single spectrum is closer to the clips.
        """
        places = validation_batches(self.rows, 1, 0, 1)
        batches = build_dataloader(self.reader, places, workers=0)
        hop = self.objective.spec.hop
        mels = [self._mel(batch.trimmed(hop).to(torch.device("cpu")).waveform) for batch in batches]
        frames = torch.from_numpy(np.concatenate(mels, axis=1))
        return float((frames - frames.median(dim=1, keepdim=True).values).abs().mean())
