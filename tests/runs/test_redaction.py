"""Secrets are not written to files of a W&B run."""

from pathlib import Path

import pytest

from tests.support.voices import ended_wandb_run, prepared_folder, train_flags
from vits_trainer.cli.main import main

TOKEN = "hf_" + "Ab1" * 10


def test_no_file_of_a_wandb_run_contains_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret is in the environment, the configuration, dataset.json and an error message."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_MODE", "offline")
    prepared_folder(tmp_path)
    summary = tmp_path / "training/dataset.json"
    summary.write_text(summary.read_text().replace('"dataset": "', f'"dataset": "https://user:{TOKEN}@host/', 1))
    (tmp_path / "training/wavs/audio_000003.wav").unlink()

    def fail_with_token(path: object) -> None:
        raise OSError(f"https://host/clip.wav?token={TOKEN}")

    monkeypatch.setattr("vits_trainer.data.audio_store.read_pcm16_wav", fail_with_token)
    assert main(["train_vits", *train_flags(tmp_path, wandb_tags=f"[{TOKEN}]", validation_fraction=0)]) == 1
    run = tmp_path / "training/runs/run"
    ended_wandb_run(run)
    assert TOKEN in (run / "rejected.jsonl").read_text()  # the error message contains it
    files = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert files
    assert [str(path) for path in files if TOKEN.encode() in path.read_bytes()] == []
