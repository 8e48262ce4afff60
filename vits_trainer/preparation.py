"""From a source of clips to a prepared folder, in several processes; every clip left out is written down."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

from vits_trainer import __version__
from vits_trainer.config_data import PrepareConfig
from vits_trainer.errors import DataError, VitsTrainerError
from vits_trainer.files import write_whole
from vits_trainer.ledger import JOURNAL, Accepted, Ledger, LeftOut, wav_name
from vits_trainer.recordings import (
    MAX_DECODED_S,
    Reason,
    RecordingError,
    Rejection,
    read_recording,
    require_duration,
    require_loudness,
    to_loudness,
    to_pcm16,
    to_rate,
    trim_silence,
    write_pcm16_wav,
)
from vits_trainer.sources import open_source
from vits_trainer.tables import Source, SourceClip

logger = logging.getLogger("vits_trainer")

HOP_SAMPLES = 256
"""Samples in a spectrogram frame of VITS and MMS-TTS voices."""

_CLIPS_IN_FLIGHT_PER_PROCESS = 4
_UNKNOWN_SPEAKER = "unknown"
_NO_SETTINGS = ("dataset", "output_dir", "processes")
"""Fields of the configuration that dataset.json has elsewhere, or that change nothing in what is written."""
_SEPARATORS = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OUR_FILE = re.compile(r"audio_\d{6,}\.wav|\d+(-\d+)?\.part")


@dataclass(frozen=True)
class PreparationSummary:
    """What a preparation came to."""

    output_dir: Path
    accepted: int
    rejected: Mapping[Reason, int]
    """Clips left out by reason, in the order of the checks; only reasons that occurred."""
    texts_changed: int
    """Accepted clips whose text :func:`one_line` changed."""
    seconds: float
    """Length of the accepted clips together."""
    speakers: int

    @property
    def hours(self) -> float:
        """Length of the accepted clips together, in hours."""
        return self.seconds / 3600

    @property
    def mean_seconds(self) -> float:
        """Mean length of an accepted clip."""
        return self.seconds / self.accepted


def prepare(config: PrepareConfig) -> PreparationSummary:
    """Writes ``config.output_dir``, the same bytes whatever the number of processes, and however often it was killed::

        wavs/audio_000000.wav   16-bit PCM, mono, numbered over the accepted clips in the order of the source
        rejected.csv            clip,reason,detail of every clip left out
        metadata.csv            audio_000000.wav|text, and |speaker where there are several
        dataset.json            counts, lengths, settings, versions; written last
        .preparing.jsonl        while it is at work: what has become of each clip

    What is finished is left as it is, if it was asked for in the same words and the source has not changed since.

    Raises:
        DataError: the source or the output folder cannot be used, or not one clip is left (rejected.csv is
            written all the same).
        VitsTrainerError: a worker process was killed.
    """
    source = open_source(config)
    output_dir = Path(config.output_dir).expanduser()
    if source.root is not None and output_dir.resolve() == source.root.resolve():
        raise DataError(f"--output_dir {output_dir} is the data set itself. Choose another --output_dir.")
    asked = _asked(source, config, output_dir)
    finished = _finished_before(output_dir, asked)
    if finished is not None:
        return finished
    try:
        return _prepare(source, config, output_dir, asked)
    except OSError as error:
        raise DataError(
            f"{error.filename or output_dir}: cannot be written ({error.strerror or error}). "
            "Make room there, or choose another --output_dir; the same command goes on from here."
        ) from error


def _prepare(source: Source, config: PrepareConfig, output_dir: Path, asked: Mapping[str, Any]) -> PreparationSummary:
    wavs = output_dir / "wavs"
    if (output_dir / "metadata.csv").exists() and not (output_dir / JOURNAL).exists():
        raise DataError(_in_the_way(output_dir, "metadata.csv"))
    _refuse_foreign(wavs)
    with Ledger(output_dir, asked) as ledger:
        if not ledger.entries:
            _clear(wavs)
        wavs.mkdir(exist_ok=True)
        _convert_all(source, config, wavs, ledger)
        write_whole(output_dir / "rejected.csv", _rejected_csv(ledger))
        summary = _summary(ledger, output_dir, config.target_sr)
        if not summary.accepted:
            _clear(wavs)
            ledger.remove()
            raise DataError(_nothing_left(summary))
        write_whole(output_dir / "metadata.csv", _metadata_csv(ledger))
        os.sync()  # thousands of files: one by one it would take minutes
        write_whole(output_dir / "dataset.json", _dataset_json(summary, source, config, asked))
        ledger.remove()
    return summary


def one_line(text: str) -> str:
    """``text`` as it can stand in metadata.csv: no ``|``, no control characters, no white space but single spaces."""
    return " ".join(_SEPARATORS.sub(" ", text).split())


# The output folder


def _asked(source: Source, config: PrepareConfig, output_dir: Path) -> dict[str, Any]:
    """What decides the bytes that are written: the settings, and the source as it lies there."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NO_SETTINGS}
    return {**settings, "dataset": config.dataset, "source": source.revision or _state_of(source, output_dir)}


