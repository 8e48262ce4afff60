"""Each kind of source is recognised, read in order and lazily, and refused with file and line where it is malformed."""

from pathlib import Path

import pytest

from tests.support.audio import good_utterances, write_lj_speech, write_parquet
from tests.support.sources import WAV, clips_of, reasons, refusal, write_table
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.detect import open_source


def test_a_data_set_behind_a_symbolic_link_is_read(tmp_path: Path) -> None:
    folder = write_lj_speech(tmp_path / "set", ["a|text"], {"wavs/a.wav": WAV})
    (tmp_path / "link").symlink_to(folder)
    assert reasons(clips_of(tmp_path / "link")) == [None]


def test_lj_speech_whose_first_clip_is_called_like_a_header_stays_lj_speech(tmp_path: Path) -> None:
    for first in ("file_name|text", "file_name,text|and so on", "file_name|file_name,text"):
        folder = write_lj_speech(tmp_path / first, [first, "b|Zwei."], {"wavs/file_name.wav": WAV})
        source = open_source(PrepareConfig(dataset=str(folder)))
        assert (source.kind, source.clip_count) == ("lj-speech", 2)


# Named columns

NAMED = {"text_column": "said", "audio_column": "sound", "speaker_column": "who"}


@pytest.mark.parametrize("kind", ["parquet", "audio folder", "release"])
def test_named_columns_go_before_the_ones_that_would_be_found(tmp_path: Path, kind: str) -> None:
    (tmp_path / "clips").mkdir()
    for folder in (tmp_path, tmp_path / "clips"):
        (folder / "b.wav").write_bytes(WAV)
    table = dict.fromkeys(("file_name", "audio", "path", "text", "sentence", "client_id", "speaker"), "x")
    table |= {"sound": "b.wav", "said": "Yek.", "who": "ann", "up_votes": "2", "down_votes": "0"}
    match kind:
        case "parquet":
            write_table(tmp_path / "a.parquet", **{name: [value] for name, value in table.items()})
        case "audio folder":
            (tmp_path / "metadata.csv").write_text(f"{','.join(table)}\n{','.join(table.values())}\n")
        case "release":
            (tmp_path / "validated.tsv").write_text("\t".join(table) + "\n" + "\t".join(table.values()) + "\n")
    (clip,) = clips_of(tmp_path, **NAMED)
    place = tmp_path / "clips" if kind == "release" else tmp_path
    assert (clip.text, clip.audio, clip.speaker) == ("Yek.", place / "b.wav", "ann")
    for flag in NAMED:
        message = refusal(tmp_path, **{**NAMED, flag: "absent"})
        assert f"no column absent (--{flag}); its columns are" in message
        assert all(name in message for name in table)


def test_what_has_no_columns_or_no_revisions_takes_no_flag_for_them(tmp_path: Path) -> None:
    folder = write_lj_speech(tmp_path, ["a|text"], {"wavs/a.wav": WAV})
    assert "Leave out --text_column" in refusal(folder, text_column="text")
    assert "--revision belongs to data sets on the Hub" in refusal(folder, revision="v1")
    assert "--config_name belongs to data sets on the Hub" in refusal(folder, config_name="kmr")


def test_what_lies_here_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "owner" / "name" / "a.parquet", good_utterances(1))
    monkeypatch.chdir(tmp_path)
    assert open_source(PrepareConfig(dataset="owner/name")).kind == "parquet"
    for path in ("../name", "owner/absent.parquet", "./absent"):
        assert "no file matches it" in refusal(path)


# Anything else


def test_what_is_no_source_is_told_what_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for dataset, says in (
        (str(tmp_path / "nothing"), "no such file or folder"),
        (str(tmp_path / "*.parquet"), "no file matches"),
        (str(tmp_path / "notes.txt"), "no .parquet file"),
        (str(tmp_path / "empty"), "holds neither metadata.csv nor validated.tsv nor *.parquet"),
    ):
        message = refusal(dataset)
        assert dataset in message
        assert says in message
        assert "LJ Speech" in message
        assert "Hugging Face Hub" in message
        assert "Common Voice" in message
        assert "Parquet" in message
        assert "\n" not in message
