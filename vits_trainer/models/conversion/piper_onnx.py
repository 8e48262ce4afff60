"""Reader for published Piper voices: one .onnx file, with its .onnx.json.

Piper exports with PyTorch's TorchScript exporter: weights keep their names, except for those that were computed from
others, such as weight norm. A convolution's bias then names its layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import VitsModel

from vits_trainer.models.conversion.layout import ForeignCheckpoint, config_path, read_json
from vits_trainer.models.conversion.onnx_packages import open_session, require_packages
from vits_trainer.models.conversion.piper import voice_parts
from vits_trainer.models.pretrained import fold_weight_norm
from vits_trainer.utils.errors import ModelError

OPSETS = range(9, 25)
"""Versions of the ONNX operators that can be read; Piper exports 15."""
MISSING_PARTS = ("enc_q.", "dp.post_", "dp.flows.1.")
"""Prefixes of weights that only training uses: no such file has them."""
MAX_DIFFERENCE = 1e-3
"""Of a sample (full scale 1) between the file and the voice made of it, without noise. Usual: 1e-5."""
_INPUTS = ("input", "input_lengths", "scales", "sid")
_PARAMETER = re.compile(r"(enc_p|dp|flow|dec|emb_g)\.")
_NEEDED = ("enc_p.emb", "enc_p.proj", "flow.flows.0.pre", "dec.conv_pre", "dec.conv_post")
_QUANTIZED = ("Quantize", "Integer", "QLinear", "QAttention", "QGemm")
_PUBLISHED = "Pass the file as Piper exported or published it."


@dataclass(frozen=True)
class _Layer:
    """Attributes of a convolution."""

    dilation: int
    stride: int


def read_piper_onnx(path: Path, config_file: Path | None, vocab: Path | None) -> ForeignCheckpoint:
    """Reads a published Piper voice.

    Args:
        path: the .onnx file.
        config_file: None = the .onnx.json next to it.
        vocab: symbols, in place of those of the configuration.

    Raises:
        InstallationError: the package onnx is missing.
        ModelError: the file is not a Piper voice in float32, or the configuration is that of another voice.
    """
    model = _load(path)
    weights, layers = _weights(model.graph, path)
    json_path = config_path(path, config_file)
    config = read_json(json_path, "the voice's phonemes and sampling rate (--config_file)")
    _require_same_voice(config, json_path, weights, path)
    parts = voice_parts(config, json_path, vocab, path)
    prefixes = MISSING_PARTS if "dp.flows.0.m" in weights else ("enc_q.",)
    kernels, dilations = _resblock_sizes(weights, layers)
    ups = sorted((name for name in layers if re.fullmatch(r"dec\.ups\.\d+", name)), key=lambda name: int(name[8:]))
    parts.config_values |= {
        "spectrogram_bins": 513,
        "posterior_encoder_num_wavenet_layers": 16,
        "upsample_rates": [layers[name].stride for name in ups],
        "resblock_kernel_sizes": kernels,
        "resblock_dilation_sizes": dilations,
        "hop": config.get("hop_length", 256),
    }
    half = " and half of its duration predictor" if len(prefixes) > 1 else ""
    parts.notes.append(
        f"its posterior encoder{half} are not in an .onnx file and are new: train them first (docs/convert.md)"
        if half
        else "its posterior encoder is not in an .onnx file and is new: train it first (docs/convert.md)"
    )
    parts.weights, parts.fresh = weights, prefixes
    return parts


def _load(path: Path) -> Any:
    """Returns the file as ``onnx.ModelProto`` with all its weights."""
    require_packages("onnx")
    import onnx  # noqa: PLC0415 - optional
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: is not an ONNX file, or is damaged. Download or copy it again.") from error
    _require_readable(model, path)
    absent = {name for name in _external_files(model.graph) if not (path.parent / name).is_file()}
    if absent:
        raise ModelError(
            f"{path}: its weights are in a second file that is missing: {', '.join(sorted(absent))}. Put it next to it."
        )
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(f"{path}: its second file of weights cannot be read ({error}). Copy both again.") from error
    return model


def _external_files(graph: Any) -> set[str]:
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _require_readable(model: Any, path: Path) -> None:
    """Raises :class:`ModelError` unless the file has the operators and inputs of a Piper voice in float32."""
    import onnx  # noqa: PLC0415 - optional

    graph = model.graph
    inputs = tuple(entry.name for entry in graph.input if entry.name not in {one.name for one in graph.initializer})
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if {entry.key for entry in model.metadata_props} >= {"sampling_rate", "vocabulary"} or "durations" in {
        entry.name for entry in graph.output
    }:
        raise ModelError(f"{path}: was exported by vits_trainer. Pass the folder of the voice that it was made of.")
    if inputs not in (_INPUTS[:3], _INPUTS):
        raise ModelError(
            f"{path}: has the inputs {', '.join(inputs) or 'of no model'}, not those of a Piper voice "
            f"({', '.join(_INPUTS[:3])}, sid). Pass a Piper voice, or the checkpoint that the file was made of."
        )
    quantized = {node.op_type for node in graph.node if any(part in node.op_type for part in _QUANTIZED)}
    if quantized:
        raise ModelError(
            f"{path}: is quantized ({', '.join(sorted(quantized))}): its weights have lost precision. {_PUBLISHED}"
        )
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if any(tensor.data_type in halves for tensor in graph.initializer):
        raise ModelError(f"{path}: is in half precision. Pass the float32 file that it was made of.")
    others = sorted(versions.keys() - {"ai.onnx"})
    if others:
        raise ModelError(
            f"{path}: has operators of {', '.join(others)}: it was optimized for one runtime. {_PUBLISHED}"
        )
    if versions.get("ai.onnx") not in OPSETS:
        raise ModelError(
            f"{path}: opset {versions.get('ai.onnx')} is not supported ({OPSETS[0]} to {OPSETS[-1]} are). Export the "
            "voice with Piper again."
        )


def _weights(graph: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, _Layer]]:
    """Returns the generator's weights under the original's names, and its convolutions by the names of their layers."""
    import onnx  # noqa: PLC0415 - optional

    arrays: dict[str, NDArray[Any]] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name: array for name, array in arrays.items() if _PARAMETER.match(name)}
    layers = {}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            layer = _layer_name(node)
            attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
            layers[layer] = _Layer(*(attributes.get(name, [1])[0] for name in ("dilations", "strides")))
            if node.input[1] in arrays:
                found.setdefault(f"{layer}.weight", arrays[node.input[1]])
        elif node.op_type == "Gather" and node.input[0] in arrays and node.input[1] in ("input", "sid"):
            found.setdefault("enc_p.emb.weight" if node.input[1] == "input" else "emb_g.weight", arrays[node.input[0]])
    if "dp.flows.0.m" in found:
        found.setdefault("dp.flows.0.logs", _log_scale(graph, arrays, path))
    missing = [name for name in _NEEDED if f"{name}.weight" not in found]
    if missing:
        raise ModelError(
            f"{path}: has no weights of {', '.join(missing)}: it is not a voice of Piper's layout, or another program "
            f"renamed its parts. {_PUBLISHED}"
        )
    weights = {name: torch.from_numpy(np.array(array)) for name, array in found.items() if _PARAMETER.match(name)}
    wrong = [name for name, weight in weights.items() if weight.dtype != torch.float32]
    if wrong:
        raise ModelError(f"{path}: {wrong[0]} is of type {weights[wrong[0]].dtype}, not float32. {_PUBLISHED}")
    return weights, layers


def _layer_name(node: Any) -> str:
    """Returns the original's name of a convolution: from its weight, its bias, or the node (/dec/conv_post/Conv)."""
    for name in node.input[1:3]:
        if _PARAMETER.match(name):
            return str(name).rpartition(".")[0]
    return str(node.name).strip("/").rpartition("/")[0].replace("/", ".")


