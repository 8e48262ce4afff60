"""Preparation: the files written, the clips rejected, independence of the number of processes, and interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from tests.support import audio
from tests.support.audio import MIXED_REJECTIONS, encode, good_utterances, mixed_utterances, voice
from tests.support.preparation import contents, lj_speech, prepare_into, rejected
from vits_trainer.config.prepare import PrepareConfig
from vits_trainer.data.audio import MAX_DECODED_S, MAX_DURATION_S, MIN_DURATION_S, Reason, read_pcm16_wav
from vits_trainer.data.preparation import pipeline
from vits_trainer.data.preparation.journal import ClipJournal
from vits_trainer.data.preparation.summary import changed_settings
from vits_trainer.utils.errors import ConfigError, DataError

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"


# The result


@pytest.mark.parametrize("kind", ["release", "parquet"])
def test_clips_are_prepared_or_rejected_for_every_reason(tmp_path: Path, kind: str) -> None:
    utterances = mixed_utterances()
    if kind == "release":
        dataset = audio.write_release(tmp_path / "cv", utterances)
    else:
        dataset = audio.write_parquet(tmp_path / "cv.parquet", utterances)
    summary = prepare_into(tmp_path / "out", dataset, processes=2)

    assert rejected(tmp_path / "out") == MIXED_REJECTIONS
    assert {str(reason): count for reason, count in summary.rejected.items()} == dict.fromkeys(
        MIXED_REJECTIONS.values(), 1
    )
    assert (summary.accepted, summary.speakers, summary.texts_changed) == (3, 1, 0)
    lines = ["audio_000000.wav|Silav 0.", "audio_000001.wav|Du deng, yek.", "audio_000002.wav|Silav 1."]
    assert (tmp_path / "out" / "metadata.csv").read_bytes() == "".join(f"{line}\n" for line in lines).encode()
    assert sorted(path.name for path in (tmp_path / "out" / "wavs").iterdir()) == [line[:16] for line in lines]
    assert summary.seconds == pytest.approx(1.8, abs=1e-3)
    for line in lines:
        info = sf.info(tmp_path / "out" / "wavs" / line[:16])
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16000, 1, "PCM_16", "WAV")


@pytest.mark.parametrize(("kind", "rate_hz", "channels"), [("FLAC", 48000, 2), ("MP3", 32000, 1), ("WAV", 22050, 1)])
def test_a_prepared_clip_equals_the_resampled_source_up_to_rounding(
    tmp_path: Path, kind: str, rate_hz: int, channels: int
) -> None:
    content = encode(np.stack([voice(0.7, rate_hz, 90 * (c + 1)) for c in range(channels)], axis=1), rate_hz, kind)
    (tmp_path / "original").write_bytes(content)
    decoded, _ = sf.read(tmp_path / "original", dtype="float64", always_2d=True)
    expected = soxr.resample(decoded.mean(axis=1), rate_hz, 16000)

    dataset = audio.write_lj_speech(tmp_path / "set", ["a|Deng."], {f"wavs/a.{kind.lower()}": content})
    prepare_into(tmp_path / "out", dataset)
    pcm, prepared_rate_hz = read_pcm16_wav(tmp_path / "out" / "wavs" / "audio_000000.wav")
    assert prepared_rate_hz == 16000
    assert len(pcm) == len(expected)
    assert np.abs(pcm - expected * 32768).max() < 0.51  # half a step of rounding, and float32


def test_output_does_not_depend_on_the_number_of_processes_or_max_samples(tmp_path: Path) -> None:
    dataset = audio.write_release(tmp_path / "cv", [*mixed_utterances(), *good_utterances(5)])
    one = prepare_into(tmp_path / "one", dataset, processes=1)
    two = prepare_into(tmp_path / "two", dataset, processes=2)
    assert (one.accepted, one.rejected[Reason.DUPLICATE]) == (6, 2)  # two of the good ones occur twice
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert replace(one, output_dir=Path()) == replace(two, output_dir=Path())

    prepare_into(tmp_path / "one of 4", dataset, processes=1, max_samples=4)
    prepare_into(tmp_path / "two of 4", dataset, processes=2, max_samples=4)
    assert contents(tmp_path / "one of 4") == contents(tmp_path / "two of 4")
    whole, part = contents(tmp_path / "one"), contents(tmp_path / "one of 4")
    wavs = [f"wavs/audio_{n:06d}.wav" for n in range(4)]
    assert sorted(part) == ["dataset.json", "metadata.csv", "rejected.csv", "sources.csv", *wavs]
    assert [part[name] for name in wavs] == [whole[name] for name in wavs]
    assert whole["metadata.csv"].startswith(part["metadata.csv"])


def test_dataset_json_records_counts_source_settings_and_versions(tmp_path: Path) -> None:
    dataset = audio.write_release(tmp_path / "cv", mixed_utterances())
    prepare_into(tmp_path / "out", dataset, target_sr=22050, min_upvotes=1)
    written = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert written["accepted"] == 4
    assert written["rejected"] == dict.fromkeys(set(MIXED_REJECTIONS.values()) - {"too-few-upvotes"}, 1)
    assert (written["seconds"], written["mean_seconds"], written["hours"]) == (2.4, 0.6, 0.0007)
    assert (written["speakers"], written["texts_changed"], written["sampling_rate"]) == (1, 0, 22050)
    assert written["source"].pop("state")
    assert written["source"] == {"kind": "common-voice", "dataset": str(dataset), "revision": None, "clips": 10}
    assert written["settings"] == {
        "split": "train",
        "config_name": None,
        "revision": None,
        "text_column": None,
        "audio_column": None,
        "speaker_column": None,
        "target_sr": 22050,
        "max_samples": 0,
        "min_upvotes": 1,
        "max_downvotes": 0,
        "trim_silence": False,
        "min_duration_s": 0.1,
        "max_duration_s": 60.0,
        "min_loudness_dbfs": None,
        "segment": False,
        "transcribe": None,
        "loudness_dbfs": None,
    }
    assert (MIN_DURATION_S, MAX_DURATION_S, MAX_DECODED_S) == (0.1, 60.0, 300.0)  # as in PrepareConfig and its help
    assert written["versions"]["soxr"] == soxr.__version__
    assert set(written["versions"]) == {"vits_trainer", "soundfile", "libsndfile", "soxr"}


def test_several_speakers_are_written_to_a_third_column(tmp_path: Path) -> None:
    voices = ["b", "a|a\n", "", "b"]
    utterances = [replace(u, client_id=name) for u, name in zip(good_utterances(4), voices, strict=True)]
    dataset = audio.write_parquet(tmp_path / "cv.parquet", utterances)
    assert prepare_into(tmp_path / "out", dataset).speakers == 3
    lines = (tmp_path / "out" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[2:] for line in lines] == [["b"], ["a a"], ["unknown"], ["b"]]


def test_a_speaker_whose_clips_are_all_rejected_is_not_counted(tmp_path: Path) -> None:
    first, second = good_utterances(2)
    dataset = audio.write_release(tmp_path / "cv", [first, replace(second, client_id="other", up_votes=0)])
    assert prepare_into(tmp_path / "out", dataset).speakers == 1
    assert (tmp_path / "out" / "metadata.csv").read_text() == "audio_000000.wav|Silav 0.\n"


# Trimming, loudness, limits


def padded_clips(folder: Path) -> Path:
    """Voices of 0.5, 0.9 and 1.5 s, a quiet one, and noise, each in the middle of 2 s of silence."""
    voices = [voice(duration_s, 16000) for duration_s in (0.5, 0.9, 1.5)]
    noise = np.random.default_rng(0).standard_normal(16000) * 1e-3
    clips = {}
    for n, samples in enumerate([*voices, voices[1] / 10, noise]):
        silence = np.zeros((32000 - len(samples)) // 2)
        clips[f"clips/c{n}.wav"] = encode(np.concatenate([silence, samples, silence]), 16000, subtype="FLOAT")
    rows = [f'{path},"Silav, {n}.",s{n % 2}' for n, path in enumerate(clips)]
    return audio.write_lj_speech(folder, ["file_name,text,speaker", *rows], clips)


LIMITS = {"trim_silence": True, "min_duration_s": 0.7, "max_duration_s": 1.2, "min_loudness_dbfs": -50.0}


def test_limits_are_checked_after_trimming_and_before_normalizing_loudness(tmp_path: Path) -> None:
    dataset = padded_clips(tmp_path / "set")
    assert prepare_into(tmp_path / "whole", dataset).seconds == 5 * 2.0
    summary = prepare_into(tmp_path / "out", dataset, **LIMITS, loudness_dbfs=-26.0)
    assert rejected(tmp_path / "out") == {
        "clips/c0.wav": "too-short",
        "clips/c2.wav": "too-long",
        "clips/c4.wav": "too-quiet",
    }
    assert summary.seconds == pytest.approx(2 * 1.0, abs=2 * 0.04)
    lines = ["audio_000000.wav|Silav, 1.", "audio_000001.wav|Silav, 3."]  # both of one speaker
    assert (tmp_path / "out" / "metadata.csv").read_text().splitlines() == lines
    for n in range(2):
        samples, _ = sf.read(tmp_path / "out" / "wavs" / f"audio_{n:06d}.wav", dtype="float64")
        assert 20 * np.log10(np.sqrt(np.mean(samples**2))) == pytest.approx(-26, abs=0.01)
    settings = json.loads((tmp_path / "out" / "dataset.json").read_text())["settings"]
    assert settings | LIMITS | {"loudness_dbfs": -26.0} == settings


def test_trimmed_and_normalized_clips_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    dataset = padded_clips(tmp_path / "set")
    settings = {"trim_silence": True, "loudness_dbfs": -20.0, "target_sr": 22050}
    prepare_into(tmp_path / "one", dataset, processes=1, **settings)
    prepare_into(tmp_path / "two", dataset, processes=2, **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 5 + 4


def test_a_long_recording_that_is_short_after_trimming_is_accepted(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(65 * 8000), voice(1.0, 8000)]).astype(np.float32)
    dataset = audio.write_lj_speech(tmp_path / "set", ["a|Deng."], {"wavs/a.wav": encode(samples, 8000)})
    with pytest.raises(DataError, match="1 too-long"):
        prepare_into(tmp_path / "out", dataset)
    assert prepare_into(tmp_path / "trimmed", dataset, trim_silence=True).seconds == pytest.approx(1.05, abs=0.04)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_duration_s": 0.05},
        {"max_duration_s": 301.0},
        {"min_duration_s": 5.0, "max_duration_s": 5.0},
        {"min_duration_s": float("nan")},
        {"loudness_dbfs": 1.0},
        {"loudness_dbfs": float("nan")},
        {"min_loudness_dbfs": -101.0},
        {"text_column": ""},
    ],
)
def test_invalid_settings_are_refused_with_their_flag(settings: dict[str, float | str]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))}"):
        PrepareConfig(**settings)


def test_texts_that_would_break_the_metadata_are_fixed_and_counted(tmp_path: Path) -> None:
    texts = ["one|two", "one\r\ntwo", "one\u2028two", "plain"]
    utterances = [replace(u, sentence=text) for u, text in zip(good_utterances(4), texts, strict=True)]
    dataset = audio.write_parquet(tmp_path / "cv.parquet", utterances)
    summary = prepare_into(tmp_path / "out", dataset)
    assert summary.texts_changed == 3
    lines = (tmp_path / "out" / "metadata.csv").read_bytes().decode().split("\n")
    assert [line.partition("|")[2] for line in lines] == ["one two", "one two", "one two", "plain", ""]


def test_a_text_with_more_tokens_than_frames_is_rejected(tmp_path: Path) -> None:
    """0.5 s at 16 kHz are 31 frames; 15 characters are 31 tokens, and 16 are 33."""
    dataset = lj_speech(tmp_path / "set", ["x" * 15, "x" * 16, "x" * 15 + "  "])
    assert prepare_into(tmp_path / "out", dataset).accepted == 2
    assert rejected(tmp_path / "out") == {"c1": "text-too-long"}
    assert "33 tokens, 31 frames" in (tmp_path / "out" / "rejected.csv").read_text()


def test_rejected_csv_contains_no_spreadsheet_formulas(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@x", "\n=2", 'a,"b"', "plain"]
    utterances = [replace(good_utterances(1)[0], path=name, up_votes=0) for name in names]
    dataset = audio.write_parquet(tmp_path / "cv.parquet", [*utterances, good_utterances(1)[0]])
    prepare_into(tmp_path / "out", dataset)
    assert list(rejected(tmp_path / "out")) == ["'=1+1", "'+1", "'-1", "'@x", "'=2", 'a,"b"', "plain"]


# Errors and existing files


def test_all_clips_rejected_is_an_error_with_counts_and_rejected_csv(tmp_path: Path) -> None:
    bad = [u for u in mixed_utterances() if u.path in ("unliked.mp3", "corrupt.mp3")]
    dataset = audio.write_release(tmp_path / "cv", [*bad, bad[0]])
    with pytest.raises(DataError, match="2 too-few-upvotes, 1 unreadable-audio") as caught:
        prepare_into(tmp_path / "out", dataset)
    assert str(tmp_path / "out" / "rejected.csv") in str(caught.value)
    assert rejected(tmp_path / "out") == {"unliked.mp3": "too-few-upvotes", "corrupt.mp3": "unreadable-audio"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.csv"]


@pytest.mark.parametrize("name", ["dataset.json", "metadata.csv"])
def test_a_prepared_set_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    with pytest.raises(DataError, match="Delete it, or choose another --output_dir"):
        prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a"]))
    assert contents(tmp_path / "out") == {name: b"precious"}


def test_incomplete_files_of_an_interrupted_preparation_are_rewritten(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a", "b"])
    wavs = tmp_path / "out" / "wavs"
    wavs.mkdir(parents=True)
    for name in ("audio_000000.wav", "audio_000007.wav", "12.part"):
        (wavs / name).write_bytes(b"half")
    (tmp_path / "out/.preparing.jsonl").write_text('{"asked": {}}\n')
    prepare_into(tmp_path / "out", dataset)
    prepare_into(tmp_path / "fresh", dataset)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_other_recordings_are_never_deleted(tmp_path: Path) -> None:
    wavs = tmp_path / "out" / "wavs"
    wavs.mkdir(parents=True)
    (wavs / "audio_000000.wav").write_bytes(b"precious")
    (wavs / "interview.wav").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"interview\.wav was not written by prepare_data"):
        prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a"]))
    assert len(contents(tmp_path / "out")) == 2


def test_other_recordings_with_names_of_prepared_clips_are_never_deleted(tmp_path: Path) -> None:
    """Without a journal they were not written by prepare_data."""
    wavs = tmp_path / "out" / "wavs"
    wavs.mkdir(parents=True)
    (wavs / "audio_000000.wav").write_bytes(b"precious")
    with pytest.raises(DataError, match="wavs was not written by prepare_data"):
        prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a"]))
    assert contents(tmp_path / "out") == {"wavs/audio_000000.wav": b"precious"}


def test_output_to_the_data_set_itself_is_refused(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a"])
    before = contents(dataset)
    with pytest.raises(DataError, match="is the data set itself"):
        prepare_into(tmp_path / "set" / "wavs" / "..", dataset)
    assert contents(dataset) == before


def test_a_prepared_folder_is_refused_as_a_source(tmp_path: Path) -> None:
    """Its third column is the speaker, which would be read as the normalised text."""
    prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a"]))
    with pytest.raises(DataError, match="prepare_data wrote this folder"):
        prepare_into(tmp_path / "again", tmp_path / "out")


def test_error_names_an_output_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written.*--output_dir") as caught:
        prepare_into(tmp_path / "file" / "out", lj_speech(tmp_path / "set", ["a"]))
    assert str(tmp_path / "file") in str(caught.value)


def test_error_for_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "convert_clip", audio.full_disk)
    with pytest.raises(DataError, match=r"out/wavs/0-\d+\.part: cannot be written \(No space left on device\)"):
        prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a", "b"]))
    assert not (tmp_path / "out" / "dataset.json").exists()


# Interrupted and repeated runs


def test_a_finished_preparation_is_unchanged_by_a_repeated_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = audio.write_release(tmp_path / "cv", mixed_utterances())
    first = prepare_into(tmp_path / "out", dataset)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(pipeline, "convert_clip", None)  # nothing is converted
    again = prepare_into(tmp_path / "out", dataset)
    assert contents(tmp_path / "out") == before
    assert (again.accepted, again.rejected, again.speakers) == (first.accepted, first.rejected, first.speakers)


def test_error_for_a_finished_preparation_lists_the_differences(tmp_path: Path) -> None:
    dataset = lj_speech(tmp_path / "set", ["a", "b"])
    prepare_into(tmp_path / "out", dataset)
    with pytest.raises(DataError, match=r"target_sr 16000 -> 22050"):
        prepare_into(tmp_path / "out", dataset, target_sr=22050)
    (dataset / "wavs" / "c1.wav").write_bytes(encode(voice(0.7, 16000), 16000))
    with pytest.raises(DataError, match=r"source \w+ -> \w+"):
        prepare_into(tmp_path / "out", dataset)


PREPARE = """
import sys
from vits_trainer.cli.main import main
if __name__ == "__main__":  # the worker processes import this file
    sys.exit(main(["prepare_data", "--dataset", sys.argv[1], "--output_dir", sys.argv[2], "--processes", "2"]))
