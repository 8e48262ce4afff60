"""Reads SubRip (.srt) and WebVTT (.vtt) subtitles."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from vits_trainer.data.rejections import Reason, Rejection
from vits_trainer.data.segmentation.speech import Span
from vits_trainer.utils.strings import one_line

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_ARROW = "-->"
_NOT_CUES = re.compile(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_NOT_SPOKEN = re.compile(r"\[[^][]*\]|[♪♫]+")
"""Descriptions of sounds, and the signs around lyrics."""
_DASH = re.compile(r"^\s*[-–—]\s+", re.MULTILINE)
"""Begins the line of another speaker."""
_TOLERATED_OVERLAP_S = 0.05


@dataclass(frozen=True)
class Cue:
    """A subtitle."""

    number: int
    """Position in the file, from 1."""
    span: Span
    text: str
    """Without tags; a single line."""
    speaker: str | None
    """Of WebVTT's voice tag; None if there is none or several."""
    rejection: Rejection | None = None


def parse_subtitles(content: str) -> list[Cue]:
    """Returns the cues in the order of their times. Those that overlap others, or cannot be read, have a rejection.

    A repeated cue, with the times and the text of another one, is a duplicate.
    """
    cues = sorted(_cues(content), key=lambda cue: (cue.span, cue.number))
    checked: list[Cue] = []
    latest: Cue | None = None  # of the usable cues, the one that ends last
    for cue in cues:
        current = cue
        if latest is not None and cue.rejection is None:
            if (cue.span, cue.text) == (latest.span, latest.text):
                current = replace(cue, rejection=Rejection(Reason.DUPLICATE, f"repeats cue {latest.number}"))
            elif cue.span.start_s < latest.span.end_s - _TOLERATED_OVERLAP_S:
                current = _overlapping(cue, latest)
                checked = [_overlapping(latest, cue) if other is latest else other for other in checked]
        if cue.rejection is None and (latest is None or cue.span.end_s > latest.span.end_s):
            latest = current
        checked.append(current)
    return checked


def _overlapping(cue: Cue, other: Cue) -> Cue:
    if cue.rejection is not None:
        return cue
    return replace(cue, rejection=Rejection(Reason.OVERLAPPING_CUES, f"overlaps cue {other.number}"))


def _cues(content: str) -> Iterator[Cue]:
    """Yields the cues in the order of the file."""
    number = 0
    for block in re.split(r"\n\s*\n", content.replace("\r\n", "\n").replace("\r", "\n").strip("\ufeff\n")):
        lines = block.strip("\n").split("\n")
        if _NOT_CUES.match(lines[0]):
            continue
        for part in _with_one_time_line(lines):
            number += 1
            yield _cue(number, part)


def _with_one_time_line(lines: list[str]) -> list[list[str]]:
    """Divides a block with the time lines of several cues, as of files that lack blank lines; [] for an empty one."""
    if not any(line.strip() for line in lines):
        return []
    starts = [row for row, line in enumerate(lines) if _ARROW in line]
    # The line before a time line is the number of its cue, if it is a number.
    starts = [row - (row > 0 and lines[row - 1].strip().isdigit()) for row in starts]
    edges = [0, *starts[1:], len(lines)]
    return [lines[start:end] for start, end in pairwise(edges)]


def _cue(number: int, lines: list[str]) -> Cue:
    row = next((row for row, line in enumerate(lines) if _ARROW in line), None)
    match = None if row is None else _TIMES.fullmatch(lines[row])
    if row is None or match is None:
        shown = one_line(lines[0 if row is None else row])[:60]
        detail = f"{shown!r} has no times such as 00:00:01,000 --> 00:00:03,000"
        return Cue(number, Span(0.0, 0.0), "", None, Rejection(Reason.MALFORMED_ROW, detail))
    span = Span(_seconds(match.groups()[:4]), _seconds(match.groups()[4:]))
    written = "\n".join(lines[row + 1 :])
    names = list(dict.fromkeys(one_line(html.unescape(name)) for name in _VOICE.findall(written)))
    text = _NOT_SPOKEN.sub(" ", html.unescape(_MARKUP.sub("", written)))
    rejection: Rejection | None = None
    if span.duration_s <= 0:
        rejection = Rejection(Reason.MALFORMED_ROW, f"ends at {span.end_s:g} s, before it starts ({span.start_s:g} s)")
    elif not any(map(str.isalnum, text)):
        rejection = Rejection(Reason.EMPTY_TEXT, repr(one_line(written)[:40]))
    return Cue(number, span, one_line(_DASH.sub("", text)), names[0] if len(names) == 1 else None, rejection)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
