"""From a prepared folder to batches: the order of clips, good and bad records, padding."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.speech import voice
from vits_trainer.audio import AudioSpec
from vits_trainer.data import (
    Clip,
    ClipReader,
    MicroBatch,
    Order,
    Rejection,
    collate,
    held_out_places,
    load,
    open_prepared,
    require_rate,
    split,
)
from vits_trainer.errors import DataError, NoTrainableClipError
from vits_trainer.recordings import to_pcm16, write_pcm16_wav
from vits_trainer.text import build_tokenizer

SPEC = AudioSpec(16000)
PLACE = MicroBatch((0, 1), 0, 0, 1, True)
# clips, clips in a micro-batch, processes, micro-batches in an update
SIZES = [
    sizes
    for sizes in itertools.product((1, 2, 7, 16, 33), (1, 4, 5), (1, 2, 3), (1, 3, 8))
    if sizes[0] >= sizes[2]
]


def order_of(clips: int, batch: int, world: int, accumulation: int, seed: int = 1) -> Order:
    return Order(tuple(range(100, 100 + clips)), seed, batch, world, accumulation)


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


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_clip_is_taken_exactly_once_an_epoch(sizes):
    clips, batch, world, _ = sizes
    order = order_of(*sizes)
    ranks = [order.epoch(3, rank) for rank in range(world)]
    taken = Counter(row for micro_batches in ranks for micro_batch in micro_batches for row in micro_batch.indices)
    assert taken == Counter(order.rows)
    assert {len(micro_batches) for micro_batches in ranks} == {order.micro_batches_per_epoch}
    assert all(micro_batch.indices for micro_batches in ranks for micro_batch in micro_batches)
    largest = max(len(micro_batch.indices) for micro_batches in ranks for micro_batch in micro_batches)
    assert largest <= batch or order.micro_batches_per_epoch == clips // world  # else a process would have no clip


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_updates_close_together_on_all_ranks_and_the_last_may_be_smaller(sizes):
    order = order_of(*sizes)
    accumulation = sizes[3]
    epoch = order.epoch(0, rank=sizes[2] - 1)
    closing = [micro_batch.closes_update for micro_batch in epoch]
    assert closing == [micro_batch.closes_update for micro_batch in order.epoch(5, rank=0)]
    assert sum(closing) == order.updates_per_epoch
    assert closing[-1]
    updates = [epoch[start : start + accumulation] for start in range(0, len(epoch), accumulation)]
    for update in updates:
        assert [m.closes_update for m in update] == [False] * (len(update) - 1) + [True]
        assert {m.in_update for m in update} == {len(update)}
    assert [m.number for m in epoch] == list(range(len(epoch)))


def test_last_update_of_an_epoch_is_smaller_by_hand():
    epoch = order_of(10, 2, 1, 3).epoch(0, 0)
    assert [m.closes_update for m in epoch] == [False, False, True, False, True]
    assert [m.in_update for m in epoch] == [3, 3, 3, 2, 2]


@pytest.mark.parametrize("sizes", SIZES[::7], ids=lambda sizes: "x".join(map(str, sizes)))
def test_resuming_takes_what_was_left(sizes):
    order = order_of(*sizes)
    until = 3 * order.updates_per_epoch + 1
    whole = list(order.after(0, until, rank=0))
    assert sum(m.closes_update for m in whole) == until
    assert whole[-1].closes_update
    for updates in range(until):
        ends = [place for place, m in enumerate(whole, start=1) if m.closes_update]
        assert list(order.after(updates, until, rank=0)) == whole[([0, *ends])[updates] :]
    assert list(order.after(until, until, rank=0)) == []


def test_epochs_and_seeds_have_orders_of_their_own():
    def rows(epoch: int, seed: int) -> tuple[int, ...]:
        return tuple(row for m in order_of(33, 4, 1, 1, seed).epoch(epoch, 0) for row in m.indices)

    assert len({rows(epoch, seed) for epoch in range(4) for seed in range(4)}) == 16
    assert rows(0, 1) != tuple(range(100, 133))


def test_order_is_the_same_in_another_process():
    code = (
        "from vits_trainer.data import Order; "
        "print([m.indices for m in Order(tuple(range(20)), 5, 3, 2, 2).epoch(4, 1)])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    order = Order(tuple(range(20)), 5, 3, 2, 2)
    assert said.stdout.strip() == str([m.indices for m in order.epoch(4, 1)])


def test_order_does_not_touch_the_global_generators():
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    order_of(33, 4, 2, 2).epoch(0, 0)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_fewer_clips_than_processes_are_refused():
    with pytest.raises(DataError, match=r"2 training clip.* too few for 3 processes"):
        order_of(2, 4, 3, 1)


def test_held_out_clips_are_shared_out_in_a_fixed_order():
    shares = [held_out_places(range(10, 17), 2, rank, 2) for rank in range(2)]
    assert [[m.indices for m in share] for share in shares] == [[(10, 12), (14, 16)], [(11, 13), (15,)]]


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
        ("wrong sampling rate", 8000, 22050, "ab"),
        ("no known characters", 8000, 16000, "€€"),
        ("too short", 511, 16000, "a"),
        ("text too long for its clip", 8 * 256, 16000, "abab"),  # trap 6: 9 tokens, 8 frames
    ],
)
def test_bad_clip_is_a_record_with_its_reason(tmp_path, reason, samples, rate, text):
    write_clip(tmp_path / "wavs" / "bad.wav", samples, rate)
    write_folder(tmp_path, [f"bad.wav|{text}"])
    record = reader_of(tmp_path)[0]
    assert isinstance(record, Rejection)
    assert (record.clip_id, record.reason) == ("bad.wav", reason)


def test_trap_6_text_that_just_fits_is_kept(tmp_path):
    write_clip(tmp_path / "wavs" / "0.wav", 9 * 256)
    write_folder(tmp_path, ["0.wav|abab"])
    assert len(reader_of(tmp_path)[0].tokens) == 9


@pytest.mark.parametrize("content", [None, b"", b"no wave", "truncated"])
def test_unreadable_clip_is_a_record(tmp_path, content):
    path = tmp_path / "wavs" / "bad.wav"
    write_clip(path, 8000)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3000] if content == "truncated" else content)
    write_folder(tmp_path, ["bad.wav|ab"])
    record = reader_of(tmp_path)[0]
    assert isinstance(record, Rejection)
    assert record.reason == "unreadable audio"
    assert "bad.wav" in record.detail


def test_batch_is_padded_to_its_longest_and_keeps_bad_records():
    clips = [
        Clip("a", np.array([1, 2, 3]), np.full(512, 16384, np.int16), 4),
        Rejection("x", "too short", "3 samples"),
        Clip("b", np.array([5]), np.full(768, -32768, np.int16), 0),
    ]
    batch = collate(clips, PLACE, SPEC)
    assert batch.tokens.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert batch.token_lengths.tolist() == [3, 1]
    assert batch.frame_lengths.tolist() == [2, 3]
    assert batch.speaker_ids.tolist() == [4, 0]
    assert batch.clip_ids == ("a", "b")
    assert batch.waveform.shape == (2, 768)
    assert batch.waveform[0, :512].unique().tolist() == [0.5]
    assert batch.waveform[0, 512:].unique().tolist() == [0.0]
    assert batch.waveform[1].unique().tolist() == [-1.0]
    assert batch.audio_s == (512 + 768) / 16000
    assert [r.clip_id for r in batch.rejections] == ["x"]
    assert batch.place == PLACE
    assert batch.to(torch.device("cpu")).clip_ids == batch.clip_ids


def test_batch_without_a_good_clip_says_why():
    with pytest.raises(NoTrainableClipError, match=r"x: too short \(3 samples\)"):
        collate([Rejection("x", "too short", "3 samples")], PLACE, SPEC)


def test_workers_give_what_the_process_itself_gives(folder):
    reader, places = reader_of(folder), Order(tuple(range(6)), 1, 2, 1, 1).epoch(0, 0)
    alone, helped = (list(load(reader, iter(places), workers)) for workers in (0, 2))
    assert len(alone) == len(helped) == 3
    for ours, theirs, place in zip(alone, helped, places, strict=True):
        assert ours.place == theirs.place == place
        assert ours.clip_ids == theirs.clip_ids == tuple(f"{i}.wav" for i in place.indices)
        assert torch.equal(ours.waveform, theirs.waveform)
        assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_without_a_good_clip_ends_the_run_from_a_worker_too(folder, workers):
    (folder / "wavs" / "3.wav").unlink()
    batches = load(reader_of(folder), [MicroBatch((3,), 0, 0, 1, True)], workers)
    with pytest.raises(NoTrainableClipError, match=r"3\.wav: unreadable audio"):
        next(batches)


def test_making_a_loader_leaves_the_global_generator_alone(folder):
    before = torch.random.get_rng_state()
    list(load(reader_of(folder), [MicroBatch((0,), 0, 0, 1, True)], 0))
    assert torch.equal(torch.random.get_rng_state(), before)
