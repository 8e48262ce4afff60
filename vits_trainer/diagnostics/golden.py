"""Compares this package's objective with golden values of the original VITS implementation.

A case is ``NAME.json`` (``config``, ``losses``, gradient norms by original parameter name, ``discriminator_shapes``,
``discriminator_fill``) with ``NAME.safetensors`` (``generator.<original name>`` weights, ``input.*`` tensors, and
``output.z``): one optimisation step in eval mode, with zero noise and fixed segment starts.

Correctness is decided in float64. Leaky ReLU gradients are discontinuous at zero, and the last bit of a convolution or
FFT differs between processors: in float32 this changes gradient norms at the reference's sizes by up to 2.6 %. Losses
are continuous, so they are also compared in float32, the precision of training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isnan
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import Batch
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.diagnostics.replay import require_valid
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.parameter_names import (
    discriminator_name,
    discriminator_shape,
    from_original_discriminator,
    from_original_generator,
    generator_name,
    to_original_discriminator,
)
from vits_trainer.models.pretrained import with_weight_norm
from vits_trainer.training.objective import Objective, frozen
from vits_trainer.utils.errors import DataError
from vits_trainer.utils.records import Count, check, read_json, read_tensors
from vits_trainer.utils.strings import first_line

LOSS_NAMES = {
    "loss_mel": "generator/mel",
    "loss_kl": "generator/kl",
    "loss_duration": "generator/duration",
    "loss_feature_matching": "generator/feature_matching",
    "loss_generator_adversarial": "generator/adversarial",
    "loss_generator_total": "generator/total",
    "loss_discriminator": "discriminator/total",
}


@dataclass(frozen=True)
class ValueKind:
    """A kind of compared value and its tolerance."""

    name: str
    bound: float
    """Largest accepted error, relative unless ``is_absolute``."""
    zero: float = 0.0
    """Two values whose magnitudes are both below it agree."""
    is_absolute: bool = False


LOSS = ValueKind("losses in float64", 1e-6)
LOSS_FLOAT32 = ValueKind("losses in float32", 1e-4)
GRADIENT_NORM = ValueKind("gradient norms in float64", 1e-4, zero=1e-9)
POSTERIOR = ValueKind("posterior sample in float64", 1e-8, is_absolute=True)
KINDS = (LOSS, LOSS_FLOAT32, GRADIENT_NORM, POSTERIOR)

_INVALID = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, StrictDataclassError)
"""Exceptions for invalid values of a case's configuration."""
_LOSSES = "losses"
_NORMS = ("generator_gradient_norms", "discriminator_gradient_norms")


