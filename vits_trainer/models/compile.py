"""Compiles the networks: on a GPU, launching the operations of an eager update takes longer than executing them."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import ForwardParts, Generator
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


def compile_networks(generator: Generator, discriminator: Discriminator | None) -> None:
    """Compiles the parts of the generator, for training only, and the discriminators, on their first calls.

    Decoder and discriminators receive segments of one length and are compiled for it; a batch of another size triggers
    one recompilation. The other parts are compiled once for any length of text and speech. Modifies both networks in
    place. Exceeding ``torch._dynamo.config.recompile_limit`` raises instead of silently falling back to eager mode.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = 32  # grad mode, frozen parameters, full and partial batches
    # DDP would split the compiled parts at the limits of its buckets, which it does not support with a static graph.
    torch._dynamo.config.optimize_ddp = False
    # With ``dynamic``, constants such as epsilons would become symbols, and each part would be traced twice.
    torch._dynamo.config.specialize_float = True
    # Noise and dropout as in eager mode.
    torch._inductor.config.fallback_random = True
    _with_plain_weight_norm(generator)
    parts = {name: torch.compile(part, dynamic=name != "decode") for name, part in generator.parts._asdict().items()}
    generator.parts = ForwardParts(**parts)
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
