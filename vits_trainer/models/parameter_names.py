"""Translates parameter names and weights between the original VITS implementation and this package."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.utils.errors import ModelError

_G, _V = ".parametrizations.weight.original0", ".parametrizations.weight.original1"

_WEIGHT_NORM = [(r"\.weight_g$", _G), (r"\.weight_v$", _V)]
_WEIGHT_NORM_BACK = [(re.escape(_G) + "$", ".weight_g"), (re.escape(_V) + "$", ".weight_v")]
_NORM = [(r"\.gamma$", ".weight"), (r"\.beta$", ".bias")]
_DURATION_PREDICTOR = [
    (r"^dp\.(post_)?pre\.", r"duration_predictor.\1conv_pre."),
    (r"^dp\.(post_)?proj\.(?=weight|bias)", r"duration_predictor.\1conv_proj."),
    (r"^dp\.(post_)?convs\.", r"duration_predictor.\1conv_dds."),
    (r"^dp\.", "duration_predictor."),
    (r"(flows\.\d+)\.pre\.", r"\1.conv_pre."),
    (r"(flows\.\d+)\.proj\.", r"\1.conv_proj."),
    (r"(flows\.\d+)\.convs\.", r"\1.conv_dds."),
    (r"(flows\.\d+)\.m$", r"\1.translate"),
    (r"(flows\.\d+)\.logs$", r"\1.log_scale"),
    (r"\.convs_sep\.", ".convs_dilated."),
    (r"\.convs_1x1\.", ".convs_pointwise."),
]
_REST = [
    (r"^emb_g\.", "embed_speaker."),
    (r"^enc_p\.emb\.", "text_encoder.embed_tokens."),
    (r"^enc_p\.proj\.", "text_encoder.project."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.conv_([qkv])\.", r"text_encoder.encoder.layers.\1.attention.\2_proj."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.conv_o\.", r"text_encoder.encoder.layers.\1.attention.out_proj."),
    (r"^enc_p\.encoder\.attn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.attention."),
    (r"^enc_p\.encoder\.norm_layers_1\.(\d+)\.", r"text_encoder.encoder.layers.\1.layer_norm."),
    (r"^enc_p\.encoder\.norm_layers_2\.(\d+)\.", r"text_encoder.encoder.layers.\1.final_layer_norm."),
    (r"^enc_p\.encoder\.ffn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.feed_forward."),
    (r"^enc_q\.pre\.", "posterior_encoder.conv_pre."),
    (r"^enc_q\.enc\.", "posterior_encoder.wavenet."),
    (r"^enc_q\.proj\.", "posterior_encoder.conv_proj."),
    (r"^dec\.ups\.", "decoder.upsampler."),
    (r"^dec\.", "decoder."),
    (r"^(flow\.flows\.\d+)\.pre\.", r"\1.conv_pre."),
    (r"^(flow\.flows\.\d+)\.enc\.", r"\1.wavenet."),
    (r"^(flow\.flows\.\d+)\.post\.", r"\1.conv_post."),
]

_DURATION_PREDICTOR_BACK = [
    (r"\.(post_)?conv_(pre|proj)\.", r".\1\2."),
    (r"\.(post_)?conv_dds\.", r".\1convs."),
    (r"\.convs_dilated\.", ".convs_sep."),
    (r"\.convs_pointwise\.", ".convs_1x1."),
    (r"\.translate$", ".m"),
    (r"\.log_scale$", ".logs"),
]
_NORM_BACK = [
    (r"(norms?_\d(?:\.\d+)?|norm_layers_\d\.\d+)\.weight$", r"\1.gamma"),
    (r"(norms?_\d(?:\.\d+)?|norm_layers_\d\.\d+)\.bias$", r"\1.beta"),
]
_REST_BACK = [
    (r"^embed_speaker\.", "emb_g."),
    (r"^text_encoder\.embed_tokens\.", "enc_p.emb."),
    (r"^text_encoder\.project\.", "enc_p.proj."),
    (r"^text_encoder\.encoder\.layers\.(\d+)\.attention\.([qkv])_proj\.", r"enc_p.encoder.attn_layers.\1.conv_\2."),
    (r"^text_encoder\.encoder\.layers\.(\d+)\.attention\.out_proj\.", r"enc_p.encoder.attn_layers.\1.conv_o."),
    (r"^text_encoder\.encoder\.layers\.(\d+)\.attention\.", r"enc_p.encoder.attn_layers.\1."),
    (r"^text_encoder\.encoder\.layers\.(\d+)\.layer_norm\.", r"enc_p.encoder.norm_layers_1.\1."),
    (r"^text_encoder\.encoder\.layers\.(\d+)\.final_layer_norm\.", r"enc_p.encoder.norm_layers_2.\1."),
    (r"^text_encoder\.encoder\.layers\.(\d+)\.feed_forward\.", r"enc_p.encoder.ffn_layers.\1."),
    (r"^posterior_encoder\.conv_(pre|proj)\.", r"enc_q.\1."),
    (r"^posterior_encoder\.wavenet\.", "enc_q.enc."),
    (r"^decoder\.upsampler\.", "dec.ups."),
    (r"^decoder\.", "dec."),
    (r"^(flow\.flows\.\d+)\.conv_(pre|post)\.", r"\1.\2."),
    (r"^(flow\.flows\.\d+)\.wavenet\.", r"\1.enc."),
]
_CONV_TO_LINEAR = re.compile(r"\.conv_[qkvo]\.weight$")
"""1x1 convolutions in the original, linear layers in transformers."""


def generator_name(original: str, stochastic_durations: bool = True) -> str:
    """Returns the name of an original generator parameter in a ``VitsModel`` in training form.

    Args:
        original: for example ``enc_p.encoder.attn_layers.0.conv_q.weight``.
        stochastic_durations: whether the duration predictor is stochastic; both types have a ``dp.proj``.
    """
    name = original
    if name.startswith("flow."):  # the original has a flip after each flow in its list
        name = re.sub(r"(?<=^flow\.flows\.)\d+", lambda index: str(int(index.group()) // 2), name)
    if name.startswith("dp."):
        # same, after one element-wise affine flow
        name = re.sub(r"(?<=flows\.)\d+", lambda index: str((int(index.group()) + 1) // 2), name)
        rules = _DURATION_PREDICTOR if stochastic_durations else [(r"^dp\.", "duration_predictor.")]
        return _rename(name, [*rules, *_NORM])
    return _rename(name, [*_REST, *_NORM, *_WEIGHT_NORM])


def has_stochastic_durations(names: Iterable[str]) -> bool:
    """Whether original parameter names are those of a generator with the stochastic duration predictor."""
    return any(name.startswith("dp.flows.") for name in names)


def original_generator_name(ours: str) -> str:
    """Inverts :func:`generator_name` for both duration predictors, whose names differ in ``VitsModel``."""
    if ours.startswith("flow."):
        ours = re.sub(r"(?<=^flow\.flows\.)\d+", lambda index: str(2 * int(index.group())), ours)
    if ours.startswith("duration_predictor."):
        name = re.sub(r"(?<=flows\.)\d+", lambda index: str(max(0, 2 * int(index.group()) - 1)), ours)
        name = re.sub(r"^duration_predictor\.", "dp.", name)
        return _rename(name, [*_DURATION_PREDICTOR_BACK, *_NORM_BACK])
    return _rename(ours, [*_REST_BACK, *_NORM_BACK, *_WEIGHT_NORM_BACK])


def discriminator_name(original: str) -> str:
    """Returns the name of an original parameter in :class:`~vits_trainer.models.discriminator.Discriminator`."""
    return _rename(original, _WEIGHT_NORM)


def with_legacy_weight_norm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames weight norm to its legacy names ``weight_g`` and ``weight_v``."""
    return {_rename(name, _WEIGHT_NORM_BACK): weight for name, weight in weights.items()}


