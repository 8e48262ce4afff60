"""Compiles the parts of an update with fixed shapes: decoder and discriminators, which receive segments of one length.

Text encoder, posterior encoder and flow stay eager: their input length differs per batch and would cause recompilation.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.utils.errors import ConfigError


class PlainWeightNorm(nn.Module):
    """``g v / |v|`` over all but the first dimension (Salimans & Kingma 2016), built from fusible operations.

    PyTorch's implementation is a single opaque operation whose compiled backward fails for a wide two-dimensional
    convolution on a GPU (pytorch#165749). Parameters, their names and their semantics are unchanged.
    """

    def forward(self, magnitude: Tensor, direction: Tensor) -> Tensor:
        """Returns the weight for ``g`` (O, 1, ...) and ``v`` (O, ...)."""
        dimensions = tuple(range(1, direction.dim()))
        return direction * (magnitude * direction.square().sum(dimensions, keepdim=True).rsqrt())

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``g`` and ``v`` for a weight."""
        return weight.square().sum(tuple(range(1, weight.dim())), keepdim=True).sqrt(), weight


def compile_fixed_shapes(generator: Generator, discriminator: Discriminator | None) -> None:
    """Compiles the decoder, for training only, and the discriminators on their first calls. Modifies both in place.

    A batch of another size triggers one recompilation with dynamic size. Exceeding
    ``torch._dynamo.config.recompile_limit`` raises instead of silently falling back to eager mode.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = 32  # grad mode, frozen parameters, full and partial batches
    # DDP would split the compiled parts at the limits of its buckets, which it does not support with a static graph.
    torch._dynamo.config.optimize_ddp = False
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


def as_compile_error(error: RuntimeError) -> ConfigError | None:
    """Converts an error of the compiler to a ``ConfigError``; returns None for other errors."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - costs a second at start-up

    if not isinstance(error, TorchDynamoException):
        return None
    return ConfigError(
        f"--compile: the compiler failed ({type(error).__name__}: {' '.join(str(error).split())[:300]}). It needs a "
        "C++ compiler (g++), and Triton on a GPU. Omit --compile to train without it."
    )