"""


@pytest.mark.slow
def test_preparation_resumes_after_repeated_kills_with_identical_output(tmp_path: Path) -> None:
    utterances = [
        replace(clip, path=f"{n}-{clip.path}") for n in range(12) for clip in [*mixed_utterances(), *good_utterances(4)]
    ]
    dataset = audio.write_release(tmp_path / "cv", utterances)
    prepare_into(tmp_path / "whole", dataset)
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(PREPARE)
    done = []
    for wanted in (20, 60, 110, 150):
        process = subprocess.Popen(
            [sys.executable, str(script), str(dataset), str(out)],
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        journal = out / ".preparing.jsonl"
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") <= wanted):
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done.append(journal.read_bytes().count(b"\n"))
    assert done == sorted(done)
    assert 20 < done[0] < done[-1] <= 169  # killed before the end, and never restarted from scratch
    # An incomplete line, and a file emptied by a power loss: both are repeated.
    with journal.open("ab") as file:
        file.write(b'{"accepted": ["Si')
    last = sorted((out / "wavs").glob("audio_*.wav"))[-1]
    last.write_bytes(b"")
    prepare_into(out, dataset, processes=2)
    assert contents(out) == contents(tmp_path / "whole")


def test_preparation_with_other_settings_does_not_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = lj_speech(tmp_path / "set", ["a", "b"])
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_metadata_csv", None)  # fails at the end
        with pytest.raises(TypeError):
            prepare_into(tmp_path / "out", dataset)
    prepare_into(tmp_path / "out", dataset, target_sr=22050)
    prepare_into(tmp_path / "fresh", dataset, target_sr=22050)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_concurrent_preparation_is_refused(tmp_path: Path) -> None:
    with (
        ClipJournal(tmp_path / "out", {}),
        pytest.raises(DataError, match="Another prepare_data is running"),
    ):
        prepare_into(tmp_path / "out", lj_speech(tmp_path / "set", ["a"]))


# Real speech


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs shared recordings")
@pytest.mark.parametrize(("name", "clips"), [("kerstin", 24), ("ljspeech", 16)])
def test_real_speech_is_accepted(tmp_path: Path, name: str, clips: int) -> None:
    summary = prepare_into(tmp_path / "out", SHARED_DATA / name, max_samples=clips, processes=2)
    assert (summary.accepted, summary.rejected) == (clips, {})
    assert 2 < summary.mean_seconds < 10
    first = (SHARED_DATA / name / "metadata.csv").read_text(encoding="utf-8").split("\n")[0].split("|")
    info = sf.info(next((SHARED_DATA / name).glob(f"*/{first[0]}.*")))
    pcm, _ = read_pcm16_wav(tmp_path / "out" / "wavs" / "audio_000000.wav")
    assert len(pcm) / 16000 == pytest.approx(info.duration, abs=1e-3)
    assert np.abs(pcm).max() > 1000


def test_folder_from_before_a_setting_existed_is_finished() -> None:
    assert changed_settings({"target_sr": 16000}, {"target_sr": 16000, "segment": False}) == ""
    assert changed_settings({"target_sr": 16000}, {"target_sr": 16000, "segment": True}) == "segment False -> True"
    assert changed_settings({"target_sr": 16000, "drop": "x"}, {"target_sr": 16000}) == "drop x -> None"
