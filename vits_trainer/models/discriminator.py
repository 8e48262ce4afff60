"""VITS discriminators: one scale and five period discriminators (HiFi-GAN, Kong et al. 2020, section 2.3).

Optionally discriminators on spectrograms (UnivNet, Jang et al. 2021, section 2.2), and one on the hidden states of a
frozen speech encoder (StyleTTS 2, Li et al. 2023, section 3.2.3). Parameter names follow the original
(``discriminators.0.convs.0`` ...), so that its checkpoints load.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from msgspec import Meta
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.config.serialization import to_dict
from vits_trainer.models.precision import at_least_float32
from vits_trainer.models.spectrogram import MAGNITUDE_EPS, hann_window
from vits_trainer.utils.errors import ConfigError, ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of
from vits_trainer.utils.records import parse_json, read_tensor_header, read_tensors

LEAKY_SLOPE = 0.1


class DiscriminatorOutput(NamedTuple):
    """Scores and feature maps of each discriminator; its last feature map contains the scores."""

    scores: list[Tensor]
    """(B, positions) per discriminator."""
    feature_maps: list[list[Tensor]]
    """Activations of each layer, per discriminator."""

    def split(self, clips: int) -> tuple["DiscriminatorOutput", "DiscriminatorOutput"]:
        """Splits the output into the first ``clips`` waveforms of a batch and the rest."""
        return (
            DiscriminatorOutput(
                [s[:clips] for s in self.scores], [[a[:clips] for a in layers] for layers in self.feature_maps]
            ),
            DiscriminatorOutput(
                [s[clips:] for s in self.scores], [[a[clips:] for a in layers] for layers in self.feature_maps]
            ),
        )


class ScaleDiscriminator(nn.Module):
    """Grouped convolutions over the raw waveform."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        widths = [1] + [width // divisor for width in (16, 64, 256, 1024, 1024, 1024)]
        kernels, strides, groups = (15, 41, 41, 41, 41, 5), (1, 4, 4, 4, 4, 1), (1, 4, 16, 64, 256, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(a, b, kernel, stride, padding=kernel // 2, groups=min(group, a)))
            for a, b, kernel, stride, group in zip(widths, widths[1:], kernels, strides, groups, strict=False)
        )
        self.conv_post = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Returns the activations of each layer for (B, 1, N); the last are the scores (B, 1, positions)."""
        return _activations(waveform, self.convs, self.conv_post)


class PeriodDiscriminator(nn.Module):
    """Two-dimensional convolutions over the waveform, reshaped into rows of ``period`` samples."""

    def __init__(self, period: int, divisor: int) -> None:
        super().__init__()
        self.period = period
        widths = [1] + [width // divisor for width in (32, 128, 512, 1024, 1024)]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), padding=(2, 0)))
            for a, b, stride in zip(widths, widths[1:], (3, 3, 3, 3, 1), strict=False)
        )
        self.conv_post = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Returns the activations of each layer for (B, 1, N); the last are the scores (B, 1, positions, period)."""
        batch, channels, samples = waveform.shape
        if samples % self.period:
            waveform = F.pad(waveform, (0, self.period - samples % self.period), "reflect")
        return _activations(waveform.view(batch, channels, -1, self.period), self.convs, self.conv_post)


class SpectrogramDiscriminator(nn.Module):
    """Two-dimensional convolutions over magnitudes of an STFT (UnivNet, Jang et al. 2021, section 2.2)."""

    def __init__(self, n_fft: int, hop: int, window: int, divisor: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.window = n_fft, hop, window
        width = max(1, 32 // divisor)
        kernels, strides = ((3, 9), (3, 9), (3, 9), (3, 9), (3, 3)), (1, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            weight_norm(
                nn.Conv2d(width if layer else 1, width, kernel, (1, stride), padding=(kernel[0] // 2, kernel[1] // 2))
            )
            for layer, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
        )
        self.conv_post = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Returns the activations of each layer for (B, 1, N); the last are the scores (B, 1, bins, positions)."""
        return _activations(self.magnitudes(waveform)[:, None], self.convs, self.conv_post)

    def magnitudes(self, waveform: Tensor) -> Tensor:
        """Returns the STFT's magnitudes of (B, 1, N): (B, n_fft // 2 + 1, N // hop), in at least float32."""
        samples = F.pad(at_least_float32(waveform), 2 * [(self.n_fft - self.hop) // 2], "reflect")[:, 0]
        window = hann_window(self.window, samples.dtype, samples.device)
        with torch.autocast(samples.device.type, enabled=False):
            stft = torch.stft(samples, self.n_fft, self.hop, self.window, window, center=False, return_complex=True)
            return torch.sqrt(stft.real.square() + stft.imag.square() + MAGNITUDE_EPS)


@dataclass(frozen=True)
class EncoderInputs:
    """The hidden states of a speech encoder that a discriminator was trained on."""

    layers: tuple[int, ...]
    """Their numbers; 0 is the input of the encoder's first layer."""
    channels: int
    """Of one hidden state."""
    digest: str
    """SHA-256 of the encoder's weights and of what it expects of a waveform."""


class EncoderDiscriminator(nn.Module):
    """One-dimensional convolutions over the hidden states of a frozen speech encoder.

    The encoder is no submodule: it is neither trained nor saved, nor known to DistributedDataParallel.
    """

    def __init__(self, inputs: EncoderInputs, divisor: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.encoder: Callable[[Tensor], Tensor] | None = None
        """Returns hidden states (B, layers * channels, positions) for (B, 1, N); attached for training."""
        widths = [width // divisor for width in (64, 128, 256, 256)]
        self.projection = weight_norm(nn.Conv1d(len(inputs.layers) * inputs.channels, widths[0], 1))
        self.convs = nn.ModuleList(weight_norm(nn.Conv1d(a, b, 5, padding=2)) for a, b in pairwise(widths))
        self.conv_post = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Returns the activations of each layer for (B, 1, N); the last are the scores (B, 1, positions).

        Raises:
            ModelError: no encoder is attached.
        """
        if self.encoder is None:
            raise ModelError(
                "A discriminator on a speech encoder's hidden states, without the encoder: attach it "
                "(--discriminator_encoder)."
            )
        return _activations(self.projection(self.encoder(waveform)), self.convs, self.conv_post)


class Discriminator(nn.Module):
    """All VITS discriminators, applied to the same waveforms."""

    def __init__(self, shape: DiscriminatorShape | None = None, encoder_inputs: EncoderInputs | None = None) -> None:
        super().__init__()
        self.shape = shape or DiscriminatorShape()
        divisor = self.shape.channels_divisor
        periods = (PeriodDiscriminator(period, divisor) for period in self.shape.periods)
        spectrograms = (SpectrogramDiscriminator(*resolution, divisor) for resolution in self.shape.resolutions)
        self.discriminators = nn.ModuleList([ScaleDiscriminator(divisor), *periods, *spectrograms])
        if encoder_inputs is not None:
            self.discriminators.append(EncoderDiscriminator(encoder_inputs, divisor))

    @property
    def on_encoder(self) -> EncoderDiscriminator | None:
        """The discriminator on a speech encoder's hidden states, always the last one."""
        last = self.discriminators[-1]
        return last if isinstance(last, EncoderDiscriminator) else None

    def replace_on_encoder(self, inputs: EncoderInputs | None) -> None:
        """Removes the discriminator on hidden states, and adds one with random weights unless ``inputs`` is None."""
        if self.on_encoder is not None:
            del self.discriminators[-1]
        if inputs is not None:
            self.discriminators.append(EncoderDiscriminator(inputs, self.shape.channels_divisor))

    def attach_encoder(self, encoder: Callable[[Tensor], Tensor]) -> None:
        """Sets the encoder of the discriminator on hidden states."""
        if self.on_encoder is None:
            raise ValueError("no discriminator reads hidden states")
        self.on_encoder.encoder = encoder

    def add_resolutions(self, resolutions: Iterable[tuple[int, int, int]]) -> bool:
        """Adds spectrogram discriminators with random weights, where missing; returns whether any was."""
        missing = [resolution for resolution in resolutions if resolution not in self.shape.resolutions]
        end = len(self.discriminators) - (self.on_encoder is not None)
        for position, resolution in enumerate(missing, end):
            self.discriminators.insert(position, SpectrogramDiscriminator(*resolution, self.shape.channels_divisor))
        self.shape = replace(self.shape, resolutions=(*self.shape.resolutions, *missing))
        return bool(missing)

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        """Applies all discriminators to (B, 1, N) waveforms."""
        activations = [discriminator(waveform) for discriminator in self.discriminators]
        return DiscriminatorOutput([torch.flatten(layers[-1], 1) for layers in activations], activations)


def _activations(x: Tensor, convs: nn.ModuleList, conv_post: nn.Module) -> list[Tensor]:
    layers = []
    for conv in convs:
        x = F.leaky_relu(conv(x), LEAKY_SLOPE)
        layers.append(x)
    return [*layers, conv_post(x)]


class _Shape(TypedDict):
    """As :class:`DiscriminatorShape`, within which a network is created to compare its weights."""

    periods: Annotated[tuple[Annotated[int, Meta(ge=1, le=1000)], ...], Meta(max_length=32)]
    channels_divisor: Annotated[int, Meta(ge=1, le=16)]
    resolutions: NotRequired[Annotated[tuple[tuple[int, int, int], ...], Meta(max_length=8)]]
    """Absent from files of earlier versions."""


class _EncoderInputs(TypedDict):
    """As :class:`EncoderInputs`."""

    layers: Annotated[tuple[Annotated[int, Meta(ge=0, le=1000)], ...], Meta(min_length=1, max_length=1000)]
    channels: Annotated[int, Meta(ge=1, le=2**16)]
    digest: str


DISCRIMINATOR_FILE = "discriminator.safetensors"


def save_discriminator(discriminator: Discriminator, path: Path) -> None:
    """Writes the discriminators' weights, with their shape in the file's metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in discriminator.state_dict().items()}
    metadata = {"shape": json.dumps(to_dict(discriminator.shape))}
    if discriminator.on_encoder is not None:
        metadata["encoder"] = json.dumps(to_dict(discriminator.on_encoder.inputs))
    save_file(tensors, path, metadata=metadata)


def load_discriminator(path: Path) -> Discriminator:
    """Loads discriminators written by :func:`save_discriminator`, without the encoder of a discriminator on one.

    Raises:
        ModelError: the file is damaged or has other content, or a weight is NaN or Inf.
    """
    remedy = "Delete it to train new ones."
    header = read_tensor_header(path, ModelError, remedy)
    shape = parse_json(header.metadata.get("shape"), f"{path}: shape", _Shape, ModelError, remedy)
    try:
        sizes = DiscriminatorShape(shape["periods"], shape["channels_divisor"], shape.get("resolutions", ()))
    except ConfigError as error:
        raise ModelError(f"{path}: {error} {remedy}") from error
    inputs = None
    if "encoder" in header.metadata:
        inputs = EncoderInputs(
            **parse_json(header.metadata["encoder"], f"{path}: encoder", _EncoderInputs, ModelError, remedy)
        )
    with torch.device("meta"):
        expected = Discriminator(sizes, inputs).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if shapes != header.shapes:
        found = header.shapes
        name = min(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise ModelError(
            f"{path}: cannot load discriminators ({name}: expected {shapes.get(name)}, found {found.get(name)}). "
            f"{remedy}"
        )
    discriminator = Discriminator(sizes, inputs)
    discriminator.load_state_dict(read_tensors(path, ModelError, remedy))
    require_finite(weights_of(discriminator), path, "Delete it to train new discriminators.")
    return discriminator
