"""The structure of audio files: the amount of audio that a container announces, compared with what its bytes hold.

libsndfile reads as much as a header announces, or as much as there is if that is less, without an error in either
case. A clip would then have the whole text and a part of the speech.

Sources: RIFF (Microsoft, Multimedia Programming Interface 1.0), RF64 and BW64 (EBU Tech 3306, ITU-R BS.2088), AIFF and
AIFF-C (Apple 1989, 1991), AU (Sun), CAF (Apple), Wave64 (Sony), FLAC (RFC 9639), Ogg (RFC 3533).
"""

import math
import re
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from vits_trainer.data.mpeg import complete_mpeg, skip_id3
from vits_trainer.data.rejections import Reason, reject

_MAX_STREAMS = 64
"""Maximum number of recordings in one file: each is decoded separately, about 1 ms."""
_MAX_CHUNKS = 4096
_TOLERANCE_BYTES = 64
"""Recorders declare up to this much too much or too little, at most 4 ms of 16-bit audio at 8 kHz."""
_LENGTH_UNKNOWN_BYTES = 0x7FFF0000
"""Programs that write to a pipe declare this 32-bit size or more, as they do not know the length."""
_TRAILERS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
_METADATA_CHUNKS = (b"LIST", b"JUNK", b"bext", b"iXML", b"cue ", b"fact", b"PEAK", b"id3 ", b"ID3 ", b"afsp", b"_PMX")
"""Known even if they are cut off."""


_PCM_ENCODINGS = (1, 0xFFFE)
_ID3V1_BYTES = 128
_OGG_BEGIN, _OGG_END = 2, 4
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FLAC_FIXED, _FLAC_VARIABLE = b"\xff\xf8", b"\xff\xf9"
_FLAC_BLOCK_SAMPLES = (
    {1: 192} | {code: 144 << code for code in range(2, 6)} | {code: 1 << code for code in range(8, 16)}
)
"""By the code in a frame's header."""
_MAX_FLAC_SAMPLES = 2**36 - 1
_MAX_FLAC_FRAME_BYTES = 2**17
_MAX_FLAC_CANDIDATES = 16
"""Offsets whose checksum is compared, up to 25 ms each."""


class Stream(NamedTuple):
    """One recording of a file."""

    content: bytes
    """A file whose header announces all audio that it holds."""
    frames: int | None = None
    """Samples per channel that it holds, apart from the encoder's delay; None: as many as libsndfile finds."""
    tolerance_frames: int = 0


def streams(content: bytes) -> list[Stream]:
    """Returns the recordings of an audio file: one, or several if files or Ogg streams were concatenated.

    Raises:
        RecordingError: the file holds less audio than it announces, holds audio that it does not announce, or is not
            an audio file.
    """
    start = skip_id3(content)
    name = content[start : start + 4]
    if name == b"OggS":
        return _ogg(content[start:])
    if name == b"fLaC":
        return [Stream(complete_flac(content[start:]))]
    if name in (b".snd", b"dns."):
        return [Stream(_au(content[start:]))]
    layout = _LAYOUTS.get(name)
    if layout is not None:
        return _chunked(content[start:], layout)
    if content.startswith(_UNSUPPORTED):
        reject(Reason.UNSUPPORTED_AUDIO, "a format that does not say whether it is complete; convert it to WAV")
    for magic, extent in _EXTENTS.items():
        if content.startswith(magic):
            return [Stream(_cut(content, *extent(content)))]
    if content[8:12] == b"\0\x02\0\0":  # HTK: libsndfile requires the declared size
        return [Stream(content)]
    return [_mpeg(content)]


def _mpeg(content: bytes) -> Stream:
    complete, samples, frame_samples = complete_mpeg(content)
    return Stream(complete, samples, _MPEG_TOLERANCE * frame_samples)


# Files of chunks


class _Layout(NamedTuple):
    """How a format stores its chunks."""

    order: Literal["little", "big"]
    first: int
    """Offset of the first chunk."""
    names: dict[bytes, int]
    """Of the chunk with the audio, and the bytes in it that precede the samples."""
    name_bytes: int = 4
    size_bytes: int = 4
    header_in_size: int = 0
    """Bytes of a chunk's header that its size includes."""
    alignment: int = 2


