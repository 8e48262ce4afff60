"""Voices in the layouts of other trainers, built from the golden cases' weights."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import VitsModel

from tests.support.golden import read_case
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.diagnostics import golden
from vits_trainer.models import parameter_names
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.parameter_names import to_original_discriminator
from vits_trainer.models.pretrained import with_weight_norm

SYMBOLS = ["_", *"abcdefghijklmnopqrstuvwxyz '-çêîşû,.!?êλ"][:40]


def golden_weights(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the generator's weights under the original's names, and the case's configuration."""
    read = read_case(case)
    weights = {name.removeprefix("generator."): t for name, t in read.tensors.items() if name.startswith("generator.")}
    return weights, read.content["config"]


def original_config(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json in the original's format."""
    model = ("inter_channels", "hidden_channels", "filter_channels", "n_heads", "n_layers", "kernel_size", "use_sdp",
             "resblock_kernel_sizes", "resblock_dilation_sizes", "upsample_rates", "upsample_initial_channel",
             "upsample_kernel_sizes", "gin_channels")  # fmt: skip
    data = ("sampling_rate", "filter_length", "hop_length", "win_length", "n_mel_channels", "mel_fmin", "mel_fmax")
    return {
        "train": {"segment_size": 4096},
        "data": {name: golden[name] for name in data}
        | {"text_cleaners": ["transliteration_cleaners"], "training_files": "train.ltr", "add_blank": True}
        | {"n_speakers": golden["n_speakers"] if golden["n_speakers"] > 1 else 0},
        "model": {name: golden[name] for name in model} | {"p_dropout": 0.0, "resblock": "1", "n_layers_q": 3},
    }


def write_original(
    folder: Path, case: str = "single_sdp", discriminator: Discriminator | None = None, number: int = 100000
) -> Path:
    """Writes an MMS-TTS folder: ``G_<number>.pth``, config.json, vocab.txt, and ``D_<number>.pth``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, golden = golden_weights(case)
    networks = {"G": weights}
    if discriminator is not None:
        networks["D"] = to_original_discriminator(discriminator.state_dict())
    for letter, model in networks.items():
        checkpoint = {"model": model, "iteration": 7, "optimizer": {"state": {}}, "learning_rate": 2e-4}
        torch.save(checkpoint, folder / f"{letter}_{number}.pth")
    (folder / "config.json").write_text(json.dumps(original_config(golden)))
    (folder / "vocab.txt").write_text("".join(f"{symbol}\n" for symbol in SYMBOLS), encoding="utf-8")
    return folder / f"G_{number}.pth"


def coqui_name(original: str) -> str:
    """Returns the name of an original parameter in ``TTS/tts/models/vits.py`` and ``TTS/tts/layers/vits``."""
    if original.startswith("flow."):  # a list of couplings, flipped in forward()
        original = re.sub(r"flows\.(\d+)", lambda found: f"flows.{int(found[1]) // 2}", original)
    if original.startswith("dp."):  # ElementwiseAffine, ConvFlow, ConvFlow ...
        original = re.sub(r"flows\.(\d+)", lambda found: f"flows.{(int(found[1]) + 1) // 2}", original)
        original = re.sub(r"\.m$", ".translation", re.sub(r"\.logs$", ".log_scale", original))
    parts = {"enc_p": "text_encoder", "enc_q": "posterior_encoder", "dp": "duration_predictor",
             "dec": "waveform_decoder", "discriminators": "disc.nets"}  # fmt: skip
    first, _, rest = original.partition(".")
    name = f"{parts.get(first, first)}.{rest}"
    return name.replace("waveform_decoder.cond.", "waveform_decoder.cond_layer.")


def write_coqui(
    folder: Path, case: str, discriminator: Discriminator, letters: str = "abcdefghijklmnopqrstuvwxyz"
) -> Path:
    """Writes ``model_file.pth`` with the discriminators inside, config.json, speaker_ids.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, golden = golden_weights(case)
    names = {coqui_name(name): tensor for name, tensor in weights.items()}
    original = to_original_discriminator(discriminator.state_dict())
    names |= {coqui_name(name): tensor for name, tensor in original.items()}
    # Since 2023 Coqui's layers use torch's newer weight norm.
    names = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in names.items()
    }
    content = {"config": {"model": "vits"}, "model": names, "optimizer": [{}, {}], "scaler": None, "step": 5}
    torch.save(content, folder / "model_file.pth")
    args = {
        "num_chars": golden["n_vocab"], "out_channels": golden["spec_channels"],
        "hidden_channels": golden["hidden_channels"],
        "hidden_channels_ffn_text_encoder": golden["filter_channels"], "num_heads_text_encoder": golden["n_heads"],
        "num_layers_text_encoder": golden["n_layers"], "kernel_size_text_encoder": golden["kernel_size"],
        "dropout_p_text_encoder": 0.0, "kernel_size_posterior_encoder": 5, "dilation_rate_posterior_encoder": 1,
        "num_layers_posterior_encoder": 16, "kernel_size_flow": 5, "dilation_rate_flow": 1, "num_layers_flow": 4,
        "resblock_type_decoder": "1", "resblock_kernel_sizes_decoder": golden["resblock_kernel_sizes"],
        "resblock_dilation_sizes_decoder": golden["resblock_dilation_sizes"],
        "upsample_rates_decoder": golden["upsample_rates"],
        "upsample_initial_channel_decoder": golden["upsample_initial_channel"],
        "upsample_kernel_sizes_decoder": golden["upsample_kernel_sizes"],
        "periods_multi_period_discriminator": list(discriminator.shape.periods), "use_sdp": True,
        "inference_noise_scale": 0.5, "inference_noise_scale_dp": 0.9, "length_scale": 1.25,
        "use_speaker_embedding": golden["n_speakers"] > 1, "num_speakers": golden["n_speakers"],
        "use_d_vector_file": False, "use_language_embedding": False, "encoder_sample_rate": None,
    }  # fmt: skip
    config = {
        "model": "vits",
        "model_args": args,
        "audio": {"sample_rate": 22050, "fft_size": 1024, "win_length": 1024, "hop_length": 256, "num_mels": 80,
                  "mel_fmin": 0, "mel_fmax": None},
        "characters": {"characters_class": "TTS.tts.models.vits.VitsCharacters", "pad": "_", "punctuations": "!.? ",
                       "characters": letters, "phonemes": None},
        "add_blank": True, "use_phonemes": False, "phoneme_language": None, "text_cleaner": "basic_cleaners",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    if golden["n_speakers"] > 1:
        (folder / "speaker_ids.json").write_text(json.dumps({"dan": 3, "ada": 0, "cem": 2, "bo": 1}))
    return folder / "model_file.pth"


def write_piper(folder: Path, case: str, discriminator: Discriminator, **settings: Any) -> Path:
    """Writes a Lightning checkpoint with Piper's two networks and hyperparameters, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, golden = golden_weights(case)
    state = {f"model_g.{name}": tensor for name, tensor in weights.items()}
    original = to_original_discriminator(discriminator.state_dict())
    state |= {f"model_d.{name}": tensor for name, tensor in original.items()}
    kept = ("hidden_channels", "inter_channels", "filter_channels", "n_heads", "n_layers", "kernel_size",
            "resblock_kernel_sizes", "resblock_dilation_sizes", "upsample_rates", "upsample_initial_channel",
            "upsample_kernel_sizes", "gin_channels", "filter_length", "hop_length", "use_sdp")  # fmt: skip
    hyper = {name: golden[name] for name in kept} | {
        "num_symbols": golden["n_vocab"], "num_speakers": golden["n_speakers"], "sample_rate": golden["sampling_rate"],
        "resblock": "1", "p_dropout": 0.0, "dataset": [Path("/home/somebody/dataset.jsonl")], **settings,
    }  # fmt: skip
    content = {
        "epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.9.0", "state_dict": state, "loops": {},
        "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": hyper,
        "callbacks": {"ModelCheckpoint": {"best_model_path": Path("a"), "args": argparse.Namespace(a=1)}},
    }  # fmt: skip
    torch.save(content, folder / "epoch=3-step=9.ckpt")
    symbols = ["_", "^", "$", " ", *"abcdefghij"]
    config = {
        "audio": {"sample_rate": golden["sampling_rate"], "quality": "high"}, "espeak": {"voice": "ku"},
        "inference": {"noise_scale": 0.6, "length_scale": 0.8, "noise_w": 0.7},
        "phoneme_id_map": {symbol: [index] for index, symbol in enumerate(symbols)} | {"aɪ": [len(symbols)]},
        "num_symbols": golden["n_vocab"], "num_speakers": golden["n_speakers"],
        "speaker_id_map": {"ada": 0, "bo": 1, "cem": 2, "dan": 3} if golden["n_speakers"] > 1 else {},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "epoch=3-step=9.ckpt"


CASES = ("single_sdp", "multi_sdp")
SMALL = DiscriminatorShape((2, 3), 16)


def expected_model(case: str) -> VitsModel:
    """Returns the model built from the case's configuration, not from the weights' sizes."""
    weights, config = golden_weights(case)
    model = with_weight_norm(VitsModel(golden.vits_config(config))).eval()
    model.load_state_dict(parameter_names.from_original_generator(weights, model.state_dict()))
    return model


def assert_same_weights(model: VitsModel, other: VitsModel, but: str = "") -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ([but] if but else [])


def speech(model: VitsModel, tokens: torch.Tensor, speaker: int | None = None) -> torch.Tensor:
    model.noise_scale = model.noise_scale_duration = 0.0
    with torch.no_grad():
        return model(tokens, speaker_id=speaker, speaking_rate=1.0).waveform


def change_weights(checkpoint: Path, change: Callable[[dict], None]) -> None:
    content = torch.load(checkpoint)
    change(content["model"])
    torch.save(content, checkpoint)


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change(config) or config))
