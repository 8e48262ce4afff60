"""Lists of clips to leave out: what they contain, and what a preparation with one writes."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import audio
from tests.support.audio import good_utterances
from tests.support.preparation import contents, lj_speech, prepare_into, rejected
from vits_trainer.data.preparation import pipeline
from vits_trainer.data.preparation.drop_list import DropList, read_drop_list
from vits_trainer.data.preparation.journal import RejectedClip
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.rejections import Reason
from vits_trainer.data.source_names import read_source_names
from vits_trainer.utils.errors import ConfigError, DataError

HEADER = "clip,source,signals\n"


def sources(folder: Path) -> dict[str, str]:
    return dict(list(csv.reader((folder / "sources.csv").open(encoding="utf-8", newline="")))[1:])


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("processes", [1, 2])
def test_dropped_clips_are_counted_and_the_others_keep_names_and_content(tmp_path: Path, processes: int) -> None:
    texts = [f"text {n}" for n in range(7)]
    texts[3] = ""
    dataset = lj_speech(tmp_path / "set", texts)
    prepare_into(tmp_path / "all", dataset)
    names = sources(tmp_path / "all")
    assert names["audio_000003.wav"] == "c4"  # c3 is rejected
    drop = write(tmp_path / "drop.csv", f"{HEADER}audio_000003.wav,c4,rate; snr\naudio_000001.wav,c1,rate\n")
    summary = prepare_into(tmp_path / "out", dataset, drop=drop, processes=processes)
    assert rejected(tmp_path / "out") == {"c1": "dropped", "c3": "empty-text", "c4": "dropped"}
    assert (summary.accepted, summary.rejected["dropped"], summary.warnings) == (4, 2, ())
    assert sources(tmp_path / "out") == {name: names[name] for name in names if names[name] not in ("c1", "c4")}
    whole, part = contents(tmp_path / "all"), contents(tmp_path / "out")
    wavs = [f"wavs/{name}" for name in sources(tmp_path / "out")]
    assert sorted(name for name in part if name.startswith("wavs/")) == sorted(wavs)
    assert all(part[name] == whole[name] for name in wavs)
    rows = open_prepared(tmp_path / "out").rows
    assert dict(zip(rows.filename, rows.text, strict=True)) == {
        name: f"text {source[1:]}" for name, source in sources(tmp_path / "out").items()
    }


@pytest.mark.parametrize("write_source", [audio.write_release, audio.write_parquet])
def test_shards_leave_out_the_same_clips(tmp_path: Path, write_source) -> None:
    dataset = write_source(tmp_path / "cv.parquet", good_utterances(6))
    drop = write(tmp_path / "names.txt", "good_4.mp3\n\ngood_1.mp3\n")
    prepare_into(tmp_path / "wavs", dataset, drop=drop)
    prepare_into(tmp_path / "out", dataset, drop=drop, shards=2)
    assert (
        rejected(tmp_path / "out") == rejected(tmp_path / "wavs") == {"good_1.mp3": "dropped", "good_4.mp3": "dropped"}
    )
    assert sorted(sources(tmp_path / "out").values()) == [f"good_{n}.mp3" for n in (0, 2, 3, 5)]
    assert sorted(open_prepared(tmp_path / "out").texts) == sorted(open_prepared(tmp_path / "wavs").texts)
    # Shards on the Hub come without sources.csv: their clips have the index of the source, also for wavs/.
    (tmp_path / "out/sources.csv").unlink()
    clips = ["audio_000004.wav", "audio_000001.wav"]
    names = read_source_names(tmp_path / "out", clips, is_sharded=True)
    indices = write(tmp_path / "i.csv", HEADER + "".join(f"{clip},{names[clip]},rate\n" for clip in clips))
    assert prepare_into(tmp_path / "by index", dataset, drop=indices).warnings == ()
    assert rejected(tmp_path / "by index") == rejected(tmp_path / "out")


def test_an_interrupted_preparation_resumes_with_the_gaps_of_dropped_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = lj_speech(tmp_path / "set", [f"text {n}" for n in range(6)])
    drop = write(tmp_path / "drop.txt", "c1\n")
    prepare_into(tmp_path / "whole", dataset, drop=drop)

    class StopHereError(Exception):
        pass

    class Journal(pipeline.ClipJournal):
        def add(self, entry) -> None:
            if len(self.entries) == 4:
                raise StopHereError
            super().add(entry)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ClipJournal", Journal)
        with pytest.raises(StopHereError):
            prepare_into(tmp_path / "out", dataset, drop=drop)
    prepare_into(tmp_path / "out", dataset, drop=drop)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_same_list_is_finished_and_another_one_is_refused(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["one", "two", "three"])
    one = write(tmp_path / "a.txt", "c0\nc1\n")
    first = prepare_into(tmp_path / "out", dataset, drop=one)
    reordered = write(tmp_path / "b.csv", f"{HEADER},c1,x\n,c0,y\n")
    assert replace(prepare_into(tmp_path / "out", dataset, drop=reordered), seconds=0) == replace(first, seconds=0)
    for other in (None, write(tmp_path / "c.txt", "c0\n")):
        with pytest.raises(DataError, match=r"already contains a prepared set.*differ: drop "):
            prepare_into(tmp_path / "out", dataset, drop=other)


def test_entries_that_name_no_clip_are_reported(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["one", "two", "three"])
    summary = prepare_into(tmp_path / "out", dataset, drop=write(tmp_path / "a.txt", "c0\nc9\nelsewhere\n#3\n"))
    assert summary.warnings == ("--drop a.txt: 3 of 4 entries name no clip that was read, such as c9.",)
    for shards in (0, 1):
        with pytest.raises(DataError, match=r"b.txt: 2 of 2 entries.*the list is that of another data set"):
            prepare_into(tmp_path / f"none{shards}", dataset, drop=write(tmp_path / "b.txt", "x\ny\n"), shards=shards)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8 CSV"),
        (b'clip,source\n"a,b\n', "is not UTF-8 CSV"),
        (b"clip,source\na\n", "line 2: has 1 columns, not 2"),
        (b"clip,source\naudio_000001.wav,\n", "line 2: has no name in the source for audio_000001.wav"),
    ],
)
def test_invalid_lists_are_refused_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as refused:
        read_drop_list(str(tmp_path / "list"))
    assert "\n" not in str(refused.value)
    assert "--drop" in str(refused.value)


def test_a_missing_list_is_refused_before_the_source_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        prepare_into(tmp_path / "out", tmp_path / "no data", drop=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_an_entry_that_names_several_clips_is_reported(tmp_path: Path) -> None:
    drop = DropList("/x/list.txt", frozenset({"a", "b"}))
    clips = [RejectedClip(name, Reason.DROPPED, "") for name in "aab"]
    assert drop.warnings(clips, 3) == [
        "--drop list.txt: 1 of 2 entries name several clips, which are all left out, such as a (2 clips)."
    ]


def test_names_that_spreadsheets_would_compute_match(tmp_path: Path) -> None:
    utterances = [replace(one, path=f"=good_{n}.mp3") for n, one in enumerate(good_utterances(3))]
    dataset = audio.write_release(tmp_path / "cv", utterances)
    prepare_into(tmp_path / "all", dataset)
    assert sources(tmp_path / "all")["audio_000001.wav"] == "'=good_1.mp3"
    drop = write(tmp_path / "drop.csv", "clip,source\naudio_000001.wav,'=good_1.mp3\n")
    prepare_into(tmp_path / "out", dataset, drop=drop)
    assert list(rejected(tmp_path / "out").values()) == ["dropped"]
