"""Audio input and output, and the reasons to reject a clip. Imports no torch, as worker processes import this."""

import io
import math
import re
import stat
import wave
from pathlib import Path
from typing import cast

import numpy as np
import soxr
from numpy.typing import NDArray

from vits_trainer.data.containers import streams
from vits_trainer.data.decoding import decode_mono
from vits_trainer.data.decoding import require_duration as require_duration
from vits_trainer.data.rejections import Reason as Reason
from vits_trainer.data.rejections import RecordingError as RecordingError
from vits_trainer.data.rejections import Rejection as Rejection
from vits_trainer.data.rejections import reject as reject
from vits_trainer.utils.strings import counted

AUDIO_ENDINGS = (
    ".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".rf64",
    ".m4a", ".mp4", ".aac", ".wma", ".webm",
)  # fmt: skip
"""Endings of audio files, in order of preference. Files that libsndfile cannot read are rejected by name."""

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

_PLAIN_HEADER = re.compile(
    rb"RIFF.{4}WAVEfmt \x10\0\0\0\x01\0\x01\0(?P<rate>.{4}).{4}\x02\0\x10\0data(?P<size>.{4})", re.DOTALL
)
"""Header of the files of :func:`write_pcm16_wav`. Parsing it is four times as fast as the ``wave`` module."""
_SILENT_BELOW = 10 ** (-80 / 20)
"""Root mean square of clips that are silent, apart from a constant offset: three steps of 16-bit samples."""
_MAX_OVER = 16.0
"""Larger peaks are those of integers that were stored as floats."""
PCM16_BYTES = 2
WAV_HEADER_BYTES = 44
"""Header size of the files of :func:`write_pcm16_wav`."""
_PCM16_PEAK = 32767 / 32768
"""Largest 16-bit sample."""


def read_recording(
    source: Path | bytes, min_duration_s: float = MIN_DURATION_S, max_duration_s: float = MAX_DURATION_S
) -> tuple[NDArray[np.float32], int]:
    """Decodes a recording in any format of libsndfile (WAV, FLAC, MP3, Ogg ...) and mixes it to mono.

    The mixture is the mean of the channels, or the loudest channel if the mean is more than 7 dB softer: channels of
    opposite phase cancel each other. Samples beyond full scale are scaled down, not clipped.

    Args:
        source: path or content of a file.
        min_duration_s: shorter recordings are rejected.
        max_duration_s: longer recordings are rejected.

    Returns:
        Samples, (T,), with full scale at 1, and the sampling rate in Hz.

    Raises:
        RecordingError: with one of the audio reasons of :class:`Reason`. Length, channels and rate are checked before
            decoding, or while decoding if the header does not give the length. Everything that libsndfile raises for
            a file becomes a rejection.
    """
    decoded = decode_mono(_read_content(source), min_duration_s, max_duration_s)
    gain = _range_gain(decoded.samples)
    if math.sqrt(decoded.power) * gain < _SILENT_BELOW:
        reject(Reason.TOO_QUIET, "silence, or one value throughout")
    return decoded.samples * np.float32(gain) if gain != 1 else decoded.samples, decoded.rate_hz


def _range_gain(samples: NDArray[np.float32]) -> float:
    """Returns the factor that brings ``samples``, (T,), into the range of -1 to 1; 1 if they are in it.

    Floats in the range of integers, as NumPy arrays are often saved, are divided by the full scale of 16, 24 or 32
    bits. Peaks up to 24 dB beyond full scale, as mixing and lossy codecs produce, are scaled down to it.
    """
    peak = float(max(samples.max(), -samples.min()))
    if peak <= 1:
        return 1.0
    if peak <= _MAX_OVER and not np.array_equal(2 * samples, np.rint(2 * samples)):
        return _PCM16_PEAK / peak
    full_scale = next((2.0**bits for bits in (15, 23, 31) if peak <= 2.0**bits), None)
    if full_scale is None:
        reject(Reason.OUT_OF_RANGE_AUDIO, f"samples up to {peak:.3g}, where full scale is 1")
    return 1 / full_scale


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
    """Resamples ``samples``, (T,), band-limited (soxr's HQ setting); scales peaks beyond full scale down to it."""
    if rate_hz == target_rate_hz:
        return samples
    resampled = cast("NDArray[np.float32]", soxr.resample(samples, rate_hz, target_rate_hz, quality="HQ"))
    peak = float(np.abs(resampled).max(initial=0))
    return resampled if peak <= 1 else resampled * np.float32(_PCM16_PEAK / peak)


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
        data = _read_file(path)
        header = _PLAIN_HEADER.match(data)
        if header and int.from_bytes(header["size"], "little") == len(data) - WAV_HEADER_BYTES:
            samples: NDArray[np.int16] = np.frombuffer(data, dtype="<i2", offset=WAV_HEADER_BYTES)
            rate_hz = int.from_bytes(header["rate"], "little")
        else:
            samples, rate_hz = _parse_pcm16_wav(data)
        if len(samples) > MAX_DECODED_S * rate_hz:
            reject(Reason.TOO_LONG, f"{len(samples)} samples at {rate_hz} Hz, at most {MAX_DECODED_S:g} s")
    except RecordingError as error:
        reject(error.rejection.reason, f"{path}: {error.rejection.detail}")
    return samples, rate_hz


def _parse_pcm16_wav(data: bytes) -> tuple[NDArray[np.int16], int]:
    stream, *others = streams(data)
    try:
        with wave.open(io.BytesIO(stream.content), "rb") as recording:
            channels, sample_bytes, rate_hz, declared_samples = recording.getparams()[:4]
            content = recording.readframes(declared_samples)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: inconsistent sizes
        reject(Reason.UNREADABLE_AUDIO, f"not a PCM WAV file ({str(error) or 'unexpected end of file'})")
    if channels != 1 or sample_bytes != PCM16_BYTES:
        reject(
            Reason.UNSUPPORTED_AUDIO, f"{counted(channels, 'channel')} of {8 * sample_bytes} bits, expected 16-bit mono"
        )
    if others or len(content) < declared_samples * PCM16_BYTES:
        held_samples = len(content) // PCM16_BYTES
        reject(Reason.TRUNCATED_AUDIO, f"{held_samples} of {declared_samples} declared samples")
    return np.frombuffer(content, dtype="<i2").astype(np.int16), rate_hz


def _read_content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        _require_file_size(len(source))
        content = source
    else:
        try:
            content = _read_file(source)
        except RecordingError as error:
            reject(error.rejection.reason, f"{source!s}: {error.rejection.detail}")
    if not content:
        reject(Reason.EMPTY_AUDIO, "the file has 0 bytes")
    return content


def _read_file(path: Path) -> bytes:
    """Reads a regular file of a limited size: a pipe or a device could be read forever."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            reject(Reason.UNREADABLE_AUDIO, "is not a regular file")
        _require_file_size(status.st_size)
        return path.read_bytes()
    except FileNotFoundError:
        reject(Reason.MISSING_FILE, "no such file")
    except OSError as error:
        reject(Reason.UNREADABLE_AUDIO, f"{error.strerror}")


def _require_file_size(size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        reject(Reason.TOO_LONG, f"{size_bytes / 2**20:.0f} MiB, at most {MAX_FILE_BYTES / 2**20:.0f} MiB")
