"""Finds recordings that occur twice: equal samples, or nearly the same sound."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_LENGTH_TOLERANCE = 0.03
"""Copies differ in the length of their speech by less: encoders pad, and the threshold of silence is met elsewhere."""
_BLOCK_CLIPS = 1024
_MIN_SPEECH_S = 1.0
"""Single words of a speaker sound alike."""


def equal_recordings(digests: Sequence[int]) -> list[list[int]]:
    """Returns groups of rows with equal digests; 0 is none."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        if digest:
            rows[digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def similar_recordings(
    fingerprints: NDArray[np.float16], speech_s: NDArray[np.float32], similarity: float
) -> Iterator[tuple[int, int, float]]:
    """Yields pairs of rows, the lower one first, whose fingerprints are at least this similar.

    Only clips with nearly the same length of speech are compared, block by block.

    Args:
        fingerprints: (clips, size), of unit length.
        speech_s: length of the speech, (clips,); NaN for clips to leave out.
        similarity: cosine of the angle.
    """
    order = np.argsort(speech_s, kind="stable")
    order = order[speech_s[order] >= _MIN_SPEECH_S]  # NaN is not
    lengths = speech_s[order]
    ends = np.searchsorted(lengths, lengths * (1 + _LENGTH_TOLERANCE), side="right")
    for start in range(0, len(order), _BLOCK_CLIPS):
        stop = min(start + _BLOCK_CLIPS, len(order))
        block = fingerprints[order[start:stop]].astype(np.float32)
        for other in range(start, int(ends[stop - 1]), _BLOCK_CLIPS):
            columns = slice(other, min(other + _BLOCK_CLIPS, int(ends[stop - 1])))
            similarities = block @ fingerprints[order[columns]].astype(np.float32).T
            for i, j in np.argwhere(similarities >= similarity).tolist():
                if start + i < other + j < ends[start + i]:
                    first, second = sorted((int(order[start + i]), int(order[other + j])))
                    yield first, second, float(similarities[i, j])