def from_original_generator(weights: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts original generator weights to the state of a ``VitsModel`` in training form (weight norm as g and v).

    Args:
        weights: parameters of the original generator.
        shapes: ``state_dict()`` of the target model, where some 1x1 convolutions are linear layers.

    Raises:
        ModelError: parameters are unexpected, missing or of another shape; lists each.
    """
    stochastic = has_stochastic_durations(weights)
    converted = {generator_name(name, stochastic): weight for name, weight in weights.items()}
    return match_state_dict(converted, shapes, "generator")


def to_original_generator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts :func:`from_original_generator`: identical values under the original's names and in its shapes."""
    converted = {original_generator_name(name): tensor for name, tensor in state.items()}
    return {name: tensor[..., None] if _CONV_TO_LINEAR.search(name) else tensor for name, tensor in converted.items()}


def from_original_discriminator(weights: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts original discriminator weights to the state of a ``Discriminator``.

    Raises:
        ModelError: as in :func:`from_original_generator`.
    """
    converted = {discriminator_name(name): weight for name, weight in weights.items()}
    return match_state_dict(converted, shapes, "discriminator")


def to_original_discriminator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverts :func:`from_original_discriminator`."""
    return with_legacy_weight_norm_names(state)


def discriminator_shape(
    shapes: Mapping[str, Iterable[int]], periods: tuple[int, ...] | None = None
) -> DiscriminatorShape:
    """Infers the discriminator sizes from parameter shapes under the original's names.

    Args:
        shapes: shapes of all parameters, with or without weight norm.
        periods: periods from the checkpoint's configuration; defaults to the first of those of VITS.

    Raises:
        ModelError: these are not VITS discriminators.
    """
    periods = periods or DiscriminatorShape().periods
    count = len({name.split(".")[1] for name in shapes if name.startswith("discriminators.")})
    first = shapes.get("discriminators.0.convs.0.weight_v", shapes.get("discriminators.0.convs.0.weight"))
    channels = next(iter(first or ()), 0)
    if not channels or count - 1 > len(periods):
        raise ModelError(
            f"These are not VITS discriminators (one scale and up to {len(periods)} period discriminators): found "
            f"{', '.join(sorted(shapes)[:5]) or 'no parameters'}. Pass a D_*.pth of original VITS or MMS."
        )
    return DiscriminatorShape(periods[: count - 1], max(1, 16 // channels))


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def match_state_dict(weights: Mapping[str, Tensor], shapes: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """Reshapes ``weights`` to match a network's state, with weight norm where the network uses it.

    Folded weights are split into g (their norm) and v (the weights), and vice versa, which preserves every output.
    Values are otherwise unchanged.

    Args:
        weights: weights under the network's names.
        shapes: ``state_dict()`` of the network.
        network: name for error messages.

    Raises:
        ModelError: parameters are unexpected, missing or of another shape; lists each.
    """
    weights = _with_weight_norm_as_in(shapes, weights)
    problems = [f"{name} is unexpected" for name in sorted(weights.keys() - shapes.keys())]
    problems += [f"{name} is missing" for name in sorted(shapes.keys() - weights.keys())]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(shapes[name].shape)}"
        for name in sorted(weights.keys() & shapes.keys())
        if _squeezed_shape(weights[name]) != _squeezed_shape(shapes[name])
    ]
    if problems:
        raise ModelError(f"These weights do not match the {network}: {'; '.join(problems)}. Check its configuration.")
    return {name: weight.reshape(shapes[name].shape) for name, weight in weights.items()}


def split_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a weight into weight norm's g, its norm, and v, itself; v is 1 where the norm is 0, to divide by it."""
    norm = torch.norm_except_dim(weight, 2, 0)
    return norm, torch.where(norm == 0, 1.0, weight)


def _squeezed_shape(weight: Tensor) -> list[int]:
    """Returns the shape without dimensions of size 1, whose number may differ between implementations."""
    return [size for size in weight.shape if size > 1]


def _with_weight_norm_as_in(shapes: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    adapted = dict(weights)
    for layer in {name.removesuffix(_G) for name in shapes if name.endswith(_G)}:
        if f"{layer}.weight" in adapted and f"{layer}{_G}" not in adapted:
            weight = adapted.pop(f"{layer}.weight")
            adapted[f"{layer}{_G}"], adapted[f"{layer}{_V}"] = split_weight(weight)
    for layer in {name.removesuffix(_G) for name in weights if name.endswith(_G)}:
        if f"{layer}.weight" in shapes and f"{layer}{_V}" in adapted:
            adapted[f"{layer}.weight"] = torch._weight_norm(adapted.pop(f"{layer}{_V}"), adapted.pop(f"{layer}{_G}"), 0)
    return adapted
