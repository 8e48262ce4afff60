"""Voices of each sampling rate are trained, synthesize speech and are fine-tuned."""

from pathlib import Path

import pytest
import yaml
from transformers import VitsConfig, pipeline

from tests.support.voices import MINIATURE, metrics, prepared_folder, train_flags
from vits_trainer.cli.main import main
from vits_trainer.config.framing import AudioSpec, Framing
from vits_trainer.config.serialization import RECIPES_DIR
from vits_trainer.models.pretrained import audio_spec

RECIPES = {"from_scratch": 16000, "from_scratch_22k": 22050, "from_scratch_24k": 24000, "from_scratch_44k": 44100}
SIZES = ("sampling_rate", "spectrogram_bins", "upsample_rates", "upsample_kernel_sizes")


@pytest.mark.parametrize(("recipe", "rate_hz"), list(RECIPES.items())[1:])  # other tests use 16 kHz
def test_voice_of_each_rate_is_trained_speaks_and_is_finetuned(recipe: str, rate_hz: int, tmp_path: Path) -> None:
    """A tiny voice with the recipe's framing, run by transformers' pipeline."""
    prepared_folder(tmp_path, clips=5, rate_hz=rate_hz)
    written = yaml.safe_load((RECIPES_DIR / f"{recipe}.yaml").read_text("utf-8"))["architecture"]
    framing = {f"architecture.{name}": value for name, value in written.items() if name in SIZES}
    flags = train_flags(tmp_path, **framing, max_updates=2, validation_samples=1)
    assert main(["train_vits", *flags]) == 0
    voice = tmp_path / "final_model"
    speech = pipeline("text-to-speech", model=str(voice))("number speaks")
    rate, samples = speech["sampling_rate"], speech["audio"].size
    good = Framing.for_rate(rate_hz)
    assert rate == rate_hz
    assert samples > 0
    assert samples % good.hop == 0
    # The exported configuration is sufficient to fine-tune the voice.
    assert audio_spec(VitsConfig.from_pretrained(voice)) == AudioSpec(rate_hz, good.n_fft, good.n_fft, good.hop)
    tuned = {name: value for name, value in MINIATURE.items() if name != "architecture"}
    (tmp_path / "tuned").mkdir()
    flags = train_flags(tmp_path / "tuned", data_dir=tmp_path / "training", runs_dir=tmp_path / "tuned/training/runs")
    (tmp_path / "tuned/miniature.yaml").write_text(yaml.safe_dump(tuned))
    assert main(["train_vits", *flags, "--model_name", str(voice), "--max_updates", "1"]) == 0
    # The same clips, noise and weights: fine-tuning starts where the first run ended.
    before, after = metrics(tmp_path)[-1], metrics(tmp_path / "tuned")[0]
    assert after["validation/mel"] == pytest.approx(before["validation/mel"], rel=1e-3)
