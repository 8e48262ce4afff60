"""Saving of corrections: complete pairs, limits and generated names."""

import io
import json
import re
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import encode, voice
from vits_trainer.feedback import corrections
from vits_trainer.feedback.corrections import Correction, Corrections, Limits, RateLimit, Rating, normalize_text
from vits_trainer.utils.errors import DataError

OURS = "20260102T030405Z-0123abcd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "upload.wav"
    path.write_bytes(encode(voice(1.0, 16000), 16000))
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".in_use"}


def rejection_message(store: Corrections, recording: Path, text: str = "number 1") -> str:
    with pytest.raises(DataError) as raised:
        store.add(text, recording, "a")
    assert files(store.folder) == set()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_pair_has_the_text_and_the_unchanged_samples(folder: Path, tmp_path: Path) -> None:
    samples = np.array([0, 1, -1, 1000, -32768, 32767] * 400, dtype=np.int16)
    sf.write(tmp_path / "upload.wav", samples, 16000, subtype="PCM_16")
    saved = Corrections(folder, 16000, Limits()).add("  Silav,\n tu\0 çawa\tyî? ", tmp_path / "upload.wav", "a")
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", saved.name)
    assert abs(saved.saved_s - time.time()) < 30
    assert files(folder) == {f"{saved.name}.wav", f"{saved.name}.txt"}
    assert (folder / f"{saved.name}.txt").read_bytes() == "Silav, tu çawa yî?\n".encode()
    with wave.open(str(folder / f"{saved.name}.wav")) as written:
        assert written.getparams()[:4] == (1, 2, 16000, 2400)
        assert written.readframes(2400) == samples.tobytes()


def test_stereo_flac_is_converted_to_mono_at_the_rate_of_the_voice(folder: Path, tmp_path: Path) -> None:
    seconds = np.arange(44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    sf.write(tmp_path / "upload.flac", np.stack([tone, np.zeros_like(tone)], axis=1), 44100)
    saved = Corrections(folder, 16000, Limits()).add("number 1", tmp_path / "upload.flac", "a")
    samples, rate_hz = sf.read(folder / f"{saved.name}.wav")
    assert (rate_hz, samples.shape) == (16000, (16000,))
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(samples - expected)[800:-800].max() < 1e-3


def test_corrections_are_listed_newest_first_and_deleted(folder: Path, recording: Path) -> None:
    store = Corrections(folder, 16000, Limits())
    for second, text in enumerate(("number 1", "number 2")):
        saved = store.add(text, recording, "a")
        for ending in ("wav", "txt"):
            (folder / f"{saved.name}.{ending}").rename(folder / f"20260102T03040{second}Z-0123abcd.{ending}")
    saved_corrections = store.all()
    assert [correction.text for correction in saved_corrections] == ["number 2", "number 1"]
    assert saved_corrections[1] == Correction("20260102T030400Z-0123abcd", "number 1", 1.0, 1767323040.0)
    store.delete(saved_corrections[0].name)
    assert files(folder) == {"20260102T030400Z-0123abcd.wav", "20260102T030400Z-0123abcd.txt"}
    with pytest.raises(DataError, match="no longer exists"):
        store.delete(saved_corrections[0].name)


@pytest.mark.parametrize("name", ["../secret", "hand", "", OURS + "/../hand", "/etc/passwd", OURS + "\n", OURS])
def test_only_generated_names_are_deleted_or_played(folder: Path, tmp_path: Path, name: str) -> None:
    store = Corrections(folder, 16000, Limits())
    for path in (tmp_path / "secret", folder / "hand"):
        path.with_suffix(".wav").write_bytes(b"audio")
        path.with_suffix(".txt").write_text("text")
    for action in (store.delete, store.wav):
        with pytest.raises(DataError, match="no longer exists"):
            action(name)
    assert files(folder) == {"hand.wav", "hand.txt"}
    assert (tmp_path / "secret.wav").exists()
    assert (store.all(), store.count_external()) == ([], 1)


def test_links_are_ignored(folder: Path, tmp_path: Path) -> None:
    store = Corrections(folder, 16000, Limits())
    (tmp_path / "secret").write_text("secret")
    for ending in ("wav", "txt"):
        (folder / f"{OURS}.{ending}").symlink_to(tmp_path / "secret")
    assert store.all() == []
    with pytest.raises(DataError):
        store.wav(OURS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode(voice(2.5, 16000), 16000), "too long (2.5 s, at most 2 s)"),
        (encode(voice(0.05, 16000), 16000), "too short (0.050 s, at least 0.1 s)"),
        (encode(np.zeros(16000), 16000), "is silent"),
        (b"no audio at all", "cannot be read as audio"),
        (b"", "is empty"),
        (encode(voice(1.0, 16000), 16000)[:-1000], "truncated"),
        (b"x" * (2**17 + 1), "too large: 0.1 MB, at most 0.125 MB"),
    ],
)
def test_unusable_recording_is_rejected(folder: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "upload").write_bytes(content)
    store = Corrections(folder, 16000, Limits(max_clip_s=2, max_upload_bytes=2**17))
    assert message in rejection_message(store, tmp_path / "upload")


