"""The check of weights for NaN and infinity that everything calls which reads or writes weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vits_trainer.utils.errors import ModelError, VitsTrainerError

_MOST_NAMED = 10


def require_finite(
    weights: Mapping[str, Tensor], place: object, remedy: str, error: type[VitsTrainerError] = ModelError
) -> None:
    """Refuses weights with NaN or infinity. On a GPU, a sync point for each tensor.

    Args:
        weights: tensors by name, on any device.
        place: where they come from or go to.
        remedy: what to do, as a sentence.
        error: what to raise.

    Raises:
        VitsTrainerError: of the kind ``error``; names the tensors.
    """
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        more = f" and {len(broken) - _MOST_NAMED} more" if len(broken) > _MOST_NAMED else ""
        raise error(f"{place}: NaN or infinity in the weights {', '.join(broken[:_MOST_NAMED])}{more}. {remedy}")


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module`` by name, with the weights that weight norm computes: NaN where a direction is zero."""
    with torch.no_grad():
        computed = {
            f"{name}.weight": layer.weight
            for name, layer in module.named_modules()
            if parametrize.is_parametrized(layer, "weight")
        }
    return {**module.state_dict(), **computed}
