"""Decodes audio files with libsndfile: forward, in blocks, to the true end, and with limits."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from vits_trainer.data.containers import Stream, streams
from vits_trainer.data.rejections import Reason, reject
from vits_trainer.utils.strings import counted

MAX_CHANNELS = 8
MIN_RATE_HZ, MAX_RATE_HZ = 4000, 192_000

_BLOCK_VALUES = 2**18
"""Samples of all channels that are decoded at a time: 1 MiB."""
_UNKNOWN_FRAMES = 2**63 - 1
"""libsndfile's number of samples if the header does not give the length."""
_CANCELLED_BELOW = 10 ** (-7 / 10)
"""Power of the mean of the channels, relative to that of the loudest channel, below which the latter is taken. Two
channels that do not resemble each other give 1/2, and one silent channel of two gives 1/4; opposite phases give 0."""
_DECODER_ERRORS = (
    *(sf.SoundFileError, OSError, EOFError, RuntimeError, ValueError, TypeError, AssertionError),
    *(ArithmeticError, LookupError, MemoryError),
)
"""What libsndfile, its binding and NumPy have raised for the content of a file."""


class Decoded(NamedTuple):
    """A recording, mixed to mono."""

    samples: NDArray[np.float32]
    """(T,)."""
    rate_hz: int
    power: float
    """Mean square of the samples' distance from their mean."""


