"""Converts clips to 16-bit PCM in worker processes, in order, with a bounded number of clips in flight."""

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
"""Samples per spectrogram frame of VITS and MMS-TTS voices."""

_CLIPS_IN_FLIGHT_PER_PROCESS = 4
_UNKNOWN_SPEAKER = "unknown"

ScreenedClip = tuple[SourceClip, Rejection | None]
"""A clip, and the reason to reject it if the metadata alone shows one."""
Converted = TypeVar("Converted")


def prescreen(source: Source, start: int = 0) -> Iterator[ScreenedClip]:
    """Yields the clips from index ``start`` on, with the reason to reject each if the metadata alone shows one.

    Earlier clips are skipped without reading them only if the source allows it: they are needed to detect duplicates.
    """
    if start and source.clips_from is not None:
        return _prescreen(source.clips_from(start))
    return islice(_prescreen(source.clips), start, None)


def _prescreen(clips: Iterator[SourceClip]) -> Iterator[ScreenedClip]:
    seen: set[Path] = set()
    for clip in clips:
        rejection = clip.rejection
        if rejection is None and isinstance(clip.audio, Path):
            if clip.audio in seen:
                rejection = Rejection(Reason.DUPLICATE, f"{clip.audio.name} occurs earlier")
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
    """Converts clips in worker processes and yields each with its result, in order.

    Only a few clips are in flight at a time, as their audio may be in memory.

    Args:
        clips: those that already have a reason to be rejected are not converted.
        convert: called in a worker process with audio, tokens, ``config`` and ``arguments``.
        arguments: returns further arguments of ``convert``, by the clip's index in ``clips``.
        config: of the preparation.

    Raises:
        VitsTrainerError: a worker process was killed.
    """
    processes = config.processes or _available_cores()
    # Spawned rather than forked: reading Parquet uses threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[SourceClip, Future[Converted | Rejection] | Rejection]] = deque()
    with ProcessPoolExecutor(processes, context, initializer=_init_worker) as pool:
        try:
            for index, (clip, rejection) in enumerate(clips):
                work = rejection or pool.submit(convert, clip.audio, _count_tokens(clip), config, *arguments(index))
                waiting.append((clip, work))
                if len(waiting) == processes * _CLIPS_IN_FLIGHT_PER_PROCESS:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        except BrokenProcessPool as error:
            raise VitsTrainerError(
                f"a worker process of prepare_data was killed, perhaps for lack of memory. {config.output_dir} is "
                "incomplete: run prepare_data again with fewer --processes; it resumes from there."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def to_accepted(clip: SourceClip, samples: int) -> AcceptedClip:
    """Returns the journal entry of a clip that was converted to ``samples`` samples."""
    text = one_line(clip.text)
    return AcceptedClip(text, one_line(clip.speaker or "") or _UNKNOWN_SPEAKER, samples, text != clip.text)


def _result(
    clip: SourceClip, work: Future[Converted | Rejection] | Rejection
) -> tuple[SourceClip, Converted | Rejection]:
    return clip, work if isinstance(work, Rejection) else work.result()


def _count_tokens(clip: SourceClip) -> int:
    """Returns the number of tokens as in MMS-TTS: the characters, with a blank before, between and after them."""
    return 2 * len(one_line(clip.text)) + 1


def _available_cores() -> int:
    # Containers and schedulers may allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In the worker processes


def convert_clip(audio: Path | bytes, tokens: int, config: PrepareConfig, wav: Path) -> int | Rejection:
    """Converts one clip with :func:`to_pcm` and writes it to ``wav`` at ``config.target_sr``.

    Returns:
        The number of samples written, or the reason to reject the clip.
    """
    try:
        pcm = to_pcm(audio, tokens, config)
    except RecordingError as error:
        return error.rejection
    write_pcm16_wav(wav, pcm, config.target_sr)
    return len(pcm)


def to_pcm(audio: Path | bytes, tokens: int, config: PrepareConfig) -> NDArray[np.int16]:
    """Converts one clip to 16-bit PCM, (T,), mono, at ``config.target_sr``, trimmed and normalized per ``config``.

    Raises:
        RecordingError: the clip is unusable, or too short for its ``tokens``.
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
    """Returns the samples, (T,), at ``config.target_sr``; raises :class:`RecordingError` if they exceed a limit."""
    longest_s = MAX_DECODED_S if config.trim_silence else config.max_duration_s
    samples, rate_hz = read_recording(audio, config.min_duration_s, longest_s)
    if config.trim_silence:
        samples = trim_silence(samples, rate_hz)
        require_duration(len(samples) / rate_hz, config.min_duration_s, config.max_duration_s)
    samples = to_rate(samples, rate_hz, config.target_sr)
    if config.min_loudness_dbfs is not None:
        require_loudness(samples, config.min_loudness_dbfs)
    return samples


def _init_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent stops its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # libmpg123 reports every damaged MP3 on stderr, garbling the progress bar; rejected.csv has the reasons.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _exit_with_parent() -> None:
    """Without this, a pool's workers wait forever after their parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
