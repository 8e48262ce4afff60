"""Frozen parts, EMA of the weights, and learning rate schedules."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.support.voices import metrics, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.config.options import MODULES, PARTS


@pytest.fixture(scope="module")
def ema_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four updates with an EMA."""
    folder = tmp_path_factory.mktemp("ema_run")
    shutil.copytree(prepared, folder / "training")
    flags = train_flags(folder, **AVERAGED, validate_every_updates=2, save_every_updates=1, keep_checkpoints=0)
    assert main(["train_vits", *flags]) == 0
    return folder


AVERAGED = {"ema_decay": 0.25, "schedule": "cosine", "warmup_updates": 2, "weight_decay": 0}


def saved(folder: Path, update: int, name: str = "generator") -> dict[str, Tensor]:
    return load_file(folder / f"checkpoints/checkpoint-{update}/{name}.safetensors")


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("frozen", ["decoder, text_encoder", "posterior_encoder,duration_predictor", "flow"])
def test_all_parts_except_frozen_ones_change(frozen: str, folder: Path) -> None:
    flags = train_flags(folder, freeze=frozen, save_every_updates=1, max_updates=2)
    assert main(["train_vits", *flags]) == 0
    parts = {name.strip() for name in frozen.split(",")}
    assert changed_parts(saved(folder, 1), saved(folder, 2)) == set(MODULES) - parts
    moments = {name.split(".")[1] for name in saved(folder, 2, "optimizer_generator")}
    assert moments == set(MODULES) - parts
    assert saved(folder, 2).keys() >= {"decoder.conv_pre.weight", "text_encoder.project.weight"}


def test_resumed_run_keeps_frozen_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_vits", *train_flags(folder, freeze="flow,decoder", max_updates=2)]) == 0
    again = {"resume_from_checkpoint": "latest", "max_updates": 3}
    assert main(["train_vits", *train_flags(folder, freeze="decoder,flow", **again)]) == 0
    assert changed_parts(saved(folder, 2), saved(folder, 3)) == set(MODULES) - {"flow", "decoder"}
    capsys.readouterr()
    assert main(["train_vits", *train_flags(folder, freeze="decoder", **again)]) == 2
    assert "freeze flow,decoder -> decoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"freeze": ",".join(PARTS)}, "no trainable parameters"),
        ({"freeze": "text_encoder,flow,decoder,duration_predictor", "objective": "mel"}, "no trainable parameters"),
        ({"freeze": "vocoder"}, "vocoder is not one of text_encoder, posterior_encoder"),
        ({"ema_decay": 1.0}, "--ema_decay 1.0: must be at least 0"),
        ({"discriminator_warmup_updates": 1, "objective": "mel"}, "mel has no discriminators"),
        ({"extend_vocabulary": "true", "freeze": "flow,text_encoder"}, "embeddings of new letters are trained"),
        ({"schedule": "cosine", "learning_rate_decay": 0.5}, "requires the exponential schedule"),
        ({"warmup_updates": -1}, "--warmup_updates -1: must be at least 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_settings_are_rejected(
    settings: dict[str, object], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train_vits", *train_flags(folder, **settings)]) == 2
    assert expected in capsys.readouterr().err
    assert not list((folder / "checkpoints").glob("checkpoint-*"))


def test_ema_of_a_run_equals_that_computed_from_its_checkpoints(ema_run: Path) -> None:
    name = "text_encoder.project.weight"
    # The first update mixes with the initial weights, which no checkpoint has: computed from the second on.
    average = saved(ema_run, 1, "average")[name].double()
    for update, decay in ((2, 0.25), (3, 0.25), (4, 0.25)):  # 3/12, then the configured decay
        average = decay * average + (1 - decay) * saved(ema_run, update)[name].double()
        torch.testing.assert_close(saved(ema_run, update, "average")[name].double(), average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(saved(ema_run, 4, "average")[name], saved(ema_run, 4)[name])


def test_exported_voice_is_the_ema(ema_run: Path) -> None:
    assert main(["export", str(ema_run / "checkpoints/checkpoint-4"), "--output_dir", str(ema_run / "again")]) == 0
    for voice in ("final_model", "again"):
        exported = load_file(ema_run / voice / "model.safetensors")
        name = "text_encoder.project.weight"
        assert torch.equal(exported[name], saved(ema_run, 4, "average")[name])
        parts = [f"decoder.upsampler.0.parametrizations.weight.original{n}" for n in (0, 1)]
        g, v = (saved(ema_run, 4, "average")[part] for part in parts)
        folded = g * v / v.flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(exported["decoder.upsampler.0.weight"], folded)


def test_ema_is_validated(ema_run: Path, folder: Path) -> None:
    """A run with the same seed without EMA has the same raw weights, and their metric."""
    plain = {name: value for name, value in AVERAGED.items() if name != "ema_decay"}
    assert main(["train_vits", *train_flags(folder, **plain, validate_every_updates=2)]) == 0
    with_ema = [line for line in metrics(ema_run) if "validation/mel" in line]
    without = [line for line in metrics(folder) if "validation/mel" in line]
    assert [line["validation/mel_raw"] for line in with_ema] == [line["validation/mel"] for line in without]
    assert all(line["validation/mel"] != line["validation/mel_raw"] for line in with_ema)
    assert weights(ema_run, 4) == weights(folder, 4)


def test_resumed_run_ends_with_the_uninterrupted_runs_ema(ema_run: Path, folder: Path) -> None:
    """Weights, moments, EMA and the learning rate, a cosine over the whole run."""
    shutil.copytree(ema_run / "checkpoints/checkpoint-2", folder / "checkpoints/checkpoint-2")
    assert main(["train_vits", *train_flags(folder, **AVERAGED, resume_from_checkpoint="latest")]) == 0
    assert weights(folder, 4) == weights(ema_run, 4)
    ours, theirs = (saved(path, 4, "average") for path in (folder, ema_run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rates = [line["optim/learning_rate"] for line in metrics(ema_run) if "optim/learning_rate" in line]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    resumed = [line["optim/learning_rate"] for line in metrics(folder) if "optim/learning_rate" in line]
    assert resumed == rates[2:]


def test_checkpoint_without_ema_starts_one_and_logs_it(folder: Path) -> None:
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    flags = train_flags(folder, resume_from_checkpoint="latest", max_updates=3, ema_decay=0.9)
    assert main(["train_vits", *flags]) == 0
    log = (folder / "training/runs/run/train.log").read_text()
    assert "checkpoint-2 contains no EMA weights: the EMA restarts from the weights of that update" in log
    assert "ema_decay 0.0 -> 0.9" in log
    name = "text_encoder.project.weight"
    by_hand = 2 / 11 * saved(folder, 2)[name] + 9 / 11 * saved(folder, 3)[name]
    torch.testing.assert_close(saved(folder, 3, "average")[name], by_hand)


def test_best_voice_of_a_run_with_ema_is_the_ema_of_that_update(folder: Path) -> None:
    """With a learning rate that ruins the voice, the first validation stays the best."""
    flags = train_flags(
        folder, ema_decay=0.5, validate_every_updates=1, patience=1, learning_rate=0.3, max_updates=8
    )
    assert main(["train_vits", *flags]) == 0
    best = yaml.safe_load((folder / "checkpoints/best.json").read_text())["checkpoint"]
    average = load_file(folder / "checkpoints" / best / "average.safetensors")
    exported = load_file(folder / "final_model/model.safetensors")
    assert torch.equal(exported["text_encoder.project.weight"], average["text_encoder.project.weight"])
