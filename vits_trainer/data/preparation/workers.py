"""Converts clips to 16-bit PCM in worker processes, in order, with a bounded number of clips in flight."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from vits_trainer.data.preparation.drop_list import NOTHING, DropList
from vits_trainer.data.preparation.journal import AcceptedClip
from vits_trainer.data.sources.base import Source, SourceClip
from vits_trainer.utils.errors import VitsTrainerError
from vits_trainer.utils.strings import one_line, printable

HOP_SAMPLES = 256
"""Samples per spectrogram frame of VITS and MMS-TTS voices."""

_CLIPS_IN_FLIGHT_PER_PROCESS = 4
_MAX_KILLERS = 2
"""Clips that may each kill a worker process. More of them have a common cause, such as too little memory."""
_UNKNOWN_SPEAKER = "unknown"

ScreenedClip = tuple[SourceClip, Rejection | None]
"""A clip, and the reason to reject it if the metadata alone shows one."""
Converted = TypeVar("Converted")


@dataclass(frozen=True)
class Screening:
    """What a preparation knows of clips before it reads their audio."""

    drop: DropList = NOTHING
    speakers: Mapping[str, str] = field(default_factory=dict)
    """Short names of speakers."""


_NO_SCREENING = Screening()


def prescreen(source: Source, start: int = 0, screening: Screening = _NO_SCREENING) -> Iterator[ScreenedClip]:
    """Yields the clips from index ``start`` on, with the reason to reject each if the metadata alone shows one.

    Speakers have their short names.

    Earlier clips are skipped without reading them only if the source allows it: they are needed to detect duplicates.
    """
    if start and source.clips_from is not None:
        return _prescreen(source.clips_from(start), start, screening)
    return islice(_prescreen(source.clips, 0, screening), start, None)


def _prescreen(clips: Iterator[SourceClip], start: int, screening: Screening) -> Iterator[ScreenedClip]:
    seen: set[Path] = set()
    for index, original in enumerate(clips, start):
        clip = original
        short = screening.speakers.get(one_line(clip.speaker or ""))
        if short is not None:
            clip = replace(clip, speaker=short)
        rejection = clip.rejection
        if rejection is None and isinstance(clip.audio, Path):
            if clip.audio in seen:
                rejection = Rejection(Reason.DUPLICATE, f"{clip.audio.name} occurs earlier")
            seen.add(clip.audio)
        if rejection is None and not one_line(clip.text):
            rejection = Rejection(Reason.EMPTY_TEXT, repr(clip.text[:40]))
        if rejection is None and screening.drop.drops(clip.clip_id, index):
            rejection = Rejection(Reason.DROPPED, f"is on {screening.drop.name}")
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

    A clip whose worker process dies is tried again alone. If that dies too, the clip is rejected: its audio makes the
    decoder crash or fill the memory.

    Raises:
        VitsTrainerError: worker processes died of several clips.
    """
    waiting: deque[_Task[Converted]] = deque()
    with closing(_Workers(config)) as workers:
        for index, (clip, rejection) in enumerate(clips):
            task = _Task[Converted](clip, convert, (clip.audio, count_tokens(clip), config, *arguments(index)))
            task.result = rejection
            waiting.append(task)
            workers.start(task)
            if len(waiting) == workers.processes * _CLIPS_IN_FLIGHT_PER_PROCESS:
                yield workers.next_result(waiting)
        while waiting:
            yield workers.next_result(waiting)


@dataclass
class _Task(Generic[Converted]):
    """A clip to convert."""

    clip: SourceClip
    convert: Callable[..., Converted | Rejection]
    arguments: tuple[Any, ...]
    result: Converted | Rejection | None = None
    future: Future[Converted | Rejection] | None = None
    """None if a worker process died before the task was submitted."""

    def wait(self) -> Converted | Rejection:
        """Returns the result, once there is one.

        Raises:
            BrokenProcessPool: a worker process died.
        """
        if self.result is None:
            if self.future is None:
                raise BrokenProcessPool
            try:
                self.result = self.future.result()
            except Exception as error:
                error.add_note(f"Raised for the clip {self.clip.clip_id}.")
                raise
        return self.result


