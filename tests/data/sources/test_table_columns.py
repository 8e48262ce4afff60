"""Columns of tables without a header: file, text, reading and speaker are told apart by their content."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.audio import write_lj_speech
from tests.support.sources import WAV, clips_of, reasons, refusal, write_audio_folder
from vits_trainer.data.audio import Reason

WORDS = (
    "old", "kings", "rode", "slowly", "through", "green", "fields", "while", "seven", "birds", "sang", "above",
    "silver", "crowns", "near", "rivers",
)  # fmt: skip
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]


def written(row: int) -> str:
    return " ".join(WORDS[(5 * row + k) % 16] for k in range(6)) + f" {row}."


def spoken(row: int) -> str:
    return written(row).replace(str(row), NUMBERS[row])


def speaker(row: int) -> str:
    return "ann" if row % 2 else "bert"


def full_name(row: int) -> str:
    return f"{speaker(row)} van der Berg"


def clip(row: int) -> str:
    return f"wavs/c{row}.wav"


def duration(row: int) -> str:
    return f"{2 + row / 7:.2f}"


def table(folder: Path, rows: int, *columns: Callable[[int], str]) -> Path:
    """A table between pipes, and its files."""
    lines = ["|".join(column(row) for column in columns) for row in range(rows)]
    return write_lj_speech(folder, lines, {clip(row): WAV for row in range(rows)})


@pytest.mark.parametrize("rows", [4, 12])
@pytest.mark.parametrize(
    ("columns", "text", "speaks"),
    [
        pytest.param((clip, written, speaker), written, speaker, id="speaker last"),
        pytest.param((clip, speaker, written), written, speaker, id="speaker second"),
        pytest.param((clip, lambda row: str(row % 2), written), written, lambda row: str(row % 2), id="numbers"),
        pytest.param((lambda row: f"c{row}", written, spoken), spoken, None, id="LJ Speech"),
        pytest.param((clip, written, spoken, speaker), spoken, speaker, id="reading and speaker"),
        pytest.param((clip, speaker, written, spoken), spoken, speaker, id="speaker and reading"),
        pytest.param((clip, full_name, written), written, full_name, id="names of several words"),
        pytest.param((clip, written, speaker, lambda _: "EN"), written, speaker, id="a constant"),
        pytest.param((clip, duration, written, speaker), written, speaker, id="durations"),
        pytest.param((written, speaker, clip), written, speaker, id="file last"),
        pytest.param((clip, written, lambda _: "bert"), written, lambda _: "bert", id="one speaker"),
        pytest.param((clip, written, lambda _: ""), written, None, id="empty column"),
    ],
)
def test_columns_are_recognised_by_their_content(
    tmp_path: Path, rows: int, columns: tuple[Callable[[int], str], ...], text: object, speaks: object
) -> None:
    clips = clips_of(table(tmp_path, rows, *columns))
    assert [clip.text for clip in clips] == [text(row) for row in range(rows)]
    assert [clip.speaker for clip in clips] == [speaks and speaks(row) for row in range(rows)]
    assert [Path(clip.audio).name for clip in clips] == [f"c{row}.wav" for row in range(rows)]


def test_numbers_of_speakers_are_not_files_even_if_files_have_these_names(tmp_path: Path) -> None:
    lines = [f"{row}|{row % 2}|{written(row)}" for row in range(8)]
    clips = clips_of(write_lj_speech(tmp_path, lines, {f"wavs/{row}.wav": WAV for row in range(8)}))
    assert [(Path(clip.audio).stem, clip.speaker) for clip in clips] == [(str(row), str(row % 2)) for row in range(8)]


def test_the_written_text_is_used_where_the_reading_is_empty(tmp_path: Path) -> None:
    clips = clips_of(table(tmp_path, 6, clip, written, lambda row: spoken(row) if row % 2 else " "))
    assert [clip.text for clip in clips] == [spoken(row) if row % 2 else written(row) for row in range(6)]


@pytest.mark.parametrize(
    ("rows", "columns", "named"),
    [
        pytest.param(12, (clip, written, speaker, lambda row: "abc"[row % 3]), "column 3 ('bert', 'ann') or", id="two"),
        pytest.param(12, (clip, lambda row: "yes" if row % 3 else "no", speaker), "--text_column 2 or 3", id="words"),
        pytest.param(12, (clip, written, lambda row: f"Ganz anderer Wortlaut {row}"), "--text_column 2 or 3", id="?"),
        pytest.param(2, (clip, speaker, written), "--speaker_column 2, or --speaker_column none", id="too few rows"),
        pytest.param(1, (clip, speaker, lambda _: "yes"), "--text_column 2 or 3", id="one row"),
    ],
)
def test_ambiguous_tables_are_refused_with_the_flag_that_decides(
    tmp_path: Path, rows: int, columns: tuple[Callable[[int], str], ...], named: str
) -> None:
    message = refusal(table(tmp_path, rows, *columns))
    assert named in message
    assert "\n" not in message


def test_flags_number_the_columns_of_a_table_without_a_header(tmp_path: Path) -> None:
    folder = table(tmp_path, 12, clip, written, speaker, lambda row: "abc"[row % 3])
    assert {clip.speaker for clip in clips_of(folder, speaker_column="4")} == {"a", "b", "c"}
    assert {clip.speaker for clip in clips_of(folder, speaker_column="none")} == {None}
    assert {clip.text for clip in clips_of(folder, speaker_column="4", text_column="3")} == {"ann", "bert"}
    assert "a column from 1 to 4" in refusal(folder, speaker_column="5")
    assert "a column from 1 to 4" in refusal(folder, text_column="text")


def test_headers_name_the_columns(tmp_path: Path) -> None:
    rows = [f"{speaker(row)}|{spoken(row)}|c{row}|{written(row)}|{row}" for row in range(6)]
    folder = write_lj_speech(tmp_path, ["Speaker Name|Normalized_Text|ID|Text|up_votes", *rows], {})
    clips = clips_of(folder)
    assert [clip.text for clip in clips] == [spoken(row) for row in range(6)]
    assert [clip.speaker for clip in clips] == [speaker(row) for row in range(6)]
    assert reasons(clips) == [Reason.TOO_FEW_UPVOTES] * 2 + [Reason.MISSING_FILE] * 4


def test_votes_that_are_not_numbers_reject_the_line(tmp_path: Path) -> None:
    rows = "file_name,text,up_votes\na.wav,x,many\na.wav,x,\na.wav,x,2"
    clips = clips_of(write_audio_folder(tmp_path, rows, "a.wav"))
    assert reasons(clips) == [Reason.MALFORMED_ROW, Reason.TOO_FEW_UPVOTES, None]
