"""Preparation into shards: the same clips as in wavs/, each exactly once, also with several parts and interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import audio as speech
from tests.support.audio import Utterance, encode, good_utterances, mixed_utterances, voice
from tests.support.limits import HANG_S
from tests.support.preparation import contents, lj_speech, prepare_into, rejected
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import Reason, read_pcm16_wav
from vits_trainer.data.preparation import pipeline, sharded
from vits_trainer.data.preparation.sharded import shuffled_indices
from vits_trainer.data.shards import Manifest, decode_audio, shard_sizes, verify_shards
from vits_trainer.data.sources.base import Source
from vits_trainer.data.streaming_sampler import StreamingBatchSampler
from vits_trainer.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
Row = tuple[str, str, str, bytes]


def rows_of(output_dir: Path) -> list[Row]:
    """Returns name, text, speaker and PCM of each clip in the order of the shards, read with pyarrow directly."""
    manifest = Manifest.read(output_dir)
    tables = [pq.read_table(path) for path in sorted((output_dir / "shards").glob("*.parquet"))]
    return [
        (row["clip"], row["text"], row["speaker"], _decoded(row, manifest))
        for row in pa.concat_tables(tables).to_pylist()
    ]


def _decoded(row: dict[str, Any], manifest: Manifest) -> bytes:
    return decode_audio(row["audio"], manifest.encoding, row["samples"], manifest.sampling_rate).tobytes()


def rows_of_wavs(output_dir: Path) -> list[Row]:
    lines = (output_dir / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows = [[*line.split("|"), "speaker-a"][:3] for line in lines]
    return [(*row, read_pcm16_wav(output_dir / "wavs" / row[0])[0].tobytes()) for row in rows]


def make_clips(count: int) -> list[Utterance]:
    """Returns utterances of three speakers with distinct names, texts and pitches; every seventh one is damaged."""
    clips = []
    for n in range(count):
        content = encode(voice(0.3 + 0.02 * (n % 9), 16000, 90 + n), 16000)
        clips.append(Utterance(f"c{n}.wav", f"Ev {n}.", content if n % 7 else b"?" * 99, client_id=f"s{n % 3}"))
    return clips


# The result


@pytest.mark.parametrize("encoding", ["pcm16", "flac"])
@pytest.mark.parametrize("kind", ["release", "parquet"])
def test_shards_contain_the_same_clips_as_wavs(tmp_path: Path, kind: str, encoding: str) -> None:
    write = {"release": speech.write_release, "parquet": speech.write_parquet}[kind]
    utterances = [replace(u, path=f"{n}-{u.path}") for n in range(2) for u in mixed_utterances()]
    dataset = write(tmp_path / "cv.parquet", utterances)
    wavs = prepare_into(tmp_path / "wavs", dataset)
    shards = prepare_into(tmp_path / "out", dataset, shards=3, encoding=encoding)

    assert sorted(row[1:] for row in rows_of(tmp_path / "out")) == sorted(
        row[1:] for row in rows_of_wavs(tmp_path / "wavs")
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json", "rejected.csv", "shards", "shards.json", "sources.csv"
    ]  # fmt: skip
    assert replace(shards, examples=(), warnings=()) == replace(
        wavs, output_dir=tmp_path / "out", shards=3, examples=(), warnings=()
    )
    assert (len(shards.examples), len(shards.warnings)) == (len(wavs.examples), len(wavs.warnings))
    assert (tmp_path / "out" / "rejected.csv").read_bytes() == (tmp_path / "wavs" / "rejected.csv").read_bytes()
    manifest = Manifest.read(tmp_path / "out")
    verify_shards(tmp_path / "out", manifest)
    assert (manifest.clips, manifest.sampling_rate, manifest.encoding) == (6, 16000, encoding)
    assert sum(shard.samples for shard in manifest.shards) == round(shards.seconds * 16000)


def test_dataset_json_has_speakers_and_characters_for_wavs_and_for_shards(tmp_path: Path) -> None:
    clips = [*make_clips(20), replace(make_clips(2)[1], client_id="", path="x")]
    dataset = speech.write_parquet(tmp_path / "cv.parquet", clips)
    prepare_into(tmp_path / "wavs", dataset)
    prepare_into(tmp_path / "out", dataset, shards=4)
    wavs, shards = (json.loads((tmp_path / name / "dataset.json").read_text("utf-8")) for name in ("wavs", "out"))
    assert shards["speaker_clips"] == {"s0": 6, "s1": 6, "s2": 5, "unknown": 1}
    assert shards["characters"] == " .0123456789Ev"
    assert (shards.pop("shards"), wavs["speakers"]) == (4, 4)
    added = {"shards": 4, "encoding": "pcm16", "parts": 1, "order": "shuffled"}
    for named in ("examples", "warnings", "copies", "repeated"):
        assert bool(shards.pop(named, None)) == (named == "repeated" or bool(wavs.pop(named, None)))
    assert shards == {**wavs, "settings": wavs["settings"] | added}


def test_shards_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    dataset = speech.write_release(tmp_path / "cv", make_clips(25))
    for processes in (1, 2):
        prepare_into(tmp_path / str(processes), dataset, shards=4, processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert sum(shard.clips for shard in Manifest.read(tmp_path / "1").shards) == 21


def speakers_per_update(order: np.ndarray, speakers: int, clips: int) -> tuple[float, float]:
    """Mean number of speakers in an update of 32 clips, of a source in ``order`` that is sorted by speaker; and the
    expectation for independent draws."""
    groups = [min(13, rest) for size in shard_sizes(len(order), 16) for rest in range(size, 0, -13)]
    shard_of_group = np.repeat(np.arange(16), [-(-size // 13) for size in shard_sizes(len(order), 16)])
    sampler = StreamingBatchSampler(groups, shard_of_group, (), 1, 32, 1, 1)
    lengths = np.random.default_rng(0).gamma(6, 1, len(order))
    counts = []
    for spec in islice(sampler.epoch(0, 0), 60):
        rows = np.array(spec.indices)
        part = np.array_split(rows[np.argsort(lengths[order[rows]])], spec.parts)[spec.part]
        counts.append(len(set((order[part] // clips).tolist())))
    return float(np.mean(counts)), speakers * (1 - (1 - 1 / speakers) ** 32)


def test_an_update_of_a_source_sorted_by_speaker_has_many_speakers() -> None:
    """As in VCTK: 109 speakers with 400 clips each."""
    before, uniform = speakers_per_update(np.arange(109 * 400), 109, 400)
    assert before < uniform / 3
    assert speakers_per_update(shuffled_indices(109 * 400, 1), 109, 400)[0] > 0.95 * uniform
    assert speakers_per_update(shuffled_indices(109 * 400, 16), 109, 400)[0] > 0.55 * uniform


@pytest.mark.parametrize("block_clips", [1, 3, 16, 200])
def test_shuffled_indices_contain_every_clip_once_and_keep_blocks(block_clips: int) -> None:
    indices = shuffled_indices(100, block_clips)
    assert sorted(indices.tolist()) == list(range(100))
    assert np.count_nonzero(np.diff(indices) != 1) <= -(-100 // block_clips) - 1
    assert block_clips >= 100 or indices.tolist() != list(range(100))


def test_clips_with_a_text_of_their_own_are_marked_in_dataset_json(tmp_path: Path) -> None:
    clips = make_clips(40)
    clips[9] = replace(clips[9], sentence="EV 10!")
    prepare_into(tmp_path / "out", speech.write_release(tmp_path / "cv", clips), shards=4)
    bits = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))["repeated"]
    marked = [
        row["clip"]
        for name in bits
        for row, bit in zip(
            pq.read_table(tmp_path / "out" / "shards" / name).to_pylist(),
            np.unpackbits(np.frombuffer(bytes.fromhex(bits[name]), np.uint8)),
            strict=False,
        )
        if bit
    ]
    assert sorted(marked) == ["audio_000009.wav", "audio_000010.wav"]


# Parts

PREPARE = "import sys; from vits_trainer.cli.main import main; sys.exit(main(sys.argv[1:]))"


def in_a_process(dataset: Path, output_dir: Path, *flags: str) -> subprocess.Popen[str]:
    arguments = ["prepare_data", "--dataset", str(dataset), "--output_dir", str(output_dir), "--processes", "1", *flags]
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_concurrent_parts_contain_every_clip_once(tmp_path: Path) -> None:
    dataset = speech.write_release(tmp_path / "cv", make_clips(50))  # 8 or 9 per shard
    prepare_into(tmp_path / "one", dataset, shards=6)
    running = [in_a_process(dataset, tmp_path / "out", "--shards", "6", "--part", f"{part}/3") for part in (1, 2, 3)]
    outputs = [process.communicate(timeout=HANG_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert sum("Prepared" in text for text in outputs) >= 1

    one, parts = rows_of(tmp_path / "one"), rows_of(tmp_path / "out")
    assert parts == one
    assert sorted(name for name, *_ in parts) == [f"audio_{n:06d}.wav" for n in range(50) if n % 7]
    assert (tmp_path / "out" / "rejected.csv").read_bytes() == (tmp_path / "one" / "rejected.csv").read_bytes()
    record, whole = (json.loads((tmp_path / name / "dataset.json").read_text("utf-8")) for name in ("out", "one"))
    assert record.pop("settings") == {**whole.pop("settings"), "parts": 3}
    assert record == whole
    verify_shards(tmp_path / "out", Manifest.read(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 6


@pytest.mark.parametrize("kind", ["release", "parquet"])
def test_a_part_converts_only_its_own_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write = {"release": speech.write_release, "parquet": speech.write_parquet}[kind]
    content = encode(voice(0.4, 16000), 16000)
    dataset = write(tmp_path / "cv.parquet", [replace(clip, content=content) for clip in make_clips(12)])
    monkeypatch.setattr(sharded, "encode_clip", speech.noted_clip)
    monkeypatch.setenv("NOTED_CLIPS", str(tmp_path / "noted"))
    for part, done, missing in (("2/3", 4, ("1/3", "3/3")), ("3/3", 8, ("1/3",)), ("1/3", 12, ())):
        summary = prepare_into(tmp_path / "out", dataset, shards=3, part=part)
        assert (summary.missing_parts, (tmp_path / "noted").stat().st_size) == (missing, done)
        assert summary.accepted == (12 if not missing else 4)
        assert (tmp_path / "out" / "dataset.json").exists() == (not missing)


def test_parts_of_several_disks_are_merged_after_copying(tmp_path: Path) -> None:
    dataset = speech.write_parquet(tmp_path / "cv.parquet", make_clips(20))
    for part in (1, 2):
        prepare_into(tmp_path / f"disk {part}", dataset, shards=2, part=f"{part}/2")
    moved = sorted((tmp_path / "disk 2" / "shards").iterdir())
    assert [path.name for path in moved] == ["part_2_of_2.jsonl", "shard_00001.parquet", "together.lock"]
    moved[0].rename(tmp_path / "disk 1" / "shards" / moved[0].name)
    with pytest.raises(DataError, match=r"shard_00001\.parquet is missing or incomplete\. Copy it"):
        prepare_into(tmp_path / "disk 1", dataset, shards=2, part="1/2")
    moved[1].rename(tmp_path / "disk 1" / "shards" / moved[1].name)
    assert prepare_into(tmp_path / "disk 1", dataset, shards=2, part="1/2").accepted == 17
    prepare_into(tmp_path / "one", dataset, shards=2)
    assert [row[1:] for row in rows_of(tmp_path / "disk 1")] == [row[1:] for row in rows_of(tmp_path / "one")]


def test_parts_with_different_settings_are_refused(tmp_path: Path) -> None:
    dataset = speech.write_parquet(tmp_path / "cv.parquet", make_clips(20))
    prepare_into(tmp_path / "out", dataset, shards=4, part="1/2")
    with pytest.raises(DataError, match=r"part_1_of_2.jsonl: .* differ: target_sr 16000 -> 22050"):
        prepare_into(tmp_path / "out", dataset, shards=4, part="2/2", target_sr=22050)
    for part in (None, "1/4"):
        with pytest.raises(DataError, match=r"another number of parts \(part_1_of_2.jsonl\)"):
            prepare_into(tmp_path / "out", dataset, shards=4, part=part)


def test_every_clip_once_if_the_source_reports_no_or_a_wrong_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = speech.write_parquet(tmp_path / "cv.parquet", make_clips(20))
    real = pipeline.open_source
    for count in (None, 12, 30):  # 12 and 30: the Hub's count may be out of date

        def reported(config: PrepareConfig, n: int | None = count) -> Source:
            return replace(real(config), clip_count=n, access="sequential")

        for module in (pipeline, sharded):
            monkeypatch.setattr(module, "open_source", reported)
        for part in ("1/2", "2/2"):
            prepare_into(tmp_path / f"out{count}", dataset, shards=4, part=part)
        assert [row[1] for row in rows_of(tmp_path / f"out{count}")] == [f"Ev {n}." for n in range(20) if n % 7]


# Rejected clips and existing files


def test_shard_without_accepted_clips_is_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = [replace(u, up_votes=0 if 4 <= n < 8 else 2) for n, u in enumerate(make_clips(15)[1:13])]
    dataset = speech.write_parquet(tmp_path / "cv.parquet", utterances)
    real = pipeline.open_source
    monkeypatch.setattr(pipeline, "open_source", lambda config: replace(real(config), access="sequential"))
    summary = prepare_into(tmp_path / "out", dataset, shards=3)
    assert "shard_00001.parquet is skipped: all of its 4 clips are rejected" in caplog.text
    assert [shard.name for shard in Manifest.read(tmp_path / "out").shards] == [
        "shard_00000.parquet", "shard_00002.parquet"
    ]  # fmt: skip
    assert (summary.shards, summary.accepted, summary.rejected[Reason.TOO_FEW_UPVOTES]) == (2, 8, 4)
    with pytest.raises(DataError, match=r"12 clips, fewer than one per shard\. Give a lower"):
        prepare_into(tmp_path / "few", dataset, shards=13)


def test_all_clips_rejected_in_all_parts_is_an_error(tmp_path: Path) -> None:
    dataset = speech.write_parquet(tmp_path / "cv.parquet", [replace(u, up_votes=0) for u in make_clips(4)])
    assert prepare_into(tmp_path / "out", dataset, shards=2, part="2/2").accepted == 0
    with pytest.raises(DataError, match="all clips were rejected: 4 too-few-upvotes"):
        prepare_into(tmp_path / "out", dataset, shards=2, part="1/2")
    assert sorted(contents(tmp_path / "out")) == ["rejected.csv"]
    assert len(rejected(tmp_path / "out")) == 4


def test_existing_files_are_never_changed(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a", "b"])
    for name, message in (("shards/notes.txt", "notes.txt was not written"), ("metadata.csv", "already contains"),
                       ("shards.json", "already contains"), ("dataset.json", "already contains")):  # fmt: skip
        out = tmp_path / Path(name).name
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("precious")
        with pytest.raises(DataError, match=message):
            prepare_into(out, dataset, shards=2)
        assert contents(out) == {name: b"precious"}


def test_wavs_and_shards_are_not_mixed(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a", "b"])
    prepare_into(tmp_path / "shards", dataset, shards=2)
    with pytest.raises(DataError, match=r"source differ: .*shards 2 -> 0"):
        prepare_into(tmp_path / "shards", dataset)
    prepare_into(tmp_path / "wavs", dataset)
    with pytest.raises(DataError, match=r"source differ: shards 0 -> 2\.$"):
        prepare_into(tmp_path / "wavs", dataset, shards=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "1/2"}, "requires --shards"),
        ({"push_to_hub": "a/b"}, "requires --shards"),
        ({"encoding": "flac"}, "requires --shards"),
        ({"shards": -1}, "--shards -1"),
        ({"shards": 4, "max_samples": 5}, "--max_samples 5"),
        ({"shards": 4, "part": "0/2"}, "such as 2/4"),
        ({"shards": 4, "part": "3/2"}, "such as 2/4"),
        ({"shards": 4, "part": "2"}, "such as 2/4"),
        ({"shards": 4, "part": "1/0"}, "such as 2/4"),
        ({"shards": 4, "part": "1/3"}, "multiple of 3, such as 6"),
        ({"shards": 2, "part": "1/4"}, "multiple of 4, such as 4"),
        ({"shards": 4, "push_to_hub": "name"}, "owner/name"),
    ],
)
def test_invalid_settings_of_shards_are_refused(settings: dict[str, int | str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**settings)


# Interrupted and repeated runs


def test_finished_shards_are_unchanged_by_a_repeated_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = speech.write_parquet(tmp_path / "cv.parquet", make_clips(12))
    for part in ("1/2", "2/2"):
        first = prepare_into(tmp_path / "out", dataset, shards=2, part=part)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(sharded, "encode_clip", None)  # nothing is converted
    again = prepare_into(tmp_path / "out", dataset, shards=2, part="1/2")
    assert (contents(tmp_path / "out"), again) == (before, replace(first, seconds=again.seconds))
    with pytest.raises(DataError, match=r"shards 2 -> 3; encoding pcm16 -> flac; parts 2 -> 1"):
        prepare_into(tmp_path / "out", dataset, shards=3, encoding="flac")


@pytest.mark.parametrize("kind", ["release", "parquet"])
def test_shards_are_identical_after_repeated_kills(tmp_path: Path, kind: str) -> None:
    write = {"release": speech.write_release, "parquet": speech.write_parquet}[kind]
    dataset = write(tmp_path / "cv.parquet", make_clips(600))
    for part in ("1/2", "2/2"):
        prepare_into(tmp_path / "whole", dataset, shards=24, part=part)
    out, flags = tmp_path / "out", ["--shards", "24", "--part", "2/2"]
    journal, kept = out / "shards" / "part_2_of_2.jsonl", {}
    for wanted in (2, 5, 9):
        process = in_a_process(dataset, out, *flags)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") <= wanted):
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = journal.read_bytes().count(b"\n") - 1
        assert wanted <= done < 12
        for number in range(12, 12 + done):
            file = out / "shards" / f"shard_{number:05d}.parquet"
            assert kept.setdefault(number, file.stat().st_ino) == file.stat().st_ino  # not written again
    with journal.open("ab") as file:
        file.write(b'{"record": {"na')
    shards = sorted((out / "shards").glob("*.parquet"))
    damaged = shards[done - 1].read_bytes()
    shards[done - 1].write_bytes(damaged[:-1] + b"?")  # as after a power loss
    for part in ("2/2", "1/2"):
        prepare_into(out, dataset, shards=24, part=part)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_part_cannot_be_prepared_twice_at_once(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a", "b"])
    with (
        sharded.PartJournal(tmp_path / "out" / "shards", 1, 2, {}),
        pytest.raises(DataError, match="Another prepare_data is running"),
    ):
        prepare_into(tmp_path / "out", dataset, shards=2, part="1/2")


# Disk space and memory


def test_only_the_shards_take_disk_space_during_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = speech.write_parquet(tmp_path / "cv.parquet", good_utterances(1) * 400)
    before = sum(map(len, contents(tmp_path).values()))
    used, largest = tmp_path / "out", 0
    real = sharded.ShardWriter.add_encoded

    def watched(*arguments: object) -> None:
        nonlocal largest
        real(*arguments)
        here = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) - before
        largest = max(largest, here)

    monkeypatch.setattr(sharded.ShardWriter, "add_encoded", watched)
    prepare_into(used, dataset, shards=4)
    finished = sum(shard.bytes for shard in Manifest.read(used).shards)
    assert 0.5 * finished < largest <= finished + 10_000


def test_clips_are_read_from_the_source_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pipeline.open_source(PrepareConfig(dataset=str(lj_speech(tmp_path / "set", [f"a{n}" for n in range(40)]))))
    read, ahead = 0, []

    def counted():
        nonlocal read
        for clip in source.clips:
            read += 1
            yield clip

    real = sharded.ShardWriter.add_encoded
    added = Counter()

    def watched(*arguments: object) -> None:
        real(*arguments)
        added["clips"] += 1
        ahead.append(read - added["clips"])

    monkeypatch.setattr(sharded.ShardWriter, "add_encoded", watched)
    monkeypatch.setattr(pipeline, "open_source", lambda _: replace(source, clips=counted(), access="sequential"))
    prepare_into(tmp_path / "out", tmp_path, shards=2)
    assert (added["clips"], max(ahead)) == (40, 3)
    assert np.mean(ahead) > 2


def test_data_set_on_the_hub_is_streamed_and_stored_only_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = speech.write_parquet(tmp_path / "repository" / "data" / "train-00000-of-00001.parquet", make_clips(60))
    home, out = tmp_path / "home", tmp_path / "out"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with speech.loopback_hub(tmp_path / "repository") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        for part in ("1/2", "2/2"):
            process = in_a_process(Path("owner/name"), out, "--shards", "4", "--part", part)
            output = process.communicate(timeout=HANG_S)[0]
            assert process.returncode == 0, output
    prepare_into(tmp_path / "one", whole, shards=4)
    assert sorted(rows_of(out)) == sorted(rows_of(tmp_path / "one"))
    assert rows_of(out) == sorted(rows_of(out))  # a stream keeps its order
    kept = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    assert kept < 0.1 * whole.stat().st_size
