"""Tiny Piper voices, built and exported by Piper's own code (``piper.train`` of piper-tts)."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

SYMBOLS = ["_", "^", "$", " ", *"abcdefghijklmnopqrstuvwxyz", "ç", "\u0327", ".", "ˈ"]
SIZES: dict[str, Any] = {
    "hidden_channels": 16, "inter_channels": 16, "filter_channels": 32, "n_heads": 2, "n_layers": 1, "kernel_size": 3,
    "resblock_kernel_sizes": (3, 5), "upsample_rates": (8, 8, 4),
    "upsample_initial_channel": 16, "upsample_kernel_sizes": (16, 16, 8),
}  # fmt: skip


def sizes_of(resblock: str) -> dict[str, Any]:
    """Returns the sizes of a network with residual blocks of type 1 or 2, which have three or two convolutions."""
    dilations = ((1, 2), (2, 6)) if resblock == "2" else ((1, 2, 3), (1, 3, 5))
    return {**SIZES, "resblock_dilation_sizes": dilations}


def piper_network(speakers: int = 1, resblock: str = "2", use_sdp: bool = True) -> torch.nn.Module:
    """Returns Piper's generator with random weights, loud and of a few frames per symbol."""
    models = pytest.importorskip("piper.train.vits.models")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's old weight norm
        network = models.SynthesizerTrn(
            n_vocab=40, spec_channels=513, segment_size=32, p_dropout=0.1, resblock=resblock, n_speakers=speakers,
            gin_channels=8 if speakers > 1 else 0, use_sdp=use_sdp, **sizes_of(resblock),
        ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:  # the exporter merges equal tensors, such as those of new layer norms
                parameter.add_(0.02 * torch.randn_like(parameter))
            if name.startswith("dec.") and name.endswith("weight_g"):
                parameter.mul_(4 if resblock == "2" else 2.5)
            if name.endswith(".m") or name in ("dp.proj.bias",):
                parameter.fill_(0.7)
            if name.startswith("dp.flows") and name.endswith("logs"):
                parameter.fill_(0.5)
            if name.startswith(("dp.", "flow.")) and not parameter.any():  # VITS starts them at zero
                parameter.normal_(std=0.1)
    return network


def write_piper_config(path: Path, speakers: int = 1, **settings: Any) -> None:
    """Writes the JSON of a voice of :func:`piper_network`."""
    config = {
        "audio": {"sample_rate": 22050, "quality": "medium"}, "espeak": {"voice": "ku"}, "num_symbols": 40,
        "inference": {"noise_scale": 0.6, "length_scale": 1, "noise_w": 0.7}, "num_speakers": speakers,
        "phoneme_id_map": {symbol: [index] for index, symbol in enumerate(SYMBOLS)}, "phoneme_type": "espeak",
        "speaker_id_map": {name: index for index, name in enumerate(["ada", "bo", "cem"][:speakers])} if speakers > 1
        else {}, "language": {"code": "ku_TR"}, **settings,
    }  # fmt: skip
    path.write_text(json.dumps(config), encoding="utf-8")


def write_piper_onnx(path: Path, network: torch.nn.Module, speakers: int = 1) -> Path:
    """Exports a network with the arguments of ``piper.train.export_onnx``, and writes its JSON."""

    def infer(text, text_lengths, scales, sid=None):
        spoken = network.infer(text, text_lengths, noise_scale=scales[0], length_scale=scales[1],
                               noise_scale_w=scales[2], sid=sid)  # fmt: skip
        return spoken[0].unsqueeze(1)

    network.dec.remove_weight_norm()
    network.forward = infer
    arguments = (torch.randint(0, 40, (1, 50)), torch.tensor([50]), torch.tensor([0.667, 1.0, 0.8]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation of the exporter, traced conditions
        torch.onnx.export(
            network, (*arguments, torch.tensor([0]) if speakers > 1 else None), path, opset_version=15, dynamo=False,
            input_names=["input", "input_lengths", "scales", "sid"], output_names=["output"],
            dynamic_axes={"input": {0: "batch_size", 1: "phonemes"}, "input_lengths": {0: "batch_size"},
                          "output": {0: "batch_size", 2: "time"}},
        )  # fmt: skip
    write_piper_config(path.with_name(f"{path.name}.json"), speakers)
    return path


def write_piper_checkpoint(folder: Path, network: torch.nn.Module, speakers: int = 1, resblock: str = "2") -> Path:
    """Writes a network as a Lightning checkpoint of Piper, with config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    hyper = {
        **sizes_of(resblock), "resblock": resblock, "num_symbols": 40, "num_speakers": speakers, "sample_rate": 22050,
        "filter_length": 1024, "hop_length": 256, "use_sdp": True, "gin_channels": 0, "p_dropout": 0.1,
    }  # fmt: skip
    state = {f"model_g.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, folder / "epoch=1-step=2.ckpt")
    write_piper_config(folder / "config.json", speakers)
    return folder / "epoch=1-step=2.ckpt"


def spoken_by_onnx(path: Path, ids: np.ndarray, speaker: int | None = None) -> np.ndarray:
    """Returns the samples of a Piper file in onnxruntime, without noise."""
    inputs = {"input": ids[None], "input_lengths": np.array([len(ids)]), "scales": np.array([0, 1, 0], np.float32)}
    if speaker is not None:
        inputs["sid"] = np.array([speaker])
    return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0].reshape(-1)
