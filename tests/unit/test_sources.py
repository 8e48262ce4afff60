"""Each kind of source is recognised, read in order and lazily, and refused with file and line where it is malformed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.limits import HANG_S, start_s
from tests.speech import (
    HUB_COMMIT,
    encode,
    good_utterances,
    loopback_hub,
    mixed_utterances,
    voice,
    write_lj_speech,
    write_parquet,
    write_release,
)
from vits_trainer.config_data import PrepareConfig
from vits_trainer.errors import DataError
from vits_trainer.recordings import Reason
from vits_trainer.sources import open_source
from vits_trainer.tables import SourceClip

WAV = encode(voice(0.3, 16000), 16000)
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\n"


def clips_of(dataset: Path | str, **settings: int | str) -> list[SourceClip]:
    return list(open_source(PrepareConfig(dataset=str(dataset), **settings)).clips)


def reasons(clips: list[SourceClip]) -> list[Reason | None]:
    return [clip.rejection and clip.rejection.reason for clip in clips]


def refusal(dataset: Path | str, **settings: int | str) -> str:
    with pytest.raises(DataError) as caught:
        clips_of(dataset, **settings)
    return str(caught.value)


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
    assert "no clip in it" in refusal(tmp_path)


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


def test_a_data_set_behind_a_symbolic_link_is_read(tmp_path: Path) -> None:
    folder = write_lj_speech(tmp_path / "set", ["a|text"], {"wavs/a.wav": WAV})
    (tmp_path / "link").symlink_to(folder)
    assert reasons(clips_of(tmp_path / "link")) == [None]


def test_names_that_no_file_can_have_are_missing_files(tmp_path: Path) -> None:
    lines = [f"{name}|text" for name in ("a" * 300, "nul\0byte", "circle", "http://example.org/a.wav", "gone")]
    folder = write_lj_speech(tmp_path, lines, {"wavs/a.wav": WAV})
    (folder / "wavs" / "circle").symlink_to(folder / "wavs" / "circle")
    assert reasons(clips_of(folder)) == [Reason.MISSING_FILE] * 5


# Common Voice


def test_common_voice_rows_in_order_with_votes_judged_before_the_file_is_looked_for(tmp_path: Path) -> None:
    good = good_utterances(1)[0]
    rows = [(1, 0, b""), (2, 0, b""), (2, 1, b""), (1, 0, None), (9, 0, None)]
    release = write_release(
        tmp_path / "cv",
        [
            replace(good, path=f"{n}.mp3", up_votes=up, down_votes=down, content=content, client_id=f"c{n}")
            for n, (up, down, content) in enumerate(rows)
        ],
    )
    source = open_source(PrepareConfig(dataset=str(release)))
    assert (source.kind, source.clip_count) == ("common-voice", 5)
    clips = list(source.clips)
    assert [clip.clip_id for clip in clips] == [f"{n}.mp3" for n in range(5)]
    assert [clip.speaker for clip in clips] == [f"c{n}" for n in range(5)]
    assert clips[1].audio == release / "clips" / "1.mp3"
    few, many, missing = Reason.TOO_FEW_UPVOTES, Reason.TOO_MANY_DOWNVOTES, Reason.MISSING_FILE
    assert reasons(clips) == [few, None, many, few, missing]
    assert reasons(clips_of(release, min_upvotes=0, max_downvotes=1)) == [None, None, None, missing, missing]
    assert reasons(clips_of(release, min_upvotes=3)) == [few, few, few, few, missing]


def test_common_voice_sentences_are_not_unquoted(tmp_path: Path) -> None:
    good = good_utterances(1)[0]
    sentences = ['"Were', '""quoted"" here', "and\\here\u2028too"]
    release = write_release(tmp_path / "cv", [replace(good, sentence=sentence) for sentence in sentences])
    assert [clip.text for clip in clips_of(release)] == sentences


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        pytest.param("client_id\tpath\tsentence\nc\ta\tb\n", 1, "no column up_votes, down_votes", id="no votes"),
        pytest.param("", 1, "no column client_id, path", id="empty"),
        pytest.param(f"{HEADER}c\ta\tb\t2\n", 2, "4 columns where", id="ragged"),
        pytest.param(f"{HEADER}c\ta\tb\tx\t0\n", 2, "'x'", id="votes"),
        pytest.param(f"{HEADER}c\t\tb\t2\t0\n", 2, "needs a path", id="path"),
    ],
)
def test_a_malformed_release_names_file_line_and_remedy(tmp_path: Path, content: str, line: int, says: str) -> None:
    (tmp_path / "validated.tsv").write_text(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'validated.tsv'} line {line}:" in message
    assert says in message


def test_a_release_without_a_clip_is_refused(tmp_path: Path) -> None:
    assert "no clip in it" in refusal(write_release(tmp_path / "cv", []))


# Parquet


def test_parquet_with_an_audio_feature_as_file_folder_and_pattern_in_the_order_of_the_names(tmp_path: Path) -> None:
    good = good_utterances(3)
    write_parquet(tmp_path / "set[1]" / "b.parquet", good[:1])
    write_parquet(tmp_path / "set[1]" / "a.parquet", good[1:])
    whole = open_source(PrepareConfig(dataset=str(tmp_path / "set[1]")))
    assert (whole.kind, whole.clip_count) == ("parquet", 3)
    clips = list(whole.clips)
    assert [clip.clip_id for clip in clips] == ["good_1.mp3", "good_2.mp3", "good_0.mp3"]
    assert [clip.audio for clip in clips] == [good[1].content, good[2].content, good[0].content]
    assert [clip.speaker for clip in clips] == ["speaker-a"] * 3
    assert clips_of(tmp_path / "set[[]1]" / "*.parquet") == clips
    assert clips_of(tmp_path / "set[1]" / "b.parquet") == clips[2:]


def write_table(file: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_parquet_audio_as_bytes_paths_structs_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(WAV)
    as_bytes = write_table(tmp_path / "1.parquet", audio=[WAV, None, b""], text=["a", "b", "c"])
    as_paths = write_table(tmp_path / "2.parquet", path=["clips/a.wav", "../x.wav", None], sentence=["a", "b", None])
    structs = [
        {"bytes": None, "path": "clips/a.wav"},
        {"bytes": None, "path": None},
        {"bytes": WAV, "path": "/x/y.wav"},
    ]
    as_structs = write_table(tmp_path / "3.parquet", audio=structs, text=["a", "b", "c"], speaker=[7, None, 8])
    missing, outside = Reason.MISSING_FILE, Reason.PATH_OUTSIDE

    clips = clips_of(as_bytes)
    assert ([clip.audio for clip in clips], reasons(clips)) == ([WAV, b"", b""], [None, missing, None])
    assert clips[1].clip_id == f"{as_bytes} row 2"

    clips = clips_of(as_paths)
    assert (clips[0].audio, clips[0].clip_id) == (tmp_path / "clips" / "a.wav", "clips/a.wav")
    assert reasons(clips) == [None, outside, missing]
    assert clips[2].text == ""

    clips = clips_of(as_structs)
    assert ([clip.audio for clip in clips], reasons(clips)) == (
        [tmp_path / "clips" / "a.wav", b"", WAV],
        [None, missing, None],
    )
    assert [clip.speaker for clip in clips] == ["7", None, "8"]


def test_parquet_votes_where_there_are_any(tmp_path: Path) -> None:
    votes = {"up_votes": [2.0, 1.0, None, float("nan"), 2.0], "down_votes": [0, 0, 0, 0, 1]}
    file = write_table(tmp_path / "a.parquet", audio=[WAV] * 5, text=["a"] * 5, **votes)
    few = Reason.TOO_FEW_UPVOTES
    assert reasons(clips_of(file)) == [None, few, few, few, Reason.TOO_MANY_DOWNVOTES]
    words = write_table(tmp_path / "b.parquet", audio=[WAV], text=["a"], up_votes=["many"])
    assert f"{words} row 1: 'many'" in refusal(words)


def test_parquet_without_the_columns_says_which_it_wants_and_which_there_are(tmp_path: Path) -> None:
    for columns in ({"sound": [WAV], "text": ["a"]}, {"audio": [WAV], "words": ["a"]}):
        file = write_table(tmp_path / "a.parquet", **columns)
        message = refusal(file)
        assert str(file) in message
        assert "audio or path" in message
        assert "sentence or text" in message
        assert ", ".join(columns) in message


def test_parquet_audio_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.parquet", audio=[[0.1, 0.2]], text=["a"])
    assert f"{file} row 1: its audio is a list" in refusal(file)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", good_utterances(3))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert f"{file}: no readable Parquet file" in refusal(file)
    file.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    assert f"{file} after row 0: cannot be read" in refusal(file)


def test_parquet_is_read_lazily(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", good_utterances(1))
    second = write_parquet(tmp_path / "b.parquet", good_utterances(1))
    clips = open_source(PrepareConfig(dataset=str(tmp_path))).clips
    second.unlink()
    assert next(clips).audio == good_utterances(1)[0].content
    with pytest.raises(DataError, match=r"b\.parquet after row 0: cannot be read"):
        next(clips)


def test_parquet_is_read_from_any_row_on_and_a_few_rows_at_a_time(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, name in enumerate("abc"):
        whole = pq.read_table(write_parquet(tmp_path / "whole.parquet", good_utterances(5 * number)))
        pq.write_table(whole, tmp_path / f"{name}.parquet", row_group_size=3)  # a.parquet has no row
    (tmp_path / "whole.parquet").unlink()
    source = open_source(PrepareConfig(dataset=str(tmp_path)))
    clips = list(source.clips)
    assert len(clips) == source.clip_count == 15
    for first in range(17):
        assert list(source.clips_behind(first)) == clips[first:]

    many = pa.table({"audio": [bytes(40_000)] * 2000, "text": ["a"] * 2000})
    pq.write_table(many, tmp_path / "many.parquet")
    del many
    before = pa.total_allocated_bytes()
    rows = open_source(PrepareConfig(dataset=str(tmp_path / "many.parquet"))).clips
    assert max(pa.total_allocated_bytes() - before for _ in rows) < 8e6  # of 80 MB in one row group


def test_rows_that_name_files_are_all_looked_at(tmp_path: Path) -> None:
    """Whether a file was named before shows only there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for audio in (["a.wav", "b.wav"], [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "b"}]):
        pq.write_table(pa.table({"audio": audio, "text": ["a", "b"]}), tmp_path / "a.parquet")
        assert open_source(PrepareConfig(dataset=str(tmp_path / "a.parquet"))).clips_behind is None


