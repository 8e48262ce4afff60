"""Checks over all accepted clips: short texts, repeated texts, unusual pace, copies; and what preparation does then."""

import json
import os
from pathlib import Path

import pytest

from tests.support.audio import encode, voice, write_lj_speech
from tests.support.preparation import prepare_into, rejected
from vits_trainer.data.preparation.journal import AcceptedClip
from vits_trainer.data.preparation.plausibility import ClipFacts, clip_facts, examine, repeated
from vits_trainer.utils.errors import DataError

RATE_HZ = 16000
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
SENTENCES = [f"Sentence number {number} goes here." for number in NUMBERS]


def facts(clips: list[tuple[float, str, str]], copies: int = 0) -> list[ClipFacts]:
    """Facts of clips of these durations, texts and speakers; the last ones have the samples of the first."""
    return [
        clip_facts(
            f"{n}.wav",
            AcceptedClip(text, speaker, round(duration_s * RATE_HZ), False, "", f"{1 + n % (len(clips) - copies):x}"),
            RATE_HZ,
        )
        for n, (duration_s, text, speaker) in enumerate(clips)
    ]


def test_plausible_clips_have_no_warnings() -> None:
    result = examine(facts([(2.0 + n / 4, text, "a") for n, text in enumerate(SENTENCES)]))
    assert (result.warnings, result.problem, result.copies) == ((), None, ())
    parallel = examine(facts([(2.0, text, speaker) for text in SENTENCES for speaker in "abc"]))
    assert (parallel.warnings, parallel.problem) == ((), None)
    words = examine(facts([(0.9, "no", speaker) for speaker in "abcdef"]))
    assert words.warnings == ("6 clips have only 1 different text, such as that of 0.wav (0.9 s for 2 letters).",)
    assert words.problem is None


def test_texts_far_too_short_for_their_recordings_are_counted_and_refused_if_most_are() -> None:
    few = examine(facts([(3.0, "bert", "a"), *((2.0, text, "a") for text in SENTENCES)]))
    assert few.warnings[0] == (
        "1 of 9 clips have a text far too short for the recording, such as 0.wav (3.0 s for 4 letters)."
    )
    assert few.problem is None
    most = examine(facts([(3.0, f"{n}", "a") for n in range(5)] + [(2.0, text, "a") for text in SENTENCES[:4]]))
    assert most.problem.startswith("5 of 9 clips have a text far too short")
    assert examine(facts([(3.0, f"{n}", "a") for n in range(4)])).problem is None  # too few to judge


def test_texts_that_one_speaker_repeats_are_counted_and_refused_if_most_are() -> None:
    names = [(1.2, name, "unknown") for name in ("bert", "anna") * 4]
    assert examine(facts(names)).problem.startswith("8 of 8 clips have a text that the same speaker says 3 times")
    assert examine(facts([(1.2, name, "unknown") for name in ("bert!", "Bert", "BERT.") * 4])).problem is not None
    two_takes = [(2.0, text, "a") for text in SENTENCES] * 2
    assert examine(facts(two_takes)).warnings == ()
    copies = examine(facts([(2.0, text, "a") for text in SENTENCES] * 4, copies=24))
    assert copies.problem is None
    (warning,) = copies.warnings
    assert warning.startswith("24 of 32 clips have the samples of another one, such as 8.wav of 0.wav.")
    assert copies.copies[0] == ("0.wav", "8.wav", "16.wav", "24.wav")


def test_clips_of_unusual_pace_are_counted() -> None:
    clips = [(2.0, text, "a") for text in SENTENCES]
    for duration_s in (0.4, 9.0):
        (warning,) = examine(facts([*clips, (duration_s, "Another sentence goes here.", "a")])).warnings
        assert warning.startswith("1 of 9 clips have over 4 times as many or as few seconds per letter as the median")
        assert f"8.wav ({duration_s} s for 23 letters)" in warning


