"""Compares voices on held-out sentences with objective speech metrics."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from vits_trainer.data.audio import AUDIO_ENDINGS, MAX_DECODED_S, RecordingError, to_pcm16, write_pcm16_wav
from vits_trainer.data.decoding import decode_mono
from vits_trainer.data.prepared import PreparedData
from vits_trainer.evaluation.speech_metrics import ClipScore, SpeechMetrics, bootstrap_interval, means, worst_first
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.utils.errors import DataError, TooManyRejectedError
from vits_trainer.utils.strings import counted, shown_speaker

Samples = NDArray[np.float32]
Synthesizer = Callable[[int], Samples]
"""Returns speech, (T,), for a row of the prepared folder."""

_MAX_WORST_CLIPS = 5
RECORDED = "recorded"
"""Name of the recordings, evaluated like a voice: the best values that the metrics can reach."""


@dataclass(frozen=True)
class VoiceEvaluation:
    """Metrics of one voice."""

    name: str
    clips: Sequence[ClipScore]
    """Sorted, the worst first."""
    real_time_factor: float | None
    """Seconds of computation per second of speech; None if nothing was synthesized."""

    def summary(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Returns mean, 95 % interval and number of clips per metric, for metrics that any clip has."""
        statistics = {}
        for name in names:
            values = [clip.metrics[name] for clip in self.clips if name in clip.metrics]
            if values:
                low, high = bootstrap_interval(values)
                statistics[name] = {"mean": float(np.mean(values)), "low": low, "high": high, "clips": len(values)}
        return statistics

    def difference_to(self, other: "VoiceEvaluation", names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Returns mean and 95 % interval of this voice minus ``other`` per metric, over the clips that both have."""
        others = {clip.clip: clip.metrics for clip in other.clips}
        statistics = {}
        for name in names:
            pairs = [(clip.metrics.get(name), others.get(clip.clip, {}).get(name)) for clip in self.clips]
            differences = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            if differences:
                low, high = bootstrap_interval(differences)
                statistics[name] = {"mean": float(np.mean(differences)), "low": low, "high": high}
        return statistics


def evaluate_voice(
    name: str,
    synthesize: Synthesizer,
    prepared: PreparedData,
    rows: Sequence[int],
    metrics: SpeechMetrics,
    timed: bool,
) -> VoiceEvaluation:
    """Compares speech for each row with its recording; ``timed`` adds the real-time factor of ``synthesize``.

    Raises:
        TooManyRejectedError: a recording cannot be read.
    """
    texts, names = prepared.rows.text, prepared.rows.filename
    clips, spoken_s, elapsed_s = [], 0.0, 0.0
    for row in rows:
        recorded = read_prepared_clip(prepared, row)
        began = time.perf_counter()
        spoken = synthesize(row)
        elapsed_s += time.perf_counter() - began
        spoken_s += len(spoken) / prepared.sampling_rate
        measured = metrics.measure(texts[row], recorded, spoken)
        clips.append(ClipScore(names[row], texts[row], measured.transcript, measured.metrics))
    return VoiceEvaluation(name, worst_first(clips), elapsed_s / spoken_s if timed and spoken_s else None)


def voice_synthesizer(voice: Voice, prepared: PreparedData, seed: int) -> Synthesizer:
    """Speaks each row's text with ``voice``, as the row's speaker if it has several; deterministic."""
    texts, speakers = prepared.rows.text, prepared.rows.speaker
    has_speakers = voice.model.config.num_speakers > 1

    def speak(row: int) -> Samples:
        speaker = speakers[row] if has_speakers else None
        return voice.synthesize(texts[row], SynthesisOptions(speaker=speaker, seed=seed))

    return speak


def recordings_synthesizer(folder: Path, prepared: PreparedData, rows: Sequence[int]) -> Synthesizer:
    """Reads speech of another system from audio files in ``folder``, named like the clips, in any format.

    Raises:
        DataError: files are missing.
    """
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in AUDIO_ENDINGS}
    names = [Path(name).stem for name in prepared.rows.filename]
    missing = [names[row] for row in rows if names[row] not in files]
    if missing:
        raise DataError(
            f"{folder} is not a voice, and as a folder of speech it lacks {len(missing)} of {len(rows)} clips, such as "
            f"{missing[0]}. Give a voice's folder or Hub name, or audio files named as in {prepared.root}/wavs."
        )

    def speak(row: int) -> Samples:
        path = files[names[row]]
        try:
            decoded = decode_mono(path.read_bytes(), 0, MAX_DECODED_S)
        except RecordingError as error:
            raise DataError(f"{path} cannot be read ({error}). Replace it.") from error
        if not len(decoded.samples):
            raise DataError(f"{path} has no samples. Replace it.")
        samples: Samples = soxr.resample(decoded.samples, decoded.rate_hz, prepared.sampling_rate)
        return samples

    return speak


def read_prepared_clip(prepared: PreparedData, row: int) -> Samples:
    """Reads the recording of a row, (T,), with full scale at 1.

    Raises:
        TooManyRejectedError: the recording cannot be read.
    """
    name = prepared.rows.filename[row]
    try:
        pcm, _ = prepared.recordings.read(row)
    except RecordingError as error:
        raise TooManyRejectedError(
            f"{prepared.root}: the validation clip {name} cannot be read ({error}). Restore it, or prepare again."
        ) from error
    return _to_float(pcm)


def _to_float(pcm: NDArray[np.int16]) -> Samples:
    return pcm.astype(np.float32) / np.float32(32768)


def saving_to_folder(synthesize: Synthesizer, folder: Path, prepared: PreparedData) -> Synthesizer:
    """Wraps a synthesizer: its speech is also written to ``folder``, as files named like the clips."""
    folder.mkdir(parents=True, exist_ok=True)
    names = prepared.rows.filename

    def speak(row: int) -> Samples:
        spoken = synthesize(row)
        write_pcm16_wav(folder / names[row], to_pcm16(spoken), prepared.sampling_rate)
        return spoken

    return speak


def to_record(evaluations: Sequence[VoiceEvaluation], names: Sequence[str]) -> dict[str, Any]:
    """Returns JSON values; the first evaluation is of the recordings, the second is the baseline of the others."""
    base = evaluations[1]
    return {
        "figures": list(names),
        "voices": {
            one.name: {
                "figures": one.summary(names),
                "real_time_factor": one.real_time_factor,
                **({f"beyond {base.name}": one.difference_to(base, names)} if one not in evaluations[:2] else {}),
                "clips": [clip.to_dict() for clip in one.clips],
            }
            for one in evaluations
        },
    }


def to_tables(evaluations: Sequence[VoiceEvaluation], names: Sequence[str], speaker_of: Mapping[str, str]) -> str:
    """Formats the evaluations, ordered as in :func:`to_record`, as text tables; of several speakers one each, too.

    Args:
        evaluations: of the recordings, then of the voices.
        names: of the metrics.
        speaker_of: speaker of each clip, by its name.
    """
    clips = len(evaluations[0].clips)
    width = max(len(evaluation.name) for evaluation in evaluations)
    head = f"{'':{width}}" + _row([*names, "real_time_factor"])
    lines = [f"{counted(clips, 'clip')}; means with 95 % intervals", "", head]
    for evaluation in evaluations:
        summary = evaluation.summary(names)
        cells = [_cell(summary[name]) if name in summary else "-" for name in names]
        rtf = evaluation.real_time_factor
        cells.append("-" if rtf is None else f"{rtf:.3f}")
        lines.append(f"{evaluation.name:{width}}" + _row(cells))
    base = evaluations[1]
    for evaluation in evaluations[2:]:
        difference = evaluation.difference_to(base, names)
        cells = [_cell(difference[name], "+") if name in difference else "-" for name in names]
        lines += ["", f"{evaluation.name} minus {base.name}, paired by clip:", f"{'':{width}}" + _row(cells)]
    for evaluation in evaluations[1:]:
        lines += _speaker_table(evaluation, names, speaker_of)
    for evaluation in evaluations[1:]:
        lines += ["", f"worst clips of {evaluation.name}"]
        for clip in evaluation.clips[:_MAX_WORST_CLIPS]:
            metrics = " ".join(f"{name} {value:.3f}" for name, value in clip.metrics.items())
            transcript = f"   transcript: {clip.transcript[:60]!r}" if clip.transcript is not None else ""
            lines.append(f"  {clip.clip}  {metrics}   {clip.text[:60]!r}{transcript}")
    return "\n".join(lines)


def _speaker_table(evaluation: VoiceEvaluation, names: Sequence[str], speaker_of: Mapping[str, str]) -> list[str]:
    """Returns the means of each speaker's clips; nothing for clips of one speaker."""
    speakers = sorted({speaker_of[clip.clip] for clip in evaluation.clips})
    if len(speakers) < 2:
        return []
    width = max(len(shown_speaker(speaker)) for speaker in speakers)
    lines = ["", f"{evaluation.name} by speaker", f"{'':{width}}" + _row([*names, "clips"])]
    for speaker in speakers:
        clips = [clip for clip in evaluation.clips if speaker_of[clip.clip] == speaker]
        of_speaker = means(clips)
        cells = [f"{of_speaker[name]:.3f}" if name in of_speaker else "-" for name in names]
        lines.append(f"{shown_speaker(speaker):{width}}" + _row([*cells, str(len(clips))]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return "".join(f"  {cell:>20}" for cell in cells)


def _cell(statistics: Mapping[str, float], sign: str = "") -> str:
    return f"{statistics['mean']:{sign}.3f} [{statistics['low']:{sign}.2f}, {statistics['high']:{sign}.2f}]"
