"""Users' corrections: pairs that are whole, limits, names of the program's own making."""

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
from vits_trainer.feedback.corrections import Correction, Corrections, Limits, Mark, RateLimit, normalised_text
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


def refusal(store: Corrections, recording: Path, text: str = "number 1") -> str:
    with pytest.raises(DataError) as refused:
        store.add(text, recording, "a")
    assert files(store.folder) == set()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_pair_holds_the_text_and_the_samples_as_they_were(folder: Path, tmp_path: Path) -> None:
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


def test_stereo_flac_of_another_rate_becomes_mono_at_the_voices(folder: Path, tmp_path: Path) -> None:
    seconds = np.arange(44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    sf.write(tmp_path / "upload.flac", np.stack([tone, np.zeros_like(tone)], axis=1), 44100)
    saved = Corrections(folder, 16000, Limits()).add("number 1", tmp_path / "upload.flac", "a")
    samples, rate_hz = sf.read(folder / f"{saved.name}.wav")
    assert (rate_hz, samples.shape) == (16000, (16000,))
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(samples - expected)[800:-800].max() < 1e-3


def test_saved_ones_are_listed_newest_first_and_deleted(folder: Path, recording: Path) -> None:
    store = Corrections(folder, 16000, Limits())
    for second, text in enumerate(("number 1", "number 2")):
        saved = store.add(text, recording, "a")
        for ending in ("wav", "txt"):
            (folder / f"{saved.name}.{ending}").rename(folder / f"20260102T03040{second}Z-0123abcd.{ending}")
    found = store.all()
    assert [correction.text for correction in found] == ["number 2", "number 1"]
    assert found[1] == Correction("20260102T030400Z-0123abcd", "number 1", 1.0, 1767323040.0)
    store.delete(found[0].name)
    assert files(folder) == {"20260102T030400Z-0123abcd.wav", "20260102T030400Z-0123abcd.txt"}
    with pytest.raises(DataError, match="no longer there"):
        store.delete(found[0].name)


@pytest.mark.parametrize("name", ["../secret", "hand", "", OURS + "/../hand", "/etc/passwd", OURS + "\n", OURS])
def test_only_names_of_its_own_are_deleted_or_played(folder: Path, tmp_path: Path, name: str) -> None:
    store = Corrections(folder, 16000, Limits())
    for place in (tmp_path / "secret", folder / "hand"):
        place.with_suffix(".wav").write_bytes(b"audio")
        place.with_suffix(".txt").write_text("text")
    for act in (store.delete, store.wav):
        with pytest.raises(DataError, match="no longer there"):
            act(name)
    assert files(folder) == {"hand.wav", "hand.txt"}
    assert (tmp_path / "secret.wav").exists()
    assert (store.all(), store.others()) == ([], 1)


def test_link_is_no_correction(folder: Path, tmp_path: Path) -> None:
    store = Corrections(folder, 16000, Limits())
    (tmp_path / "secret").write_text("secret")
    for ending in ("wav", "txt"):
        (folder / f"{OURS}.{ending}").symlink_to(tmp_path / "secret")
    assert store.all() == []
    with pytest.raises(DataError):
        store.wav(OURS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (encode(voice(2.5, 16000), 16000), "too long (2.5 s, at most 2 s)"),
        (encode(voice(0.05, 16000), 16000), "too short (0.050 s, at least 0.1 s)"),
        (encode(np.zeros(16000), 16000), "Nothing can be heard"),
        (b"no audio at all", "cannot be read as audio"),
        (b"", "is empty"),
        (encode(voice(1.0, 16000), 16000)[:-1000], "cut off"),
        (b"x" * (2**17 + 1), "too large: 0.1 MB, at most 0.125 MB"),
    ],
)
def test_unusable_recording_is_refused_in_plain_words(folder: Path, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "upload").write_bytes(content)
    store = Corrections(folder, 16000, Limits(max_clip_s=2, max_upload_bytes=2**17))
    assert words in refusal(store, tmp_path / "upload")


def test_recording_that_is_gone_is_said(folder: Path, tmp_path: Path) -> None:
    assert "no longer there" in refusal(Corrections(folder, 16000, Limits()), tmp_path / "gone.wav")