_LAYOUTS = {
    b"RIFF": _Layout("little", 12, {b"data": 0}),
    b"RIFX": _Layout("big", 12, {b"data": 0}),
    b"RF64": _Layout("little", 12, {b"data": 0}),
    b"BW64": _Layout("little", 12, {b"data": 0}),
    b"riff": _Layout("little", 40, {b"data": 0}, name_bytes=16, size_bytes=8, header_in_size=24, alignment=8),
    b"FORM": _Layout("big", 12, {b"SSND": 8, b"BODY": 0}),
    b"caff": _Layout("big", 8, {b"data": 4}, size_bytes=8, alignment=1),
}
"""By the first four bytes of the file."""
_UNSUPPORTED = (b" paf", b"fap ", b"PVF1", b"MATLAB", b"\xf0\x7e", b"\x64\xa3", b"\0\x01\xa3\x64")
"""Ensoniq PARIS, PVF, MATLAB, MIDI sample dumps and IRCAM: no length is declared, or libsndfile does not compare it."""
_MPEG_TOLERANCE = 5
"""MPEG frames. Decoders skip the encoder's delay and padding, up to four frames, and may lose one at a seam."""


def _chunked(content: bytes, layout: _Layout) -> list[Stream]:
    """Returns the recordings of concatenated files of one layout."""
    found: list[Stream] = []
    while True:
        stream, rest = _first_file(content, layout)
        found.append(stream)
        if not rest:
            return found
        if len(found) == _MAX_STREAMS:
            reject(Reason.UNSUPPORTED_AUDIO, f"more than {_MAX_STREAMS} concatenated files")
        content = rest


def _first_file(content: bytes, layout: _Layout) -> tuple[Stream, bytes]:
    """Returns the first file in ``content``, and the bytes of those behind it."""
    chunks = _find_audio(content, layout)
    if chunks is None:
        return Stream(content), b""  # libsndfile says what is wrong
    is_long = chunks.long_size_at is not None and chunks.size_bytes == 0xFFFFFFFF
    size_at, size_field_bytes = (
        (chunks.long_size_at or 0, 8) if is_long else (chunks.start - layout.size_bytes, layout.size_bytes)
    )
    declared_bytes = int.from_bytes(content[size_at : size_at + 8], "little") if is_long else chunks.size_bytes
    is_unknown = declared_bytes >= (2**62 if is_long or layout.size_bytes == 8 else _LENGTH_UNKNOWN_BYTES)
    present_bytes = len(content) - chunks.start
    if present_bytes < declared_bytes == int.from_bytes(content[4:8], layout.order):
        declared_bytes -= chunks.start - 8  # some recorders write the size of the file in both places
    held_bytes = _held_bytes(content, chunks.start, -1 if is_unknown else declared_bytes, chunks.preamble_bytes, layout)
    end = chunks.start + held_bytes
    rest = next((content[at:] for at in (end, end + 1) if content[at : at + 4] == content[:4]), b"")
    if rest:
        content = content[:end]
    if layout.order == "little" and _is_mpeg(chunks.format_chunk):
        return _mpeg(content[chunks.start : end]), rest
    if held_bytes != chunks.size_bytes or is_long:
        field = (held_bytes + layout.header_in_size).to_bytes(size_field_bytes, layout.order)
        content = content[:size_at] + field + content[size_at + size_field_bytes :]
    if content[:4] == b"riff" or content[8:12] in (b"8SVX", b"16SV"):  # libsndfile ignores the size
        content = content[:end]
    if content[:4] == b"BW64":  # the same chunks as in RF64, which libsndfile knows
        content = b"RF64" + content[4:]
    return Stream(content, chunks.frames, _TOLERANCE_BYTES), rest


class _Audio(NamedTuple):
    """Where a file of chunks holds its audio."""

    start: int
    """Offset of the chunk's content."""
    size_bytes: int
    """As the chunk declares it."""
    format_chunk: bytes
    """Content of the chunk "fmt "."""
    long_size_at: int | None
    """Offset of the size that an RF64 file gives in the chunk "ds64"."""
    frames: int | None
    """Number of samples that an AIFF file declares."""
    preamble_bytes: int
    """Bytes of the content that precede the samples."""


