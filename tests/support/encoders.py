"""Speech encoders with random weights, small enough for tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

SIZES: dict[str, Any] = {
    # oneDNN's bf16 convolutions with kernels of 8 are wrong on some CPUs for few channels (torch 2.14.1).
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (32, 32),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    # Only in training mode
    "layerdrop": 0.9,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
}
KINDS: dict[str, Any] = {
    "wavlm": (WavLMConfig, WavLMModel),
    "hubert": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
}


def new_encoder(kind: str, **changes: Any) -> PreTrainedModel:
    config_class, model_class = KINDS[kind]
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config_class(**{**SIZES, **changes}))
    with torch.no_grad():  # transformers' values are so small that layers hardly differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_encoder(folder: Path, kind: str = "wavlm", normalizes: bool = False, **changes: Any) -> Path:
    """Writes an encoder as transformers does, unless the folder exists. Returns the folder."""
    if not folder.is_dir():
        new_encoder(kind, **changes).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=normalizes).save_pretrained(folder)
    return folder