def test_clips_that_share_text_or_samples_are_marked() -> None:
    clips = facts([(2.0, "One.", "a"), (2.0, "Two.", "a"), (2.0, "one", "b"), (2.0, "Three.", "b"), (2, "x", "c")], 1)
    assert repeated(clips).tolist() == [True, False, True, False, True]
    unknown = [fact._replace(audio=0) for fact in facts([(2.0, "a", "a"), (2.0, "b", "a")])]
    assert repeated(unknown).tolist() == [False, False]


# Preparation


def folder_of(folder: Path, texts: list[str], duration_s: float, files: int = 100) -> Path:
    audio = [encode(voice(duration_s, RATE_HZ, 100 + 10 * (n % files)), RATE_HZ) for n in range(len(texts))]
    clips = {f"wavs/{n}.wav": content for n, content in enumerate(audio)}
    return write_lj_speech(folder, [f"{n}|{text}" for n, text in enumerate(texts)], clips)


@pytest.mark.parametrize("shards", [0, 2])
def test_implausible_data_is_refused_and_the_flag_finishes_without_converting_again(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, out = folder_of(tmp_path / "set", ["bert", "anna"] * 3, 2.9), tmp_path / "out"
    with pytest.raises(DataError, match=r"6 of 6 clips have a text far too short .* --check_texts false") as caught:
        prepare_into(out, dataset, shards=shards)
    assert "\n" not in str(caught.value)
    assert not (out / "dataset.json").exists()
    module = "pipeline.convert_clip" if not shards else "sharded.encode_clip"
    monkeypatch.setattr(f"vits_trainer.data.preparation.{module}", None)
    summary = prepare_into(out, dataset, shards=shards, check_texts=False)
    assert (summary.accepted, len(summary.warnings)) == (6, 2)
    assert prepare_into(out, dataset, shards=shards) == summary  # finished


def test_copies_are_counted_and_recorded(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path / "set", [SENTENCES[n % 6] for n in range(12)], 1.5, files=6)
    summary = prepare_into(tmp_path / "out", dataset)
    assert summary.accepted == 12
    assert "6 of 12 clips have the samples of another one" in summary.warnings[0]
    copies = json.loads((tmp_path / "out" / "dataset.json").read_text())["copies"]
    assert copies == [[f"audio_{n:06d}.wav", f"audio_{n + 6:06d}.wav"] for n in range(6)]


def test_missing_files_are_explained_by_the_first_name(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path / "set", SENTENCES, 1.5)
    lines = (dataset / "metadata.csv").read_text().splitlines()
    (dataset / "metadata.csv").write_text("".join(f"DUMMY1/{line}\n" for line in lines))
    with pytest.raises(DataError, match=r"8 missing-file.*The files of 8 clips are not found; .*remove DUMMY1/ from"):
        prepare_into(tmp_path / "out", dataset)
    (dataset / "metadata.csv").write_text("".join(f"{'' if n < 2 else 'x'}{line}\n" for n, line in enumerate(lines)))
    summary = prepare_into(tmp_path / "some", dataset)
    assert summary.accepted == 2
    assert summary.warnings[0].startswith("the files of 6 clips are not found; the first: x2: x2 is not in wavs")


def test_file_names_that_are_not_utf_8_reject_their_clips_only(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    dataset = folder_of(tmp_path / "set", SENTENCES, 1.5)
    (dataset / "wavs" / f"{name}.wav").write_bytes(encode(voice(1.5, RATE_HZ), RATE_HZ))
    assert prepare_into(tmp_path / "table", dataset).accepted == 8

    corrections = tmp_path / "corrections"
    corrections.mkdir()
    for stem in ("good", name):
        (corrections / f"{stem}.wav").write_bytes(encode(voice(1.5, RATE_HZ), RATE_HZ))
        (corrections / f"{stem}.txt").write_text("Silav hevalno.")
    for shards in (0, 1):
        assert prepare_into(tmp_path / f"out{shards}", corrections, shards=shards).accepted == 1
        assert rejected(tmp_path / f"out{shards}") == {r"caf\udce9": "unusable-name"}

    renamed = corrections.rename(tmp_path / name)
    assert prepare_into(tmp_path / "renamed", renamed).accepted == 1
