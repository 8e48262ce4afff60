"""Data of many speakers: whose clips an epoch takes, and how the speakers compare. Arithmetic alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_ONE = 10**6
"""Shares are counted in millionths of a draw: whole numbers, so that machines whose powers differ in the last bit
agree."""


Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SpeakerTemperatureSampler:
    """What each epoch draws: as many clips as there are, a speaker of n clips a share of them like n ** temperature.

    At 1 every clip comes once; at 0 all speakers come alike. A speaker's draws are dealt to its clips evenly: in an
    epoch each comes as often as another, or once more, and the next epoch goes on where this one ended. Which these are
    is a pure function of the seed and the epoch.
    """

    speakers: Sequence[str]
    """Of each training clip."""
    temperature: float
    """From 0 to 1."""
    seed: int

    @property
    def speaker_count(self) -> int:
        """How many there are."""
        return len(self._sizes)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Of each speaker in an epoch's draws, as parts of 1, in the order of their names."""
        return self._millionths / (_ONE * len(self.speakers))

    def quotas(self, epoch: int) -> Counts:
        """Draws of each speaker in an epoch, in the order of their names; in all as many as there are clips.

        By largest remainder. Where remainders tie, the odd draws go round from epoch to epoch.
        """
        whole, remainder = np.divmod(self._millionths, _ONE)
        odd = len(self.speakers) - int(whole.sum())
        turn = (np.arange(len(whole)) - epoch * odd) % len(whole)
        whole[np.lexsort((turn, -remainder))[:odd]] += 1
        return whole

    def draw(self, epoch: int) -> Counts:
        """Places of the clips that an epoch draws, from small to large, each as often as it is drawn."""
        quotas = self.quotas(epoch)
        speaker = np.repeat(np.arange(len(quotas)), quotas)
        number = np.arange(len(speaker)) - (np.cumsum(quotas) - quotas)[speaker]
        before = epoch * self._millionths // _ONE
        first = np.cumsum(self._sizes) - self._sizes
        return np.sort(self._by_speaker[first[speaker] + (before[speaker] + number) % self._sizes[speaker]])

    def __str__(self) -> str:
        """For people: how unequal the speakers are, and what becomes of it."""
        by_size = np.argsort(self._sizes, kind="stable")
        shown = by_size[[-1, (len(by_size) - 1) // 2, 0]]
        largest, median, smallest = self._sizes[shown]
        words = f"{len(by_size)} speakers: clips of the largest {largest}, the median {median}, the smallest {smallest}"
        if self.temperature == 1:
            return words
        drawn, natural = self.shares[shown], self._sizes[shown] / len(self.speakers)
        now, then = (", ".join(f"{100 * part:.2g} %" for part in parts) for parts in (drawn, natural))
        return f"{words}; at temperature {self.temperature:g} they get {now} of an epoch's draws (at 1: {then})"

    @cached_property
    def _speaker_of(self) -> Counts:
        number = {name: number for number, name in enumerate(sorted(set(self.speakers)))}
        return np.array([number[name] for name in self.speakers], dtype=np.int64)

    @cached_property
    def _sizes(self) -> Counts:
        return np.bincount(self._speaker_of)

    @cached_property
    def _millionths(self) -> Counts:
        """Of a draw: each speaker's share of an epoch."""
        weights = np.power(self._sizes, self.temperature, dtype=np.float64)
        millionths: Counts = np.rint(weights / weights.sum() * len(self.speakers) * _ONE).astype(np.int64)
        return millionths

    @cached_property
    def _by_speaker(self) -> Counts:
        """Places speaker by speaker, each speaker's own in random order."""
        shuffled = np.random.default_rng(self.seed).permutation(len(self.speakers))
        placed: Counts = shuffled[np.argsort(self._speaker_of[shuffled], kind="stable")]
        return placed
