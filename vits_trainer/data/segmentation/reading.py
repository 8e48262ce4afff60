"""Reads long recordings forward, in blocks: the memory needed does not grow with their length."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from vits_trainer.data.audio import read_recording, to_rate
from vits_trainer.data.decoding import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, ForwardFile, rejecting_errors
from vits_trainer.data.rejections import Reason, reject
from vits_trainer.utils.strings import counted

SPEECH_RATE_HZ = 16000
"""Sampling rate of the voice activity detection and of recognizers."""
_BLOCK_S = 10
_CANCELLED_BELOW = 0.2
"""Power of the mean of the channels, relative to that of the loudest one, below which the latter is taken."""
_UNKNOWN_FRAMES = 2**62
"""libsndfile reports more frames than this if the header does not give the length."""


@contextmanager
def open_recording(path: Path) -> Iterator[ForwardFile]:
    """Opens a recording to be read forward.

    Raises:
        RecordingError: it cannot be decoded, or has an unusual rate or number of channels.
    """
    with ExitStack() as stack:
        with rejecting_errors():
            # A file object, not a path: libsndfile would guess the format from the file's name.
            file = stack.enter_context(ForwardFile(stack.enter_context(path.open("rb"))))
        if file.channels > MAX_CHANNELS or not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
            reject(Reason.UNSUPPORTED_AUDIO, f"{counted(file.channels, 'channel')} at {file.samplerate} Hz")
        yield file


def speech_blocks(file: ForwardFile) -> Iterator[NDArray[np.float32]]:
    """Yields the whole recording, mixed to mono, in blocks of about 10 s: (T,) at :data:`SPEECH_RATE_HZ`.

    Raises:
        RecordingError: a block is damaged.
    """
    resampler = soxr.ResampleStream(file.samplerate, SPEECH_RATE_HZ, 1, dtype="float32")
    while len(block := _next_block(file)):
        yield resampler.resample_chunk(_mixed(np.nan_to_num(block)))
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _mixed(block: NDArray[np.float32]) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = block.mean(axis=1)
    powers = np.square(block, dtype=np.float64).mean(axis=0)
    if np.square(mean, dtype=np.float64).mean() < _CANCELLED_BELOW * powers.max():
        return block[:, int(powers.argmax())].copy()
    return mean


def declared_duration_s(file: ForwardFile) -> float | None:
    """Returns the length that the header declares; None if it does not."""
    return float(file.frames / file.samplerate) if file.frames < _UNKNOWN_FRAMES else None


def _next_block(file: ForwardFile) -> NDArray[np.float32]:
    """Returns the next samples, (T, channels); none at the end. Raises :class:`RecordingError` if they are damaged."""
    with rejecting_errors():
        block: NDArray[np.float32] = file.read(_BLOCK_S * file.samplerate, dtype="float32", always_2d=True)
    return block


class SpanReader:
    """Reads spans of a recording in the order of their starts; keeps no more than one span and one block."""

    def __init__(self, file: ForwardFile) -> None:
        """Args:
        file: nothing of it has been read.
        """
        self._file = file
        self._first = 0
        """Frame of the recording at which ``_kept`` begins."""
        self._kept: NDArray[np.float32] = np.zeros((0, file.channels), np.float32)

    def read(self, start_s: float, end_s: float) -> NDArray[np.float32]:
        """Returns the samples from ``start_s`` to ``end_s``, (T, channels): fewer at the end of the recording.

        Args:
            start_s: not below that of the span before.
            end_s: of the span.
        """
        start, end = (round(time_s * self._file.samplerate) for time_s in (start_s, end_s))
        while self._first + len(self._kept) < end:
            self._drop_before(start)
            block = _next_block(self._file)
            if not len(block):
                break
            self._kept = np.concatenate([self._kept, block])
        self._drop_before(start)
        return self._kept[: end - start]

    def read_file(self, start_s: float, end_s: float) -> bytes:
        """Returns the same as the content of an AU file of 32-bit floats."""
        content = io.BytesIO()
        samples = self.read(start_s, end_s)
        # AU, as libsndfile writes the time of day into WAV files of floats.
        sf.write(content, samples, self._file.samplerate, format="AU", subtype="FLOAT")
        return content.getvalue()

    def _drop_before(self, start: int) -> None:
        dropped = min(max(0, start - self._first), len(self._kept))
        self._kept, self._first = self._kept[dropped:], self._first + dropped


def to_speech(content: bytes, max_duration_s: float) -> NDArray[np.float32]:
    """Returns a clip as recognizers need it: (T,) at :data:`SPEECH_RATE_HZ`.

    Raises:
        RecordingError: it is silent, has values that are no numbers, or is longer than ``max_duration_s``.
    """
    samples, rate_hz = read_recording(content, 0.0, max_duration_s)
    return to_rate(samples, rate_hz, SPEECH_RATE_HZ)
