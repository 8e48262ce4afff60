"""Sizes of networks that are trained from scratch."""

from dataclasses import dataclass

from vits_trainer.config.framing import check_framing
from vits_trainer.config.ranges import check_ranges, limited
from vits_trainer.utils.errors import require


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the decoder, named as in ``transformers.VitsConfig``. The defaults are those of MMS-TTS."""

    upsample_initial_channel: int = limited(512, 1, 2**16)
    """Channels at the decoder's input."""
    upsample_rates: tuple[int, ...] = limited((8, 8, 2, 2), 1, 1024)
    """Upsampling factors of the decoder's stages. Their product is the hop length, in samples."""
    upsample_kernel_sizes: tuple[int, ...] = limited((16, 16, 4, 4), 0, 1024)
    """Kernel size of each upsampling stage."""
    resblock_kernel_sizes: tuple[int, ...] = limited((3, 7, 11), 1, 1024)
    """Kernel sizes of the decoder's residual blocks."""
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = limited(((1, 3, 5), (1, 3, 5), (1, 3, 5)), 1, 1024)
    """Dilations of the decoder's residual blocks."""

    def check_blocks(self, flag: str) -> None:
        """Raises :class:`ConfigError`, with the name of ``flag``, if the residual blocks' sizes are incompatible."""
        require(
            len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes),
            f"--{flag}.resblock_kernel_sizes {list(self.resblock_kernel_sizes)}: resblock_dilation_sizes must "
            f"have the same length, but has {len(self.resblock_dilation_sizes)}.",
        )


@dataclass(frozen=True)
class Architecture(DecoderShape):
    """Generator sizes, named as in ``transformers.VitsConfig``. The defaults are those of MMS-TTS."""

    sampling_rate: int = limited(16000, 1000, 192_000)
    """Sampling rate of the voice, in Hz."""
    hidden_size: int = limited(192, 2, 2**14)
    """Channels of the text encoder, the WaveNets, the duration predictor and the latent frames."""
    num_hidden_layers: int = limited(6, 1, 256)
    """Transformer layers of the text encoder."""
    num_attention_heads: int = limited(2, 1, 256)
    """Attention heads of the text encoder."""
    ffn_dim: int = limited(768, 1, 2**16)
    """Channels of the text encoder's feed-forward layers."""
    spectrogram_bins: int = limited(513, 2, 2**16)
    """Bins of the linear spectrogram: n_fft / 2 + 1."""
    posterior_encoder_num_wavenet_layers: int = limited(16, 1, 256)
    """WaveNet layers of the posterior encoder."""
    prior_encoder_num_flows: int = limited(4, 1, 256)
    """Coupling layers of the flow."""
    prior_encoder_num_wavenet_layers: int = limited(4, 1, 256)
    """WaveNet layers in each coupling layer."""
    use_stochastic_duration_prediction: bool = True
    """Use the stochastic duration predictor of VITS instead of the deterministic one."""
    duration_predictor_num_flows: int = limited(4, 1, 256)
    """Spline flows of the stochastic duration predictor."""

    def check(self) -> None:
        """Raises :class:`ConfigError` if the sizes are incompatible.

        Not called by ``__post_init__``, because the parser also builds instances with only some of the flags applied.
        """
        check_ranges(self, "architecture.")
        check_framing(
            self.sampling_rate,
            self.spectrogram_bins,
            self.upsample_rates,
            self.upsample_kernel_sizes,
            self.upsample_initial_channel,
        )
        require(
            self.hidden_size % 2 == 0 and self.hidden_size % self.num_attention_heads == 0,
            f"--architecture.hidden_size {self.hidden_size}: must be even (the flow splits it in half) and a multiple "
            f"of num_attention_heads ({self.num_attention_heads}).",
        )
        self.check_blocks("architecture")


@dataclass(frozen=True)
class DiscriminatorShape:
    """Size of the discriminators (VITS: one scale and five period discriminators, 46.7 M parameters)."""

    periods: tuple[int, ...] = limited((2, 3, 5, 7, 11), 1, 1000)
    """Periods of the multi-period discriminators, in samples."""
    channels_divisor: int = limited(1, 1, 16)
    """Divides all channel counts. Pretrained discriminators require 1, the size of VITS."""
    resolutions: tuple[tuple[int, int, int], ...] = ()
    """FFT size, hop length and window of further discriminators on spectrograms, in samples, such as
    [[1024, 120, 600], [2048, 240, 1200], [512, 50, 240]] (UnivNet). Trained from random weights if pretrained
    discriminators lack them."""

    def __post_init__(self) -> None:
        check_ranges(self, "discriminator.")
        require(
            len(self.resolutions) <= 8,
            f"--discriminator.resolutions: must be at most 8, found {len(self.resolutions)}.",
        )
        for n_fft, hop, window in self.resolutions:
            require(
                16 <= n_fft <= 8192 and 1 <= hop <= window <= n_fft and (n_fft - hop) % 2 == 0,
                f"--discriminator.resolutions [{n_fft}, {hop}, {window}]: the FFT size must be 16 to 8192, the window "
                "at most that, the hop length at most the window, and FFT size minus hop length even.",
            )
        require(
            len(self.periods) <= 32, f"--discriminator.periods: must be at most 32 periods, found {len(self.periods)}."
        )
