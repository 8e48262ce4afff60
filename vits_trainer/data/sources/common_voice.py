"""Extracted releases of Common Voice."""

from collections.abc import Iterator
from pathlib import Path

from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason, Rejection
from vits_trainer.data.sources.base import (
    Columns,
    Source,
    SourceClip,
    SourceKind,
    make_clip,
    nonblank_lines,
    require_clips,
    require_named_columns,
    row_clip,
    speakers_of,
)
from vits_trainer.data.sources.files import AudioFiles
from vits_trainer.utils.errors import DataError


def _is_common_voice(folder: Path, _: PrepareConfig) -> bool:
    return (folder / "validated.tsv").is_file()


def _open_common_voice(folder: Path, config: PrepareConfig) -> Source:
    """Opens a release. Its ``validated.tsv`` has a header, tabs, and no quoting: ``"`` in a sentence is literal."""
    metadata = folder / "validated.tsv"
    clip_count = sum(1 for _ in _rows(metadata, config))
    speakers = speakers_of(lambda: _clips(folder, config))
    clips = _clips(folder, config)
    return Source(SOURCE.name, folder, require_clips(clip_count, metadata), clips, access="listed", speakers=speakers)


def _columns(config: PrepareConfig) -> Columns:
    audio = config.audio_column or "path"
    speaker = config.speaker_column or "client_id"
    return Columns(audio, config.text_column or "sentence", audio, "up_votes", "down_votes", speaker)


def _clips(folder: Path, config: PrepareConfig) -> Iterator[SourceClip]:
    find, columns = AudioFiles(folder, ("clips",)), _columns(config)
    for number, row in _rows(folder / "validated.tsv", config):
        location = f"validated.tsv line {number}"
        if isinstance(row, Rejection):
            yield make_clip(location, "", row, speaker=None)
        else:
            yield row_clip(row, location, columns, find, config)


def _rows(metadata: Path, config: PrepareConfig) -> Iterator[tuple[int, dict[str, str] | Rejection]]:
    """Yields line numbers and rows by column, or why a line cannot be read: one bad line must not stop a release.

    Raises:
        DataError: a column is missing.
    """
    lines = nonblank_lines(metadata)
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    require_named_columns(f"{metadata} line 1", names, config)
    columns = _columns(config)
    required = (columns.speaker, columns.audio, columns.text, columns.up_votes, columns.down_votes)
    missing = [name for name in required if name is not None and name not in names]
    if missing:
        raise DataError(
            f"{metadata} line 1: no column {', '.join(missing)}. Give the validated.tsv of a Common Voice release, "
            "unmodified, with its header line and tabs."
        )
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) == len(names):
            yield number, dict(zip(names, fields, strict=True))
        else:
            reason = f"{len(fields)} columns where the header has {len(names)}: a TAB or line feed in a sentence?"
            yield number, Rejection(Reason.MALFORMED_ROW, reason)


SOURCE = SourceKind(
    "common-voice",
    "an extracted Common Voice release (validated.tsv with clips/)",
    _is_common_voice,
    _open_common_voice,
)
