"""MPEG audio: all frames are decoded, or the file is rejected."""

import io
import struct

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from tests.support.audio import encode, voice
from vits_trainer.data.audio import Reason, RecordingError, read_recording
from vits_trainer.data.mpeg import skip_id3

RATES_AND_MODES = [(rate, mode) for rate in (8000, 16000, 24000, 44100, 48000) for mode in ("CONSTANT", "VARIABLE")]
ID3V2 = b"ID3\x04\0\0\0\0\x02\x2c" + bytes(300)
ID3V1 = b"TAG" + bytes(125)
APE = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 42, 1, 0xA0000000) + bytes(10)
APE += struct.pack("<8sIIII8x", b"APETAGEX", 2000, 42, 1, 0x80000000)


def quiet_then_loud(duration_s: float, rate_hz: int) -> NDArray[np.float32]:
    """Returns (T,): its frames have very different sizes at a variable bit rate."""
    samples = voice(duration_s, rate_hz)
    samples += (0.1 * np.random.default_rng(1).standard_normal(len(samples))).astype(np.float32)
    samples[: rate_hz // 2] = 0
    return samples


def mp3(samples: NDArray[np.float32], rate_hz: int, mode: str = "VARIABLE", channels: int = 1) -> bytes:
    content = io.BytesIO()
    with sf.SoundFile(content, "w", rate_hz, channels, format="MP3", bitrate_mode=mode, compression_level=0.3) as file:
        file.write(samples)
    return content.getvalue()


def first_frame_bytes(content: bytes) -> int:
    """Finds the second frame by its header, which equals the first one's apart from bit rate and padding."""
    second = 4
    while content[second : second + 2] != content[:2] or (content[second + 2] ^ content[2]) & 0x0C:
        second += 1
    return second


def without_xing(content: bytes) -> bytes:
    assert b"Xing" in content[:60] or b"Info" in content[:60]
    return content[first_frame_bytes(content) :]


def with_frame_count(content: bytes, count: int) -> bytes:
    at = max(content.find(b"Xing"), content.find(b"Info")) + 8
    return content[:at] + struct.pack(">I", count) + content[at + 4 :]


def frame_count(content: bytes) -> int:
    at = max(content.find(b"Xing"), content.find(b"Info")) + 8
    return int(struct.unpack_from(">I", content, at)[0])


def reason_of(content: bytes) -> Reason:
    with pytest.raises(RecordingError) as caught:
        read_recording(content)
    return caught.value.rejection.reason


def assert_holds(content: bytes, samples: NDArray[np.float32], rate_hz: int) -> None:
    """Compares with ``samples``, apart from up to 0.2 s of the encoder's delay and padding."""
    read, read_hz = read_recording(content)
    assert read_hz == rate_hz
    assert 0 <= len(read) - len(samples) <= 0.2 * rate_hz
    assert likeness(read, samples) > 0.9


def likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Returns the largest correlation coefficient over all shifts."""
    size = len(first) + len(second)
    spectrum = np.fft.rfft(first, size) * np.conj(np.fft.rfft(second, size))
    return float(np.fft.irfft(spectrum).max() / np.sqrt(np.square(first).sum() * np.square(second).sum()))


@pytest.mark.parametrize(("rate_hz", "mode"), RATES_AND_MODES)
def test_mp3_is_read_to_its_end_with_and_without_a_header(rate_hz: int, mode: str) -> None:
    samples = quiet_then_loud(2.0, rate_hz)
    content = mp3(samples, rate_hz, mode)
    assert len(read_recording(content)[0]) == len(samples)  # the header gives delay and padding
    bare = without_xing(content)
    for variant in (bare, ID3V2 + bare + APE + ID3V1, bytes(100) + bare):
        assert_holds(variant, samples, rate_hz)


@pytest.mark.parametrize("factor", [0, 0.5])
def test_frame_count_that_is_too_small_is_corrected(factor: float) -> None:
    samples = quiet_then_loud(2.0, 24000)
    content = mp3(samples, 24000)
    assert_holds(with_frame_count(content, int(factor * frame_count(content))), samples, 24000)
    assert reason_of(with_frame_count(content, 2 * frame_count(content))) is Reason.TRUNCATED_AUDIO


@pytest.mark.parametrize("tag", [b"", ID3V1, ID3V2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_concatenated_mp3_files_are_read_together(mode: str, tag: bytes) -> None:
    samples = quiet_then_loud(1.0, 24000)
    content = mp3(samples, 24000, mode)
    read, _ = read_recording(content + tag + content)
    assert 2 * len(samples) <= len(read) <= 2 * len(samples) + 0.2 * 24000
    for half in np.array_split(read, 2):
        assert likeness(half, samples) > 0.9
    assert reason_of(content + mp3(samples, 16000)) is Reason.UNSUPPORTED_AUDIO


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9, 0.99])
def test_truncated_mp3_is_rejected_with_and_without_a_header(fraction: float) -> None:
    content = mp3(quiet_then_loud(2.0, 24000), 24000)
    for whole in (content, without_xing(content)):
        assert reason_of(whole[: int(fraction * len(whole))]) is Reason.TRUNCATED_AUDIO


def test_mp3_with_a_damaged_part_is_rejected() -> None:
    content = without_xing(mp3(quiet_then_loud(2.0, 24000), 24000))
    middle = len(content) // 2
    for replaced in (bytes(4000), np.random.default_rng(0).bytes(4000)):
        assert reason_of(content[:middle] + replaced + content[middle + 4000 :]) is Reason.TRUNCATED_AUDIO
    assert reason_of(content[:middle] + bytes(len(content) - middle)) is Reason.TRUNCATED_AUDIO


def test_bytes_before_the_first_frame_are_not_taken_for_another_kind_of_frame() -> None:
    """In free format the last frame extends to the end, whatever the bytes are."""
    samples = voice(1.0, 16000)
    content = without_xing(mp3(samples, 16000))
    for at in range(4):
        damaged = content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]
        assert len(read_recording(damaged)[0]) >= len(samples) - 576
    rng = np.random.default_rng(0)
    for at in (300, 500, 700):
        inserted = content[:at] + rng.bytes(700) + content[at:]
        assert len(read_recording(inserted)[0]) >= len(samples) - 2 * 576


def test_stereo_mp3_is_read_to_its_end() -> None:
    samples = quiet_then_loud(2.0, 44100)
    content = mp3(np.stack([samples, samples], axis=1), 44100, channels=2)
    assert_holds(without_xing(content), samples, 44100)


def test_free_format_is_read_to_its_end() -> None:
    """At 48 kHz all frames of a constant bit rate have one size, so the rate's index may be left out."""
    samples = quiet_then_loud(2.0, 48000)
    content = bytearray(without_xing(mp3(samples, 48000, "CONSTANT")))
    size_bytes = first_frame_bytes(bytes(content))
    for at in range(0, len(content), size_bytes):
        content[at + 2] &= 0x0F
    assert_holds(bytes(content), samples, 48000)


@pytest.mark.parametrize(("layer", "samples"), [(1, 384), (2, 1152)])
def test_frames_of_layers_1_and_2_are_counted(layer: int, samples: int) -> None:
    """Frames without an allocated subband are silence: decoded to the end, then rejected for it."""
    header = bytes((0xFF, 0xF9 | (4 - layer) << 1, 0x84, 0xC0))  # 48 kHz, mono
    size_bytes = 4 * (12 * 256 // 48) if layer == 1 else 144 * 128 // 48
    content = (header + bytes(size_bytes - 4)) * (48000 * 2 // samples)
    assert reason_of(content) is Reason.TOO_QUIET
    with pytest.raises(RecordingError) as caught:
        read_recording(content, max_duration_s=1.9)
    assert caught.value.rejection == (Reason.TOO_LONG, "2.0 s, at most 1.9 s")


@pytest.mark.parametrize("entry", [".AppleDouble", "._"])
@pytest.mark.parametrize("kind", ["MP3", "WAV", "FLAC", "junk"])
def test_result_does_not_depend_on_the_working_directory(tmp_path, monkeypatch, entry: str, kind: str) -> None:
    """libsndfile looks there for the resource fork of a Sound Designer file."""
    content = b"junk" * 500 if kind == "junk" else encode(voice(0.5, 16000), 16000, kind)

    def outcome() -> object:
        try:
            return read_recording(content)[0].tolist()
        except RecordingError as error:
            return error.rejection

    expected = outcome()
    (tmp_path / entry).mkdir() if entry == ".AppleDouble" else (tmp_path / entry).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    if kind == "MP3":
        with pytest.raises(sf.SoundFileError, match="bad data"):
            sf.read(io.BytesIO(content))
    assert outcome() == expected


def test_pcm_without_a_header_is_not_taken_for_mpeg() -> None:
    noise = np.random.default_rng(0).integers(-300, 300, 200_000, dtype=np.int16)
    assert reason_of(noise.tobytes()) is Reason.UNREADABLE_AUDIO
    assert reason_of(b"\xff" * 100_000) is Reason.UNREADABLE_AUDIO


def test_id3_sizes_have_seven_bits_per_byte() -> None:
    assert skip_id3(ID3V2) == len(ID3V2) == 10 + (2 << 7) + 44
    assert skip_id3(ID3V2 + ID3V2 + b"rest") == 2 * len(ID3V2)
    assert skip_id3(b"RIFF") == 0
