"""Compatible sampling rates, windows, hop lengths and decoder stages. Imports no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vits_trainer.utils.errors import ConfigError

FRAME_MS = (8.0, 20.0)
"""Shortest and longest allowed frame. A phone spans several frames, and the alignment needs one frame per token."""


@dataclass(frozen=True)
class Framing:
    """A compatible choice of window, hop length and upsampling."""

    n_fft: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]

    @property
    def hop(self) -> int:
        """Hop length in samples."""
        return math.prod(self.upsample_rates)

    @classmethod
    def for_rate(cls, rate_hz: int) -> "Framing":
        """Returns the framing for a sampling rate: VITS's from 12.8 to 32 kHz, half of it below, twice above."""
        if rate_hz < 12800:
            return cls(512, (8, 4, 2, 2), (16, 8, 4, 4))
        if rate_hz <= 32000:
            return cls(1024, (8, 8, 2, 2), (16, 16, 4, 4))
        return cls(2048, (8, 8, 4, 2), (16, 16, 8, 4))

    def __str__(self) -> str:
        """Formats the framing as command-line flags."""
        rates, kernels = (
            str(list(sizes)).replace(" ", "") for sizes in (self.upsample_rates, self.upsample_kernel_sizes)
        )
        return (
            f"--architecture.spectrogram_bins {self.n_fft // 2 + 1} --architecture.upsample_rates {rates} "
            f"--architecture.upsample_kernel_sizes {kernels} (hop {self.hop}, n_fft {self.n_fft})"
        )


def check_framing(
    rate_hz: int, bins: int, rates: Sequence[int], kernels: Sequence[int], channels: int, flag: str = "architecture"
) -> None:
    """Checks that the sizes are compatible.

    Args:
        rate_hz: sampling rate in Hz.
        bins: bins of the linear spectrogram: n_fft / 2 + 1.
        rates: upsampling factors of the decoder's stages. Their product is the hop length.
        kernels: kernel sizes of these stages.
        channels: channels at the decoder's input. Each stage halves them.
        flag: that sets the sizes.

    Raises:
        ConfigError: the sizes are incompatible. The message suggests sizes that fit the sampling rate.
    """
    good = Framing.for_rate(rate_hz)
    given = f"upsample_rates {list(rates)}, upsample_kernel_sizes {list(kernels)}"
    _require(
        flag,
        len(rates) == len(kernels) > 0 and min(rates) > 0,
        f"{given}: needs one kernel size per rate, and rates of at least 1",
        good,
    )
    hop, n_fft = math.prod(rates), 2 * (bins - 1)
    # Under this condition the output of a transposed convolution is exactly `rate` times as long as its input.
    whole = all(kernel >= rate and (kernel - rate) % 2 == 0 for rate, kernel in zip(rates, kernels, strict=True))
    _require(flag, whole, f"{given}: each kernel size minus its rate must be an even number of at least 0", good)
    frame_ms = 1000 * hop / rate_hz
    _require(
        flag,
        FRAME_MS[0] <= frame_ms <= FRAME_MS[1],
        f"sampling_rate {rate_hz} with upsample_rates {list(rates)}: the hop length, their product, is {hop} samples "
        f"or {frame_ms:.1f} ms, but must be {FRAME_MS[0]:g} to {FRAME_MS[1]:g} ms",
        good,
    )
    _require(
        flag,
        2 * hop <= n_fft <= 8 * hop and hop % 2 == 0,
        f"spectrogram_bins {bins}: gives n_fft {n_fft} with a hop length of {hop} (product of upsample_rates "
        f"{list(rates)}). n_fft must be 2 to 8 times the hop length, which must be even; {2 * hop + 1} bins give 4 "
        "times",
        good,
    )
    _require(
        flag,
        channels > 0 and channels % 2 ** len(rates) == 0,
        f"upsample_initial_channel {channels}: must be a multiple of {2 ** len(rates)}, as each of the {len(rates)} "
        "stages halves it",
    )


def check_segment(frames: int, rate_hz: int, n_fft: int, hop: int) -> None:
    """Raises :class:`ConfigError` if a training segment of ``frames`` frames is shorter than one window."""
    if frames * hop < n_fft:
        raise ConfigError(
            f"--segment_frames {frames}: {1000 * frames * hop / rate_hz:.0f} ms are shorter than one window of the "
            f"spectrogram ({n_fft} samples). Must be at least {math.ceil(n_fft / hop)}; VITS uses 32."
        )


def check_reflection(segment_samples: int, n_fft: int, hop: int) -> None:
    """Raises :class:`ConfigError` if a segment is too short to be reflected by a spectrogram discriminator."""
    if (n_fft - hop) // 2 >= segment_samples:
        raise ConfigError(
            f"--discriminator.resolutions: an FFT of {n_fft} samples reflects {(n_fft - hop) // 2} at each end, and a "
            f"segment has {segment_samples}. Raise --segment_frames, or choose a smaller FFT."
        )


def _require(flag: str, holds: bool, what: str, good: Framing | None = None) -> None:
    if not holds:
        raise ConfigError(f"--{flag}.{what}." + (f" Sizes for this rate: {good}." if good else ""))


@dataclass(frozen=True)
class AudioSpec:
    """Spectrogram parameters of a voice. VITS and MMS-TTS: n_fft = window = 1024, hop 256, 80 Slaney mel bands."""

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
        """Reflection padding at each end of a clip, in samples, which gives exactly ``samples // hop`` frames."""
        return (self.n_fft - self.hop) // 2

    @property
    def minimum_frames(self) -> int:
        """Minimum frames of a clip for reflection padding (2 with VITS's sizes)."""
        return self.reflected_samples // self.hop + 1

    def frames(self, samples: int) -> int:
        """Returns the number of whole frames in ``samples`` samples."""
        return samples // self.hop
