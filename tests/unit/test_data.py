"""From a prepared folder to batches: good and bad records, padding, the stand-in."""

import hashlib
import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.limits import HANG_S
from tests.speech import voice
from tests.voices import many_speakers
from vits_trainer.accounts import Incident
from vits_trainer.audio import AudioSpec
from vits_trainer.data import (
    Clip,
    ClipReader,
    PreparedSet,
    choose_speakers,
    collate,
    open_prepared,
    require_rate,
    split,
)
from vits_trainer.errors import ConfigError, DataError
from vits_trainer.interruption import SIGNALS, Interruption
from vits_trainer.loading import by_update, load
from vits_trainer.order import MicroBatch, Order
from vits_trainer.recordings import WAV_HEADER_BYTES, to_pcm16, write_pcm16_wav
from vits_trainer.text import build_tokenizer

SPEC = AudioSpec(16000)
PLACE = MicroBatch((0, 1), 0, 0, True)
SILENCE = Clip("", np.zeros(1, np.int64), np.zeros(512, np.int16), 0)


def write_clip(path: Path, samples: int, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pcm16_wav(path, to_pcm16(voice(samples / rate, rate)), rate)


def write_folder(root: Path, lines: list[str], summary: dict | None = None) -> Path:
    root.mkdir(exist_ok=True)
    (root / "metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    (root / "dataset.json").write_text(json.dumps(summary or {"sampling_rate": 16000}))
    return root


@pytest.fixture
def folder(tmp_path):
    for n in range(6):
        write_clip(tmp_path / "wavs" / f"{n}.wav", 8000 + 700 * n)
    return write_folder(tmp_path, [f"{n}.wav|ab {n}" for n in range(6)])


def reader_of(root: Path, speaker_ids: dict[str, int] | None = None, characters: str = "ab 0123456789") -> ClipReader:
    return ClipReader(open_prepared(root), build_tokenizer([characters]), SPEC, speaker_ids)


def test_split_is_complete_disjoint_and_the_same_again(folder):
    prepared = open_prepared(folder)
    training, validation = split(prepared, 0.34, 64, seed=1)
    assert (len(training), len(validation)) == (4, 2)
    assert sorted(training + validation) == list(range(6))
    assert split(open_prepared(folder), 0.34, 64, seed=1) == (training, validation)
    assert len({tuple(split(prepared, 0.34, 64, seed)[1]) for seed in range(12)}) > 3


@pytest.mark.parametrize(("fraction", "most", "held_out"), [(0, 64, 0), (0.01, 64, 1), (0.9, 3, 3), (0.5, 64, 3)])
def test_split_holds_out_as_many_as_asked(folder, fraction, most, held_out):
    assert len(split(open_prepared(folder), fraction, most, seed=0)[1]) == held_out


def test_split_goes_by_names_and_not_by_places(tmp_path):
    names = [f"{n}.wav" for n in range(30)]
    prepared = open_prepared(write_folder(tmp_path, [f"{name}|a" for name in names]))
    backwards = open_prepared(write_folder(tmp_path, [f"{name}|a" for name in reversed(names)]))
    held_out = {prepared.rows["filename"][row] for row in split(prepared, 0.3, 64, 1)[1]}
    assert held_out == {backwards.rows["filename"][row] for row in split(backwards, 0.3, 64, 1)[1]}


def of_speakers(folder: Path, sizes: dict[str, int]):
    lines = [f"{speaker}{n}.wav|a|{speaker}" for speaker, clips in sizes.items() for n in range(clips)]
    return open_prepared(write_folder(folder, lines))


def held_out_by_speaker(prepared, fraction: float, most: int = 64, seed: int = 1) -> dict[str, int]:
    return dict(Counter(prepared.rows["speaker"][row] for row in split(prepared, fraction, most, seed)[1]))


def test_split_of_one_speaker_is_that_of_old(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, [f"{n}.wav|a" for n in range(30)]))
    by_lot = sorted(range(30), key=lambda row: hashlib.sha256(f"7:{row}.wav".encode()).digest())
    assert split(prepared, 0.3, 64, 7) == (sorted(by_lot[9:]), sorted(by_lot[:9]))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (3, {"a": 1, "b": 1, "c": 1}),  # one of each who has two; d keeps his only one
        (5, {"a": 2, "b": 2, "c": 1}),
        (9, {"a": 6, "b": 2, "c": 1}),  # each keeps one to be trained on
        (64, {"a": 19, "b": 2, "c": 1}),
    ],
)
def test_split_takes_a_clip_of_each_speaker_in_turn(tmp_path, most, expected):
    prepared = of_speakers(tmp_path, {"a": 20, "b": 3, "c": 2, "d": 1})
    assert held_out_by_speaker(prepared, 0.9, most) == expected


