"""Copies of recordings are found, and only these, in any order and number."""

import numpy as np

from vits_trainer.data.quality import duplicates
from vits_trainer.data.quality.duplicates import equal_recordings, similar_recordings


def test_equal_digests_form_groups_and_zero_is_none() -> None:
    assert equal_recordings([5, 0, 7, 5, 0, 9, 7, 5]) == [[0, 3, 7], [2, 6]]


def test_similar_clips_are_found_across_blocks_as_by_comparing_all(monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK_CLIPS", 7)
    rng = np.random.default_rng(0)
    prints = rng.standard_normal((60, 16))
    prints[40] = prints[3] + 0.05 * rng.standard_normal(16)
    prints[59] = prints[3] + 0.05 * rng.standard_normal(16)
    prints[20] = prints[10]
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    lengths = rng.uniform(0.5, 5, 60).astype(np.float32)
    lengths[[40, 59]] = lengths[3] * np.float32(1.02), lengths[3]
    lengths[20] = lengths[10] * np.float32(1.2)  # the same shape, but another duration
    lengths[30] = np.nan
    found = sorted(similar_recordings(prints.astype(np.float16), lengths, 0.95))
    assert [pair[:2] for pair in found] == [(3, 40), (3, 59), (40, 59)]
    assert all(0.95 <= similarity <= 1.01 for _, _, similarity in found)
    assert not list(similar_recordings(prints.astype(np.float16), np.full(60, 0.1, np.float32), 0.95))
