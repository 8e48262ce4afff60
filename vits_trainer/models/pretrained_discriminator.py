"""Trained discriminators: found beside a voice or inside its file, and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.models import parameter_names
from vits_trainer.models.discriminator import DISCRIMINATOR_FILE, Discriminator, load_discriminator
from vits_trainer.models.pretrained import _INSIDE, _file_of, _weights_in_file
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.finite_weights import require_finite, weights_of


def discriminator_for(voice: str | None, fresh: DiscriminatorShape, given: str | None = None) -> Discriminator:
    """The discriminators that are given, or else lie beside a voice or inside its file, or fresh ones.

    Args:
        voice: a folder or Hub name.
        fresh: the sizes of fresh ones.
        given: what :func:`read_discriminator` reads.

    Raises:
        ModelError: there are some and they cannot be read.
    """
    if given is not None:
        return read_discriminator(given)
    if voice is not None and has_discriminator(voice):
        return read_discriminator(voice)
    return Discriminator(fresh)


def has_discriminator(voice: str) -> bool:
    """Whether discriminators lie beside a local voice, or inside the file of a local voice or one of the Hub."""
    return (Path(voice) / DISCRIMINATOR_FILE).is_file() or bool(_names_inside(voice))


def read_discriminator(source: str) -> Discriminator:
    """Discriminators from wherever they come.

    Args:
        source: a ``D_*.pth`` of original VITS or MMS; a discriminator.safetensors; or a voice, a folder or Hub name,
            that has them beside it or inside its file, as finetune-hf-vits has.

    Raises:
        ModelError: there are none, or they cannot be read or are not VITS's.
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
    if _names_inside(source):
        inside = {
            name.removeprefix(_INSIDE).replace(".final_conv.", ".conv_post."): weight
            for name, weight in _weights_in_file(source).items()
            if name.startswith(_INSIDE)
        }
        return discriminator_from_original(inside, source)
    raise ModelError(
        f"{source}: there are no discriminators. Give a D_*.pth, a {DISCRIMINATOR_FILE} or a voice that has one."
    )


def discriminator_from_original(
    given: Mapping[str, Any], source: str, periods: tuple[int, ...] | None = None
) -> Discriminator:
    """Discriminators from their weights under the original's names, with weight norm or folded.

    Args:
        given: weights by name; what is no tensor is left out.
        source: what to call them.
        periods: where a configuration states them.

    Raises:
        ModelError: they are not VITS's, or not finite; each parameter that does not fit is named.
    """
    tensors = {name: weight for name, weight in given.items() if isinstance(weight, Tensor)}
    weights = {name: weight.float() for name, weight in parameter_names.named_as_original(tensors).items()}
    try:
        shape = parameter_names.discriminator_shape({name: weight.shape for name, weight in weights.items()}, periods)
        discriminator = Discriminator(shape)
        discriminator.load_state_dict(parameter_names.from_original_discriminator(weights, discriminator.state_dict()))
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    require_finite(weights_of(discriminator), source, "Take the discriminators of an earlier checkpoint.")
    return discriminator


def _names_inside(voice: str) -> list[str]:
    """Names of the discriminators' parameters inside a voice's own file."""
    path = _file_of(voice)
    if path is None:
        return []
    try:
        with safe_open(path, "pt") as file:
            return [name for name in file.keys() if name.startswith(_INSIDE)]  # noqa: SIM118 - safe_open is no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Download or copy the voice again.") from error
