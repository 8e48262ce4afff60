"""Audio input and output, and the reasons to reject a clip. Imports no torch, as worker processes import this."""

import io
import math
import re
import struct
import wave
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from vits_trainer.utils.errors import DataError

AUDIO_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus")

MIN_DURATION_S = 0.1
"""Shorter clips have fewer than the three frames of 256 samples that training needs at 8 kHz."""
MAX_DURATION_S = 60.0
"""Longer recordings are rejected before decoding."""
MAX_DECODED_S = 300.0
"""Longer recordings are not decoded even if trimming might shorten them: an hour of audio would fill the memory."""
SILENCE_BELOW_LOUDEST_DB = 40.0
"""Frames at either end are silence if they are quieter than the loudest frame by more than this."""
SILENCE_FRAME_S = 0.02
SILENCE_MARGIN_S = 0.05
"""Silence to keep at each end: quiet sounds start and end in it."""
MAX_FILE_BYTES = 256 * 2**20
MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4000, 192_000

_PLAIN_HEADER = re.compile(
    rb"RIFF.{4}WAVEfmt \x10\0\0\0\x01\0\x01\0(?P<rate>.{4}).{4}\x02\0\x10\0data(?P<size>.{4})", re.DOTALL
)
"""Header of the files of :func:`write_pcm16_wav`. Parsing it is four times as fast as the ``wave`` module."""
_LENGTH_UNKNOWN_BYTES = 0x7FFF0000
"""Programs that write WAV to a pipe declare this size or more, as they do not know the length."""
_MP3_FRAME_SAMPLES = 1152
PCM16_BYTES = 2
WAV_HEADER_BYTES = 44
"""Header size of the files of :func:`write_pcm16_wav`."""
_PCM16_PEAK = 32767 / 32768
"""Largest 16-bit sample."""


class Reason(StrEnum):
    """Reasons to reject a clip, as written to rejected.csv and rejected.jsonl, in the order of the checks."""

    TOO_FEW_UPVOTES = "too-few-upvotes"
    """Common Voice: fewer up-votes than --min_upvotes."""
    TOO_MANY_DOWNVOTES = "too-many-downvotes"
    """Common Voice: more down-votes than --max_downvotes."""
    PATH_OUTSIDE = "path-outside"
    """The metadata refers to a file outside the data set's folder."""
    MISSING_FILE = "missing-file"
    """The file does not exist, or the row has no audio."""
    DUPLICATE = "duplicate"
    """The metadata already listed the same file."""
    EMPTY_TEXT = "empty-text"
    """The text is empty."""
    TRUNCATED_AUDIO = "truncated-audio"
    """The file declares more samples than it contains."""
    UNREADABLE_AUDIO = "unreadable-audio"
    """Damaged, or in a format that libsndfile does not support."""
    UNSUPPORTED_AUDIO = "unsupported-audio"
    """More than 8 channels, or a sampling rate outside 4 to 192 kHz."""
    EMPTY_AUDIO = "empty-audio"
    """No samples."""
    TOO_SHORT = "too-short"
    """Less than --min_duration_s, after trimming."""
    TOO_LONG = "too-long"
    """More than --max_duration_s, after trimming."""
    NON_FINITE_AUDIO = "non-finite-audio"
    """NaN or Inf samples."""
    TOO_QUIET = "too-quiet"
    """Quieter than --min_loudness_dbfs."""
    TEXT_TOO_LONG = "text-too-long"
    """More tokens than the clip has frames: no alignment exists."""
    WRONG_RATE = "wrong-rate"
    """In training: the sampling rate differs from the voice's."""
    NO_KNOWN_CHARACTERS = "no-known-characters"
    """In training: no character of the text is in the voice's vocabulary."""


class Rejection(NamedTuple):
    """Why one clip is rejected: the reason, by which rejections are counted, and details."""

    reason: Reason
    detail: str


