"""``synthesize``: from a text, a file or standard input to an audio file."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.support.random_voice import RATE_HZ, TEXT, save_voice
from vits_trainer.cli.synthesize import run
from vits_trainer.config.parser import parse
from vits_trainer.config.voices import SynthesizeConfig
from vits_trainer.evaluation.synthesis import Voice
from vits_trainer.utils.errors import ConfigError, DataError, ModelError, VitsTrainerError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_voice(tmp_path_factory.mktemp("voice") / "single"))


@pytest.fixture(scope="module")
def expected(model: str) -> np.ndarray:
    return Voice(model).synthesize(TEXT)


def synthesize(model: str, output: Path, **flags: Any) -> tuple[np.ndarray, int]:
    assert run(SynthesizeConfig(model=model, output=str(output), **flags)) == 0
    return sf.read(output, dtype="float32")


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


@pytest.mark.parametrize(
    ("name", "kind", "subtype", "tolerance"),
    [
        ("x.wav", "WAV", "PCM_16", 0.5 / 32768),
        ("x.FLAC", "FLAC", "PCM_16", 0.5 / 32768),
        ("x.mp3", "MP3", "MPEG_LAYER_III", None),
        ("x.ogg", "OGG", "VORBIS", None),
    ],
)
def test_every_format_is_read_back(
    model: str, expected: np.ndarray, tmp_path: Path, name: str, kind: str, subtype: str, tolerance: float | None
) -> None:
    samples, rate_hz = synthesize(model, tmp_path / "new" / name, text=TEXT)
    info = sf.info(tmp_path / "new" / name)
    assert (info.format, info.subtype, info.channels, rate_hz) == (kind, subtype, 1, RATE_HZ)
    assert samples.shape == expected.shape
    if tolerance:
        np.testing.assert_allclose(samples, expected, rtol=0, atol=tolerance * 1.001)
    else:
        assert np.corrcoef(samples, expected)[0, 1] > 0.9
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_text_file_and_standard_input_are_spoken_alike(
    model: str, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_file = tmp_path / "text.txt"
    text_file.write_text(f"{TEXT}\n", encoding="utf-8-sig")  # with a mark as Windows writes it
    from_text, _ = synthesize(model, tmp_path / "text.wav", text=TEXT)
    from_file, _ = synthesize(model, tmp_path / "file.wav", text_file=str(text_file))
    pipe(monkeypatch, TEXT.encode())
    from_stdin, _ = synthesize(model, tmp_path / "stdin.wav")
    np.testing.assert_array_equal(from_file, from_text)
    np.testing.assert_array_equal(from_stdin, from_text)
    assert len(from_text) == len(expected)


def test_options_are_applied(model: str, tmp_path: Path) -> None:
    quiet = {"text": TEXT, "noise_scale": 0, "noise_scale_duration": 0}
    slow, _ = synthesize(model, tmp_path / "x.wav", speaking_rate=0.2, **quiet)
    fast, _ = synthesize(model, tmp_path / "x.wav", speaking_rate=2, **quiet)
    again, _ = synthesize(model, tmp_path / "x.wav", speaking_rate=2, seed=5, **quiet)
    noisy, _ = synthesize(model, tmp_path / "x.wav", speaking_rate=2, seed=5, text=TEXT)
    assert len(fast) < len(slow)
    np.testing.assert_array_equal(again, fast)
    assert not np.array_equal(noisy, fast)


def test_output_is_one_line_with_duration_and_speed(
    model: str, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(model, tmp_path / "x.wav", text=TEXT)
    line = capsys.readouterr().out
    match = re.fullmatch(r"(.+): ([\d.]+) s of audio, real-time factor [\d.]+, 3 pieces\n", line)
    assert match, line
    assert match[1] == str(tmp_path / "x.wav")
    assert float(match[2]) == pytest.approx(len(expected) / RATE_HZ, abs=0.005)


def test_existing_output_is_overwritten_only_on_success(model: str, tmp_path: Path) -> None:
    output = tmp_path / "x.wav"
    output.write_bytes(b"old")
    with pytest.raises(DataError):
        synthesize(model, output, text="你好")
    assert output.read_bytes() == b"old"
    synthesize(model, output, text=TEXT)
    assert output.read_bytes()[:4] == b"RIFF"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"text": "a", "text_file": "b.txt"}, "exclude each other"),
        ({"text": "a", "output": "x.m4a"}, r"\.wav, \.flac, \.mp3, \.ogg"),
        ({"text": "a", "output": "wav"}, r"\.wav, \.flac"),
        ({"text": "a", "speaking_rate": 0.0}, "between 0.1 and 10"),
        ({"text": "a", "speaking_rate": float("nan")}, "--speaking_rate nan: must be a finite number"),
        ({"text": "a", "noise_scale": -1.0}, "--noise_scale -1.0"),
        ({"text": "a", "noise_scale_duration": float("inf")}, "--noise_scale_duration"),
        ({"text": "a", "seed": -1}, "--seed -1"),
    ],
)
def test_invalid_flags_raise_immediately(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        SynthesizeConfig(**flags)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        ({"text": "Silav", "model": "/nowhere/at/all"}, ModelError, "/nowhere/at/all"),
        ({"text": "Silav", "speaker": "Azad"}, ConfigError, "omit the speaker Azad"),
        ({"text": "你好"}, DataError, "“你”, “好”"),
        ({"text_file": "/nowhere.txt"}, ConfigError, "/nowhere.txt"),
        ({"text_file": "/"}, ConfigError, "directory"),
        ({"text": "Silav", "output": "/proc/x.wav"}, ConfigError, "choose another --output"),
    ],
)
def test_user_errors_have_exit_code_2(
    model: str, tmp_path: Path, flags: dict[str, Any], kind: type[VitsTrainerError], message: str
) -> None:
    with pytest.raises(kind, match=message) as error:
        run(SynthesizeConfig(**{"model": model, "output": str(tmp_path / "x.wav"), **flags}))
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_missing_text_on_a_terminal_raises_without_waiting(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(ConfigError, match="--text_file, or pipe"):
        run(SynthesizeConfig(model=model))


def test_input_that_is_not_utf8_raises_with_the_position(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "Tu ç".encode("latin-1"))
    with pytest.raises(DataError, match=r"standard input is not UTF-8 text \(byte 3\)"):
        run(SynthesizeConfig(model=model))


@pytest.mark.parametrize("text", ["3.5", "null", "# yek", "{x: 1}", "'Na', got", "-5 germ e", "true", "a: b"])
def test_text_that_looks_like_yaml_is_unchanged(text: str) -> None:
    assert parse("synthesize", SynthesizeConfig, ["--text", text]).text == text
