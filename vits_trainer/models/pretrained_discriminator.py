"""Loading of pretrained discriminators from a separate file, a voice's directory or a voice's weights file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models import parameter_names
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, load_discriminator
from vits_trainer.models.pretrained import _DISCRIMINATOR_PREFIX, _load_weights, _weights_path
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of
from vits_trainer.utils.records import read_tensor_header


def load_or_create_discriminator(
    voice: str | None, shape: DiscriminatorShape, source: str | None = None
) -> Discriminator:
    """Loads discriminators from ``source``, or else those of ``voice``, or else creates new ones.

    Args:
        voice: a directory or Hub name.
        shape: sizes of new discriminators.
        source: as for :func:`read_discriminator`.

    Raises:
        ModelError: existing discriminators cannot be read.
    """
    if source is not None:
        return read_discriminator(source)
    if voice is not None and has_discriminator(voice):
        return read_discriminator(voice)
    return Discriminator(shape)


def has_discriminator(voice: str) -> bool:
    """Whether a voice has discriminators: a separate file in a local directory, or inside its weights file."""
    return (Path(voice) / DISCRIMINATOR_FILE).is_file() or bool(_embedded_names(voice))


def read_discriminator(source: str) -> Discriminator:
    """Loads discriminators from any supported source.

    Args:
        source: a ``D_*.pth`` of original VITS or MMS; a discriminator.safetensors; or a voice (directory or Hub name)
            with discriminators in a separate file or, as in finetune-hf-vits, inside its weights file.

    Raises:
        ModelError: the source has no discriminators, or they cannot be read or are not VITS discriminators.
    """
    path = Path(source)
    if path.suffix in (".pth", ".pt", ".ckpt"):
        content = safe_pickle.load(path)
        weights = content.get("model", content) if isinstance(content, dict) else {}
        named = {str(name): weight for name, weight in weights.items()} if isinstance(weights, dict) else {}
        return discriminator_from_original(named, source)
    if path.suffix == ".safetensors":
        return load_discriminator(path)
    if (path / DISCRIMINATOR_FILE).is_file():
        return load_discriminator(path / DISCRIMINATOR_FILE)
    if _embedded_names(source):
        embedded = {
            name.removeprefix(_DISCRIMINATOR_PREFIX).replace(".final_conv.", ".conv_post."): weight
            for name, weight in _load_weights(source).items()
            if name.startswith(_DISCRIMINATOR_PREFIX)
        }
        return discriminator_from_original(embedded, source)
    raise ModelError(
        f"{source}: no discriminators found. Pass a D_*.pth, a {DISCRIMINATOR_FILE} or a voice that has one."
    )


def discriminator_from_original(
    content: Mapping[str, Any], source: str, periods: tuple[int, ...] | None = None
) -> Discriminator:
    """Creates discriminators from weights under the original's names, with weight norm or folded.

    Args:
        content: weights by name; other values than tensors are ignored.
        source: name for error messages.
        periods: periods of the discriminators, if a configuration states them.

    Raises:
        ModelError: the weights are not those of VITS discriminators (lists each mismatch), or are NaN or Inf.
    """
    tensors = {name: weight for name, weight in content.items() if isinstance(weight, Tensor)}
    weights = {name: weight.float() for name, weight in parameter_names.with_legacy_weight_norm_names(tensors).items()}
    try:
        shape = parameter_names.discriminator_shape({name: weight.shape for name, weight in weights.items()}, periods)
        with torch.device("meta"):  # compares the shapes before it allocates memory
            expected = Discriminator(shape).state_dict()
        state = parameter_names.from_original_discriminator(weights, expected)
        discriminator = Discriminator(shape)
        discriminator.load_state_dict(state)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    require_finite(weights_of(discriminator), source, "Use the discriminators of an earlier checkpoint.")
    return discriminator


def _embedded_names(voice: str) -> list[str]:
    """Returns the names of discriminator parameters in a voice's weights file."""
    path = _weights_path(voice)
    if path is None:
        return []
    header = read_tensor_header(path, ModelError, "Download or copy the voice again.")
    return [name for name in header.shapes if name.startswith(_DISCRIMINATOR_PREFIX)]