class ForwardFile(sf.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read forward.

    The binding seeks after each read, which fails for FLAC of unknown length, and reads other formats only in parts of
    a given size if libsndfile cannot seek in them, such as GSM 6.10.
    """

    def seekable(self) -> bool:
        """Returns False."""
        return False


class _Bytes(io.BytesIO):
    """Content of a file. An impossible offset, as of a damaged header, leaves the position unchanged.

    The binding would print a traceback: the callbacks that libsndfile calls cannot raise.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset, if possible; returns the position."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


@contextmanager
def rejecting_errors() -> Iterator[None]:
    """Turns what a decoder raises for the content of a file into a rejection."""
    try:
        yield
    except _DECODER_ERRORS as error:
        reject(Reason.UNREADABLE_AUDIO, _plain_message(error))


def decode_mono(content: bytes, min_duration_s: float, max_duration_s: float) -> Decoded:
    """Decodes all recordings of a file and mixes their channels.

    Raises:
        RecordingError: it cannot be decoded completely, or exceeds a limit.
    """
    with rejecting_errors(), ExitStack() as stack:
        parts = [(stream, stack.enter_context(_open(stream))) for stream in streams(content)]
        channels, rate_hz = parts[0][1].channels, int(parts[0][1].samplerate)
        if {(file.channels, file.samplerate) for _, file in parts} != {(channels, rate_hz)}:
            reject(Reason.UNSUPPORTED_AUDIO, "concatenated recordings of different rates or channels")
        declared = sum(file.frames for _, file in parts)
        _require_usable_shape(declared, rate_hz, channels)
        if declared < _UNKNOWN_FRAMES:
            require_duration(declared / rate_hz, min_duration_s, max_duration_s)
        max_frames = int(max_duration_s * rate_hz) + 1
        samples, powers = _mix(parts, None, max_frames)
        power = _power(samples)
        if channels > 1 and power < max(powers) * _CANCELLED_BELOW:
            again = [(stream, stack.enter_context(_open(stream))) for stream, _ in parts]
            samples, _ = _mix(again, int(np.argmax(powers)), max_frames)
            power = _power(samples)
        require_duration(len(samples) / rate_hz, min_duration_s, max_duration_s)
        return Decoded(samples, rate_hz, power)


def decode_pcm16(content: bytes, samples: int, rate_hz: int) -> NDArray[np.int16]:
    """Decodes a mono file of a known length and rate, of 16 bits per sample, to (T,).

    Raises:
        RecordingError: it differs from that, or cannot be decoded.
    """
    with rejecting_errors(), ExitStack() as stack:
        stream, *others = streams(content)
        file = stack.enter_context(_open(stream))
        if file.channels != 1 or file.subtype != "PCM_16":
            reject(
                Reason.UNSUPPORTED_AUDIO, f"{counted(file.channels, 'channel')} of {file.subtype}, expected 16-bit mono"
            )
        if file.samplerate != rate_hz:
            reject(Reason.WRONG_RATE, f"{file.samplerate} Hz, not {rate_hz}")
        if file.frames != samples or others:
            reject(Reason.TRUNCATED_AUDIO, f"{file.frames} of {samples} samples")
        pcm: NDArray[np.int16] = file.read(samples, dtype="int16")
        if len(pcm) != samples:
            reject(Reason.TRUNCATED_AUDIO, f"{len(pcm)} of {samples} samples can be decoded")
    return pcm


def require_duration(duration_s: float, min_duration_s: float, max_duration_s: float) -> None:
    """Raises :class:`RecordingError` unless ``duration_s`` is within the two limits, inclusive."""
    if duration_s < min_duration_s:
        reject(Reason.TOO_SHORT, f"{duration_s:.3f} s, at least {min_duration_s:g} s")
    if duration_s > max_duration_s:
        reject(Reason.TOO_LONG, f"{duration_s:.1f} s, at most {max_duration_s:g} s")


def _open(stream: Stream) -> ForwardFile:
    # Bytes, not a path: libsndfile would guess the format from the file's name.
    return ForwardFile(_Bytes(stream.content))


def _mix(
    parts: list[tuple[Stream, ForwardFile]], channel: int | None, max_frames: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Reads recordings one after another, at most ``max_frames`` samples.

    Returns:
        One channel or (None) the mean of all, (T,), and the mean square of each channel without its mean, (channels,).
    """
    blocks: list[NDArray[np.float32]] = []
    channels, total = parts[0][1].channels, 0
    sums, squares = np.zeros(channels), np.zeros(channels)
    for stream, file in parts:
        begin, wanted = total, _BLOCK_VALUES // channels
        while (wanted := min(wanted, max_frames - total)) and len(
            block := file.read(wanted, dtype="float32", always_2d=True)
        ):
            total += len(block)
            if channels > 1:  # the mean of one channel would be a copy
                sums += block.sum(axis=0, dtype=np.float64)
                squares += np.square(block, dtype=np.float64).sum(axis=0)
            single = channel if channels > 1 else 0
            blocks.append(block.mean(axis=1) if single is None else block[:, single].copy())
        if total < max_frames:
            _require_all(stream, file, total - begin)
    if not total:
        reject(Reason.EMPTY_AUDIO, "no samples")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        reject(Reason.NON_FINITE_AUDIO, f"{np.count_nonzero(~np.isfinite(samples))} samples")
    return samples, np.maximum(0, squares / total - np.square(sums / total))


def _power(samples: NDArray[np.float32]) -> float:
    """Returns the mean square of ``samples``, (T,), without their mean."""
    centred = samples - samples.mean(dtype=np.float64).astype(np.float32)
    return float(np.dot(centred, centred)) / len(samples)


def _require_all(stream: Stream, file: ForwardFile, decoded: int) -> None:
    declared = 0 if file.frames == _UNKNOWN_FRAMES else file.frames
    tolerance = stream.tolerance_frames if "MPEG" in file.subtype else 0
    for frames, allowed in ((declared, tolerance), (stream.frames or 0, stream.tolerance_frames)):
        if decoded < frames - allowed:
            reject(Reason.TRUNCATED_AUDIO, f"{decoded} of {frames} samples can be decoded")


def _require_usable_shape(frames: int, rate_hz: int, channels: int) -> None:
    if channels > MAX_CHANNELS or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        reject(Reason.UNSUPPORTED_AUDIO, f"{counted(channels, 'channel')} at {rate_hz} Hz")
    if frames == 0:
        reject(Reason.EMPTY_AUDIO, "no samples")


def _plain_message(error: BaseException) -> str:
    """Returns an error's message, without the address of the object read."""
    if not isinstance(error, sf.SoundFileError):
        return f"{type(error).__name__}: {error}"
    message = str(error).rpartition(">: ")[2].removeprefix("Error : ")
    return "no audio in it can be decoded" if "File does not exist" in message else message
