"""Compares this package's objective with golden values of the original VITS implementation.

A case is ``NAME.json`` (``config``, ``losses``, gradient norms by original parameter name, ``discriminator_shapes``,
``discriminator_fill``) with ``NAME.safetensors`` (``generator.<original name>`` weights, ``input.*`` tensors, and
``output.z``): one optimisation step in eval mode, with all noise zero and the segments' starts given.

The verdict is about float64. Gradients of leaky ReLUs jump at zero, and the last bit of a convolution or of a Fourier
transform differs between processors: in float32 it moves gradient norms of the reference's sizes by up to 2.6 %. Losses
do not jump, and are compared in float32 too, in which voices are trained.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel

from vits_trainer.config.framing import AudioSpec
from vits_trainer.config.train import LossWeights
from vits_trainer.data.dataset import Batch
from vits_trainer.data.sampler import MicroBatchSpec
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.models.parameter_names import (
    discriminator_name,
    discriminator_shape,
    from_original_discriminator,
    from_original_generator,
    generator_name,
)
from vits_trainer.models.pretrained import with_weight_norm
from vits_trainer.training.objective import Objective, frozen
from vits_trainer.utils.errors import DataError

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
class Kind:
    """What is compared, and how far apart it may be."""

    name: str
    bound: float
    """Greatest error, relative unless ``is_absolute``."""
    zero: float = 0.0
    """Two values that are both below it agree."""
    is_absolute: bool = False


LOSS = Kind("losses in float64", 1e-6)
LOSS_FLOAT32 = Kind("losses in float32", 1e-4)
GRADIENT_NORM = Kind("gradient norms in float64", 1e-4, zero=1e-9)
POSTERIOR = Kind("posterior sample in float64", 1e-8, is_absolute=True)
KINDS = (LOSS, LOSS_FLOAT32, GRADIENT_NORM, POSTERIOR)


@dataclass(frozen=True)
class ComparedValue:
    """One compared number."""

    name: str
    golden: float
    ours: float
    kind: Kind

    @property
    def error(self) -> float:
        """``|ours - golden|``, absolute or as a part of ``|golden|``; 0 below ``zero``, infinite for a NaN."""
        if abs(self.golden) < self.kind.zero and abs(self.ours) < self.kind.zero:
            return 0.0
        difference = abs(self.ours - self.golden)
        error = difference if self.kind.is_absolute else difference / max(abs(self.golden), 1e-30)
        return inf if isnan(error) else error

    @property
    def agrees(self) -> bool:
        """Within the bound."""
        return self.error <= self.kind.bound


@dataclass(frozen=True)
class Case:
    """A golden case, read."""

    name: str
    figures: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def read_cases(directory: Path) -> list[Case]:
    """All cases of a folder.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    cases = []
    for path in sorted(directory.glob("*.json")):
        try:
            cases.append(
                Case(path.stem, json.loads(path.read_text("utf-8")), load_file(path.with_suffix(".safetensors")))
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise DataError(f"{path}: this golden case cannot be read ({error}).") from error
    if not cases:
        raise DataError(f"{directory} holds no golden case (CASE.json beside CASE.safetensors).")
    return cases


def compare_case(case: Case, dtype: torch.dtype = torch.float64) -> list[ComparedValue]:
    """Runs one optimisation step of ``case`` and sets what came of it beside the golden values.

    Args:
        case: what to compute with and to compare with.
        dtype: float64, or float32.

    Returns:
        In float64 the posterior's sample, each loss and each gradient norm; in float32 each loss.

    Raises:
        DataError: the case lacks something.
        ModelError: its weights do not fit the networks that its configuration describes.
    """
    is_exact = dtype == torch.float64
    try:
        generator, discriminator, objective, batch = _build(case, dtype)
        golden_losses = case.figures["losses"]
        golden_norms = (case.figures["generator_gradient_norms"], case.figures["discriminator_gradient_norms"])
        starts, posterior = case.tensors["input.ids_slice"], case.tensors["output.z"]
    except KeyError as error:
        raise DataError(f"golden case {case.name} lacks {error}.") from error
    pair = objective.generator_forward(generator, batch, starts)
    judged = objective.discriminator_losses(discriminator, pair)
    with frozen(discriminator):
        generated = objective.generator_losses(discriminator, pair)
    ours = {f"generator/{name}": loss.item() for name, loss in generated.items()}
    ours |= {f"discriminator/{name}": loss.item() for name, loss in judged.items()}
    kind, suffix = (LOSS, "") if is_exact else (LOSS_FLOAT32, " in float32")
    losses = [
        ComparedValue(name + suffix, value, ours[LOSS_NAMES[name]], kind) for name, value in golden_losses.items()
    ]
    if not is_exact:
        return losses
    for turn in (judged, generated):
        turn["total"].backward()  # type: ignore[no-untyped-call]
    distance = (pair.output.posterior - posterior).abs().max().item()
    translate = partial(generator_name, stochastic_durations=case.figures["config"]["use_sdp"])
    return [
        ComparedValue("posterior sample, greatest difference", 0.0, distance, POSTERIOR),
        *losses,
        *_norms(generator.model, golden_norms[0], translate, "generator"),
        *_norms(discriminator, golden_norms[1], discriminator_name, "discriminator"),
    ]


def fill(name: str, shape: tuple[int, ...], scale: float, weight_g_base: float, shift: int) -> Tensor:
    """The formula that stands in for weights too large to ship: a sine over the elements, its phase from the name."""
    phase = sum(map(ord, name)) % 97 + shift
    k = np.arange(int(np.prod(shape)), dtype=np.float64)
    values = (scale * np.sin(0.61803 * k * (1 + phase / 97) + phase)).astype(np.float32)
    if name.endswith("weight_g"):
        values = np.abs(values) + np.float32(weight_g_base)
    return torch.from_numpy(values.reshape(shape))


def vits_config(golden: Mapping[str, Any]) -> VitsConfig:
    """The original's configuration of a case, in transformers' words."""
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
    config, tensors = case.figures["config"], case.tensors
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

    shapes, formula = case.figures["discriminator_shapes"], case.figures["discriminator_fill"]
    discriminator = Discriminator(discriminator_shape(shapes)).to(dtype).eval()
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
    figures = []
    for name, value in golden.items():
        gradient = parameters[translate(name)].grad
        norm = 0.0 if gradient is None else gradient.norm().item()
        figures.append(ComparedValue(f"{label} gradient {name}", value, norm, GRADIENT_NORM))
    return figures
