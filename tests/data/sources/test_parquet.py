"""Parquet: types of audio, votes, columns, lazy reading."""

from pathlib import Path

import pytest

from tests.support.audio import good_utterances, write_parquet
from tests.support.sources import WAV, clips_of, reasons, refusal, write_table
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason
from vits_trainer.data.sources.detect import open_source
from vits_trainer.utils.errors import DataError


def test_file_folder_and_pattern_are_read_in_the_order_of_the_names(tmp_path: Path) -> None:
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


def test_audio_as_bytes_paths_structs_or_null(tmp_path: Path) -> None:
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


def test_votes_are_checked_if_present(tmp_path: Path) -> None:
    votes = {"up_votes": [2.0, 1.0, None, float("nan"), 2.0], "down_votes": [0, 0, 0, 0, 1]}
    file = write_table(tmp_path / "a.parquet", audio=[WAV] * 5, text=["a"] * 5, **votes)
    few = Reason.TOO_FEW_UPVOTES
    assert reasons(clips_of(file)) == [None, few, few, few, Reason.TOO_MANY_DOWNVOTES]
    text_votes = write_table(tmp_path / "b.parquet", audio=[WAV], text=["a"], up_votes=["many"])
    assert reasons(clips_of(text_votes)) == [Reason.MALFORMED_ROW]


def test_error_for_missing_columns_lists_required_and_existing_ones(tmp_path: Path) -> None:
    for columns in ({"sound": [WAV], "text": ["a"]}, {"audio": [WAV], "words": ["a"]}):
        file = write_table(tmp_path / "a.parquet", **columns)
        message = refusal(file)
        assert str(file) in message
        assert "audio or path" in message
        assert "sentence or text" in message
        assert ", ".join(columns) in message


def test_audio_of_another_type_is_refused(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.parquet", audio=[[0.1, 0.2]], text=["a"])
    assert f"{file} row 1: its audio is a list" in refusal(file)


def test_error_for_a_damaged_file_names_it(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", good_utterances(3))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert f"{file}: not a readable Parquet file" in refusal(file)
    file.write_bytes(content[:100] + bytes(len(content) // 2) + content[100 + len(content) // 2 :])
    assert f"{file} after row 0: cannot be read" in refusal(file)


def test_files_are_read_lazily(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", good_utterances(1))
    second = write_parquet(tmp_path / "b.parquet", good_utterances(1))
    clips = open_source(PrepareConfig(dataset=str(tmp_path))).clips
    second.unlink()
    assert next(clips).audio == good_utterances(1)[0].content
    with pytest.raises(DataError, match=r"b\.parquet after row 0: cannot be read"):
        next(clips)


def test_rows_are_read_from_any_index_a_few_at_a_time(tmp_path: Path) -> None:
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
        assert list(source.clips_from(first)) == clips[first:]

    many = pa.table({"audio": [bytes(40_000)] * 2000, "text": ["a"] * 2000})
    pq.write_table(many, tmp_path / "many.parquet")
    del many
    before = pa.total_allocated_bytes()
    rows = open_source(PrepareConfig(dataset=str(tmp_path / "many.parquet"))).clips
    assert max(pa.total_allocated_bytes() - before for _ in rows) < 8e6  # of 80 MB in one row group


def test_rows_that_name_files_cannot_be_skipped(tmp_path: Path) -> None:
    """Duplicates are detected among the rows read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for audio in (["a.wav", "b.wav"], [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "b"}]):
        pq.write_table(pa.table({"audio": audio, "text": ["a", "b"]}), tmp_path / "a.parquet")
        assert open_source(PrepareConfig(dataset=str(tmp_path / "a.parquet"))).clips_from is None
