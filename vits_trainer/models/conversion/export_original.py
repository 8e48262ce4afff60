"""Export to original VITS and MMS-TTS: ``G_0.pth``, ``D_0.pth``, config.json and vocab.txt."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

from vits_trainer.models import pretrained
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.parameter_names import to_original_discriminator, to_original_generator
from vits_trainer.utils import safe_pickle
from vits_trainer.utils.errors import ModelError
from vits_trainer.utils.files import put, temporary_sibling_dir
from vits_trainer.utils.finite_weights import require_finite

_BUILT_IN = {
    "window_size": 4,
    "prior_encoder_num_flows": 4,
    "prior_encoder_num_wavenet_layers": 4,
    "posterior_encoder_num_wavenet_layers": 16,
    "wavenet_kernel_size": 5,
    "wavenet_dilation_rate": 1,
    "depth_separable_num_layers": 3,
    "duration_predictor_kernel_size": 3,
    "duration_predictor_num_flows": 4,
    "duration_predictor_flow_bins": 10,
    "duration_predictor_filter_channels": 256,
}
"""Sizes that are fixed in the original's code (``models.py``, ``attentions.py``), not in its configuration."""


def write_original(
    model: VitsModel, tokenizer: VitsTokenizer, discriminator: Discriminator | None, directory: Path
) -> None:
    """Writes a voice for the original's code with the exact values of the training form, and reads it back.

    Args:
        model: in training form.
        tokenizer: tokenizer of the voice.
        discriminator: written to ``D_0.pth``.
        directory: created; must not exist.

    Raises:
        FileExistsError: ``directory`` exists.
        ModelError: the original's code does not support this voice, a weight is NaN or Inf, or the written weights
            differ.
    """
    config = model.config
    mismatches = [
        f"{name} {getattr(config, name)} (original: {_BUILT_IN[name]})"
        for name in sorted(_used_sizes(config))
        if getattr(config, name) != _BUILT_IN[name]
    ]
    if mismatches:
        raise ModelError(f"The original's code has other, fixed sizes: {', '.join(mismatches)}. Convert to hf or onnx.")
    networks = {"G_0.pth": to_original_generator(pretrained.state_on_cpu(model))}
    if discriminator is not None:
        networks["D_0.pth"] = to_original_discriminator(pretrained.state_on_cpu(discriminator))
    for name, weights in networks.items():
        require_finite(weights, directory / name, "Convert an earlier version of the voice.")
    with temporary_sibling_dir(directory) as temporary:
        for name, weights in networks.items():
            checkpoint = {"model": weights, "iteration": 0, "optimizer": None, "learning_rate": 2e-4}
            torch.save(checkpoint, temporary / name)
            written = safe_pickle.load(temporary / name)["model"]
            if written.keys() != weights.keys() or not all(torch.equal(written[key], weights[key]) for key in weights):
                raise ModelError(
                    f"{temporary / name}: content differs from what was written. Check the disk for space and damage."
                )
        settings = json.dumps(_configuration(model, tokenizer), indent=2, ensure_ascii=False)
        (temporary / "config.json").write_text(settings + "\n", encoding="utf-8")
        symbols = _symbols(tokenizer, config.vocab_size)
        (temporary / "vocab.txt").write_text("".join(f"{symbol}\n" for symbol in symbols), encoding="utf-8")
        put(temporary, directory)


def _used_sizes(config: VitsConfig) -> set[str]:
    """Returns the names of the sizes used by this voice's duration predictor and other modules."""
    deterministic = {"duration_predictor_filter_channels"}
    stochastic = {"depth_separable_num_layers", "duration_predictor_num_flows", "duration_predictor_flow_bins"}
    return _BUILT_IN.keys() - (deterministic if config.use_stochastic_duration_prediction else stochastic)


def _configuration(model: VitsModel, tokenizer: VitsTokenizer) -> dict[str, Any]:
    config, spec = model.config, pretrained.audio_spec(model.config)
    return {
        "train": {
            "learning_rate": 2e-4,
            "betas": [0.8, 0.99],
            "eps": 1e-9,
            "batch_size": 64,
            "segment_size": 32 * spec.hop,
            "lr_decay": 0.999875,
            "init_lr_ratio": 1,
            "warmup_epochs": 0,
            "c_mel": 45,
            "c_kl": 1.0,
            "seed": 1234,
            "epochs": 10000,
            "log_interval": 200,
            "eval_interval": 1000,
            "fp16_run": False,
        },
        "data": {
            "training_files": _training_files(tokenizer),
            "text_cleaners": ["english_cleaners2"] if tokenizer.phonemize else [],
            "cleaned_text": True,
            "max_wav_value": 32768.0,
            "sampling_rate": spec.sampling_rate,
            "filter_length": spec.n_fft,
            "hop_length": spec.hop,
            "win_length": spec.window,
            "n_mel_channels": spec.mel_bands,
            "mel_fmin": 0.0,
            "mel_fmax": None,
            "add_blank": tokenizer.add_blank,
            "n_speakers": config.num_speakers if config.num_speakers > 1 else 0,
        },
        "model": {
            "inter_channels": config.flow_size,
            "hidden_channels": config.hidden_size,
            "filter_channels": config.ffn_dim,
            "n_heads": config.num_attention_heads,
            "n_layers": config.num_hidden_layers,
            "kernel_size": config.ffn_kernel_size,
            "p_dropout": config.hidden_dropout,
            "resblock": str(getattr(config, "resblock_type", 1)),
            "resblock_kernel_sizes": config.resblock_kernel_sizes,
            "resblock_dilation_sizes": config.resblock_dilation_sizes,
            "upsample_rates": config.upsample_rates,
            "upsample_initial_channel": model.decoder.conv_pre.out_channels,
            "upsample_kernel_sizes": config.upsample_kernel_sizes,
            "n_layers_q": 3,  # not read by the original's code
            "use_spectral_norm": False,
            "gin_channels": config.speaker_embedding_size,
            "use_sdp": config.use_stochastic_duration_prediction,
        },
    }


def _training_files(tokenizer: VitsTokenizer) -> str:
    """Returns a file name whose suffix determines whether MMS-TTS romanises texts."""
    if tokenizer.is_uroman:
        return "train.uroman"
    return "train.txt" if tokenizer.phonemize else "train.ltr"


def _symbols(tokenizer: VitsTokenizer, size: int) -> list[str]:
    """Returns symbols by id, one per embedding: the original derives the embedding size from their number."""
    by_id = {index: symbol for symbol, index in tokenizer.encoder.items()}
    return [by_id.get(index, f"<unused-{index}>") for index in range(size)]
