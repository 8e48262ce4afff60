"""Detection of the kind of source, the registry of kinds, flags that name columns, and errors for everything else."""

import re
from pathlib import Path

import pytest

from tests.support.audio import good_utterances, write_lj_speech, write_parquet
from tests.support.sources import HEADER, WAV, clips_of, reasons, refusal, write_table
from vits_trainer.config.parser import parse
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.sources.detect import SOURCES, describe_sources, open_source


def test_help_of_dataset_lists_every_kind_of_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("prepare_data", PrepareConfig, ["--help"])
    help_text = re.sub(r"\s+", "", capsys.readouterr().out).lower()
    assert re.sub(r"\s+", "", describe_sources()).lower() in help_text


def test_kinds_of_sources_have_distinct_names() -> None:
    assert len({kind.name for kind in SOURCES}) == len(SOURCES)


def test_a_symbolic_link_to_a_data_set_is_read(tmp_path: Path) -> None:
    folder = write_lj_speech(tmp_path / "set", ["a|text"], {"wavs/a.wav": WAV})
    (tmp_path / "link").symlink_to(folder)
    assert reasons(clips_of(tmp_path / "link")) == [None]


def test_a_first_line_that_names_a_file_is_not_a_header(tmp_path: Path) -> None:
    for first in ("file_name|text", "file_name,text|and so on", "file_name|file_name,text"):
        folder = write_lj_speech(tmp_path / first, [first, "b|Zwei."], {"wavs/file_name.wav": WAV})
        source = open_source(PrepareConfig(dataset=str(folder)))
        assert (source.kind, source.clip_count) == ("table", 2)


# Flags that name columns

NAMED = {"text_column": "said", "audio_column": "sound", "speaker_column": "who"}


@pytest.mark.parametrize("kind", ["parquet", "audio folder", "release"])
def test_columns_named_by_flags_take_precedence_over_default_ones(tmp_path: Path, kind: str) -> None:
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
    folder = tmp_path / "clips" if kind == "release" else tmp_path
    assert (clip.text, clip.audio, clip.speaker) == ("Yek.", folder / "b.wav", "ann")
    for flag in NAMED:
        message = refusal(tmp_path, **{**NAMED, flag: "absent"})
        assert f"no column absent (--{flag}); its columns are" in message
        assert all(name in message for name in table)


def test_flags_for_columns_and_revisions_are_refused_where_there_are_none(tmp_path: Path) -> None:
    folder = write_lj_speech(tmp_path, ["a|text"], {"wavs/a.wav": WAV})
    assert "has no header. Give --text_column as the number of a column" in refusal(folder, text_column="text")
    assert "--revision applies to data sets on the Hub only" in refusal(folder, revision="v1")
    assert "--config_name applies to data sets on the Hub only" in refusal(folder, config_name="kmr")


def test_local_paths_take_precedence_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "owner" / "name" / "a.parquet", good_utterances(1))
    monkeypatch.chdir(tmp_path)
    assert open_source(PrepareConfig(dataset="owner/name")).kind == "parquet"
    for path in ("../name", "owner/absent.parquet", "./absent"):
        assert "no file matches it" in refusal(path)


# Anything else


def test_folders_with_a_table_of_another_name_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a" / "set").mkdir(parents=True)
    (tmp_path / "a" / "set" / "metadata.csv").write_text("x|y")
    assert refusal(tmp_path / "a") == f"--dataset {tmp_path / 'a'}: did you mean {tmp_path / 'a' / 'set'}?"
    (tmp_path / "cv-corpus" / "cv-corpus-21.0" / "kmr").mkdir(parents=True)
    (tmp_path / "cv-corpus" / "cv-corpus-21.0" / "kmr" / "validated.tsv").write_text(HEADER)
    assert refusal(tmp_path / "cv-corpus").endswith(f"did you mean {tmp_path / 'cv-corpus/cv-corpus-21.0/kmr'}?")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "filelist.list").write_text("x|y")
    assert "name the table of files and texts metadata.csv" in refusal(tmp_path / "b")
    (tmp_path / "b" / "train.tsv").write_text(HEADER)
    assert "copy train.tsv to validated.tsv" in refusal(tmp_path / "b")


def test_errors_for_unknown_sources_list_the_known_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for dataset, problem in (
        (str(tmp_path / "nothing"), "no such file or folder"),
        (str(tmp_path / "*.parquet"), "no file matches"),
        (str(tmp_path / "notes.txt"), "the file is in no known format"),
        (str(tmp_path / "empty"), "the folder is in no known format"),
    ):
        message = refusal(dataset)
        assert dataset in message
        assert problem in message
        assert message.endswith(f"Give {describe_sources()}.")
        assert "\n" not in message
        for name in ("LJ Speech", "Hugging Face Hub", "Common Voice", "Parquet"):
            assert name in message