def _find_audio(content: bytes, layout: _Layout) -> _Audio | None:
    """Walks the chunks up to the audio; returns None if there is none."""
    position, header_bytes = layout.first, layout.name_bytes + layout.size_bytes
    format_chunk, long_size_at, frames = b"", None, None
    chunks = 0
    while position + header_bytes <= len(content):
        name, size_bytes = _chunk(content, position, layout)
        start = position + header_bytes
        if name in layout.names:
            return _Audio(start, size_bytes, format_chunk, long_size_at, frames, layout.names[name])
        if name == b"fmt ":
            format_chunk = content[start : start + 16]
            _require_whole_bytes(format_chunk, layout)
        elif name == b"ds64":
            long_size_at = start + 8
        elif name == b"COMM" and content[8:12] == b"AIFF":
            frames = int.from_bytes(content[start + 2 : start + 6], "big")
        position = start + max(0, size_bytes)
        position += -position % layout.alignment
        chunks += 1
        if chunks == _MAX_CHUNKS:
            reject(Reason.UNREADABLE_AUDIO, f"no audio in the first {_MAX_CHUNKS} chunks")
    return None


def _chunk(content: bytes, position: int, layout: _Layout) -> tuple[bytes, int]:
    """Returns a chunk's name, its first four bytes, and the size of its content."""
    size_at = position + layout.name_bytes
    field = content[size_at : size_at + layout.size_bytes]
    size_bytes = int.from_bytes(field, layout.order, signed=layout.size_bytes == 8) - layout.header_in_size
    return content[position : position + 4], size_bytes


def _held_bytes(content: bytes, start: int, declared_bytes: int, preamble_bytes: int, layout: _Layout | None) -> int:
    """Returns how many bytes of audio begin at ``start``.

    Args:
        content: of the file.
        start: offset of the audio.
        declared_bytes: negative if the header does not give the length.
        preamble_bytes: an audio chunk that declares no more than this is empty.
        layout: of chunks that may follow; None if the format has none.
    """
    present_bytes = len(content) - start
    if declared_bytes < 0:
        return present_bytes
    if declared_bytes > present_bytes + _TOLERANCE_BYTES:
        reject(Reason.TRUNCATED_AUDIO, f"{present_bytes} of {declared_bytes} declared bytes of audio")
    if declared_bytes >= present_bytes - _TOLERANCE_BYTES:
        return min(declared_bytes, present_bytes)
    if _is_end(content, start + declared_bytes, layout):
        return declared_bytes
    if declared_bytes > preamble_bytes:
        behind_bytes = present_bytes - declared_bytes
        reject(Reason.TRUNCATED_AUDIO, f"{behind_bytes} more bytes follow the {declared_bytes} declared bytes of audio")
    return present_bytes  # the recorder ended before it could write the size


def _is_end(content: bytes, position: int, layout: _Layout | None) -> bool:
    """Whether what begins at ``position`` is not audio: chunks, tags, padding, or another file."""
    if content.count(b"\0", position) == len(content) - position or content.startswith(_TRAILERS, position):
        return True
    if layout is None:
        return False
    for at in {position, position + -position % layout.alignment}:
        name, size_bytes = _chunk(content, at, layout)
        fits = 0 <= size_bytes <= len(content) - at
        if name in _METADATA_CHUNKS or (fits and name.isascii() and name.decode("ascii").isprintable()):
            return True
    return False


def _require_whole_bytes(format_chunk: bytes, layout: _Layout) -> None:
    """Rejects PCM of fewer than 8 bits per sample: no recorder writes it, so the header is damaged."""
    encoding, bits = (int.from_bytes(format_chunk[at : at + 2], layout.order) for at in (0, 14))
    if len(format_chunk) == 16 and encoding in _PCM_ENCODINGS and bits < 8:
        reject(Reason.UNSUPPORTED_AUDIO, f"{bits} bits per sample")


def _is_mpeg(format_chunk: bytes) -> bool:
    return format_chunk[:2] in (b"\x50\0", b"\x55\0")


# Files without chunks


def _cut(content: bytes, start: int, declared_bytes: int) -> bytes:
    """Returns the content up to the end of the audio, as libsndfile reads these formats to the end of the file."""
    return content[: start + _held_bytes(content, start, declared_bytes, 0, None)]


