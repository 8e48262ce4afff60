"""A small voice with random weights."""

import torch
from transformers import VitsModel

from vits_trainer.config.architecture import Architecture
from vits_trainer.models.initialization import new_model
from vits_trainer.text.tokenizer import build_tokenizer

SMALL = Architecture(
    hidden_size=32,
    num_hidden_layers=2,
    ffn_dim=64,
    posterior_encoder_num_wavenet_layers=3,
    prior_encoder_num_flows=2,
    prior_encoder_num_wavenet_layers=2,
    duration_predictor_num_flows=2,
    upsample_initial_channel=64,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)
TOKENIZER = build_tokenizer(["silav dinya"])


def new_voice(*speakers: str, architecture: Architecture = SMALL) -> VitsModel:
    torch.manual_seed(0)
    return new_model(architecture, TOKENIZER, list(speakers))


def speech(model: VitsModel) -> torch.Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return model.eval()(**TOKENIZER("silav dinya", return_tensors="pt")).waveform


def copied(published, folder):
    folder.mkdir()
    for path in published.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
