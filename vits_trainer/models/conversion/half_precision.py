"""ONNX files with weights in float16, computed in float32.

Rounded before the export, so that storing them in half the bytes changes nothing more. onnxruntime converts them back
once, when it loads the file: its convolutions on a CPU have no float16.
"""

from typing import Any

import numpy as np
import torch
from transformers import VitsModel

from vits_trainer.models.pretrained import clamp_token_durations, inference_form

_MIN_VALUES = 64
"""Smaller tensors are not worth a conversion."""


@torch.no_grad()
def rounded_to_half(model: VitsModel) -> VitsModel:
    """Returns a copy for inference whose weights are rounded to float16, in float32."""
    rounded = inference_form(model)
    for tensor in rounded.state_dict().values():
        tensor.copy_(tensor.half())
    return rounded


def describe_rounding(model: VitsModel, rounded: VitsModel, tokens: int = 151) -> str:
    """Describes what rounding changes in one synthetic text, without noise.

    Args:
        model: in training form.
        rounded: from :func:`rounded_to_half`.
        tokens: number of token ids in the text.
    """
    ids = torch.arange(tokens)[None] % model.config.vocab_size
    speaker = 0 if model.config.num_speakers > 1 else None
    spoken = []
    for voice in (inference_form(model), rounded):
        voice.noise_scale = voice.noise_scale_duration = 0.0
        with torch.inference_mode(), clamp_token_durations(voice):
            spoken.append(voice(ids, speaker_id=speaker, speaking_rate=1.0).waveform[0])
    exact, changed = spoken
    if exact.shape != changed.shape:
        return f"what float16 changes is the durations of some sounds: {len(changed)} samples instead of {len(exact)}"
    ratio = exact.square().sum() / (exact - changed).square().sum()
    return f"what float16 changes is {10 * float(ratio.log10()):.0f} dB below the speech"


def store_as_half(graph: Any) -> None:
    """Stores tensors of an ``onnx.GraphProto`` as float16 if it has their exact values. Modifies ``graph``."""
    import onnx  # noqa: PLC0415 - optional

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        halves = values.astype(np.float16)
        if values.size >= _MIN_VALUES and np.array_equal(halves.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, f"{name}_float16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
