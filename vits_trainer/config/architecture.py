"""Sizes of the networks that are trained from scratch."""

from dataclasses import dataclass

from vits_trainer.config.framing import check_framing
from vits_trainer.utils.errors import require


@dataclass(frozen=True)
class Architecture:
    """A generator to train from scratch, in the words of ``transformers.VitsConfig``; the defaults are MMS-TTS's."""

    sampling_rate: int = 16000
    """Samples per second of the voice."""
    hidden_size: int = 192
    """Channels of the text encoder, the WaveNets and the duration predictor; also the size of the latent frames."""
    num_hidden_layers: int = 6
    """Transformer layers of the text encoder."""
    num_attention_heads: int = 2
    """Attention heads of the text encoder."""
    ffn_dim: int = 768
    """Channels of the text encoder's feed-forward layers."""
    spectrogram_bins: int = 513
    """Bins of the linear spectrogram: n_fft / 2 + 1."""
    posterior_encoder_num_wavenet_layers: int = 16
    """WaveNet layers of the posterior encoder."""
    prior_encoder_num_flows: int = 4
    """Coupling layers of the flow."""
    prior_encoder_num_wavenet_layers: int = 4
    """WaveNet layers in each coupling layer."""
    use_stochastic_duration_prediction: bool = True
    """Stochastic duration predictor (VITS's own) rather than the plain one."""
    duration_predictor_num_flows: int = 4
    """Spline flows of the stochastic duration predictor."""
    upsample_initial_channel: int = 512
    """Channels at the decoder's entry."""
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    """Upsampling of the decoder's stages; their product is the hop, in samples."""
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4)
    """Kernel of each upsampling stage."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    """Kernels of the decoder's residual blocks."""
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations of the decoder's residual blocks."""

    def check(self) -> None:
        """Raises :class:`ConfigError` where sizes do not go together. Not at once: flags come one after the other."""
        check_framing(
            self.sampling_rate,
            self.spectrogram_bins,
            self.upsample_rates,
            self.upsample_kernel_sizes,
            self.upsample_initial_channel,
        )
        require(
            self.hidden_size % 2 == 0 and self.hidden_size % self.num_attention_heads == 0,
            f"--architecture.hidden_size {self.hidden_size}: the flow halves it and {self.num_attention_heads} "
            "attention heads share it; give a multiple of both.",
        )
        require(
            len(self.resblock_kernel_sizes) == len(self.resblock_dilation_sizes),
            f"--architecture.resblock_kernel_sizes {list(self.resblock_kernel_sizes)}: each has its dilations in "
            f"resblock_dilation_sizes, which are {len(self.resblock_dilation_sizes)}.",
        )


@dataclass(frozen=True)
class DiscriminatorShape:
    """Size of the discriminators (VITS: one over the scale, five over periods; 46.7 M parameters)."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Periods, in samples, of the multi-period discriminators."""
    channels_divisor: int = 1
    """Divides every width; 1 is VITS's size, which pretrained discriminators need."""
