"""Speakers whose names are hashes get short names, which more data do not change."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import audio
from tests.support.audio import Utterance, good_utterances
from tests.support.preparation import contents, prepare_into
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import open_prepared
from vits_trainer.utils.errors import DataError

HASHES = [hashlib.sha512(str(n).encode()).hexdigest() for n in range(5)]


def spoken(order: list[int], votes: dict[int, int] | None = None) -> list[Utterance]:
    """One clip for each entry, by that speaker."""
    votes = votes or {}
    return [
        replace(one, client_id=HASHES[speaker], up_votes=votes.get(n, 2))
        for n, (one, speaker) in enumerate(zip(good_utterances(len(order)), order, strict=True))
    ]


def speakers_of(folder: Path) -> dict[str, str]:
    """Speaker by text."""
    rows = open_prepared(folder).rows
    return dict(zip(rows.text, rows.speaker, strict=True))


def mapping(folder: Path) -> dict[str, str]:
    return dict(list(csv.reader((folder / "speakers.csv").open(encoding="utf-8", newline="")))[1:])


@pytest.mark.parametrize("write_source", [audio.write_release, audio.write_parquet])
def test_wavs_and_shards_have_the_same_short_names_in_the_order_of_the_source(tmp_path: Path, write_source) -> None:
    dataset = write_source(tmp_path / "cv.parquet", spoken([3, 1, 3, 0, 2], votes={1: 0}))
    expected = {"Silav 0.": "spk_0001", "Silav 2.": "spk_0001", "Silav 3.": "spk_0003", "Silav 4.": "spk_0004"}
    prepare_into(tmp_path / "wavs", dataset, processes=2)
    for part in ("1/2", "2/2"):
        prepare_into(tmp_path / "shards", dataset, shards=2, part=part)
    for folder in (tmp_path / "wavs", tmp_path / "shards"):
        assert speakers_of(folder) == expected
        assert mapping(folder) == {f"spk_000{n}": HASHES[speaker] for n, speaker in enumerate([3, 1, 0, 2], start=1)}
        written = {name: content for name, content in contents(folder).items() if name != "speakers.csv"}
        assert not [name for name, content in written.items() if any(one[:16].encode() in content for one in HASHES)]


def test_a_dataset_has_short_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = audio.write_parquet(tmp_path / "cv.parquet", spoken([2, 0]))
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    prepare(PrepareConfig(output_dir=str(tmp_path / "out"), processes=1), rows)
    assert speakers_of(tmp_path / "out") == {"Silav 0.": "spk_0001", "Silav 1.": "spk_0002"}


def test_appended_clips_and_a_copied_mapping_keep_the_names(tmp_path: Path) -> None:
    prepare_into(tmp_path / "a", audio.write_release(tmp_path / "one", spoken([3, 1])))
    prepare_into(tmp_path / "b", audio.write_release(tmp_path / "two", spoken([3, 1, 0])))
    assert mapping(tmp_path / "b") == {**mapping(tmp_path / "a"), "spk_0003": HASHES[0]}
    (tmp_path / "c").mkdir()
    (tmp_path / "c/speakers.csv").write_bytes((tmp_path / "a/speakers.csv").read_bytes())
    prepare_into(tmp_path / "c", audio.write_release(tmp_path / "three", spoken([4, 1, 3])))
    assert speakers_of(tmp_path / "c") == {"Silav 0.": "spk_0003", "Silav 1.": "spk_0002", "Silav 2.": "spk_0001"}


def test_other_names_stay_and_are_not_taken_twice(tmp_path: Path) -> None:
    one, two, three = good_utterances(3)
    clips = [replace(one, client_id="spk_0001"), replace(two, client_id=HASHES[0]), replace(three, client_id="anna")]
    prepare_into(tmp_path / "out", audio.write_release(tmp_path / "cv", clips))
    assert speakers_of(tmp_path / "out") == {"Silav 0.": "spk_0001", "Silav 1.": "spk_0002", "Silav 2.": "anna"}
    assert mapping(tmp_path / "out") == {"spk_0002": HASHES[0]}
    prepare_into(tmp_path / "plain", audio.write_release(tmp_path / "plain set", good_utterances(2)))
    assert not (tmp_path / "plain/speakers.csv").exists()


def test_a_finished_preparation_is_recognised_and_parts_with_other_names_are_refused(tmp_path: Path) -> None:
    dataset = audio.write_release(tmp_path / "cv", spoken([3, 1, 0, 2]))
    first = prepare_into(tmp_path / "out", dataset)
    assert replace(prepare_into(tmp_path / "out", dataset), seconds=0) == replace(first, seconds=0)
    prepare_into(tmp_path / "shards", dataset, shards=2, part="1/2")
    names = (tmp_path / "shards/speakers.csv").read_text()
    (tmp_path / "shards/speakers.csv").write_text(names.replace("spk_0002", "spk_0009"))
    with pytest.raises(DataError, match="settings or source of this part differ: speaker_names"):
        prepare_into(tmp_path / "shards", dataset, shards=2, part="2/2")


def test_a_speaker_that_has_the_short_name_of_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/speakers.csv").write_text(f"speaker,source\nanna,{HASHES[0]}\n")
    clips = [replace(one, client_id="anna") for one in good_utterances(2)]
    with pytest.raises(DataError, match="another speaker anna"):
        prepare_into(tmp_path / "out", audio.write_release(tmp_path / "cv", clips))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "speaker,source\nspk_0001,a\nspk_0001,b\n",
        "a,b\nspk_0001,c\n",
        "speaker,source\nx\n",
        '"',
        "speaker,source\n|,a\n",
    ],
)
def test_a_damaged_mapping_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/speakers.csv").write_text(content)
    with pytest.raises(DataError, match="is not a table of speaker"):
        prepare_into(tmp_path / "out", audio.write_release(tmp_path / "cv", spoken([3, 1])))