class _Workers:
    """A pool of worker processes that is replaced if one dies."""

    def __init__(self, config: PrepareConfig) -> None:
        self.processes = config.processes or available_cores()
        self._output_dir = config.output_dir
        self._killers: list[str] = []
        self._pool = new_pool(self.processes)

    def close(self) -> None:
        """Cancels what has not begun, and waits for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, task: _Task[Any]) -> None:
        """Submits a task that has no result yet."""
        if task.result is None:
            with suppress(BrokenProcessPool):  # noticed in finish()
                task.future = self._pool.submit(task.convert, *task.arguments)

    def next_result(self, tasks: "deque[_Task[Any]]") -> tuple[SourceClip, Any]:
        """Removes the first task, and returns its clip and result; if a worker died, waits for all results."""
        try:
            tasks[0].wait()
        except BrokenProcessPool:
            self.close()
            self._retry(tasks)
            self._pool = new_pool(self.processes)
        task = tasks.popleft()
        return task.clip, task.wait()

    def _retry(self, tasks: "deque[_Task[Any]]") -> None:
        """Gives each task a result, if necessary by converting its clip alone."""
        pool = new_pool(1)
        try:
            for task in tasks:
                with suppress(BrokenProcessPool, CancelledError):
                    task.wait()
                    continue
                task.future = pool.submit(task.convert, *task.arguments)
                try:
                    task.wait()
                except BrokenProcessPool as error:
                    self._killers.append(task.clip.clip_id)
                    if len(self._killers) > _MAX_KILLERS:
                        raise VitsTrainerError(self._message()) from error
                    task.result = Rejection(Reason.UNREADABLE_AUDIO, "the process that decodes it dies each time")
                    pool.shutdown(wait=True)
                    pool = new_pool(1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _message(self) -> str:
        return (
            "a worker process of prepare_data was killed, perhaps for lack of memory, at each of the clips "
            f"{', '.join(self._killers)}. {self._output_dir} is incomplete: run prepare_data again with fewer "
            "--processes or without these clips; it resumes from there."
        )


def new_pool(processes: int) -> ProcessPoolExecutor:
    """Returns worker processes that end with this one, and leave Ctrl-C to it."""
    # Spawned rather than forked: reading Parquet uses threads, which do not survive a fork.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_init_worker)


def to_accepted(clip: SourceClip, samples: int, audio_digest: str) -> AcceptedClip:
    """Returns the journal entry of a clip that was converted to ``samples`` samples."""
    text = one_line(clip.text)
    speaker = one_line(clip.speaker or "") or _UNKNOWN_SPEAKER
    return AcceptedClip(text, speaker, samples, text != clip.text, printable(clip.clip_id), audio_digest)


def count_tokens(clip: SourceClip) -> int:
    """Returns the number of tokens as in MMS-TTS: the characters, with a blank before, between and after them."""
    return 2 * len(one_line(clip.text)) + 1


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    # Containers and schedulers may allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In the worker processes


def convert_clip(audio: Path | bytes, tokens: int, config: PrepareConfig, wav: Path) -> tuple[int, str] | Rejection:
    """Converts one clip with :func:`to_pcm` and writes it to ``wav`` at ``config.target_sr``.

    Returns:
        The number of samples written and their digest, or the reason to reject the clip.
    """
    try:
        pcm = to_pcm(audio, tokens, config)
    except RecordingError as error:
        return error.rejection
    write_pcm16_wav(wav, pcm, config.target_sr)
    return len(pcm), content_digest(pcm.tobytes())


def content_digest(content: bytes) -> str:
    """Returns 56 bits of the SHA-256 of audio, in hexadecimal: copies of a recording have the same."""
    return hashlib.sha256(content).hexdigest()[:14]


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
