"""How a voice's sizes go together: rate, window, hop and the decoder's stages. Arithmetic alone, before torch loads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vits_trainer.utils.errors import ConfigError

FRAME_MS = (8.0, 20.0)
"""Shortest and longest frame: a sound lasts several, and the alignment needs one for each character."""


@dataclass(frozen=True)
class Framing:
    """Window, hop and upsampling that were chosen together."""

    n_fft: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]

    @property
    def hop(self) -> int:
        """In samples."""
        return math.prod(self.upsample_rates)

    @classmethod
    def for_rate(cls, rate_hz: int) -> "Framing":
        """For a sampling rate: VITS's own for 16 to 24 kHz; half of it below, twice above."""
        if rate_hz < 12800:
            return cls(512, (8, 4, 2, 2), (16, 8, 4, 4))
        if rate_hz <= 32000:
            return cls(1024, (8, 8, 2, 2), (16, 16, 4, 4))
        return cls(2048, (8, 8, 4, 2), (16, 16, 8, 4))

    def __str__(self) -> str:
        """As flags."""
        rates, kernels = (
            str(list(sizes)).replace(" ", "") for sizes in (self.upsample_rates, self.upsample_kernel_sizes)
        )
        return (
            f"--architecture.spectrogram_bins {self.n_fft // 2 + 1} --architecture.upsample_rates {rates} "
            f"--architecture.upsample_kernel_sizes {kernels} (hop {self.hop}, n_fft {self.n_fft})"
        )


def check_framing(rate_hz: int, bins: int, rates: Sequence[int], kernels: Sequence[int], channels: int) -> None:
    """Sizes that go together.

    Args:
        rate_hz: samples per second.
        bins: of the linear spectrogram: n_fft / 2 + 1.
        rates: of the decoder's upsampling stages; their product is the hop.
        kernels: of these stages.
        channels: at the decoder's entry; each stage halves them.

    Raises:
        ConfigError: they do not; says which would.
    """
    good = Framing.for_rate(rate_hz)
    given = f"upsample_rates {list(rates)}, upsample_kernel_sizes {list(kernels)}"
    _require(len(rates) == len(kernels) > 0 and min(rates) > 0, f"{given}: each rate has its kernel", good)
    hop, n_fft = math.prod(rates), 2 * (bins - 1)
    # A transposed convolution is then as many times longer as its rate says, to the sample.
    whole = all(kernel >= rate and (kernel - rate) % 2 == 0 for rate, kernel in zip(rates, kernels, strict=True))
    _require(whole, f"{given}: a kernel is its rate or larger by an even number, or frames and samples part", good)
    frame_ms = 1000 * hop / rate_hz
    _require(
        FRAME_MS[0] <= frame_ms <= FRAME_MS[1],
        f"sampling_rate {rate_hz} with upsample_rates {list(rates)}: the hop is their product, {hop} samples, and a "
        f"frame {frame_ms:.1f} ms, where {FRAME_MS[0]:g} to {FRAME_MS[1]:g} are good",
        good,
    )
    _require(
        2 * hop <= n_fft <= 8 * hop and hop % 2 == 0,
        f"spectrogram_bins {bins} is an n_fft of {n_fft} samples with a hop of {hop} (the product of upsample_rates "
        f"{list(rates)}): n_fft must be 2 to 8 hops, and the hop even; {2 * hop + 1} bins are 4 hops",
        good,
    )
    _require(
        channels > 0 and channels % 2 ** len(rates) == 0,
        f"upsample_initial_channel {channels} is halved by each of {len(rates)} stages: give a multiple of "
        f"{2 ** len(rates)}",
    )


def check_segment(frames: int, rate_hz: int, n_fft: int, hop: int) -> None:
    """Raises :class:`ConfigError` unless a training segment of so many frames is as long as a window."""
    if frames * hop < n_fft:
        raise ConfigError(
            f"--segment_frames {frames}: {1000 * frames * hop / rate_hz:.0f} ms are shorter than one window of the "
            f"spectrogram ({n_fft} samples). Give {math.ceil(n_fft / hop)} or more; VITS has 32."
        )


def _require(holds: bool, what: str, good: Framing | None = None) -> None:
    if not holds:
        raise ConfigError(f"--architecture.{what}." + (f" Good for this rate: {good}." if good else ""))


@dataclass(frozen=True)
class AudioSpec:
    """How a voice's audio becomes frames. VITS and MMS-TTS: n_fft = window = 1024, hop 256, 80 Slaney mel bands."""

    sampling_rate: int
    n_fft: int = 1024
    window: int = 1024
    hop: int = 256
    mel_bands: int = 80
    mel_min_hz: float = 0.0
    mel_max_hz: float | None = None
    """None: half the sampling rate."""

    @property
    def reflected_samples(self) -> int:
        """Samples reflected at each end of a clip, so that it has exactly ``samples // hop`` frames."""
        return (self.n_fft - self.hop) // 2

    @property
    def minimum_frames(self) -> int:
        """Fewest frames that a clip needs for its ends to be reflected (2 at VITS's sizes)."""
        return self.reflected_samples // self.hop + 1

    def frames(self, samples: int) -> int:
        """Whole frames in a clip of so many samples."""
        return samples // self.hop