def test_split_of_many_speakers_does_not_prefer_the_large_ones(tmp_path):
    prepared = of_speakers(tmp_path, {f"s{n:02}_": 40 if n < 5 else 2 for n in range(40)})
    heard = Counter(name for seed in range(60) for name in held_out_by_speaker(prepared, 0.5, 8, seed))
    # 8 of 40 speakers: each of the five large ones is heard with a chance of one in five.
    assert 40 < sum(heard[f"s{n:02}_"] for n in range(5)) < 80


def test_split_of_speakers_goes_by_names_and_not_by_places(tmp_path):
    lines = [f"{n}.wav|a|s{n % 7}" for n in range(30)]
    found = []
    for order in (lines, lines[::-1]):
        prepared = open_prepared(write_folder(tmp_path, order))
        training, held_out = split(prepared, 0.3, 64, 1)
        assert sorted(training + held_out) == list(range(30))
        found.append({prepared.rows["filename"][row] for row in held_out})
    assert found[0] == found[1]


def test_split_of_speakers_with_one_clip_each_holds_out_some_all_the_same(tmp_path):
    prepared = of_speakers(tmp_path, dict.fromkeys("abcdefgh", 1))
    assert len(held_out_by_speaker(prepared, 0.25)) == 2


def test_split_that_leaves_nothing_to_train_is_refused(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, ["0.wav|a"]))
    with pytest.raises(DataError, match="too few to hold out 1"):
        split(prepared, 0.1, 64, 0)


TEXTS = ["NA", "null", "007", '"quoted" text', "it's, so", " 1e5 ", "true", "#N/A", "nan"]


def test_texts_survive_as_they_are(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, [f"{n}.wav|{text}" for n, text in enumerate(TEXTS)]))
    assert list(prepared.rows["text"]) == TEXTS
    assert list(prepared.rows["speaker"]) == [""] * len(TEXTS)


def test_trap_8_speakers_are_sorted_whatever_their_order(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, ["0.wav|a|zin", "1.wav|b|ava", "2.wav|c|mem", "3.wav|d|ava"]))
    assert prepared.speakers == ["ava", "mem", "zin"]


def test_max_samples_takes_the_first(folder):
    assert list(open_prepared(folder, max_samples=2).rows["filename"]) == ["0.wav", "1.wav"]
    assert len(open_prepared(folder, max_samples=0).rows) == 6


@pytest.mark.parametrize("line", ["only-a-name", "a.wav|text|speaker|more", "|text"])
def test_malformed_line_is_named(tmp_path, line):
    write_folder(tmp_path, ["0.wav|good", line])
    with pytest.raises(DataError, match=r"metadata\.csv line 2: expected filename"):
        open_prepared(tmp_path)


def test_folder_that_is_not_prepared_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"metadata\.csv does not exist\. Make it with: vits-trainer prepare_data"):
        open_prepared(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("0.wav|\u015fev".encode("iso8859-9"))
    with pytest.raises(DataError, match=r"cannot be read"):
        open_prepared(tmp_path)
    write_folder(tmp_path, [])
    with pytest.raises(DataError, match="holds no clip"):
        open_prepared(tmp_path)


def test_damaged_summary_is_refused(folder):
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_prepared(folder)


def test_rate_is_the_summarys_or_else_the_first_clips(folder):
    write_clip(folder / "wavs" / "0.wav", 9000, rate=22050)
    assert open_prepared(folder).sampling_rate == 16000
    (folder / "dataset.json").unlink()
    prepared = open_prepared(folder)
    assert prepared.sampling_rate == 22050
    with pytest.raises(DataError, match=r"at 22050 Hz, the voice at 16000 Hz.*--target_sr 16000"):
        require_rate(prepared, SPEC)


def test_fingerprint_changes_with_texts_names_and_speakers(tmp_path):
    variants = [["0.wav|a"], ["0.wav|b"], ["1.wav|a"], ["0.wav|a|s"], ["0.wav|a", "1.wav|a"]]
    prints = [open_prepared(write_folder(tmp_path, lines)).fingerprint(range(len(lines))) for lines in variants]
    assert len(set(prints)) == len(variants)
    assert open_prepared(write_folder(tmp_path, variants[0])).fingerprint([0]) == prints[0]


def test_fingerprint_is_of_the_training_clips_alone(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, ["0.wav|a", "1.wav|b", "2.wav|c"]))
    assert prepared.fingerprint([0, 1]) != prepared.fingerprint([0, 1, 2])
    assert prepared.fingerprint([0, 1]) != prepared.fingerprint([0, 2])


