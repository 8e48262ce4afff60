"""Precision, launcher settings and gradient scaling."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from vits_trainer.distributed import launch_environment
from vits_trainer.distributed.runtime import Runtime, resolve_precision
from vits_trainer.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def without_a_launcher(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("requested", "launched", "on_gpu", "precision"),
    [
        ("auto", None, False, "fp32"),
        ("auto", None, True, "bf16"),
        ("auto", "no", False, "fp32"),
        ("auto", "bf16", False, "bf16"),
        ("auto", "fp16", True, "fp16"),
        ("fp32", None, True, "fp32"),
        ("fp32", "no", True, "fp32"),
        ("bf16", None, False, "bf16"),
        ("bf16", "no", True, "bf16"),
        ("bf16", "bf16", True, "bf16"),
        ("fp16", None, True, "fp16"),
        ("fp16", "no", True, "fp16"),
        ("fp16", "fp16", True, "fp16"),
    ],
)
def test_precision(monkeypatch, requested, launched, on_gpu, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert resolve_precision(requested, on_gpu) == precision


def test_auto_is_fp32_on_a_gpu_without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_precision("auto", on_gpu=True) == "fp32"


@pytest.mark.parametrize(
    ("requested", "launched"), [("fp32", "bf16"), ("bf16", "fp16"), ("fp16", "bf16"), ("fp32", "fp16")]
)
def test_launcher_precision_that_contradicts_the_flag_is_rejected(monkeypatch, requested, launched):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(ConfigError, match=rf"--precision {requested}, but the launcher sets {launched}"):
        resolve_precision(requested, on_gpu=True)


def test_unsupported_launcher_precision_is_rejected(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="fp8"):
        resolve_precision("auto", on_gpu=True)


@pytest.mark.parametrize(("requested", "launched"), [("fp16", None), ("auto", "fp16"), ("tf32", None)])
def test_precision_of_gpus_without_a_gpu_is_rejected(monkeypatch, requested, launched):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(ConfigError, match=r"(fp16|tf32) needs a GPU"):
        resolve_precision(requested, on_gpu=False)


def test_trap_10_different_launcher_accumulation_is_rejected(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match=r"launcher asks for 4 .* --gradient_accumulation_steps is 8"):
        Runtime("fp32", accumulation=8)


@pytest.mark.parametrize("launched", ["1", "8"])
def test_equal_launcher_accumulation_is_accepted(monkeypatch, launched):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", launched)
    assert Runtime("fp32", accumulation=8).num_processes == 1


def test_trap_10_launcher_precision_is_used_but_not_by_accelerate(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    runtime = Runtime("auto", 1)
    assert runtime.precision == "bf16"
    assert runtime.accelerator.mixed_precision == "no"


def test_unconnected_processes_are_rejected(monkeypatch):
    Runtime("fp32", 1)  # Accelerate keeps its first state: later ones see one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"launcher started 2 processes, but they are not connected"):
        Runtime("fp32", 1)


def test_single_process_is_main_and_its_collectives_are_local():
    runtime = Runtime("fp32", 1)
    assert (runtime.process_index, runtime.num_processes, runtime.device.type) == (0, 1, "cpu")
    assert runtime.is_main_process
    assert runtime.on_main_then_broadcast(lambda: "value") == "value"
    assert runtime.all_gather_object("value") == ["value"]
    assert runtime.all_reduce_sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert runtime.describe() == "1 process on CPU, fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_uses_the_precision(precision, dtype):
    with Runtime(precision, 1).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_gradient_scaling_is_enabled_only_for_fp16():
    assert not Runtime("bf16", 1).gradient_scaler().is_enabled()
    runtime = Runtime("fp32", 1)
    runtime.precision = "fp16"  # rejected on a CPU
    assert runtime.gradient_scaler().is_enabled()


def test_trap_11_overflow_in_one_network_keeps_the_others_scale():
    runtime = Runtime("fp32", 1)
    runtime.precision = "fp16"
    scalers = [runtime.gradient_scaler(), runtime.gradient_scaler()]
    parameters = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    before = [scaler.get_scale() for scaler in scalers]
    for scaler, parameter, factor in zip(scalers, parameters, (1.0, float("inf")), strict=True):
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [scaler.get_scale() / old for scaler, old in zip(scalers, before, strict=True)] == [1.0, 0.5]
    assert [parameter.item() for parameter in parameters] == [0.5, 1.0]


def test_random_numbers_are_a_function_of_the_seed_numbers():
    runtime = Runtime("fp32", 1)

    def drawn(*numbers: int) -> tuple[float, ...]:
        runtime.reseed(*numbers)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    assert drawn(1234, 5) == drawn(1234, 5)
    assert len({drawn(*numbers) for numbers in ((1234, 5), (1234, 6), (1235, 5), (5, 1234))}) == 4


@pytest.mark.parametrize(("environment", "uses"), [({}, True), ({"ACCELERATE_USE_CPU": "true"}, False)])
def test_gpu_is_not_used_if_the_cpu_is_selected(monkeypatch, environment, uses):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert launch_environment.uses_gpu(environment) is uses


def test_fp32_is_exact(monkeypatch):
    """PyTorch's default for convolutions is TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Runtime("fp32", 1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
