"""config.json of a voice: types and ranges of its values, and whether its weights file has as many weights."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import torch
from huggingface_hub.errors import StrictDataclassError
from msgspec import Meta
from transformers import VitsConfig, VitsModel
from transformers.activations import ACT2FN

from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.records import TensorFile, check

Layers = Annotated[int, Meta(ge=1, le=256)]
Channels = Annotated[int, Meta(ge=1, le=2**16)]
Kernel = Annotated[int, Meta(ge=1, le=1024)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Scale = Annotated[float, Meta(ge=0, le=100)]
_MAX_DILATION = 2**16
_UNSAVED_VALUES = 2**20
"""Weights that a file may lack, such as buffers and folded weight norm."""


class VoiceConfig(TypedDict, total=False):
    """Fields of ``transformers.VitsConfig``, which describes them, and two of this package. The ranges are wide."""

    vocab_size: Annotated[int, Meta(ge=1, le=2**20)]
    hidden_size: Channels
    num_hidden_layers: Layers
    num_attention_heads: Layers
    window_size: Annotated[int, Meta(ge=0, le=2**12)]
    use_bias: bool
    ffn_dim: Channels
    layerdrop: Fraction
    ffn_kernel_size: Kernel
    flow_size: Channels
    spectrogram_bins: Annotated[int, Meta(ge=2, le=2**16)]
    hidden_act: str
    hidden_dropout: Fraction
    attention_dropout: Fraction
    activation_dropout: Fraction
    initializer_range: Scale
    layer_norm_eps: Annotated[float, Meta(gt=0, le=1)]
    use_stochastic_duration_prediction: bool
    num_speakers: Annotated[int, Meta(ge=0, le=2**20)]
    speaker_embedding_size: Annotated[int, Meta(ge=0, le=2**16)]
    upsample_initial_channel: Channels
    upsample_rates: Annotated[list[Kernel], Meta(min_length=1, max_length=16)]
    upsample_kernel_sizes: Annotated[list[Kernel], Meta(min_length=1, max_length=16)]
    resblock_kernel_sizes: Annotated[list[Kernel], Meta(min_length=1, max_length=16)]
    resblock_dilation_sizes: Annotated[
        list[Annotated[list[Kernel], Meta(min_length=1, max_length=16)]], Meta(min_length=1, max_length=16)
    ]
    leaky_relu_slope: Scale
    depth_separable_channels: Annotated[int, Meta(ge=2, le=2)]
    depth_separable_num_layers: Annotated[int, Meta(ge=1, le=10)]
    duration_predictor_flow_bins: Layers
    duration_predictor_tail_bound: Annotated[float, Meta(gt=0, le=1000)]
    duration_predictor_kernel_size: Annotated[int, Meta(ge=1, le=31)]
    duration_predictor_dropout: Fraction
    duration_predictor_num_flows: Layers
    duration_predictor_filter_channels: Channels
    prior_encoder_num_flows: Layers
    prior_encoder_num_wavenet_layers: Layers
    posterior_encoder_num_wavenet_layers: Layers
    wavenet_kernel_size: Kernel
    wavenet_dilation_rate: Annotated[int, Meta(ge=1, le=16)]
    wavenet_dropout: Fraction
    speaking_rate: Annotated[float, Meta(ge=0.01, le=100)]
    noise_scale: Scale
    noise_scale_duration: Scale
    sampling_rate: Annotated[int, Meta(ge=1000, le=192_000)]
    pad_token_id: Annotated[int, Meta(ge=0, le=2**20)] | None
    speakers: Annotated[list[str], Meta(max_length=2**20)] | None
    resblock_type: Annotated[int, Meta(ge=1, le=2)]
    """2: the decoder's blocks are doubled blocks of type 2 (``models/type2_decoder``), and are trained as these."""


def voice_config(values: Mapping[str, Any], source: object, remedy: str) -> VitsConfig:
    """Returns the configuration of a voice with these values; others than those of :class:`VoiceConfig` are ignored.

    Args:
        values: content of config.json.
        source: its path, for messages.
        remedy: what the user can do, as a sentence.

    Raises:
        ModelError: a value has another type, is out of range, or does not fit the others.
    """
    known = check(dict(values), source, VoiceConfig, ModelError, remedy)
    speakers, resblock_type = known.pop("speakers", None), known.pop("resblock_type", 1)
    try:
        config = VitsConfig(**known)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ModelError(f"{source}: {' '.join(str(error).split())[:200]}. {remedy}") from error
    if speakers:
        config.speakers = speakers
    if resblock_type != 1:
        config.resblock_type = resblock_type
    problem = _conflict(config)
    if problem:
        raise ModelError(f"{source}: {problem}. {remedy}")
    return config


def _conflict(config: VitsConfig) -> str:
    """Describes the first value that does not fit the others; empty if there is none."""
    size, heads, rates = config.hidden_size, config.num_attention_heads, config.upsample_rates
    dilation = config.wavenet_dilation_rate ** (
        max(config.prior_encoder_num_wavenet_layers, config.posterior_encoder_num_wavenet_layers) - 1
    )
    conflicts = {
        f"field hidden_size: expected an even multiple of num_attention_heads {heads}, found {size}": size % heads == 0
        and size % 2 == 0,
        f"field flow_size: expected an even number, found {config.flow_size}": config.flow_size % 2 == 0,
        f"field hidden_act: expected an activation of transformers, such as relu, found {config.hidden_act!r}": (
            config.hidden_act in ACT2FN
        ),
        f"field upsample_kernel_sizes: expected {len(rates)} sizes of at least upsample_rates {list(rates)}, found "
        f"{list(config.upsample_kernel_sizes)}": len(config.upsample_kernel_sizes) == len(rates)
        and all(kernel >= rate for kernel, rate in zip(config.upsample_kernel_sizes, rates, strict=True)),
        f"field upsample_rates: expected a product of at most 8192, found {list(rates)}": math.prod(rates) <= 8192,
        f"field resblock_dilation_sizes: expected {len(config.resblock_kernel_sizes)} lists": len(
            config.resblock_dilation_sizes
        )
        == len(config.resblock_kernel_sizes),
        f"field upsample_initial_channel: expected a multiple of {2 ** len(rates)}, found "
        f"{config.upsample_initial_channel}": config.upsample_initial_channel % 2 ** len(rates) == 0,
        f"field wavenet_dilation_rate: {config.wavenet_dilation_rate} is too large for so many WaveNet layers": (
            dilation <= _MAX_DILATION
        ),
        "field speaker_embedding_size: expected at least 1 for several speakers, found 0": (
            config.num_speakers <= 1 or config.speaker_embedding_size > 0
        ),
    }
    return next((message for message, holds in conflicts.items() if not holds), "")


def require_size(config: VitsConfig, header: TensorFile, source: object) -> None:
    """Raises :class:`ModelError` if the voice needs more memory than its weights file accounts for."""
    with torch.device("meta"):
        model = VitsModel(config)
    values = sum(parameter.numel() for parameter in model.parameters())
    if values > 2 * header.values + _UNSAVED_VALUES:
        raise ModelError(
            f"{source}: the configuration describes {values:,} weights, but the file has {header.values:,}. Pass the "
            "config.json and the weights of the same voice."
        )