def test_good_clip_is_read_in_whole_frames(folder):
    clip = reader_of(folder)[1]
    assert isinstance(clip, Clip)
    assert clip.clip_id == "1.wav"
    assert clip.tokens.tolist() == reader_of(folder).tokenizer("ab 1").input_ids
    assert len(clip.pcm) == 8700 // 256 * 256
    assert clip.pcm.tolist() == to_pcm16(voice(8700 / 16000, 16000)).tolist()[: len(clip.pcm)]
    assert clip.speaker_id is None


def test_speakers_become_their_ids(tmp_path):
    write_clip(tmp_path / "wavs" / "0.wav", 8000)
    write_folder(tmp_path, ["0.wav|ab|mem"])
    assert reader_of(tmp_path, {"ava": 0, "mem": 1})[0].speaker_id == 1


@pytest.mark.parametrize(
    ("reason", "samples", "rate", "text"),
    [
        ("wrong-rate", 8000, 22050, "ab"),
        ("no-known-characters", 8000, 16000, "€€"),
        ("too-short", 511, 16000, "a"),
        ("text-too-long", 8 * 256, 16000, "abab"),  # trap 6: 9 tokens, 8 frames
    ],
)
def test_bad_clip_is_a_record_with_its_reason(tmp_path, reason, samples, rate, text):
    write_clip(tmp_path / "wavs" / "bad.wav", samples, rate)
    write_folder(tmp_path, [f"bad.wav|{text}"])
    record = reader_of(tmp_path)[0]
    assert isinstance(record, Incident)
    assert (record.clip, record.kind) == ("bad.wav", reason)


def test_trap_6_text_that_just_fits_is_kept(tmp_path):
    write_clip(tmp_path / "wavs" / "0.wav", 9 * 256)
    write_folder(tmp_path, ["0.wav|abab"])
    assert len(reader_of(tmp_path)[0].tokens) == 9


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing-file"),
        (b"", "unreadable-audio"),
        (b"no wave", "unreadable-audio"),
        ("truncated", "truncated-audio"),
    ],
)
def test_unreadable_clip_is_a_record(tmp_path, content, kind):
    path = tmp_path / "wavs" / "bad.wav"
    write_clip(path, 8000)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if content == "truncated" else content)
    write_folder(tmp_path, ["bad.wav|ab"])
    record = reader_of(tmp_path)[0]
    assert isinstance(record, Incident)
    assert record.kind == kind
    assert "bad.wav" in record.message
    assert record.trace == ""  # expected of data


def test_unexpected_error_of_a_clip_is_a_record_with_its_traceback(folder, monkeypatch):
    """And it goes through a DataLoader, whose iterator an error would end."""

    def broken(tokenizer, text):
        if text == "ab 2":
            raise ZeroDivisionError("nobody thought of this")
        return np.array([1, 2])

    monkeypatch.setattr("vits_trainer.data.encode", broken)
    places = [MicroBatch((n,), 0, n, True) for n in range(6)]
    batches = list(load(reader_of(folder), places, workers=2))
    assert [len(batch.clip_ids) for batch in batches] == [1, 1, 0, 1, 1, 1]
    (record,) = batches[2].rejections
    assert (record.clip, record.stage, record.kind) == ("2.wav", "read", "ZeroDivisionError")
    assert record.message == "nobody thought of this"
    assert "in broken" in record.trace


