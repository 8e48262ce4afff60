"""Long recordings, cut into clips: NAME.wav with subtitles, a text, or neither (``--segment``)."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.serialization import expanded
from vits_trainer.data.audio import AUDIO_ENDINGS, Reason, Rejection
from vits_trainer.data.segmentation.plan import Planner, Recording, Transcribe
from vits_trainer.data.segmentation.reading import SpanReader, open_recording
from vits_trainer.data.segmentation.speech import LONGEST_S, load_detector
from vits_trainer.data.sources import hub
from vits_trainer.data.sources.base import Source, SourceClip, make_clip, named_columns
from vits_trainer.data.sources.corrections import SPEAKER_ENDING, read_speaker
from vits_trainer.data.sources.files import is_audio, is_utf8
from vits_trainer.utils.errors import ConfigError, DataError
from vits_trainer.utils.strings import printable

PLANS = "segments"
"""Folder of the plans in the output folder."""
_SUBTITLES = (".srt", ".vtt")
_NAME = "recordings"


def open_recordings(config: PrepareConfig, transcribe: Transcribe | None) -> Source:
    """Opens a recording, or a folder of them. Clips are planned when they are read.

    Args:
        config: of the preparation.
        transcribe: the recognizer ``config.transcribe``.

    Raises:
        ConfigError: a text needs a recognizer, or the package that finds speech is not installed.
        DataError: there is no recording.
    """
    path = expanded("dataset", config.dataset)
    hub.refuse_hub_options(path, config)
    for flag, name in named_columns(config).items():
        raise ConfigError(f"{flag} {name}: --segment reads recordings, which have no columns. Leave it out.")
    if config.transcribe is not None and transcribe is None:
        raise ConfigError(
            f"transcribe={config.transcribe!r}: give the recognizer to prepare() as a function, too, such as "
            f"transcribe=vits_trainer.evaluation.recognizers.load_recognizer({config.transcribe!r}).transcribe."
        )
    folder = path if path.is_dir() else path.parent
    files = _files(path)
    recordings, rejected = _pair(files)
    if not recordings:
        raise DataError(f"--dataset {config.dataset}: no recording here. Give an audio file, or a folder of them.")
    unaligned = next((recording.text for recording in recordings if recording.text), None)
    if unaligned is not None and transcribe is None:
        raise ConfigError(
            f"{unaligned}: a text without times needs a recognizer of its language to be aligned. Give --transcribe "
            "whisper-tiny.en (English) or another one, or times (NAME.srt or NAME.vtt)."
        )
    planner = Planner(
        load_detector(),
        transcribe,
        config.transcribe or "",
        expanded("output_dir", config.output_dir) / PLANS,
        min(LONGEST_S, config.max_duration_s),
    )

    def clips_from(start: int) -> Iterator[SourceClip]:
        return _clips(recordings, rejected, planner, start)

    return Source(_NAME, folder, None, clips_from(0), files=files, clips_from=clips_from)


def _files(path: Path) -> list[Path]:
    """Returns the recordings and the files with their texts."""
    if not path.exists():
        raise DataError(f"--dataset {path}: no such file or folder. Give a recording, or a folder of them.")
    folder = path if path.is_dir() else path.parent
    endings = (*_SUBTITLES, ".txt", SPEAKER_ENDING)
    # macOS writes ._NAME next to NAME on other systems' disks.
    names = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("._"))
    if not path.is_dir():
        names = [file for file in names if file == path or (_belongs(file, path) and not is_audio(file.name))]
    return [file for file in names if is_audio(file.name) or file.suffix.casefold() in endings]


def _belongs(file: Path, recording: Path) -> bool:
    """Whether a file is that of a recording: NAME.srt, also NAME.en.srt, for NAME.wav."""
    stem, name = _stem(file), _stem(recording)
    language = stem.removeprefix(f"{name}.")
    return stem == name or (language != stem and language.replace("-", "").isalnum() and len(language) <= 10)


def _stem(file: Path) -> str:
    # macOS stores decomposed letters.
    return unicodedata.normalize("NFC", file.stem)


def _pair(files: Sequence[Path]) -> tuple[list[Recording], list[SourceClip]]:
    """Returns the recordings with their texts, and a rejected clip for each file that cannot be used."""
    recordings: list[Recording] = []
    rejected: list[SourceClip] = []
    used: set[Path] = set()
    audio = [file for file in files if is_audio(file.name)]
    for file in sorted(audio, key=lambda file: (file.stem, AUDIO_ENDINGS.index(file.suffix.casefold()))):
        subtitles = [other for other in files if other.suffix.casefold() in _SUBTITLES and _belongs(other, file)]
        texts = [other for other in files if other.suffix.casefold() == ".txt" and _stem(other) == _stem(file)]
        if not is_utf8(file.name):
            detail = f"{printable(file.name)} is not UTF-8; rename the file"
            rejected.append(_reject(file, Rejection(Reason.UNUSABLE_NAME, detail)))
        elif recordings and recordings[-1].path.stem == file.stem:
            detail = f"{recordings[-1].path.name} has the same name"
            rejected.append(_reject(file, Rejection(Reason.DUPLICATE, detail)))
        elif len(subtitles) > 1:
            names = " or ".join(other.name for other in subtitles)
            rejection = Rejection(Reason.AMBIGUOUS_NAME, f"its subtitles may be {names}: move one away")
            rejected.append(_reject(file, rejection))
        else:
            first = subtitles[0] if subtitles else None
            recordings.append(Recording(file, first, texts[0] if texts and first is None else None))
        used |= {*subtitles, *texts}
    for file in files:
        if not is_audio(file.name) and file.suffix.casefold() != SPEAKER_ENDING and file not in used:
            rejected.append(_reject(file, Rejection(Reason.MISSING_FILE, f"{file.name} has no recording")))
    return recordings, rejected


def _reject(file: Path, rejection: Rejection) -> SourceClip:
    return make_clip(printable(file.name), "", rejection, speaker=None)


def _clips(
    recordings: Sequence[Recording], rejected: Sequence[SourceClip], planner: Planner, start: int
) -> Iterator[SourceClip]:
    """Yields the clips from index ``start`` on; recordings that end before it are not opened."""
    for recording in recordings:
        segments = planner.plan(recording)
        wanted = segments[start:]
        start = max(0, start - len(segments))
        speaker = read_speaker(recording.path)
        with ExitStack() as stack:
            reader: SpanReader | None = None
            for segment in wanted:
                times = f" {segment.start_s:.2f}-{segment.end_s:.2f}" if segment.end_s else ""
                name = f"{printable(recording.path.name)}{times}"
                audio: bytes | Rejection | None = segment.rejection
                if audio is None:
                    reader = reader or SpanReader(stack.enter_context(open_recording(recording.path)))
                    audio = reader.read_file(segment.start_s, segment.end_s)
                yield make_clip(name, segment.text, audio, segment.speaker or speaker)
    yield from rejected[start:]
