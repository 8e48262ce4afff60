"""LJ Speech: where its audio lies, which text is taken, errors with file and line."""

from pathlib import Path

import pytest

from tests.support.audio import write_lj_speech
from tests.support.sources import WAV, clips_of, reasons, refusal
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.base import SourceClip
from vits_trainer.data.sources.detect import open_source

# LJ Speech


@pytest.mark.parametrize("place", ["wavs/", "audio/", ""])
@pytest.mark.parametrize("ending", [".wav", ".flac", ".mp3", ".ogg"])
def test_lj_speech_audio_is_found_whatever_its_folder_and_ending(tmp_path: Path, place: str, ending: str) -> None:
    clips = {f"{place}a.1{ending}": b"x", f"{place}b{ending}": b"y"}
    folder = write_lj_speech(tmp_path / "set", ["b|Zwei.", f"a.1{ending}|Eins."], clips)
    source = open_source(PrepareConfig(dataset=str(folder)))
    assert (source.kind, source.clip_count) == ("lj-speech", 2)
    assert list(source.clips) == [
        SourceClip("b", "Zwei.", folder / f"{place}b{ending}", None, None),
        SourceClip(f"a.1{ending}", "Eins.", folder / f"{place}a.1{ending}", None, None),
    ]


def test_lj_speech_takes_the_normalised_text_where_there_is_one(tmp_path: Path) -> None:
    lines = ["a|No 1|Number one", "a|Only this|", "a|Or this|  "]
    clips = clips_of(write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV}))
    assert [clip.text for clip in clips] == ["Number one", "Only this", "Or this"]


def test_lj_speech_texts_are_read_as_they_stand(tmp_path: Path) -> None:
    """Quotes do not join lines; a byte order mark and DOS line ends go; other separators stay in the text."""
    lines = ['\ufeffa|"Open', "b|quote, she said.\r", "", "c|one\u2028two\x0bthree\rfour"]
    clips = clips_of(write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV}))
    assert [clip.clip_id for clip in clips] == ["a", "b", "c"]
    assert [clip.text for clip in clips] == ['"Open', "quote, she said.", "one\u2028two\x0bthree\rfour"]


@pytest.mark.parametrize(
    ("content", "line", "says"),
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
def test_malformed_lj_speech_metadata_name_file_line_and_remedy(
    tmp_path: Path, content: bytes, line: int, says: str
) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'metadata.csv'} line {line}:" in message
    assert says in message


def test_metadata_without_a_row_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("\n \n")
    assert "contains no clips" in refusal(tmp_path)


# Paths


def test_paths_out_of_the_folder_are_rejected_however_they_lead_out(tmp_path: Path) -> None:
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


def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path) -> None:
    lines = [f"{name}|text" for name in ("a" * 300, "nul\0byte", "circle", "http://example.org/a.wav", "gone")]
    folder = write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV})
    (folder / "wavs" / "circle").symlink_to(folder / "wavs" / "circle")
    assert reasons(clips_of(folder)) == [Reason.MISSING_FILE] * 5
