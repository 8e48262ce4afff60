"""Divides the text of a recording among its clips, by the transcript of each clip.

The letters of all transcripts are aligned with the letters of the text: first at sequences that occur once in both,
then in between with affine gap costs (Gotoh, 1982), so that a transcript may be wrong in many letters and either side
may lack whole passages.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vits_trainer.utils.strings import comparable_text, one_line

Letters = NDArray[np.int32]

_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""A word; a single character where words are not separated."""
_ANCHOR_LETTERS = (12, 8, 6)
"""Lengths of sequences to look for; the next one if too much is left in between."""
_MAX_CELLS = 10**8
"""Size of the table between two anchors, in bytes. Larger passages are not aligned."""
_MATCH, _MISMATCH, _OPEN, _EXTEND = 2.0, -1.0, -2.0, -0.5
_BORDER = 0.5
"""Added at each end of a gap that is a border of clips: otherwise "the" of a clip that is not in the text could be
taken for that of the next clip."""
_EDGE_LETTERS = 4
"""So many letters too much or too few at an end of a clip are a word."""
_LETTERS_PER_DIGIT = 10
"""Recognizers write in digits what a text may have in words."""
_POOR = 0.5
"""Below this agreement, a clip has none of the text."""
_PASSAGE_LETTERS = 40
"""So many letters that no clip has are not spoken; fewer may be, where a recognizer is wrong."""


class Part(NamedTuple):
    """The part of the text that belongs to a clip."""

    text: str
    """Empty if none does."""
    confidence: float
    """Agreement with the transcript: 1 minus the edits per letter, at least 0."""
    edges_agree: bool
    """Whether text and transcript begin and end at the same letters, roughly."""


class Division(NamedTuple):
    """Result of :func:`divide_text`."""

    parts: list[Part]
    """Of each clip."""
    unspoken: list[str]
    """Passages of the text that belong to no clip."""


def divide_text(text: str, transcripts: Sequence[str], durations_s: Sequence[float]) -> Division:
    """Divides ``text`` among clips.

    Args:
        text: of the recording, or of more or less than it contains.
        transcripts: of the clips, in their order; they may be wrong.
        durations_s: of the clips. A word at the border of two clips that neither transcript has goes to the slower.
    """
    units = [match.span() for match in _UNIT.finditer(text)]
    unit_letters = [_letters(text[start:end]) for start, end in units]
    clip_letters = [_letters(transcript) for transcript in transcripts]
    owner = np.repeat(np.arange(len(clip_letters)), [len(letters) for letters in clip_letters])
    ends = np.cumsum([len(letters) for letters in clip_letters], dtype=np.int64)
    borders = np.zeros(len(owner) + 1, np.bool_)
    borders[[0, *ends]] = True
    written, spoken = _joined(unit_letters), _joined(clip_letters)
    matches = _align(written, spoken, borders)
    matches[(matches >= 0) & (written != np.append(spoken, 0)[matches])] = -1  # a wrong letter may be of another clip
    clip_of_unit = _clips_of_units(unit_letters, matches, owner)
    shared = _fill(clip_of_unit, unit_letters, clip_letters, durations_s)
    owner_of_letter = np.repeat(clip_of_unit, [len(letters) for letters in unit_letters])
    edges = [*(start for start, _ in units), len(text)]
    parts = []
    for clip, transcript in enumerate(clip_letters):
        rows = np.flatnonzero(clip_of_unit == clip)
        own = one_line(text[edges[rows[0]] : edges[rows[-1] + 1]]) if len(rows) else ""
        heard = np.arange(ends[clip] - len(transcript), ends[clip])
        confidence = _agreement(_joined([unit_letters[row] for row in rows]), transcript)
        parts.append(Part(own, confidence, _edges_agree(matches[owner_of_letter == clip], heard, transcript)))
    uncertain = {clip for pair in shared if min(parts[clip].confidence for clip in pair) >= _POOR for clip in pair}
    for clip, part in enumerate(parts):
        if part.confidence < _POOR:
            clip_of_unit[clip_of_unit == clip] = -1
            parts[clip] = Part("", 0.0, False)
        elif clip in uncertain:
            parts[clip] = part._replace(edges_agree=False)
    return Division(parts, list(_passages(text, edges, clip_of_unit, unit_letters)))


