"""Weights with NaN or Inf raise when read or written; runs without an applied update fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.poison import Poison, poison  # noqa: F401 - a fixture
from tests.support.voices import train_flags
from vits_trainer.cli.main import main
from vits_trainer.config.architecture import DiscriminatorShape
from vits_trainer.evaluation.synthesis import Voice
from vits_trainer.models.discriminator import Discriminator
from vits_trainer.models.parameter_names import to_original_discriminator
from vits_trainer.models.pretrained import export, load_model
from vits_trainer.models.pretrained_discriminator import discriminator_from_original
from vits_trainer.models.voice_versions import VOICE
from vits_trainer.text.tokenizer import load_tokenizer
from vits_trainer.training.checkpoint_record import MANIFEST, manifest
from vits_trainer.utils.errors import ModelError, SavingError
from vits_trainer.utils.files import mark, sha256
from vits_trainer.utils.finite_weights import require_finite, weights_of

pytestmark = pytest.mark.slow

AVERAGED = {"ema_decay": 0.5, "max_updates": 2, "report_to": "none", "validation_samples": 0}


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared, folder / "training")
    assert main(["train_vits", *train_flags(folder, **AVERAGED)]) == 0
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copied")


def spoil(path: Path, name: str = "", value: float = float("inf")) -> str:
    """Sets one value of a tensor in the file to ``value``. Returns the tensor's name."""
    tensors = load_file(path)
    name = name or next(name for name, tensor in tensors.items() if tensor.numel() > 1)
    tensors[name].view(-1)[0] = value
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_message_names_ten_tensors_and_counts_the_rest(value: float) -> None:
    good = {"good": torch.ones(2), "ids": torch.arange(3)}
    weights = {f"layer{n}": torch.full((2,), value) for n in range(12)} | good
    with pytest.raises(SavingError, match=r"^here: .* layer0, layer1, .*, layer9 and 2 more\. Do that\.$") as error:
        require_finite(weights, "here", "Do that.", SavingError)
    assert "good" not in str(error.value)
    require_finite(good, "here", "")


def test_nan_from_a_zero_direction_of_weight_norm_is_detected() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 3))
    require_finite(weights_of(nn.Sequential(layer)), "here", "")
    layer.parametrizations.weight.original1.data[0] = 0
    assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())
    with pytest.raises(ModelError, match=r"weights 0\.weight\."):
        require_finite(weights_of(nn.Sequential(layer)), "here", "")


