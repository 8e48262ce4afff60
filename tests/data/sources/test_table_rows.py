"""Rows of tables: separators, headers, quoting, line ends, lines that cannot be read."""

from pathlib import Path

import pytest

from tests.support.audio import write_lj_speech
from tests.support.sources import WAV, clips_of, reasons, refusal, write_audio_folder
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.detect import open_source

FILES = {f"wavs/{name}.wav": WAV for name in "abcd"}
TEXTS = ["One is here.", "Two are here.", "Three of us came.", "Four more follow."]


def test_csv_with_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    rows = ["\ufefffile_name,text,speaker", '"a, b.wav","He said ""no"", twice",ann', "sub/c.wav,a|b,", "", "d,e,f"]
    content = "\r\n".join([*rows, 'sub/c.wav,"two\nlines",bob', ""])
    (tmp_path / "sub").mkdir()
    for name in ("a, b.wav", "sub/c.wav"):
        (tmp_path / name).write_bytes(WAV)
    (tmp_path / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    source = open_source(PrepareConfig(dataset=str(tmp_path)))
    assert (source.kind, source.clip_count) == ("table", 4)
    clips = list(source.clips)
    assert [clip.clip_id for clip in clips] == ["a, b.wav", "sub/c.wav", "d", "sub/c.wav"]
    assert [clip.text for clip in clips] == ['He said "no", twice', "a|b", "e", "two\nlines"]
    assert [clip.speaker for clip in clips] == ["ann", None, "f", "bob"]
    inside = tmp_path / "sub" / "c.wav"
    assert [clip.audio for clip in clips] == [tmp_path / "a, b.wav", inside, b"", inside]
    assert reasons(clips) == [None, None, Reason.MISSING_FILE, None]


@pytest.mark.parametrize("separator", ["|", "\t", ";", ","])
@pytest.mark.parametrize("header", [None, "audio_file,text", '"ID","Transcript"', "path, sentence"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_are_read_with_any_separator_header_quoting_and_line_end(
    tmp_path: Path, separator: str, header: str | None, quote: str, end: str
) -> None:
    rows = [f"{quote}{name}{quote}{separator}{quote}{text}{quote}" for name, text in zip("abcd", TEXTS, strict=True)]
    lines = [*([header.replace(",", separator)] if header else []), *rows]
    folder = write_lj_speech(tmp_path, [end.join(lines)], FILES)
    clips = clips_of(folder)
    assert [clip.text for clip in clips] == TEXTS
    assert [clip.audio for clip in clips] == [folder / name for name in FILES]


def test_quotes_are_text_unless_the_whole_table_fits_them(tmp_path: Path) -> None:
    texts = ['"Open', "quote, she said.", '"Whole sentence."', 'in "the" middle']
    rows = [f"{name}|{text}" for name, text in zip("abcd", texts, strict=True)]
    assert [clip.text for clip in clips_of(write_lj_speech(tmp_path, rows, FILES))] == texts
    rows = ['a|"He said ""hello"" to | me."', "b|plain", 'c|"""Whole"""', "d|plain"]
    texts = ['He said "hello" to | me.', "plain", '"Whole"', "plain"]
    assert [clip.text for clip in clips_of(write_lj_speech(tmp_path, rows, FILES))] == texts


def test_texts_keep_other_separators_of_lines(tmp_path: Path) -> None:
    lines = ["\ufeffa|one\r", "", "# a comment", "c|one\u2028two\x0bthree\rfour", "#d|missing"]
    clips = clips_of(write_lj_speech(tmp_path, lines, {**FILES, "wavs/#d.wav": WAV}))
    assert [clip.clip_id for clip in clips] == ["a", "c", "#d"]
    assert [clip.text for clip in clips] == ["one", "one\u2028two\x0bthree\rfour", "missing"]


def test_a_line_with_the_wrong_number_of_columns_is_rejected_alone(tmp_path: Path) -> None:
    lines = ["a|One.|", "b|Two.|", "c|Three | or four.|x", "d|Four."]
    clips = clips_of(write_lj_speech(tmp_path, [f"{line}" for line in lines[:3]], FILES))
    assert reasons(clips) == [None, None, Reason.MALFORMED_ROW]
    assert clips[2].clip_id == "metadata.csv line 3"
    assert clips[2].rejection.detail == "4 columns where the table has 3"


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        pytest.param(b"file_name,words\na.wav,x\n", 1, "--text_column", id="no text"),
        pytest.param(b"file_name,text\na.wav,x\n\na.wav,yes, no\n", 4, "3 columns where the header has 2", id="commas"),
        pytest.param(b'file_name,text\na.wav,"x"y\n', 2, "not valid CSV", id="quotes"),
        pytest.param(b'file_name,text\na.wav,"x\n', 2, "not valid CSV", id="open quotes"),
        pytest.param(b"file_name,text\na.wav," + b"x" * 200_000 + b"\n", 2, "not valid CSV", id="endless"),
        pytest.param(b"a|b\nc|d|e\n", 2, "3 columns where the table has 2", id="ragged"),
        pytest.param(b"a|b|c\n\nc|d\n", 3, "2 columns where the table has 3", id="ragged after a blank line"),
        pytest.param(b"a b\nc d\n", 1, "one column", id="one column"),
        pytest.param(b"a|b\nc|stra\xdfe\n", 2, "Save the file as UTF-8", id="Latin-1"),
        pytest.param("a|b\n".encode("utf-16"), 1, "iconv -f UTF-16 -t UTF-8", id="UTF-16"),
    ],
)
def test_errors_for_malformed_tables_name_file_and_line(
    tmp_path: Path, content: bytes, line: int, problem: str
) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'metadata.csv'} line {line}:" in message
    assert problem in message
    assert "\n" not in message


def test_tables_without_rows_are_refused(tmp_path: Path) -> None:
    assert "contains no clips" in refusal(write_audio_folder(tmp_path, "file_name,text\n"))
    (tmp_path / "metadata.csv").write_text("\n \n")
    assert "contains no clips" in refusal(tmp_path)
