"""Containers: what is decoded is what the file holds and what it announces."""

import io
import struct

import numpy as np
import pytest
import soundfile as sf

from tests.support.audio import encode, voice
from vits_trainer.data.audio import Reason, RecordingError, read_recording

RATE_HZ = 16000
SAMPLES = voice(2.0, RATE_HZ)
CHUNKED = ["WAV", "WAVEX", "RIFX", "RF64", "BW64", "W64", "AIFF", "SVX", "CAF"]
DECLARED = ["AU", "NIST", "AVR", "MPC2K", "VOC"]
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"


def file_of(kind: str, subtype: str = "PCM_16") -> bytes:
    if kind == "RIFX":
        content = io.BytesIO()
        sf.write(content, SAMPLES, RATE_HZ, format="WAV", subtype=subtype, endian="BIG")
        return content.getvalue()
    if kind == "BW64":
        return b"BW64" + file_of("RF64")[4:]
    return encode(SAMPLES, RATE_HZ, kind, subtype)


def wav(declared_bytes: int, riff_bytes: int | None = None, behind: bytes = b"", bits: int = 16) -> bytes:
    """Returns a WAV file of SAMPLES whose header declares any size."""
    pcm = (SAMPLES * 32767).astype("<i2").tobytes()
    size = 36 + declared_bytes if riff_bytes is None else riff_bytes
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", size, b"WAVE", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, bits)
    return head + struct.pack("<4sI", b"data", declared_bytes) + pcm + behind


def length_of(content: bytes) -> int:
    return len(read_recording(content)[0])


def reason_of(content: bytes) -> Reason:
    with pytest.raises(RecordingError) as caught:
        read_recording(content)
    return caught.value.rejection.reason


@pytest.mark.parametrize("kind", [*CHUNKED, *DECLARED, "FLAC", "HTK"])
def test_whole_file_is_read_and_a_part_of_it_is_rejected(kind: str) -> None:
    content = file_of(kind)
    read, rate_hz = read_recording(content)
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(read[: len(SAMPLES)], SAMPLES, atol=4e-5)
    assert len(read) == len(SAMPLES)
    for fraction in (0.1, 0.5, 0.9, 0.99):
        assert reason_of(content[: int(fraction * len(content))]) in (Reason.TRUNCATED_AUDIO, Reason.UNREADABLE_AUDIO)


@pytest.mark.parametrize("kind", [*CHUNKED, *DECLARED])
def test_padding_and_tags_behind_the_audio_are_not_audio(kind: str) -> None:
    content = file_of(kind)
    assert length_of(content + bytes(1000)) == len(SAMPLES)
    if kind != "VOC":  # a tag would be a block
        assert length_of(content + b"TAG" + bytes(125)) == len(SAMPLES)


@pytest.mark.parametrize("kind", ["WAV", "RIFX", "W64", "AIFF"])
def test_concatenated_files_are_read_together(kind: str) -> None:
    content = file_of(kind)
    assert length_of(content + content) == 2 * len(SAMPLES)
    other = encode(SAMPLES, 8000, "WAV", "PCM_16")
    assert reason_of(content + other) in (Reason.UNSUPPORTED_AUDIO, Reason.TRUNCATED_AUDIO)


SIZE = 2 * len(SAMPLES)