def _log_scale(graph: Any, arrays: Mapping[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    """Returns ``dp.flows.0.logs``: the file has exp(-logs), or -logs as the input of that node."""
    for name, array in arrays.items():
        if name.endswith("dp/flows.0/Exp_output_0"):
            logs: NDArray[Any] = -np.log(array)
            return logs
    for node in graph.node:
        if node.op_type == "Exp" and node.name.endswith("dp/flows.0/Exp") and node.input[0] in arrays:
            return -arrays[node.input[0]]
    raise ModelError(f"{path}: has no dp.flows.0.logs, the scale of the durations. {_PUBLISHED}")


def _resblock_sizes(weights: Mapping[str, Tensor], layers: Mapping[str, _Layer]) -> tuple[list[int], list[list[int]]]:
    """Returns kernel sizes and dilations of the residual blocks after one upsampling."""
    convs: dict[int, dict[int, str]] = {}
    for name in layers:
        match = re.fullmatch(r"dec\.resblocks\.(\d+)\.convs1?\.(\d+)", name)
        if match:
            convs.setdefault(int(match[1]), {})[int(match[2])] = name
    ups = sum(re.fullmatch(r"dec\.ups\.\d+", name) is not None for name in layers)
    blocks = [convs[index] for index in sorted(convs)[: len(convs) // max(1, ups)]]
    kernels = [weights[f"{block[0]}.weight"].shape[2] for block in blocks]
    return kernels, [[layers[block[index]].dilation for index in sorted(block)] for block in blocks]


def _require_same_voice(config: Mapping[str, Any], json_path: Path, weights: Mapping[str, Tensor], path: Path) -> None:
    sizes = {
        "num_symbols": len(weights["enc_p.emb.weight"]),
        "num_speakers": len(weights["emb_g.weight"]) if "emb_g.weight" in weights else 1,
    }
    wrong = [
        f"{name} is {config[name]} there and {size} in the weights"
        for name, size in sizes.items()
        if config.get(name, size) != size
    ]
    if wrong:
        raise ModelError(
            f"{json_path} does not belong to {path}: {', '.join(wrong)}. Pass the voice's own file by --config_file."
        )


def compare_with_file(model: VitsModel, path: Path, tokens: int = 60) -> str:
    """Compares a voice with the .onnx file that it was made of, without noise.

    Args:
        model: in training form.
        path: the .onnx file.
        tokens: number of token ids.

    Returns:
        A note with the maximum difference of a sample.

    Raises:
        InstallationError: onnxruntime is missing.
        ModelError: the outputs differ by more than :data:`MAX_DIFFERENCE`, or in length.
    """
    session, voice = open_session(path), fold_weight_norm(model)
    voice.noise_scale = voice.noise_scale_duration = 0.0
    ids = np.arange(1, tokens + 1)[None] % min(120, model.config.vocab_size)
    inputs = {"input": ids, "input_lengths": np.array([tokens]), "scales": np.array([0.0, 1.0, 0.0], np.float32)}
    speaker = 0 if model.config.num_speakers > 1 else None
    if speaker is not None:
        inputs["sid"] = np.array([speaker])
    expected = session.run(None, inputs)[0].reshape(-1)
    with torch.inference_mode():
        spoken = voice(torch.from_numpy(ids), speaker_id=speaker, speaking_rate=1.0).waveform[0].numpy()
    is_same_length = spoken.shape == expected.shape
    difference = float(np.abs(spoken - expected).max()) if is_same_length else float("inf")
    if not difference <= MAX_DIFFERENCE:
        raise ModelError(
            f"{path}: a voice made of it speaks differently ({len(spoken)} samples instead of {len(expected)}, maximum "
            f"difference {difference:.1e}): the file has another structure than Piper's voices. {_PUBLISHED}"
        )
    return f"compared with the file in onnxruntime: maximum difference {difference:.1e} in {len(spoken):,} samples"
