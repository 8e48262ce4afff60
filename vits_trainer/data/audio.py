"""Reading and writing speech, and every reason for which a clip is left out. No torch: worker processes import this."""

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
"""Longer recordings are not clips; they are not even decoded."""
MAX_DECODED_S = 300.0
"""Longer recordings are not decoded to be trimmed either, as an hour of them would fill the memory."""
SILENCE_BELOW_LOUDEST_DB = 40.0
"""A frame at the end of a clip that is softer than its loudest frame by more than this is silence."""
SILENCE_FRAME_S = 0.02
SILENCE_MARGIN_S = 0.05
"""What is kept of the silence at each end: soft sounds begin and end in it."""
MAX_FILE_BYTES = 256 * 2**20
MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4000, 192_000

_PLAIN_HEADER = re.compile(
    rb"RIFF.{4}WAVEfmt \x10\0\0\0\x01\0\x01\0(?P<rate>.{4}).{4}\x02\0\x10\0data(?P<size>.{4})", re.DOTALL
)
"""Of a file as :func:`write_pcm16_wav` writes it: read without ``wave``, which takes four times as long."""
_LENGTH_UNKNOWN_BYTES = 0x7FFF0000
"""Programs that write WAV into a pipe announce this much or more, as they cannot know the length."""
_MP3_FRAME_SAMPLES = 1152
PCM16_BYTES = 2
WAV_HEADER_BYTES = 44
"""Of the files that :func:`write_pcm16_wav` writes."""
_PCM16_PEAK = 32767 / 32768
"""The greatest sample that 16 bits hold."""


class Reason(StrEnum):
    """Why a clip is left out, as rejected.csv and rejected.jsonl have it, in the order in which the checks are made."""

    TOO_FEW_UPVOTES = "too-few-upvotes"
    """Common Voice: fewer up-votes than --min_upvotes."""
    TOO_MANY_DOWNVOTES = "too-many-downvotes"
    """Common Voice: more down-votes than --max_downvotes."""
    PATH_OUTSIDE = "path-outside"
    """The metadata name a file outside the data set's folder."""
    MISSING_FILE = "missing-file"
    """No such file, or no audio in the row."""
    DUPLICATE = "duplicate"
    """The metadata name the same file before."""
    EMPTY_TEXT = "empty-text"
    """Nothing to say."""
    TRUNCATED_AUDIO = "truncated-audio"
    """The file announces more samples than it holds."""
    UNREADABLE_AUDIO = "unreadable-audio"
    """Damaged, or in no format that libsndfile reads."""
    UNSUPPORTED_AUDIO = "unsupported-audio"
    """More than 8 channels, or a rate outside 4 to 192 kHz."""
    EMPTY_AUDIO = "empty-audio"
    """Not one sample."""
    TOO_SHORT = "too-short"
    """Less than --min_duration_s, after trimming."""
    TOO_LONG = "too-long"
    """More than --max_duration_s, after trimming."""
    NON_FINITE_AUDIO = "non-finite-audio"
    """Samples that are no numbers, or infinite."""
    TOO_QUIET = "too-quiet"
    """Softer than --min_loudness_dbfs."""
    TEXT_TOO_LONG = "text-too-long"
    """More tokens than the clip has frames: no alignment exists."""
    WRONG_RATE = "wrong-rate"
    """In training: at another rate than the voice."""
    NO_KNOWN_CHARACTERS = "no-known-characters"
    """In training: not one character of the text is in the voice's vocabulary."""


class Rejection(NamedTuple):
    """Why one clip is left out: the fixed word that is counted, and what it was in this case."""

    reason: Reason
    detail: str


class RecordingError(DataError):
    """A recording that cannot be used. Unlike libsndfile's own errors it travels between processes."""

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
        source: a file, or the content of one.
        min_duration_s: shorter recordings are refused.
        max_duration_s: longer ones too.

    Returns:
        Samples, (T,), full scale at 1, and their rate in Hz.

    Raises:
        RecordingError: one of the audio reasons of :class:`Reason`; length, channels and rate are judged
            before anything is decoded.
    """
    content = _content(source)
    _require_complete_wav(content)
    try:
        with sf.SoundFile(io.BytesIO(content)) as recording:
            _require_usable_shape(recording.frames, recording.samplerate, recording.channels)
            require_duration(recording.frames / recording.samplerate, min_duration_s, max_duration_s)
            samples = recording.read(dtype="float32", always_2d=True)  # (T, channels)
            # The length of an MP3 without a table of contents is an estimate.
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
    """Raises :class:`RecordingError` unless ``duration_s`` lies between the two, both included."""
    if duration_s < min_duration_s:
        reject(Reason.TOO_SHORT, f"{duration_s:.3f} s, at least {min_duration_s:g} s")
    if duration_s > max_duration_s:
        reject(Reason.TOO_LONG, f"{duration_s:.1f} s, at most {max_duration_s:g} s")


def trim_silence(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Cuts the silent frames at both ends of ``samples``, (T,), all but a margin. Digital silence is left whole."""
    frame_samples = round(SILENCE_FRAME_S * rate_hz)
    starts = np.arange(0, len(samples), frame_samples)
    frame_power = np.add.reduceat(samples.astype(np.float64) ** 2, starts) / np.diff(starts, append=len(samples))
    heard = starts[frame_power >= frame_power.max() * 10 ** (-SILENCE_BELOW_LOUDEST_DB / 10)]
    margin_samples = round(SILENCE_MARGIN_S * rate_hz)
    return samples[max(0, heard[0] - margin_samples) : heard[-1] + frame_samples + margin_samples]


