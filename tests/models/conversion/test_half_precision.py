"""Weights in float16: rounded as in PyTorch, half the file, the same speech."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.support.loud_voices import loud_voice
from vits_trainer.models.conversion.half_precision import describe_rounding, rounded_to_half
from vits_trainer.models.conversion.onnx import OnnxVoice, compare_onnx, export_onnx
from vits_trainer.models.pretrained import inference_form
from vits_trainer.text.tokenizer import build_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = build_tokenizer(["silav dinya"])


def test_weights_are_those_of_float16() -> None:
    model = loud_voice(TOKENIZER, [], True)
    rounded = rounded_to_half(model)
    exact = inference_form(model).state_dict()
    for name, weight in rounded.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, exact[name].half().float())
        assert name.endswith("bias") or weight.numel() < 64 or not torch.equal(weight, exact[name])
    assert "what float16 changes is" in describe_rounding(model, rounded)
    assert model.state_dict().keys() == loud_voice(TOKENIZER, [], True).state_dict().keys()


def test_file_has_half_the_size_and_speaks_as_the_rounded_voice(tmp_path: Path) -> None:
    model = loud_voice(TOKENIZER, [], True)
    rounded = rounded_to_half(model)
    export_onnx(rounded, TOKENIZER, tmp_path / "half.onnx", stores_half=True)
    export_onnx(rounded, TOKENIZER, tmp_path / "full.onnx")
    ids = np.arange(61) % len(TOKENIZER)
    half, full = (OnnxVoice(tmp_path / name).speak(ids, 0.0, 1.0, 0.0) for name in ("half.onnx", "full.onnx"))
    assert np.abs(full).max() > 0.1
    np.testing.assert_allclose(half, full, atol=1e-6, rtol=0)
    assert compare_onnx(rounded, tmp_path / "half.onnx", rounds=1).difference < 1e-4
    weights = [
        sum(len(tensor.raw_data) for tensor in onnx.load(tmp_path / name).graph.initializer)
        for name in ("half.onnx", "full.onnx")
    ]
    assert weights[0] < 0.55 * weights[1]
