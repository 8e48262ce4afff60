"""Plans the clips of a recording: spans, texts, confidences. A plan is saved, as it takes minutes per hour of audio."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vits_trainer.data.rejections import Reason, RecordingError, Rejection
from vits_trainer.data.segmentation.known_text import agreement, divide_text
from vits_trainer.data.segmentation.reading import (
    SPEECH_RATE_HZ,
    SpanReader,
    declared_duration_s,
    open_recording,
    speech_blocks,
    to_speech,
)
from vits_trainer.data.segmentation.speech import (
    FRAME_S,
    LONGEST_S,
    SHORTEST_S,
    Detector,
    Span,
    find_clips,
    speech_probabilities,
    speech_share,
)
from vits_trainer.data.segmentation.subtitles import parse_subtitles
from vits_trainer.utils import records
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.files import atomic_write
from vits_trainer.utils.strings import counted, one_line

Transcribe = Callable[[NDArray[np.float32]], str]
"""Returns the words of speech, (T,), with full scale at 1, at 16 kHz."""

MIN_CONFIDENCE = 0.7
"""Clips whose text agrees less with the transcript are rejected: 3 in 10 letters differ."""
_MIN_SPEECH = 0.2
"""Share of a subtitle's span that must be speech."""
_RULES = "1"
"""Version of the rules: a change that cuts a recording differently raises it, and saved plans are made anew."""
_TOLERATED_MISSING_S = 1.0
"""MP3 and Ogg declare lengths that are approximate."""
_LONGEST_TRANSCRIBED_S = 60.0
"""Longer passages without a pause are no speech, or useless as clips."""


@dataclass(frozen=True)
class Recording:
    """A recording, and the files with its text."""

    path: Path
    subtitles: Path | None
    text: Path | None


@dataclass(frozen=True)
class Segment:
    """A part of a recording with its text, or the reason to reject it."""

    start_s: float
    end_s: float
    text: str
    confidence: float | None = None
    """Agreement of the text with the transcript, from 0 to 1; None if no text was compared."""
    reason: Reason | None = None
    detail: str = ""
    speaker: str | None = None

    @property
    def rejection(self) -> Rejection | None:
        """Why it is rejected."""
        return None if self.reason is None else Rejection(self.reason, self.detail)