def agreement(text: str, transcript: str) -> float:
    """Returns 1 minus the edits per letter between a text and its transcript; 0 if neither has letters."""
    return _agreement(_letters(text), _letters(transcript))


def _agreement(first: Letters, second: Letters) -> float:
    longest = max(len(first), len(second))
    return round(1 - _edits(first, second) / longest, 3) if longest else 0.0


def _letters(text: str) -> Letters:
    folded = comparable_text(text)
    return np.array([ord(character) for character in folded if character.isalnum()], np.int32)


def _joined(letters: Sequence[Letters]) -> Letters:
    return np.concatenate([np.zeros(0, np.int32), *letters])


def _passages(
    text: str, edges: Sequence[int], clip_of_unit: NDArray[np.int64], unit_letters: Sequence[Letters]
) -> Iterator[str]:
    starts = [row for row in range(len(clip_of_unit)) if row == 0 or clip_of_unit[row] != clip_of_unit[row - 1]]
    for start, end in pairwise([*starts, len(clip_of_unit)]):
        if clip_of_unit[start] < 0 and any(len(letters) for letters in unit_letters[start:end]):
            yield one_line(text[edges[start] : edges[end]])


def _clips_of_units(
    unit_letters: Sequence[Letters], matches: NDArray[np.int64], owner: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns the clip with which most letters of each unit are aligned, (units,); -1 if none is."""
    clips, position = np.full(len(unit_letters), -1), 0
    for row, letters in enumerate(unit_letters):
        aligned = matches[position : position + len(letters)]
        position += len(letters)
        found = owner[aligned[aligned >= 0]]
        if len(found):
            clips[row] = Counter(found.tolist()).most_common(1)[0][0]
    return clips


def _fill(
    clips: NDArray[np.int64],
    unit_letters: Sequence[Letters],
    clip_letters: Sequence[Letters],
    durations_s: Sequence[float],
) -> list[tuple[int, int]]:
    """Assigns units that are aligned with no clip, if both neighbours are of one clip, or if they are a short word.

    Returns:
        Pairs of clips with words between them that may belong to either.
    """
    shared: list[tuple[int, int]] = []
    known = np.flatnonzero(clips >= 0)
    for left, right in pairwise(known.tolist()):
        first, second = int(clips[left]), int(clips[right])
        if first == second:
            clips[left + 1 : right] = first
            continue
        missing = sum(len(letters) for letters in unit_letters[left + 1 : right])
        pace_s = [durations_s[clip] / max(1, len(clip_letters[clip])) for clip in (first, second)]
        slower = first if pace_s[0] > pace_s[1] else second
        if missing < _EDGE_LETTERS:
            clips[left + 1 : right] = slower if missing else first  # without letters: a dash, say
        elif missing < _PASSAGE_LETTERS:
            number = (
                missing <= _number_letters(clip_letters[first][::-1]),
                missing <= _number_letters(clip_letters[second]),
            )
            if number[0] == number[1]:
                shared.append((first, second))
            else:
                clips[left + 1 : right] = first if number[0] else second
    # A sign without letters after the last word of a clip.
    for row in range(1, len(clips)):
        if clips[row] < 0 and not len(unit_letters[row]):
            clips[row] = clips[row - 1]
    return shared


def _number_letters(letters: Letters) -> int:
    """Returns how many letters the number with which a transcript begins may have in words; 0 if there is none."""
    others = np.flatnonzero([not chr(letter).isdigit() for letter in letters.tolist()])
    return _LETTERS_PER_DIGIT * int(others[0] if len(others) else len(letters))


def _edges_agree(matches: NDArray[np.int64], heard: NDArray[np.int64], transcript: Letters) -> bool:
    """Returns whether a part, given the match of each of its letters, begins and ends where its transcript does.

    Args:
        matches: index of the letter that each is aligned with, (R,).
        heard: indices of the transcript's letters, (H,).
        transcript: its letters, (H,).
    """
    aligned = np.isin(matches, heard)
    of = np.isin(heard, matches)
    if not aligned.any():
        return False
    leading = abs(int(aligned.argmax()) - int(of.argmax()))
    trailing = abs(int(aligned[::-1].argmax()) - int(of[::-1].argmax()))
    return leading < _EDGE_LETTERS + _number_letters(transcript) and trailing < _EDGE_LETTERS + _number_letters(
        transcript[::-1]
    )


# Alignment of letters


def _align(text: Letters, spoken: Letters, borders: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the index in ``spoken``, (H,), that each letter of ``text``, (R,), is aligned with; -1 for none: (R,).

    Args:
        text: letters of the text.
        spoken: letters of the transcripts.
        borders: whether a clip ends before each letter of ``spoken``, and after the last one, (H + 1,).
    """
    matches = np.full(len(text), -1)
    _align_box(_Box(text, spoken, borders, 0, 0), matches, _ANCHOR_LETTERS)
    return matches


class _Box(NamedTuple):
    """A passage of the text, and one of the transcripts."""

    text: Letters
    spoken: Letters
    borders: NDArray[np.bool_]
    first: int
    """Where the passage begins in the text."""
    second: int
    """Where the other one begins in the transcripts."""

    def part(self, begin: tuple[int, int], end: tuple[int, int]) -> "_Box":
        """Returns the passages between two pairs of letters."""
        (row, column), (last_row, last_column) = begin, end
        return _Box(
            self.text[row:last_row],
            self.spoken[column:last_column],
            self.borders[column : last_column + 1],
            self.first + row,
            self.second + column,
        )


def _align_box(box: _Box, matches: NDArray[np.int64], lengths: Sequence[int]) -> None:
    text, spoken = box.text, box.spoken
    if not len(text) or not len(spoken):
        return
    if not lengths or len(text) * len(spoken) < _MAX_CELLS // 1000:
        if (len(text) + 1) * (len(spoken) + 1) <= _MAX_CELLS:
            found = _gotoh(text, spoken, box.borders, (_MATCH, _MISMATCH, _OPEN, _EXTEND, _BORDER))
            matches[box.first : box.first + len(text)] = np.where(found >= 0, found + box.second, -1)
        return
    length, before = lengths[0], (0, 0)
    anchors = _anchors(box, length)
    for at, of in [*anchors, (len(text), len(spoken))]:
        if at >= before[0] and of >= before[1]:
            _align_box(box.part(before, (at, of)), matches, lengths[1:])
        elif at - before[0] != of - before[1]:
            continue  # overlaps the anchor before on another diagonal
        if at < len(text):
            start = box.first + at
            matches[start : start + length] = np.arange(box.second + of, box.second + of + length)
            before = (at + length, of + length)


def _anchors(box: _Box, length: int) -> list[tuple[int, int]]:
    """Returns positions of sequences that occur once in both, within a clip, increasing in both."""
    here, there = _unique_sequences(box.text, length), _unique_sequences(box.spoken, length)
    ended = np.cumsum(box.borders)
    pairs = sorted(
        (position, there[sequence])
        for sequence, position in here.items()
        if sequence in there and ended[there[sequence] + length - 1] == ended[there[sequence]]
    )
    tails: list[int] = []
    last_of: list[int] = []
    previous = [-1] * len(pairs)
    for row, (_, position) in enumerate(pairs):  # the longest increasing subsequence
        place = bisect_left(tails, position)
        previous[row] = last_of[place - 1] if place else -1
        tails[place : place + 1] = [position]
        last_of[place : place + 1] = [row]
    chain, row = [], last_of[-1] if last_of else -1
    while row >= 0:
        chain.append(pairs[row])
        row = previous[row]
    return chain[::-1]


def _unique_sequences(letters: Letters, length: int) -> dict[bytes, int]:
    content, size = letters.tobytes(), letters.itemsize
    found: dict[bytes, int] = {}
    for position in range(len(letters) - length + 1):
        sequence = content[position * size : (position + length) * size]
        found[sequence] = -1 if sequence in found else position
    return {sequence: position for sequence, position in found.items() if position >= 0}


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _backtrack(table: NDArray[np.uint8], state: int) -> NDArray[np.int64]:
    """Returns the result of :func:`_gotoh`, given its table and the last state."""
    i, j = table.shape[0] - 1, table.shape[1] - 1
    found = np.full(i, -1, np.int64)
    while i > 0 or j > 0:
        flags = table[i, j]
        if state == 0:
            i, j = i - 1, j - 1
            found[i] = j
            state = flags & 3
        elif state == 1:
            i -= 1
            if not flags & 4:
                state = 2 if flags & 16 else 0
        else:
            j -= 1
            if not flags & 8:
                state = 1 if flags & 32 else 0
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gotoh(
    text: Letters,
    spoken: Letters,
    borders: NDArray[np.bool_],
    scores: tuple[float, float, float, float, float],
) -> NDArray[np.int64]:
    """Returns the index in ``spoken`` of each letter of ``text`` in the best global alignment; -1 for none.

    ``scores``: of a match, a mismatch, the first and each further letter of a gap, and a gap's end at a border.

    The table has a byte for each pair: bits 0-1 the state (0 pair, 1 gap in spoken, 2 gap in text) from which a pair
    comes, bit 2 whether a gap in spoken is continued, bit 3 whether a gap in text is; bits 4 and 5 whether these gaps
    follow one in the other.
    """
    match, mismatch, gap_open, gap_extend, border = scores
    rows, columns = len(text), len(spoken)
    table = np.zeros((rows + 1, columns + 1), np.uint8)
    low = -1e30
    pair = np.full(columns + 1, low)
    skip_text = np.full(columns + 1, low)
    skip_spoken = np.full(columns + 1, low)
    pair[0] = 0.0
    for j in range(1, columns + 1):
        skip_spoken[j] = gap_open + (j - 1) * gap_extend + border * borders[0]
        table[0, j] = 8 if j > 1 else 0
    for i in range(1, rows + 1):
        diagonal = (pair[0], skip_text[0], skip_spoken[0])
        opened, continued = pair[0] + gap_open + 2 * border * borders[0], skip_text[0] + gap_extend
        table[i, 0] = 4 if continued > opened else 0
        skip_text[0] = max(opened, continued)
        pair[0] = low
        for j in range(1, columns + 1):
            above = (pair[j], skip_text[j], skip_spoken[j])
            state, best = 0, diagonal[0]
            if diagonal[1] > best:
                state, best = 1, diagonal[1]
            if diagonal[2] + border * borders[j - 1] > best:
                state, best = 2, diagonal[2] + border * borders[j - 1]
            flags = state
            closed = above[2] + border * borders[j]
            opened, continued = max(above[0], closed) + gap_open + 2 * border * borders[j], above[1] + gap_extend
            if continued > opened:
                flags |= 4
            elif closed > above[0]:
                flags |= 16
            skip_text[j] = max(opened, continued)
            pair[j] = best + (match if text[i - 1] == spoken[j - 1] else mismatch)
            opened = max(pair[j - 1], skip_text[j - 1]) + gap_open + border * borders[j - 1]
            continued = skip_spoken[j - 1] + gap_extend
            if continued > opened:
                flags |= 8
            elif skip_text[j - 1] > pair[j - 1]:
                flags |= 32
            skip_spoken[j] = max(opened, continued)
            table[i, j] = flags
            diagonal = above
    ends = (pair[columns], skip_text[columns], skip_spoken[columns] + border * borders[columns])
    state = 0
    if ends[1] > ends[0]:
        state = 1
    if ends[2] > ends[state]:
        state = 2
    found: NDArray[np.int64] = _backtrack(table, state)
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _edits(first: Letters, second: Letters) -> int:
    """Returns the number of insertions, deletions and substitutions between two sequences."""
    row = np.arange(len(second) + 1)
    for i in range(len(first)):
        diagonal, row[0] = row[0], i + 1
        for j in range(len(second)):
            above = row[j + 1]
            row[j + 1] = min(min(row[j], above) + 1, diagonal + (first[i] != second[j]))
            diagonal = above
    return int(row[-1])
