"""Lookup of audio files: folders, endings, Unicode forms, paths outside the data set, hints for missing files."""

import os
import unicodedata
from pathlib import Path

import pytest

from tests.support.audio import write_lj_speech
from tests.support.sources import WAV, clips_of, reasons, write_audio_folder
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.base import SourceClip
from vits_trainer.data.sources.files import paired_files


def lookup(folder: Path, names: list[str], files: list[str]) -> list[SourceClip]:
    """Writes the files and a table of the names, and reads it."""
    lines = [f"{name}|Sentence {number} is here." for number, name in enumerate(names)]
    return clips_of(write_lj_speech(folder, lines, dict.fromkeys(files, WAV)))


@pytest.mark.parametrize("subfolder", ["wavs/", "audio/", "", "clips/", "WAVS/"])
@pytest.mark.parametrize("ending", [".wav", ".flac", ".Mp3", ".OGG", ".oga", ".aiff", ".m4a"])
def test_audio_is_located_in_any_subfolder_with_any_ending(tmp_path: Path, subfolder: str, ending: str) -> None:
    files = [f"{subfolder}{name}{ending}" for name in ("b", "a.1", "c")]
    clips = lookup(tmp_path, ["b", "a.1", f"c{ending.lower()}"], files)
    assert [clip.audio for clip in clips] == [tmp_path / file for file in files]


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_names_in_another_unicode_form_are_found(tmp_path: Path, on_disk: str, in_table: str) -> None:
    names = ["grüße", "Ordner é/möwe", "tiếng"]
    files = [unicodedata.normalize(on_disk, f"wavs/{name}.wav") for name in names]
    clips = lookup(tmp_path, [unicodedata.normalize(in_table, name) for name in names], files)
    assert [clip.audio for clip in clips] == [tmp_path / file for file in files]


def test_unusual_names_are_found(tmp_path: Path) -> None:
    names = ["e😀", "-dash", "n" * 251, "back\\slash", "سلام", "a.b.c", " inner  spaces", "a'b", "x.wav.wav", "#1"]
    clips = lookup(tmp_path, names, [f"wavs/{name}.wav" for name in names])
    assert [Path(clip.audio).stem for clip in clips] == names
    clips = lookup(tmp_path / "windows", ["wavs\\a.wav", "sub\\b", f"{tmp_path}/windows/wavs/c.wav", "./wavs/a"], [
        "wavs/a.wav", "wavs/sub/b.wav", "wavs/c.wav"
    ])  # fmt: skip
    assert [Path(clip.audio).name for clip in clips] == ["a.wav", "b.wav", "c.wav", "a.wav"]


def test_names_that_match_several_files_are_rejected_unless_one_is_exact(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "wavs/é.wav") for form in ("NFC", "NFD")]
    clips = lookup(tmp_path, ["a", "a.wav", "a.WAV", "a.Wav", "é"], ["wavs/a.wav", "wavs/a.WAV", *forms])
    ambiguous = Reason.AMBIGUOUS_NAME
    assert reasons(clips) == [ambiguous, None, None, ambiguous, ambiguous]
    assert clips[0].rejection.detail == "a may be 'a.WAV' or 'a.wav': rename one"
    assert r"'e\u0301.wav' or '\xe9.wav'" in clips[4].rejection.detail


@pytest.mark.parametrize(
    ("name", "file", "hint"),
    [
        ("'a.wav'", "wavs/a.wav", "remove the quotes or spaces around the name"),
        ("DUMMY1/a.wav", "wavs/a.wav", "remove DUMMY1/ from the names"),
        ("D:\\my data\\wavs\\a.wav", "wavs/a.wav", "wavs/a.wav exists: remove D:/my data/ from the names"),
        ("/home/me/wavs/a.wav", "wavs/a.wav", "remove /home/me/ from the names"),
        ("a.wav", "recordings/a.wav", "write recordings/ before the names"),
        ("a.mp3", "wavs/a.wav", "correct the ending"),
        ("A.wav", "wavs/a.wav", "there is 'a.wav', which differs in case or spaces"),
    ],
)
def test_missing_files_come_with_a_hint(tmp_path: Path, name: str, file: str, hint: str) -> None:
    (clip,) = lookup(tmp_path, [name], [file])
    assert clip.rejection.reason in (Reason.MISSING_FILE, Reason.PATH_OUTSIDE)
    assert hint in clip.rejection.detail


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


def test_paths_of_a_csv_outside_the_folder_and_rows_without_a_path_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(WAV)
    rows = f"file_name,text\n../secret.wav,a\n{tmp_path}/secret.wav,b\n,c"
    clips = clips_of(write_audio_folder(tmp_path / "set", rows))
    assert reasons(clips) == [Reason.PATH_OUTSIDE, Reason.PATH_OUTSIDE, Reason.MISSING_FILE]
    assert {clip.audio for clip in clips} == {b""}


def test_invalid_file_names_are_rejected_as_missing_files(tmp_path: Path) -> None:
    lines = [f"{name}|text" for name in ("a" * 300, "nul\0byte", "loop", "http://example.org/a.wav", "gone")]
    folder = write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV})
    (folder / "wavs" / "loop").symlink_to(folder / "wavs" / "loop")
    assert reasons(clips_of(folder)) == [Reason.MISSING_FILE] * 5


# Pairs of audio and text


def test_pairs_have_a_common_name_in_any_case_of_the_ending_and_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "é", "e\u0301"
    for name in ("n0.WAV", "n0.txt", f"{composed}.wav", f"{decomposed}.TXT", "._n0.wav", "notes.pdf", "b.flac"):
        (tmp_path / name).write_bytes(b"x")
    pairs = {name: sorted(file.name for file in files) for name, files in paired_files(tmp_path).items()}
    assert pairs == {"b": ["b.flac"], "n0": ["n0.WAV", "n0.txt"], "é": [f"{decomposed}.TXT", f"{composed}.wav"]}


def test_corrections_are_read_by_these_names(tmp_path: Path) -> None:
    for name in ("n0.WAV", "n0.TXT", "n1.txt", "n2.wav", "n3.wav", "n3.Wav", "n3.txt", "n4.wav"):
        (tmp_path / name).write_bytes(WAV if "wav" in name.lower() else b"text")
    (tmp_path / "n4.txt").write_bytes(b"caf\xe9")
    for ending in (b"wav", b"txt"):
        (tmp_path / os.fsdecode(b"caf\xe9." + ending)).write_bytes(b"text")
    clips = clips_of(tmp_path)
    assert [clip.clip_id for clip in clips] == [r"caf\udce9", "n0", "n1", "n2", "n3", "n4"]
    missing, empty, ambiguous = Reason.MISSING_FILE, Reason.EMPTY_TEXT, Reason.AMBIGUOUS_NAME
    assert reasons(clips) == [Reason.UNUSABLE_NAME, None, missing, empty, ambiguous, Reason.MALFORMED_ROW]
    assert (clips[1].audio, clips[1].text) == (tmp_path / "n0.WAV", "text")