def test_text_is_judged_before_the_recording(folder: Path, recording: Path) -> None:
    store = Corrections(folder, 16000, Limits(max_text_characters=5))
    assert "6 characters, at most 5" in refusal(store, recording, "number")
    assert "nothing to say" in refusal(store, recording, "?!\0 …")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\r\nb\u2028c", "a b c"),
        ("a\x00\x1b[31mb", "a[31mb"),
        ("a\ud800b", "ab"),  # half a character, which no file could hold
        ("می\u200cروم", "می\u200cروم"),  # the joiner decides how it is read
        ("../../etc/passwd", "../../etc/passwd"),
    ],
)
def test_text_becomes_one_line(text: str, said: str) -> None:
    assert normalised_text(text, 100) == said


def test_hourly_limits_of_one_and_of_all() -> None:
    clock = [0.0]
    limit = RateLimit(2, 3, now=lambda: clock[0])
    limit.note("a")
    clock[0] = 600
    limit.note("a")
    with pytest.raises(DataError, match=r"Too many corrections: you may save 2 in an hour. Try again in 50 min"):
        limit.require("a", "corrections")
    limit.require("b", "corrections")
    limit.note("b")
    with pytest.raises(DataError, match="everyone here may save 3"):
        limit.require("c", "corrections")
    clock[0] = 3600
    limit.require("a", "corrections")


def test_hourly_limit_holds_for_saved_ones_only(folder: Path, tmp_path: Path, recording: Path) -> None:
    store = Corrections(folder, 16000, Limits(max_corrections_per_hour=1))
    (tmp_path / "bad").write_bytes(b"no audio")
    assert "cannot be read" in refusal(store, tmp_path / "bad")
    store.add("number 1", recording, "a")
    with pytest.raises(DataError, match="Too many corrections"):
        store.add("number 2", recording, "a")
    assert len(files(folder)) == 2
    store.add("number 2", recording, "b")


def test_full_disk_leaves_nothing(folder: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, pcm: object, rate_hz: int) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corrections, "write_pcm16_wav", full)
    assert refusal(Corrections(folder, 16000, Limits()), recording) == (
        "The correction could not be saved: No space left on device."
    )


def test_crash_between_the_two_files_leaves_no_pair(
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
    for left in (f".{Path(text).stem}.wav.0badcafe.part", f"{Path(text).stem}.wav.part"):  # as SIGKILL leaves it
        (folder / left).write_bytes(b"half")
    (folder / "hand.txt").write_text("not ours")
    store.close()
    Corrections(folder, 16000, Limits())  # the next start clears our halves away
    assert files(folder) == {"hand.txt"}


def test_marks_are_lines_and_limited(folder: Path) -> None:
    store = Corrections(folder, 16000, Limits(max_corrections_per_hour=1))
    for number in range(10):
        store.mark(Mark("Silav, «tu»?", "wrong", number, "abc"), "a")
    with pytest.raises(DataError, match="Too many marks"):
        store.mark(Mark("Silav", "right", 1, "abc"), "a")
    lines = [json.loads(line) for line in (folder / "marks.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lines[3].pop("time"))
    assert lines[3] == {"text": "Silav, «tu»?", "mark": "wrong", "seed": 3, "model": "abc"}


def test_one_program_at_a_time(folder: Path) -> None:
    first = Corrections(folder, 16000, Limits())
    with pytest.raises(DataError, match="Another feedback_app uses"):
        Corrections(folder, 16000, Limits())
    first.close()
    Corrections(folder, 16000, Limits()).close()


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="give another --feedback_dir"):
        Corrections(tmp_path / "file" / "feedback", 16000, Limits())


def test_upload_of_an_mp3(folder: Path, tmp_path: Path) -> None:
    content = io.BytesIO()
    sf.write(content, voice(1.0, 16000), 16000, format="MP3")
    (tmp_path / "upload").write_bytes(content.getvalue())
    saved = Corrections(folder, 16000, Limits()).add("number 1", tmp_path / "upload", "a")
    assert saved.duration_s == pytest.approx(1.0, abs=0.15)
