"""Prepared folders and run configurations small enough to train in a test."""

import atexit
import functools
import hashlib
import json
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.support.audio import encode, voice, write_lj_speech
from tests.support.encoders import write_encoder
from vits_trainer.cli.main import main
from vits_trainer.data.audio import to_pcm16, write_pcm16_wav

MINIATURE: dict[str, Any] = {
    "model_name": None,
    "architecture": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "ffn_dim": 32,
        "posterior_encoder_num_wavenet_layers": 2,
        "prior_encoder_num_flows": 2,
        "prior_encoder_num_wavenet_layers": 1,
        "duration_predictor_num_flows": 2,
        "upsample_initial_channel": 16,
        "upsample_rates": [16, 16],
        "upsample_kernel_sizes": [32, 32],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    },
    "discriminator": {"periods": [2], "channels_divisor": 16},
    "segment_frames": 16,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "max_updates": 4,
    "log_every_updates": 1,
    "data_workers": 0,
    "validation_samples": 0,
    "wandb_tags": ["test"],
}


def objective_options(folder: Path) -> dict[str, Any]:
    """All optional parts of the objective at once, for runs from scratch. Writes a speech encoder below ``folder``."""
    return {
        "loss_weights.multi_scale_mel": 9,
        "discriminator.resolutions": "[[512,50,240]]",
        "discriminator_encoder": write_encoder(folder / "encoder"),
        "discriminator_encoder_layers": "[0,2]",
        "discriminator_learning_rate": 5e-4,
        "discriminator_betas": "[0.5,0.9]",
        "kl_warmup_updates": 4,
        "alignment_noise": 0.01,
    }


def prepared_folder(folder: Path, clips: int = 10, rate_hz: int = 16000, longest_s: float = 9.9) -> Path:
    """Writes ``source``, synthetic clips, and ``training``, prepared from them. Returns the latter."""
    return shutil.copytree(_prepared(clips, rate_hz, longest_s), folder, dirs_exist_ok=True) / "training"


@functools.cache
def _prepared(clips: int, rate_hz: int, longest_s: float) -> Path:
    """Prepares the clips once a process, in a folder to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="prepared-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    names = [f"clip{n}" for n in range(clips)]
    lengths_s = [min(0.8 + 0.05 * n, longest_s) for n in range(clips)]
    # Clips of equal length differ in pitch: they are no copies of one another.
    pitches_hz = [150.0 + max(0.0, 0.8 + 0.05 * n - longest_s) for n in range(clips)]
    parts = zip(names, lengths_s, pitches_hz, strict=True)
    audio = {f"wavs/{name}.wav": encode(voice(s, rate_hz, pitch), rate_hz) for name, s, pitch in parts}
    lines = [f"{name}|number {n} speaks" for n, name in enumerate(names)]
    source = write_lj_speech(folder / "source", lines, audio)
    argv = ["--dataset", str(source), "--output_dir", str(folder / "training"), "--target_sr", str(rate_hz)]
    assert main(["prepare_data", *argv, "--processes", "1"]) == 0
    return folder


def many_speakers(folder: Path, sizes: Mapping[str, int]) -> Path:
    """Writes a prepared folder with the given number of synthetic clips per speaker, ``NAME_<n>.wav``."""
    wavs = folder / "training/wavs"
    wavs.mkdir(parents=True)
    lines = []
    for number, (speaker, clips) in enumerate(sizes.items()):
        for n in range(clips):
            samples = to_pcm16(voice(0.8 + 0.05 * n + 0.02 * number, 16000, 100 + 40 * number))
            write_pcm16_wav(wavs / f"{speaker}_{n}.wav", samples, 16000)
            lines.append(f"{speaker}_{n}.wav|number {n} speaks|{speaker}\n")
    (folder / "training/metadata.csv").write_text("".join(lines), encoding="utf-8")
    (folder / "training/dataset.json").write_text('{"sampling_rate": 16000}', encoding="utf-8")
    return folder / "training"


def train_flags(folder: Path, **changes: Any) -> list[str]:
    """Returns flags of ``train_vits`` for a miniature voice, with all output below ``folder``."""
    recipe = folder / "miniature.yaml"
    recipe.write_text(yaml.safe_dump(MINIATURE), encoding="utf-8")
    settings = {
        "config": recipe,
        "data_dir": folder / "training",
        "checkpoint_dir": folder / "checkpoints",
        "output_dir": folder / "final_model",
        "run_name": "run",
        **changes,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def metrics(folder: Path) -> list[dict[str, float]]:
    """Returns the lines of the run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "training/runs/run/metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, update: int) -> str:
    """Returns a digest of both networks and both optimizers in a checkpoint."""
    digest = hashlib.sha256()
    for name in ("generator", "discriminator", "optimizer_generator", "optimizer_discriminator"):
        for key, tensor in sorted(load_file(folder / f"checkpoints/checkpoint-{update}/{name}.safetensors").items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def wandb_records(path: Path) -> list[Any]:
    """Returns the records of a finished offline run's file; waits for W&B's process to write the last ones."""
    for _ in range(300):
        records = list(_records_so_far(path.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} has no exit record after 30 s")


def _records_so_far(data: bytes) -> Iterator[Any]:
    """Parses LevelDB's log format, each chunk with its CRC; skips a last chunk that is incomplete."""
    from wandb.proto import wandb_internal_pb2 as messages

    block = 32768
    at, content = 7, b""
    if len(data) >= at:
        magic, version, _ = struct.unpack("<4sHB", data[:at])
        assert (magic, version) == (b":W&B", 0xBEE1)
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        crc, size, kind = struct.unpack("<IHB", data[at : at + 7])
        chunk = data[at + 7 : at + 7 + size]
        if len(chunk) < size:
            return
        assert crc == zlib.crc32(chunk, zlib.crc32(bytes([kind]))) & 0xFFFFFFFF
        at += 7 + size
        content = chunk if kind in (1, 2) else content + chunk
        if kind in (1, 4):  # a complete record, or its last chunk
            record = messages.Record()
            record.ParseFromString(content)
            yield record


def ended_wandb_run(run: Path) -> list[Any]:
    """Returns the records of the only offline run in a run's folder."""
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    return wandb_records(file)


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """Returns the logged metrics, one dictionary per call."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]