class RecordingError(DataError):
    """A recording cannot be used. Unlike libsndfile's errors, it can be pickled."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection)
        self.rejection = rejection

    def __str__(self) -> str:
        return f"{self.rejection.reason}: {self.rejection.detail}"


def read_recording(
    source: Path | bytes, min_duration_s: float = MIN_DURATION_S, max_duration_s: float = MAX_DURATION_S
) -> tuple[NDArray[np.float32], int]:
    """Decodes a recording in any format of libsndfile (WAV, FLAC, MP3, Ogg ...) and mixes it to mono.

    Args:
        source: path or content of a file.
        min_duration_s: shorter recordings are rejected.
        max_duration_s: longer recordings are rejected.

    Returns:
        Samples, (T,), with full scale at 1, and the sampling rate in Hz.

    Raises:
        RecordingError: with one of the audio reasons of :class:`Reason`. Length, channels and rate are checked before
            decoding.
    """
    content = _read_content(source)
    _require_complete_wav(content)
    try:
        with sf.SoundFile(io.BytesIO(content)) as recording:
            _require_usable_shape(recording.frames, recording.samplerate, recording.channels)
            require_duration(recording.frames / recording.samplerate, min_duration_s, max_duration_s)
            samples = recording.read(dtype="float32", always_2d=True)  # (T, channels)
            # The length of an MP3 without a seek table is an estimate.
            tolerance = 2 * _MP3_FRAME_SAMPLES if "MPEG" in recording.subtype else 0
            if len(samples) < recording.frames - tolerance:
                reject(Reason.TRUNCATED_AUDIO, f"{len(samples)} of {recording.frames} samples can be decoded")
            rate_hz = int(recording.samplerate)
    except sf.SoundFileError as error:
        reject(Reason.UNREADABLE_AUDIO, _plain_message(error))
    if not np.isfinite(samples).all():
        reject(Reason.NON_FINITE_AUDIO, f"{np.count_nonzero(~np.isfinite(samples))} samples")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    return mono, rate_hz


def require_duration(duration_s: float, min_duration_s: float, max_duration_s: float) -> None:
    """Raises :class:`RecordingError` unless ``duration_s`` is within the two limits, inclusive."""
    if duration_s < min_duration_s:
        reject(Reason.TOO_SHORT, f"{duration_s:.3f} s, at least {min_duration_s:g} s")
    if duration_s > max_duration_s:
        reject(Reason.TOO_LONG, f"{duration_s:.1f} s, at most {max_duration_s:g} s")


def trim_silence(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Trims silence at both ends of ``samples``, (T,), down to a margin. Digital silence is returned unchanged."""
    frame_samples = round(SILENCE_FRAME_S * rate_hz)
    starts = np.arange(0, len(samples), frame_samples)
    frame_power = np.add.reduceat(samples.astype(np.float64) ** 2, starts) / np.diff(starts, append=len(samples))
    audible = starts[frame_power >= frame_power.max() * 10 ** (-SILENCE_BELOW_LOUDEST_DB / 10)]
    margin_samples = round(SILENCE_MARGIN_S * rate_hz)
    return samples[max(0, audible[0] - margin_samples) : audible[-1] + frame_samples + margin_samples]


def loudness_dbfs(samples: NDArray[np.float32]) -> float:
    """Returns the root mean square of ``samples``, (T,), in dB relative to full scale 1; -inf for digital silence."""
    power = float(np.mean(samples.astype(np.float64) ** 2))
    return 10 * math.log10(power) if power > 0 else -math.inf


def require_loudness(samples: NDArray[np.float32], min_dbfs: float) -> None:
    """Raises :class:`RecordingError` if ``samples``, (T,), are quieter than ``min_dbfs``."""
    measured_dbfs = loudness_dbfs(samples)
    if measured_dbfs < min_dbfs:
        reject(Reason.TOO_QUIET, f"{measured_dbfs:.1f} dBFS, at least {min_dbfs:g} dBFS")


def to_loudness(samples: NDArray[np.float32], dbfs: float) -> NDArray[np.float32]:
    """Scales ``samples``, (T,), to a root mean square of ``dbfs``, or as close to it as possible without clipping."""
    measured_dbfs = loudness_dbfs(samples)
    if measured_dbfs == -math.inf:
        return samples
    gain = min(10 ** ((dbfs - measured_dbfs) / 20), _PCM16_PEAK / float(np.abs(samples).max()))
    return samples * np.float32(gain)


def to_rate(samples: NDArray[np.float32], rate_hz: int, target_rate_hz: int) -> NDArray[np.float32]:
    """Resamples ``samples``, (T,), band-limited (soxr's HQ setting)."""
    if rate_hz == target_rate_hz:
        return samples
    return cast("NDArray[np.float32]", soxr.resample(samples, rate_hz, target_rate_hz, quality="HQ"))


