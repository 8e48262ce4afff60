"""A Piper voice of medium quality: converted, trained on with its own residual blocks, resumed, and exported again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import VitsModel

from tests.support.foreign_checkpoints import speech
from tests.support.piper_voices import piper_network, write_piper_checkpoint, write_piper_config
from tests.support.voices import metrics, prepared_folder, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.models.pretrained import load_model
from vits_trainer.models.type2_decoder import Type2Decoder

FLAGS: dict[str, Any] = {
    "architecture": "null", "batch_size": 2, "gradient_accumulation_steps": 2, "ema_decay": 0.9, "precision": "bf16",
    "save_every_updates": 2, "max_updates": 4, "report_to": "none", "learning_rate": 1e-3,
}  # fmt: skip


def train(folder: Path, voice: Path, **changes: Any) -> int:
    return main(["train_vits", *train_flags(folder, **FLAGS, model_name=voice, **changes)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the converted voice, the run and the trained voice."""
    folder = tmp_path_factory.mktemp("type2")
    prepared_folder(folder, rate_hz=22050)
    checkpoint = write_piper_checkpoint(folder / "piper", piper_network())
    write_piper_config(folder / "piper/config.json", phoneme_type="text")
    assert main(["convert", "--input", str(checkpoint), "--output", str(folder / "voice")]) == 0
    assert train(folder, folder / "voice") == 0
    return folder


def test_trained_voice_keeps_its_blocks_and_speaks_in_transformers(trained: Path) -> None:
    own = load_model(str(trained / "final_model"))  # raises if the doubled blocks are not exact
    assert isinstance(own.decoder, Type2Decoder)
    plain = VitsModel.from_pretrained(trained / "final_model").eval()
    tokens = torch.arange(1, 20)[None]
    one, other = speech(own.eval(), tokens), speech(plain, tokens)
    assert one.abs().max() > 0.01
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    before = load_model(str(trained / "voice")).decoder.state_dict()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in own.decoder.state_dict().items())


def test_checkpoints_have_the_own_blocks_only(trained: Path) -> None:
    names = load_file(trained / "checkpoints/checkpoint-4/generator.safetensors").keys()
    assert any(".resblocks.0.convs.0." in name for name in names)
    assert not any(".convs1." in name or ".convs2." in name for name in names)
    assert metrics(trained)[-1]["update"] == 4


def test_resumed_run_equals_an_uninterrupted_one(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    folder.mkdir()
    data = {"data_dir": trained / "training", "runs_dir": folder / "runs"}
    resume = trained / "checkpoints/checkpoint-2"
    assert train(folder, trained / "voice", **data, resume_from_checkpoint=resume) == 0
    assert weights(folder, 4) == weights(trained, 4)