@dataclass(frozen=True)
class ComparedValue:
    """A golden value and the value of this implementation."""

    name: str
    golden: float
    ours: float
    kind: ValueKind

    @property
    def error(self) -> float:
        """``|ours - golden|``, absolute or relative to ``|golden|``; 0 if both are below ``kind.zero``, inf for NaN."""
        if abs(self.golden) < self.kind.zero and abs(self.ours) < self.kind.zero:
            return 0.0
        difference = abs(self.ours - self.golden)
        error = difference if self.kind.is_absolute else difference / max(abs(self.golden), 1e-30)
        return inf if isnan(error) else error

    @property
    def agrees(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.kind.bound


class _Fill(TypedDict):
    scale: float
    weight_g_base: float
    shift: int


class _CaseContent(TypedDict, total=False):
    config: dict[str, Any]
    losses: dict[str, float]
    generator_gradient_norms: dict[str, float]
    discriminator_gradient_norms: dict[str, float]
    discriminator_shapes: dict[str, list[Count]]
    discriminator_fill: _Fill


@dataclass(frozen=True)
class Case:
    """A golden case in memory."""

    name: str
    content: Mapping[str, Any]
    """Content of the JSON file."""
    tensors: Mapping[str, Tensor]
    """Content of the safetensors file."""


def read_cases(directory: Path) -> list[Case]:
    """Reads all golden cases of a directory.

    Raises:
        DataError: there is no case, a case cannot be read or has no losses, a loss has an unknown name, or no case
            has a value of one of the compared kinds.
    """
    cases = []
    for path in sorted(directory.glob("*.json")):
        remedy = "Pass a folder of golden cases."
        content = read_json(path, dict[str, Any], DataError, remedy)
        tensors = read_tensors(path.with_suffix(".safetensors"), DataError, remedy)
        losses = content.get(_LOSSES)
        if not isinstance(losses, dict):
            raise DataError(f"{path}: {_LOSSES}: missing; expected an object with values for {', '.join(LOSS_NAMES)}.")
        unknown = sorted(losses.keys() - LOSS_NAMES.keys())
        if unknown:
            raise DataError(f"{path}: {_LOSSES}: unknown name {unknown[0]!r}; expected one of {', '.join(LOSS_NAMES)}.")
        check(content, path, _CaseContent, DataError, remedy)
        cases.append(Case(path.stem, content, tensors))
    if not cases:
        raise DataError(f"{directory} contains no golden case (CASE.json with CASE.safetensors).")
    _require_values(directory, cases, (_LOSSES,), "at least one loss, such as loss_mel")
    _require_values(directory, cases, _NORMS, "the gradient norm of at least one parameter")
    return cases


def _require_values(directory: Path, cases: Sequence[Case], fields: Sequence[str], expected: str) -> None:
    if not any(case.content.get(field) for case in cases for field in fields):
        files = ", ".join(f"{case.name}.json" for case in cases)
        raise DataError(f"{directory} ({files}): {' and '.join(fields)}: no values in any case; expected {expected}.")


def compare_case(case: Case, dtype: torch.dtype = torch.float64) -> list[ComparedValue]:
    """Runs the optimisation step of ``case`` and compares the results with the golden values.

    Args:
        case: weights, inputs and golden values.
        dtype: float64 or float32.

    Returns:
        In float64 the posterior sample, each loss and each gradient norm; in float32 each loss.

    Raises:
        DataError: a field or a tensor of the case is missing or invalid.
        ModelError: the weights do not match the networks that the case's configuration describes.
    """
    try:
        return _compare(case, dtype)
    except KeyError as error:
        raise DataError(f"golden case {case.name} has no {error}.") from error
    except _INVALID as error:
        raise DataError(f"golden case {case.name} cannot be computed ({first_line(error)}).") from error


def _compare(case: Case, dtype: torch.dtype) -> list[ComparedValue]:
    is_exact = dtype == torch.float64
    generator, discriminator, objective, batch = _build(case, dtype)
    require_valid(batch, generator.model.config, f"golden case {case.name}", DataError)
    golden_losses = case.content[_LOSSES]
    generator_norms, discriminator_norms = (case.content[field] for field in _NORMS)
    starts, posterior = case.tensors["input.ids_slice"], case.tensors["output.z"]
    segments = objective.generator_forward(generator, batch, starts)
    discriminator_losses = objective.discriminator_losses(discriminator, segments)
    with frozen(discriminator):
        generator_losses = objective.generator_losses(discriminator, segments)
    ours = {f"generator/{name}": loss.item() for name, loss in generator_losses.items()}
    ours |= {f"discriminator/{name}": loss.item() for name, loss in discriminator_losses.items()}
    kind, suffix = (LOSS, "") if is_exact else (LOSS_FLOAT32, " in float32")
    losses = [
        ComparedValue(name + suffix, value, ours[LOSS_NAMES[name]], kind) for name, value in golden_losses.items()
    ]
    if not is_exact:
        return losses
    for losses_of_network in (discriminator_losses, generator_losses):
        losses_of_network["total"].backward()  # type: ignore[no-untyped-call]
    distance = (segments.output.posterior - posterior).abs().max().item()
    translate = partial(generator_name, stochastic_durations=case.content["config"]["use_sdp"])
    return [
        ComparedValue("posterior sample, largest difference", 0.0, distance, POSTERIOR),
        *losses,
        *_norms(generator.model, generator_norms, translate, "generator"),
        *_norms(discriminator, discriminator_norms, discriminator_name, "discriminator"),
    ]


def fill(name: str, shape: tuple[int, ...], scale: float, weight_g_base: float, shift: int) -> Tensor:
    """Generates weights that are too large to ship: a sine over the elements, with a phase derived from the name."""
    phase = sum(map(ord, name)) % 97 + shift
    k = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = (scale * np.sin(0.61803 * k * (1 + phase / 97) + phase)).astype(np.float32)
    if name.endswith("weight_g"):
        values = np.abs(values) + np.float32(weight_g_base)
    return torch.from_numpy(values.reshape(shape))


def vits_config(golden: Mapping[str, Any]) -> VitsConfig:
    """Returns the ``VitsConfig`` for the original implementation's configuration of a case."""
    return VitsConfig(
        vocab_size=golden["n_vocab"],
        hidden_size=golden["hidden_channels"],
        flow_size=golden["inter_channels"],
        ffn_dim=golden["filter_channels"],
        ffn_kernel_size=golden["kernel_size"],
        num_attention_heads=golden["n_heads"],
        num_hidden_layers=golden["n_layers"],
        layerdrop=0.0,
        spectrogram_bins=golden["spec_channels"],
        use_stochastic_duration_prediction=golden["use_sdp"],
        num_speakers=max(1, golden["n_speakers"]),
        speaker_embedding_size=golden["gin_channels"],
        upsample_initial_channel=golden["upsample_initial_channel"],
        upsample_rates=golden["upsample_rates"],
        upsample_kernel_sizes=golden["upsample_kernel_sizes"],
        resblock_kernel_sizes=golden["resblock_kernel_sizes"],
        resblock_dilation_sizes=golden["resblock_dilation_sizes"],
        sampling_rate=golden["sampling_rate"],
    )


def _build(case: Case, dtype: torch.dtype) -> tuple[Generator, Discriminator, Objective, Batch]:
    config, tensors = case.content["config"], case.tensors
    spec = AudioSpec(
        sampling_rate=config["sampling_rate"],
        n_fft=config["filter_length"],
        window=config["win_length"],
        hop=config["hop_length"],
        mel_bands=config["n_mel_channels"],
        mel_min_hz=config["mel_fmin"],
        mel_max_hz=config["mel_fmax"],
    )
    model = with_weight_norm(VitsModel(vits_config(config)))
    weights = {name.removeprefix("generator."): t for name, t in tensors.items() if name.startswith("generator.")}
    model.load_state_dict(from_original_generator(weights, model.state_dict()))
    generator = Generator(model.to(dtype), "posterior", config["segment_frames"]).eval()
    generator.noise = torch.zeros_like

    shapes, formula = case.content["discriminator_shapes"], case.content["discriminator_fill"]
    discriminator = Discriminator(discriminator_shape(shapes)).to(dtype).eval()
    expected = {
        name: list(tensor.shape) for name, tensor in to_original_discriminator(discriminator.state_dict()).items()
    }
    if shapes != expected:
        raise DataError(f"golden case {case.name}: discriminator_shapes are not those of VITS.")
    filled = {name: fill(name, tuple(shape), **formula) for name, shape in shapes.items()}
    discriminator.load_state_dict(from_original_discriminator(filled, discriminator.state_dict()))

    batch = Batch(
        tokens=tensors["input.x"],
        token_lengths=tensors["input.xl"],
        waveform=tensors["input.wav"].to(dtype),
        frame_lengths=tensors["input.yl"],
        speaker_ids=tensors.get("input.sid"),
        clip_ids=tuple(f"{case.name}-{i}" for i in range(len(tensors["input.xl"]))),
        audio_s=0.0,
        spec=MicroBatchSpec((), 0, 0, closes_update=True),
        rejections=(),
    )
    return generator, discriminator, Objective("vits", LossWeights(), spec, config["segment_frames"]), batch


def _norms(
    network: nn.Module, golden: Mapping[str, float], translate: Callable[[str], str], label: str
) -> list[ComparedValue]:
    parameters = dict(network.named_parameters())
    values = []
    for name, value in golden.items():
        gradient = parameters[translate(name)].grad
        norm = 0.0 if gradient is None else gradient.norm().item()
        values.append(ComparedValue(f"{label} gradient {name}", value, norm, GRADIENT_NORM))
    return values
