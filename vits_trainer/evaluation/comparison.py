"""Voices side by side: each says the held-out sentences, and a jury compares them with the recordings."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.audio import RecordingError, read_pcm16_wav, to_pcm16, write_pcm16_wav
from vits_trainer.data.prepared import PreparedData
from vits_trainer.evaluation.speech_metrics import ClipScore, SpeechMetrics, bootstrap_interval, worst_first
from vits_trainer.evaluation.synthesis import SynthesisOptions, Voice
from vits_trainer.utils.errors import DataError, TooManyRejectedError

Samples = NDArray[np.float32]
Synthesizer = Callable[[int], Samples]
"""From a row of the prepared folder to what is said there, (T,)."""

_WORST_SHOWN = 5
RECORDED = "recorded"
"""The recordings themselves, judged like any voice: what the figures are where nothing could be better."""


@dataclass(frozen=True)
class VoiceEvaluation:
    """What the jury says of one voice."""

    name: str
    clips: Sequence[ClipScore]
    """The worst first."""
    real_time_factor: float | None
    """Seconds that it takes to say a second; None where nothing was synthesised."""

    def summary(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Mean, 95 % interval and number of clips of each figure that any clip has."""
        found = {}
        for name in names:
            values = [clip.figures[name] for clip in self.clips if name in clip.figures]
            if values:
                low, high = bootstrap_interval(values)
                found[name] = {"mean": float(np.mean(values)), "low": low, "high": high, "clips": len(values)}
        return found

    def difference_to(self, other: "VoiceEvaluation", names: Sequence[str]) -> dict[str, dict[str, float]]:
        """This voice minus the other, over the clips that both have: mean and 95 % interval of each figure."""
        others = {clip.clip: clip.figures for clip in other.clips}
        found = {}
        for name in names:
            pairs = [(clip.figures.get(name), others.get(clip.clip, {}).get(name)) for clip in self.clips]
            differences = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            if differences:
                low, high = bootstrap_interval(differences)
                found[name] = {"mean": float(np.mean(differences)), "low": low, "high": high}
        return found


def evaluate_voice(
    name: str,
    speaker: Synthesizer,
    prepared: PreparedData,
    rows: Sequence[int],
    metrics: SpeechMetrics,
    synthesises: bool,
) -> VoiceEvaluation:
    """Lets ``speaker`` say each row, and compares that with the recording; ``synthesises`` times it.

    Raises:
        TooManyRejectedError: a recording cannot be read.
    """
    texts, names = prepared.rows["text"], prepared.rows["filename"]
    clips, spoken_s, took_s = [], 0.0, 0.0
    for row in rows:
        recorded = read_prepared_clip(prepared, row)
        began = time.perf_counter()
        spoken = speaker(row)
        took_s += time.perf_counter() - began
        spoken_s += len(spoken) / prepared.sampling_rate
        found = metrics.measure(texts[row], recorded, spoken)
        clips.append(ClipScore(names[row], texts[row], found.transcript, found.figures))
    return VoiceEvaluation(name, worst_first(clips), took_s / spoken_s if synthesises and spoken_s else None)


def voice_synthesizer(voice: Voice, prepared: PreparedData, seed: int) -> Synthesizer:
    """A voice that says each row's text, as the row's speaker where it has several; the same each time."""
    texts, speakers = prepared.rows["text"], prepared.rows["speaker"]
    several = voice.model.config.num_speakers > 1

    def speak(row: int) -> Samples:
        return voice.speak(texts[row], SynthesisOptions(speaker=speakers[row] if several else None, seed=seed))

    return speak