def test_clip_outside_the_folder_is_a_record(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.wav"
    write_clip(elsewhere, 8000)
    (folder / "wavs" / "3.wav").unlink()
    (folder / "wavs" / "3.wav").symlink_to(elsewhere)
    assert reader_of(folder)[3].kind == "path-outside"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("../secret.wav|ab", "leads out of"),
        ("/etc/passwd|ab", "leads out of"),
        ("3.wav|ab", "stands in line 4 already"),
    ],
)
def test_metadata_that_lead_elsewhere_or_repeat_a_clip_are_refused(folder, line, said):
    with (folder / "metadata.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=f"line 7: .*{said}"):
        open_prepared(folder)


def test_batch_is_padded_to_a_common_size_and_keeps_bad_records():
    clips = [
        Clip("a", np.array([1, 2, 3]), np.full(512, 16384, np.int16), 4),
        Incident("x", "read", "too-short", "3 samples"),
        Clip("b", np.array([5]), np.full(5 * 256, -32768, np.int16), 0),
    ]
    batch = collate(clips, PLACE, SPEC, SILENCE)
    assert batch.tokens.tolist() == [[1, 2, 3, 0], [5, 0, 0, 0]]
    assert batch.token_lengths.tolist() == [3, 1]
    assert batch.frame_lengths.tolist() == [2, 5]
    assert batch.speaker_ids.tolist() == [4, 0]
    assert batch.clip_ids == ("a", "b")
    assert batch.waveform.dtype == torch.int16  # half as much to move
    waveform = batch.to(torch.device("cpu")).waveform
    assert waveform.shape == (2, 8 * 256)
    assert waveform[0, :512].unique().tolist() == [0.5]
    assert waveform[0, 512:].unique().tolist() == [0.0]
    assert waveform[1, : 5 * 256].unique().tolist() == [-1.0]
    assert waveform[1, 5 * 256 :].unique().tolist() == [0.0]
    assert batch.audio_s == (512 + 5 * 256) / 16000
    assert [r.clip for r in batch.rejections] == ["x"]
    assert batch.place == PLACE
    assert batch.to(torch.device("cpu")).clip_ids == batch.clip_ids


def test_trimmed_batch_is_no_longer_than_its_longest_clip():
    clips = [
        Clip("a", np.array([1, 2, 3, 4, 5]), np.ones(512, np.int16), None),
        Clip("b", np.array([5]), np.ones(5 * 256, np.int16), None),
    ]
    trimmed = collate(clips, PLACE, SPEC, SILENCE).trimmed(SPEC.hop)
    assert trimmed.tokens.shape == (2, 5)
    assert trimmed.waveform.shape == (2, 5 * 256)


@pytest.mark.parametrize(
    "records", [[], [Incident("x", "read", "too-short", "3 samples")]], ids=["no clip", "a bad one"]
)
def test_silence_stands_in_where_no_clip_is_good(records):
    batch = collate(records, PLACE, SPEC, SILENCE)
    assert batch.clip_ids == ()
    assert batch.audio_s == 0
    assert batch.waveform.unique().tolist() == [0]
    assert (batch.frame_lengths.tolist(), batch.token_lengths.tolist()) == ([2], [1])
    assert batch.rejections == tuple(records)


def test_workers_give_what_the_process_itself_gives(folder):
    order = Order(tuple(range(6)), [40] * 6, seed=1, batch_size=2, world_size=1, accumulation=1)
    reader, places = reader_of(folder), list(order.epoch(0, 0))
    alone, helped = (list(load(reader, iter(places), workers)) for workers in (0, 2))
    assert len(alone) == len(helped) == 3
    for ours, theirs, place in zip(alone, helped, places, strict=True):
        assert ours.place == theirs.place == place
        assert ours.clip_ids == theirs.clip_ids == tuple(f"{i}.wav" for i in place.indices)
        assert torch.equal(ours.waveform, theirs.waveform)
        assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_without_a_good_clip_is_a_record_from_a_worker_too(folder, workers):
    (folder / "wavs" / "3.wav").unlink()
    batches = load(reader_of(folder), [MicroBatch((3,), 0, 0, True), MicroBatch((2,), 0, 1, True)], workers)
    bad, good = batches
    assert [(r.clip, r.kind) for r in bad.rejections] == [("3.wav", "missing-file")]
    assert good.clip_ids == ("2.wav",)


def test_signals_to_the_group_leave_the_workers_alive(folder, tmp_path):
    """Ctrl-C and a scheduler reach every process of the group; the training process must go on to its save."""
    places = [MicroBatch((n % 6,), 0, n, True) for n in range(40)]
    with Interruption(tmp_path / "STOP") as interruption:
        batches = load(reader_of(folder), places, 2)
        first = [next(batches).place, next(batches).place]  # both workers have begun
        for worker in batches._workers:
            for number in SIGNALS:  # from another process, as a terminal or a scheduler sends them
                subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
        assert [*first, *(batch.place for batch in batches)] == places
    assert interruption.signal is None  # it was theirs


def test_no_thread_of_a_worker_takes_a_signal_from_the_one_that_waits_for_it(folder):
    """torch starts its pool in a worker before anything of ours runs there; a SIGTERM that reached it got lost."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)  # makes the pool that the workers then make anew
    batches = load(reader_of(folder), [MicroBatch((n % 6,), 0, n, True) for n in range(40)], 2)
    torch.set_num_threads(usual)
    next(batches), next(batches)
    for worker in batches._workers:
        masks = [
            int(re.search(r"^SigBlk:\s*(\w+)", (task / "status").read_text(), re.M)[1], 16)
            for task in Path(f"/proc/{worker.pid}/task").iterdir()
        ]
        unblocked = [mask >> (signal.SIGTERM - 1) & 1 == 0 for mask in masks]
        assert len(masks) > 2  # the main thread, the one that waits, and torch's
        assert sum(unblocked) == 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the process itself still heeds it


def test_process_can_end_its_own_workers(folder):
    """As multiprocessing does at exit, where it then waits for them without a limit."""
    batches = load(reader_of(folder), [MicroBatch((n % 6,), 0, n, True) for n in range(40)], 2)
    next(batches)
    for worker in batches._workers:
        worker.terminate()
        worker.join(timeout=HANG_S)
        assert worker.exitcode == 0


def test_micro_batches_are_joined_by_update(folder):
    places = [MicroBatch((n,), 0, n, closes_update=n in (1, 2, 5)) for n in range(6)]
    updates = list(by_update(load(reader_of(folder), places, 0)))
    assert [[batch.place.number for batch in update] for update in updates] == [[0, 1], [2], [3, 4, 5]]


def test_making_a_loader_leaves_the_global_generator_alone(folder):
    before = torch.random.get_rng_state()
    list(load(reader_of(folder), [MicroBatch((0,), 0, 0, True)], 0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_planned_frames_are_those_of_the_clips(folder):
    (folder / "wavs" / "5.wav").unlink()
    reader = reader_of(folder)
    planned = reader.prepared.frames(range(6), SPEC.hop)
    assert planned == [*(len(reader[n].pcm) // SPEC.hop for n in range(5)), 1]


def test_fingerprint_changes_with_a_clips_length(folder):
    before = open_prepared(folder).fingerprint(range(6))
    write_clip(folder / "wavs" / "2.wav", 12000)
    assert open_prepared(folder).fingerprint(range(6)) != before


def chosen(prepared: PreparedSet, **choice: Any) -> dict[str, list[str]]:
    """Names of the chosen clips, by speaker."""
    found: dict[str, list[str]] = {}
    rows = choose_speakers(prepared, **{"only": "", "most_clips": 0, "seed": 1, **choice}).rows
    for name, speaker in zip(rows["filename"], rows["speaker"], strict=True):
        found.setdefault(speaker, []).append(name)
    return found


def test_speakers_are_chosen_and_their_clips_limited(tmp_path):
    prepared = open_prepared(many_speakers(tmp_path, {"ava": 6, "bo": 2, "cem": 4}))
    everything = {"ava": [f"ava_{n}.wav" for n in range(6)], "cem": [f"cem_{n}.wav" for n in range(4)]}
    assert chosen(prepared, only="cem, ava") == everything
    limited = chosen(prepared, most_clips=3)
    assert {name: len(clips) for name, clips in limited.items()} == {"ava": 3, "bo": 2, "cem": 3}
    assert set(limited["ava"]) < set(everything["ava"])
    assert limited == chosen(prepared, most_clips=3)
    assert len({tuple(chosen(prepared, most_clips=3, seed=seed)["ava"]) for seed in range(9)}) > 1


def test_chosen_clips_keep_their_own_recordings(tmp_path):
    prepared = open_prepared(many_speakers(tmp_path, {"ava": 6, "bo": 2, "cem": 4}))
    cem = choose_speakers(prepared, "cem", 2, seed=1)
    assert len(cem.rows) == 2
    for row, name in enumerate(cem.rows["filename"]):
        path = tmp_path / "training/wavs" / name
        samples = np.frombuffer(path.read_bytes()[WAV_HEADER_BYTES:], dtype=np.int16)
        np.testing.assert_array_equal(cem.recordings.read(row)[0], samples)
        assert cem.recordings.sizes_bytes[row] == path.stat().st_size
        cem.recordings.put(row, tmp_path / f"{row}.wav")
        assert (tmp_path / f"{row}.wav").read_bytes() == path.read_bytes()


def test_unknown_speaker_is_refused_with_those_that_there_are(tmp_path):
    prepared = open_prepared(many_speakers(tmp_path, {f"s{n:02}": 1 for n in range(18)}))
    with pytest.raises(ConfigError, match=r"no clip of zin. Its speakers: s00, s01, .* s15 and 2 more"):
        chosen(prepared, only="s03,zin")
