"""MPEG audio (MP3): the frames that a file holds, compared with the number that it announces.

Sources: ISO/IEC 11172-3 and 13818-3 (frame header), https://id3.org/id3v2.4.0-structure, and the Xing, Info and VBRI
headers as LAME and the Fraunhofer encoder write them.
"""

import re
from typing import NamedTuple

from vits_trainer.data.rejections import Reason, reject
from vits_trainer.utils.strings import counted

_KBPS = {
    (3, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""By version (MPEG-2.5 as MPEG-2) and layer, then by the header's index."""
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""By the header's version bits, then by its index."""
_MPEG_1, _LAYER_3 = 3, 3
_XING = (b"Xing", b"Info")
_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x00-\xef]")
_MAX_FREE_FRAME_BYTES = 8192
_MAX_LEADING_BYTES = 2**16
"""Bytes before the first frame that may be neither audio nor a tag."""
_MAX_LOST_BYTES = 2048
"""Bytes behind the first frame that may be neither audio nor a tag: a few damaged frames."""
_CERTAIN_FRAMES = 4
_SLOT = 4
"""Bytes of padding by which frames of one bit rate differ at most."""
_ID3_BYTES, _ID3V1_BYTES, _APE_BYTES = 10, 128, 32
_PADDING_TAG = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
"""With an ID3v2 tag in front, libsndfile takes bytes for MPEG audio. Without one it first looks for the resource fork
of a Sound Designer file, named ._ or .AppleDouble/, in the working directory."""
_XING_BITRATE_INDEX = 9
"""Gives a frame of at least 144 bytes in every version, which holds a Xing header."""


class _Frame(NamedTuple):
    """Header of a frame."""

    size_bytes: int
    samples: int
    kind: tuple[int, int, int, int]
    """Version bits, layer, sampling rate in Hz, and channels: equal for all frames of a recording."""


class _Scan(NamedTuple):
    """All frames of a file."""

    audio: list[bytes]
    info: list[bytes]
    """Frames with a Xing, Info or VBRI header instead of audio."""
    frame: _Frame
    """The first header."""
    is_cut: bool
    """Whether the last frame is incomplete."""
    lost_bytes: int
    """Bytes behind the first frame that are neither audio nor a tag, up to a limit."""


def skip_id3(content: bytes, start: int = 0) -> int:
    """Returns the offset behind the ID3v2 tags at ``start``."""
    while content[start : start + 3] == b"ID3" and len(content) >= start + _ID3_BYTES:
        size_bytes = 0
        for byte in content[start + 6 : start + 10]:
            size_bytes = size_bytes << 7 | byte & 0x7F
        start += _ID3_BYTES + size_bytes + (_ID3_BYTES if content[start + 5] & 0x10 else 0)
    return start


def complete_mpeg(content: bytes) -> tuple[bytes, int, int]:
    """Returns MPEG audio without tags, with a header that announces all its frames.

    Also returns the samples of these frames, and the samples of one.

    libsndfile stops at the length in the Xing header. Without one, it estimates the length from the first frames, which
    is wrong for variable bit rates.

    Raises:
        RecordingError: it holds no frames, fewer than it announces, an incomplete one, or several formats.
    """
    scan = _scan(content)
    held = len(scan.audio)
    counts = [_announced_frames(frame) for frame in scan.info]
    announced = sum(counts)
    if announced > held + len(counts):  # some encoders count the header itself
        reject(Reason.TRUNCATED_AUDIO, f"{held} of {announced} declared MPEG frames")
    if not 0 < announced <= held:
        if scan.is_cut:
            reject(Reason.TRUNCATED_AUDIO, f"the last of {held + 1} MPEG frames is incomplete")
        if scan.lost_bytes > _MAX_LOST_BYTES:
            reject(Reason.TRUNCATED_AUDIO, f"bytes that are no MPEG audio follow {held} frames")
    if not held:
        reject(Reason.EMPTY_AUDIO, "no samples")
    if counts in ([held], [held + 1]) and not _is_vbri(scan.info[0]):
        first = scan.info[0]  # also gives the encoder's delay
    else:
        first = _xing_frame(scan.audio[0], held) if scan.frame.kind[1] == _LAYER_3 else b""
    return b"".join((_PADDING_TAG, first, *scan.audio)), held * scan.frame.samples, scan.frame.samples


def _scan(content: bytes) -> _Scan:
    audio: list[bytes] = []
    info: list[bytes] = []
    first: _Frame | None = None
    position, skipped_bytes, is_cut = skip_id3(content), 0, False
    while position + 4 <= len(content) and not is_cut:
        frame = _frame_at(content, position)
        if frame and _is_certain(content, position, frame, first):
            if first is None:
                first, skipped_bytes = frame, 0
            if frame.kind != first.kind:
                reject(Reason.UNSUPPORTED_AUDIO, f"a change from {_words(first)} to {_words(frame)}")
            data = content[position : position + frame.size_bytes]
            is_cut = len(data) < frame.size_bytes
            if not is_cut:
                (info if _is_info(data, frame) else audio).append(data)
            position += frame.size_bytes
            continue
        following = _skip_tag(content, position)
        if following == position:
            sync = _SYNC.search(content, position + 1)
            following = sync.start() if sync else len(content)
            skipped_bytes += following - position
            if skipped_bytes > (_MAX_LOST_BYTES if first else _MAX_LEADING_BYTES):
                break
        position = following
    if first is None:
        reject(Reason.UNREADABLE_AUDIO, "Format not recognised.")
    return _Scan(audio, info, first, is_cut, skipped_bytes)


def _frame_at(content: bytes, position: int) -> _Frame | None:
    """Parses the four bytes of a frame's header; returns None if they are not one."""
    if not _SYNC.match(content, position) or position + 4 > len(content):
        return None
    second, third, fourth = content[position + 1 : position + 4]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate_index, padding = third >> 2 & 3, third >> 1 & 1
    if rate_index == 3:
        return None
    rate_hz = _RATES_HZ[version][rate_index]
    samples = 384 if layer == 1 else 576 if layer == _LAYER_3 and version != _MPEG_1 else 1152
    kbps = _KBPS[3 if version == _MPEG_1 else 2, layer][third >> 4]
    if not kbps:
        size_bytes = _free_format_bytes(content, position)
    elif layer == 1:
        size_bytes = 4 * (12_000 * kbps // rate_hz + padding)
    else:
        size_bytes = samples // 8 * 1000 * kbps // rate_hz + padding
    return _Frame(size_bytes, samples, (version, layer, rate_hz, 1 if fourth >> 6 == 3 else 2))


def _free_format_bytes(content: bytes, position: int) -> int:
    """Returns the distance to the next frame: in free format the header does not give the frame's size."""
    end = min(len(content), position + _MAX_FREE_FRAME_BYTES)
    following = position + 4
    while (following := content.find(content[position : position + 2], following, end)) >= 0:
        if content[following + 2 : following + 3] and not (content[following + 2] ^ content[position + 2]) & 0xFC:
            return following - position
        following += 1
    return end - position  # the last frame


def _is_certain(content: bytes, position: int, frame: _Frame, first: _Frame | None) -> bool:
    """Whether a header is one, and not bytes that look like one: others of its kind follow, up to the end."""
    if first and frame.kind == first.kind:
        return True
    is_free_format = not content[position + 2] >> 4
    for _ in range(_CERTAIN_FRAMES):
        position += frame.size_bytes
        following = _frame_at(content, position)
        if following is None:
            return not is_free_format and (position == len(content) or _skip_tag(content, position) > position)
        if following.kind != frame.kind or (is_free_format and abs(following.size_bytes - frame.size_bytes) > _SLOT):
            return False
        frame = following
    return True


def _skip_tag(content: bytes, position: int) -> int:
    """Returns the offset behind an ID3, APE or Lyrics3 tag at ``position``; without a tag, ``position``."""
    name = content[position : position + 8]
    if name.startswith(b"ID3"):
        return skip_id3(content, position)
    if name.startswith(b"TAG"):
        return position + _ID3V1_BYTES
    if name == b"APETAGEX":
        is_header = content[position + 23 : position + 24] >= b"\xa0"
        size_bytes = int.from_bytes(content[position + 12 : position + 16], "little")
        return position + _APE_BYTES + (size_bytes if is_header else 0)
    if name == b"LYRICSBE":
        end = content.find(b"LYRICS200", position)
        return end + 9 if end >= 0 else position
    return position


def _is_info(data: bytes, frame: _Frame) -> bool:
    """Whether a frame holds a Xing, Info or VBRI header, which decoders do not play."""
    side = _side_bytes(frame)
    return frame.kind[1] == _LAYER_3 and (
        data[4 + side : 8 + side] in _XING or data[6 + side : 10 + side] in _XING or _is_vbri(data)
    )


def _is_vbri(data: bytes) -> bool:
    return data[36:40] == b"VBRI"


def _announced_frames(data: bytes) -> int:
    """Returns the number of frames in a Xing, Info or VBRI header; 0 if it is not given."""
    if _is_vbri(data):
        return int.from_bytes(data[50:54], "big")
    start = max(data.find(name, 0, 48) for name in _XING)
    has_count = data[start + 7 : start + 8] and data[start + 7] & 1
    return int.from_bytes(data[start + 8 : start + 12], "big") if has_count else 0


def _side_bytes(frame: _Frame) -> int:
    """Size of a layer III frame's side information."""
    version, _, _, channels = frame.kind
    if version == _MPEG_1:
        return 17 if channels == 1 else 32
    return 9 if channels == 1 else 17


def _xing_frame(data: bytes, frames: int) -> bytes:
    """Returns a silent frame in the format of frame ``data`` whose header announces ``frames`` frames."""
    header = bytes(
        (data[0], data[1] | 1, data[2] & 0x0C | _XING_BITRATE_INDEX << 4, data[3])
    )  # no checksum, no padding
    frame = _frame_at(header, 0)
    if frame is None:
        raise ValueError(f"not an MPEG frame: {header.hex()}")
    start = header + bytes(_side_bytes(frame)) + b"Xing\0\0\0\x01" + frames.to_bytes(4, "big")
    return start + bytes(frame.size_bytes - len(start))


def _words(frame: _Frame) -> str:
    _, layer, rate_hz, channels = frame.kind
    return f"layer {layer} at {rate_hz} Hz with {counted(channels, 'channel')}"