def recordings_synthesizer(folder: Path, prepared: PreparedData, rows: Sequence[int]) -> Synthesizer:
    """Recordings of the same sentences in a folder, under the clips' names: speech of any other system.

    Raises:
        DataError: some are missing, or at another rate.
    """
    names = prepared.rows["filename"]
    missing = [names[row] for row in rows if not (folder / names[row]).is_file()]
    if missing:
        raise DataError(
            f"{folder} is no voice, and as a folder of speech it lacks {len(missing)} of {len(rows)} clips, such as "
            f"{missing[0]}: give a voice's folder or Hub name, or WAV files named as in {prepared.root}/wavs."
        )

    def speak(row: int) -> Samples:
        pcm, rate_hz = read_pcm16_wav(folder / names[row])
        if rate_hz != prepared.sampling_rate:
            raise DataError(
                f"{folder / names[row]} is at {rate_hz} Hz, the recordings at {prepared.sampling_rate} Hz: resample it."
            )
        return _full_scale_at_1(pcm)

    return speak


def read_prepared_clip(prepared: PreparedData, row: int) -> Samples:
    """The recording of a row, (T,), full scale at 1.

    Raises:
        TooManyRejectedError: it cannot be read.
    """
    name = prepared.rows["filename"][row]
    try:
        pcm, _ = prepared.recordings.read(row)
    except RecordingError as error:
        raise TooManyRejectedError(
            f"{prepared.root}: the held-out clip {name} cannot be read ({error}). Put it back, or prepare anew."
        ) from error
    return _full_scale_at_1(pcm)


def _full_scale_at_1(pcm: NDArray[np.int16]) -> Samples:
    return pcm.astype(np.float32) / np.float32(32768)


def keeping(speaker: Synthesizer, folder: Path, prepared: PreparedData) -> Synthesizer:
    """The same speaker; what it says is also written to ``folder``, under the clips' names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = prepared.rows["filename"]

    def speak(row: int) -> Samples:
        spoken = speaker(row)
        write_pcm16_wav(folder / names[row], to_pcm16(spoken), prepared.sampling_rate)
        return spoken

    return speak


def to_record(verdicts: Sequence[VoiceEvaluation], names: Sequence[str]) -> dict[str, Any]:
    """For JSON: the first verdict is the recordings', the second the voice that the others are compared with."""
    base = verdicts[1]
    return {
        "figures": list(names),
        "voices": {
            verdict.name: {
                "figures": verdict.summary(names),
                "real_time_factor": verdict.real_time_factor,
                **({f"beyond {base.name}": verdict.difference_to(base, names)} if verdict not in verdicts[:2] else {}),
                "clips": [clip.to_dict() for clip in verdict.clips],
            }
            for verdict in verdicts
        },
    }


def to_tables(verdicts: Sequence[VoiceEvaluation], names: Sequence[str]) -> str:
    """For people, of the same."""
    clips = len(verdicts[0].clips)
    width = max(len(verdict.name) for verdict in verdicts)
    head = f"{'':{width}}" + _row([*names, "real_time_factor"])
    lines = [f"{clips} clips; means with 95 % intervals", "", head]
    for verdict in verdicts:
        summary = verdict.summary(names)
        cells = [_cell(summary[name]) if name in summary else "-" for name in names]
        rtf = verdict.real_time_factor
        cells.append("-" if rtf is None else f"{rtf:.3f}")
        lines.append(f"{verdict.name:{width}}" + _row(cells))
    base = verdicts[1]
    for verdict in verdicts[2:]:
        beyond = verdict.difference_to(base, names)
        cells = [_cell(beyond[name], "+") if name in beyond else "-" for name in names]
        lines += ["", f"{verdict.name} minus {base.name}, clip by clip:", f"{'':{width}}" + _row(cells)]
    for verdict in verdicts[1:]:
        lines += ["", f"worst clips of {verdict.name}"]
        for clip in verdict.clips[:_WORST_SHOWN]:
            figures = " ".join(f"{name} {value:.3f}" for name, value in clip.figures.items())
            heard = f"   heard: {clip.transcript[:60]!r}" if clip.transcript is not None else ""
            lines.append(f"  {clip.clip}  {figures}   {clip.text[:60]!r}{heard}")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "".join(f"  {cell:>20}" for cell in cells)


def _cell(found: Mapping[str, float], sign: str = "") -> str:
    return f"{found['mean']:{sign}.3f} [{found['low']:{sign}.2f}, {found['high']:{sign}.2f}]"
