"""HiFi-GAN decoder with residual blocks of type 2, as in Piper's low and medium quality, and its form in transformers.

transformers only has blocks of type 1, ``x + c2(lrelu(c1(lrelu(x))))``; type 2 is ``x + c(lrelu(x))`` (HiFi-GAN V3).
For a leaky ReLU of slope s, ``y = (lrelu(y) - lrelu(-y)) / (1 + s)``: a block of type 2 equals a block of type 1 with
twice the channels, in which ``c1`` gives y and -y, and ``c2`` is the identity times 1 / (1 + s) and -1 / (1 + s). A
voice is trained with its own blocks, which are 7 times cheaper, and saved with doubled ones.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import VitsConfig, VitsModel
from transformers.models.vits.modeling_vits import VitsHifiGan

from vits_trainer.utils.errors import ModelError


def has_type2_blocks(config: VitsConfig) -> bool:
    """Returns whether the voice was trained with residual blocks of type 2."""
    return getattr(config, "resblock_type", 1) == 2


class Type2ResidualBlock(nn.Module):
    """Dilated convolutions, each with a leaky ReLU before it and a residual connection around it."""

    def __init__(self, channels: int, kernel_size: int, dilations: list[int], leaky_relu_slope: float) -> None:
        super().__init__()
        self.leaky_relu_slope = leaky_relu_slope
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=(kernel_size - 1) * dilation // 2)
            for dilation in dilations
        )

    def apply_weight_norm(self) -> None:
        """Adds weight norm, as transformers' blocks do."""
        for conv in self.convs:
            parametrizations.weight_norm(conv)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        for conv in self.convs:
            hidden = hidden + conv(F.leaky_relu(hidden, self.leaky_relu_slope))
        return hidden


class Type2Decoder(VitsHifiGan):  # type: ignore[misc]
    """transformers' decoder with half the channels of the configuration, and residual blocks of type 2."""

    def __init__(self, config: VitsConfig) -> None:
        narrow = copy.deepcopy(config)
        narrow.upsample_initial_channel //= 2
        super().__init__(narrow)
        slope, sizes = narrow.leaky_relu_slope, (narrow.resblock_kernel_sizes, narrow.resblock_dilation_sizes)
        blocks = [(kernel_size, list(dilations)) for kernel_size, dilations in zip(*sizes, strict=True)]
        self.resblocks = nn.ModuleList(
            Type2ResidualBlock(upsampling.out_channels, kernel_size, dilations, slope)
            for upsampling in self.upsampler
            for kernel_size, dilations in blocks
        )


def with_type2_decoder(model: VitsModel) -> VitsModel:
    """Replaces the doubled decoder of a voice as transformers loads it by its own one. Modifies ``model``.

    Raises:
        ModelError: the blocks are not doubled ones: the voice was trained elsewhere.
    """
    doubled = model.decoder.state_dict()
    with torch.device("meta"):
        decoder = Type2Decoder(model.config)
    narrow = {
        name: doubled[name.replace(".convs.", ".convs1.")][tuple(slice(size) for size in weight.shape)].clone()
        for name, weight in decoder.state_dict().items()
    }
    again = doubled_weights(narrow, model.config)
    wrong = [name for name, weight in doubled.items() if not torch.equal(weight, again[name])]
    if wrong:
        raise ModelError(
            f"config.json states resblock_type 2, but {len(wrong)} weights such as decoder.{wrong[0]} are not those of "
            "doubled blocks: the voice was changed by another program. Remove resblock_type from its config.json to "
            "use it with blocks of type 1."
        )
    decoder.load_state_dict(narrow, assign=True)
    model.decoder = decoder.train(model.training)
    return model


def doubled_weights(weights: Mapping[str, Tensor], config: VitsConfig) -> dict[str, Tensor]:
    """Returns the weights of transformers' decoder that computes the same as a :class:`Type2Decoder`.

    Args:
        weights: of the :class:`Type2Decoder`, without weight norm.
        config: of the voice.
    """
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in VitsHifiGan(config).state_dict().items()}
    factor = 1 / (1 + config.leaky_relu_slope)
    doubled = {}
    for name, shape in shapes.items():
        result = torch.zeros(shape)
        if ".convs2." not in name:
            weight = weights[name.replace(".convs1.", ".convs.")]
            result[tuple(slice(size) for size in weight.shape)] = weight
            if ".convs1." in name:
                inputs = [slice(size) for size in weight.shape[1:]]
                result[(slice(len(weight), None), *inputs)] = -weight
        elif name.endswith(".weight"):
            channels, centre = shape[0] // 2, shape[2] // 2
            identity = torch.eye(channels) * factor
            result[:channels, :, centre] = torch.cat([identity, -identity], dim=1)
        doubled[name] = result
    return doubled
