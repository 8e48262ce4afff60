"""Prepared folders: opening, splits, selection of speakers, fingerprints."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.audio import good_utterances, write_release
from tests.support.preparation import prepare_into
from tests.support.prepared_data import SPEC, reader_of, write_clip, write_folder
from tests.support.voices import many_speakers
from vits_trainer.data.audio import WAV_HEADER_BYTES
from vits_trainer.data.prepared import (
    ClipTable,
    PreparedData,
    open_prepared,
    published_summary,
    require_rate,
    select_speakers,
    train_validation_split,
)
from vits_trainer.utils.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    for n in range(6):
        write_clip(tmp_path / "wavs" / f"{n}.wav", 8000 + 700 * n)
    return write_folder(tmp_path, [f"{n}.wav|ab {n}" for n in range(6)])


def test_split_is_complete_disjoint_and_deterministic(folder):
    prepared = open_prepared(folder)
    training, validation = train_validation_split(prepared, 0.34, 64, seed=1)
    assert (len(training), len(validation)) == (4, 2)
    assert sorted(training + validation) == list(range(6))
    assert train_validation_split(open_prepared(folder), 0.34, 64, seed=1) == (training, validation)
    assert len({tuple(train_validation_split(prepared, 0.34, 64, seed)[1]) for seed in range(12)}) > 3


@pytest.mark.parametrize(("fraction", "most", "held_out"), [(0, 64, 0), (0.01, 64, 1), (0.9, 3, 3), (0.5, 64, 3)])
def test_split_has_the_requested_number_of_validation_clips(folder, fraction, most, held_out):
    assert len(train_validation_split(open_prepared(folder), fraction, most, seed=0)[1]) == held_out


def test_split_depends_on_names_not_on_order(tmp_path):
    names = [f"{n}.wav" for n in range(30)]
    prepared = open_prepared(write_folder(tmp_path, [f"{name}|a" for name in names]))
    reordered = open_prepared(write_folder(tmp_path, [f"{name}|a" for name in reversed(names)]))
    held_out = {prepared.rows.filename[row] for row in train_validation_split(prepared, 0.3, 64, 1)[1]}
    assert held_out == {reordered.rows.filename[row] for row in train_validation_split(reordered, 0.3, 64, 1)[1]}


def of_speakers(folder: Path, sizes: dict[str, int]):
    lines = [f"{speaker}{n}.wav|a|{speaker}" for speaker, clips in sizes.items() for n in range(clips)]
    return open_prepared(write_folder(folder, lines))


def held_out_by_speaker(prepared, fraction: float, most: int = 64, seed: int = 1) -> dict[str, int]:
    return dict(
        Counter(prepared.rows.speaker[row] for row in train_validation_split(prepared, fraction, most, seed)[1])
    )


def test_split_of_one_speaker_is_unchanged_from_earlier_versions(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, [f"{n}.wav|a" for n in range(30)]))
    by_hash = sorted(range(30), key=lambda row: hashlib.sha256(f"7:{row}.wav".encode()).digest())
    assert train_validation_split(prepared, 0.3, 64, 7) == (sorted(by_hash[9:]), sorted(by_hash[:9]))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (3, {"a": 1, "b": 1, "c": 1}),  # one of each speaker with at least two; d keeps its only one
        (5, {"a": 2, "b": 2, "c": 1}),
        (9, {"a": 6, "b": 2, "c": 1}),  # each keeps one for training
        (64, {"a": 19, "b": 2, "c": 1}),
    ],
)
def test_split_draws_clips_from_the_speakers_in_turn(tmp_path, most, expected):
    prepared = of_speakers(tmp_path, {"a": 20, "b": 3, "c": 2, "d": 1})
    assert held_out_by_speaker(prepared, 0.9, most) == expected


def test_split_of_many_speakers_does_not_prefer_the_large_ones(tmp_path):
    prepared = of_speakers(tmp_path, {f"s{n:02}_": 40 if n < 5 else 2 for n in range(40)})
    counts = Counter(name for seed in range(60) for name in held_out_by_speaker(prepared, 0.5, 8, seed))
    # 8 of 40 speakers: each of the five large ones is drawn with a probability of one in five.
    assert 40 < sum(counts[f"s{n:02}_"] for n in range(5)) < 80


def test_split_of_speakers_depends_on_names_not_on_order(tmp_path):
    lines = [f"{n}.wav|a|s{n % 7}" for n in range(30)]
    names = []
    for order in (lines, lines[::-1]):
        prepared = open_prepared(write_folder(tmp_path, order))
        training, held_out = train_validation_split(prepared, 0.3, 64, 1)
        assert sorted(training + held_out) == list(range(30))
        names.append({prepared.rows.filename[row] for row in held_out})
    assert names[0] == names[1]


def test_split_of_speakers_with_one_clip_each_has_validation_clips(tmp_path):
    prepared = of_speakers(tmp_path, dict.fromkeys("abcdefgh", 1))
    assert len(held_out_by_speaker(prepared, 0.25)) == 2


def test_split_without_training_clips_is_rejected(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, ["0.wav|a"]))
    with pytest.raises(DataError, match="too few to hold out 1"):
        train_validation_split(prepared, 0.1, 64, 0)


TEXTS = ["NA", "null", "007", '"quoted" text', "it's, so", " 1e5 ", "true", "#N/A", "nan"]


def test_texts_are_read_verbatim(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, [f"{n}.wav|{text}" for n, text in enumerate(TEXTS)]))
    assert list(prepared.rows.text) == TEXTS
    assert list(prepared.rows.speaker) == [""] * len(TEXTS)


def test_trap_8_speakers_are_sorted(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, ["0.wav|a|zin", "1.wav|b|ava", "2.wav|c|mem", "3.wav|d|ava"]))
    assert prepared.speakers == ["ava", "mem", "zin"]


def test_max_samples_selects_the_first(folder):
    assert list(open_prepared(folder, max_samples=2).rows.filename) == ["0.wav", "1.wav"]
    assert len(open_prepared(folder, max_samples=0).rows) == 6


@pytest.mark.parametrize("line", ["only-a-name", "a.wav|text|speaker|more", "|text"])
def test_malformed_line_is_named(tmp_path, line):
    write_folder(tmp_path, ["0.wav|good", line])
    with pytest.raises(DataError, match=r"metadata\.csv line 2: expected filename"):
        open_prepared(tmp_path)


def test_folder_that_is_not_prepared_is_rejected(tmp_path):
    with pytest.raises(DataError, match=r"metadata\.csv does not exist\. Create it with: vits-trainer prepare_data"):
        open_prepared(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("0.wav|\u015fev".encode("iso8859-9"))
    with pytest.raises(DataError, match=r"cannot be read"):
        open_prepared(tmp_path)
    (tmp_path / "metadata.csv").write_text("LJ001-0001|Printing, in the only sense\n")
    with pytest.raises(DataError, match=r"no dataset\.json. Prepare it first: vits-trainer prepare_data --dataset /"):
        open_prepared(tmp_path)
    write_folder(tmp_path, [])
    with pytest.raises(DataError, match="contains no clips"):
        open_prepared(tmp_path)


def test_damaged_summary_is_rejected(folder):
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_prepared(folder)


def test_what_is_published_names_no_speaker_and_no_clip(tmp_path):
    prepare_into(tmp_path / "out", write_release(tmp_path / "cv", good_utterances(3)))
    summary = open_prepared(tmp_path / "out").summary
    name, *_ = summary["speaker_clips"]
    assert name in json.dumps(summary)
    assert "good_1" in json.dumps(summary)
    published = json.dumps(published_summary(summary))
    assert name not in published
    assert "good_1" not in published
    assert published_summary(summary)["speakers"] == 1


def test_rate_comes_from_the_summary_or_else_the_first_clip(folder):
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


def test_fingerprint_covers_only_the_given_rows(tmp_path):
    prepared = open_prepared(write_folder(tmp_path, ["0.wav|a", "1.wav|b", "2.wav|c"]))
    assert prepared.fingerprint([0, 1]) != prepared.fingerprint([0, 1, 2])
    assert prepared.fingerprint([0, 1]) != prepared.fingerprint([0, 2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.wav|ab", "is outside"),
        ("/etc/passwd|ab", "is outside"),
        ("3.wav|ab", "is already in line 4"),
    ],
)
def test_paths_outside_the_folder_and_repeated_clips_are_rejected(folder, line, message):
    with (folder / "metadata.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=f"line 7: .*{message}"):
        open_prepared(folder)


def test_frames_from_file_sizes_equal_those_of_the_clips(folder):
    (folder / "wavs" / "5.wav").unlink()
    dataset = reader_of(folder)
    frames = dataset.prepared.frames(range(6), SPEC.hop)
    assert frames == [*(len(dataset.read(n).pcm) // SPEC.hop for n in range(5)), 1]


def test_fingerprint_changes_with_a_clips_length(folder):
    before = open_prepared(folder).fingerprint(range(6))
    write_clip(folder / "wavs" / "2.wav", 12000)
    assert open_prepared(folder).fingerprint(range(6)) != before


def selected(prepared: PreparedData, **arguments: Any) -> dict[str, list[str]]:
    """Names of the selected clips, by speaker."""
    by_speaker: dict[str, list[str]] = {}
    rows = select_speakers(prepared, **{"only": "", "max_clips": 0, "seed": 1, **arguments}).rows
    for name, speaker in zip(rows.filename, rows.speaker, strict=True):
        by_speaker.setdefault(speaker, []).append(name)
    return by_speaker


def test_speakers_are_selected_and_their_clips_limited(tmp_path):
    prepared = open_prepared(many_speakers(tmp_path, {"ava": 6, "bo": 2, "cem": 4}))
    everything = {"ava": [f"ava_{n}.wav" for n in range(6)], "cem": [f"cem_{n}.wav" for n in range(4)]}
    assert selected(prepared, only="cem, ava") == everything
    limited = selected(prepared, max_clips=3)
    assert {name: len(clips) for name, clips in limited.items()} == {"ava": 3, "bo": 2, "cem": 3}
    assert set(limited["ava"]) < set(everything["ava"])
    assert limited == selected(prepared, max_clips=3)
    assert len({tuple(selected(prepared, max_clips=3, seed=seed)["ava"]) for seed in range(9)}) > 1


def test_selected_clips_keep_their_recordings(tmp_path):
    prepared = open_prepared(many_speakers(tmp_path, {"ava": 6, "bo": 2, "cem": 4}))
    cem = select_speakers(prepared, "cem", 2, seed=1)
    assert len(cem.rows) == 2
    for row, name in enumerate(cem.rows.filename):
        path = tmp_path / "training/wavs" / name
        samples = np.frombuffer(path.read_bytes()[WAV_HEADER_BYTES:], dtype=np.int16)
        np.testing.assert_array_equal(cem.recordings.read(row)[0], samples)
        assert cem.recordings.sizes_bytes[row] == path.stat().st_size


def test_unknown_speaker_is_rejected_with_a_list_of_speakers(tmp_path):
    prepared = open_prepared(many_speakers(tmp_path, {f"s{n:02}": 1 for n in range(18)}))
    with pytest.raises(ConfigError, match=r"no clip of zin. Its speakers: s00, s01, .* s15 and 2 more"):
        selected(prepared, only="s03,zin")


# Equal clips


def split_texts(folder, texts, speakers=None, fraction=0.1, copies=(), seed=1):
    """Texts of the training and of the validation clips of a prepared folder with these texts."""
    folder.mkdir(exist_ok=True)
    names = [f"c{n}.wav" for n in range(len(texts))]
    rows = ClipTable(names, texts, speakers or [""] * len(texts))
    prepared = PreparedData(folder, rows, 16000, {"copies": copies}, None)
    training, held_out = train_validation_split(prepared, fraction, 64, seed)
    assert sorted(training + held_out) == list(range(len(texts)))
    return [[texts[row] for row in rows] for rows in (training, held_out)], held_out


def test_clips_with_the_same_text_are_on_one_side_of_the_split(tmp_path):
    texts = [f"Sentence {n // 3}{'.!?'[n % 3]}" for n in range(120)]
    speakers = [f"s{n % 3}" for n in range(120)]
    earlier = set()
    for fraction in (0.02, 0.05, 0.1, 0.3):
        (training, held_out), rows = split_texts(tmp_path, texts, speakers, fraction)
        assert not {text[:-1] for text in training} & {text[:-1] for text in held_out}
        assert fraction * 120 <= len(rows) <= fraction * 120 + 3
        assert earlier < set(rows)  # nested
        earlier = set(rows)


def test_copies_are_on_one_side_of_the_split(tmp_path):
    texts = [f"Text {n}." for n in range(60)]
    copies = [[f"c{n}.wav", f"c{n + 30}.wav"] for n in range(30)] + [["c0.wav", "c1.wav"], ["gone.wav", "c5.wav"]]
    _, rows = split_texts(tmp_path, texts, copies=copies, fraction=0.3)
    assert {row % 30 for row in rows} == {row - 30 for row in rows if row >= 30}
    assert (0 in rows) == (1 in rows) == (31 in rows)


def test_a_speaker_keeps_a_clip_though_its_texts_are_drawn_with_others(tmp_path):
    texts = [f"Text {n % 10}." for n in range(20)]
    speakers = ["a"] * 10 + [f"b{n // 2}" for n in range(10)]
    for seed in range(20):
        _, rows = split_texts(tmp_path, texts, speakers, 0.5, seed=seed)
        assert {speakers[row] for row in range(20) if row not in rows} == set(speakers)
        assert {row % 10 for row in rows if row < 10} == {row % 10 for row in rows if row >= 10}


def test_split_of_distinct_texts_is_that_of_earlier_versions_and_word_lists_are_split_by_clip(tmp_path):
    _, distinct = split_texts(tmp_path, [f"Text {n}." for n in range(400)])
    names = [hashlib.sha256(f"1:c{n}.wav".encode()).digest() for n in range(400)]
    assert distinct == sorted(sorted(range(400), key=lambda n: names[n])[:40])
    _, words = split_texts(tmp_path, [f"{'yes' if n % 2 else 'no'}" for n in range(400)])
    assert words == distinct


def test_a_folder_with_one_text_is_split_by_clip_with_a_warning(tmp_path, caplog):
    _, rows = split_texts(tmp_path, ["The same."] * 10, fraction=0.3)
    assert len(rows) == 3
    assert "validation shares them with training" in caplog.text
