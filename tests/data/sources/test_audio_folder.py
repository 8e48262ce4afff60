"""Audio folders: CSV parsing, paths outside the folder, errors with file and line."""

from pathlib import Path

import pytest

from tests.support.sources import WAV, clips_of, reasons, refusal, write_audio_folder
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.detect import open_source


def test_metadata_is_csv_with_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    rows = ["\ufefffile_name,text,speaker", '"a, b.wav","He said ""no"", twice",ann', "sub/c.wav,a|b,", "", "d,e,f"]
    content = "\r\n".join([*rows, 'sub/c.wav,"two\nlines",bob', ""])
    (tmp_path / "sub").mkdir()
    for name in ("a, b.wav", "sub/c.wav"):
        (tmp_path / name).write_bytes(WAV)
    (tmp_path / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    source = open_source(PrepareConfig(dataset=str(tmp_path)))
    assert (source.kind, source.clip_count) == ("audio-folder", 4)
    clips = list(source.clips)
    assert [clip.clip_id for clip in clips] == ["a, b.wav", "sub/c.wav", "d", "sub/c.wav"]
    assert [clip.text for clip in clips] == ['He said "no", twice', "a|b", "e", "two\nlines"]
    assert [clip.speaker for clip in clips] == ["ann", None, "f", "bob"]
    inside = tmp_path / "sub" / "c.wav"
    assert [clip.audio for clip in clips] == [tmp_path / "a, b.wav", inside, b"", inside]
    assert reasons(clips) == [None, None, Reason.MISSING_FILE, None]


def test_paths_outside_the_folder_and_rows_without_a_path_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(WAV)
    rows = f"file_name,text\n../secret.wav,a\n{tmp_path}/secret.wav,b\n,c"
    clips = clips_of(write_audio_folder(tmp_path / "set", rows))
    assert reasons(clips) == [Reason.PATH_OUTSIDE, Reason.PATH_OUTSIDE, Reason.MISSING_FILE]
    assert {clip.audio for clip in clips} == {b""}


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        pytest.param("file_name,transcription\na.wav,x\n", 1, "--text_column", id="no text"),
        pytest.param("file_name,text\na.wav,x\n\na.wav,yes, no\n", 4, "3 columns where the header has 2", id="ragged"),
        pytest.param('file_name,text\na.wav,"x"y\n', 2, "not valid CSV", id="quotes"),
        pytest.param('file_name,text\na.wav,"x\n', 2, "not valid CSV", id="open quotes"),
        pytest.param(f"file_name,text\na.wav,{'x' * 200_000}\n", 2, "not valid CSV", id="endless"),
    ],
)
def test_errors_for_malformed_csv_name_file_and_line(tmp_path: Path, content: str, line: int, problem: str) -> None:
    (tmp_path / "metadata.csv").write_text(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'metadata.csv'} line {line}:" in message
    assert problem in message


def test_metadata_without_clips_or_not_in_utf_8_is_refused(tmp_path: Path) -> None:
    assert "contains no clips" in refusal(write_audio_folder(tmp_path, "file_name,text\n"))
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na,stra\xdfe\n")
    assert "line 2: not UTF-8" in refusal(tmp_path)