def _nist_extent(content: bytes) -> tuple[int, int]:
    header = content[:1024].decode("latin-1")
    fields = dict(re.findall(r"^(sample_count|sample_n_bytes|channel_count) -i (\d+)", header, re.MULTILINE))
    if "sample_count" not in fields:
        reject(Reason.UNREADABLE_AUDIO, "the SPHERE header gives no sample_count")
    return int(content[8:16]), math.prod(map(int, fields.values()))


def _voc_extent(content: bytes) -> tuple[int, int]:
    start = position = int.from_bytes(content[20:22], "little")
    while position < len(content) and content[position]:  # blocks up to a terminator of type 0
        position += 4 + int.from_bytes(content[position + 1 : position + 4], "little")
    return start, position - start


def _avr_extent(content: bytes) -> tuple[int, int]:
    channels, sample_bytes = (2 if any(content[12:14]) else 1), (2 if content[15] == 16 else 1)
    return 128, int.from_bytes(content[26:30], "big") * channels * sample_bytes


_EXTENTS: dict[bytes, Callable[[bytes], tuple[int, int]]] = {
    b"NIST_1A": _nist_extent,
    b"Creative Voice File": _voc_extent,
    b"2BIT": _avr_extent,
    b"ALawSoundFile": lambda content: (32, int.from_bytes(content[18:22], "big")),
    b"Extended Instrument": lambda content: (338, int.from_bytes(content[298:302], "little")),
    b"\x01\x04": lambda content: (42, 2 * (1 + content[21]) * int.from_bytes(content[30:34], "little")),
}
"""By their first bytes, the offset and the declared size of the audio of SPHERE, VOC, AVR, Psion, FastTracker and Akai
files."""


def _au(content: bytes) -> bytes:
    """Returns an AU file whose header gives the size of its audio."""
    order: Literal["little", "big"] = "big" if content[:4] == b".snd" else "little"
    start, declared_bytes = (int.from_bytes(content[at : at + 4], order) for at in (4, 8))
    if declared_bytes >= _LENGTH_UNKNOWN_BYTES:
        declared_bytes = -1
    held_bytes = _held_bytes(content, start, declared_bytes, 0, None) if start <= len(content) else 0
    return content[:8] + held_bytes.to_bytes(4, order) + content[12:]


def complete_flac(content: bytes) -> bytes:
    """Returns a FLAC file whose header announces all samples of its frames.

    Raises:
        RecordingError: it holds fewer samples than it announces, or ends within a frame.
    """
    header = int.from_bytes(content[18:26], "big")  # rate, channels, bits, and 36 bits of the length
    announced = header & _MAX_FLAC_SAMPLES
    first = 4
    while first < len(content):
        is_last = content[first] & 0x80
        first += 4 + int.from_bytes(content[first + 1 : first + 4], "big")
        if is_last:
            break
    end = len(content) - (_ID3V1_BYTES if content[-_ID3V1_BYTES:].startswith(b"TAG") else 0)
    block_samples = int.from_bytes(content[10:12], "big")
    if first >= end and not announced:
        reject(Reason.EMPTY_AUDIO, "no samples")
    frames = list(_last_flac_frames(content, first, end, block_samples))
    if any(held == announced for _, held in frames):
        return content[:end]
    held = next((held for at, held in frames[:_MAX_FLAC_CANDIDATES] if _crc(content[at:end], 16, 0x8005) == 0), None)
    if held is None or held < announced:
        reject(Reason.TRUNCATED_AUDIO, f"{held or 'not all'} of {announced or 'the'} declared samples")
    return content[:18] + (header - announced + held).to_bytes(8, "big") + content[26:end]


