"""Options that only change training: resumed exactly, and absent from the voice."""

import json
from pathlib import Path

import pytest
from transformers import VitsModel

from tests.support.voices import objective_options, train_flags, weights
from vits_trainer.cli.main import main
from vits_trainer.models.discriminator import (
    EncoderDiscriminator,
    PeriodDiscriminator,
    ScaleDiscriminator,
    SpectrogramDiscriminator,
    load_discriminator,
)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    (folder / "training").symlink_to(prepared)
    options = objective_options(folder)
    flags = train_flags(folder, **options, runs_dir=folder / "runs", save_every_updates=2, max_updates=4)
    assert main(["train_vits", *flags]) == 0
    return folder


def test_losses_are_logged_and_annealed(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "runs/run/metrics.jsonl").read_text().splitlines()]
    for line, share in zip(lines, (0.25, 0.5, 0.75, 1), strict=True):
        names = ("duration", "adversarial", "feature_matching")
        total = 45 * line["generator/mel"] + 9 * line["generator/multi_scale_mel"] + share * line["generator/kl"]
        total += sum(line[f"generator/{name}"] for name in names)
        assert line["generator/total"] == pytest.approx(total, rel=1e-5)
    assert "validation/multi_scale_mel" in lines[-1]


def test_resumed_run_has_the_same_weights(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "training").symlink_to((trained / "training").resolve())
    flags = {**objective_options(folder), "runs_dir": folder / "runs", "save_every_updates": 2}
    assert main(["train_vits", *train_flags(folder, **flags, max_updates=2)]) == 0
    resumed = train_flags(folder, **flags, max_updates=4, resume_from_checkpoint="latest")
    assert main(["train_vits", *resumed]) == 0
    assert weights(folder, 4) == weights(trained, 4)


def test_voice_is_a_plain_one(trained: Path) -> None:
    voice = trained / "final_model"
    discriminator = load_discriminator(voice / "discriminator.safetensors")
    assert discriminator.shape.resolutions == ((512, 50, 240),)
    assert discriminator.on_encoder is not None
    assert discriminator.on_encoder.inputs.layers == (0, 2)
    _, report = VitsModel.from_pretrained(voice, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_spectrogram_discriminators_join_known_ones(trained: Path, tmp_path: Path) -> None:
    """A voice with its discriminators is trained on with another resolution: fresh, after a warm-up of all."""
    (tmp_path / "training").symlink_to((trained / "training").resolve())
    flags = [
        "--model_name", str(trained / "final_model"), "--data_dir", str(tmp_path / "training"),
        "--runs_dir", str(tmp_path / "runs"), "--run_name", "run", "--checkpoint_dir", str(tmp_path / "checkpoints"),
        "--output_dir", str(tmp_path / "voice"), "--discriminator.resolutions", "[[512,50,240],[256,30,120]]",
        "--discriminator_encoder", str(trained / "encoder"), "--discriminator_encoder_layers", "[0,2]",
        "--segment_frames", "16", "--batch_size", "4", "--gradient_accumulation_steps", "1", "--max_updates", "20",
        "--validation_samples", "0", "--validate_every_updates", "0", "--report_to", "none",
    ]  # fmt: skip
    assert main(["train_vits", *flags]) == 0
    before = load_discriminator(trained / "final_model/discriminator.safetensors")
    after = load_discriminator(tmp_path / "voice/discriminator.safetensors")
    assert after.shape.resolutions[1] == (256, 30, 120)
    assert [type(network) for network in after.discriminators] == [
        ScaleDiscriminator, PeriodDiscriminator, SpectrogramDiscriminator, SpectrogramDiscriminator,
        EncoderDiscriminator,
    ]  # fmt: skip
    assert before.on_encoder is not None
    assert after.on_encoder is not None
    assert after.on_encoder.inputs == before.on_encoder.inputs
    facts = json.loads((tmp_path / "runs/run/facts.json").read_text())
    assert facts["plan"]["discriminator_warmup_updates"] == 2
