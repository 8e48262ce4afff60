"""A checkpoint folder without a training, for the readers of its files."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vits_trainer.training.checkpoint_record import FORMAT, manifest


def write_checkpoint(folder: Path) -> Path:
    """Writes a checkpoint with valid records and a placeholder of weights."""
    (folder / "voice").mkdir(parents=True)
    (folder / "voice/config.json").write_text('{"model_type": "vits"}')
    (folder / "config.yaml").write_text("batch_size: 2\n")
    save_file({"a": torch.zeros(2)}, folder / "generator.safetensors")
    update = int(folder.name.partition("-")[2])
    incident = {"clip": "a.wav", "stage": "read", "kind": "too-short", "message": "x", "traceback": ""}
    record = {
        "format": FORMAT,
        "state": {
            "update": update, "epoch": 0, "clips_trained": 6, "clips_masked": 0, "clips_rejected": 1,
            "updates_nonfinite": 0, "nonfinite_in_a_row": 0,
            "accounts": {"trained": "00", "masked": "00", "rejected": "00", "rejections": [incident]},
            "selection": {
                "score": 0.5, "score_before": None, "best_score": 0.5, "best_update": 3, "validations_since_best": 0,
            },
        },
        "plan": {"total_updates": 9, "discriminator_warmup_updates": 0, "is_finetuning": True, "target_hours": 0.0},
        "fingerprint": {"must_match": {"run_name": "run", "seed": 1}, "may_change": {"cpu_threads": 1}, "launch": "a"},
        "scales": {"generator": {}},
        "losses": [{"sums": {"generator/mel": 1.0}, "weights": {"generator/mel": 1.0}}],
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(record))
    (folder / "manifest.json").write_text(manifest(folder))
    return folder