# An audio folder


def write_audio_folder(folder: Path, metadata: str, *names: str) -> Path:
    return write_lj_speech(folder, metadata.split("\n"), dict.fromkeys(names, WAV))


def test_an_audio_folder_is_real_csv_with_quotes_commas_and_line_ends(tmp_path: Path) -> None:
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


def test_paths_out_of_an_audio_folder_and_rows_without_one_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(WAV)
    rows = f"file_name,text\n../secret.wav,a\n{tmp_path}/secret.wav,b\n,c"
    clips = clips_of(write_audio_folder(tmp_path / "set", rows))
    assert reasons(clips) == [Reason.PATH_OUTSIDE, Reason.PATH_OUTSIDE, Reason.MISSING_FILE]
    assert {clip.audio for clip in clips} == {b""}


def test_lj_speech_whose_first_clip_is_called_like_a_header_stays_lj_speech(tmp_path: Path) -> None:
    for first in ("file_name|text", "file_name,text|and so on", "file_name|file_name,text"):
        folder = write_lj_speech(tmp_path / first, [first, "b|Zwei."], {"wavs/file_name.wav": WAV})
        source = open_source(PrepareConfig(dataset=str(folder)))
        assert (source.kind, source.clip_count) == ("lj-speech", 2)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        pytest.param("file_name,transcription\na.wav,x\n", 1, "--text_column", id="no text"),
        pytest.param("file_name,text\na.wav,x\n\na.wav,yes, no\n", 4, "3 columns where the header has 2", id="ragged"),
        pytest.param('file_name,text\na.wav,"x"y\n', 2, "no CSV", id="quotes"),
        pytest.param('file_name,text\na.wav,"x\n', 2, "no CSV", id="open quotes"),
        pytest.param(f"file_name,text\na.wav,{'x' * 200_000}\n", 2, "no CSV", id="endless"),
    ],
)
def test_malformed_csv_names_file_line_and_remedy(tmp_path: Path, content: str, line: int, says: str) -> None:
    (tmp_path / "metadata.csv").write_text(content)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'metadata.csv'} line {line}:" in message
    assert says in message


