"""The compiled half of an update, and the recomputed one, against the plain one."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.voices import metrics, prepared_folder, train_flags
from vits_trainer import benchmark, models
from vits_trainer.__main__ import main
from vits_trainer.architecture import Architecture, DiscriminatorShape
from vits_trainer.compilation import PlainWeightNorm, compile_fixed_shapes
from vits_trainer.config_tools import BenchmarkConfig
from vits_trainer.discriminator import Discriminator
from vits_trainer.generator import Generator
from vits_trainer.runtime import Runtime
from vits_trainer.text import build_tokenizer
from vits_trainer.trainer import Trainer
from vits_trainer.turns import Turns

SMALL = BenchmarkConfig(size="tiny", batch_size=2, clip_s=2.0, tokens=40, precision="fp32")


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, (5, 1)), nn.ConvTranspose1d(4, 6, 3)])
def test_plain_weight_norm_is_pytorchs(layer: nn.Module) -> None:
    """In value and in both gradients, for every kind of layer that has it."""
    normed = weight_norm(layer.double())
    found = []
    for _ in range(2):
        normed.zero_grad()
        normed.weight.pow(3).sum().backward()
        found.append([normed.weight.detach(), *(parameter.grad for parameter in normed.parametrizations.parameters())])
        normed.parametrizations.weight[0] = PlainWeightNorm()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    normed.weight = torch.full_like(normed.weight, 0.5)
    torch.testing.assert_close(normed.weight, torch.full_like(normed.weight, 0.5))


def first_gradients(config: BenchmarkConfig) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Losses of an update, and the gradients that its step of the generator and of the discriminators saw."""
    turns, _ = benchmark.our_update(config, Runtime(config.precision, 1))
    batch = benchmark.workload(config)
    torch.manual_seed(0)
    losses = turns.take(batch, turns.objective.normalisers(batch), discriminators_alone=False, closes=True, rate=None)
    parameters = [parameter for learner in turns.learners for parameter in learner.network.parameters()]
    return {name: float(loss.detach()) for name, loss in losses.items()}, [
        p.grad for p in parameters if p.grad is not None
    ]


def test_recomputed_activations_give_the_same_bits_and_take_less_memory() -> None:
    plain, recomputed = SMALL, replace(SMALL, gradient_checkpointing=True)
    losses, gradients = first_gradients(plain)
    again, gradients_again = first_gradients(recomputed)
    assert again == losses
    assert all(map(torch.equal, gradients, gradients_again))
    assert kept_bytes(recomputed) < 0.6 * kept_bytes(plain)


def kept_bytes(config: BenchmarkConfig) -> int:
    """What the generator's forward pass keeps for its backward pass."""
    generator, _ = benchmark.networks(config)
    generator.recomputes = config.gradient_checkpointing
    batch = benchmark.workload(config)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    magnitude = torch.rand(2, 513, int(batch.frame_lengths[0]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = generator(batch.tokens, batch.token_lengths, magnitude, batch.frame_lengths)
    assert found.waveform.requires_grad
    return sum(kept.values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
def test_compiled_kernels_agree_with_eager_ones() -> None:
    """Really compiled: the smallest discriminators and a decoder; each output, and each gradient."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        architecture = replace(
            Architecture(), hidden_size=16, num_hidden_layers=1, ffn_dim=32, posterior_encoder_num_wavenet_layers=1,
            prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, upsample_initial_channel=8,
            upsample_rates=(8, 8), upsample_kernel_sizes=(16, 16), resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1,),),
        )  # fmt: skip
        generator = Generator(models.new_model(architecture, build_tokenizer(["abc"]), []), "posterior", 8)
        judge = Discriminator(DiscriminatorShape(periods=(3,), channels_divisor=16))
        if compiled:
            compile_fixed_shapes(generator, judge)
        speech = (generator.compiled_decoder or generator.model.decoder)(torch.randn(2, 16, 8), None)
        scores = judge(speech).scores
        sum(score.square().sum() for score in scores).backward()
        networks = (generator.model.decoder, judge)
        found.append([speech, *scores, *(p.grad for network in networks for p in network.parameters())])
    assert compiled_graphs() == 2
    for eager, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-6)


def test_compiled_run_learns_as_the_eager_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run, with the last, smaller batch of an epoch and validation. What is compiled is captured really and
    run by eager kernels: those of C++ take four minutes to make (the test above makes a few)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        folder.mkdir()
        prepared_folder(folder, clips=10)
        assert main(["train_vits", *train_flags(folder, compile=compiled, max_updates=4)]) == 0
        found.append(metrics(folder))
    for eager, ours in zip(*found, strict=True):
        for name in ("generator/mel", "generator/total", "discriminator/total", "grad_norm/discriminator"):
            assert ours[name] == pytest.approx(eager[name], rel=2e-3)
    assert found[1][-1]["validation/mel"] == pytest.approx(found[0][-1]["validation/mel"], rel=2e-3)
    # The decoder, and the discriminators on twice the clips, on the recorded and on the generated ones: once for the
    # first size of a batch, once for any other; validation has sizes of its own.
    assert compiled_graphs() <= 12


def test_time_of_compiling_is_not_taken_for_an_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--target_hours divides by what an update takes: there the two sizes of batches compile for 3 s each."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    take, rehearse, calls, found = Turns.take, Trainer.rehearse, [], []

    def slow(self: Turns, *given: Any, **named: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        time.sleep(3 if len(calls) <= 2 else 0)
        return take(self, *given, **named)

    def rehearsed(self: Trainer) -> float:
        found.append(rehearse(self))
        return found[0]

    monkeypatch.setattr(Turns, "take", slow)
    monkeypatch.setattr(Trainer, "rehearse", rehearsed)
    prepared_folder(tmp_path, clips=10)
    assert main(["train_vits", *train_flags(tmp_path, compile="true", max_updates=1)]) == 0
    assert 0 < found[0] < 3


def compiled_graphs() -> int:
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return int(count)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def test_machine_without_a_compiler_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared_folder(tmp_path, clips=10)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["train_vits", *train_flags(tmp_path, compile="true")]) == 2
    assert "Leave --compile out" in capsys.readouterr().err
