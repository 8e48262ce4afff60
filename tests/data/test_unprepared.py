"""Data sets streamed as they lie: the clips that prepare_data accepts, each once, with the same samples and tokens."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.audio import encode, voice
from tests.support.prepared_data import SPEC
from tests.support.unprepared import dataset_of, rows, write_dataset
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.config.train import TrainConfig
from vits_trainer.data import parquet_rows
from vits_trainer.data.clip_accounting import Incident
from vits_trainer.data.dataloader import build_dataloader
from vits_trainer.data.dataset import PreparedClipDataset
from vits_trainer.data.preparation.pipeline import prepare
from vits_trainer.data.prepared import open_prepared
from vits_trainer.data.training_data import TrainingData, open_training_data
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.utils.errors import ConfigError, DataError, TooManyRejectedError

TOKENIZER = build_tokenizer(["Silav 0123456789."])
BROKEN = {3: b"no recording " * 40, 8: None, 13: encode(voice(0.05, 16000), 16000), 21: encode(np.zeros(9999), 16000)}
"""Recordings of rows that are rejected: damaged, missing, short, silent."""


@pytest.fixture(scope="module")
def written() -> list[dict[str, object]]:
    clips = rows(40)
    for row, content in BROKEN.items():
        clips[row]["audio"] = {"bytes": content, "path": None}
    clips[30]["sentence"] = None
    clips[31]["sentence"] = "word " * 100
    return clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, object]]) -> Path:
    """Three files of unequal size, whose row groups are divided into groups."""
    folder = tmp_path_factory.mktemp("as_it_lies") / "set"
    return write_dataset(folder, [written[:7], written[7:34], written[34:]], row_group=11)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "GROUP_ROWS", 3)


def opened(dataset: object, **settings: Any) -> TrainingData:
    common = {"batch_size": 2, "gradient_accumulation_steps": 2, "streaming_window": 2, "validation_fraction": 0.1}
    config = TrainConfig(dataset=str(dataset), streaming=True, **{**common, **settings})
    return open_training_data(config)


def refusal(dataset: object, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(dataset, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(data: TrainingData, epochs: int = 1, ranks: int = 1, workers: int = 0, done: int = 0) -> list[list[Any]]:
    """Returns the batches of each rank."""
    sampler, dataset = data.sampler(SPEC, ranks), data.dataset(TOKENIZER, SPEC, None)
    until = epochs * sampler.updates_per_epoch
    return [list(build_dataloader(dataset, sampler.after(done, until, rank), workers)) for rank in range(ranks)]


def outcomes(batches: list[list[Any]]) -> Counter[str]:
    flat = [batch for of_rank in batches for batch in of_rank]
    return Counter(name for batch in flat for name in (*batch.clip_ids, *(one.clip for one in batch.rejections)))


def test_clips_equal_the_prepared_ones(folder: Path, tmp_path: Path) -> None:
    prepare(PrepareConfig(dataset=str(folder), output_dir=str(tmp_path / "prepared"), processes=1))
    rejected = [line.split(",") for line in (tmp_path / "prepared" / "rejected.csv").read_text().splitlines()[1:]]
    reference = PreparedClipDataset(open_prepared(tmp_path / "prepared"), TOKENIZER, SPEC, None)
    data = opened(folder)
    dataset = data.dataset(TOKENIZER, SPEC, None)
    records = [dataset.read(row) for row in range(40)]
    clips = [record for record in records if not isinstance(record, Incident)]
    assert [one.kind for one in records if isinstance(one, Incident)] == [reason for _, reason, *_ in rejected]
    assert len(rejected) == len(BROKEN) + 2
    assert len(clips) == len(reference.prepared.rows) == 34
    for row, clip in enumerate(clips):
        expected = reference.read(row)
        np.testing.assert_array_equal(clip.pcm, expected.pcm)
        np.testing.assert_array_equal(clip.tokens, expected.tokens)
    accepted = [row for row, one in enumerate(records) if not isinstance(one, Incident)]
    assert [dataset.text(row) for row in accepted] == [reference.text(row) for row in range(34)]
    assert [dataset.speaker(row) for row in accepted] == [reference.speaker(row) for row in range(34)]
    assert (data.speakers, sorted(set("".join(data.texts)))) == (
        ["s0", "s1", "s2"], sorted(set("".join(reference.prepared.texts)) | set("word")),
    )  # fmt: skip


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_each_clip_occurs_once_per_epoch(folder: Path, ranks: int, workers: int) -> None:
    data = opened(folder)
    batches = read(data, epochs=2, ranks=ranks, workers=workers)
    assert len({len([b for b in of_rank if b.spec.closes_update]) for of_rank in batches}) == 1
    assert outcomes(batches) == Counter(
        {data.shards.name(row): 2 for row in range(40) if row not in data.validation_rows}
    )


def test_a_resume_reads_the_same_batches(folder: Path) -> None:
    (whole,), (resumed,) = read(opened(folder), epochs=2), read(opened(folder), epochs=2, done=3)
    assert len(resumed) == len(whole) - 6
    for batch, same in zip(whole[6:], resumed, strict=True):
        assert (batch.clip_ids, batch.rejections) == (same.clip_ids, same.rejections)
        np.testing.assert_array_equal(batch.waveform, same.waveform)
        np.testing.assert_array_equal(batch.tokens, same.tokens)


def test_rejections_are_counted_and_limited(folder: Path) -> None:
    data = opened(folder, max_rejected_fraction=0.5)
    sampler = data.sampler(SPEC, 1)
    accounting = data.accounting(sampler)
    for batch in read(data)[0]:
        accounting.count(batch.clip_ids, [one.clip for one in batch.rejections])
        accounting.reject(batch.rejections)
    dataset = data.dataset(TOKENIZER, SPEC, None)
    accounting.reject(one for row in data.validation_rows if isinstance(one := dataset.read(row), Incident))
    assert accounting.rejected_by_kind == {
        "empty-text": 1, "missing-file": 1, "text-too-long": 1, "too-quiet": 1, "too-short": 1, "unreadable-audio": 1,
    }  # fmt: skip
    assert accounting.finish_epoch(0, accounting.counts()).endswith("= 40 clips")
    strict = opened(folder).accounting(sampler)
    with pytest.raises(TooManyRejectedError, match="Raise --max_rejected_fraction to train on the others"):
        strict.reject([Incident("train-00000-of-00003.parquet:3", "read", "too-short", "")])


@pytest.mark.parametrize("pages", ["small", "whole row groups"])
def test_opening_reads_metadata_only_and_an_epoch_is_read_in_constant_memory(
    monkeypatch: pytest.MonkeyPatch, pages: str
) -> None:
    """Of two row groups of 8 MB with incompressible recordings."""
    reads, cat_file = list[int](), MemoryFileSystem.cat_file

    def counted(*arguments: Any, **options: Any) -> bytes:
        content: bytes = cat_file(*arguments, **options)
        reads.append(len(content))
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    monkeypatch.setattr(parquet_rows, "GROUP_ROWS", 256)
    noise = np.random.default_rng(0)
    audio = [noise.bytes(100_000) for _ in range(160)]
    table = pa.table({"audio": audio, "text": ["Silav"] * 160})
    filesystem = MemoryFileSystem()
    with filesystem.open("/set/a.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=80, write_batch_size=2 if pages == "small" else 1024)
    size_bytes = filesystem.info("/set/a.parquet")["size"]
    del table, audio
    settings = {"gradient_accumulation_steps": 1, "validation_fraction": 0.0, "max_rejected_fraction": 1.0}
    data = opened("memory://set/*.parquet", **settings)
    assert sum(reads) <= 2**16
    assert len(data.shards.groups) == 8
    reads.clear()
    dataset, sampler = data.dataset(TOKENIZER, SPEC, None), data.sampler(SPEC, 1)
    monkeypatch.setattr(parquet_rows, "MAX_PAGE_BYTES", 2e7)
    before, peak, seen = pa.total_allocated_bytes(), 0, Counter[str]()
    for spec in sampler.epoch(0, 0):
        seen.update(one.clip for one in dataset[spec].rejections)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert seen == Counter(f"a.parquet:{row}" for row in range(160))
    # Four substreams hold two groups of 2 MB each.
    if pages == "small":
        # Two substreams begin within a row group, and read what is before them.
        assert size_bytes < sum(reads) < 2.5 * size_bytes
        assert max(reads) < 3e6
        assert peak < 4 * 4e6 + 4 * 3e6
    else:
        assert peak < 4 * 4e6 + 2e7


def test_a_dataset_in_memory_gives_the_same_clips(written: list[dict[str, object]], folder: Path) -> None:
    settings = {"streaming": True, "batch_size": 2, "gradient_accumulation_steps": 2, "validation_fraction": 0.0}
    shuffled = [7, *range(6, -1, -1), *range(20, 40)]
    data = open_training_data(TrainConfig(**settings), dataset_of(written).select(shuffled))
    files = opened(folder).dataset(TOKENIZER, SPEC, None)
    dataset = data.dataset(TOKENIZER, SPEC, None)
    for row, source in enumerate(shuffled):
        clip, same = dataset.read(row), files.read(source)
        assert type(clip) is type(same)
        if isinstance(clip, Incident):
            assert (clip.clip, clip.kind) == (f"dataset:{row}", same.kind)
        else:
            np.testing.assert_array_equal(clip.pcm, same.pcm)
            np.testing.assert_array_equal(clip.tokens, same.tokens)
    assert outcomes(read(data)) == Counter({f"dataset:{row}": 1 for row in range(28)})
    again = open_training_data(TrainConfig(**settings), dataset_of(written).select(shuffled))
    assert again.fingerprint() == data.fingerprint()
    other = open_training_data(TrainConfig(**settings), dataset_of(written).select(shuffled[::-1]))
    assert other.fingerprint() != data.fingerprint()


def test_objects_that_cannot_be_read_by_row_are_refused() -> None:
    whole = dataset_of(rows(2))
    config = TrainConfig(streaming=True)
    for data, message in (
        (datasets.DatasetDict(train=whole), r"has several splits \(train\)"),
        (whole.to_iterable_dataset(), "IterableDataset can only be read in its own order"),
        (whole.select([]), "data: has no rows"),
        ([1, 2], "data: is a list, not a datasets.Dataset"),
    ):
        with pytest.raises(DataError, match=message):
            open_training_data(config, data)


def test_bad_files_are_named(tmp_path: Path) -> None:
    wav = encode(voice(0.6, 16000), 16000)
    file = tmp_path / "a.parquet"

    def written(**columns: list[Any]) -> Path:
        pq.write_table(pa.table(columns), file)
        return file

    assert "needs a column audio or path" in refusal(written(sound=["a"], text=["b"]))
    message = refusal(written(left=[wav], right=[wav], text=["b"]))
    assert "the columns left and right may be the audio. Name one with --audio_column" in message
    named = opened(file, audio_column="right", validation_fraction=0.0)
    assert named.clip_count == 1
    assert named.update_speakers(named.sampler(SPEC, 1)) == "Columns: audio = right, text = text."
    assert opened(written(sound=[wav], text=["b"]), validation_fraction=0.0).clip_count == 1
    assert f"{file}: column text is int64, not text" in refusal(written(audio=[wav], text=[7]))
    assert "column audio is list<element: double>, not audio" in refusal(written(audio=[[0.1]], text=["b"]))
    assert "no column words (--text_column)" in refusal(written(audio=[wav], text=["b"]), text_column="words")
    assert "without any rows" in refusal(written(audio=pa.array([], pa.binary()), text=pa.array([], pa.string())))
    assert f"no Parquet file matches {tmp_path}/b*.parquet. Correct it" in refusal(tmp_path / "b*.parquet")
    (tmp_path / "lj").mkdir()
    assert "Prepare other data sets with prepare_data" in refusal(tmp_path / "lj")
    file.write_bytes(b"file_name|text\n" * 20)
    assert f"{file}: is not a complete Parquet file" in refusal(file)


def test_texts_that_cannot_be_those_of_the_recordings_are_refused(tmp_path: Path) -> None:
    clips = [{**row, "sentence": "5"} for row in rows(12)]
    for row in clips:
        row["audio"] = {"bytes": encode(voice(1.6, 16000), 16000), "path": None}
    data = opened(write_dataset(tmp_path / "set", [clips]), validation_fraction=0.5)
    with pytest.raises(DataError, match=r"6 of 6 clips have a text far too short .* Name another --text_column"):
        data.dataset(TOKENIZER, SPEC, None)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="--dataset a/b requires --streaming true"):
        TrainConfig(dataset="a/b")
    with pytest.raises(ConfigError, match="--streaming and --batch_seconds exclude each other"):
        TrainConfig(dataset="a/b", streaming=True, batch_seconds=20)
    with pytest.raises(ConfigError, match="--text_column applies to --dataset only"):
        open_training_data(TrainConfig(text_column="words"))
    with pytest.raises(DataError, match="--revision applies to data sets on the Hub only"):
        opened("nowhere.parquet", revision="v1")