@pytest.mark.parametrize(
    ("declared_bytes", "riff_bytes"),
    [
        *((SIZE, riff_bytes) for riff_bytes in (None, 0, 1000, SIZE, 0xFFFFFFFF)),
        *((0, riff_bytes) for riff_bytes in (None, 0)),  # the recorder ended before it wrote the size
        *((SIZE + more, None) for more in (1, 2, 16, 36, 44, 64)),
        (SIZE + 36, SIZE + 36),  # the size of the file in both places
        *((unknown, None) for unknown in (0x7FFF0000, 0x7FFFFFFF, 0x80000000)),
        (0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_wav_header_with_a_slightly_wrong_or_unknown_size_is_read_to_the_end(
    declared_bytes: int, riff_bytes: int | None
) -> None:
    read, _ = read_recording(wav(declared_bytes, riff_bytes))
    np.testing.assert_allclose(read, SAMPLES, atol=1e-4)


def test_size_of_the_file_in_both_places_may_count_many_chunks() -> None:
    note = b"JUNK" + struct.pack("<I", 400) + bytes(400)
    content = wav(SIZE)
    content = content[:12] + note + content[12:]
    wrong = struct.pack("<I", len(content) - 8)
    content = content[:4] + wrong + content[8 : 448 - 4 + 4] + wrong + content[452:]
    assert content[444:448] == b"data"
    assert length_of(content) == len(SAMPLES)


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.9])
def test_audio_beyond_the_declared_size_is_rejected(factor: float) -> None:
    assert reason_of(wav(2 * int(factor * len(SAMPLES)))) is Reason.TRUNCATED_AUDIO
    assert reason_of(wav(2 * int(factor * len(SAMPLES)), behind=LIST)) is Reason.TRUNCATED_AUDIO


@pytest.mark.parametrize("behind", [LIST, LIST[:20], b"id3 " + struct.pack("<I", 8) + b"ID3\4\0\0\0\0", bytes(5000)])
def test_chunks_behind_the_audio_are_not_audio(behind: bytes) -> None:
    assert length_of(wav(SIZE, behind=behind)) == len(SAMPLES)


@pytest.mark.parametrize(
    ("kind", "field", "at", "values"),
    [
        ("RIFX", ">I", b"data", [0, 0xFFFFFFFF, SIZE + 36]),
        ("AIFF", ">I", b"SSND", [0, 0xFFFFFFFF, SIZE + 8 + 36]),
        ("CAF", ">q", b"data", [-1, SIZE + 4 + 36]),
        ("AU", ">I", 4, [0, 0xFFFFFFFF, SIZE + 36]),
        ("RF64", "<Q", b"ds64", [0, 2**63, SIZE + 36]),
    ],
)
def test_other_headers_with_a_wrong_size(kind: str, field: str, at: bytes | int, values: list[int]) -> None:
    content = bytearray(file_of(kind))
    offset = {"RF64": 16}.get(kind, 4) + (at if isinstance(at, int) else content.index(at))
    for value in values:
        struct.pack_into(field, content, offset, value)
        assert abs(length_of(bytes(content)) - len(SAMPLES)) <= 32
    for value in (SIZE // 2, 2 * SIZE):
        struct.pack_into(field, content, offset, value)
        assert reason_of(bytes(content)) is Reason.TRUNCATED_AUDIO


def test_declared_samples_of_aiff_are_compared() -> None:
    content = bytearray(file_of("AIFF"))
    struct.pack_into(">I", content, content.index(b"COMM") + 10, 2 * len(SAMPLES))
    assert reason_of(bytes(content)) is Reason.TRUNCATED_AUDIO


@pytest.mark.parametrize("bits", [0, 1, 7])
def test_fewer_than_8_bits_are_rejected(bits: int) -> None:
    assert reason_of(wav(SIZE, bits=bits)) is Reason.UNSUPPORTED_AUDIO


def test_mp3_in_a_wav_file_is_read() -> None:
    mp3 = encode(SAMPLES, RATE_HZ, "MP3")
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(mp3), b"WAVE", b"fmt ", 16, 0x55, 1, RATE_HZ, 4000, 1, 0)
    assert length_of(head + struct.pack("<4sI", b"data", len(mp3)) + mp3) == len(SAMPLES)


def test_file_of_endless_chunks_is_rejected_at_once() -> None:
    assert reason_of(b"RIFF\0\0\0\0WAVE" + (b"note" + bytes(4)) * 100_000) is Reason.UNREADABLE_AUDIO


@pytest.mark.parametrize("kind", ["PAF", "PVF", "MAT5", "IRCAM", "SDS"])
def test_formats_that_cannot_be_checked_are_rejected(kind: str) -> None:
    assert reason_of(encode(SAMPLES, RATE_HZ, kind, "PCM_16")) is Reason.UNSUPPORTED_AUDIO


# FLAC


def flac(declared: int, content: bytes | None = None) -> bytes:
    content = content or encode(SAMPLES, RATE_HZ, "FLAC", "PCM_16")
    packed = int.from_bytes(content[18:26], "big")
    return content[:18] + (packed >> 36 << 36 | declared).to_bytes(8, "big") + content[26:]


@pytest.mark.parametrize("declared", [0, 1, len(SAMPLES) // 2, len(SAMPLES) - 1, len(SAMPLES)])
def test_flac_is_read_to_its_last_frame(declared: int) -> None:
    read, _ = read_recording(flac(declared))
    np.testing.assert_allclose(read, SAMPLES, atol=4e-5)
    assert length_of(b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + flac(declared) + b"TAG" + bytes(125)) == len(SAMPLES)


@pytest.mark.parametrize("declared", [0, len(SAMPLES) // 2, len(SAMPLES), 2 * len(SAMPLES)])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_truncated_flac_is_rejected(declared: int, fraction: float) -> None:
    content = flac(declared)
    assert reason_of(content[: int(fraction * len(content))]) in (Reason.TRUNCATED_AUDIO, Reason.UNREADABLE_AUDIO)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_24"])
@pytest.mark.parametrize("rate_hz", [8000, 11111, 44100, 48000])
def test_flac_headers_of_other_rates_and_depths_are_read(rate_hz: int, subtype: str) -> None:
    for duration_s in (0.3, 1.0, 3.01):
        samples = voice(duration_s, rate_hz)
        content = encode(samples, rate_hz, "FLAC", subtype)
        assert len(read_recording(flac(0, content))[0]) == len(samples)


# Ogg


def pages(content: bytes) -> list[bytes]:
    return [b"OggS" + page for page in content.split(b"OggS")[1:]]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_is_read_to_the_end_of_its_stream(subtype: str) -> None:
    samples = voice(20.0, RATE_HZ)
    content = encode(samples, RATE_HZ, "OGG", subtype)
    assert abs(length_of(content) - len(samples)) <= 1
    for fraction in (0.3, 0.5, 0.9, 0.99):
        assert reason_of(content[: int(fraction * len(content))]) is Reason.TRUNCATED_AUDIO
    parts = pages(content)
    assert len(parts) > 5
    for end in (4, len(parts) - 1):
        assert reason_of(b"".join(parts[:end])) is Reason.TRUNCATED_AUDIO
    assert reason_of(b"".join(parts[:4] + parts[5:])) is Reason.TRUNCATED_AUDIO


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_streams_are_read_together(subtype: str) -> None:
    first, second = voice(1.0, RATE_HZ), voice(1.5, RATE_HZ, 250)
    chained = encode(first, RATE_HZ, "OGG", subtype) + encode(second, RATE_HZ, "OGG", subtype)
    read, _ = read_recording(chained)
    assert abs(len(read) - 2.5 * RATE_HZ) <= 2
    likeness = np.corrcoef(read[-len(second) :], second)[0, 1]
    assert likeness > 0.95
    assert reason_of(chained[:-300]) is Reason.TRUNCATED_AUDIO
    assert reason_of(encode(first, RATE_HZ, "OGG", subtype)[:-300] + chained) is Reason.UNREADABLE_AUDIO


def test_damaged_ogg_page_is_rejected() -> None:
    content = bytearray(encode(voice(5.0, RATE_HZ), RATE_HZ, "OGG", "VORBIS"))
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    assert reason_of(bytes(content)) is Reason.UNREADABLE_AUDIO