def _last_flac_frames(content: bytes, first: int, end: int, block_samples: int) -> Iterator[tuple[int, int]]:
    """Yields offsets near the end that may be those of the last frame, and the samples of the file in each case."""
    at, sync = end, content[first : first + 2]
    if sync not in (_FLAC_FIXED, _FLAC_VARIABLE):
        return
    while (at := content.rfind(sync, max(first, end - _MAX_FLAC_FRAME_BYTES), at)) >= 0:
        header = content[at : at + 16].ljust(16, b"\0")
        ones = 8 - (~header[4] & 0xFF).bit_length()  # of a number coded as in UTF-8
        position = 4 + max(1, ones)
        number = header[4] & 0x7F >> ones
        for byte in header[5:position]:
            number = number << 6 | byte & 0x3F
        block_code, rate_code = header[2] >> 4, header[2] & 15
        extra = {6: 1, 7: 2}.get(block_code, 0)
        stated = int.from_bytes(header[position : position + extra], "big") + 1
        samples = stated if extra else _FLAC_BLOCK_SAMPLES.get(block_code, 0)
        position += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
        if samples and position < 16 and _crc(header[:position], 8, 0x07) == header[position]:
            yield at, number * (block_samples if sync == _FLAC_FIXED else 1) + samples


def _crc(content: bytes, bits: int, polynomial: int) -> int:
    """Returns a cyclic redundancy check, most significant bit first; 0.2 us per byte."""
    table = _crc_table(bits, polynomial)
    register, mask = 0, (1 << bits) - 1
    for byte in content:
        register = (register << 8 & mask) ^ table[register >> bits - 8 ^ byte]
    return register


@lru_cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        register = byte << bits - 8
        for _ in range(8):
            register = (register << 1) ^ (polynomial if register >> bits - 1 else 0)
            register &= (1 << bits) - 1
        table.append(register)
    return table


def _ogg(content: bytes) -> list[Stream]:
    """Returns the links of a chained Ogg file, which usually has one.

    Raises:
        RecordingError: a page is missing or incomplete, or the last page of a stream is not marked as its end.
    """
    links: list[tuple[int, int]] = []
    """Offset and last position in samples."""
    last_page: dict[bytes, int] = {}
    """Number of the last page of each stream that has not ended, by its serial number."""
    begin, position, granule, has_audio = 0, 0, 0, False
    while (page := content.find(b"OggS", position)) >= 0:
        if page > position and last_page:
            reject(Reason.TRUNCATED_AUDIO, f"bytes are missing before the Ogg page at byte {page}")
        header = content[page : page + 27].ljust(27, b"\0")
        segments = content[page + 27 : page + 27 + header[26]]
        position = page + 27 + len(segments) + sum(segments)
        if position > len(content):
            reject(Reason.TRUNCATED_AUDIO, "the last Ogg page is incomplete")
        if _ogg_checksum(header, content[page + 27 : position]) != header[22:26]:
            reject(Reason.UNREADABLE_AUDIO, f"the Ogg page at byte {page} is damaged")
        flags, serial, number = header[5], header[14:18], int.from_bytes(header[18:22], "little")
        if flags & _OGG_BEGIN and has_audio:
            _require_ended(last_page)
            links.append((begin, granule))
            begin, granule, has_audio = page, 0, False
        elif not flags & _OGG_BEGIN:
            has_audio = True
            if last_page.get(serial, number - 1) + 1 != number:
                reject(Reason.TRUNCATED_AUDIO, f"Ogg pages before page {number} are missing")
        last_page[serial] = number
        if flags & _OGG_END:
            del last_page[serial]
        granule = max(granule, int.from_bytes(header[6:14], "little", signed=True))
        if len(links) == _MAX_STREAMS:
            reject(Reason.UNSUPPORTED_AUDIO, f"more than {_MAX_STREAMS} chained streams")
    _require_ended(last_page)
    links.append((begin, granule))
    ends = [*(start for start, _ in links[1:]), len(content)]
    parts = [(content[start:end], last) for (start, last), end in zip(links, ends, strict=True)]
    return [Stream(part, last if b"\x7fFLAC" in part[:64] else None) for part, last in parts]


def _ogg_checksum(header: bytes, body: bytes) -> bytes:
    """Returns the CRC-32 of a page; zlib's has the bits of each byte in the opposite order, and inverts."""
    reflected = (header[:22] + bytes(4) + header[26:] + body).translate(_REVERSED_BITS)
    checksum = zlib.crc32(reflected, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "little").translate(_REVERSED_BITS)[::-1]


def _require_ended(last_page: dict[bytes, int]) -> None:
    if last_page:
        reject(Reason.TRUNCATED_AUDIO, "the last Ogg page is not marked as the end of the stream")
