"""New generators, VITS initialisation, and freezing of modules."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import VitsConfig, VitsModel, VitsTokenizer
from transformers.models.vits.modeling_vits import VitsAttention, VitsStochasticDurationPredictor

from vits_trainer.config.architecture import Architecture
from vits_trainer.config.serialization import to_dict
from vits_trainer.models.pretrained import EMBEDDED_SPEAKER_SIZE, untrained
from vits_trainer.utils.errors import ConfigError


def new_model(
    architecture: Architecture, tokenizer: VitsTokenizer, speakers: list[str], layerdrop: float = 0.0
) -> VitsModel:
    """Creates an untrained voice in training form with VITS initialisation (transformers uses Kaiming initialisation).

    Args:
        architecture: network sizes.
        tokenizer: its vocabulary defines the embedding.
        speakers: sorted names, stored in the model configuration; the index of a name is its id.
        layerdrop: probability of skipping a text encoder layer.
    """
    config = VitsConfig(
        vocab_size=len(tokenizer),
        layerdrop=layerdrop,
        flow_size=architecture.hidden_size,
        num_speakers=max(1, len(speakers)),
        speaker_embedding_size=EMBEDDED_SPEAKER_SIZE if len(speakers) > 1 else 0,
        **to_dict(architecture),
    )
    if len(speakers) > 1:
        config.speakers = speakers
    model = untrained(config)
    init_vits_weights(model)
    return model


def init_vits_weights(model: VitsModel) -> None:
    """Applies PyTorch's default initialisation with the exceptions of VITS. Modifies ``model``, in training form.

    Zeros for the last layer of each coupling and spline flow, N(0, C^-0.5) for embeddings, Xavier for attention
    projections. The original asks for N(0, 0.01) in the decoder, too, but without effect: weight norm computes these
    weights from the default ones at the next forward pass (docs/benchmarks.md).
    """
    width = model.config.hidden_size
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)):
            _reset(module)
    for module in model.modules():  # second pass, as an attention module precedes its projections
        if isinstance(module, VitsAttention):
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                nn.init.xavier_uniform_(projection.weight)
            for relative in (module.emb_rel_k, module.emb_rel_v):
                nn.init.normal_(relative, std=(width // model.config.num_attention_heads) ** -0.5)
    nn.init.normal_(model.text_encoder.embed_tokens.weight, std=width**-0.5)
    last_layers = [coupling.conv_post for coupling in model.flow.flows]
    if isinstance(model.duration_predictor, VitsStochasticDurationPredictor):
        splines = [*model.duration_predictor.flows[1:], *model.duration_predictor.post_flows[1:]]
        last_layers += [spline.conv_proj for spline in splines]
    for layer in last_layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    if model.config.num_speakers > 1:
        nn.init.normal_(model.embed_speaker.weight)


def _reset(layer: nn.Conv1d | nn.ConvTranspose1d | nn.Linear) -> None:
    """Applies PyTorch's default, through weight norm if present: there ``weight`` is computed from g and v."""
    if parametrize.is_parametrized(layer, "weight"):
        weight = torch.empty_like(layer.weight)
        nn.init.kaiming_uniform_(weight, a=5**0.5)
        layer.weight = weight
        if layer.bias is not None:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(weight)
            nn.init.uniform_(layer.bias, -(fan_in**-0.5), fan_in**-0.5)
    else:
        layer.reset_parameters()


def freeze(model: VitsModel, parts: Iterable[str]) -> None:
    """Disables gradients for modules of a voice. Modifies ``model``.

    Call it before building an optimizer and before wrapping in DDP: both select the trainable parameters.

    Raises:
        ConfigError: no trainable parameter would remain.
    """
    parts = list(parts)
    for part in parts:
        for module in _modules_of(model, part):
            module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"--freeze {','.join(parts)} leaves no trainable parameters (--objective mel also freezes the posterior "
            "encoder). Remove a part from the list."
        )


def _modules_of(model: VitsModel, part: str) -> list[nn.Module]:
    if part != "duration_synthesis":
        return [getattr(model, part)]
    predictor = model.duration_predictor
    if not isinstance(predictor, VitsStochasticDurationPredictor):
        return [predictor]
    used = [module for name, module in predictor.named_children() if name != "flows" and not name.startswith("post_")]
    affine, _, *splines = predictor.flows  # the first spline only affects the channel that synthesis discards
    return [*used, affine, *splines]