@dataclass(frozen=True)
class _Plan:
    """Content of a saved plan."""

    made_from: dict[str, str]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Planner:
    """What plans are made with."""

    new_detector: Callable[[], Detector]
    """Makes a voice activity detector."""
    transcribe: Transcribe | None
    recognizer: str
    """Name of the recognizer."""
    folder: Path
    """Where plans are saved."""
    longest_s: float = LONGEST_S

    def plan(self, recording: Recording) -> tuple[Segment, ...]:
        """Returns the clips of a recording in their order, from the saved plan if it still applies.

        Raises:
            DataError: another program wrote the file of the plan.
        """
        file = self.folder / f"{recording.path.name}.json"
        made_from = self._made_from(recording)
        if file.exists():
            remedy = "prepare_data did not write it, or it is damaged: move it away."
            saved = records.read_json(file, _Plan, DataError, remedy)
            if saved.made_from == made_from:
                return saved.segments
        segments = tuple(self._segments(recording))
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = asdict(_Plan(made_from, segments))
        atomic_write(file, json.dumps(plan, ensure_ascii=False, indent=1) + "\n")
        return segments

    def _made_from(self, recording: Recording) -> dict[str, str]:
        text = recording.subtitles or recording.text
        return {
            "rules": _RULES,
            "recording": _state(recording.path),
            "text": _state(text) if text else "",
            "recognizer": self.recognizer,
            "longest_s": f"{self.longest_s:g}",
        }

    def _segments(self, recording: Recording) -> list[Segment]:
        try:
            with open_recording(recording.path) as file:
                declared_s = declared_duration_s(file)
                blocks = _advance(speech_blocks(file), declared_s, f"speech in {recording.path.name}")
                probabilities = speech_probabilities(blocks, self.new_detector())
        except RecordingError as error:
            return [_rejected(*error.rejection)]
        duration_s = len(probabilities) * FRAME_S
        if recording.subtitles is not None:
            segments = self._of_subtitles(recording, recording.subtitles, probabilities)
        else:
            segments = self._of_speech(recording, find_clips(probabilities, self.longest_s))
        if not segments:
            segments = [_rejected(Reason.NO_SPEECH, f"no speech in {duration_s:.0f} s")]
        if declared_s is not None and duration_s < declared_s - _TOLERATED_MISSING_S:
            detail = f"{duration_s:.1f} of {declared_s:.1f} s can be decoded; the clips up to there are used"
            segments.append(_rejected(Reason.TRUNCATED_AUDIO, detail))
        return segments

    def _of_subtitles(self, recording: Recording, subtitles: Path, probabilities: NDArray[np.float32]) -> list[Segment]:
        content = _read_text(subtitles)
        if isinstance(content, Rejection):
            return [_rejected(*content)]
        duration_s, segments = len(probabilities) * FRAME_S, []
        for cue in parse_subtitles(content):
            rejection = cue.rejection
            if rejection is None and cue.span.end_s > duration_s + _TOLERATED_MISSING_S:
                rejection = Rejection(Reason.OUTSIDE_RECORDING, f"the recording ends at {duration_s:.1f} s")
            elif rejection is None and speech_share(probabilities, cue.span) < _MIN_SPEECH:
                rejection = Rejection(Reason.NO_SPEECH, f"no speech during {cue.text[:60]!r}")
            reason, detail = rejection or (None, "")
            detail = detail and f"cue {cue.number}: {detail}"
            segments.append(Segment(*cue.span, cue.text, None, reason, detail, cue.speaker))
        if not segments:
            return [_rejected(Reason.EMPTY_TEXT, f"{subtitles.name} has no cues")]
        if self.transcribe is None:
            return segments
        usable = [segment for segment in segments if segment.reason is None]
        heard = self._transcripts(recording, [Span(segment.start_s, segment.end_s) for segment in usable])
        compared = {
            id(segment): _judged(replace(segment, confidence=agreement(segment.text, transcript)), transcript)
            for segment, transcript in zip(usable, heard, strict=True)
        }
        return [compared.get(id(segment), segment) for segment in segments]

    def _of_speech(self, recording: Recording, spans: Sequence[Span]) -> list[Segment]:
        content = _read_text(recording.text) if recording.text else None
        if isinstance(content, Rejection):
            return [_rejected(*content)]
        if self.transcribe is None:
            detail = "has no text: add NAME.srt, NAME.vtt or NAME.txt, or give --transcribe"
            return [_rejected(Reason.EMPTY_TEXT, detail)] if spans else []
        transcripts = self._transcripts(recording, spans)
        if content is None:
            heard = zip(spans, transcripts, strict=True)
            return [self._within_limits(Segment(*span, one_line(text))) for span, text in heard]
        division = divide_text(content, transcripts, [span.duration_s for span in spans])
        segments = []
        for span, transcript, part in zip(spans, transcripts, division.parts, strict=True):
            segment = Segment(*span, part.text, part.confidence if part.text else None)
            if not part.text:
                detail = f"nothing in {recording.text and recording.text.name} is like {transcript[:60]!r}"
                segment = replace(segment, reason=Reason.NOT_IN_TEXT, detail=detail)
            judged = _judged(self._within_limits(segment), transcript)
            if judged.reason is None and not part.edges_agree:
                detail = f"its first or last words are uncertain; the recognizer heard {transcript[:60]!r}"
                judged = replace(judged, reason=Reason.LOW_CONFIDENCE, detail=detail)
            segments.append(judged)
        return [*segments, *map(_unspoken, division.unspoken)]

    def _within_limits(self, segment: Segment) -> Segment:
        duration_s = segment.end_s - segment.start_s
        if duration_s > self.longest_s:
            detail = f"{duration_s:.1f} s without a pause, at most {self.longest_s:g} s"
            return replace(segment, reason=Reason.TOO_LONG, detail=detail)
        if duration_s < SHORTEST_S:
            detail = f"{duration_s:.1f} s between long pauses, at least {SHORTEST_S:g} s"
            return replace(segment, reason=Reason.TOO_SHORT, detail=detail)
        return segment

    def _transcripts(self, recording: Recording, spans: Sequence[Span]) -> list[str]:
        """Returns the transcript of each span; empty if it is silent or too long."""
        transcripts = []
        with open_recording(recording.path) as file:
            reader = SpanReader(file)
            for span in tqdm(spans, f"transcribe {recording.path.name}", unit="clip", leave=False, disable=None):
                transcripts.append(self._transcript(reader, span))
        return transcripts

    def _transcript(self, reader: SpanReader, span: Span) -> str:
        if self.transcribe is None or span.duration_s > _LONGEST_TRANSCRIBED_S:
            return ""
        try:
            samples = to_speech(reader.read_file(*span), _LONGEST_TRANSCRIBED_S + 1)
        except RecordingError:  # The preparation rejects the clip, with this reason.
            return ""
        return self.transcribe(samples)


def _advance(
    blocks: Iterator[NDArray[np.float32]], declared_s: float | None, name: str
) -> Iterator[NDArray[np.float32]]:
    total_s = None if declared_s is None else round(declared_s)
    with tqdm(desc=name, total=total_s, unit="s", leave=False, disable=None) as bar:
        for block in blocks:
            yield block
            bar.update(len(block) / SPEECH_RATE_HZ)


def _judged(segment: Segment, transcript: str) -> Segment:
    """Rejects a segment whose text and transcript differ too much."""
    if segment.reason is not None or segment.confidence is None or segment.confidence >= MIN_CONFIDENCE:
        return segment
    detail = f"{segment.confidence:.2f}, at least {MIN_CONFIDENCE:g}; the recognizer heard {transcript[:60]!r}"
    return replace(segment, reason=Reason.LOW_CONFIDENCE, detail=detail)


def _unspoken(passage: str) -> Segment:
    shown = passage if len(passage) <= 60 else f"{passage[:60]}..."
    detail = f"{counted(len(passage.split()), 'word')} of the text in no clip: {shown!r}"
    return Segment(0.0, 0.0, passage, None, Reason.UNSPOKEN_TEXT, detail)


def _rejected(reason: Reason, detail: str) -> Segment:
    return Segment(0.0, 0.0, "", None, reason, detail)


def _state(path: Path) -> str:
    status = path.stat()
    return f"{path.name}, {status.st_size} bytes, {status.st_mtime_ns}"


def _read_text(path: Path) -> str | Rejection:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        detail = f"{path.name}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        return Rejection(Reason.MALFORMED_ROW, detail)
    except OSError as error:
        return Rejection(Reason.MALFORMED_ROW, f"{path.name}: cannot be read ({error.strerror})")
