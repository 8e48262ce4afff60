"""Temperature-based sampling of speakers: which clips each epoch draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vits_trainer.utils.strings import counted

_ONE = 10**6
"""Shares are integers, in millionths of a draw, so that machines whose power function differs in the last bit agree."""


Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SpeakerTemperatureSampler:
    """Draws as many clips per epoch as there are; a speaker's share is proportional to its clips ** temperature.

    At 1 every clip is drawn once; at 0 all speakers have equal shares. A speaker's draws are spread evenly over its
    clips: within an epoch, clip counts differ by at most one, and the next epoch continues where this one ended. The
    result is a pure function of the seed and the epoch.
    """

    speakers: Sequence[str]
    """Speaker of each training clip."""
    temperature: float
    """From 0 to 1."""
    seed: int

    @property
    def speaker_count(self) -> int:
        """Number of speakers."""
        return len(self._sizes)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Fraction of an epoch's draws per speaker, in the order of their names."""
        return self._millionths / (_ONE * len(self.speakers))

    def quotas(self, epoch: int) -> Counts:
        """Returns the draws per speaker in an epoch, in the order of their names; they sum to the number of clips.

        Uses the largest remainder method. Among equal remainders, the extra draws rotate from epoch to epoch.
        """
        whole, remainder = np.divmod(self._millionths, _ONE)
        extra = len(self.speakers) - int(whole.sum())
        rotation = (np.arange(len(whole)) - epoch * extra) % len(whole)
        whole[np.lexsort((rotation, -remainder))[:extra]] += 1
        return whole

    def draw(self, epoch: int) -> Counts:
        """Returns the indices of the clips that an epoch draws, ascending, repeated as often as drawn."""
        quotas = self.quotas(epoch)
        speaker = np.repeat(np.arange(len(quotas)), quotas)
        number = np.arange(len(speaker)) - (np.cumsum(quotas) - quotas)[speaker]
        before = epoch * self._millionths // _ONE
        first = np.cumsum(self._sizes) - self._sizes
        return np.sort(self._by_speaker[first[speaker] + (before[speaker] + number) % self._sizes[speaker]])

    def __str__(self) -> str:
        """Summary of the imbalance between speakers, and of the effect of the temperature."""
        by_size = np.argsort(self._sizes, kind="stable")
        selected = by_size[[-1, (len(by_size) - 1) // 2, 0]]
        largest, median, smallest = self._sizes[selected]
        sizes = f"largest {counted(int(largest), 'clip')}, median {median}, smallest {smallest}"
        summary = f"{counted(len(by_size), 'speaker')}: {sizes}"
        if self.temperature == 1:
            return summary
        drawn, natural = self.shares[selected], self._sizes[selected] / len(self.speakers)
        shares, natural_shares = (", ".join(f"{100 * part:.2g} %" for part in parts) for parts in (drawn, natural))
        return f"{summary}; at temperature {self.temperature:g} their draws are {shares} (at 1: {natural_shares})"

    @cached_property
    def _speaker_of(self) -> Counts:
        number = {name: number for number, name in enumerate(sorted(set(self.speakers)))}
        return np.array([number[name] for name in self.speakers], dtype=np.int64)

    @cached_property
    def _sizes(self) -> Counts:
        return np.bincount(self._speaker_of)

    @cached_property
    def _millionths(self) -> Counts:
        """Share of each speaker in an epoch, in millionths of a draw."""
        weights = np.power(self._sizes, self.temperature, dtype=np.float64)
        millionths: Counts = np.rint(weights / weights.sum() * len(self.speakers) * _ONE).astype(np.int64)
        return millionths

    @cached_property
    def _by_speaker(self) -> Counts:
        """Clip indices grouped by speaker, shuffled within each speaker."""
        shuffled = np.random.default_rng(self.seed).permutation(len(self.speakers))
        grouped: Counts = shuffled[np.argsort(self._speaker_of[shuffled], kind="stable")]
        return grouped
