"""Voices with random weights that speak audibly, for comparisons of their output."""

import torch
from torch import nn
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer.models.pretrained import untrained


def loud_voice(
    tokenizer: VitsTokenizer, speakers: list[str], stochastic: bool, seed: int = 1, resblock_type: int = 1
) -> VitsModel:
    """Returns a voice as after training: loud, zero-initialised layers filled, a few frames per token."""
    torch.manual_seed(seed)
    config = VitsConfig(
        vocab_size=len(tokenizer), hidden_size=16, flow_size=16, num_hidden_layers=1, ffn_dim=32,
        upsample_rates=[16, 16], upsample_kernel_sizes=[32, 32], upsample_initial_channel=32,
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1, duration_predictor_num_flows=2,
        duration_predictor_filter_channels=24, use_stochastic_duration_prediction=stochastic,
        num_speakers=max(1, len(speakers)), speaker_embedding_size=8 if speakers else 0,
    )  # fmt: skip
    config.speakers = speakers
    config.resblock_type = resblock_type
    model = untrained(config)  # Kaiming initialisation
    for name, parameter in model.named_parameters():
        if name.endswith("cond.weight"):
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("log_scale"):
            nn.init.constant_(parameter, 0.7)  # halves the spread of log durations
        if name.endswith("translate") or name == "duration_predictor.proj.bias":
            nn.init.constant_(parameter, 0.7)
        if name == "duration_predictor.proj.weight":
            nn.init.normal_(parameter, std=0.1)
    return model.eval()
