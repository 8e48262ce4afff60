"""Golden cases: weights and inputs by formula, values of the original implementation."""

import base64
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vits_trainer.diagnostics import golden

GOLDEN = Path(__file__).parents[1] / "golden"


def weights_by_formula(case: dict) -> dict[str, Tensor]:
    weights = {}
    for name, shape in case["generator_shapes"].items():
        weight = golden.fill(name, tuple(shape), **case["generator_fill"])
        if name.endswith("gamma"):
            weight = weight + 1
        if name.startswith("dec.") and name.endswith("weight"):
            weight = weight * 6
        if name.startswith("dec.") and name.endswith("weight_g"):
            weight = weight * 2.2
        weights[name] = weight
    return weights


def sine(phase: Tensor) -> Tensor:
    """Returns the sine rounded from float64: the last bit of a float32 sine differs between processors."""
    return phase.double().sin().float()


def wave(b: int, t: Tensor) -> Tensor:
    second = 0.2 * sine(2 * math.pi * (900 + 310 * b) * t * (1 + 0.3 * t))
    return 0.4 * sine(2 * math.pi * (140 + 40 * b) * t) + second


def as_the_reference_rounded(waves: Tensor) -> Tensor:
    """Adds the rounding errors of the reference's float32 sine, in units in the last place: 1,914 samples, by 1e-7."""
    packed = zlib.decompress(base64.b64decode((GOLDEN / "wave_ulps.b64").read_text()))
    ulps = torch.from_numpy(np.frombuffer(packed, "<i2").astype(np.int32)).view_as(waves)
    return (waves.view(torch.int32) + ulps).view(torch.float32)


def inputs_by_formula(case: dict) -> dict[str, Tensor]:
    inputs = {name: torch.tensor(values) for name, values in case["input"].items()}
    tokens, frames = inputs["xl"], inputs["yl"]
    i = torch.arange(int(tokens.max()))
    n = torch.arange(int(frames.max()) * 256)
    t = n / 22050
    inputs["x"] = torch.stack([(i * (3 + b) + b) % 40 * (i < tokens[b]) for b in range(3)])
    inputs["wav"] = as_the_reference_rounded(torch.stack([wave(b, t) * (n < 256 * frames[b]) for b in range(3)]))
    return inputs


def read_case(name: str) -> golden.Case:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = {f"generator.{key}": weight for key, weight in weights_by_formula(case).items()}
    tensors |= {f"input.{key}": value for key, value in inputs_by_formula(case).items()}
    return golden.Case(name, case, tensors | {"output.z": torch.tensor(case["z"], dtype=torch.float64)})


def scale_only_case(name: str) -> golden.Case:
    """Returns a case with only the scale discriminator; values that depend on all discriminators no longer agree."""
    case = read_case(name)
    content = dict(case.content)
    for key in ("discriminator_shapes", "discriminator_gradient_norms"):
        content[key] = {name: value for name, value in content[key].items() if name.startswith("discriminators.0.")}
    return golden.Case(case.name, content, case.tensors)