def test_an_audio_folder_without_a_clip_or_not_in_utf_8_is_refused(tmp_path: Path) -> None:
    assert "no clip in it" in refusal(write_audio_folder(tmp_path, "file_name,text\n"))
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na,stra\xdfe\n")
    assert "line 2: not UTF-8" in refusal(tmp_path)


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


# The Hub: the real client and the real load_dataset, which ask a server on this machine


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("repository")
    write_parquet(repository / "data" / "train-00000-of-00001.parquet", mixed_utterances())
    write_parquet(repository / "data" / "validated-00000-of-00001.parquet", good_utterances(2))
    write_parquet(repository / "data" / "test-00000-of-00001.parquet", [replace(good_utterances(1)[0], content=None)])
    with loopback_hub(repository) as address:
        yield address


# A process of its own: the client reads HF_ENDPOINT when it is imported, and keeps its cache in HF_HOME.
LIST_CLIPS = """
import json, sys
from vits_trainer.config_data import PrepareConfig
from vits_trainer.sources import open_source
for settings in json.loads(sys.argv[1]):
    try:
        source = open_source(PrepareConfig(dataset="owner/name", **settings))
        clips = [[c.clip_id, c.text, len(c.audio), c.speaker, c.rejection and c.rejection.reason] for c in source.clips]
        print(json.dumps([source.kind, source.revision, clips]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def in_a_process(address: str, home: Path, *settings: dict[str, str]) -> list[Any]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", LIST_CLIPS, json.dumps(settings)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_a_data_set_on_the_hub_gives_the_clips_of_its_parquet(tmp_path: Path, hub: str) -> None:
    local = {
        "train": clips_of(write_parquet(tmp_path / "a.parquet", mixed_utterances())),
        "validated": clips_of(write_parquet(tmp_path / "b.parquet", good_utterances(2))),
    }
    asked = ({}, {"split": "train+validated", "revision": "v1"}, {"text_column": "path"}, {"split": "nonsense"})
    train, both, named, nonsense, absent, config, no_audio = in_a_process(
        hub, tmp_path, *asked, {"text_column": "words"}, {"config_name": "kmr"}, {"split": "test"}
    )
    whole = [
        [clip.clip_id, clip.text, len(clip.audio), clip.speaker, clip.rejection and clip.rejection.reason]
        for clip in local["train"] + local["validated"]
    ]
    assert train == ["hub", HUB_COMMIT, whole[:10]]
    assert both == ["hub", HUB_COMMIT, whole]
    assert [clip[1] for clip in named[2]] == [clip[0] for clip in whole[:10]]
    assert nonsense[0] == absent[0] == config[0] == "DataError"
    assert "Bad split: nonsense. Available splits:" in nonsense[1]
    assert "no column words (--text_column); its columns are client_id, path, audio, sentence" in absent[1]
    assert "kmr" in config[1]
    assert "--config_name" in config[1]
    assert [clip[4] for clip in no_audio[2]] == ["missing-file"]


def test_a_data_set_that_needs_a_program_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "name.py").write_text("raise SystemExit('it ran')")
    with loopback_hub(tmp_path / "repository") as address:
        ((kind, message),) = in_a_process(address, tmp_path / "home", {})
    assert kind == "DataError"
    assert "program of its own, which is not run. Please download" in message


def test_recordings_in_single_files_on_the_hub_are_to_be_downloaded(tmp_path: Path) -> None:
    """`datasets` reads them only where torchcodec works."""
    write_audio_folder(tmp_path / "repository", "file_name,text\na.wav,Silav.", "a.wav")
    with loopback_hub(tmp_path / "repository") as address:
        ((kind, message),) = in_a_process(address, tmp_path / "home", {})
    assert kind == "DataError"
    assert "recordings in single files, which are not read from the Hub. Please download" in message


@pytest.mark.parametrize(
    ("dataset", "revision", "says"),
    [
        ("owner/missing", None, "shows no data set of this name. Correct the name, or log in"),
        ("owner/gated", None, "Accept them on its page on the Hub and log in (hf auth login), or download"),
        ("owner/name", "v2", "has no revision v2"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_remedy(
    hub: str, monkeypatch: pytest.MonkeyPatch, dataset: str, revision: str | None, says: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    message = refusal(dataset, revision=revision)
    assert says in message
    assert f"--dataset {dataset}" in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), [("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)])
def test_a_hub_that_cannot_be_reached_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    import datasets  # noqa: F401  not what is timed

    limit_s = start_s()
    begun_s = time.monotonic()
    message = refusal("owner/name")
    assert time.monotonic() - begun_s < 5 * limit_s
    assert "no such file or folder, and the Hugging Face Hub cannot be reached" in message
    assert "download the data set and give its folder" in message
    assert "\n" not in message


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
