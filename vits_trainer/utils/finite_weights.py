"""Check for NaN and Inf, applied to all weights that are read or written."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vits_trainer.utils.errors import ModelError, VitsTrainerError

_MAX_NAMED = 10


def require_finite(
    weights: Mapping[str, Tensor], location: object, remedy: str, error: type[VitsTrainerError] = ModelError
) -> None:
    """Raises if weights contain NaN or Inf. Synchronizes with the GPU once per tensor.

    Args:
        weights: tensors by name, on any device.
        location: their source or destination, for the message.
        remedy: the remedy, as a sentence.
        error: class of the exception.

    Raises:
        VitsTrainerError: an ``error`` that names the tensors.
    """
    nonfinite = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if nonfinite:
        more = f" and {len(nonfinite) - _MAX_NAMED} more" if len(nonfinite) > _MAX_NAMED else ""
        raise error(f"{location}: NaN or infinity in the weights {', '.join(nonfinite[:_MAX_NAMED])}{more}. {remedy}")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns the state of ``module`` and its computed weight-normalized weights, which are NaN if a direction is
    zero."""
    with torch.no_grad():
        computed = {
            f"{name}.weight": layer.weight
            for name, layer in module.named_modules()
            if parametrize.is_parametrized(layer, "weight")
        }
    return {**module.state_dict(), **computed}
