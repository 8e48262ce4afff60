"""Parameter names of the original VITS implementation, in the words of this package's networks."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from vits_trainer.errors import ModelError

_WEIGHT_NORM = [
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
]
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


def generator_name(original: str, stochastic_durations: bool = True) -> str:
    """The name in a ``VitsModel`` in training form of the original generator's parameter ``original``.

    Args:
        original: such as ``enc_p.encoder.attn_layers.0.conv_q.weight``.
        stochastic_durations: which duration predictor it is of: both have a ``dp.proj``.
    """
    name = original
    if name.startswith("flow."):  # the original's list of flows holds a flip after each
        name = re.sub(r"(?<=^flow\.flows\.)\d+", lambda index: str(int(index.group()) // 2), name)
    if name.startswith("dp."):
        # likewise, behind one element-wise affine flow
        name = re.sub(r"(?<=flows\.)\d+", lambda index: str((int(index.group()) + 1) // 2), name)
        rules = _DURATION_PREDICTOR if stochastic_durations else [(r"^dp\.", "duration_predictor.")]
        return _rename(name, [*rules, *_NORM])
    return _rename(name, [*_REST, *_NORM, *_WEIGHT_NORM])


def has_stochastic_durations(names: Iterable[str]) -> bool:
    """Whether parameters under the original's names are of a generator with the stochastic duration predictor."""
    return any(name.startswith("dp.flows.") for name in names)


def discriminator_name(original: str) -> str:
    """The name in :class:`~vits_trainer.discriminator.Discriminator` of the original's parameter ``original``."""
    return _rename(original, _WEIGHT_NORM)


def from_original_generator(weights: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the original's names to the state of a ``VitsModel`` in training form (weight norm as g and v).

    Args:
        weights: the original generator's parameters.
        shapes: ``state_dict()`` of the model to fill; its 1x1 convolutions may have become linear layers.

    Raises:
        ModelError: a parameter without a place, of another size, or a place without a parameter; each is named.
    """
    stochastic = has_stochastic_durations(weights)
    converted = {generator_name(name, stochastic): weight for name, weight in weights.items()}
    return _fitted(converted, shapes, "generator")


def from_original_discriminator(weights: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the original's names to the state of a ``Discriminator``.

    Raises:
        ModelError: as :func:`from_original_generator`.
    """
    converted = {discriminator_name(name): weight for name, weight in weights.items()}
    return _fitted(converted, shapes, "discriminator")


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fitted(weights: dict[str, Tensor], shapes: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    problems = [f"{name} has no place" for name in sorted(weights.keys() - shapes.keys())]
    problems += [f"{name} is missing" for name in sorted(shapes.keys() - weights.keys())]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(shapes[name].shape)}"
        for name in sorted(weights.keys() & shapes.keys())
        if weights[name].numel() != shapes[name].numel()
    ]
    if problems:
        raise ModelError(f"These weights do not fit the {network}: {'; '.join(problems)}. Check its configuration.")
    return {name: weight.reshape(shapes[name].shape) for name, weight in weights.items()}