def _state_of(source: Source, output_dir: Path) -> str:
    """Changes when a file of the source does: by names, sizes and times, as reading all of it would take long."""
    found = source.files
    if found is None and source.root is not None:
        # Not where links lead: some lead in a circle.
        root, output = source.root.resolve(), output_dir.resolve()
        found = [path for path in root.rglob("*") if output not in path.parents]
    digest = hashlib.sha256()
    for path in sorted(found or ()):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _finished_before(output_dir: Path, asked: Mapping[str, Any]) -> PreparationSummary | None:
    """What an earlier call of the same kind came to; None where there was none.

    Raises:
        DataError: there is a prepared set, but not of what is asked for now; says what differs.
    """
    path = output_dir / "dataset.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        then = {**record["settings"], "dataset": record["source"]["dataset"], "source": record["source"]["state"]}
        changed = [f"{name} {then.get(name)} -> {now}" for name, now in asked.items() if then.get(name) != now]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(_in_the_way(output_dir, "dataset.json")) from error
    if changed:
        raise DataError(f"{_in_the_way(output_dir, 'dataset.json')} It is of something else: {'; '.join(changed)}.")
    logger.info("%s was prepared before, from the same source with the same settings: it is left as it is.", output_dir)
    (output_dir / JOURNAL).unlink(missing_ok=True)
    return PreparationSummary(
        output_dir=output_dir,
        accepted=record["accepted"],
        rejected={Reason(reason): count for reason, count in record["rejected"].items()},
        texts_changed=record["texts_changed"],
        seconds=record["seconds"],
        speakers=record["speakers"],
    )


def _in_the_way(output_dir: Path, name: str) -> str:
    return f"{output_dir} already holds a prepared set ({name}). Delete it, or choose another --output_dir."


def _summary(ledger: Ledger, output_dir: Path, rate_hz: int) -> PreparationSummary:
    counts = Counter(entry.reason for entry in ledger.entries if isinstance(entry, LeftOut))
    accepted = ledger.accepted
    return PreparationSummary(
        output_dir=output_dir,
        accepted=len(accepted),
        rejected={reason: counts[reason] for reason in Reason if counts[reason]},
        texts_changed=sum(entry.text_changed for entry in accepted),
        seconds=sum(entry.samples for entry in accepted) / rate_hz,
        speakers=len({entry.speaker for entry in accepted}),
    )


def _refuse_foreign(wavs: Path) -> None:
    entries = wavs.iterdir() if wavs.exists() else ()
    foreign = next((entry for entry in entries if not _OUR_FILE.fullmatch(entry.name)), None)
    if foreign:
        raise DataError(f"{foreign} was not written by prepare_data. Move it away, or choose another --output_dir.")


def _clear(wavs: Path) -> None:
    _refuse_foreign(wavs)
    if wavs.exists():
        shutil.rmtree(wavs)


# From clip to clip


def _convert_all(source: Source, config: PrepareConfig, wavs: Path, ledger: Ledger) -> None:
    total = min((count for count in (config.max_samples, source.clip_count) if count), default=None)
    accepted = len(ledger.accepted)
    with tqdm(desc="prepare_data", total=total, unit="clip", disable=None) as bar:
        bar.update(accepted if config.max_samples else len(ledger.entries))
        if accepted == config.max_samples > 0:
            return
        with closing(_outcomes(source, config, wavs, done=len(ledger.entries))) as outcomes:
            for clip, part, outcome in outcomes:
                if isinstance(outcome, Rejection):
                    ledger.add(LeftOut(clip.clip_id, *outcome))
                else:
                    part.replace(wavs / wav_name(accepted))
                    text = one_line(clip.text)
                    speaker = one_line(clip.speaker or "") or _UNKNOWN_SPEAKER
                    ledger.add(Accepted(text, speaker, outcome, text != clip.text))
                    accepted += 1
                done = accepted if config.max_samples else len(ledger.entries)
                bar.update(done - bar.n)
                if accepted == config.max_samples > 0:
                    break
    for part in wavs.glob("*.part"):  # of clips that were begun before the last one wanted was done
        part.unlink()