def test_nonfinite_voice_raises_when_loaded_or_converted(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = copied / "final_model"
    name = spoil(voice / "model.safetensors")
    for load in (load_model, Voice):
        with pytest.raises(ModelError, match=name):
            load(str(voice))
    assert main(["convert", str(voice), "--output", str(copied / "converted")]) == 2
    assert name in capsys.readouterr().err
    assert not (copied / "converted").exists()


def test_nonfinite_discriminators_raise_from_every_source(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = copied / "final_model"
    name = spoil(voice / "discriminator.safetensors")
    assert main(["convert", str(voice), "--output", str(copied / "converted")]) == 2
    message = capsys.readouterr().err
    assert f"discriminator.safetensors: NaN or infinity in the weights {name}" in message
    state = Discriminator(DiscriminatorShape((2,), 16)).state_dict()
    original = to_original_discriminator(state)
    next(iter(original.values())).view(-1)[0] = torch.nan
    with pytest.raises(ModelError, match=r"D_1\.pth: NaN"):
        discriminator_from_original(original, "D_1.pth")


@pytest.mark.parametrize(
    "file", ["generator", "discriminator", "optimizer_generator", "optimizer_discriminator", "average"]
)
def test_nonfinite_checkpoint_is_rejected(copied: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    checkpoint = copied / "checkpoints/checkpoint-2"
    name = spoil(checkpoint / f"{file}.safetensors", value=float("nan"))
    (checkpoint / MANIFEST).unlink()
    (checkpoint / MANIFEST).write_text(manifest(checkpoint))
    before = sha256(copied / "final_model/model.safetensors")
    again = {**AVERAGED, "max_updates": 3, "resume_from_checkpoint": "latest"}
    assert main(["train_vits", *train_flags(copied, **again)]) == 2
    assert f"{file}.safetensors: NaN or infinity in the weights {name}" in capsys.readouterr().err
    is_in_voice = not file.startswith("optimizer")
    assert main(["export", str(checkpoint), "--output_dir", str(copied / "out")]) == (2 if is_in_voice else 0)
    assert (name in capsys.readouterr().err, (copied / "out").exists()) == (is_in_voice, not is_in_voice)
    assert sha256(copied / "final_model/model.safetensors") == before


def test_nonfinite_voice_does_not_replace_a_good_one(copied: Path) -> None:
    voice = copied / "final_model"
    model, tokenizer = load_model(str(voice)), load_tokenizer(str(voice))
    before = {path.name: sha256(path) for path in voice.iterdir()}
    model.flow.flows[0].conv_pre.bias.data[0] = torch.inf
    with pytest.raises(ModelError, match=r"flow\.flows\.0\.conv_pre\.bias"):
        export(model, tokenizer, None, voice)
    assert {path.name: sha256(path) for path in voice.iterdir()} == before


def test_weights_infinite_after_training_are_not_saved(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sha256(copied / "final_model/model.safetensors")
    again = {**AVERAGED, "max_updates": 3, "resume_from_checkpoint": "latest", "learning_rate": 1e39}
    assert main(["train_vits", *train_flags(copied, **again)]) == 1
    assert "checkpoint-3: NaN or infinity in the weights" in capsys.readouterr().err
    assert [path.name for path in (copied / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert sha256(copied / "final_model/model.safetensors") == before
    assert json.loads((copied / "training/runs/run/outcome.json").read_text())["outcome"].startswith("failed: Saving")


# Runs without an applied update


def nothing(folder: Path, **changes: object) -> list[str]:
    return train_flags(folder, **{"max_updates": 2, "report_to": "none", "validation_fraction": 0, **changes})


def test_run_with_only_masked_updates_fails(folder: Path, poison: Poison, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (folder / "final_model").mkdir()
    mark(folder / "final_model", VOICE)
    (folder / "final_model/model.safetensors").write_text("an older voice")
    poison("all")
    assert main(["train_vits", *nothing(folder)]) == 1
    message = capsys.readouterr().err
    assert "Nothing was trained in 2 updates: 6 clips in masked updates and 0 rejected" in message
    assert (folder / "final_model/model.safetensors").read_text() == "an older voice"
    assert json.loads((folder / "training/runs/run/outcome.json").read_text())["outcome"].startswith("failed: Nothing")
    # A resume at the end fails as well, until an update is applied to the weights.
    assert main(["train_vits", *nothing(folder, resume_from_checkpoint="latest")]) == 1
    assert "Nothing was trained" in capsys.readouterr().err
    poison("none")
    assert main(["train_vits", *nothing(folder, max_updates=3, resume_from_checkpoint="latest")]) == 0


def test_run_with_only_rejected_clips_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder / "training/wavs").iterdir():
        path.write_bytes(b"no recording")
    assert main(["train_vits", *nothing(folder, max_updates=1, max_rejected_fraction=1)]) == 1
    message = capsys.readouterr().err
    assert "Nothing was trained in 1 update: 0 clips in masked updates and 3 rejected" in message
    assert not (folder / "final_model").exists()


def test_run_with_earlier_applied_updates_succeeds_despite_masked_ones(
    copied: Path, poison: Poison, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    poison("all")
    again = {**AVERAGED, "max_updates": 3, "resume_from_checkpoint": "latest"}
    assert main(["train_vits", *train_flags(copied, **again)]) == 0


def test_resume_of_a_finished_run_logs_so_and_exports_the_same_voice(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = sha256(copied / "final_model/model.safetensors")
    shutil.rmtree(copied / "final_model")
    assert main(["train_vits", *train_flags(copied, **AVERAGED, resume_from_checkpoint="latest")]) == 0
    assert "Nothing left to train: the run ends at update 2, and 2 are done." in caplog.text
    assert sha256(copied / "final_model/model.safetensors") == before