def to_pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Converts samples to 16-bit integers, clipped at full scale 1. Lossless for 16-bit sources."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def write_pcm16_wav(path: Path, pcm: NDArray[np.int16], rate_hz: int) -> None:
    """Writes ``pcm``, (T,), as a mono WAV file.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    with wave.open(content, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(PCM16_BYTES)
        recording.setframerate(rate_hz)
        recording.writeframes(pcm.astype("<i2").tobytes())
    path.write_bytes(content.getvalue())


def read_pcm16_wav(path: Path) -> tuple[NDArray[np.int16], int]:
    """Reads a 16-bit PCM mono WAV file.

    Returns:
        Samples, (T,), and the sampling rate in Hz.

    Raises:
        RecordingError: the file is missing, damaged, truncated, or not 16-bit PCM mono.
    """
    try:
        data = path.read_bytes()
        header = _PLAIN_HEADER.match(data)
        if header and int.from_bytes(header["size"], "little") == len(data) - WAV_HEADER_BYTES:
            samples: NDArray[np.int16] = np.frombuffer(data, dtype="<i2", offset=WAV_HEADER_BYTES)
            return samples, int.from_bytes(header["rate"], "little")
        with wave.open(io.BytesIO(data), "rb") as recording:
            channels, sample_bytes, rate_hz, declared_samples = recording.getparams()[:4]
            content = recording.readframes(declared_samples)
    except FileNotFoundError:
        reject(Reason.MISSING_FILE, f"{path}: no such file")
    except OSError as error:
        reject(Reason.UNREADABLE_AUDIO, f"{path}: {error.strerror}")
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: inconsistent sizes
        reject(Reason.UNREADABLE_AUDIO, f"{path}: not a PCM WAV file ({str(error) or 'unexpected end of file'})")
    if channels != 1 or sample_bytes != PCM16_BYTES:
        reject(
            Reason.UNSUPPORTED_AUDIO,
            f"{path}: {channels} channel(s) of {8 * sample_bytes} bits, expected 16-bit mono",
        )
    if len(content) < declared_samples * PCM16_BYTES:
        reject(
            Reason.TRUNCATED_AUDIO,
            f"{path}: {len(content) // PCM16_BYTES} of {declared_samples} declared samples",
        )
    return np.frombuffer(content, dtype="<i2").astype(np.int16), rate_hz


def _read_content(source: Path | bytes) -> bytes:
    # Bytes, not a path: libsndfile would guess the format from the file's name.
    try:
        size_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            reject(Reason.TOO_LONG, f"{size_bytes / 2**20:.0f} MiB, at most {MAX_FILE_BYTES / 2**20:.0f} MiB")
        content = source if isinstance(source, bytes) else source.read_bytes()
    except FileNotFoundError:
        reject(Reason.MISSING_FILE, f"{source!s}: no such file")
    except OSError as error:
        reject(Reason.UNREADABLE_AUDIO, f"{source!s}: {error.strerror}")
    if not content:
        reject(Reason.EMPTY_AUDIO, "the file has 0 bytes")
    return content


def _require_complete_wav(content: bytes) -> None:
    """Rejects truncated WAV files by the size in their header; libsndfile reads them without an error."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(content):
        name, size_bytes = struct.unpack_from("<4sI", content, position)
        position += 8
        if name == b"data":
            present_bytes = len(content) - position
            if present_bytes < size_bytes < _LENGTH_UNKNOWN_BYTES:
                reject(Reason.TRUNCATED_AUDIO, f"{present_bytes} of {size_bytes} declared bytes of audio")
            return
        position += size_bytes + size_bytes % 2


def _require_usable_shape(frames: int, rate_hz: int, channels: int) -> None:
    if channels > MAX_CHANNELS or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        reject(Reason.UNSUPPORTED_AUDIO, f"{channels} channel(s) at {rate_hz} Hz")
    if frames == 0:
        reject(Reason.EMPTY_AUDIO, "no samples")
    if frames == 2**63 - 1:
        reject(Reason.UNREADABLE_AUDIO, "the header does not give the length")


def _plain_message(error: Exception) -> str:
    """Returns libsndfile's message without the address of the object read."""
    return str(error).rpartition(">: ")[2].removeprefix("Error : ")


def reject(reason: Reason, detail: str) -> NoReturn:
    """Raises :class:`RecordingError` with this reason."""
    raise RecordingError(Rejection(reason, detail))
