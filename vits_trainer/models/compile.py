"""The half of an update whose shapes are fixed, compiled: decoder and discriminators see segments of one length.

Text, posterior and flow stay eager: each batch of theirs has its own length, and would be compiled for itself.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.utils.errors import ConfigError


class PlainWeightNorm(nn.Module):
    """``g v / |v|`` over all but the first dimension (Salimans & Kingma 2016), of operations that can be fused.

    PyTorch's own is one opaque operation, whose backward fails where it is compiled for a wide two-dimensional
    convolution on a GPU (pytorch#165749). Parameters, their names and their meaning are the same.
    """

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """The weight from ``g`` (O, 1, ...) and ``v`` (O, ...)."""
        others = tuple(range(1, direction.dim()))
        return direction * (magnitude * direction.square().sum(others, keepdim=True).rsqrt())

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``g`` and ``v`` for a weight."""
        return weight.square().sum(tuple(range(1, weight.dim())), keepdim=True).sqrt(), weight


def compile_fixed_shapes(generator: Generator, discriminator: Discriminator | None) -> None:
    """Compiles the decoder as training calls it, and the discriminators, at their first calls. Changes both in place.

    A batch of another size is compiled once more, for any size from then on. More kinds of calls than
    ``torch._dynamo.config.recompile_limit`` raise, instead of falling back without a word.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = 32  # grad or none, frozen or not, full batches and the rest
    _with_plain_weight_norm(generator.model.decoder)
    generator.compiled_decoder = torch.compile(generator.model.decoder.forward)
    if discriminator is not None:
        _with_plain_weight_norm(discriminator)
        discriminator.compile()


def _with_plain_weight_norm(network: nn.Module) -> None:
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            weights = cast("nn.ModuleDict", module.parametrizations)["weight"]
            cast("nn.ModuleList", weights)[0] = PlainWeightNorm()


def compiler_failure(error: RuntimeError) -> ConfigError | None:
    """What an error says where it is the compiler's; None if it is another's."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - a second of every start

    if not isinstance(error, TorchDynamoException):
        return None
    return ConfigError(
        f"--compile: the compiler failed ({type(error).__name__}: {' '.join(str(error).split())[:300]}). It needs a "
        "C++ compiler (g++), and Triton on a GPU. Leave --compile out to train without it."
    )
