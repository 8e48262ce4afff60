"""Compiled updates against eager ones."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch._inductor.config
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.support.voices import metrics, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.config.architecture import Architecture, DiscriminatorShape
from vits_trainer.models import initialization
from vits_trainer.models.compile import compile_networks
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.generator import Generator
from vits_trainer.text.tokenizer import build_tokenizer
from vits_trainer.training.train_step import GanTrainStep
from vits_trainer.training.trainer import Trainer

SHALLOW = {
    "architecture.posterior_encoder_num_wavenet_layers": 1,
    "architecture.prior_encoder_num_flows": 1,
    "architecture.duration_predictor_num_flows": 1,
    "architecture.resblock_dilation_sizes": [[1]],
}
"""Tracing takes a time proportional to the number of operations, for each part and its gradients."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
def test_compiled_kernels_agree_with_eager_ones() -> None:
    """Compares outputs and gradients of a decoder and a period discriminator, compiled with the default backend.

    The C++ compiler takes seconds for each layer: they have few.
    """
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        architecture = replace(
            Architecture(), hidden_size=16, num_hidden_layers=1, ffn_dim=32, posterior_encoder_num_wavenet_layers=1,
            prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1, upsample_initial_channel=8,
            upsample_rates=(8,), upsample_kernel_sizes=(16,), resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1,),),
        )  # fmt: skip
        generator = Generator(initialization.new_model(architecture, build_tokenizer(["abc"]), []), "posterior", 8)
        discriminator = Discriminator(DiscriminatorShape(periods=(3,), channels_divisor=16))
        discriminator.discriminators = discriminator.discriminators[1:]
        (period,) = discriminator.discriminators
        period.convs = period.convs[:2]
        period.conv_post = weight_norm(nn.Conv2d(period.convs[-1].out_channels, 1, (3, 1), padding=(1, 0)))
        if compiled:
            compile_networks(generator, discriminator)
        speech = generator.parts.decode(generator.model.decoder, torch.randn(2, 16, 8), None)
        scores = discriminator(speech).scores
        sum(score.square().sum() for score in scores).backward()
        networks = (generator.model.decoder, discriminator)
        results.append([speech, *scores, *(p.grad for network in networks for p in network.parameters())])
    assert compiled_graphs() == 2
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-6)


def test_compiled_run_has_the_metrics_of_the_eager_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run, with the last, smaller batch of an epoch and validation. Graphs are captured but run by eager
    kernels: compiling the C++ kernels takes four minutes (the test above compiles a few)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    results = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        folder.mkdir()
        prepared_folder(folder, clips=10)
        assert main(["train_vits", *train_flags(folder, **SHALLOW, compile=compiled, max_updates=4)]) == 0
        results.append(metrics(folder))
    for eager, ours in zip(*results, strict=True):
        for name in ("generator/mel", "generator/total", "discriminator/total", "grad_norm/discriminator"):
            assert ours[name] == pytest.approx(eager[name], rel=2e-3)
    assert results[1][-1]["validation/mel"] == pytest.approx(results[0][-1]["validation/mel"], rel=2e-3)
    # The decoder, and the discriminators on twice the clips, on the recorded and on the generated ones: once for the
    # first batch size, once for any other; validation has different sizes.
    assert compiled_graphs() <= 12


def test_compile_time_is_excluded_from_the_time_per_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--target_hours divides by the time per update; here, two batch sizes seem to compile for 3 s each."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    train_step, dry_run, calls, results = GanTrainStep.__call__, Trainer.dry_run, [], []

    def slow(self: GanTrainStep, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        time.sleep(3 if len(calls) <= 2 else 0)
        return train_step(self, *args, **kwargs)

    def recorded_dry_run(self: Trainer) -> float:
        results.append(dry_run(self))
        return results[0]

    monkeypatch.setattr(GanTrainStep, "__call__", slow)
    monkeypatch.setattr(Trainer, "dry_run", recorded_dry_run)
    prepared_folder(tmp_path, clips=10)
    assert main(["train_vits", *train_flags(tmp_path, compile="true", max_updates=1)]) == 0
    assert 0 < results[0] < 3


def compiled_graphs() -> int:
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return int(count)


@pytest.fixture(autouse=True)
def reset_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def test_missing_compiler_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared_folder(tmp_path, clips=10)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["train_vits", *train_flags(tmp_path, **SHALLOW, compile="true")]) == 2
    assert "Omit --compile" in capsys.readouterr().err
