"""From the clips of a source to 16-bit PCM, in several processes, in order, with few clips under way at any time."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import (
    MAX_DECODED_S,
    Reason,
    RecordingError,
    Rejection,
    read_recording,
    reject,
    require_duration,
    require_loudness,
    to_loudness,
    to_pcm16,
    to_rate,
    trim_silence,
    write_pcm16_wav,
)
from vits_trainer.data.preparation.journal import AcceptedClip
from vits_trainer.data.sources.base import Source, SourceClip
from vits_trainer.utils.errors import VitsTrainerError
from vits_trainer.utils.strings import one_line

HOP_SAMPLES = 256
"""Samples in a spectrogram frame of VITS and MMS-TTS voices."""

_CLIPS_IN_FLIGHT_PER_PROCESS = 4
_UNKNOWN_SPEAKER = "unknown"

ScreenedClip = tuple[SourceClip, Rejection | None]
"""A clip, and the reason to leave it out where that shows without opening the audio."""
Converted = TypeVar("Converted")


def prescreen(source: Source, behind: int = 0) -> Iterator[ScreenedClip]:
    """The clips behind the first ``behind``, judged by what is known of them; those may stand for what is repeated."""
    if behind and source.clips_from is not None:
        return _prescreened(source.clips_from(behind))
    return islice(_prescreened(source.clips), behind, None)


def _prescreened(clips: Iterator[SourceClip]) -> Iterator[ScreenedClip]:
    seen: set[Path] = set()
    for clip in clips:
        rejection = clip.rejection
        if rejection is None and isinstance(clip.audio, Path):
            if clip.audio in seen:
                rejection = Rejection(Reason.DUPLICATE, f"{clip.audio.name} stands there before")
            seen.add(clip.audio)
        if rejection is None and not one_line(clip.text):
            rejection = Rejection(Reason.EMPTY_TEXT, repr(clip.text[:40]))
        yield clip, rejection


def map_in_processes(
    clips: Iterable[ScreenedClip],
    convert: Callable[..., Converted | Rejection],
    arguments: Callable[[int], tuple[Any, ...]],
    config: PrepareConfig,
) -> Generator[tuple[SourceClip, Converted | Rejection], None, None]:
    """Every clip with what ``convert`` made of it, in order.

    Only a few clips are under way at any time: the audio may lie in memory.

    Args:
        clips: those that are judged already are not converted.
        convert: called in a worker process with audio, tokens, ``config`` and ``arguments``.
        arguments: of the clip's place in ``clips``, from 0.
        config: of the preparation.

    Raises:
        VitsTrainerError: a worker process was killed.
    """
    processes = config.processes or _cores()
    # Started anew rather than forked: reading Parquet has threads, and those do not survive a fork.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[SourceClip, Future[Converted | Rejection] | Rejection]] = deque()
    with ProcessPoolExecutor(processes, context, initializer=_begin_worker) as pool:
        try:
            for place, (clip, known) in enumerate(clips):
                work = known or pool.submit(convert, clip.audio, _tokens(clip), config, *arguments(place))
                waiting.append((clip, work))
                if len(waiting) == processes * _CLIPS_IN_FLIGHT_PER_PROCESS:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        except BrokenProcessPool as error:
            raise VitsTrainerError(
                f"a worker process of prepare_data was killed, perhaps as memory ran out. {config.output_dir} is "
                "incomplete: run prepare_data again, with fewer --processes; it goes on from there."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def to_accepted(clip: SourceClip, samples: int) -> AcceptedClip:
    """A clip that was converted to so many samples, as it is written down."""
    text = one_line(clip.text)
    return AcceptedClip(text, one_line(clip.speaker or "") or _UNKNOWN_SPEAKER, samples, text != clip.text)


def _finished(
    clip: SourceClip, work: Future[Converted | Rejection] | Rejection
) -> tuple[SourceClip, Converted | Rejection]:
    return clip, work if isinstance(work, Rejection) else work.result()


def _tokens(clip: SourceClip) -> int:
    """Tokens of the clip's text as MMS-TTS counts: its characters, with a blank before, between and behind them."""
    return 2 * len(one_line(clip.text)) + 1


def _cores() -> int:
    # Containers and schedulers allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In a worker process


def convert_clip(audio: Path | bytes, tokens: int, config: PrepareConfig, wav: Path) -> int | Rejection:
    """Writes one clip as :func:`to_pcm` makes it, at ``config.target_sr``.

    Returns:
        The number of samples written, or why the clip is left out.
    """
    try:
        pcm = to_pcm(audio, tokens, config)
    except RecordingError as error:
        return error.rejection
    write_pcm16_wav(wav, pcm, config.target_sr)
    return len(pcm)


def to_pcm(audio: Path | bytes, tokens: int, config: PrepareConfig) -> NDArray[np.int16]:
    """One clip as 16-bit PCM, (T,), mono, at ``config.target_sr``, trimmed and as loud as ``config`` asks for.

    Raises:
        RecordingError: it cannot be used, or is too short for its ``tokens``.
    """
    samples = _read_clip(audio, config)
    if config.loudness_dbfs is not None:
        samples = to_loudness(samples, config.loudness_dbfs)
    pcm = to_pcm16(samples)
    frames = len(pcm) // HOP_SAMPLES
    if tokens > frames:
        reject(Reason.TEXT_TOO_LONG, f"{tokens} tokens, {frames} frames")
    return pcm


def _read_clip(audio: Path | bytes, config: PrepareConfig) -> NDArray[np.float32]:
    """(T,) at ``config.target_sr``; raises :class:`RecordingError` where the clip is not within the limits."""
    longest_s = MAX_DECODED_S if config.trim_silence else config.max_duration_s
    samples, rate_hz = read_recording(audio, config.min_duration_s, longest_s)
    if config.trim_silence:
        samples = trim_silence(samples, rate_hz)
        require_duration(len(samples) / rate_hz, config.min_duration_s, config.max_duration_s)
    samples = to_rate(samples, rate_hz, config.target_sr)
    if config.min_loudness_dbfs is not None:
        require_loudness(samples, config.min_loudness_dbfs)
    return samples


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # libmpg123 writes there of every damaged MP3, through the progress bar; rejected.csv says it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _leave_with_parent() -> None:
    """A pool's workers otherwise wait for ever when their parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