def _outcomes(
    source: Source, config: PrepareConfig, wavs: Path, done: int
) -> Generator[tuple[SourceClip, Path, int | Rejection], None, None]:
    """Every clip behind the first ``done`` with its temporary file and what :func:`convert_clip` said, in order.

    Only a few clips are under way at any time: the audio may lie in memory.
    """
    processes = config.processes or _cores()
    # Started anew rather than forked: reading Parquet has threads, and those do not survive a fork.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[SourceClip, Path, Future[int | Rejection] | Rejection]] = deque()
    with ProcessPoolExecutor(processes, context, initializer=_begin_worker) as pool:
        try:
            for index, (clip, known) in islice(enumerate(_judged(source.clips)), done, None):
                # With our number, as workers of a killed preparation may live on for a moment.
                part = wavs / f"{index}-{os.getpid()}.part"
                waiting.append(
                    (clip, part, known or pool.submit(convert_clip, clip.audio, _tokens(clip), config, part))
                )
                if len(waiting) == processes * _CLIPS_IN_FLIGHT_PER_PROCESS:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        except BrokenProcessPool as error:
            raise VitsTrainerError(
                f"a worker process of prepare_data was killed, perhaps as memory ran out. {wavs} is incomplete: "
                "run prepare_data again, with fewer --processes; it goes on from there."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(
    clip: SourceClip, part: Path, outcome: Future[int | Rejection] | Rejection
) -> tuple[SourceClip, Path, int | Rejection]:
    return clip, part, outcome if isinstance(outcome, Rejection) else outcome.result()


def _judged(clips: Iterator[SourceClip]) -> Iterator[tuple[SourceClip, Rejection | None]]:
    """Each clip with the reason to leave it out, where that shows without opening the audio."""
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


def _tokens(clip: SourceClip) -> int:
    """Tokens of the clip's text as MMS-TTS counts: its characters, with a blank before, between and behind them."""
    return 2 * len(one_line(clip.text)) + 1


def _cores() -> int:
    # Containers and schedulers allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# In a worker process


def convert_clip(audio: Path | bytes, tokens: int, config: PrepareConfig, wav: Path) -> int | Rejection:
    """Writes one clip as 16-bit PCM, mono, at ``config.target_sr``, trimmed and as loud as ``config`` asks for.

    Returns:
        How many samples were written, or why none were.

    Raises:
        OSError: ``wav`` cannot be written.
    """
    try:
        samples = _read_clip(audio, config)
    except RecordingError as error:
        return error.rejection
    if config.loudness_dbfs is not None:
        samples = to_loudness(samples, config.loudness_dbfs)
    pcm = to_pcm16(samples)
    frames = len(pcm) // HOP_SAMPLES
    if tokens > frames:
        return Rejection(Reason.TEXT_TOO_LONG, f"{tokens} tokens, {frames} frames")
    write_pcm16_wav(wav, pcm, config.target_sr)
    return len(pcm)


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


# What is written


def _metadata_csv(ledger: Ledger) -> str:
    several = len({entry.speaker for entry in ledger.accepted}) > 1
    return "".join(
        "|".join([wav_name(number), entry.text, *([entry.speaker] if several else [])]) + "\n"
        for number, entry in enumerate(ledger.accepted)
    )


def _rejected_csv(ledger: Ledger) -> str:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("clip", "reason", "detail"))
    for entry in ledger.entries:
        if isinstance(entry, LeftOut):
            writer.writerow((csv_cell(entry.clip_id), entry.reason, csv_cell(entry.detail)))
    return content.getvalue()


def csv_cell(value: str) -> str:
    """One line that no spreadsheet takes for a formula."""
    line = one_line(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _dataset_json(summary: PreparationSummary, source: Source, config: PrepareConfig, asked: Mapping[str, Any]) -> str:
    return (
        json.dumps(
            {
                "accepted": summary.accepted,
                "rejected": summary.rejected,
                "texts_changed": summary.texts_changed,
                "seconds": round(summary.seconds, 3),
                "hours": round(summary.hours, 4),
                "mean_seconds": round(summary.mean_seconds, 3),
                "speakers": summary.speakers,
                "sampling_rate": config.target_sr,
                "source": {
                    "kind": source.kind,
                    "dataset": config.dataset,
                    "revision": source.revision,
                    "clips": source.clip_count,
                    "state": asked["source"],
                },
                "settings": {name: value for name, value in asked.items() if name not in ("dataset", "source")},
                "versions": {
                    "vits_trainer": __version__,
                    "soundfile": sf.__version__,
                    "libsndfile": sf.__libsndfile_version__,
                    "soxr": soxr.__version__,
                },
            },
            ensure_ascii=False,
            indent=2,
        )
        + "\n"
    )


def _nothing_left(summary: PreparationSummary) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in summary.rejected.items())
    return (
        f"not one clip is left to train on: {counts}. {summary.output_dir / 'rejected.csv'} says why for each; "
        "correct the data set, or loosen the limits (--min_upvotes, --max_downvotes, --min_duration_s, "
        "--max_duration_s, --min_loudness_dbfs)."
    )
