"""A voice with random weights in a folder, for synthesize."""

from pathlib import Path

import torch

from vits_trainer.config.architecture import Architecture
from vits_trainer.models.initialization import new_model
from vits_trainer.models.pretrained import export
from vits_trainer.text.tokenizer import build_tokenizer

TINY = Architecture(
    hidden_size=16,
    num_hidden_layers=1,
    ffn_dim=32,
    posterior_encoder_num_wavenet_layers=1,
    prior_encoder_num_flows=2,
    prior_encoder_num_wavenet_layers=1,
    duration_predictor_num_flows=2,
    upsample_initial_channel=16,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
)
RATE_HZ = TINY.sampling_rate
TEXT = "Silav dinya. Çawa yî? Ez baş im!"


def save_voice(folder: Path, *speakers: str) -> Path:
    """Saves a voice whose samples are loud and depend on text and noise: new decoders almost ignore their input."""
    torch.manual_seed(2)
    tokenizer = build_tokenizer(["silav dinya çawa yî ez baş im"])
    model = new_model(TINY, tokenizer, list(speakers))
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if name.endswith("original0"):  # weight norm's g
                parameter.mul_(3)
        for parameter in model.duration_predictor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    export(model, tokenizer, None, folder)
    return folder
