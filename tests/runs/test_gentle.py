"""Gentle fine-tuning: frozen parts, averaged weights, schedules of the learning rate."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.support.voices import metrics, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.config.options import PARTS


@pytest.fixture(scope="module")
def averaged(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates of which an average was kept."""
    folder = tmp_path_factory.mktemp("averaged")
    shutil.copytree(prepared, folder / "training")
    flags = train_flags(folder, **AVERAGED, validate_every_updates=2, save_every_updates=1, keep_checkpoints=0)
    assert main(["train_vits", *flags]) == 0
    return folder


AVERAGED = {"ema_decay": 0.25, "schedule": "cosine", "warmup_updates": 2, "weight_decay": 0}


def kept(folder: Path, update: int, name: str = "generator") -> dict[str, Tensor]:
    return load_file(folder / f"checkpoints/checkpoint-{update}/{name}.safetensors")


def changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("frozen", [*PARTS, "decoder, text_encoder"])
def test_all_but_the_frozen_parts_change(frozen: str, folder: Path) -> None:
    flags = train_flags(folder, freeze=frozen, save_every_updates=1, max_updates=2)
    assert main(["train_vits", *flags]) == 0
    parts = set(frozen.split(", "))
    assert changed_parts(kept(folder, 1), kept(folder, 2)) == set(PARTS) - parts
    moments = {name.split(".")[1] for name in kept(folder, 2, "optimizer_generator")}
    assert moments == set(PARTS) - parts
    assert kept(folder, 2).keys() >= {"decoder.conv_pre.weight", "text_encoder.project.weight"}


def test_resumed_run_keeps_what_is_frozen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train_vits", *train_flags(folder, freeze="flow,decoder", max_updates=2)]) == 0
    again = {"resume_from_checkpoint": "latest", "max_updates": 3}
    assert main(["train_vits", *train_flags(folder, freeze="decoder,flow", **again)]) == 0
    assert changed_parts(kept(folder, 2), kept(folder, 3)) == set(PARTS) - {"flow", "decoder"}
    capsys.readouterr()
    assert main(["train_vits", *train_flags(folder, freeze="decoder", **again)]) == 2
    assert "freeze flow,decoder -> decoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
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
def test_what_cannot_be_is_refused(
    settings: dict[str, object], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train_vits", *train_flags(folder, **settings)]) == 2
    assert words in capsys.readouterr().err
    assert not list((folder / "checkpoints").glob("checkpoint-*"))


def test_average_of_a_run_is_the_one_computed_from_its_checkpoints(averaged: Path) -> None:
    name = "text_encoder.project.weight"
    # After the first update, by (1 + 1) / (10 + 1) of the start, which no checkpoint has: from there on by hand.
    average = kept(averaged, 1, "average")[name].double()
    for update, decay in ((2, 0.25), (3, 0.25), (4, 0.25)):  # 3/12, then the full height
        average = decay * average + (1 - decay) * kept(averaged, update)[name].double()
        torch.testing.assert_close(kept(averaged, update, "average")[name].double(), average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(kept(averaged, 4, "average")[name], kept(averaged, 4)[name])


def test_exported_voice_is_the_average(averaged: Path) -> None:
    assert main(["export", str(averaged / "checkpoints/checkpoint-4"), "--output_dir", str(averaged / "again")]) == 0
    for voice in ("final_model", "again"):
        exported = load_file(averaged / voice / "model.safetensors")
        name = "text_encoder.project.weight"
        assert torch.equal(exported[name], kept(averaged, 4, "average")[name])
        parts = [f"decoder.upsampler.0.parametrizations.weight.original{n}" for n in (0, 1)]
        g, v = (kept(averaged, 4, "average")[part] for part in parts)
        folded = g * v / v.flatten(1).norm(dim=1)[:, None, None]
        torch.testing.assert_close(exported["decoder.upsampler.0.weight"], folded)


def test_average_is_what_is_validated(averaged: Path, folder: Path) -> None:
    """A run of the same seed without an average has the same raw weights, and their figure."""
    plain = {name: value for name, value in AVERAGED.items() if name != "ema_decay"}
    assert main(["train_vits", *train_flags(folder, **plain, validate_every_updates=2)]) == 0
    with_it = [line for line in metrics(averaged) if "validation/mel" in line]
    without = [line for line in metrics(folder) if "validation/mel" in line]
    assert [line["validation/mel_raw"] for line in with_it] == [line["validation/mel"] for line in without]
    assert all(line["validation/mel"] != line["validation/mel_raw"] for line in with_it)
    assert weights(averaged, 4) == weights(folder, 4)


def test_resumed_run_ends_with_the_uninterrupted_runs_average(averaged: Path, folder: Path) -> None:
    """Weights, moments, averages and the learning rate, though it is a cosine over the whole run."""
    shutil.copytree(averaged / "checkpoints/checkpoint-2", folder / "checkpoints/checkpoint-2")
    assert main(["train_vits", *train_flags(folder, **AVERAGED, resume_from_checkpoint="latest")]) == 0
    assert weights(folder, 4) == weights(averaged, 4)
    ours, theirs = (kept(place, 4, "average") for place in (folder, averaged))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rates = [line["optim/learning_rate"] for line in metrics(averaged) if "optim/learning_rate" in line]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    resumed = [line["optim/learning_rate"] for line in metrics(folder) if "optim/learning_rate" in line]
    assert resumed == rates[2:]


def test_checkpoint_without_an_average_begins_one_and_says_so(folder: Path) -> None:
    assert main(["train_vits", *train_flags(folder, max_updates=2)]) == 0
    flags = train_flags(folder, resume_from_checkpoint="latest", max_updates=3, ema_decay=0.9)
    assert main(["train_vits", *flags]) == 0
    said = (folder / "training/runs/run/train.log").read_text()
    assert "checkpoint-2 contains no EMA weights: the EMA restarts from the weights of that update" in said
    assert "ema_decay 0.0 -> 0.9" in said
    name = "text_encoder.project.weight"
    by_hand = 2 / 11 * kept(folder, 2)[name] + 9 / 11 * kept(folder, 3)[name]
    torch.testing.assert_close(kept(folder, 3, "average")[name], by_hand)


def test_best_of_an_averaging_run_is_the_average_of_that_update(folder: Path) -> None:
    """A learning rate that ruins the voice at once: the first validation stays the best."""
    flags = train_flags(
        folder, ema_decay=0.5, validate_every_updates=1, patience=1, learning_rate=0.3, max_updates=8
    )
    assert main(["train_vits", *flags]) == 0
    best = yaml.safe_load((folder / "checkpoints/best.json").read_text())["checkpoint"]
    average = load_file(folder / "checkpoints" / best / "average.safetensors")
    exported = load_file(folder / "final_model/model.safetensors")
    assert torch.equal(exported["text_encoder.project.weight"], average["text_encoder.project.weight"])