def loudness_dbfs(samples: NDArray[np.float32]) -> float:
    """Root mean square of ``samples``, (T,), in dB below full scale 1; minus infinity for digital silence."""
    power = float(np.mean(samples.astype(np.float64) ** 2))
    return 10 * math.log10(power) if power > 0 else -math.inf


def require_loudness(samples: NDArray[np.float32], min_dbfs: float) -> None:
    """Raises :class:`RecordingError` where ``samples``, (T,), are softer than ``min_dbfs``."""
    found_dbfs = loudness_dbfs(samples)
    if found_dbfs < min_dbfs:
        reject(Reason.TOO_QUIET, f"{found_dbfs:.1f} dBFS, at least {min_dbfs:g} dBFS")


def to_loudness(samples: NDArray[np.float32], dbfs: float) -> NDArray[np.float32]:
    """``samples``, (T,), at a root mean square of ``dbfs``, or as near to it as their peak comes without clipping."""
    found_dbfs = loudness_dbfs(samples)
    if found_dbfs == -math.inf:
        return samples
    gain = min(10 ** ((dbfs - found_dbfs) / 20), _PCM16_PEAK / float(np.abs(samples).max()))
    return samples * np.float32(gain)


def to_rate(samples: NDArray[np.float32], rate_hz: int, target_rate_hz: int) -> NDArray[np.float32]:
    """Resamples ``samples``, (T,), band-limited (soxr's high quality)."""
    if rate_hz == target_rate_hz:
        return samples
    return cast("NDArray[np.float32]", soxr.resample(samples, rate_hz, target_rate_hz, quality="HQ"))


def to_pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Full scale 1 to 16-bit integers; what lies beyond full scale is clipped. 16-bit sources come back unchanged."""
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
    """Reads a file as :func:`write_pcm16_wav` writes it.

    Returns:
        Samples, (T,), and their rate in Hz.

    Raises:
        RecordingError: missing, damaged or truncated, or not 16-bit PCM mono.
    """
    try:
        whole = path.read_bytes()
        plain = _PLAIN_HEADER.match(whole)
        if plain and int.from_bytes(plain["size"], "little") == len(whole) - WAV_HEADER_BYTES:
            samples: NDArray[np.int16] = np.frombuffer(whole, dtype="<i2", offset=WAV_HEADER_BYTES)
            return samples, int.from_bytes(plain["rate"], "little")
        with wave.open(io.BytesIO(whole), "rb") as recording:
            channels, sample_bytes, rate_hz, announced = recording.getparams()[:4]
            content = recording.readframes(announced)
    except FileNotFoundError:
        reject(Reason.MISSING_FILE, f"{path}: no such file")
    except OSError as error:
        reject(Reason.UNREADABLE_AUDIO, f"{path}: {error.strerror}")
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: sizes that contradict one another
        reject(Reason.UNREADABLE_AUDIO, f"{path}: no PCM WAV file ({str(error) or 'it ends too early'})")
    if channels != 1 or sample_bytes != PCM16_BYTES:
        reject(
            Reason.UNSUPPORTED_AUDIO,
            f"{path}: {channels} channel(s) of {8 * sample_bytes} bits, where 16-bit mono is expected",
        )
    if len(content) < announced * PCM16_BYTES:
        reject(Reason.TRUNCATED_AUDIO, f"{path}: {len(content) // PCM16_BYTES} of {announced} samples are there")
    return np.frombuffer(content, dtype="<i2").astype(np.int16), rate_hz


def _content(source: Path | bytes) -> bytes:
    # Handing libsndfile bytes rather than a path keeps it from believing the file's name.
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
        reject(Reason.EMPTY_AUDIO, "a file of 0 bytes")
    return content


def _require_complete_wav(content: bytes) -> None:
    """Libsndfile reads a WAV file that ends too early without a word: its header says how much there should be."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(content):
        name, size_bytes = struct.unpack_from("<4sI", content, position)
        position += 8
        if name == b"data":
            present_bytes = len(content) - position
            if present_bytes < size_bytes < _LENGTH_UNKNOWN_BYTES:
                reject(Reason.TRUNCATED_AUDIO, f"{present_bytes} of {size_bytes} bytes of audio are there")
            return
        position += size_bytes + size_bytes % 2


def _require_usable_shape(frames: int, rate_hz: int, channels: int) -> None:
    if channels > MAX_CHANNELS or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        reject(Reason.UNSUPPORTED_AUDIO, f"{channels} channel(s) at {rate_hz} Hz")
    if frames == 0:
        reject(Reason.EMPTY_AUDIO, "no samples")
    if frames == 2**63 - 1:
        reject(Reason.UNREADABLE_AUDIO, "its header does not say how long it is")


def _plain_message(error: Exception) -> str:
    """libsndfile's words without the address of the object it read from."""
    return str(error).rpartition(">: ")[2].removeprefix("Error : ")


def reject(reason: Reason, detail: str) -> NoReturn:
    """Raises :class:`RecordingError`."""
    raise RecordingError(Rejection(reason, detail))
