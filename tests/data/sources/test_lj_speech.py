"""LJ Speech: lookup of audio files, choice of the text, paths outside the folder, errors with file and line."""

from pathlib import Path

import pytest

from tests.support.audio import write_lj_speech
from tests.support.sources import WAV, clips_of, reasons, refusal
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.base import SourceClip
from vits_trainer.data.sources.detect import open_source


@pytest.mark.parametrize("subfolder", ["wavs/", "audio/", ""])
@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".ogg"])
def test_audio_is_located_in_any_subfolder_with_any_extension(tmp_path: Path, subfolder: str, ending: str) -> None:
    clips = {f"{subfolder}a.1{ending}": b"x", f"{subfolder}b{ending}": b"y"}
    folder = write_lj_speech(tmp_path / "set", ["b|Zwei.", f"a.1{ending}|Eins."], clips)
    source = open_source(PrepareConfig(dataset=str(folder)))
    assert (source.kind, source.clip_count) == ("lj-speech", 2)
    assert list(source.clips) == [
        SourceClip("b", "Zwei.", folder / f"{subfolder}b{ending}", None, None),
        SourceClip(f"a.1{ending}", "Eins.", folder / f"{subfolder}a.1{ending}", None, None),
    ]


def test_the_normalised_text_is_used_if_present(tmp_path: Path) -> None:
    lines = ["a|No 1|Number one", "a|Only this|", "a|Or this|  "]
    clips = clips_of(write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV}))
    assert [clip.text for clip in clips] == ["Number one", "Only this", "Or this"]


def test_texts_are_read_verbatim(tmp_path: Path) -> None:
    """Quotes do not join lines; byte order mark and DOS line ends are removed; other separators are kept."""
    lines = ['\ufeffa|"Open', "b|quote, she said.\r", "", "c|one\u2028two\x0bthree\rfour"]
    clips = clips_of(write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV}))
    assert [clip.clip_id for clip in clips] == ["a", "b", "c"]
    assert [clip.text for clip in clips] == ['"Open', "quote, she said.", "one\u2028two\x0bthree\rfour"]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        pytest.param(b"a|b\nc|d|e\n", 2, "expected 2 columns", id="ragged"),
        pytest.param(b"a|b|c\n\nc|d\n", 3, "expected 3 columns", id="ragged after a blank line"),
        pytest.param(b"name,transcription\na.wav,x\n", 1, "id|text", id="commas"),
        pytest.param(b"a|b|c|d\n", 1, "4 column(s)", id="four columns"),
        pytest.param(b"a|b\n|d\n", 2, "clip's id", id="no id"),
        pytest.param(b"a|b\nc|stra\xdfe\n", 2, "Save the file as UTF-8", id="Latin-1"),
        pytest.param("a|b\n".encode("utf-16"), 1, "Save the file as UTF-8", id="UTF-16"),
    ],
)
def test_errors_for_malformed_metadata_name_file_and_line(
    tmp_path: Path, content: bytes, line: int, problem: str
) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'metadata.csv'} line {line}:" in message
    assert problem in message


def test_metadata_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("\n \n")
    assert "contains no clips" in refusal(tmp_path)


# Paths


def test_paths_outside_the_folder_are_rejected(tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(WAV)
    names = ("../../secret.wav", str(secret), "link", "linked/secret", "inside", "../wavs/a")
    lines = [f"{name}|text" for name in names]
    folder = write_lj_speech(tmp_path / "set", lines, {"wavs/a.wav": WAV})
    (folder / "wavs" / "link.wav").symlink_to(secret)
    (folder / "wavs" / "linked").symlink_to(tmp_path)
    (folder / "wavs" / "inside.wav").symlink_to(folder / "wavs" / "a.wav")
    clips = clips_of(folder)
    assert reasons(clips) == [Reason.PATH_OUTSIDE] * 4 + [None, None]
    assert {clip.audio for clip in clips[:4]} == {b""}
    assert {clip.audio for clip in clips[4:]} == {folder / "wavs" / "a.wav"}
    assert str(secret) in clips[1].rejection.detail


def test_invalid_file_names_are_rejected_as_missing_files(tmp_path: Path) -> None:
    lines = [f"{name}|text" for name in ("a" * 300, "nul\0byte", "loop", "http://example.org/a.wav", "gone")]
    folder = write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV})
    (folder / "wavs" / "loop").symlink_to(folder / "wavs" / "loop")
    assert reasons(clips_of(folder)) == [Reason.MISSING_FILE] * 5