def test_missing_recording_is_reported(folder: Path, tmp_path: Path) -> None:
    assert "no longer exists" in rejection_message(Corrections(folder, 16000, Limits()), tmp_path / "gone.wav")


def test_text_is_validated_before_the_recording(folder: Path, recording: Path) -> None:
    store = Corrections(folder, 16000, Limits(max_text_characters=5))
    assert "6 characters, at most 5" in rejection_message(store, recording, "number")
    assert "nothing to speak" in rejection_message(store, recording, "?!\0 …")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\u2028c", "a b c"),
        ("a\x00\x1b[31mb", "a[31mb"),
        ("a\ud800b", "ab"),  # a surrogate, which cannot be encoded
        ("می\u200cروم", "می\u200cروم"),  # the joiner affects pronunciation
        ("../../etc/passwd", "../../etc/passwd"),
    ],
)
def test_text_is_normalized_to_one_line(text: str, expected: str) -> None:
    assert normalize_text(text, 100) == expected


def test_hourly_limits_per_client_and_overall() -> None:
    clock = [0.0]
    limit = RateLimit(2, 3, now=lambda: clock[0])
    limit.record("a")
    clock[0] = 600
    limit.record("a")
    with pytest.raises(DataError, match=r"Too many corrections: the limit per user is 2 per hour. Try again in 50 min"):
        limit.require("a", "corrections")
    limit.require("b", "corrections")
    limit.record("b")
    with pytest.raises(DataError, match="the limit for all users is 3 per hour"):
        limit.require("c", "corrections")
    clock[0] = 3600
    limit.require("a", "corrections")


def test_hourly_limit_counts_only_saved_corrections(folder: Path, tmp_path: Path, recording: Path) -> None:
    store = Corrections(folder, 16000, Limits(max_corrections_per_hour=1))
    (tmp_path / "bad").write_bytes(b"no audio")
    assert "cannot be read" in rejection_message(store, tmp_path / "bad")
    store.add("number 1", recording, "a")
    with pytest.raises(DataError, match="Too many corrections"):
        store.add("number 2", recording, "a")
    assert len(files(folder)) == 2
    store.add("number 2", recording, "b")


def test_full_disk_leaves_no_files(folder: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, pcm: object, rate_hz: int) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corrections, "write_pcm16_wav", full)
    assert rejection_message(Corrections(folder, 16000, Limits()), recording) == (
        "The correction could not be saved: No space left on device."
    )


def test_crash_between_both_files_leaves_no_pair(
    folder: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(path: Path, pcm: object, rate_hz: int) -> None:
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(corrections, "write_pcm16_wav", killed)
    store = Corrections(folder, 16000, Limits())
    with pytest.raises(Killed):
        store.add("number 1", recording, "a")
    (text,) = files(folder)
    assert Path(text).suffix == ".txt"
    assert store.all() == []
    for name in (f".{Path(text).stem}.wav.0badcafe.part", f"{Path(text).stem}.wav.part"):  # as left by SIGKILL
        (folder / name).write_bytes(b"half")
    (folder / "hand.txt").write_text("not ours")
    store.close()
    Corrections(folder, 16000, Limits())  # the next start deletes our incomplete pairs
    assert files(folder) == {"hand.txt"}


def test_marks_are_appended_and_limited(folder: Path) -> None:
    store = Corrections(folder, 16000, Limits(max_corrections_per_hour=1))
    for number in range(10):
        store.mark(Rating("Silav, «tu»?", "wrong", number, "abc"), "a")
    with pytest.raises(DataError, match="Too many marks"):
        store.mark(Rating("Silav", "right", 1, "abc"), "a")
    lines = [json.loads(line) for line in (folder / "marks.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lines[3].pop("time"))
    assert lines[3] == {"text": "Silav, «tu»?", "mark": "wrong", "seed": 3, "model": "abc", "speaker": None}


def test_only_one_instance_uses_the_directory(folder: Path) -> None:
    first = Corrections(folder, 16000, Limits())
    with pytest.raises(DataError, match="in use by another feedback_app"):
        Corrections(folder, 16000, Limits())
    first.close()
    Corrections(folder, 16000, Limits()).close()


def test_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Pass another --feedback_dir"):
        Corrections(tmp_path / "file" / "feedback", 16000, Limits())


def test_upload_of_an_mp3(folder: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    sf.write(content, voice(1.0, 16000), 16000, format="MP3")
    (tmp_path / "upload").write_bytes(content.getvalue())
    saved = Corrections(folder, 16000, Limits()).add("number 1", tmp_path / "upload", "a")
    assert saved.duration_s == pytest.approx(1.0, abs=0.15)
