"""Compares options of the objective: the same data, updates and seeds for each, judged by ``evaluate``.

``python -m experiments.ablation DATA_DIR FOLDER [--config tiny | --model_name VOICE] [--updates 300] [--seeds 3]
[--variants baseline multi_scale_mel ...]``

Trains every variant with every seed, evaluates all on the same held-out clips, and prints each metric's paired
difference to the baseline: mean over seeds, and 95 % interval over clips, which have the mean of their seeds. An
interval says nothing about other seeds: the last number counts the seeds whose mean has the same sign. Continues where
an earlier call ended. Runs on a GPU if there is one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command import run
from vits_trainer.evaluation.speech_metrics import bootstrap_interval

BASELINE = "baseline"
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "multi_scale_mel": {"loss_weights.multi_scale_mel": 91, "loss_weights.mel": 0},
    "both_mels": {"loss_weights.multi_scale_mel": 45, "loss_weights.mel": 22.5},
    "spectrogram_discriminators": {"discriminator.resolutions": "[[1024,120,600],[2048,240,1200],[512,50,240]]"},
    "slower_discriminators": {"discriminator_learning_rate": 0.5},
    "kl_warmup": {"kl_warmup_updates": 0.25},
    "alignment_noise": {"alignment_noise": 0.01},
}
"""Flags of each variant; ``discriminator_learning_rate`` relative to the learning rate, warm-up to the updates."""
SCORES = "mcd,f0,duration,cer"

Clips = dict[str, dict[str, float]]
"""Metrics of a voice by clip."""


def train(folder: Path, seed: int, variant: str, asked: argparse.Namespace) -> Path:
    voice = folder / "voice"
    if voice.is_dir():
        return voice
    flags = dict(VARIANTS[variant])
    if "discriminator_learning_rate" in flags:
        flags["discriminator_learning_rate"] *= asked.learning_rate
    if "kl_warmup_updates" in flags:
        flags["kl_warmup_updates"] = round(flags["kl_warmup_updates"] * asked.updates)
    start = {"config": asked.config} if asked.config else {"model_name": asked.model_name}
    run(
        "train_vits", **start, **flags, data_dir=asked.data_dir, output_dir=voice, seed=seed, run_name="run",
        checkpoint_dir=folder / "checkpoints", runs_dir=folder / "runs", resume_from_checkpoint="auto",
        max_updates=asked.updates, batch_size=asked.batch_size, gradient_accumulation_steps=1,
        learning_rate=asked.learning_rate, validate_every_updates=asked.updates, save_every_updates=100,
        keep_checkpoints=1, best_metric="mel", validation_samples=0, report_to="none",
        validation_fraction=asked.validation_fraction,
    )  # fmt: skip
    return voice


def evaluated(folder: Path, voice: Path, asked: argparse.Namespace) -> Clips:
    """Metrics by clip of one voice."""
    scores = folder / "evaluation/scores.json"
    if not scores.is_file():
        run(
            "evaluate", models=voice, data_dir=asked.data_dir, output_dir=scores.parent, scores=asked.scores,
            validation_fraction=asked.validation_fraction, max_clips=asked.clips,
        )  # fmt: skip
    record = json.loads(scores.read_text(encoding="utf-8"))
    return {clip["clip"]: clip["figures"] for clip in record["voices"][str(voice)]["clips"]}


def differences(ours: list[Clips], baseline: list[Clips], metric: str) -> np.ndarray:
    """Paired differences, (seeds, clips), of the clips that have the metric with all seeds."""
    both = [*ours, *baseline]
    names = sorted(set.intersection(*({clip for clip, m in clips.items() if metric in m} for clips in both)))
    rows = [[mine[n][metric] - base[n][metric] for n in names] for mine, base in zip(ours, baseline, strict=True)]
    return np.array(rows)


def compare(asked: argparse.Namespace) -> None:
    results: dict[str, list[Clips]] = {}
    for variant in dict.fromkeys((BASELINE, *asked.variants)):
        for seed in range(asked.seeds):
            folder = asked.folder / f"{variant}-{seed}"
            results.setdefault(variant, []).append(evaluated(folder, train(folder, seed, variant, asked), asked))
    metrics = sorted({name for clips in results[BASELINE] for values in clips.values() for name in values})
    print(f"| variant | {' | '.join(metrics)} |\n{'|---' * (len(metrics) + 1)}|")
    means = [np.mean([m[name] for clips in results[BASELINE] for m in clips.values() if name in m]) for name in metrics]
    print(f"| {BASELINE} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    for variant, ours in results.items():
        cells = [cell(differences(ours, results[BASELINE], name)) for name in metrics]
        if variant != BASELINE:
            print(f"| {variant} | {' | '.join(cells)} |")


def cell(by_seed: np.ndarray) -> str:
    """Mean, interval, and the number of seeds that agree in sign."""
    if not by_seed.size:
        return ""
    by_clip = by_seed.mean(axis=0)
    low, high = bootstrap_interval(by_clip.tolist())
    agree = int((np.sign(by_seed.mean(axis=1)) == np.sign(by_clip.mean())).sum())
    return f"{by_clip.mean():+.3f} [{low:+.3f}, {high:+.3f}] {agree}/{len(by_seed)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config")
    parser.add_argument("--model_name")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--validation_fraction", type=float, default=0.1)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--scores", default=SCORES)
    compare(parser.parse_args())
